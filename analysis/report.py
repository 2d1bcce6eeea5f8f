"""The report: one HTML page that explains itself, and every figure and table of it as files."""

from __future__ import annotations

import base64
import html
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.figures import INK, ONE_COLUMN, TWO_COLUMN, Plot, plots, style
from analysis.load import (
    BASELINES,
    NO_REDUCTION,
    RANDOM,
    TASKS,
    Progress,
    Runs,
    Setting,
    Study,
    load,
    study,
    training_curves,
)
from analysis.statistics import Comparison, Unit, aggregate, over_tasks
from analysis.tables import Ranking, method_name, rank, slug, tables
from analysis.tokenmaps import gallery, load_tokens, save_png
from elip.record import GFLOPS_UNIT

REPORT_NAME = "report.html"
"""The page, in the report's folder; ``figures/`` and ``tables/`` lie beside it."""

_KEPT = 0.99
"""The share of the score without reduction that a method holds to be named in the findings."""

_SIZES = (("one-column", ONE_COLUMN), ("two-column", TWO_COLUMN))
_MAPS = 4


@dataclass(frozen=True)
class Finding:
    """One statement: what it is about, and what was found."""

    about: str
    text: str


def write_report(
    places: Iterable[Path | str],
    out: Path | str,
    title: str = "Token reduction: report",
    against: Sequence[str] = (),
    highlight: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Read runs and write the report.

    Args:
        places: Folders of runs, searched at any depth, and tables.
        out: Folder of the report; figures and tables of an earlier report are removed.
        title: Heading of the page.
        against: Methods to compare all others with, beside no reduction and Random.
        highlight: Methods that figures of one column name beside the baselines and the front.
        progress: Shows how far it is.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: A place does not exist, or there is no run.
        ValueError: A method is not among the runs; the message lists them.
    """
    folders, out = [Path(place) for place in places], Path(out)
    found = load(folders, progress)
    known = study(found)
    against = list(dict.fromkeys([*BASELINES, *_labels(known, against)]))
    highlight = _labels(known, [*highlight, *against])
    for name in ("figures", "tables"):
        _clear(out / name, stale=(out / REPORT_NAME).exists())
    rankings = [rank(known, group, against, progress) for group in known.groups]
    made = tables(known, rankings, against)
    for table in progress(made, "Writing tables") if progress else made:
        table.write(out / "tables")
    drawn = plots(known, highlight, training_curves(found))
    pictures = _pictures(drawn, out / "figures", progress)
    maps, damaged = _token_maps(folders, out / "figures")
    page = _template().render(
        title=title,
        study=known,
        summary=_summary(known),
        findings={r.group: findings(known, r, against[len(BASELINES) :]) for r in rankings},
        pictures=pictures,
        tables=made,
        heads={group: _heading(settings) for group, settings in known.groups.items()},
        slugs={group: slug(group) for group in known.groups},
        first={group: slug(settings[0].name) for group, settings in known.groups.items()},
        maps=maps,
        damaged=damaged,
        provenance=_provenance(found),
        gflops_unit=GFLOPS_UNIT,
    )
    path = out / REPORT_NAME
    path.write_text(page, encoding="utf-8")
    return path


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    return environment.get_template("report.html.j2")


def _clear(folder: Path, stale: bool) -> None:
    """Make a folder; nothing of an earlier report must stand beside what this one says."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir() if stale else ():
        if path.suffix in (".csv", ".md", ".tex", ".pdf", ".svg", ".png"):
            path.unlink()


def _labels(known: Study, names: Sequence[str]) -> list[str]:
    """Return the methods that some names stand for: with their options, where these differ."""
    labels = list(dict.fromkeys(known.scores["label"]))
    found = []
    for name in names:
        name = NO_REDUCTION if name == "Identity" else name
        mine = [label for label in labels if name in (label, label.split(" (")[0])]
        if not mine and name not in BASELINES:
            raise ValueError(f"No scored run of {name!r}. There are: {', '.join(sorted(labels))}.")
        found += mine
    return list(dict.fromkeys(found))


def _heading(settings: Sequence[Setting]) -> str:
    first = settings[0]
    return _upper(first.name) if len(settings) == 1 else f"{len(settings)} tasks, {first.group}"


def _summary(known: Study) -> str:
    counts = Counter(known.runs["what became of it"])
    good = ("used", "tested by a run of its own")
    said = [f"{counts.pop(name, 0)} are used" for name in good[:1]]
    tested = counts.pop(good[1], 0)
    said += [f"{tested} are trainings that a run of its own tested"] if tested else []
    said += [f"{count} {name}" for name, count in counts.most_common()]
    number = len(known.runs)
    return f"{number} run{'s' * (number != 1)}: {', '.join(said)}."


# Findings in plain words.


def findings(known: Study, ranking: Ranking, against: Sequence[str] = ()) -> list[Finding]:
    """Say in plain words what a group of settings shows, and what it does not."""
    settings = known.groups[ranking.group]
    rows = known.scores[known.scores["group"] == ranking.group]
    said = [_rests_on(settings), _held(settings, rows)]
    others = dict.fromkeys((RANDOM, NO_REDUCTION, *against))
    for other in others:
        texts = {unit: _verdicts(ranking.of(unit, other)) for unit in ranking.found}
        texts = {unit: text for unit, text in texts.items() if text}
        if len(set(texts.values())) == 1 and len(texts) == 2:
            text = f"By seed as by example: {next(iter(texts.values()))}."
        else:
            text = " ".join(f"{_UNITS[unit]}: {text}." for unit, text in texts.items())
        than = other.lower() if other == NO_REDUCTION else other
        said.append(Finding(f"Compared with {than}", text))
    said.append(_not_shown(ranking, rows))
    return [each for each in said if each.text]


_UNITS: dict[Unit, str] = {
    "seeds": "By seed (models trained anew)",
    "examples": "By example (other questions to these very models)",
}


def _rests_on(settings: Sequence[Setting]) -> Finding:
    parts = []
    for each in settings:
        images = f" about {each.images:,} images" if each.images else ""
        parts.append(f"{each.task} ({each.metric}; {each.examples:,} examples{images})")
    data = _joined(list(dict.fromkeys(f"{each.dataset}, {each.split} split" for each in settings)))
    seeds = max(each.seeds for each in settings)
    models = f"{seeds} seeds a method" if seeds > 1 else "one seed"
    return Finding("Data", f"{_upper(_joined(parts))}, on {data}; {models}.")


def _held(settings: Sequence[Setting], rows: pd.DataFrame) -> Finding:
    """Say down to which cost each method holds its score."""
    many = len(settings) > 1
    cells = over_tasks(rows) if many else aggregate(rows)
    whole = cells[cells["label"] == NO_REDUCTION]
    if whole.empty or whole["gflops_total"].isna().all():
        return Finding("", "")
    base = float(whole["gflops_total"].iloc[0])
    reduced = cells[cells["label"] != NO_REDUCTION].dropna(subset=["gflops_total"])
    held = reduced[(reduced["share"] >= _KEPT) & (reduced["gflops_total"] < base)]
    mean = f"On the mean over the {len(settings)} tasks: " if many else ""
    about = f"Within 1% of no reduction ({base:.3g} GFLOPs an example)"
    if held.empty:
        if reduced.empty:
            return Finding("", "")
        best = reduced.sort_values("share").iloc[-1]
        return Finding(
            about,
            f"{mean}no method at any keep ratio that saves GFLOPs; the nearest is "
            f"{best['label']}, with {best['share']:.1%} of the score at "
            f"{best['gflops_total']:.3g} GFLOPs.",
        )
    cheapest = held.sort_values("gflops_total").drop_duplicates("label")
    said = [
        f"{method_name(label, acts)} down to {cost:.3g} ({cost / base - 1:.0%})"
        for label, acts, cost in cheapest[["label", "acts", "gflops_total"]].to_numpy()
    ]
    others = sorted(set(reduced["label"]) - set(held["label"]))
    never = f" At no keep ratio tried: {_joined(others)}." if others else ""
    return Finding(about, f"{mean}{_joined(said)}.{never}")


def _verdicts(found: dict[str, Comparison]) -> str:
    """Say which methods are better, worse, and which are not shown to differ."""
    by: dict[str, list[str]] = {}
    for name, each in found.items():
        by.setdefault(each.verdict, []).append(name)
    most = max(by, key=lambda verdict: len(by[verdict]), default="")
    words = {
        "better": "{} better",
        "worse": "{} worse",
        "not shown": "no difference is shown for {}",
        "too few pairs": "too few pairs for {}",
    }
    said = []
    for verdict in sorted(by, key=lambda each: (each == most, list(words).index(each))):
        names = sorted(by[verdict])
        if len(by) == 1 and len(names) > 1:
            listed = "any method" if verdict == "not shown" else "all methods"
        else:
            listed = "all others" if verdict == most and len(names) > 6 else _joined(names)
        verb = "is" if len(names) == 1 else "are"
        bare = verdict in ("better", "worse")
        said.append(words[verdict].format(f"{listed} {verb}" if bare else listed))
    return "; ".join(said)


def _not_shown(ranking: Ranking, rows: pd.DataFrame) -> Finding:
    said = []
    if "seeds" not in ranking.found:
        said.append("how any method would do if its model were trained anew (there is one seed)")
    if "examples" not in ranking.found:
        said.append("how these models differ on single examples (the runs share none)")
    missing = [name for name in BASELINES if name not in set(rows["label"])]
    if missing:
        said.append(f"anything against {_joined(missing)}, which was not run here")
    if (rows["acts"] == "fusion").any():
        fused = sorted(set(rows.loc[rows["acts"] == "fusion", "label"]))
        said.append(
            f"{_joined(fused)} at the others' keep ratios (it acts in the fusion, where the keep "
            "ratio is another quantity; compare by GFLOPs)"
        )
    return Finding("Not shown here", f"{_upper('; '.join(said))}." if said else "")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Pictures.


def _pictures(
    drawn: Sequence[Plot], folder: Path, progress: Progress | None
) -> list[dict[str, Any]]:
    """Write all figures; many of them in several processes."""
    jobs = min(4, os.cpu_count() or 1, len(drawn) // 4)
    if jobs < 2:
        return [
            _picture(plot, folder)
            for plot in (progress(drawn, "Drawing figures") if progress else drawn)
        ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = [pool.submit(_picture, plot, folder) for plot in drawn]
        return [
            each.result()
            for each in (progress(waiting, "Drawing figures") if progress else waiting)
        ]


def _picture(plot: Plot, folder: Path) -> dict[str, Any]:
    """Write a figure in every size and format; return what the page shows of it."""
    drawn: dict[str, Markup] = {}
    files = []
    with style():
        for size, width in _SIZES:
            if width not in plot.widths:
                continue
            figure: Figure = plot.draw(width)
            base = folder / f"{plot.name}-{size}"
            figure.savefig(base.with_suffix(".pdf"), metadata={"CreationDate": None})
            figure.savefig(base.with_suffix(".svg"), metadata={"Date": None})
            text = base.with_suffix(".svg").read_text(encoding="utf-8")
            drawn[size.replace("-", "_")] = _inline_svg(text, base.name, plot.title)
            files.append((size.replace("-", " "), f"figures/{base.name}"))
    return {"plot": plot, "files": files, **drawn}


def _inline_svg(text: str, prefix: str, label: str) -> Markup:
    """Return an SVG file's drawing for use inside the page.

    Its ids get a prefix, so that several drawings do not mix, and what is drawn in ink takes the
    colour of the page's text, light or dark.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    text = text.replace(INK, "currentColor")
    head = f'<svg role="img" aria-label="{html.escape(label, quote=True)}"'
    return Markup(text.replace("<svg", head, 1))


def _token_maps(places: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Draw the token maps of up to four images; return them as data, and what is damaged."""
    damaged: list[str] = []
    maps = load_tokens([place for place in places if place.is_dir()], damaged)
    pictures = []
    for image in range(min(_MAPS, len({each.key for each in maps}))):
        path = folder / f"token_maps_{image + 1}.png"
        save_png(gallery(maps, 1, 7, first=image), path)
        pictures.append(base64.b64encode(path.read_bytes()).decode("ascii"))
    return pictures, damaged


def _provenance(found: Runs) -> dict[str, str]:
    """Say where the numbers come from: code, packages, machines, times."""
    records = [run.record for run in found.runs]
    if not records:
        return {}
    dirty = sum(bool(record.dirty) for record in records)
    return {
        "tasks": _counted(TASKS.get(record.task, record.task) for record in records),
        "grids": _counted(record.grid or "none" for record in records),
        "code (commits)": _counted(record.commit or "unknown" for record in records),
        "uncommitted changes": f"{dirty} of {len(records)} runs",
        "ran from": f"{min(r.started for r in records)} to {max(r.ended for r in records)}",
        "processors": _counted(record.cpu or "unknown" for record in records),
        "GPUs": _counted("+".join(record.gpus) or "none" for record in records),
        "weights from": _counted(
            re.sub(r"\brun [0-9a-f]{8}\b", "a run", record.weights) for record in records
        ),
        "packages": _counted(
            " ".join(f"{name} {version}" for name, version in sorted(record.packages.items()))
            for record in records
        ),
        "notes of the runs": _counted(note for record in records for note in record.notes),
    }


def _counted(values: Iterable[str], most: int = 6) -> str:
    counts = Counter(values)
    said = [f"{value} ({count} runs)" for value, count in counts.most_common(most)]
    more = [f"and {len(counts) - most} more"] if len(counts) > most else []
    return "; ".join(said + more) or "none"
