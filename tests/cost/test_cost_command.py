"""``python -m elip.cost``: table, CSV and figure; mistakes said in one message."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from elip.cost.__main__ import main
from elip.cost.bench import NO_REDUCTION, _candidates
from elip.model.config import MeterConfig
from elip.schedule import Schedule
from reducers import Host, shelf

EXPERIMENT = """
model:
  reducer: {class_path: ELIP, init_args: {mix: 1, probe_depth: 1}}
  schedule: {layers: [1, 2], keep_ratio: 0.9}
  meter: {image_size: 32, image_width: 16, image_blocks: 4, text_width: 16, fusion_width: 16}
"""
SMALL = ["--rounds", "1", "--batch-sizes", "2", "--keep-ratios", "0.7"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_table_csv_and_figure(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    main(["--config", str(experiment), "--reducers", "ELIP,Random,Identity", *SMALL,
          "--phases", "inference,training", "--output", str(output)])  # fmt: skip
    shown = capsys.readouterr().out
    assert "one multiply-add = 1" in shown
    assert (output / "cost.png").stat().st_size > 10_000
    with (output / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reducer"] for row in rows] == [NO_REDUCTION, "ELIP", "Random"] * 2
    full, elip, random = rows[:3]
    # The experiment's own options are ELIP's: its probe is one row, of which little is asked.
    assert 0 < float(elip["gflops_probe"]) < 0.1 * float(elip["gflops_vision"])
    assert elip["gflops_fusion"] == random["gflops_fusion"] < full["gflops_fusion"]
    assert full["less_work"] == full["faster"] == "1.0"
    assert float(random["less_work"]) == pytest.approx(
        float(full["gflops_total"]) / float(random["gflops_total"])
    )
    assert [row["phase"] for row in rows] == ["inference"] * 3 + ["training"] * 3
    assert float(rows[5]["less_work"]) == pytest.approx(
        float(full["gflops_training_step"]) / float(random["gflops_training_step"])
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reducers", "Randm"], "No reducer 'Randm'. Did you mean Random?"),
        (["--reducers", "no.such.Thing"], "No reducer 'no.such.Thing': No module named 'no'"),
        (["--keep-ratios", "1.5"], "keep_ratio is 1.5; it must be above 0 and at most 1."),
        (["--precisions", "fp8"], "'fp8' is none of fp32, bf16"),
        (["--config", "nowhere.yaml"], "No experiment file nowhere.yaml."),
        (["--batch-sizes", "8,0"], "0 is not a whole number of at least 1"),
        (["--batch-sizes=-1"], "-1 is not a whole number of at least 1"),
        (["--image-sizes", "0"], "0 is not a whole number of at least 1"),
        (["--rounds", "no"], "no is not a whole number of at least 1"),
        (["--device", "foo"], "'foo' is no device of this machine"),
        (["--device", "cuda:99"], "'cuda:99' is no device of this machine"),
        (["--device", "meta"], "'meta' is none of cpu, cuda"),
        (["--reducers", "ELIP:mix=["], "--reducers ELIP:mix=[: mix is no YAML"),
        (["--reducers", "ELIP:mix=much"], "its options are: mix, probe_depth"),
        (["--reducers", "ELIP:mixx=1"], "its options are: mix, probe_depth"),
        (["--reducers", "pathlib.Path"], "'pathlib.Path': it is no subclass of reducers.Reducer"),
        (["--reducers", "reducers.Reducer"], "abstract class"),
        (["--reducers", "damaged.Mine"], "No reducer 'damaged.Mine': invalid syntax"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "damaged.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]", "must be a mapping"),
        ("", "must be a mapping"),
        ("model: {", "is no YAML"),
        ("model: {}\nmodel: {reducer: ELIP}", "'model' stands twice"),
        ("model: [reducer]", "model is ['reducer']; it must be a mapping"),
        ("model: {reducer: [ELIP]}", "model.reducer is ['ELIP']; it must be a mapping"),
        ("model: {reducer: {class_path: 5}}", "No reducer '5'"),
        ("model: {reducer: {class_path: ELIP, init_args: 5}}", "init_args is 5"),
        ("model: {meter: tiny}", "model.meter is 'tiny'; it must be a mapping"),
    ],
)
def test_an_experiment_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(path)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said_before_measuring(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr("elip.cost.__main__.measure", lambda *given, **more: measured)
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(experiment), "--output", str(experiment.parent / ("x" * 300))])
    assert caught.value.code == 2
    assert "File name too long" in capsys.readouterr().err
    (experiment.parent / "out" / "cost.csv").mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        main(["--config", str(experiment), "--output", str(experiment.parent / "out")])
    assert "cost.csv" in capsys.readouterr().err


def test_misspelt_option_of_the_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("model: {meter: {image_sise: 32}}")
    with pytest.raises(SystemExit):
        main(["--config", str(path)])
    assert "image_sise" in capsys.readouterr().err


def test_candidates_share_their_weights_and_methods_keep_their_own() -> None:
    class Scaling(shelf()["Random"]):
        def configure(self, host: Host) -> None:
            self.scale = nn.Linear(host.width, 1)

    config = MeterConfig(image_size=32, image_width=16, image_blocks=4, text_width=16)
    schedule = Schedule(keep_ratio=0.8, layers=(1,), profile=(0.5,))
    cpu = torch.device("cpu")
    base, other = _candidates(config, {"Scaling": Scaling}, [schedule], cpu, False)
    assert (base.name, other.name) == (NO_REDUCTION, "Scaling")
    assert base.meter.plan.keep_ratio == 1
    assert other.meter.plan.keep_ratio == pytest.approx(0.8, abs=0.05)
    shared = dict(base.meter.named_parameters())
    own = {
        name for name, tensor in other.meter.named_parameters() if tensor is not shared.get(name)
    }
    assert own == {"image.reducer.scale.weight", "image.reducer.scale.bias"}
    tensors = [*other.meter.parameters(), *other.meter.buffers()]
    assert {tensor.device for tensor in tensors} == {cpu}
