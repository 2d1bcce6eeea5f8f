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
from tempfile import TemporaryFile
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from elip.arguments import output_folder, positive
from elip.cost.bench import PHASES, Setting, measure
from elip.cost.count import CostError
from elip.cost.report import cost_table, draw, time_table, write_csv
from elip.model.config import MeterConfig
from elip.provenance import merged
from elip.schedule import Schedule
from elip.strict_yaml import mapping, read_mapping, read_yaml
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
        device = options.device
        options.output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=options.output).close()  # what it cannot hold is not measured
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
        console.print(
            "less work: multiply-adds of no reduction over these; faster: the same of the time; "
            "realised: how much of the first the second is",
            style="dim",
        )
        write_csv(rows, options.output / "cost.csv")
        draw(rows, options.output / "cost.png")
        console.print(f"Written: {options.output / 'cost.csv'}, {options.output / 'cost.png'}")
    except (ValueError, OSError, CostError, argparse.ArgumentError) as error:
        parser.exit(2, f"error: {error}\n")


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
    add("--batch-sizes", type=_list(positive), default=[1, 8])
    add("--image-sizes", type=_list(positive), help="pixels a side; the model's own if not given")
    add("--precisions", type=_list(_among("fp32", "bf16")), default=["fp32"])
    add("--modes", type=_list(_among("eager", "compiled")), default=["eager"])
    add("--phases", type=_list(_among(*PHASES)), default=["inference"])
    add("--rounds", type=positive, default=10, help="timed runs of each; the median counts")
    add("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
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


def _device(text: str) -> torch.device:
    """Read a device that there is; times of others are not waited for, and would be wrong."""
    try:
        device = torch.device(text)
        if device.type not in ("cpu", "cuda"):
            raise argparse.ArgumentTypeError(f"{text!r} is none of cpu, cuda, cuda:0, ...")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f"{text!r} is no device of this machine: {reason}"
        ) from error
    return device


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
        model = merged(model, mapping(read_mapping(file).get("model") or {}, f"{file}: model"))
    reader = ArgumentParser(exit_on_error=False)
    reader.add_class_arguments(MeterConfig, "meter")
    reader.add_class_arguments(Schedule, "schedule")
    parts = [key for key in ("meter", "schedule") if model.get(key) is not None]
    given = {key: mapping(model[key], f"model.{key}") for key in parts}
    parsed = reader.parse_object(given)
    config = MeterConfig(**parsed.meter.as_dict())
    schedule = Schedule(**parsed.schedule.as_dict())
    reducer = model.get("reducer") or {}
    reducer = {"class_path": reducer} if isinstance(reducer, str) else reducer
    own = mapping(reducer, "model.reducer").get("class_path")
    own_options = mapping(reducer.get("init_args") or {}, "model.reducer.init_args")
    if names is None:
        names = [str(own)] if own else ["all"]
    methods: dict[str, Callable[[], Reducer]] = {}
    for text in shelf() if list(names) == ["all"] else names:
        name, *extra = text.split(":")
        options = dict(own_options) if name == own else {}
        for option in extra:
            key, _, value = option.partition("=")
            try:
                options[key] = read_yaml(value)
            except yaml.YAMLError as error:
                raise ValueError(f"--reducers {text}: {key} is no YAML: {error}") from error
        label = name.rpartition(".")[2] + text.removeprefix(name)
        methods[label] = _made(_find(name), options)
    return config, schedule, methods


def _made(method: type[Reducer], options: dict[str, Any]) -> Callable[[], Reducer]:
    try:
        method(**options)
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
            found: object = getattr(importlib.import_module(module), member)
        except Exception as error:  # the module is a person's own, and may raise anything
            raise ValueError(f"No reducer {name!r}: {error}.") from error
        if not (isinstance(found, type) and issubclass(found, Reducer)):
            raise ValueError(f"No reducer {name!r}: it is no subclass of reducers.Reducer.")
        return found
    near = get_close_matches(name, known, n=3)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"No reducer {name!r}.{hint} There are: {', '.join(known)}.")


if __name__ == "__main__":
    main()
