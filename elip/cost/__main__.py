"""Cost of reducers in one METER: multiply-adds, operators, time, memory.

The model has random weights and the heads of pre-training. Inference is one image-text pair scored;
a training step is both passes (masked words and matching).

python -m elip.cost --config experiments/elip_0.7.yaml --reducers ELIP,ToMe --keep-ratios 0.9,0.5
python -m elip.cost --reducers ELIP,ELIP:probe_depth=1 --phases encoder,inference,training
python -m elip.cost --reducers all --rounds 0 --check
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
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
    """Measure what the command line asks for; show tables, write a CSV and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        device = torch.empty(0, device=options.device).device  # which says if there is none
        config, schedule, methods = read_experiment(options.config, options.reducers)
        # All settings of one model stand together, since it is built anew for each size.
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
        groups = measure(
            config, methods, schedules, settings, device, options.rounds,
            not options.skip_training_gflops, options.check,
        )  # fmt: skip
        console, rows, sizes = (
            Console(width=None if sys.stdout.isatty() else 120),
            list[Row](),
            set[int](),
        )
        for group in groups:
            if group[0]["image_size"] not in sizes:
                sizes.add(group[0]["image_size"])
                console.print(cost_table(group))
            if options.rounds:
                console.print(time_table(group, device.type))
            rows += group
        pd.DataFrame(rows).to_csv(options.output / "cost.csv", index=False)
        written = [options.output / "cost.csv"]
        if options.rounds:
            draw(rows, options.output / "cost.pdf")
            written.append(options.output / "cost.pdf")
        console.print("Written:", ", ".join(map(str, written)))
    except (ValueError, OSError, ImportError, RuntimeError, AssertionError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m elip.cost", description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add, cuda = parser.add_argument, torch.cuda.is_available()
    add(
        "--config",
        type=Path,
        action="append",
        default=[],
        help="experiment file; its model.meter, model.schedule and model.reducer are used",
    )
    add(
        "--reducers",
        type=_list(str),
        help="names or import paths, by comma, with options behind colons (ELIP:probe_depth=1); "
        "all: every built-in one",
    )
    add(
        "--keep-ratios",
        type=_list(lambda text: None if text == "own" else float(text)),
        default=[0.9, 0.7, 0.5],
        help="by comma; own: the experiment's schedule as it stands",
    )
    add("--batch-sizes", type=_list(_positive), default=[1, 8])
    add("--image-sizes", type=_list(_positive), help="pixels a side; the model's own if not given")
    add("--precisions", type=_list(_among("fp32", "bf16")), default=["fp32"])
    add("--modes", type=_list(_among("eager", "compiled")), default=["eager"])
    add("--phases", type=_list(_among(*PHASES)), default=["inference"])
    add(
        "--rounds",
        type=int,
        default=10,
        help="timed runs of each, whose median counts; 0 counts and times nothing",
    )
    add("--device", default="cuda" if cuda else "cpu")
    add("--skip-training-gflops", action="store_true", help="do not count the training step")
    add("--check", action="store_true", help="count by torch too; stop if the counters disagree")
    add("--output", type=Path, default=Path("runs/cost"), help="folder of the CSV and the figure")
    return parser  # fmt: skip


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def values(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",")]

    return values


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _among(*names: str) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return choose


def read_experiment(
    files: Sequence[Path], names: Sequence[str] | None
) -> tuple[MeterConfig, Schedule, dict[str, Callable[[], Reducer]]]:
    """Read the model's part of layered experiment files, and settle which methods to measure.

    Args:
        files: Later files win. Only ``model.meter``, ``model.schedule`` and ``model.reducer`` are
            read.
        names: The methods; None takes the experiment's own, or every built-in one.

    Raises:
        ValueError: A method does not exist, or an option is wrong.
    """
    meter, schedule, own = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for file in files:
        try:
            model = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("model") or {}
            meter |= model.get("meter") or {}
            schedule |= model.get("schedule") or {}
            reducer = model.get("reducer") or own
            own = {"class_path": reducer} if isinstance(reducer, str) else reducer
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no experiment file: {error}") from error
    lists = {key: tuple(value) for key, value in schedule.items() if isinstance(value, list)}
    try:
        config, made = MeterConfig(**meter), Schedule(**{**schedule, **lists})
    except TypeError as error:
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
    module, _, member = name.rpartition(".")
    if name in known:
        return known[name]
    if module:
        found = getattr(importlib.import_module(module), member, None)
        if isinstance(found, type) and issubclass(found, Reducer):
            return found
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"No reducer {name!r}.{hint} There are: {', '.join(known)}.")


if __name__ == "__main__":
    main()
