"""Compare reducers in one METER: multiply-adds, operators, time and memory.

The model has random weights and the pre-training heads. Inference scores one image-text pair. A
training step runs masked language modelling and image-text matching.

python -m elip.cost --config experiments/elip_0.7.yaml --reducers ELIP ToMe --keep_ratios 0.9 0.5
python -m elip.cost --reducers ELIP ELIP:probe_depth=1 --phases encoder inference training
python -m elip.cost --reducers all --rounds 0 --check
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from rich.console import Console

from elip.cost.measure import PHASES, Row, Setting, measure
from elip.cost.show import cost_table, draw, time_table
from elip.model.config import MeterConfig
from elip.schedule import Schedule
from reducers import Reducer, shelf


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write a CSV file and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        device = torch.empty(0, device=options.device).device  # fails if there is no such device
        config, schedule, methods = read_experiment(options.config, options.reducers)
        # Image size and mode vary slowest, because each needs a new model.
        settings = [
            Setting(size, batch, precision, mode == "compiled", phase)
            for size, mode, phase, precision, batch in product(
                options.image_sizes or [config.resolve().image_size],
                options.modes, options.phases, options.precisions, options.batch_sizes,
            )
        ]  # fmt: skip
        schedules = [
            schedule if ratio is None else replace(schedule, keep_ratio=ratio, counts=None)
            for ratio in options.keep_ratios
        ]
        options.output.mkdir(parents=True, exist_ok=True)
        console = Console(width=None if sys.stdout.isatty() else 120)
        rows: list[Row] = []
        for group in measure(
            config, methods, schedules, settings, device, options.rounds,
            not options.skip_training_gflops, options.check,
        ):  # fmt: skip
            if all(row["image_size"] != group[0]["image_size"] for row in rows):
                console.print(cost_table(group))
            if options.rounds:
                console.print(time_table(group, device.type))
            rows += group
        written = [options.output / "cost.csv"]
        pd.DataFrame(rows).to_csv(written[0], index=False)
        if options.rounds:
            written.append(options.output / "cost.pdf")
            draw(rows, written[1])
        console.print("Written:", ", ".join(map(str, written)))
    # torch raises AssertionError for CUDA in a build without it.
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m elip.cost", description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add, several = parser.add_argument, partial(parser.add_argument, nargs="+")
    several("--config", type=Path, default=[],
            help="experiment files, later ones win; only model.meter, model.schedule and "
            "model.reducer are read")  # fmt: skip
    several("--reducers", help="names or import paths, with options after colons "
            "(ELIP:probe_depth=1); all: every built-in reducer")  # fmt: skip
    several("--keep_ratios", type=_ratio, default=[0.9, 0.7, 0.5],
            help="own: keep the experiment's schedule")  # fmt: skip
    several("--batch_sizes", type=_positive, default=[1, 8])
    several("--image_sizes", type=_positive, help="side length in pixels; default: the model's")
    several("--precisions", choices=("fp32", "bf16"), default=["fp32"])
    several("--modes", choices=("eager", "compiled"), default=["eager"])
    several("--phases", choices=PHASES, default=["inference"])
    add("--rounds", type=int, default=10, help="timed runs of each; 0 only counts")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--skip_training_gflops", action="store_true", help="do not count the training step")
    add("--check", action="store_true", help="also count with torch; fail if the counts differ")
    add("--output", type=Path, default=Path("runs/cost"), help="folder for the CSV and the figure")
    return parser


def _ratio(text: str) -> float | None:
    return None if text == "own" else float(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def read_experiment(
    files: Sequence[Path], names: Sequence[str] | None
) -> tuple[MeterConfig, Schedule, dict[str, Callable[[], Reducer]]]:
    """Read the model from experiment files and choose the methods to measure.

    Args:
        files: Later files win. Only ``model.meter``, ``model.schedule`` and ``model.reducer`` are
            read.
        names: The methods. None means the experiment's own reducer, or all built-in ones.

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
    methods: dict[str, Callable[[], Reducer]] = {}
    for text in shelf() if list(names) == ["all"] else names:
        name, *extra = text.split(":")
        options = dict(own.get("init_args") or {}) if name == own.get("class_path") else {}
        for option in extra:
            key, _, value = option.partition("=")
            options[key] = yaml.safe_load(value)
        method = partial(_find(name), **options)
        try:
            method()
        except TypeError as error:
            raise ValueError(f"--reducers {text}: {error}") from error
        methods[name.rpartition(".")[2] + text.removeprefix(name)] = method
    return config, made, methods


def _find(name: str) -> type[Reducer]:
    known = shelf()
    if name in known:
        return known[name]
    module, _, member = name.rpartition(".")
    found = getattr(importlib.import_module(module), member, None) if module else None
    if isinstance(found, type) and issubclass(found, Reducer):
        return found
    raise ValueError(f"No reducer {name!r}. Choose an import path or one of: {', '.join(known)}.")


if __name__ == "__main__":
    main()
