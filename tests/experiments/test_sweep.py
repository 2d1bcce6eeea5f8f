"""A sweep leaves for every run what the run would leave alone, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from elip.record import SCORES_NAME, Record, read_record
from experiments import sweep as worker
from experiments.grid import Cell, read_grid
from experiments.jobs import make_jobs, start_arguments

ROOT = Path(__file__).parents[2]
REDUCERS = ["Identity", "Random", "ATS", "ELIP", "TRIPS"]  # content decides how much ATS keeps
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
        cell = worker.parse_draft(draft, folder)
        assert not isinstance(cell, str), cell
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
    ("name", "weights", "stage"),
    [
        ("vqa", "vqa", "test"),
        pytest.param("vqa", "vqa", "predict", marks=pytest.mark.slow),
        pytest.param("retrieval", "retrieval", "test", marks=pytest.mark.slow),
        pytest.param("nlvr", "two_images", "validate", marks=pytest.mark.slow),
    ],
)
def test_results_equal_those_of_separate_runs(
    tmp_path: Path, name: str, weights: str, stage: str
) -> None:
    options = {"model.weights": f"experiments/shapes/models/{weights}.safetensors"}
    alone = cells(tmp_path / "alone", name, stage, set=options)
    together = cells(tmp_path / "together", name, stage, set=options)
    (job,) = make_jobs(together)
    assert len(job.cells) == 1 + 2 * (len(REDUCERS) - 1)
    arguments = [start_arguments(cell) for cell in job.cells]
    assert worker.sweep("g", job.cells, arguments) == 0
    for one, other in zip(alone, together, strict=True):
        assert worker.run(start_arguments(one), "g", stage, one.labels) == 0
        separate, swept = read_record(one.folder), read_record(other.folder)
        assert separate.status == "completed"
        assert kept(swept) == kept(separate)
        files = {path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file()}
        others = {
            path.relative_to(other.folder) for path in other.folder.rglob("*") if path.is_file()
        }
        assert files - {Path("metrics.csv")} == others
        for file in others - {Path("run.json"), Path("config.yaml")}:
            assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes(), file
        written = {"predict": "predictions.jsonl"}.get(stage, SCORES_NAME)
        assert Path(written) in others
