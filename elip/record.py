"""The run record: the file that grids, tables, figures and notebooks read.

This module imports neither torch nor the model, so records can be read anywhere.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from elip.files import whole_file

SCHEMA = 2
"""Version of the record; increased when a field is removed or changes its meaning."""

RECORD_NAME = "run.json"
SCORES_NAME = "examples.parquet"
GFLOPS_UNIT = "G multiply-adds per example; one multiply-add = 1"

Scalar = str | int | float | bool | None
Command = Literal["fit", "validate", "test", "predict"]
Status = Literal["completed", "failed", "interrupted"]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Score = Annotated[float | None, AfterValidator(_finite)]
"""A score; None if it was not finite."""


def display_name(reducer: str) -> str:
    """Return the name of a reducer in tables and figures."""
    return "No reduction" if reducer == "Identity" else reducer


# Fields that a row of a table holds as JSON.
_AS_JSON = ("reducer_options", "tokens_per_block", "tokens_per_block_sd", "notes")


class RecordError(ValueError):
    """A record cannot be read."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunHeader(_Model):
    """The identity of a run in short. A checkpoint carries the header of the run that wrote it."""

    run_id: str  # hash of command, stated config and parent
    command: Command
    reducer: str  # class name
    method: str  # in words, such as "ELIP 0.7" or "No reduction"
    protocol: str  # hash of everything but method and seed
    seed: int | None = None
    steps: int | None = None  # optimiser steps of these weights
    checkpoint: Literal["best", "last"] | None = None  # None for another file


class CheckpointInfo(_Model):
    """What a checkpoint, or weights exported from one, says about the run that wrote it."""

    lineage: tuple[RunHeader, ...]  # that run, then the runs that it started from
    stated_config: dict[str, Any] = {}
    protocol_options: dict[str, Any] = {}  # see `Record`
    model: dict[str, Any] = {}  # facts that tensor shapes do not show, such as numbers of heads
    processes: int = 1


class Evaluation(_Model):
    """Scores on one split of one dataset; a record has each split at most once."""

    split: str
    dataset: str
    examples: int
    metrics: dict[str, Score]
    chance: dict[str, Score] = {}  # what guessing scores


class Gflops(_Model):
    """Cost in G multiply-adds per example (one multiply-add = 1); None if not measured."""

    vision: float | None = None  # the image encoder without probe and reducer
    probe: float | None = None  # passes that only score tokens
    reducer: float | None = None  # the method itself and the signals made for it
    text: float | None = None  # the text encoder
    fusion: float | None = None  # projections, co-attention layers and poolers
    head: float | None = None  # the task's head
    training_step: float | None = None  # forward and backward, over all passes of the task

    @property
    def total(self) -> float | None:
        """Cost of one forward pass; None if a part is missing."""
        parts = [self.vision, self.probe, self.reducer, self.text, self.fusion, self.head]
        known = [part for part in parts if part is not None]
        return math.fsum(known) if len(known) == len(parts) else None


class Record(_Model):
    """All facts about one run. Unknown values are None, never 0."""

    name: str  # of the run directory
    run_id: str  # hash of command, stated config and parent (`elip.identity.run_id`)
    command: Command
    status: Status
    started: str  # ISO 8601, UTC
    ended: str
    protocol: str  # hash of everything but method and seed; runs with one protocol are comparable
    protocol_options: dict[str, Any]  # the hashed values by dotted name, to show what differs
    stated_config: dict[str, Any]  # options that differ from the defaults
    config: dict[str, Any]  # the full resolved configuration; never hashed
    task: str  # class name
    datasets: tuple[str, ...]
    reducer: str  # class name; "Identity" for no reduction
    lineage: tuple[RunHeader, ...] = ()  # the runs behind its initial weights, newest first
    weights: str = "random"  # their origin in words
    fingerprints: dict[str, str] = {}  # of data splits ("data/<split>"), weights and foreign code
    seed: int | None = None
    # The method
    reducer_family: str | None = None  # its kind in one word, for tables and colours
    reducer_options: dict[str, Any] = {}
    placement: str = "never"  # or "before_block", "after_attention", "fusion"
    patches: int | None = None  # P, patch tokens without reduction
    # Mean patch tokens that enter each block (fusion: layer), then those that leave the last; and
    # the standard deviation over images, None if the count is fixed.
    tokens_per_block: tuple[float, ...] = ()
    tokens_per_block_sd: tuple[float, ...] | None = None
    keep_ratio_asked: float | None = None  # None if counts were given
    keep_ratio: float | None = None  # measured over the encoder; 1 if the method is in the fusion
    fusion_keep_ratio: float | None = None  # over the fusion layers; None outside the fusion
    # Scores and costs
    main_metric: str | None = None
    evaluations: tuple[Evaluation, ...] = ()
    gflops: Gflops = Gflops()
    gflops_unreduced: Gflops = Gflops()  # the same model without reduction
    batch_size: int | None = None  # of the latencies
    precision: str | None = None  # of training, scoring and timing
    latency_ms: float | None = None  # median inference time of a batch
    latency_p95_ms: float | None = None
    latency_unreduced_ms: float | None = None  # median without reduction, timed alternately
    examples_per_second: float | None = None  # inference at the median
    peak_memory_bytes: int | None = None  # resident memory of the process
    peak_gpu_memory_bytes: int | None = None  # in tensors
    train_steps: int | None = None  # optimiser steps
    train_epochs: float | None = None
    train_seconds: float | None = None  # validation included
    train_images_per_second: float | None = None  # without validation
    # Code and machine
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None  # `elip` or `reducers` had uncommitted changes
    packages: dict[str, str] = {}  # versions of those that can change a result
    cpu: str | None = None
    cores: int | None = None  # that the process may use
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    processes: int | None = None
    error: str | None = None  # of a failed run
    log_tail: tuple[str, ...] = ()  # of a failed run in a grid
    notes: tuple[str, ...] = ()  # skipped data, missing measurements
    # The grid, if any
    grid: str | None = None
    stage: str | None = None
    axes: dict[str, str] = {}  # label of the cell on each axis
    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)

    def row(self) -> dict[str, Scalar]:
        """Return the record as one row of a table.

        Scalar fields keep their names. Lists and mappings become JSON text. ``gflops`` becomes
        ``gflops_<part>`` and ``gflops_unreduced_<part>`` (with ``total``), ``axes`` becomes
        ``axis/<name>``, and each evaluation ``<split>/<metric>``, ``<split>/<metric>/chance`` and
        ``<split>/examples``. The two configs, the log and the packages stay in the record.
        """
        row: dict[str, Scalar] = {}
        for name in type(self).model_fields:
            match getattr(self, name):
                case Gflops() as gflops:
                    costs = {**gflops.model_dump(), "total": gflops.total}
                    row |= {f"{name}_{part}": cost for part, cost in costs.items()}
                case dict() as labels if name == "axes":
                    row |= {f"axis/{axis}": label for axis, label in labels.items()}
                case tuple() as names if name in ("datasets", "gpus"):
                    row[name] = "+".join(names)
                case str() | int() | float() | None as value:
                    row[name] = value
                case value if name in _AS_JSON:
                    row[name] = json.dumps(value, sort_keys=True, default=str)
        for evaluation in self.evaluations:
            row[f"{evaluation.split}/examples"] = evaluation.examples
            for name, score in evaluation.metrics.items():
                row[f"{evaluation.split}/{name}"] = score
                row[f"{evaluation.split}/{name}/chance"] = evaluation.chance.get(name)
        return row


def write_record(record: Record, folder: Path | str) -> Path:
    """Write ``run.json`` into ``folder`` atomically; return its path."""
    target = Path(folder) / RECORD_NAME
    with whole_file(target, durable=True) as temporary:
        text = json.dumps(record.model_dump(), indent=1, default=str)
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
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        said = ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
        raise RecordError(
            f"{path} is damaged or not a run record of version {SCHEMA} ({said}). Read it with the "
            "version of elip that wrote it, or run again."
        ) from error


SCORES = pa.schema(
    {
        "split": pa.dictionary(pa.int32(), pa.string()),
        "image": pa.int64(),
        "example": pa.int64(),
        "score": pa.float32(),
    }
)
"""Per-example scores: the main score of each example (in retrieval: of an image with its texts).
``image`` is the cluster for intervals, ``example`` pairs runs with each other."""


def write_scores(scores: dict[str, NDArray[Any]], folder: Path | str) -> None:
    """Write ``examples.parquet`` into ``folder`` unless there is no example.

    Args:
        scores: By split, [N,3] float64: image number, example number, score.
        folder: The run directory.
    """
    splits = [split for split, values in scores.items() for _ in values]
    if splits:
        image, example, score = np.concatenate(list(scores.values())).T
        columns = {"split": splits, "image": image, "example": example, "score": score}
        with whole_file(Path(folder) / SCORES_NAME) as temporary:
            table = pa.Table.from_pydict(columns, schema=SCORES)
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


_PACKAGES = (
    "elip", "torch", "torchvision", "timm", "transformers", "tokenizers", "lightning",
    "jsonargparse", "torchmetrics", "numpy", "pyarrow", "pillow", "fvcore",
)  # fmt: skip


@cache
def environment() -> dict[str, Any]:
    """Return the fields of a `Record` that describe code and machine."""
    import torch

    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    root, commit, changes = Path(__file__).resolve().parent.parent, None, None
    if (root / ".git").exists():  # else git would describe a repository further up
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", "elip", "reducers")
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = (line.partition(":")[2].strip() for line in lines if line[:10] == "model name")
        cpu = next(named, cpu)
    return {
        "version": packages.get("elip", "not installed"),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "packages": packages,
        "cpu": cpu or None,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")  # macOS has none
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": tuple(torch.cuda.get_device_name(index) for index in gpus),
    }


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
