"""The report: one HTML page, and every figure and table of it as files."""

from __future__ import annotations

import html
import multiprocessing
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analysis.cells import ENDS, study
from analysis.figures import PLOTS, Subject, draw
from analysis.gallery import gallery, save_png
from analysis.literature import PUBLISHED
from analysis.load import Runs, load
from analysis.page import figure, inline_png, inline_svg, page
from analysis.style import ONE_COLUMN, TWO_COLUMN, figures
from analysis.table import Table
from analysis.tables import tables
from analysis.tokenmaps import load_tokens
from elip.old_record import CONVENTION

REPORT_NAME = "report.html"
"""The page, in the report's folder; ``figures/`` and ``tables/`` lie beside it."""

_COMPARED = [
    f"comparisons_by_{unit}{end}" for unit in ("seeds", "examples") for end in ("", "_and_ratio")
]
_FOLDED = {*_COMPARED, "missing"}
_SIZES = (("one-column", ONE_COLUMN), ("two-column", TWO_COLUMN))


@dataclass(frozen=True)
class _Parts:
    """What the page is put together from."""

    subject: Subject
    plots: dict[str, str]
    undrawn: list[str]
    tables: dict[str, Table]
    maps: str


def write_report(
    folders: Iterable[Path | str],
    out: Path | str,
    title: str = "Token reduction: report",
    against: tuple[str, ...] = (),
    literature: bool = False,
    jobs: int = 1,
    may_differ: tuple[str, ...] = (),
) -> Path:
    """Read runs and write the report.

    Args:
        folders: Searched for run records, at any depth.
        out: Folder of the report; figures and tables of an earlier report are removed.
        title: Heading of the page.
        against: Methods to compare all others with, beside no reduction and Random.
        literature: Whether published results are drawn and listed.
        jobs: Processes that draw.
        may_differ: Options in which compared runs may differ; see `analysis.cells.study`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: There is no run record.
        ValueError: A method to compare with is not among the runs; the message lists them.
    """
    folders, out = list(folders), Path(out)
    runs = load(folders)
    subject = Subject(runs, study(runs, may_differ), PUBLISHED if literature else ())
    _check_known(subject, against)
    for name in ("figures", "tables"):
        _clear(out / name, stale=(out / REPORT_NAME).exists())
    against = tuple(dict.fromkeys((*ENDS, *against)))
    plots, undrawn = _draw(subject, out / "figures", jobs)
    made = {table.name: table for table in tables(subject, against)}
    for table in made.values():
        table.write(out / "tables")
    runs.table.to_csv(out / "tables" / "runs.csv", index=False)
    parts = _Parts(subject, plots, undrawn, made, _gallery(folders, out))
    path = out / REPORT_NAME
    path.write_text(page(title, _intro(parts), _sections(parts)), encoding="utf-8")
    return path


def _clear(folder: Path, stale: bool) -> None:
    """Make a folder; of an earlier report, nothing must stand beside what this one says."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir() if stale else ():
        if path.suffix in (".csv", ".md", ".tex", ".pdf", ".svg", ".png"):
            path.unlink()


def _check_known(subject: Subject, against: tuple[str, ...]) -> None:
    known = sorted(set(subject.study.cells.get("label", ())))
    for name in against:
        if name not in known:
            raise ValueError(f"No scored run of {name!r} to compare with. There are {known}.")


def _draw(subject: Subject, folder: Path, jobs: int) -> tuple[dict[str, str], list[str]]:
    """Write all figures; return the page's picture of each, and the titles of those left out."""
    if jobs > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            work = [pool.submit(_draw_one, subject, plot.name, folder) for plot in PLOTS]
            done = [each.result() for each in work]
    else:
        done = [_draw_one(subject, plot.name, folder) for plot in PLOTS]
    pictures, undrawn = {}, []
    for plot, drawn in zip(PLOTS, done, strict=True):
        if not drawn:
            undrawn.append(plot.title)
            continue
        svg = (folder / f"{plot.name}-two-column.svg").read_text(encoding="utf-8")
        tails = {f"-{size}": f"{size.replace('-', ' ')}:" for size, _ in _SIZES}
        files = _links(f"figures/{plot.name}", tails, "pdf", "svg")
        picture = inline_svg(svg, plot.name, plot.title)
        pictures[plot.name] = figure(plot.title, plot.caption, picture, files)
    return pictures, undrawn


def _draw_one(subject: Subject, name: str, folder: Path) -> bool:
    """Write one figure in every size and format; return whether there was anything to draw."""
    for size, width in _SIZES:
        drawn = draw(name, subject, width)
        if drawn is None:
            return False
        with figures():
            base = folder / f"{name}-{size}"
            drawn.savefig(base.with_suffix(".pdf"), metadata={"CreationDate": None})
            drawn.set_layout_engine("none")
            drawn.savefig(base.with_suffix(".svg"), metadata={"Date": None})
    return True


def _links(base: str, tails: dict[str, str], *kinds: str) -> str:
    """Link to files: ``base``, the end of a name, its kind; each name said in words first."""
    said = []
    for tail, words in tails.items():
        names = ", ".join(
            f'<a href="{html.escape(f"{base}{tail}.{kind}")}">{_KINDS[kind]}</a>' for kind in kinds
        )
        said.append(f"{words} {names}".strip())
    return f'<span class="files">Files: {"; ".join(said)}.</span>'


_KINDS = {"pdf": "PDF", "svg": "SVG", "csv": "CSV", "md": "Markdown", "tex": "LaTeX"}


def _gallery(folders: list[Path | str], out: Path) -> str:
    damaged: list[str] = []
    maps = load_tokens(folders, damaged)
    warnings = "".join(f'<p class="warn">{html.escape(each)}</p>' for each in damaged)
    if not maps:
        return warnings or (
            "<p>There are no token maps. <code>python run_experiment.py predict ...</code> writes "
            "them beside its predictions.</p>"
        )
    # A picture an image, so that a printed page can break between them.
    pictures = []
    for number in range(min(4, len({each.key for each in maps}))):
        path = out / "figures" / f"token_maps_{number + 1}.png"
        save_png(gallery(maps, 1, 7, first=number), path)
        picture = inline_png(path, "What several reducers keep of one image")
        pictures.append(f'<figure><div class="figure-scroll">{picture}</div></figure>')
    caption = (
        "What each reducer leaves after its last reduction. Bright: the patch has a token of its "
        "own. Outlined in one colour: patches that share a token, darker the more they are. "
        "Black: dropped."
    )
    return f'{warnings}<p class="caption">{caption}</p>{"".join(pictures)}'


def _intro(parts: _Parts) -> str:
    runs, found = parts.subject.runs, parts.subject.study
    status = Counter(runs.table.get("status", ()))
    said = ", ".join(f"{count} {name}" for name, count in sorted(status.items()))
    methods = found.cells["label"].nunique() if len(found.cells) else 0
    count = len(found.settings)
    lines = [
        f"<p>{len(runs.records)} runs ({html.escape(said)}), {len(runs.broken)} records "
        f"unreadable. {count} setting{'s' * (count != 1)}, {methods} methods. "
        f'<span class="quiet">GFLOPs are {html.escape(CONVENTION)}.</span></p>'
    ]
    if len(found.cells) and found.cells["seeds"].max() < 2:
        lines.append(
            '<p class="warn">Every cell has one seed. There are no intervals over training, and '
            "nothing here says how a method would do if trained anew. Differences by example speak "
            "of the very models at hand.</p>"
        )
    lines += [f'<p class="warn">{html.escape(note)}</p>' for note in found.notes]
    return "".join(lines)


def _sections(parts: _Parts) -> list[tuple[str, str]]:
    plots, made = parts.plots, parts.tables
    costs = ("score_training", "score_latency", "score_keep_ratio")
    scores = sorted(name for name in made if name.startswith("scores_"))
    nothing = "<p>No run has a score yet.</p>"
    failures = _show(made, "failures") or "<p>No run failed and every record could be read.</p>"
    missing = _show(made, "missing") or "<p>Every method has every keep ratio and seed.</p>"
    sections = [
        ("Score and cost", _join(plots, "score_gflops", "relative_score") or nothing),
        ("What was found", _findings(made)),
        ("Scores by task", "".join(_show(made, name) for name in scores) or nothing),
        ("Over all tasks", _show(made, "over_settings") + _show(made, "areas")),
        ("Comparisons", "".join(_show(made, name) for name in made if name in _COMPARED)),
        ("Other costs", _join(plots, *costs) + _show(made, "costs")),
        ("Tokens and where the cost goes", _join(plots, "tokens_by_block", "cost_breakdown")),
        ("Training", _join(plots, "training_curves")),
        ("Token maps", parts.maps),
        ("What was not run", _join(plots, "coverage") + missing + _undrawn(parts.undrawn)),
        ("Failures", failures),
        ("Published results", _show(made, "literature")),
        ("Provenance", _provenance(parts.subject.runs)),
    ]
    return [(name, content) for name, content in sections if content]


def _join(plots: dict[str, str], *names: str) -> str:
    return "".join(plots.get(name, "") for name in names)


def _show(made: dict[str, Table], name: str, caption: str | None = None) -> str:
    if name not in made:
        return ""
    table = made[name]
    files = _links(f"tables/{name}", {"": ""}, "csv", "md", "tex")
    said = html.escape(table.caption if caption is None else caption)
    tall = " tall" if len(table.shown) > 40 else ""
    body = f'<div class="wide{tall}">{table.html()}</div>'
    if name in _FOLDED:
        body = f"<details><summary>{len(table.shown)} rows</summary>{body}</details>"
    return f'<h3>{html.escape(table.title)}</h3><p class="caption">{said} {files}</p>{body}'


def _undrawn(titles: list[str]) -> str:
    if not titles:
        return ""
    names = html.escape("; ".join(titles))
    return f'<p class="quiet">Not drawn, since no run has what it takes: {names}.</p>'


def _findings(made: dict[str, Table]) -> str:
    """Show the differences from no reduction and the others, and say what they cannot tell."""
    names = [name for name in made if name.startswith("findings_")]
    captions = [made[names[0]].caption, *["As above."] * (len(names) - 1)] if names else []
    shown = "".join(map(partial(_show, made), names, captions))
    return shown or (
        "<p>There is nothing to compare: no two methods share a setting, a seed and examples.</p>"
    )


def _provenance(runs: Runs) -> str:
    """Say where the numbers come from: code, packages, machines, times."""
    records = runs.records
    if not records:
        return ""
    dirty = sum(bool(record.code.dirty) for record in records)
    rows = {
        "commits": _counted(record.code.commit or "unknown" for record in records),
        "uncommitted changes": f"{dirty} of {len(records)} runs",
        "seeds": ", ".join(sorted({str(record.seed) for record in records}, key=_numeric)),
        "started": f"{min(r.started for r in records)} to {max(r.started for r in records)}",
        "processors": _counted(record.hardware.cpu or "unknown" for record in records),
        "GPUs": _counted("+".join(record.hardware.gpus) or "none" for record in records),
        "weights from": _counted(record.parent or "random" for record in records),
        "configurations": f"{len({record.config_hash for record in records})} different",
        "packages": _counted(
            " ".join(f"{name} {version}" for name, version in sorted(record.packages.items()))
            for record in records
        ),
        "notes in records": _counted(note for record in records for note in record.notes) or "none",
    }
    entries = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in rows.items()
    )
    every = _links("tables/runs", {"": ""}, "csv")
    return f"<dl>{entries}</dl><p class='caption'>All runs, a row each. {every}</p>"


def _counted(values: Iterable[str], most: int = 8) -> str:
    counts = Counter(values)
    said = [f"{value} ({count} runs)" for value, count in counts.most_common(most)]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return "; ".join(said + more)


def _numeric(text: str) -> tuple[int, str]:
    return (int(text), "") if text.lstrip("-").isdigit() else (0, text)
