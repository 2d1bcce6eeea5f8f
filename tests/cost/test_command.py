"""``python -m elip.cost``: tables, CSV, figure and error messages."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from elip.cost.__main__ import main

EXPERIMENT = """
model:
  reducer: {class_path: ELIP, init_args: {mix: 1, probe_depth: 1}}
  schedule: {layers: [1], keep_ratio: 0.9}
  meter: {image_size: 32, image_width: 16, image_blocks: 4, text_width: 16, fusion_width: 16}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_tables_csv_and_figure(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    main(["--config", str(experiment), "--reducers", "ELIP", "Random", "Identity", "PuMer",
          "--check", "--rounds", "1", "--batch_sizes", "2", "--keep_ratios", "0.7",
          "--phases", "inference", "training", "--output", str(output)])  # fmt: skip
    shown = capsys.readouterr().out
    assert "one multiply-add = 1" in shown
    assert "efficiency" in shown
    assert (output / "cost.pdf").read_bytes().startswith(b"%PDF")
    rows = pd.read_csv(output / "cost.csv")
    assert list(rows["reducer"]) == ["No reduction", "ELIP", "Random", "PuMer"] * 2
    full, elip, random, pumer = (row for _, row in rows[:4].iterrows())
    # ELIP has the experiment's options: its probe computes one row.
    assert 0 < elip["gflops_probe"] < 0.1 * elip["gflops_vision"]
    assert elip["gflops_fusion"] == random["gflops_fusion"] < full["gflops_fusion"]
    assert full["flops_speedup"] == full["latency_speedup"] == full["efficiency"] == 1
    assert random["flops_speedup"] == pytest.approx(full["gflops_total"] / random["gflops_total"])
    assert random["efficiency"] == pytest.approx(
        random["latency_speedup"] / random["flops_speedup"]
    )
    assert pumer["keep_ratio"] == 1
    assert pumer["fusion_keep_ratio"] < 1
    assert elip["operators"] > full["operators"]
    step = rows["gflops_training_step"]
    assert rows["flops_speedup"][6] == pytest.approx(step[4] / step[6])


def test_count_only(experiment: Path, tmp_path: Path) -> None:
    main(["--config", str(experiment), "--keep_ratios", "own", "--rounds", "0",
          "--output", str(tmp_path)])  # fmt: skip
    rows = pd.read_csv(tmp_path / "cost.csv")
    assert "latency_ms" not in rows
    assert rows["keep_ratio"][1] == pytest.approx(0.9, abs=0.05)


def test_a_reducer_in_the_fusion_costs_the_encoder_nothing(
    experiment: Path, tmp_path: Path
) -> None:
    main(["--config", str(experiment), "--reducers", "PuMer", "--keep_ratios", "0.7", "--rounds",
          "0", "--phases", "encoder", "--batch_sizes", "1", "--output", str(tmp_path)])  # fmt: skip
    full, pumer = pd.read_csv(tmp_path / "cost.csv")["gflops"]
    assert pumer == full


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reducers", "Randm"], "No reducer 'Randm'. Did you mean Random"),
        (["--reducers", "pathlib.Path"], "pathlib has no reducer class 'Path'."),
        (["--reducers", "ELIP:mixx=1"], "unexpected keyword argument 'mixx'"),
        (["--keep_ratios", "1.5"], "keep_ratio is 1.5; it must be above 0 and at most 1."),
        (["--device", "foo"], "device string: foo"),
    ],
)
def test_errors(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--output", str(tmp_path)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[model]", "model: {meter: {image_sise: 32}}"])
def test_broken_experiment_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "experiment.yaml"), "--output", str(tmp_path)])
    assert "experiment.yaml" in capsys.readouterr().err
