"""Run records of studies that were never run, with truths that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from elip.identity import digest, protocol_options
from elip.record import Evaluation, Gflops, Record, RunHeader, write_record, write_scores

FAMILIES = {
    "Identity": "baseline", "Random": "baseline", "Stride": "position", "TopK": "attention",
    "EViT": "attention", "ELIP": "attention", "ToMe": "similarity", "PiToMe": "similarity",
    "DPCKNN": "clustering", "DivPrune": "diversity", "TRIPS": "text", "PuMer": "text",
}  # fmt: skip
KEEPS = (0.9, 0.7, 0.5)
TASKS = {"VQA": "vqa_score", "Retrieval": "r1"}
PATCHES = 144
BASE = RunHeader(
    run_id="base", command="fit", reducer="Identity", method="No reduction", protocol="base",
    seed=0, steps=1000, checkpoint="best",
)  # fmt: skip


def record(
    reducer: str = "ELIP",
    keep: float | None = 0.7,
    seed: int = 0,
    task: str = "VQA",
    score: float | None = 0.6,
    lineage: tuple[RunHeader, ...] = (BASE,),
    command: str = "test",
    split: str = "test",
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """One run; its cost falls with the keep ratio. ``options`` join the stated config."""
    keep = None if reducer == "Identity" else keep
    share, fusion = keep or 1.0, reducer == "PuMer"
    vision, probe = 27.0 * (1 if fusion else share), 6.0 if reducer == "ELIP" else 0.0
    parts = Gflops(
        vision=vision, probe=probe, reducer=0.2 * (share < 1), text=4.3, fusion=20.0 * share,
        head=0.1,
    )  # fmt: skip
    whole = Gflops(vision=27.0, probe=0.0, reducer=0.0, text=4.3, fusion=20.0, head=0.1)
    stated: dict[str, Any] = {
        "model": {"task": task},
        "data": {"datasets": "shapes"},
        **(options or {}),
    }
    known = protocol_options(command, stated, {}, lineage[0] if lineage else None)
    name = f"{task}-{reducer}-{keep}-{seed}-{command}"
    metric = TASKS.get(task, "accuracy")
    fields: dict[str, Any] = {
        "name": name,
        "run_id": digest([name, stated, [each.run_id for each in lineage]]),
        "command": command,
        "status": "completed",
        "started": f"2026-11-23T20:00:{seed % 60:02}+00:00",
        "ended": "2026-11-23T20:05:00+00:00",
        "protocol": digest(known),
        "protocol_options": known,
        "stated_config": stated,
        "config": stated,
        "task": task,
        "datasets": ("shapes",),
        "reducer": reducer,
        "lineage": lineage,
        "weights": "a run",
        "seed": seed,
        "reducer_family": FAMILIES.get(reducer, "other"),
        "placement": "fusion" if fusion else "never" if keep is None else "before_block",
        "patches": PATCHES,
        "tokens_per_block": tuple(PATCHES * share ** (i / 3) for i in range(7)),
        "keep_ratio_asked": keep,
        "keep_ratio": 1.0 if fusion else share,
        "fusion_keep_ratio": share if fusion else None,
        "main_metric": metric,
        "evaluations": (
            Evaluation(
                split=split, dataset="shapes", examples=200, metrics={metric: score},
                chance={metric: 0.2},
            ),
        ),
        "gflops": parts,
        "gflops_unreduced": whole,
        "latency_ms": 5 * (parts.total or 0),
        "latency_unreduced_ms": 5 * (whole.total or 0),
    }  # fmt: skip
    return Record(**fields | changes)


def fit_header(reducer: str, keep: float | None, seed: int = 0) -> RunHeader:
    """The header of a run that trained with a method."""
    method = "No reduction" if reducer == "Identity" else f"{reducer} {keep:g}"
    return RunHeader(
        run_id=f"{reducer}{keep}{seed}", command="fit", reducer=reducer, method=method,
        protocol="fit", seed=seed, steps=500, checkpoint="best",
    )  # fmt: skip


def write_run(folder: Path, one: Record, examples: int = 200) -> Path:
    """Write a run whose examples are hit as often as its score says; return its folder."""
    place = folder / one.run_id
    place.mkdir(parents=True)
    split = one.evaluations[0].split if one.evaluations else "test"
    aim = one.evaluations[0].metrics.get(str(one.main_metric)) if one.evaluations else None
    if aim is not None and np.isfinite(aim):
        write_scores({split: outcomes(aim, examples, one.task, one.name)}, place)
    write_record(one, place)
    return place


def outcomes(score: float, examples: int, task: str, name: str) -> NDArray[Any]:
    """Hits and misses, two examples an image: hard ones are hard for every run, give or take."""
    hard = np.random.default_rng(crc32(task.encode())).random(examples)
    own = np.random.default_rng(crc32(f"{name} {task}".encode())).normal(0, 0.1, examples)
    number = np.arange(examples)
    return np.stack([number // 2, number, (hard + own < score).astype(float)], axis=1)


def truth(reducer: str, keep: float) -> float:
    """A score that falls with the keep ratio, faster for some methods than for others."""
    steep = {"Identity": 0.0, "Random": 1.2, "DPCKNN": 2.0}.get(
        reducer, 0.05 + 0.4 * (crc32(reducer.encode()) % 97) / 97
    )
    return 0.8 - steep * (1 - keep) ** 1.5


def write_study(
    folder: Path,
    reducers: tuple[str, ...] = tuple(FAMILIES),
    keeps: tuple[float, ...] = KEEPS,
    seeds: int = 3,
    tasks: tuple[str, ...] = tuple(TASKS),
    examples: int = 200,
) -> int:
    """Write a whole product of off-the-shelf runs; return how many."""
    count = 0
    for task in tasks:
        for reducer in reducers:
            for keep in (1.0,) if reducer == "Identity" else keeps:
                for seed in range(seeds):
                    noise = np.random.default_rng(crc32(f"{reducer}{keep}{seed}".encode()))
                    score = truth(reducer, keep) + 0.01 * noise.normal()
                    one = record(reducer, keep, seed, task)
                    hits = outcomes(score, examples, task, one.name)[:, 2]
                    final = record(reducer, keep, seed, task, float(hits.mean()))
                    place = folder / one.run_id
                    place.mkdir(parents=True)
                    write_scores({"test": outcomes(score, examples, task, one.name)}, place)
                    write_record(final, place)
                    count += 1
    return count
