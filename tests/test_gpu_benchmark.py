"""The GPU benchmark runs at tiny size on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
gpu = sys.modules["gpu"] = importlib.util.module_from_spec(spec)  # processes find it by name
spec.loader.exec_module(gpu)


@pytest.mark.slow
def test_every_part_writes_results(tmp_path: Path) -> None:
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "error" in line or "stopped_before" in line]
    parts = {line["part"] for line in lines}
    assert parts == {"machine", "end", *(part.__name__ for part in gpu.PARTS)}
    smoke = [line for line in lines if line["part"] == "smoke"]
    assert all(line["ran"] == 30 and line["failures"] == line["waits"] == [] for line in smoke)
    agreement = [line for line in lines if line["part"] == "agreement"]
    assert all(line["largest_difference"] == 0 for line in agreement)
    speed = [line for line in lines if line["part"] == "speed" and line["batch_size"] > 1]
    assert speed[0]["flops_speedup"] == speed[0]["latency_speedup"] == 1
    assert all(line["flops_speedup"] > 1 for line in speed if line["reducer"] == "ToMe")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_error_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path / "gpu.jsonl")])
    assert "no GPU here; --tiny" in capsys.readouterr().err
