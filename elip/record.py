"""The run record: the file that grids, tables, figures and notebooks read.

This module imports neither torch nor the model, so records can be read anywhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from elip.files import whole_file

SCHEMA = 2
"""Version of the record; increased when a field is removed or changes its meaning."""

RECORD_NAME = "run.json"
SCORES_NAME = "examples.parquet"
GFLOPS_UNIT = "G multiply-adds per example; one multiply-add = 1"

Scalar = str | int | float | bool | None
Command = Literal["fit", "validate", "test", "predict"]
Status = Literal["completed", "failed", "interrupted"]


def display_name(reducer: str) -> str:
    """Return the name of a reducer in tables and figures."""
    return "No reduction" if reducer == "Identity" else reducer


class RecordError(ValueError):
    """A record cannot be read."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunHeader(_Model):
    """The identity of a run in short. A checkpoint carries the header of the run that wrote it.

    Attributes:
        run_id: Hash of command, stated config and parent.
        command: The command that ran.
        reducer: Class name of the reducer.
        method: Name of the method, such as "ELIP 0.7" or "No reduction".
        protocol: Hash of everything but method and seed.
        seed: Seed of the run.
        steps: Optimiser steps of these weights; None if unknown.
        checkpoint: Which of the run's checkpoints: "best" or "last"; None for another file.
    """

    run_id: str
    command: Command
    reducer: str
    method: str
    protocol: str
    seed: int | None = None
    steps: int | None = None
    checkpoint: Literal["best", "last"] | None = None


class CheckpointInfo(_Model):
    """What a checkpoint, or weights exported from one, says about the run that wrote it.

    Attributes:
        lineage: Header of that run, then of the runs that it started from.
        stated_config: Options that differ from the defaults.
        protocol_options: Values shared by comparable runs; see `Record`.
        model: Facts that tensor shapes do not show, such as numbers of heads and the tokenizer.
        processes: Number of processes that trained it.
    """

    lineage: tuple[RunHeader, ...]
    stated_config: dict[str, Any] = {}
    protocol_options: dict[str, Any] = {}
    model: dict[str, Any] = {}
    processes: int = 1


class Evaluation(_Model):
    """Scores on one split of one dataset.

    Attributes:
        split: Name of the split; a record has each at most once.
        dataset: Name of the dataset.
        examples: Number of examples scored.
        metrics: Scores by name; None if a score was not finite.
        chance: Scores of guessing, by the same names.
    """

    split: str
    dataset: str
    examples: int
    metrics: dict[str, float | None]
    chance: dict[str, float | None] = {}


class Gflops(_Model):
    """Cost in G multiply-adds per example (one multiply-add = 1); None if not measured.

    Attributes:
        vision: The image encoder without probe and reducer.
        probe: Passes that only score tokens.
        reducer: The method itself and the signals made for it.
        text: The text encoder.
        fusion: Projections, co-attention layers and poolers.
        head: The task's head.
        training_step: Forward and backward of one training step, over all passes of the task.
    """

    vision: float | None = None
    probe: float | None = None
    reducer: float | None = None
    text: float | None = None
    fusion: float | None = None
    head: float | None = None
    training_step: float | None = None

    @property
    def total(self) -> float | None:
        """Cost of one forward pass; None if a part is missing."""
        parts = [self.vision, self.probe, self.reducer, self.text, self.fusion, self.head]
        known = [part for part in parts if part is not None]
        return math.fsum(known) if len(known) == len(parts) else None


class Record(_Model):
    """All facts about one run. Unknown values are None, never 0.

    Attributes:
        name: Name of the run directory.
        run_id: Hash of command, stated config and parent (`elip.identity.run_id`).
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        status: How it ended.
        started: Date and time in ISO 8601, UTC.
        ended: Likewise.
        protocol: Hash of everything but method and seed; runs with one protocol are comparable.
        protocol_options: The hashed values by dotted name, to show what differs.
        lineage: The runs behind its initial weights, newest first; empty for random weights.
        weights: Origin of the weights, in words.
        stated_config: Options that differ from the defaults.
        config: The full resolved configuration; never hashed.
        fingerprints: Of data splits (``data/<split>``), weights and code outside the repository.
        seed: Seed of the run.
        task: Class name of the task.
        datasets: Names of the datasets.
        reducer: Class name of the reducer; ``Identity`` for no reduction.
        reducer_family: Its kind in one word, for tables and colours.
        reducer_options: Its resolved options.
        placement: Where it reduces: ``never``, ``before_block``, ``after_attention`` or ``fusion``.
        patches: P, patch tokens without reduction.
        tokens_per_block: Mean patch tokens that enter each block (fusion: layer), then those that
            leave the last.
        tokens_per_block_sd: Standard deviation over images; None if the count is fixed.
        keep_ratio_asked: The keep ratio of the configuration; None if counts were given.
        keep_ratio: Measured mean share of patch tokens that enter an encoder block; 1 for a method
            that reduces in the fusion.
        fusion_keep_ratio: The same over the fusion layers; None for a method of the encoder.
        main_metric: The main score of the task.
        evaluations: Scores, one entry per split.
        gflops: Cost of this model.
        gflops_unreduced: Cost of the same model without reduction.
        batch_size: Batch size of the latencies.
        precision: Of training, scoring and timing.
        latency_ms: Median inference time of a batch.
        latency_p95_ms: 95th percentile of it.
        latency_unreduced_ms: Median without reduction, timed alternately.
        examples_per_second: Inference throughput at the median.
        peak_memory_bytes: Highest resident memory of the process.
        peak_gpu_memory_bytes: Highest GPU memory in tensors.
        train_steps: Optimiser steps.
        train_epochs: Passes over the training data.
        train_seconds: Wall-clock time of training, validation included.
        train_images_per_second: Training throughput, without validation.
        version: Version of the package.
        commit: Git commit of the code.
        dirty: Whether the checkout had uncommitted changes.
        packages: Versions of the packages that can change a result.
        cpu: Name of the processor.
        cores: Processor cores that the process may use.
        memory_bytes: Main memory of the machine.
        gpus: Names of the visible GPUs.
        processes: Number of processes.
        error: Error message of a failed run.
        log_tail: Last lines of its log.
        notes: Remarks on the numbers: skipped data, missing measurements.
        grid: Name of the run's grid; None outside a grid.
        stage: Stage of that grid.
        axes: Label of the cell on each axis of the grid.
    """

    name: str
    run_id: str
    command: Command
    status: Status
    started: str
    ended: str
    protocol: str
    protocol_options: dict[str, Any]
    stated_config: dict[str, Any]
    config: dict[str, Any]
    task: str
    datasets: tuple[str, ...]
    reducer: str
    lineage: tuple[RunHeader, ...] = ()
    weights: str = "random"
    fingerprints: dict[str, str] = {}
    seed: int | None = None
    reducer_family: str | None = None
    reducer_options: dict[str, Any] = {}
    placement: str = "never"
    patches: int | None = None
    tokens_per_block: tuple[float, ...] = ()
    tokens_per_block_sd: tuple[float, ...] | None = None
    keep_ratio_asked: float | None = None
    keep_ratio: float | None = None
    fusion_keep_ratio: float | None = None
    main_metric: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    gflops: Gflops = Gflops()
    gflops_unreduced: Gflops = Gflops()
    batch_size: int | None = None
    precision: str | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_unreduced_ms: float | None = None
    examples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
    train_steps: int | None = None
    train_epochs: float | None = None
    train_seconds: float | None = None
    train_images_per_second: float | None = None
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    packages: dict[str, str] = {}
    cpu: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    processes: int | None = None
    error: str | None = None
    log_tail: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    grid: str | None = None
    stage: str | None = None
    axes: dict[str, str] = {}
    schema_version: int = SCHEMA

    @model_validator(mode="after")
    def _each_split_once(self) -> Record:
        splits = [evaluation.split for evaluation in self.evaluations]
        if len(set(splits)) < len(splits):
            raise ValueError(f"a split occurs twice in evaluations: {splits}")
        return self

    def row(self) -> dict[str, Scalar]:
        """Return the record as one row of a table.

        Scalar fields keep their names. Lists and mappings become JSON text. ``gflops`` becomes
        ``gflops_<part>`` and ``gflops_unreduced_<part>`` (with ``total``), ``axes`` becomes
        ``axis/<name>``, and each evaluation ``<split>/<metric>``, ``<split>/<metric>/chance`` and
        ``<split>/examples``. The two configs, the log and the packages stay in the record.
        """
        row: dict[str, Scalar] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Gflops):
                costs = {**value.model_dump(), "total": value.total}
                row |= {f"{name}_{part}": cost for part, cost in costs.items()}
            elif name == "axes":
                row |= {f"axis/{axis}": label for axis, label in value.items()}
            elif name in ("datasets", "gpus"):
                row[name] = "+".join(value)
            elif isinstance(value, str | int | float | bool | None):
                row[name] = value
            elif name in ("reducer_options", "tokens_per_block", "tokens_per_block_sd", "notes"):
                row[name] = json.dumps(value, sort_keys=True, default=str)
        for evaluation in self.evaluations:
            row[f"{evaluation.split}/examples"] = evaluation.examples
            for name, score in evaluation.metrics.items():
                row[f"{evaluation.split}/{name}"] = score
                row[f"{evaluation.split}/{name}/chance"] = evaluation.chance.get(name)
        return row


def write_record(record: Record, folder: Path | str) -> Path:
    """Write ``run.json`` into ``folder`` atomically; return its path.

    A score that is not finite is stored as None, with a note.
    """
    notes, evaluations = list(record.notes), []
    for evaluation in record.evaluations:
        metrics = dict(evaluation.metrics)
        for name, value in metrics.items():
            if value is not None and not math.isfinite(value):
                metrics[name] = None
                notes.append(f"{evaluation.split}/{name} was {value}; it is stored as missing.")
        evaluations.append(evaluation.model_copy(update={"metrics": metrics}))
    update = {"evaluations": tuple(evaluations), "notes": tuple(notes)}
    target = Path(folder) / RECORD_NAME
    with whole_file(target, durable=True) as temporary:
        text = json.dumps(record.model_copy(update=update).model_dump(), indent=1, default=str)
        temporary.write_text(text + "\n", encoding="utf-8")
    return target


def read_record(path: Path | str) -> Record:
    """Read a record from its file, or from the folder of its run.

    Raises:
        RecordError: It is missing, damaged, of another version, or not a record.
    """
    path = Path(path)
    path = path / RECORD_NAME if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RecordError(f"No run record at {path}: {error.strerror}.") from error
    return parse_record(text, path)


def parse_record(text: bytes | str, path: Path | str) -> Record:
    """Parse the text of a record; ``path`` is for error messages.

    Raises:
        RecordError: The text is damaged, of another version, or not a record.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged ({error}). Delete it and run again.") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise RecordError(
            f"{path} is not a run record of version {SCHEMA}. Read it with the version of elip "
            "that wrote it, or run again."
        )
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(f"{path} is not a valid run record: {place}: {first['msg']}.") from error


SCORES = pa.schema(
    [
        pa.field("split", pa.dictionary(pa.int32(), pa.string())),
        pa.field("image", pa.int64()),
        pa.field("example", pa.int64()),
        pa.field("score", pa.float32()),
    ]
)
"""Per-example scores: the main score of each example (in retrieval: of an image with its texts).
``image`` is the cluster for intervals, ``example`` pairs runs with each other."""


def scores_table(scores: dict[str, NDArray[Any]]) -> pa.Table:
    """Return per-example scores as a table of schema `SCORES`.

    Args:
        scores: By split, [N,3] float64: image number, example number, score.
    """
    parts = [
        pa.Table.from_arrays(
            [
                pa.array([split] * len(values), pa.string()).dictionary_encode(),
                values[:, 0].astype("int64"),
                values[:, 1].astype("int64"),
                values[:, 2].astype("float32"),
            ],
            schema=SCORES,
        )
        for split, values in scores.items()
    ]
    return pa.concat_tables(parts).unify_dictionaries() if parts else SCORES.empty_table()


def write_scores(scores: dict[str, NDArray[Any]], folder: Path | str) -> None:
    """Write ``examples.parquet`` into ``folder`` unless there is no example."""
    table = scores_table(scores)
    if table.num_rows:
        with whole_file(Path(folder) / SCORES_NAME) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def read_scores(folder: Path | str) -> pa.Table | None:
    """Return the per-example scores of a run, or None.

    Raises:
        RecordError: The file is damaged.
    """
    path = Path(folder) / SCORES_NAME
    if not path.is_file():
        return None
    try:
        return pq.read_table(path, schema=SCORES)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} holds no per-example scores ({error}).") from error
