"""Every experiment file parses, opens with its command, and names what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from elip.training.cli import parse

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for folder in ("", "flickr8k", "paper", "shapes")
    for file in (ROOT / "experiments" / folder).glob("*.yaml")
)


def options(*given: str) -> dict[str, Any]:
    return parse(["fit", *given]).config


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_it_parses(file: Path) -> None:
    assert yaml.safe_load(file.read_text())
    base = ["--config", str(ROOT / "experiments/elip_0.7.yaml")] if file.stem == "quick" else []
    config = options(*base, "--config", str(file))
    assert config["model"]["task"] is not None
    lines = file.read_text().splitlines()
    assert any(f"--config {file.relative_to(ROOT)}" in line for line in lines[:3])
    assert "EXPECT" not in file.read_text()


@pytest.mark.parametrize(
    ("name", "size", "batch", "rate", "head"),
    [
        ("pretrain", 288, 4096, 1e-5, 5),
        ("vqav2", 576, 512, 5e-6, 50),
        ("flickr30k", 384, 512, 5e-6, 5),
        ("coco_retrieval", 384, 512, 5e-6, 5),
        ("nlvr2", 288, 256, 1e-5, 10),
        ("snli_ve", 384, 64, 2e-6, 10),
    ],
)
def test_paper_settings(name: str, size: int, batch: int, rate: float, head: float) -> None:
    config = options("--config", str(ROOT / "experiments" / "paper" / f"{name}.yaml"))
    optimization = config["model"]["optimization"]
    assert config["data"]["image_size"] == size
    assert config["effective_batch_size"] == batch
    assert optimization["learning_rate"] == rate
    assert optimization["head_multiplier"] == head
