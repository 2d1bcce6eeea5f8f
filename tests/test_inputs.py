"""What a run reads beside its configuration is told by content, never by name."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from elip.inputs import code_digests, file_digest, input_files, read_origin
from elip.old_record import Earlier, Origin, origin_as_json
from elip.tasks.vqa import VQA
from reducers.random import Random


def test_files_and_folders_count_by_what_they_hold(tmp_path: Path) -> None:
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "weights.bin").write_text(content)
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    files = [tmp_path / name / "below" / "weights.bin" for name in "abc"]
    assert file_digest(files[0]) == file_digest(files[1]) != file_digest(files[2])
    (tmp_path / "b" / "below" / "weights.bin").rename(tmp_path / "b" / "below" / "renamed.bin")
    assert file_digest(tmp_path / "b") != a


def test_a_text_encoder_counts_by_what_its_configuration_says_of_it(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "config.json").write_text(text)
        return file_digest(tmp_path / "config.json")

    config = {"model_type": "roberta", "num_attention_heads": 2, "hidden_act": "gelu"}
    noted = {"transformers_version": "5.3", "_name_or_path": "/a", "architectures": ["A"],
             "torch_dtype": "float32", "dtype": "float32"}  # fmt: skip
    plain = digest(json.dumps(config))
    assert digest(json.dumps({**noted, **dict(reversed(config.items()))}, indent=2)) == plain
    others = [digest(json.dumps({**config, name: 4})) for name in (*config, "layer_norm_eps")]
    others += [digest(text) for text in ("", "{", "[]", "null", "[" * 100_000)]
    assert len({plain, *others}) == len(others) + 1


def test_what_a_run_starts_from_is_found_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {}}, best)
    (tmp_path / "text").mkdir()
    model = {
        "weights": "~/run", "text_weights": "~/text", "image_weights": "vit_base_patch16_224",
        "meter": {"text_encoder": "roberta-base"},
    }  # fmt: skip
    config = {"model": model, "ckpt_path": str(best)}
    texts = {"model.weights": best, "model.text_weights": tmp_path / "text"}
    assert input_files("fit", config) == texts
    assert input_files("test", config) == {**texts, "ckpt_path": best}
    assert input_files("test", {"model": {"weights": "nowhere"}}) == {}


def test_code_counts_by_what_it_does_with_all_that_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper, code = tmp_path / "own_helper.py", tmp_path / "own_reducer.py"
    helper.write_text("SIGN = 1\n")
    code.write_text("from own_helper import SIGN\n\nclass Mine:\n    sign = SIGN\n")

    def digest() -> str:
        found = code_digests([mine, type(None)])
        assert list(found) == ["code of Mine"]
        return found["code of Mine"]

    try:
        mine = importlib.import_module("own_reducer").Mine
        before = digest()
        code.write_text(f'"""Said."""\n{code.read_text()}# and more\n')
        assert digest() == before
        helper.write_text("SIGN = -1\n")
        turned = digest()
        code.write_text(code.read_text() + "    more = 1\n")
        assert len({before, turned, digest()}) == 3
    finally:
        for name in ("own_helper", "own_reducer"):
            sys.modules.pop(name, None)


def test_code_of_a_method_of_the_shelf_counts_and_of_a_task_its_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = code_digests([Random, VQA])
    assert list(found) == ["code of Random"]
    unparse = ast.unparse
    monkeypatch.setattr(ast, "unparse", lambda tree: unparse(tree) + "\nedited = True")
    assert code_digests([Random]) != found


def test_code_counts_with_the_classes_that_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    base = tmp_path / "own_base.py"
    base.write_text("from reducers.random import Random\n\nclass Base(Random): a = 1\n")
    (tmp_path / "own_child.py").write_text("from own_base import Base\n\nclass Mine(Base): b = 1\n")
    try:
        mine = importlib.import_module("own_child").Mine
        before = code_digests([mine])
        base.write_text(base.read_text().replace("a = 1", "a = 2"))
        after = code_digests([mine])
    finally:
        for name in ("own_base", "own_child"):
            sys.modules.pop(name, None)
    assert list(before) == list(after) == ["code of Mine"]
    assert before != after


def test_an_origin_travels_in_checkpoints_and_weights_files(tmp_path: Path) -> None:
    config = {"trainer": {"max_time": float("inf")}, "data": {"root": "a"}}
    before = Origin({"seed_everything": 1}, {"data": "d"})
    origin = Origin(config, {"data": "e"}, (Earlier(3, {"x": None}),), 2, origin=before)
    recorder = {"origin": origin_as_json(origin)}
    content = {"callbacks": {"Recorder": recorder}, "global_step": 7, "state_dict": {}}
    (tmp_path / "checkpoints").mkdir()
    for name, kept in (("a", None), ("best", None), ("checkpoints/a", None),
                       ("checkpoints/best", "best"), ("checkpoints/last", "last")):  # fmt: skip
        torch.save(content, tmp_path / f"{name}.ckpt")
        found = read_origin(tmp_path / f"{name}.ckpt")
        assert found == replace(origin, steps=7, kept=kept)
    handed_on = {"origin": origin_as_json(found)}
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=handed_on)
    assert read_origin(tmp_path / "a.safetensors") == found


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x80\x02junk"])
@pytest.mark.parametrize("name", ["weights.ckpt", "weights.safetensors", "missing"])
def test_what_says_no_origin_has_none(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name.replace("missing", "other")).write_bytes(content)
    assert read_origin(tmp_path / name) is None


@pytest.mark.parametrize("origin", ["{}", "[]", "not json", 3, {"config": {}}])
def test_a_damaged_origin_is_none(origin: object, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"callbacks": {"Recorder": {"origin": origin}}, "state_dict": {}}, path)
    assert read_origin(path) is None
    torch.save({"callbacks": [], "state_dict": {}}, path)
    assert read_origin(path) is None
