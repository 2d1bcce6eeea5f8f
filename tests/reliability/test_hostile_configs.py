"""Wrong configurations give one message that names the mistake and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elip.training.cli import run
from tests.reliability.forks import CONFIG

pytestmark = pytest.mark.slow

REDUCER = "model.reducer"
SCHEDULE = "model.schedule"
METER = "model.meter"

# Options of a fit, and words that the message must contain.
CASES: list[tuple[str, tuple[str, ...]]] = [
    # names
    (f"--{REDUCER}=ELPI", ("ELPI", "ELIP")),
    (f"--{REDUCER}=torch.nn.Linear", ("torch.nn.Linear", "Reducer")),
    (f"--{REDUCER}=reducers.contract.Reducer", ("Reducer", "abstract")),
    (f"--{REDUCER}=no_such_package.Mine", ("no_such_package",)),
    ("--model.task=Classification", ("Classification",)),
    ("--data.datasets=[]", ("dataset",)),
    ("--data.datasets=[shapes,shapes]", ("shapes", "once")),
    ("--data.tokenizer=no/such/folder", ("no/such/folder", "tokenizer")),
    (f"--{METER}.image_encoder=vit_bse_patch16_224", ("vit_bse_patch16_224",)),
    ("--model.weights=no/such.ckpt", ("no/such.ckpt",)),
    ("--config=no/such.yaml", ("no/such.yaml",)),
    # schedule
    *[(f"--{SCHEDULE}.keep_ratio={value}", ("keep_ratio", value.strip("-."))) for value in
      (".nan", "most")],
    *[(f"--{SCHEDULE}.layers={value}", ("layer",)) for value in
      ("[]", "[3,2]")],
    *[(f"--{SCHEDULE}.profile={value}", ("profile",)) for value in
      ("[0.4,0.6,0.8]",)],
    *[(f"--{SCHEDULE}.counts={value}", ("counts",)) for value in
      ("[10,20,30]", "[999,9,8]")],
    # sizes
    (f"--{METER}.patch_size=0", ("patch_size", "0")),
    (f"--{METER}.image_heads=3", ("image_heads 3",)),
    (f"--{METER}.text_width=128", ("widths must be equal",)),
    # data
    ("--data.batch_size=0", ("batch", "0")),
    ("--data.image_size=32", ("image_size",)),
    # optimisation, trainer, seed
    *[(f"--model.optimization.learning_rate={value}", ("learning_rate",)) for value in
      ("nan",)],
    ("--model.optimization.decay_power=cosin", ("cosin",)),
    ("--model.optimization.end_learning_rate=1", ("end_learning_rate is 1.0", "at most")),
    ("--trainer.max_steps=-7", ("max_steps", "-7")),
]  # fmt: skip

FILES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("empty", b"", ()),
    ("bad_indent", b"model:\n  task: VQA\n data: 3\n", ("bad_indent.yaml",)),
    ("twice", b"data:\n  batch_size: 3\ndata:\n  batch_size: 5\n", ("twice.yaml", "duplicate key")),
    ("unknown_key", b"modl:\n  task: VQA\n", ("modl", "model")),
    ("code", b"seed_everything: !!python/object/apply:os.system ['touch MARK']\n", ("code.yaml",)),
    ("other_command", b"fit:\n  model:\n    task: VQA\n", ("fit",)),
    ("class_twice", b"model:\n  reducer: {class_path: {class_path: ELIP}}\n", ("reducer",)),
]  # fmt: skip


def refused(
    arguments: list[str], hints: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    errors = said[said.index("error: ") :]
    assert "Traceback" not in said
    assert len(errors.splitlines()) <= 12, errors
    for hint in hints:
        assert hint in errors, errors


def some(shapes: Path, root: Path) -> list[str]:
    return [
        f"--data.root={shapes}",
        "--data.batch_size=4",
        "--model.image_weights=null",
        "--data.train_limit=20",
        "--data.eval_limit=16",
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={root}",
    ]


@pytest.mark.parametrize(("option", "hints"), CASES, ids=[option for option, _ in CASES])
def test_a_wrong_option_is_one_message(
    option: str,
    hints: tuple[str, ...],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["fit", "--config", CONFIG, *some(shapes, tmp_path / "run"), option]
    refused(arguments, hints, capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(("name", "content", "hints"), FILES, ids=[name for name, *_ in FILES])
def test_a_wrong_file_is_one_message(
    name: str,
    content: bytes,
    hints: tuple[str, ...],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"{name}.yaml"
    file.write_bytes(content)
    refused(["fit", "--config", str(file), *some(shapes, tmp_path / "run")], hints, capsys)
    assert not (tmp_path / "MARK").exists()
    assert sorted(os.listdir(tmp_path)) == [file.name]


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (["fti"], ("fti", "fit")),
        (["fit", "extra"], ("extra",)),
        (["fit", "--config"], ("config",)),
        (["fit", "--model.reducer.help=ELPI"], ("ELPI", "ELIP")),
    ],
)
def test_a_wrong_command_is_one_message(
    arguments: list[str], hints: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments, hints, capsys)
