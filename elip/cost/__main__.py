"""Cost of reducers in one METER: multiply-adds, time, memory.

The model has random weights and the heads of pre-training: inference is one image-text pair scored,
a training step both passes (masked words and matching).

python -m elip.cost --config experiments/elip_0.7.yaml --reducers ELIP,ToMe --keep-ratios 0.9,0.5
python -m elip.cost --reducers ELIP,ELIP:probe_depth=1 --phases encoder,inference,training
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from elip.arguments import output_folder
from elip.cost.bench import PHASES, Setting, measure
from elip.cost.count import CostError
from elip.cost.report import cost_table, draw, time_table, write_csv
from elip.model.config import MeterConfig
from elip.provenance import merged
from elip.schedule import Schedule
from reducers import Reducer, shelf


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for; show a table, write a CSV and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        config, schedule, methods = _experiment(options.config, options.reducers)
        sizes = options.image_sizes or [config.resolve().image_size]
        # All settings of one model stand together, since it is built anew for each size.
        settings = [
            Setting(size, batch, precision, mode == "compiled", phase)
            for size, mode, phase, precision, batch in product(
                sizes, options.modes, options.phases, options.precisions, options.batch_sizes
            )
        ]
        device = torch.device(options.device)
        schedules = [
            schedule if ratio is None else replace(schedule, keep_ratio=ratio, counts=None)
            for ratio in options.keep_ratios
        ]
        groups = measure(
            config, methods, schedules, settings, device, options.rounds,
            count_training=not options.skip_training_gflops,
        )  # fmt: skip
        console, rows, shown = Console(), list[dict[str, Any]](), set[int]()
        for cells in groups:
            if cells[0].setting.image_size not in shown:
                shown.add(cells[0].setting.image_size)
                console.print(cost_table(cells))
            console.print(time_table(cells, device.type))
            rows += [cell.row(cells[0]) for cell in cells]
    except (ValueError, CostError, argparse.ArgumentError) as error:
        parser.exit(2, f"error: {error}\n")
    console.print(
        "less work: multiply-adds of no reduction over these; faster: the same of the time; "
        "realised: how much of the first the second is",
        style="dim",
    )
    options.output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.output / "cost.csv")
    draw(rows, options.output / "cost.png")
    console.print(f"Written: {options.output / 'cost.csv'}, {options.output / 'cost.png'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m elip.cost", description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
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
        help="names, by comma, with options behind colons (ELIP:probe_depth=1); all: the shelf",
    )
    add(
        "--keep-ratios",
        type=_list(lambda text: None if text == "own" else float(text)),
        default=[0.9, 0.7, 0.5],
        help="by comma; own: the experiment's schedule as it stands, exact counts included",
    )
    add("--batch-sizes", type=_list(int), default=[1, 8])
    add("--image-sizes", type=_list(int), help="pixels a side; the model's own if not given")
    add("--precisions", type=_list(_among("fp32", "bf16")), default=["fp32"])
    add("--modes", type=_list(_among("eager", "compiled")), default=["eager"])
    add("--phases", type=_list(_among(*PHASES)), default=["inference"])
    add("--rounds", type=int, default=10, help="timed runs of each; the median counts")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--skip-training-gflops", action="store_true", help="do not count the training step")
    add(
        "--output",
        type=output_folder,
        default=Path("runs/cost"),
        help="folder of the CSV and the figure",
    )
    return parser  # fmt: skip


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def split(text: str) -> list[Any]:
        return [kind(part.strip()) for part in text.split(",")]

    split.__name__ = "list"
    return split


def _among(*names: str) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return choose


def _experiment(
    files: Sequence[Path], names: Sequence[str] | None
) -> tuple[MeterConfig, Schedule, dict[str, Callable[[], Reducer]]]:
    """Read the model's part of layered experiment files, and settle which methods to measure.

    Raises:
        ValueError: A file or a method does not exist, or an option is wrong.
    """
    model: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"No experiment file {file}.")
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        model = merged(model, content.get("model", {}))
    reader = ArgumentParser(exit_on_error=False)
    reader.add_class_arguments(MeterConfig, "meter")
    reader.add_class_arguments(Schedule, "schedule")
    given = {key: model[key] for key in ("meter", "schedule") if key in model}
    parsed = reader.parse_object(given)
    config = MeterConfig(**parsed.meter.as_dict())
    schedule = Schedule(**parsed.schedule.as_dict())
    reducer = model.get("reducer") or {}
    reducer = {"class_path": reducer} if isinstance(reducer, str) else reducer
    own = reducer.get("class_path")
    if names is None:
        names = [own] if own else ["all"]
    methods: dict[str, Callable[[], Reducer]] = {}
    for text in shelf() if list(names) == ["all"] else names:
        name, *extra = text.split(":")
        options = dict(reducer.get("init_args", {})) if name == own else {}
        for option in extra:
            key, _, value = option.partition("=")
            options[key] = yaml.safe_load(value)
        label = name.rpartition(".")[2] + text.removeprefix(name)
        methods[label] = _made(_find(name), options)
    return config, schedule, methods


def _made(method: type[Reducer], options: dict[str, Any]) -> Callable[[], Reducer]:
    try:
        inspect.signature(method).bind(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(method).parameters)
        raise ValueError(f"{method.__name__}: {error}; its options are: {known}.") from error
    return partial(method, **options)


def _find(name: str) -> type[Reducer]:
    known = shelf()
    if name in known:
        return known[name]
    module, _, member = name.rpartition(".")
    if module:
        try:
            found: type[Reducer] = getattr(importlib.import_module(module), member)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"No reducer {name!r}: {error}.") from error
        return found
    near = get_close_matches(name, known, n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"No reducer {name!r}.{hint} There are: {', '.join(known)}.")


if __name__ == "__main__":
    main()
