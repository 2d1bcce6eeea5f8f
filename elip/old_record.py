"""The run record: the one file that a run leaves for tables, plots and grids to read.

This module imports neither torch nor the model, so that results can be read anywhere.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from elip.files import whole_file

SCHEMA = 1
"""Version of the record. It rises when a field changes its meaning or goes."""

RECORD_NAME = "run.json"
"""Name of the record in a run's folder."""

CONVENTION = "G multiply-adds an example; one multiply-add = 1"
"""What every GFLOPs figure of this project means."""

Status = Literal["completed", "failed", "interrupted"]


Scalar = str | int | float | bool | None

_PARTS = ("vision", "probe", "reducer", "text", "fusion", "head")

COLUMNS: dict[str, str] = {
    "name": "name of the run",
    "status": "completed, failed or interrupted",
    "subcommand": "fit, validate, test or predict",
    "config_hash": "identity of the configuration, seed included",
    "commit": "git commit of the code",
    "dirty": "whether the code had uncommitted changes",
    "started": "date and time, ISO 8601",
    "seed": "seed of the run",
    "task": "class name of the task",
    "datasets": "names of the datasets, joined by +",
    "reducer": "class name of the reducer",
    "reducer_family": "idea of the reducer in one word, for tables and colours",
    "reducer_options": "options of the reducer, as JSON",
    "keep_ratio_asked": "keep ratio of the configuration",
    "keep_ratio": "measured mean share of patch tokens that enter a block",
    "patches": "patch tokens without reduction",
    "tokens_out": "mean patch tokens that leave the image encoder",
    "tokens_out_sd": "its standard deviation over images; empty where the count is fixed",
    **{f"gflops_{part}": f"forward pass, {part}: {CONVENTION}" for part in (*_PARTS, "total")},
    "gflops_training_step": f"one training step: {CONVENTION}",
    **{
        f"gflops_identity_{part}": f"the same without reduction, {part}: {CONVENTION}"
        for part in (*_PARTS, "total")
    },
    "gflops_identity_training_step": f"one training step without reduction: {CONVENTION}",
    "batch_size": "examples a batch in the latencies",
    "precision": "of training, scoring and timing; trainer.precision",
    "latency_ms": "median inference time of a batch, milliseconds",
    "latency_p95_ms": "95th percentile of it, milliseconds",
    "latency_identity_ms": "the same without reduction, timed in turn with it, milliseconds",
    "examples_per_s": "inference, examples a second at the median",
    "peak_memory_mb": "highest resident memory of the process, 10^6 bytes",
    "peak_gpu_memory_mb": "highest GPU memory in tensors, 10^6 bytes",
    "train_steps": "optimiser steps",
    "train_epochs": "passes over the training data",
    "train_s": "wall-clock time of training, seconds",
    "train_images_per_s": "images trained on a second, loading and validation left out",
    "cpu": "name of the processor",
    "gpus": "names of the GPUs, joined by +",
    "parent": "where the weights came from",
    "main_metric": "the score that heads the tables",
    "error": "error message of a failed run",
}
"""Columns of `Record.row` that every run has, with their meaning and unit. None is missing."""


class RecordError(ValueError):
    """A record cannot be read; the message says which one and why."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one forward pass, in G an example (one multiply-add = 1).

    Attributes:
        vision: The image encoder without the two below.
        probe: Passes that only score tokens.
        reducer: The reduction method's own work, and the signals that are made for it.
        text: The text encoder.
        fusion: Projections, co-attention layers and poolers.
        head: The task's head.
    """

    vision: float | None = None
    probe: float | None = None
    reducer: float | None = None
    text: float | None = None
    fusion: float | None = None
    head: float | None = None

    @property
    def total(self) -> float | None:
        """Sum of the parts; None when one of them is missing."""
        parts = [getattr(self, part.name) for part in fields(self)]
        return None if any(part is None for part in parts) else math.fsum(parts)


@dataclass(frozen=True)
class Gflops:
    """What a model costs, in G multiply-adds an example (one multiply-add = 1).

    Attributes:
        forward: One forward pass, by part.
        training_step: Forward and backward of one training step, over all passes of the task.
    """

    forward: Cost = field(default_factory=Cost)
    training_step: float | None = None


@dataclass(frozen=True)
class Code:
    """Which code ran.

    Attributes:
        version: Version of the package.
        commit: Git commit, where the code lies in a git checkout.
        dirty: Whether that checkout had uncommitted changes.
    """

    version: str
    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class Hardware:
    """What it ran on.

    Attributes:
        cpu: Name of the processor.
        cores: Processor cores that the process may use.
        memory_bytes: Main memory of the machine.
        gpus: Names of the visible GPUs, one for each.
        gpu_memory_bytes: Memory of the first GPU.
    """

    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Patch tokens in the image encoder, or in the fusion where the reducer acts there; no CLS.

    Attributes:
        patches: P, without reduction.
        entering: Mean measured count that enters each block, then the count that leaves the last.
        keep_ratio_asked: The keep ratio of the configuration; None where counts were given.
        keep_ratio: Mean over the blocks of the measured share of patches that enters a block.
        entering_sd: Standard deviation over images of each of these counts; None where the
            reducer keeps the same number of every image.
    """

    patches: int
    entering: tuple[float, ...]
    keep_ratio_asked: float | None = None
    keep_ratio: float | None = None
    entering_sd: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse counts of no block.

        Raises:
            ValueError: There are fewer than two, or deviations of other blocks.
        """
        if len(self.entering) < 2:
            raise ValueError(
                f"entering is {list(self.entering)}; give the counts into each block and out of "
                "the last, at least two."
            )
        if self.entering_sd is not None and len(self.entering_sd) != len(self.entering):
            raise ValueError(
                f"entering_sd has {len(self.entering_sd)} entries; entering has "
                f"{len(self.entering)}."
            )


@dataclass(frozen=True)
class Evaluation:
    """Scores on one split of one dataset.

    Attributes:
        split: Name of the split; a record has each at most once.
        dataset: Name of the dataset.
        examples: Number of examples that were scored.
        metrics: Scores by name.
        chance: Scores of guessing, under the same names.
    """

    split: str
    dataset: str
    examples: int
    metrics: dict[str, float | None]
    chance: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Inference time, measured.

    Attributes:
        batch_size: Examples a batch.
        latency_ms: Median time of a batch, in milliseconds.
        latency_p95_ms: 95th percentile of it.
        examples_per_second: Throughput at the median.
        latency_identity_ms: Median time without reduction, timed in turn with the other: only the
            ratio of the two compares between runs.
    """

    batch_size: int | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    examples_per_second: float | None = None
    latency_identity_ms: float | None = None


@dataclass(frozen=True)
class Training:
    """What training took.

    Attributes:
        steps: Optimiser steps.
        epochs: Passes over the training data.
        seconds: Wall-clock time of training, validation included.
        images_per_second: Images trained on a second; loading, validation and start-up left out.
    """

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Earlier:
    """A part of a training run that was done under other options, before it was continued.

    Attributes:
        steps: How many optimiser steps were done when they changed.
        options: The options as they were until then, by dotted name.
    """

    steps: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """How weights were made. A checkpoint carries it, so that no run has to be sought by its place.

    Attributes:
        config: The resolved configuration of the training run that left them.
        inputs: What that run read; see `Record`.
        earlier: Options that changed on its way.
        processes: How many it had; each takes its part of an epoch.
        steps: How many optimiser steps the weights have seen; None where that is not known.
        kept: Which of the run's checkpoints they are, ``best`` or ``last``; None for others.
        origin: How the weights were made that it began from; None where that is not known.
    """

    config: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    earlier: tuple[Earlier, ...] = ()
    processes: int = 1
    steps: int | None = None
    kept: str | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Record:
    """Everything that is known of one run. What is not known is None, never 0.

    Attributes:
        name: Name of the run.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
        status: How it ended.
        started, ended: Date and time in ISO 8601, with time zone.
        config: The resolved configuration.
        config_hash: Identity of the run, from `elip.provenance.config_hash`.
        code, packages, hardware: Which code, with which packages, on what.
        seed: Seed of the run.
        task: Class name of the task.
        datasets: Names of the datasets.
        reducer: Class name of the reducer, ``Identity`` for no reduction.
        reducer_family: Its idea in one word, for tables and colours.
        reducer_options: Its options.
        main_metric: The score that heads the tables.
        evaluations: Scores, one entry a split.
        tokens: Token counts.
        gflops: Cost of this run's model.
        gflops_identity: Cost of the same model without reduction.
        speed: Inference time.
        peak_memory_bytes: Highest resident memory of the process, as the system reports it.
        peak_gpu_memory_bytes: Highest GPU memory that torch held in tensors.
        training: What training took.
        parent: Where the weights came from: a checkpoint, a run, or None for random ones.
        inputs: Digests of what the run read, as far as it lies on this machine: examples
            (``train_data``, ``val_data``, ``test_data``), ``tokenizer``, ``answers``, the code of
            methods and of classes of others (``code of ELIP``), and files by option
            (``model.weights``).
        origin: How the weights were made; None for random ones, or where their file does not say.
        processes: How many processes it had.
        earlier: Options that changed when a training run was continued; part of its identity.
        error: Error message of a failed run.
        log_tail: Last lines of its log.
        notes: Whatever a reader of the numbers should know: skipped data, missing measurements.
        schema: Version of this record.
    """

    name: str
    subcommand: str
    status: Status
    started: str
    ended: str
    config: dict[str, Any]
    config_hash: str
    code: Code
    packages: dict[str, str]
    hardware: Hardware
    seed: int | None
    task: str
    datasets: tuple[str, ...]
    reducer: str
    reducer_family: str | None = None
    reducer_options: dict[str, Any] = field(default_factory=dict)
    main_metric: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    tokens: Tokens | None = None
    gflops: Gflops = field(default_factory=Gflops)
    gflops_identity: Gflops = field(default_factory=Gflops)
    speed: Speed | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    training: Training | None = None
    parent: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    origin: Origin | None = None
    processes: int | None = None
    earlier: tuple[Earlier, ...] = ()
    error: str | None = None
    log_tail: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse two entries for one split, since a table has one place for it.

        Raises:
            ValueError: A split occurs twice.
        """
        splits = [evaluation.split for evaluation in self.evaluations]
        if len(set(splits)) < len(splits):
            raise ValueError(f"A record takes each split once; this one has {splits}.")

    def row(self) -> dict[str, Scalar]:
        """Return the record as one row of a table.

        The columns are those of `COLUMNS`, always all of them, then for each split and score
        ``<split>/<score>``, ``<split>/<score>/chance``, and ``<split>/examples``.
        """
        tokens = self.tokens
        speed, training = self.speed or Speed(), self.training or Training()
        row: dict[str, Scalar] = {
            "name": self.name,
            "status": self.status,
            "subcommand": self.subcommand,
            "config_hash": self.config_hash,
            "commit": self.code.commit,
            "dirty": self.code.dirty,
            "started": self.started,
            "seed": self.seed,
            "task": self.task,
            "datasets": "+".join(self.datasets),
            "reducer": self.reducer,
            "reducer_family": self.reducer_family,
            "reducer_options": json.dumps(self.reducer_options, sort_keys=True, default=str),
            "keep_ratio_asked": tokens.keep_ratio_asked if tokens else None,
            "keep_ratio": tokens.keep_ratio if tokens else None,
            "patches": tokens.patches if tokens else None,
            "tokens_out": tokens.entering[-1] if tokens else None,
            "tokens_out_sd": tokens.entering_sd[-1] if tokens and tokens.entering_sd else None,
            **_cost_columns("gflops", self.gflops),
            **_cost_columns("gflops_identity", self.gflops_identity),
            "batch_size": speed.batch_size,
            "precision": _text(self.config.get("trainer", {}).get("precision")),
            "latency_ms": speed.latency_ms,
            "latency_p95_ms": speed.latency_p95_ms,
            "latency_identity_ms": speed.latency_identity_ms,
            "examples_per_s": speed.examples_per_second,
            "peak_memory_mb": _megabytes(self.peak_memory_bytes),
            "peak_gpu_memory_mb": _megabytes(self.peak_gpu_memory_bytes),
            "train_steps": training.steps,
            "train_epochs": training.epochs,
            "train_s": training.seconds,
            "train_images_per_s": training.images_per_second,
            "cpu": self.hardware.cpu,
            "gpus": "+".join(self.hardware.gpus) or None,
            "parent": self.parent,
            "main_metric": self.main_metric,
            "error": self.error,
        }
        for evaluation in self.evaluations:
            row[f"{evaluation.split}/examples"] = evaluation.examples
            for name, value in evaluation.metrics.items():
                row[f"{evaluation.split}/{name}"] = value
                row[f"{evaluation.split}/{name}/chance"] = evaluation.chance.get(name)
        return row


def _cost_columns(prefix: str, gflops: Gflops) -> dict[str, Scalar]:
    parts: dict[str, Scalar] = {
        f"{prefix}_{part}": getattr(gflops.forward, part) for part in (*_PARTS, "total")
    }
    return {**parts, f"{prefix}_training_step": gflops.training_step}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


_ADAPTER = TypeAdapter(Record)
_ORIGIN = TypeAdapter(Origin)


def origin_as_json(origin: Origin) -> str:
    """Return an origin as text, for a checkpoint or the header of a weights file."""
    return json.dumps(asdict(origin), default=str)


def origin_from_json(text: str) -> Origin:
    """Return the origin that `origin_as_json` wrote.

    Raises:
        ValueError: It is none.
    """
    return _ORIGIN.validate_json(text)


def write_record(record: Record, folder: Path | str) -> Path:
    """Write ``run.json`` into ``folder``, wholly or not at all.

    A score that is not finite is stored as missing, and a note says so.

    Returns:
        Path of the record.
    """
    target = Path(folder) / RECORD_NAME
    text = _ADAPTER.dump_json(_finite(record), indent=1, fallback=str)
    with whole_file(target, durable=True) as temporary:
        temporary.write_bytes(text + b"\n")
    return target


def read_record(path: Path | str) -> Record:
    """Read a record, strictly: known fields, right types, this version.

    Args:
        path: The file, or the folder of the run.

    Raises:
        RecordError: There is none, it is half written, of another version, or not a record.
    """
    path = Path(path)
    path = path / RECORD_NAME if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"No run record at {path}: {error.strerror}.") from error
    return parse_record(text, path)


def parse_record(text: bytes, path: Path | str) -> Record:
    """Return the record that a file's text holds; as strict as `read_record`.

    Args:
        text: What the file holds.
        path: Where it lies, for messages.

    Raises:
        RecordError: It is half written, of another version, or not a record.
    """
    if text.startswith(b"PK"):  # zip
        raise RecordError(f"{path} is no run record but an archive, such as a checkpoint is.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path} is half written or damaged ({error}). Delete it and run again, or restore it."
        ) from error
    version = content.get("schema") if isinstance(content, dict) else None
    if version is None:
        raise RecordError(f"{path} is not a run record: it has no schema version.")
    if version != SCHEMA:
        raise RecordError(
            f"{path} is a record of version {version}; this program reads version {SCHEMA}. Read "
            "it with the version of elip that wrote it."
        )
    try:
        return _ADAPTER.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(f"{path} is not a valid run record: {place}: {first['msg']}.") from error


def _finite(record: Record) -> Record:
    notes, evaluations = list(record.notes), []
    for evaluation in record.evaluations:
        metrics = dict(evaluation.metrics)
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                metrics[name] = None
                notes.append(f"{evaluation.split}/{name} was {value} and is stored as missing.")
        evaluations.append(replace(evaluation, metrics=metrics))
    return replace(record, evaluations=tuple(evaluations), notes=tuple(notes))
