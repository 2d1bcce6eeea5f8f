"""Run records of studies that were never run, with truths that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np

from elip.examples import write_examples
from elip.old_record import (
    Code,
    Cost,
    Evaluation,
    Gflops,
    Hardware,
    Record,
    Speed,
    Tokens,
    Training,
    write_record,
)

FAMILIES = {
    "Identity": "baseline", "Random": "baseline", "Stride": "position", "Pool": "position",
    "Radial": "position", "TopK": "attention", "EViT": "attention", "ELIP": "attention",
    "ToMe": "similarity", "PiToMe": "similarity", "DiffRate": "similarity", "DPCKNN": "clustering",
    "KMedoids": "clustering", "DivPrune": "diversity", "VisPruner": "diversity", "TRIPS": "text",
    "CDPruner": "text", "PuMer": "text",
}  # fmt: skip
KEEPS = (0.9, 0.7, 0.5, 0.3)
TASKS = {"VQA": "vqa_score", "Retrieval": "r1", "Entailment": "accuracy"}
BLOCKS = 6
PATCHES = 144


def record(
    reducer: str = "ELIP",
    keep: float = 0.7,
    seed: int = 0,
    task: str = "VQA",
    score: float | None = None,
    patches: int = PATCHES,
) -> Record:
    """One run; its score falls with the keep ratio, faster for some methods than for others."""
    keep = 1.0 if reducer == "Identity" else keep
    draw = np.random.default_rng(crc32(f"{reducer} {keep} {seed} {task} {patches}".encode()))
    steepness = 0.05 + 0.2 * (crc32(reducer.encode()) % 97) / 97
    size = patches / PATCHES
    if score is None:
        score = 0.72 - steepness * (1 - keep) ** 1.5 - 0.2 * (1 - size) + 0.006 * draw.normal()
    vision, probe = 27.0 * keep * size, 6.0 if reducer == "ELIP" else 0.0
    cost = Cost(vision, probe, 0.2 * (keep < 1), 4.3, 20.0 * keep * size, 0.1)
    total = cost.total or 0.0
    entering = tuple(round(patches * keep ** (2 * i / BLOCKS)) * 1.0 for i in range(BLOCKS + 1))
    whole = Cost(27.0 * size, 0.0, 0.0, 4.3, 20.0 * size, 0.1)
    return Record(
        name=f"{reducer}-{keep}-{seed}",
        subcommand="fit",
        status="completed",
        started=f"2026-11-23T20:00:{seed % 60:02}+00:00",
        ended="2026-11-23T20:05:00+00:00",
        config={
            "seed_everything": seed,
            "model": {"reducer": reducer, "schedule": {"keep_ratio": keep}, "task": task},
            "data": {"seed": seed},
        },
        config_hash="0123456789abcdef",
        code=Code("0.1.0", "a" * 40, False),
        packages={"torch": "2.15.0", "numpy": "2.4.6"},
        hardware=Hardware("a cpu", 2, 8_000_000_000),
        seed=seed,
        task=task,
        datasets=("shapes",),
        reducer=reducer,
        reducer_family=FAMILIES.get(reducer, "other"),
        main_metric=TASKS[task],
        evaluations=(
            Evaluation("val", "shapes", 1000, {TASKS[task]: float(score)}, {TASKS[task]: 0.2}),
        ),
        tokens=Tokens(patches, entering, None if keep == 1 else keep, keep),
        gflops=Gflops(cost, 6 * total),
        gflops_identity=Gflops(whole, 6 * (whole.total or 0.0)),
        speed=Speed(
            8, 5 * total + 4 * draw.random(), 6 * total, 8000 / (5 * total), 5 * (whole.total or 0)
        ),
        training=Training(100, 1.5, 250.0, 48.0),
    )


def write_study(
    folder: Path,
    reducers: tuple[str, ...] = tuple(FAMILIES),
    keeps: tuple[float, ...] = KEEPS,
    seeds: int = 3,
    tasks: tuple[str, ...] = tuple(TASKS),
    examples: int = 200,
) -> int:
    """Write a whole product of runs, with training curves and examples; returns how many."""
    count = 0
    for task in tasks:
        for reducer in reducers:
            for keep in (1.0,) if reducer == "Identity" else keeps:
                for seed in range(seeds):
                    one = record(reducer, keep, seed, task)
                    place = folder / f"{task}-{one.name}"
                    aim = one.evaluations[0].metrics[TASKS[task]] or 0.0
                    rows = outcomes(aim, examples, task, one.name)
                    final = float(rows[:, 2].mean())
                    write_examples(place, {"val": rows})
                    write_record(record(reducer, keep, seed, task, final), place)
                    steps = "".join(
                        f"0,{step},{final * (1 - np.exp(-step / 300)):.4f}\n"
                        for step in range(99, 1600, 250)
                    )
                    (place / "metrics.csv").write_text("epoch,step,val/main\n" + steps)
                    count += 1
    return count


def outcomes(score: float, examples: int, task: str, name: str) -> np.ndarray:
    """Hits and misses, two examples an image: hard ones are hard for every run, give or take."""
    hard = np.random.default_rng(crc32(task.encode())).random(examples)
    own = np.random.default_rng(crc32(f"{name} {task}".encode())).normal(0, 0.1, examples)
    number = np.arange(examples)
    return np.stack([number // 2, number, (hard + own < score).astype(float)], axis=1)


def failed(one: Record, error: str = "RuntimeError: out of memory") -> Record:
    """The same run, failed."""
    return replace(one, status="failed", error=error, evaluations=(), log_tail=("last line",))
