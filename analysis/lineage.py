"""How runs came about: what is one setting, what is one protocol, and whose weights are whose.

A *setup* is everything that makes a run but its seed and where it ran, with how the weights were
made that it began from. A *protocol* is a setup without the method and its keep ratio: what runs
must have in common to be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from elip.provenance import PLACE, VOLATILE, config_differences, config_hash, without
from elip.record import Origin, Record

_NO_PART_OF_A_SETTING = (
    *VOLATILE, *PLACE, "trainer.strategy", "trainer.num_sanity_val_steps", "seed_everything",
    "data.seed", "data.eval_batch_size", "model.weights", "optimizer", "lr_scheduler", "verbose",
)  # fmt: skip
_PROCESSES = ("trainer.devices", "trainer.num_nodes")
_METHOD = ("model.reducer", "model.schedule")
_WEIGHTS = ("ckpt_path", "model.weights")
_WEIGHT_FILES = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
_LENGTH = ("trainer.max_steps", "trainer.max_epochs")
_FROM_TRAINING = (
    "gflops_training_step", "gflops_identity_training_step",
    "train_steps", "train_epochs", "train_s", "train_images_per_s",
)  # fmt: skip
_SHOWN = 4

Setup = dict[str, Any]
"""What makes a run: ``config``, ``inputs``, ``earlier``, ``processes``, and ``weights``, which is
the setup that made them, a digest of their file or its path, or None."""


def find_parents(
    table: pd.DataFrame, records: Sequence[Record], places: Sequence[Path]
) -> dict[int, int | Path]:
    """Return for each run that began from weights the run that made them, or else where from.

    A run is known by its folder; where all were moved, by the folder's last two names, if no two
    runs have them. One that was made in another way than the weights say is not taken.

    Args:
        table: A row a run, with ``folder``.
        records: The records, in the same order.
        places: Where each was found: the folder that was searched, or the packed file.
    """
    paths = [Path(folder).resolve() for folder in table["folder"]]
    by_path = {path: row for row, path in enumerate(paths)}
    by_tail: dict[tuple[str, ...], list[int]] = {}
    for row, path in enumerate(paths):
        by_tail.setdefault(path.parts[-2:], []).append(row)
    found: dict[int, int | Path] = {}
    for row, record in enumerate(records):
        if record.parent is None:
            continue
        run = run_of(Path(record.parent))
        there = [by_path[run.resolve()]] if run.resolve() in by_path else []
        moved = by_tail.get(run.resolve().parts[-2:], [])
        beside = [each for each in moved if places[each] == places[row]]
        for choices in (there, beside, moved):
            fitting = [each for each in choices if _made(records[each], record.origin)]
            if len(fitting) == 1:
                found[row] = fitting[0]
                break
        else:
            found[row] = run
    return found


def run_of(parent: Path) -> Path:
    """Return the run folder that a checkpoint's path points into; other paths as they are."""
    return parent.parent.parent if parent.parent.name == "checkpoints" else parent


def _made(record: Record, origin: Origin | None) -> bool:
    """Whether a run can have made the weights that say this of themselves."""
    if origin is None:
        return True
    # Its best checkpoint may be from before it was lengthened.
    one, two = (
        config_hash(c, (*VOLATILE, *PLACE, *_LENGTH)) for c in (record.config, origin.config)
    )
    return one == two


def setups(records: Sequence[Record], parents: Mapping[int, int | Path]) -> list[Setup]:
    """Return the setup of each run."""

    def of(row: int, seen: tuple[int, ...] = ()) -> Setup:
        record, parent = records[row], parents.get(row)
        weights: Setup | str | None = None
        if record.origin is not None:
            weights = _of_origin(record.origin)
        elif isinstance(parent, int) and parent not in (*seen, row):
            weights = of(parent, (*seen, row))
        elif digests := [record.inputs[name] for name in _WEIGHTS if name in record.inputs]:
            weights = digests[0]
        elif isinstance(parent, Path) and parent.suffix in _WEIGHT_FILES:
            weights = str(parent)  # a run that is not among these says no more than that it was one
        return _setup(record, record.subcommand == "fit", weights)

    return [of(row) for row in range(len(records))]


def _of_origin(origin: Origin) -> Setup:
    digests = [origin.inputs[name] for name in _WEIGHTS if name in origin.inputs]
    before = _of_origin(origin.origin) if origin.origin is not None else next(iter(digests), None)
    return _setup(origin, True, before)


def _setup(made: Record | Origin, trained: bool, weights: Setup | str | None) -> Setup:
    # How many processes there are matters where they multiply the batch of a training step.
    multiplies = trained and not made.config.get("effective_batch_size")
    told = made.processes is not None
    known = [name for name in made.inputs if "." in name]  # by content; their paths tell nothing
    if "tokenizer" in made.inputs:
        known.append("data.tokenizer")
    leave_out = [*_NO_PART_OF_A_SETTING, *known, *(_PROCESSES if told or not multiplies else ())]
    return {
        "config": without(made.config, leave_out),
        "inputs": {name: each for name, each in made.inputs.items() if name not in _WEIGHTS},
        "earlier": [{"steps": part.steps, **part.options} for part in made.earlier],
        "processes": made.processes if multiplies else None,
        "weights": weights,
    }


def protocol(setup: Setup, may_differ: Sequence[str] = (), larger: Setup | None = None) -> Setup:
    """Return what a run must have in common with others to be compared with them.

    Args:
        setup: What makes the run.
        may_differ: Further options, or names of inputs, in which compared runs may differ.
        larger: A setup whose image size takes the place of this one's: so that no reduction on
            smaller images has the protocol of the larger ones.
    """
    config = without(setup["config"], (*_METHOD, *may_differ))
    weights = setup["weights"]
    if larger is not None:
        own = _image_size(config)
        for place, size in _image_size(larger["config"]).items():
            if place in own:
                _section(config, place)["image_size"] = size
        if isinstance(weights, dict) and _image_size(weights["config"]) != own:
            larger = None
    if isinstance(weights, dict):
        weights = protocol(weights, may_differ, larger)
    inputs = {name: each for name, each in setup["inputs"].items() if name not in may_differ}
    return {**setup, "config": config, "inputs": inputs, "weights": weights}


def _image_size(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image size as it stands in each section that has one."""
    found = {place: _section(config, place) for place in ("data", "model.meter")}
    return {place: each["image_size"] for place, each in found.items() if "image_size" in each}


def _section(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    section: Any = config
    for name in place.split("."):
        section = section.get(name) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}


def identity(setup: Setup) -> str:
    """Return 16 hexadecimal digits that stand for a setup or protocol."""
    return config_hash(setup, ())


def differences(several: Sequence[Setup]) -> str:
    """Return in words in what setups or protocols differ, with up to three values of each."""
    values: dict[str, list[Any]] = {}
    for other in several[1:]:
        for name, (one, two) in config_differences(several[0], other, ()).items():
            known = values.setdefault(name, [one])
            if two not in known:
                known.append(two)
    said = [
        _said(name, each) for name, each in values.items() if any(v not in (None, {}) for v in each)
    ]
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more


def _said(name: str, values: list[Any]) -> str:
    depth = 0
    while name.startswith("weights."):
        name, depth = name.removeprefix("weights."), depth + 1
    of = " of their weights" * bool(depth)
    if name.startswith("inputs."):
        return f"the content of {name.removeprefix('inputs.')}{of}"
    if name == "weights" or not all(isinstance(each, str | int | float | None) for each in values):
        return f"{name.removeprefix('config.')}{of}"
    shown = ", ".join("none" if each is None else str(each) for each in values[:3])
    return f"{name.removeprefix('config.')}{of} ({shown}{', ...' * (len(values) > 3)})"


def with_modes(
    table: pd.DataFrame, records: Sequence[Record], parents: Mapping[int, int | Path]
) -> pd.DataFrame:
    """Name how each run's model was trained, and take the cost of that from the run that did."""
    table = table.assign(mode="trained")
    for row, source in parents.items():
        record = records[row]
        if record.subcommand == "fit":
            continue
        if record.origin is not None:
            same = _method(record) == _method(record.origin)
        elif isinstance(source, int):
            same = _same_method(table.iloc[source], table.iloc[row])
        else:
            table.at[row, "mode"] = f"from {source.name}"
            continue
        if not same:
            table.at[row, "mode"] = "off the shelf"
        elif isinstance(source, int):
            table.loc[row, list(_FROM_TRAINING)] = table.iloc[source][list(_FROM_TRAINING)]
    return table


def _method(made: Record | Origin) -> tuple[str, str]:
    """Return reducer and schedule as text; all models without reduction have one method."""
    model = made.config.get("model") or {}
    reducer, schedule = (json.dumps(model.get(n), sort_keys=True) for n in ("reducer", "schedule"))
    return ("", "") if model.get("reducer") is None else (reducer, schedule)


def _same_method(one: pd.Series, two: pd.Series) -> bool:
    """Whether two runs have one method at one keep ratio; of exact counts, whether they agree."""
    if one["label"] != two["label"]:
        return False
    if pd.notna(two["keep_ratio_asked"]):
        return bool(one["keep_ratio_asked"] == two["keep_ratio_asked"])
    measured = one["keep_ratio"], two["keep_ratio"]  # of adaptive methods, on different images
    return any(map(pd.isna, measured)) or abs(measured[0] - measured[1]) < 0.02
