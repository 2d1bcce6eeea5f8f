"""Who a run is: what counts and what does not, and what a checkpoint says of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from elip.identity import (
    INFO_KEY,
    CheckpointError,
    arrow_fingerprint,
    checkpoint_path,
    content_fingerprint,
    differences,
    digest,
    directory_name,
    find_checkpoint,
    identifying,
    method_name,
    protocol_options,
    read_checkpoint_info,
    run_id,
    source_fingerprint,
)
from elip.record import CheckpointInfo, RunHeader
from reducers.elip import ELIP

STATED = {
    "seed_everything": 1,
    "model": {"reducer": {"class_path": "ELIP"}, "weights": "a.ckpt", "task": "VQA"},
    "trainer": {"max_steps": 9, "devices": 2, "precision": "32-true"},
}
HEADER = RunHeader(
    run_id="0a", command="fit", reducer="ELIP", method="ELIP 0.7", protocol="p", checkpoint="best"
)


def test_machine_options_do_not_change_the_run_id() -> None:
    moved = {**STATED, "trainer": {"max_steps": 9, "accelerator": "gpu", "logger": False}}
    assert run_id("fit", moved, None) == run_id("fit", STATED, None)
    for other in ({"max_steps": 10}, {"max_steps": 9, "precision": "bf16-mixed"}):
        assert run_id("fit", {**STATED, "trainer": other}, None) != run_id("fit", STATED, None)
    assert run_id("fit", STATED, "0a") != run_id("fit", STATED, None)
    assert run_id("test", STATED, None) != run_id("fit", STATED, None)


def test_training_options_do_not_change_the_id_of_a_test() -> None:
    longer = {**STATED, "trainer": {"max_steps": 10}}
    assert run_id("test", longer, "0a") == run_id("test", STATED, "0a")
    assert identifying("test", STATED) == {
        "seed_everything": 1,
        "model.reducer.class_path": "ELIP",
        "model.task": "VQA",
    }


def test_the_protocol_leaves_out_method_and_seed() -> None:
    options = protocol_options("fit", STATED, {"data/train": "x"}, HEADER, 64)
    assert options == {
        "command": "fit",
        "model.task": "VQA",
        "trainer.max_steps": 9,
        "fingerprint.data/train": "x",
        "examples_per_step": 64,
        "parent.protocol": "p",
        "parent.checkpoint": "best",
    }
    other = {**STATED, "seed_everything": 2, "model": {"task": "VQA", "schedule": {"counts": [3]}}}
    assert digest(protocol_options("fit", other, {"data/train": "x"}, HEADER, 64)) == digest(
        options
    )
    assert differences(options, {**options, "trainer.max_steps": 8}) == {
        "trainer.max_steps": (9, 8)
    }


@pytest.mark.parametrize(
    ("reducer", "schedule", "said", "folder"),
    [
        ("ELIP", {"keep_ratio": 0.7}, "ELIP 0.7", "ELIP-0.7-s0-ab"),
        ("ELIP", {"counts": [44, 34]}, "ELIP 44/34", "ELIP-44_34-s0-ab"),
        ("ELIP", {"keep_ratio": None}, "ELIP profile", "ELIP-profile-s0-ab"),
        ("Identity", {"keep_ratio": 0.7}, "No reduction", "Identity-s0-ab"),
    ],
)
def test_names_of_methods_and_directories(
    reducer: str, schedule: dict[str, object], said: str, folder: str
) -> None:
    assert method_name(reducer, schedule) == said
    assert directory_name(reducer, schedule, 0, "ab") == folder


def test_checkpoints_and_exported_weights_carry_their_run(tmp_path: Path) -> None:
    info = CheckpointInfo(lineage=(HEADER,), stated_config=STATED)
    torch.save({"state_dict": {}, INFO_KEY: info.model_dump_json()}, tmp_path / "a.ckpt")
    exported = safetensors.torch.save(
        {"a": torch.ones(2)}, metadata={INFO_KEY: info.model_dump_json()}
    )
    (tmp_path / "a.safetensors").write_bytes(exported)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04")
    for name in ("a.ckpt", "a.safetensors"):
        assert read_checkpoint_info(tmp_path / name) == info
    for name in ("foreign.ckpt", "broken.ckpt"):
        assert read_checkpoint_info(tmp_path / name) is None


def test_a_run_directory_means_its_best_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CheckpointError, match="Run fit first"):
        find_checkpoint(tmp_path)
    best, last = (checkpoint_path(tmp_path, name) for name in ("best", "last"))
    best.parent.mkdir()
    torch.save({}, last)
    assert find_checkpoint(tmp_path) == last
    assert "missing or incomplete; using" in caplog.text
    torch.save({}, best)
    assert find_checkpoint(tmp_path) == best
    assert find_checkpoint(tmp_path, "last") == last
    assert find_checkpoint(tmp_path / "other.pt") == tmp_path / "other.pt"
    for path in (best, last):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoint(tmp_path)


def test_data_fingerprints_depend_on_names_sizes_and_rows(tmp_path: Path) -> None:
    def written(name: str, values: list[int]) -> Path:
        table = pa.table({"a": values})
        with (
            pa.OSFile(str(tmp_path / name), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as f,
        ):
            f.write_table(table)
        return tmp_path / name

    first = arrow_fingerprint([written("a.arrow", [1, 2])])
    assert arrow_fingerprint([written("a.arrow", [1, 2])]) == first
    assert arrow_fingerprint([written("a.arrow", [1, 2, 3])]) != first
    assert arrow_fingerprint([written("b.arrow", [1, 2])]) != first


def test_weights_fingerprints_depend_on_content_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes())
    first = content_fingerprint(tmp_path / "a.npy")
    assert content_fingerprint(tmp_path / "b.npy") == first
    np.save(tmp_path / "a.npy", np.arange(4))
    assert content_fingerprint(tmp_path / "a.npy") != first


class Mine(ELIP):
    """A reducer outside the repository's packages."""


def test_code_outside_the_repository_has_a_fingerprint() -> None:
    assert source_fingerprint(ELIP) is None
    assert source_fingerprint(Mine) is not None
