"""How runs came about: what is one setting, what is one protocol, and whose weights are whose.

A score belongs to weights and to the way they were scored. A *setup* is both, without seeds and
without what says where a run ran: how the weights were made, back to where nothing is known of
them, and with what options and data they were scored. A *protocol* is a setup without the method
and its keep ratio: what runs must have in common to be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from elip.old_record import Origin, Record
from elip.provenance import LENGTH, PLACE, VOLATILE, config_differences, config_hash, without

_NO_PART_OF_A_SETTING = (
    *VOLATILE, *PLACE, "trainer.strategy", "trainer.num_sanity_val_steps", "trainer.max_time",
    "trainer.min_steps", "trainer.min_epochs", "trainer.devices", "trainer.num_nodes",
    "trainer.limit_predict_batches", "seed_everything", "data.seed", "data.eval_batch_size",
    "model.weights", "optimizer", "lr_scheduler", "verbose",
)  # fmt: skip
_NO_PART_OF_SCORING = (
    *LENGTH, "data.batch_size", "data.train_transform", "data.train_limit", "data.fast_decode",
    "model.optimization", "effective_batch_size", "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch", "trainer.accumulate_grad_batches", "trainer.callbacks",
    "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.limit_train_batches",
    "trainer.overfit_batches", "trainer.reload_dataloaders_every_n_epochs",
    "trainer.detect_anomaly", "trainer.fast_dev_run", "trainer.inference_mode",
)  # fmt: skip
_START_OF_TRAINING = ("model.image_weights", "model.text_weights")
_METHOD = ("model.reducer", "model.schedule")
_WEIGHTS = ("ckpt_path", "model.weights")
_WEIGHT_FILES = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
_KEPT = ("best", "last")
_FROM_TRAINING = (
    "gflops_training_step", "gflops_identity_training_step",
    "train_steps", "train_epochs", "train_s", "train_images_per_s",
)  # fmt: skip
_OF_WEIGHTS = {"earlier": "how training was lengthened", "kept": "which checkpoint was scored"}
_SHOWN = 4

Setup = dict[str, Any]
"""What a score belongs to: ``config`` and ``inputs`` of scoring, and ``weights``. Those are the
same of the run that made them, with ``earlier`` parts, ``processes`` where they multiplied its
batch, and which checkpoint was ``kept``; or a digest of a file, or its path, or None."""


@dataclass(frozen=True)
class Lineage:
    """How one run came about.

    Attributes:
        setup: What its scores belong to.
        seeds: Seeds of what can be repeated, the first one that of the training that made its
            weights.
        mode: How the model was trained: "trained" for by this very method; "off the shelf",
            without reduction, the method put on it afterwards; "trained with X"; "from NAME" where
            nothing says how; "untrained". "pretrained without reduction" or "pretrained with X"
            where the weights that this training began from were made by another method.
    """

    setup: Setup
    seeds: tuple[int | None, ...]
    mode: str


@dataclass(frozen=True)
class _Making:
    """A training run that made weights."""

    config: dict[str, Any]
    inputs: dict[str, str]
    earlier: list[dict[str, Any]]
    processes: int | None
    kept: str | None


def find_parents(
    table: pd.DataFrame, records: Sequence[Record], places: Sequence[Path]
) -> dict[int, int | Path]:
    """Return for each run that began from weights the run that made them, or else where from.

    A run is known by its folder; where runs were moved, by the folder's last two names beside it,
    then anywhere; then by what the weights say of themselves. It is taken where one fits alone.

    Args:
        table: A row a run, with ``folder``.
        records: The records, in the same order.
        places: Where each was found: the folder that was searched, or the packed file.
    """
    paths = [Path(folder).resolve() for folder in table["folder"]]
    by_path = {path: row for row, path in enumerate(paths)}
    by_tail: dict[tuple[str, ...], list[int]] = {}
    by_making: dict[str, list[int]] = {}
    for row, (path, record) in enumerate(zip(paths, records, strict=True)):
        by_tail.setdefault(path.parts[-2:], []).append(row)
        if record.subcommand == "fit":
            by_making.setdefault(_making(record), []).append(row)
    found: dict[int, int | Path] = {}
    for row, record in enumerate(records):
        if record.parent is None:
            continue
        run, origin = run_of(Path(record.parent)), record.origin
        there = [by_path[run.resolve()]] if run.resolve() in by_path else []
        moved = by_tail.get(run.resolve().parts[-2:], [])
        made = by_making.get(_making(origin), []) if origin is not None else []
        if origin is not None:
            there, moved = ([each for each in rows if each in made] for rows in (there, moved))
        beside = [each for each in moved if places[each] == places[row]]
        choices = (rows[0] for rows in (there, beside, moved, made) if len(rows) == 1)
        found[row] = next(choices, run)
    return found


def run_of(parent: Path) -> Path:
    """Return the run folder that a checkpoint's path points into; other paths as they are."""
    return parent.parent.parent if parent.parent.name == "checkpoints" else parent


def _making(made: Record | Origin) -> str:
    """Return what a run and its weights say alike, also where it was lengthened since."""
    machine = ("trainer.devices", "trainer.num_nodes", "trainer.limit_test_batches")
    config = without(made.config, (*VOLATILE, *PLACE, *LENGTH, *machine, *_NO_PART_OF_A_SETTING))
    seed = made.config.get("seed_everything")
    return config_hash({"config": config, "inputs": made.inputs, "seed": seed}, ())


def lineages(records: Sequence[Record], parents: Mapping[int, int | Path]) -> list[Lineage]:
    """Return how each run came about."""
    return [_lineage(row, records, parents) for row in range(len(records))]


def _lineage(row: int, records: Sequence[Record], parents: Mapping[int, int | Path]) -> Lineage:
    record = records[row]
    makings, before = _history(row, records, parents)
    weights: Setup | str | None = before
    for making in reversed(makings):
        weights = _training(making, weights)
    setup = _scoring(record, weights)
    seeds = [_seed(making.config) for making in makings] or [record.seed]
    mode = _mode(record, makings, parents.get(row))
    if record.subcommand != "fit" and makings and not is_trained(mode):
        seeds.insert(1, record.seed)  # on one and the same model, it is what repeats differ in
    return Lineage(setup, tuple(seeds), mode)


def _history(
    row: int, records: Sequence[Record], parents: Mapping[int, int | Path]
) -> tuple[list[_Making], str | None]:
    """Return the trainings behind a run's scores, the latest first, and what they began from."""
    makings: list[_Making] = []
    seen: set[int] = set()
    record = records[row]
    if record.subcommand == "fit":
        makings.append(_made(record, "best"))
    while record.origin is None and isinstance(parent := parents.get(row), int):
        if parent in seen or parent == row:
            break
        seen.add(parent)
        kept = Path(str(record.parent)).stem
        row, record = parent, records[parent]
        makings.append(_made(record, kept if kept in _KEPT else "best"))
    made: Record | Origin = record
    while made.origin is not None:
        made = made.origin
        makings.append(_made(made, made.kept))
    digests = [made.inputs[name] for name in _WEIGHTS if name in made.inputs]
    path = parents.get(row) if made is record else None
    if not digests and isinstance(path, Path) and path.suffix in _WEIGHT_FILES:
        return makings, str(path)  # a run that is not among these says no more than that it was one
    return makings, next(iter(digests), None)


def _made(made: Record | Origin, kept: str | None) -> _Making:
    earlier = [{"steps": part.steps, **part.options} for part in made.earlier]
    return _Making(made.config, made.inputs, earlier, made.processes, kept)


def _seed(config: Mapping[str, Any]) -> int | None:
    seed = config.get("seed_everything")
    return seed if isinstance(seed, int) else None


def _training(making: _Making, weights: Setup | str | None) -> Setup:
    # How many processes there are matters where they multiply the batch of a training step.
    multiplies = not making.config.get("effective_batch_size")
    processes: Any = making.processes if multiplies else None
    if multiplies and processes is None:  # of older records
        trainer = making.config.get("trainer") or {}
        processes = [trainer.get("devices"), trainer.get("num_nodes")]
    return {
        "config": _config(making.config, making.inputs, ("trainer.limit_test_batches",)),
        "inputs": _inputs(making.config, making.inputs, "test_data"),
        "earlier": making.earlier,
        "processes": processes,
        "kept": making.kept,
        "weights": weights,
    }


def _scoring(record: Record, weights: Setup | str | None) -> Setup:
    other = "trainer.limit_" + ("val" if record.subcommand == "test" else "test") + "_batches"
    start = _START_OF_TRAINING if weights is not None else ()
    leave_out = (*_NO_PART_OF_SCORING, *start, other)
    return {
        "config": _config(record.config, record.inputs, leave_out),
        "inputs": _inputs(record.config, record.inputs, "train_data", *start),
        "weights": weights,
    }


def _inputs(
    config: Mapping[str, Any], inputs: Mapping[str, str], *leave_out: str
) -> dict[str, str]:
    """Return the inputs that count; no reduction has no code."""
    none = ("code of Identity",) if method_of(config) is None else ()
    free = (*_WEIGHTS, *none, *leave_out)
    return {name: each for name, each in inputs.items() if name not in free}


def _config(
    config: Mapping[str, Any], inputs: Mapping[str, str], leave_out: Sequence[str]
) -> dict[str, Any]:
    """Return the options that count; no reduction has one name and no schedule."""
    known = [name for name in inputs if "." in name]  # by content; their paths tell nothing
    if "tokenizer" in inputs:
        known.append("data.tokenizer")
    plain = without(config, (*_NO_PART_OF_A_SETTING, *known, *leave_out))
    if method_of(config) is None and isinstance(plain.get("model"), dict):
        plain["model"] |= {"reducer": None, "schedule": None}
    return plain


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return reducer and schedule of a configuration as text; None for no reduction."""
    model = config.get("model") or {}
    if _class_name(model.get("reducer")) in (None, "Identity"):
        return None
    return json.dumps([model.get("reducer"), model.get("schedule")], sort_keys=True, default=str)


def _class_name(reducer: Any) -> str | None:
    path = reducer.get("class_path") if isinstance(reducer, dict) else reducer
    return None if path is None else str(path).rpartition(".")[2]


def _mode(record: Record, makings: Sequence[_Making], parent: int | Path | None) -> str:
    if not makings:
        return f"from {parent.name}" if isinstance(parent, Path) else "untrained"
    own, first = method_of(record.config), method_of(makings[0].config)
    same_size = _image_size(record.config) == _image_size(makings[0].config)
    if own == first and same_size:
        mode = "trained"
    elif first is None:
        mode = "off the shelf"
    else:
        mode = f"trained with {_named(makings[0].config)}"
    others = [making.config for making in makings[1:] if method_of(making.config) != first]
    if not others:
        return mode
    which = next((config for config in others if method_of(config) is not None), None)
    before = f"pretrained {'without reduction' if which is None else f'with {_named(which)}'}"
    return before if mode == "trained" else f"{mode}, {before}"


def is_trained(mode: str) -> bool:
    """Whether a mode says that the method was there in training."""
    return mode == "trained" or mode.startswith("pretrained")


def _named(config: Mapping[str, Any]) -> str:
    model = config.get("model") or {}
    keep = (model.get("schedule") or {}).get("keep_ratio")
    return f"{_class_name(model.get('reducer'))}{'' if keep is None else f' {keep:g}'}"


def protocol(setup: Setup, may_differ: Sequence[str] = (), larger: Setup | None = None) -> Setup:
    """Return what a run must have in common with others to be compared with them.

    Args:
        setup: What makes the run.
        may_differ: What else may differ: options by their dotted names, inputs by theirs, or
            ``inputs``, ``earlier``, ``processes``, ``kept`` in whole.
        larger: A setup whose image size takes the place of this one's: so that no reduction on
            smaller images has the protocol of the larger ones.
    """
    method = _class_name((setup["config"].get("model") or {}).get("reducer")) or "Identity"
    config = without(setup["config"], (*_METHOD, *(name for name in may_differ if "." in name)))
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
    free = (*may_differ, f"code of {method}")
    inputs = {name: each for name, each in setup["inputs"].items() if name not in free}
    made = setup | {"config": config, "inputs": inputs, "weights": weights}
    return {name: each for name, each in made.items() if name not in may_differ}


def check_names(may_differ: Sequence[str], setups: Sequence[Setup]) -> None:
    """Refuse names that `protocol` would find nowhere.

    Raises:
        ValueError: The message names those that are near.
    """
    known = {name for setup in setups for name in _names(setup)}
    for name in may_differ:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            raise ValueError(
                f"No run has an option or input {name!r} that may differ."
                + (f" Near it: {', '.join(near)}." if near else "")
            )


def _names(setup: Setup) -> Iterator[str]:
    yield from (name for name in setup if name not in ("config", "weights"))
    yield from setup["inputs"]
    sections = [("", setup["config"])]
    while sections:
        prefix, section = sections.pop()
        for name, value in section.items():
            if prefix:  # a whole section is no option
                yield prefix + name
            if isinstance(value, dict):
                sections.append((f"{prefix}{name}.", value))
    if isinstance(setup["weights"], dict):
        yield from _names(setup["weights"])


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
    several = _aligned(several)
    values: dict[str, list[Any]] = {}
    for other in several[1:]:
        for name, (one, two) in config_differences(several[0], other, ()).items():
            known = values.setdefault(name, [one])
            if two not in known:
                known.append(two)
    said: dict[str, str] = {}
    for name, each in values.items():
        bare = name.rpartition("weights.")[2]  # what differs in training as in scoring is said once
        if any(value not in (None, {}) for value in each):
            said.setdefault(f"{bare} {each}", _said(name, each))
    more = f" and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return ", ".join(list(said.values())[:_SHOWN]) + more


def _aligned(several: Sequence[Setup]) -> list[Setup]:
    """Return setups down to where all know how their weights were made."""
    weights = [setup["weights"] for setup in several]
    if all(isinstance(each, dict) for each in weights):
        weights = list(_aligned(weights))
    else:
        weights = [identity(each) if isinstance(each, dict) else each for each in weights]
    return [setup | {"weights": each} for setup, each in zip(several, weights, strict=True)]


def _said(name: str, values: list[Any]) -> str:
    depth = 0
    while name.startswith("weights."):
        name, depth = name.removeprefix("weights."), depth + 1
    where = ("", " in training", " in pretraining")[min(depth, 2)]
    if name == "weights":
        return ("the weights", "the weights that training began from")[min(depth, 1)]
    if name.startswith("inputs."):
        unknown = " (not recorded in some)" if None in values else ""
        return f"the content of {name.removeprefix('inputs.')}{where}{unknown}"
    if name in _OF_WEIGHTS:
        name, where = _OF_WEIGHTS[name], ""
    name = name.removeprefix("config.")
    if not all(isinstance(each, str | int | float | None) for each in values):
        return name + where
    shown = ", ".join("none" if each is None else str(each) for each in values[:3])
    return f"{name}{where} ({shown}{', ...' * (len(values) > 3)})"


def with_modes(
    table: pd.DataFrame,
    records: Sequence[Record],
    found: Sequence[Lineage],
    parents: Mapping[int, int | Path],
) -> pd.DataFrame:
    """Add ``setup`` and ``mode``, and take the cost of training from the run that trained.

    Args:
        table: A row a run.
        records: The records, in the same order.
        found: How each came about.
        parents: See `find_parents`.
    """
    table = table.assign(
        setup=[identity(each.setup) for each in found], mode=[each.mode for each in found]
    )
    for row, parent in parents.items():
        own = records[row]
        scored = own.subcommand != "fit" and is_trained(found[row].mode)
        if scored and isinstance(parent, int) and _is_as_it_was(records[parent], own.origin):
            table.loc[row, list(_FROM_TRAINING)] = table.iloc[parent][list(_FROM_TRAINING)]
    return table


def _is_as_it_was(record: Record, origin: Origin | None) -> bool:
    """Whether a training run has not been lengthened since it left weights that say this."""
    if origin is None:
        return True
    one, two = (
        [_section(made.config, "trainer").get(name.rpartition(".")[2]) for name in LENGTH[:2]]
        for made in (record, origin)
    )
    return one == two and record.earlier == origin.earlier
