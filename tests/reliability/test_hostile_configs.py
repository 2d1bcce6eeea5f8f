"""Wrong configurations give one message that names the mistake and what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elip.training.cli import run
from tests.reliability.forks import options

pytestmark = pytest.mark.slow

# Options of a fit, and words that the message must contain.
CASES: list[tuple[str, tuple[str, ...]]] = [
    ("--model.reducer=torch.nn.Linear", ("torch.nn.Linear", "Reducer")),
    ("--model.reducer=reducers.contract.Reducer", ("Reducer", "abstract")),
    ("--model.reducer=no_such_package.Mine", ("no_such_package",)),
    ("--data.datasets=[]", ("dataset",)),
    ("--data.datasets=[shapes,shapes]", ("shapes", "once")),
    ("--data.tokenizer=no/such/folder", ("no/such/folder", "tokenizer")),
    ("--model.meter.image_encoder=vit_bse_patch16_224", ("vit_bse_patch16_224",)),
    ("--model.weights=no/such.ckpt", ("no/such.ckpt",)),
    ("--config=no/such.yaml", ("no/such.yaml",)),
    ("--model.schedule.keep_ratio=.nan", ("keep_ratio", "most")),
    ("--model.schedule.layers=[3,2]", ("layer",)),
    ("--model.schedule.profile=[0.4,0.6,0.8]", ("profile",)),
    ("--model.schedule.counts=[10,20,30]", ("counts",)),
    ("--model.meter.image_heads=3", ("image_heads 3",)),
    ("--data.batch_size=0", ("batch", "0")),
    ("--data.image_size=32", ("image_size",)),
    ("--model.optimization.decay_power=cosin", ("cosin",)),
    ("--seed_everything=-1", ("-1",)),
]

FILES: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("empty", b"", ()),
    ("bad_indent", b"model:\n  task: VQA\n data: 3\n", ("bad_indent.yaml",)),
    ("twice", b"data:\n  batch_size: 3\ndata:\n  batch_size: 5\n", ("twice.yaml", "duplicate key")),
    ("unknown_key", b"modl:\n  task: VQA\n", ("modl", "model")),
    ("code", b"seed_everything: !!python/object/apply:os.system ['touch MARK']\n", ("code.yaml",)),
    ("other_command", b"fit:\n  model:\n    task: VQA\n", ("fit",)),
]


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


@pytest.mark.parametrize(("option", "hints"), CASES, ids=[option for option, _ in CASES])
def test_a_wrong_option_is_one_message(
    option: str,
    hints: tuple[str, ...],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(["fit", *options(tmp_path / "run", shapes, 1), option], hints, capsys)
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
    _, _, *given = options(tmp_path / "run", shapes, 1)  # without its --config
    refused(["fit", "--config", str(file), *given], hints, capsys)
    assert sorted(os.listdir(tmp_path)) == [file.name]


@pytest.mark.parametrize(
    ("arguments", "hints"), [(["fti"], ("fti", "fit")), (["fit", "extra"], ("extra",))]
)
def test_a_wrong_command_is_one_message(
    arguments: list[str], hints: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(arguments, hints, capsys)
