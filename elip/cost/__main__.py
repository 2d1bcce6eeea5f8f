"""Compare reducers in one METER: multiply-adds, operators, time and memory.

The model has random weights and the pre-training heads. Inference scores one image-text pair. A
training step runs masked language modelling and image-text matching.

python -m elip.cost --config experiments/elip_0.7.yaml --reducers ELIP ToMe --keep_ratios 0.9 0.5
python -m elip.cost --reducers ELIP ELIP:probe_depth=1 --phases encoder inference training
python -m elip.cost --reducers all --rounds 0 --check
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import AdamW

from elip.cost.count import (
    PARTS,
    check_count,
    count_forward,
    count_operators,
    count_training_step,
    random_batch,
)
from elip.cost.timing import Run, inference, peak_memory, time_interleaved
from elip.data.batch import Batch
from elip.model.config import MeterConfig
from elip.model.meter import Meter, Reduction
from elip.record import display_name
from elip.schedule import Schedule
from elip.summary import three_digits
from elip.tasks.pretrain import Pretraining
from reducers import Identity, shelf
from reducers.__main__ import find
from reducers.contract import Reducer

PHASES = {"encoder": "image encoder", "inference": "inference", "training": "training step"}
_VOCAB = 1000  # for text encoders whose vocabulary comes from the data

# Printed columns and their headings; the CSV has more.
_KEEP = {"keep_ratio": "keep", "fusion_keep_ratio": "fusion\nkeep"}
_COUNTS = {
    **{f"gflops_{part}": part for part in ("vision", "probe", "reducer", "fusion", "total")},
    "gflops_training_step": "training\nstep",
}
_TIMES = {
    "latency_ms": "median\nms", "latency_spread": "spread", "peak_memory_mb": "peak\nMB",
    "flops_speedup": "FLOPs\nspeed-up", "latency_speedup": "latency\nspeed-up",
    "efficiency": "efficiency",
}  # fmt: skip

Methods = dict[str, Callable[[], Reducer]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write a CSV file and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        device = torch.empty(0, device=options.device).device  # fails if there is no such device
        config, schedule, methods = read_experiment(options.config, options.reducers)
        schedules = [
            schedule if ratio is None else replace(schedule, keep_ratio=ratio, counts=None)
            for ratio in options.keep_ratios
        ]
        model = build(config, methods, schedules, device, options.check)
    # torch raises AssertionError for CUDA in a build without it.
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        parser.exit(2, f"error: {error}\n")
    counts = model[-1]
    text, head = map(three_digits, counts.loc[0, ["gflops_text", "gflops_head"]])
    show(counts, _COUNTS, "G multiply-adds an example (one multiply-add = 1)\n"
         f"Every method: {text} in the text encoder, {head} in the head.")  # fmt: skip
    tables: list[pd.DataFrame] = []
    for phase, precision, size in product(options.phases, options.precisions, options.batch_sizes):
        tables.append(measure(*model, phase, precision, size, options.rounds))
        if options.rounds:
            show(tables[-1], _TIMES, f"{_title(tables[-1])}, {device.type}")
    options.output.mkdir(parents=True, exist_ok=True)
    written, everything = [options.output / "cost.csv"], pd.concat(tables)
    everything.to_csv(written[0], index=False)
    if options.rounds:
        written.append(options.output / "cost.pdf")
        draw(everything, written[1])
    print("\nWritten:", ", ".join(map(str, written)))  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m elip.cost", description=(__doc__ or "").splitlines()[0]
    )
    add, several = parser.add_argument, partial(parser.add_argument, nargs="+")
    several("--config", type=Path, default=[],
            help="experiment files, later ones win; only model.meter, model.schedule and "
            "model.reducer are read")  # fmt: skip
    several(
        "--reducers",
        help="names or import paths, with options after colons "
        "(ELIP:probe_depth=1); all: every built-in reducer; default: the experiment's, or all",
    )
    several("--keep_ratios", type=lambda text: None if text == "own" else float(text),
            default=[0.9, 0.7, 0.5],
            help="own: keep the experiment's schedule; default: %(default)s")  # fmt: skip
    several("--batch_sizes", type=int, default=[1, 8], help="default: %(default)s")
    several("--precisions", choices=("fp32", "bf16"), default=["fp32"], help="default: fp32")
    several("--phases", choices=PHASES, default=["inference"], help="default: inference")
    add("--rounds", type=int, default=10, help="timed runs of each, 0 only counts; default: 10")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s")  # fmt: skip
    add("--check", action="store_true", help="also count with torch; fail if the counts differ")
    add("--output", type=Path, default=Path("runs/cost"),
        help="folder for the CSV and the figure; default: %(default)s")  # fmt: skip
    return parser


def read_experiment(
    files: Sequence[Path], names: Sequence[str] | None
) -> tuple[MeterConfig, Schedule, Methods]:
    """Read the model from experiment files, and choose the methods.

    ``names`` None means the experiment's own reducer, or all built-in ones.

    Raises:
        ValueError: A file, a method or an option is wrong.
    """
    meter, schedule, own = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    try:
        for file in files:
            model = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("model") or {}
            meter |= model.get("meter") or {}
            schedule |= model.get("schedule") or {}
            reducer = model.get("reducer") or own
            own = {"class_path": reducer} if isinstance(reducer, str) else reducer
        lists = {key: tuple(value) for key, value in schedule.items() if isinstance(value, list)}
        config, made = MeterConfig(**meter), Schedule(**{**schedule, **lists})
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{', '.join(map(str, files))}: {error}") from error
    if names is None:
        names = [own["class_path"]] if own else ["all"]
    methods: Methods = {}
    for text in (each for name in names for each in (shelf() if name == "all" else [name])):
        name, *extra = text.split(":")
        options = dict(own.get("init_args") or {}) if name == own.get("class_path") else {}
        for option in extra:
            key, _, value = option.partition("=")
            options[key] = yaml.safe_load(value)
        method = partial(find(name), **options)
        try:
            method()
        except TypeError as error:
            raise ValueError(f"--reducers {text}: {error}") from error
        methods[name.rpartition(".")[2] + text.removeprefix(name)] = method
    return config, made, methods


def build(
    config: MeterConfig,
    methods: Methods,
    schedules: Sequence[Schedule],
    device: torch.device,
    check: bool = False,
) -> tuple[Meter, Pretraining, list[Reduction], pd.DataFrame]:
    """Build the model, and count every method on every schedule, no reduction first.

    Returns:
        Model, task, the values of `Meter.reduction`, and a table with one row for each of them.
    """
    sizes = config.resolve()
    vocab = _VOCAB if sizes.text_encoder in ("roberta", "bert") else None

    def on(where: torch.device | str) -> tuple[Meter, Pretraining]:
        with torch.device(where):
            meter, task = Meter(sizes, vocab_size=vocab), Pretraining()
            task.build(meter, 0)
        return meter, task

    (meter, task), (shapes, dry) = on(device), on("meta")
    one, two = (random_batch(meter, count) for count in (1, 2))
    acting = {name: make for name, make in methods.items() if make().placement != "never"}
    full = (display_name("Identity"), Identity), Schedule()
    reductions, rows = [], []
    for (name, make), schedule in [full, *product(acting.items(), schedules)]:
        ratio = meter.set_reduction(make(), schedule).keep_ratio
        reductions.append(meter.reduction)
        fusion = meter.reducer.placement == "fusion"
        cost = (check_count if check else count_forward)(meter, task, one.to(device))
        # The rest needs only shapes. Pre-training needs two examples: one gets a negative image.
        shapes.set_reduction(make(), schedule)
        rows.append({
            "reducer": name, "keep_ratio": 1.0 if fusion else ratio,
            "fusion_keep_ratio": ratio if fusion else None,
            **{f"gflops_{part}": getattr(cost, part) for part in (*PARTS, "total")},
            "gflops_training_step": count_training_step(shapes, dry, two.to("meta")),
            "operators": count_operators(shapes, dry, one.to("meta")),
        })  # fmt: skip
    return meter, task, reductions, pd.DataFrame(rows)


def measure(
    meter: Meter,
    task: Pretraining,
    reductions: Sequence[Reduction],
    counts: pd.DataFrame,
    phase: str,
    precision: str,
    size: int,
    rounds: int,
) -> pd.DataFrame:
    """Return the counts with the times of a phase; without rounds there are no times.

    ``gflops`` (G multiply-adds per example) covers the timed phase and ``gflops_*`` the parts.
    """
    # A reducer in the fusion does its work there.
    choosing = counts["gflops_reducer"].where(counts["fusion_keep_ratio"].isna(), 0)
    gflops = {
        "encoder": counts["gflops_vision"] + counts["gflops_probe"] + choosing,
        "inference": counts["gflops_total"],
        "training": counts["gflops_training_step"],
    }[phase]
    setting: dict[str, Any] = {
        "phase": phase,
        "precision": precision,
        "batch_size": size,
        "gflops": gflops,
    }
    frame = counts.assign(**setting, flops_speedup=gflops[0] / gflops)
    frame = frame[[*counts.columns[:3], *setting, *counts.columns[3:], "flops_speedup"]]
    if not rounds:
        return frame
    run = _runner(meter, task, random_batch(meter, size).to(meter.device), phase, precision)

    def with_reduction(reduction: Reduction) -> None:
        meter.reduction = reduction
        run()

    runs = {str(i): partial(with_reduction, each) for i, each in enumerate(reductions)}
    half = "bf16-mixed" if precision == "bf16" else None
    with nullcontext() if phase == "training" else inference(meter, task, precision=half):
        times = pd.DataFrame(time_interleaved(runs, rounds, 2, size, meter.device).values())
        memory = [peak_memory(run, meter.device) for run in runs.values()]
    frame = frame.join(times)
    frame["peak_memory_mb"] = [None if each is None else each / 1e6 for each in memory]
    frame["latency_speedup"] = frame["latency_ms"][0] / frame["latency_ms"]
    frame["efficiency"] = frame["latency_speedup"] / frame["flops_speedup"]
    return frame


def _runner(meter: Meter, task: Pretraining, batch: Batch, phase: str, precision: str) -> Run:
    if phase == "inference":
        return lambda: task.infer(meter, batch)
    if phase == "encoder":
        with torch.no_grad():
            text = meter.eval().encode_text(batch.text)
        return lambda: meter.encode_image(batch.images[:, 0], text, batch.example)
    both, device = nn.ModuleList([meter, task]), meter.device.type
    # The tiny rate leaves the weights nearly unchanged.
    optimizer = AdamW(both.parameters(), lr=1e-9, fused=True)

    def step() -> None:
        both.train()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = task.loss(meter, batch).total
        loss.backward()
        optimizer.step()
        both.zero_grad()

    return step


def show(frame: pd.DataFrame, columns: Mapping[str, str], title: str) -> None:
    """Print the keep ratios and those ``columns`` that have values, under their headings."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.add_column("method", overflow="fold", vertical="bottom")
    shown = {**_KEEP, **columns}
    shown = {name: shown[name] for name in shown if name in frame and frame[name].notna().any()}
    for heading in shown.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in frame.iterrows():
        numbers = [None if pd.isna(row[name]) else row[name] for name in shown]
        table.add_row(row["reducer"], *map(three_digits, numbers))
    Console(highlight=False).print(f"\n{title}", table)


def _title(table: pd.DataFrame) -> str:
    row = table.iloc[0]
    return f"{PHASES[row['phase']]}, batch {row['batch_size']}, {row['precision']}"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Plot latency speed-up over FLOPs speed-up, one panel per setting."""
    # Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    settings = list(rows.groupby(["phase", "precision", "batch_size"], sort=False))
    speedups = rows[["flops_speedup", "latency_speedup"]].to_numpy()
    limits = (0.95 * speedups.min(), 1.05 * speedups.max())
    # A panel fits a column of a two-column paper. Font type 42 keeps text searchable.
    style: dict[Any, Any] = {"font.size": 8, "pdf.fonttype": 42, "axes.spines.top": False,
             "axes.spines.right": False, "axes.linewidth": 0.6}  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.3 * len(settings), 3.0), layout="constrained")
        axes = figure.subplots(1, len(settings), squeeze=False)[0]
        for axis, (_, here) in zip(axes, settings, strict=True):
            methods = here.iloc[1:].groupby("reducer", sort=False)
            for place, (name, points) in enumerate(methods):
                points = points.sort_values("flops_speedup")
                axis.plot(
                    points["flops_speedup"], points["latency_speedup"], label=name, linewidth=1,
                    marker="os^Dv<>P"[place % 8], markersize=4, color=colours[place % 7],
                )  # fmt: skip
            # On the dashed line, all of the saved arithmetic is saved time.
            axis.axline((1, 1), slope=1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axis.set(xlim=limits, ylim=limits, aspect="equal", title=_title(here),
                     xlabel="FLOPs speed-up (×)", ylabel="Latency speed-up (×)")  # fmt: skip
        if len(rows) > len(settings):
            axes[-1].legend(frameon=False, fontsize=7, ncols=1 + len(methods) // 12)
        figure.savefig(path)


if __name__ == "__main__":
    main()
