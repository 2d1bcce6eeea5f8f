"""Wrong configurations: one message that names the culprit and what would be right."""

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

# Options of a fit, and words that the message must have: the culprit, and what would be right.
CASES: list[tuple[str, tuple[str, ...]]] = [
    # names
    (f"--{REDUCER}=ELPI", ("ELPI", "ELIP")),
    (f"--{REDUCER}=elip", ("elip", "ELIP")),
    (f"--{REDUCER}=Tome", ("Tome", "ToMe")),
    (f"--{REDUCER}=torch.nn.Linear", ("torch.nn.Linear", "Reducer")),
    (f"--{REDUCER}=reducers.contract.Reducer", ("Reducer", "abstract")),
    (f"--{REDUCER}=no_such_package.Mine", ("no_such_package",)),
    (f"--{REDUCER}.mixx=0.5", ("mixx", "mix")),
    (f"--{REDUCER}.mix=much", ("mix", "much")),
    (f"--{REDUCER}.mix=3", ("mix", "between 0 and 1")),
    ("--model.task=Pretrainin", ("Pretrainin", "Pretraining")),
    ("--model.task=Classification", ("Classification",)),
    ("--data.datasets=shaps", ("shaps", "shapes")),
    ("--data.datasets=[]", ("dataset",)),
    ("--data.datasets=[shapes,shapes]", ("shapes", "once")),
    ("--data.tokenizer=no/such/folder", ("no/such/folder", "tokenizer")),
    (f"--{METER}.preset=tinny", ("tinny", "tiny")),
    (f"--{METER}.image_encoder=vit_bse_patch16_224", ("vit_bse_patch16_224",)),
    ("--model.weights=no/such.ckpt", ("no/such.ckpt",)),
    ("--ckpt_path=last", ("run fit first",)),
    ("--config=no/such.yaml", ("no/such.yaml",)),
    # schedule
    *[(f"--{SCHEDULE}.keep_ratio={value}", ("keep_ratio", value.strip("-."))) for value in
      ("0", "1.5", ".nan", "most", "[0.5]")],
    *[(f"--{SCHEDULE}.layers={value}", ("layer",)) for value in
      ("[2,40]", "[]", "[3,2]", "[a]")],
    *[(f"--{SCHEDULE}.profile={value}", ("profile",)) for value in
      ("[0.9]", "[0.4,0.6,0.8]", "[nan,0.5,0.4]")],
    *[(f"--{SCHEDULE}.counts={value}", ("counts",)) for value in
      ("[10,20,30]", "[0,0,0]", "[10]", "[999,9,8]", "ten")],
    # sizes
    (f"--{METER}.image_size=65", ("65", "patch_size 8")),
    (f"--{METER}.patch_size=0", ("patch_size", "0")),
    (f"--{METER}.image_heads=3", ("image_heads 3",)),
    (f"--{METER}.text_width=128", ("widths must be equal",)),
    (f"--{METER}.dropout=1", ("dropout", "1")),
    (f"--{METER}.max_text_len=2", ("max_text_len", "at least 3")),
    (f"--{METER}.vocab_size=10", ("vocab_size", "10")),
    # data
    ("--data.batch_size=0", ("batch", "0")),
    ("--data.train_limit=0", ("train_limit", "0")),
    ("--data.image_size=32", ("image_size",)),
    ("--effective_batch_size=9", ("effective_batch_size 9",)),
    # optimisation, trainer, seed
    *[(f"--model.optimization.learning_rate={value}", ("learning_rate",)) for value in
      ("0", "-1", "nan", "inf", "fast")],
    ("--model.optimization.decay_power=cosin", ("cosin",)),
    ("--model.optimization.end_learning_rate=1", ("end_learning_rate is 1.0", "at most")),
    ("--model.optimization.betas=[2,3]", ("betas",)),
    ("--trainer.max_steps=-7", ("max_steps", "-7")),
    ("--trainer.devices=0", ("devices", "0")),
    ("--seed_everything=-1", ("seed", "-1")),
    ("--weights_only=false", ("weights_only",)),
]  # fmt: skip

FILES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("empty", b"", ()),
    ("no_mapping", b"- a\n- b\n", ("no_mapping.yaml",)),
    ("a_word", b"hello", ("a_word.yaml",)),
    ("bad_indent", b"model:\n  task: VQA\n data: 3\n", ("bad_indent.yaml",)),
    ("tab", b"model:\n\ttask: VQA\n", ("tab.yaml",)),
    ("twice", b"data:\n  batch_size: 3\ndata:\n  batch_size: 5\n", ("twice.yaml", "'data' stands")),
    ("no_text", bytes(range(256)), ("no_text.yaml",)),
    ("cut", b"model: {task: VQA", ("cut.yaml",)),
    ("unknown_key", b"modl:\n  task: VQA\n", ("modl", "model")),
    ("code", b"seed_everything: !!python/object/apply:os.system ['touch MARK']\n", ("code.yaml",)),
    ("code_new", b"data: !!python/object/new:os.system ['touch MARK']\n", ("code_new.yaml",)),
    ("code_name", b"model: !!python/name:os.system\n", ("code_name.yaml",)),
    ("other_command", b"fit:\n  model:\n    task: VQA\n", ("fit",)),
    ("null_model", b"model: null\n", ("model",)),
    ("class_twice", b"model:\n  reducer: {class_path: {class_path: ELIP}}\n", ("reducer",)),
    ("no_init_args", b"model:\n  reducer: {class_path: ELIP, mix: 0.3}\n", ("mix",)),
    ("deep", b"a: " + b"[" * 3000 + b"]" * 3000, ("deep.yaml",)),
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
        (["--seed_everything", "1"], ("command",)),
        (["fit", "--model.reducer.help=ELPI"], ("ELPI", "ELIP")),
        (["fit"], ("model.task",)),
    ],
)
def test_a_wrong_command_is_one_message(
    arguments: list[str], hints: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments, hints, capsys)
