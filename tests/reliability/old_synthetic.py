"""A record of the old format, for tests of the old record."""

from __future__ import annotations

from zlib import crc32

import numpy as np

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
