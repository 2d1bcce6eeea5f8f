"""A sweep leaves for every run what the run would leave alone, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from elip.record import SCORES_NAME, Record, read_record, read_scores
from experiments import sweep as worker
from experiments.grid import Cell, read_grid
from experiments.jobs import make_jobs, start_arguments
from experiments.launch import plan_cell

ROOT = Path(__file__).parents[2]
REDUCERS = ["Identity", "Random", "ELIP", "TRIPS"]
MEASURED = {
    "name", "started", "ended", "config", "batch_size", "latency_ms", "latency_p95_ms",
    "latency_unreduced_ms", "examples_per_second", "peak_memory_bytes", "log_tail",
}  # fmt: skip


def cells(folder: Path, name: str, stage: str, **content: Any) -> list[Cell]:
    """The runs of a grid on one shipped model."""
    folder.mkdir()
    path = folder / "grid.yaml"
    grid = {
        "base": f"experiments/shapes/{name}.yaml",
        "set": {"data.eval_batch_size": 16, "data.eval_limit": 40, "model.image_weights": None,
                **content.pop("set", {})},
        "axes": {"reducer": REDUCERS, "keep_ratio": [0.7, 0.5], **content},
        "stages": {stage: {}},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(grid))
    read = read_grid(path)
    found: dict[Path, Cell] = {}
    for draft in read.drafts(read.stages[stage], []):
        parsed = worker.parse_draft(draft, None)
        assert not isinstance(parsed, str), parsed
        cell = plan_cell(draft, parsed, None, folder)
        found.setdefault(cell.folder, cell)
    return list(found.values())


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def kept(record: Record) -> dict[str, Any]:
    """What must not depend on how a run was started; JSON, as NaN equals nothing."""
    found = record.model_dump()
    for name in MEASURED:
        found.pop(name)
    found["stated_config"]["trainer"].pop("default_root_dir")
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vqa", "vqa"),
        pytest.param("retrieval", "retrieval", marks=pytest.mark.slow),
        pytest.param("nlvr", "two_images", marks=pytest.mark.slow),
    ],
)
def test_scores_equal_those_of_separate_runs(tmp_path: Path, name: str, weights: str) -> None:
    options = {"model.weights": f"experiments/shapes/models/{weights}.safetensors"}
    alone = cells(tmp_path / "alone", name, "test", set=options)
    together = cells(tmp_path / "together", name, "test", set=options)
    (job,) = make_jobs(together)
    assert len(job.cells) == 1 + 2 * (len(REDUCERS) - 1)
    arguments = [start_arguments(cell) for cell in job.cells]
    assert worker.sweep("g", job.cells, arguments) == 0
    for one, other in zip(alone, together, strict=True):
        assert worker.run(start_arguments(one), "g", "test", one.labels) == 0
        separate, swept = read_record(one.folder), read_record(other.folder)
        assert separate.status == "completed"
        assert kept(swept) == kept(separate)
        scores = read_scores(one.folder)
        assert scores is not None
        assert scores.equals(read_scores(other.folder))
        files = [sorted(each.name for each in x.folder.iterdir()) for x in (one, other)]
        assert SCORES_NAME in files[0]
        assert set(files[0]) - {"metrics.csv"} == set(files[1])
