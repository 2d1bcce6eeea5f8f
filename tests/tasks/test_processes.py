"""Every task in three processes with uneven shards, one of them empty, against one process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from elip.data.batch import Batch
from elip.model.meter import Meter
from elip.tasks import tasks
from elip.tasks.base import Evaluator, Task
from elip.tasks.retrieval import Retrieval
from reducers.elip import ELIP
from reducers.random import Random
from tests.tasks.tiny import batch_for, built, take, tiny_meter

SHARDS = [[8, 1, 4, 6, 2, 3], [0, 5, 7], []]
REDUCERS = {"blind": Random, "reads_text": ELIP}


def prepared(kind: type[Task], reducer: str) -> tuple[Meter, Task, Batch]:
    meter = tiny_meter(REDUCERS[reducer]())
    task = built(kind(), meter)
    return meter, task, batch_for(task.spec, count=9)


@torch.no_grad()
def evaluated(meter: Meter, task: Task, batch: Batch | None) -> Evaluator:
    evaluator = task.evaluator()
    if batch is not None:
        evaluator.update(meter, batch)
    return evaluator


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(SHARDS))
    found: dict[str, Any] = {}
    for name, kind in tasks().items():
        for reducer in REDUCERS:
            meter, task, batch = prepared(kind, reducer)
            shard = take(batch, SHARDS[rank]) if SHARDS[rank] else None
            evaluator = evaluated(meter, task, shard)
            scores = evaluator.compute(meter)
            outcomes = evaluator.per_example_scores(meter)
            found[f"{name} {reducer}"] = (scores, evaluator.chance(meter), outcomes)
            if isinstance(task, Retrieval):
                scores = evaluator.gallery.scores(meter, task.score, task.pairs)
                found[f"matrix {reducer}"] = (scores, len(evaluator.gallery._own_rows(meter)))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, folder)) for rank in range(len(SHARDS))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * len(SHARDS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(SHARDS))]


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", tasks())
def test_scores_and_chance_are_those_of_one_process(found, name: str, reducer: str) -> None:
    meter, task, batch = prepared(tasks()[name], reducer)
    single = evaluated(meter, task, batch)
    for scores, chance, outcomes in (part[f"{name} {reducer}"] for part in found):
        assert scores == pytest.approx(single.compute(meter), rel=1e-5, abs=1e-5)
        assert chance == pytest.approx(single.chance(meter), abs=1e-6)
        torch.testing.assert_close(outcomes, single.per_example_scores(meter))


@pytest.mark.parametrize("reducer", REDUCERS)
def test_each_image_of_a_gallery_is_scored_by_one_process(found, reducer: str) -> None:
    meter, task, batch = prepared(Retrieval, reducer)
    single = evaluated(meter, task, batch).gallery.scores(meter, task.score, task.pairs)
    # Both shards hold most of the five images; the work is shared evenly.
    assert sorted(part[f"matrix {reducer}"][1] for part in found) == [0, 2, 3]
    for scores, _ in (part[f"matrix {reducer}"] for part in found):
        torch.testing.assert_close(scores, single, atol=2e-6, rtol=1e-5)
