"""One table in its forms: CSV, Markdown, LaTeX (booktabs) and HTML."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

MISSING = "–"
"""What stands where there is no value."""

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
        "±": r"$\pm$", "<": "$<$", ">": "$>$",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: Of its files.
        title: Heading.
        caption: What it shows, in words.
        shown: Cells as they are read, all text.
        raw: The numbers, for the CSV file.
    """

    name: str
    title: str
    caption: str
    shown: pd.DataFrame
    raw: pd.DataFrame

    def markdown(self) -> str:
        """Return the table in Markdown, its numbers aligned right."""
        heads = [_in_markdown(name) for name in self.shown.columns]
        rules = ["---:" if right else ":---" for right in self._right()]
        rows = [[_in_markdown(cell) for cell in row] for row in self.shown.to_numpy()]
        lines = [f"| {' | '.join(cells)} |" for cells in [heads, rules, *rows]]
        return "\n".join([f"**{self.title}.** {self.caption}", "", *lines, ""])

    def latex(self) -> str:
        """Return the table in LaTeX; it needs the booktabs package."""
        heads, *rows = [
            " & ".join(str(cell).translate(_LATEX) for cell in row) + r" \\"
            for row in [self.shown.columns, *self.shown.to_numpy()]
        ]
        columns = "".join("r" if right else "l" for right in self._right())
        return "\n".join(
            [
                r"\begin{table}", r"\centering",
                rf"\caption{{{self.title.translate(_LATEX)}. {self.caption.translate(_LATEX)}}}",
                rf"\label{{tab:{self.name}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
                heads, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
            ]
        )  # fmt: skip

    def html(self) -> str:
        """Return the table in HTML, everything escaped."""
        sides = [' class="n"' if right else "" for right in self._right()]
        rows = ["".join(_head(name, side) for name, side in zip(self.shown, sides, strict=True))]
        for row in self.shown.to_numpy():
            rows.append("".join(_data(cell, side) for cell, side in zip(row, sides, strict=True)))
        head, *body = [f"<tr>{row}</tr>" for row in rows]
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def _right(self) -> list[bool]:
        """Which columns hold numbers."""
        return [
            all(cell == MISSING or cell[:1].isdigit() or cell[:1] in "+-" for cell in column)
            for column in self.shown.astype(str).to_numpy().T
        ]

    def write(self, folder: Path) -> None:
        """Write ``name.csv``, ``name.md`` and ``name.tex``."""
        self.raw.to_csv(folder / f"{self.name}.csv", index=False)
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        (folder / f"{self.name}.tex").write_text(self.latex(), encoding="utf-8")


def _in_markdown(cell: object) -> str:
    return html.escape(str(cell), quote=False).replace("|", r"\|").replace("\n", " ")


def _head(name: object, side: str) -> str:
    return f'<th scope="col"{side}>{html.escape(str(name))}</th>'


def _data(cell: object, side: str) -> str:
    return f"<td{side}>{html.escape(str(cell))}</td>"


def number(value: object, digits: int = 3) -> str:
    """Return a number with so many significant digits, or the sign for a missing one."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return MISSING
    return f"{float(value):.{digits}g}"  # type: ignore[arg-type]


def with_interval(value: object, low: object, high: object, digits: int = 3) -> str:
    """Return ``0.712 [0.703, 0.721]``; without the interval where there is none."""
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return MISSING
    text = f"{float(value):.{digits}f}"  # type: ignore[arg-type]
    if low is None or pd.isna(low) or high is None:  # type: ignore[call-overload]
        return text
    return f"{text} [{float(low):.{digits}f}, {float(high):.{digits}f}]"  # type: ignore[arg-type]
