"""Weights: every tensor is accounted for, no file runs code, errors name the file."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel

from elip.identity import INFO_KEY, read_checkpoint_info
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import CheckpointInfo, RunHeader
from elip.tasks import tasks
from elip.weights import (
    export,
    from_meter,
    load_image_weights,
    load_text_weights,
    load_weights,
    main,
    read_state,
    resize_positions,
)

# Tensors that METER stores and never uses.
DEAD = {
    "vit_model.positional_embedding", "vit_model.ln_final.weight", "vit_model.ln_final.bias",
    "text_transformer.pooler.dense.weight", "text_transformer.pooler.dense.bias",
    "text_transformer.embeddings.position_ids",
}  # fmt: skip


class Whole(nn.Module):
    def __init__(self, meter: nn.Module, task: nn.Module | None = None) -> None:
        super().__init__()
        self.meter = meter
        self.task = task or nn.Module()


@pytest.fixture(scope="module")
def tiny() -> Meter:
    torch.manual_seed(0)
    return Meter(MeterConfig().resolve(), vocab_size=50)


def ours(meter: Meter) -> dict[str, Tensor]:
    return {f"meter.{name}": value for name, value in meter.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "task", "answers"),
    [
        ("pretrain_288", "Pretraining", 0),
        ("irtr_f30k_384", "Retrieval", 0),
        ("nlvr2_288", "NLVR2", 2),
        ("snli_384", "SNLIVE", 3),
        ("vqa_576", "VQA", 3129),
    ],
)
def test_every_published_key_is_accounted_for(
    golden: Path, name: str, task: str, answers: int
) -> None:
    about = json.loads((golden / "meter" / f"keys_meter_clip16_roberta_{name}.json").read_text())
    size = int(name.rsplit("_", 1)[1])
    with torch.device("meta"):
        state = {
            key: torch.empty(shape, dtype=getattr(torch, dtype))
            for key, (dtype, shape) in about["state_dict"].items()
        }
        meter = Meter(MeterConfig("clip16_roberta", image_size=size).resolve())
        head = tasks()[task]()
        head.build(meter, answers)
    renamed, unknown = from_meter(state)
    assert set(unknown) == DEAD
    target = Whole(meter, head).state_dict()
    left = {key for key in renamed if key not in target}
    assert left == ({"task.itm.weight", "task.itm.bias"} if task == "Retrieval" else set())
    assert not set(target) - set(renamed)
    assert all(renamed[key].shape == target[key].shape for key in target)


@pytest.mark.parametrize("form", ["plain", "DDP", "DeepSpeed", "old Lightning"])
def test_a_meter_checkpoint_is_read_in_every_wrapping(
    golden: Path, tmp_path: Path, form: str
) -> None:
    state = {
        **read_state(golden / "meter" / "w_a.vit.safetensors"),
        **read_state(golden / "meter" / "w_a.rest.safetensors"),
    }
    prefixed = {f"module.{name}": value for name, value in state.items()}
    content: Any = {
        "plain": state,
        "DDP": {"state_dict": prefixed},
        "DeepSpeed": {"module": prefixed, "ds_version": "0.9"},
        "old Lightning": {"state_dict": state, "callbacks": {Whole: Dangerous(tmp_path / "mark")}},
    }[form]
    torch.save(content, tmp_path / "meter.ckpt")
    found = read_state(tmp_path / "meter.ckpt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert not (tmp_path / "mark").exists()


def clip_state(width: int, blocks: int, patches: int, patch: int) -> dict[str, Tensor]:
    """An image tower under OpenAI's names, with a projection too many."""
    state = {
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(1 + patches, width),
        "visual.conv1.weight": torch.randn(width, 3, patch, patch),
        "visual.proj": torch.randn(width, 32),
        "input_resolution": torch.tensor(224),
    }
    norms = ["visual.ln_pre", "visual.ln_post"]
    for block in range(blocks):
        prefix = f"visual.transformer.resblocks.{block}"
        norms += [f"{prefix}.ln_1", f"{prefix}.ln_2"]
        for name, rows, columns in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            state[f"{prefix}.{name}weight"] = torch.randn(rows, columns)
            state[f"{prefix}.{name}bias"] = torch.randn(rows)
    return state | {f"{n}.{kind}": torch.randn(width) for n in norms for kind in ("weight", "bias")}


def scripted(state: dict[str, Tensor], path: Path) -> None:
    archive = nn.Module()
    for name, value in state.items():
        *parents, last = name.split(".")
        module = archive
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        if value.is_floating_point():
            module.register_parameter(last, nn.Parameter(value))
        else:
            module.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(archive), path)


@pytest.mark.parametrize("form", ["plain", "torchscript", "half"])
def test_clip_archives(tiny: Meter, tmp_path: Path, form: str) -> None:
    state = clip_state(64, blocks=6, patches=64, patch=8)
    file = tmp_path / "clip.pt"
    if form == "torchscript":
        scripted(state, file)
    else:
        torch.save({k: v.half() for k, v in state.items()} if form == "half" else state, file)
    report = load_image_weights(tiny, str(file))
    assert not report.missing
    assert {"visual.proj", "input_resolution"} <= set(report.unused)
    assert {name.split(".")[1] for name in report.unused if name.startswith("blocks")} == {"5"}
    want = state["visual.transformer.resblocks.3.attn.in_proj_weight"]
    want = want.half().float() if form == "half" else want
    assert torch.equal(tiny.image.vit.blocks[3].attn.qkv.weight, want)


@pytest.mark.parametrize(
    ("encoder", "width", "right"),
    [
        ("vit_base_patch16_clip_224.openai", 768, r"vit_base_patch16_clip_quickgelu_224\.openai"),
        ("vit_tiny_patch16_224", 192, "vit or a timm model"),
    ],
)
def test_weights_of_quickgelu_are_refused_for_another_activation(
    encoder: str, width: int, right: str, tmp_path: Path
) -> None:
    sizes = MeterConfig(image_encoder=encoder, image_blocks=1, image_size=32)
    meter = Meter(sizes.resolve(), vocab_size=50)
    torch.save(clip_state(width, 1, 4, 16), tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match=rf"QuickGELU.*has GELU.*image_encoder to {right}"):
        load_image_weights(meter, str(tmp_path / "ViT-B-16.pt"))


def test_a_text_encoder_comes_from_a_folder_and_missing_tensors_are_reported(
    tiny: Meter, tmp_path: Path
) -> None:
    other = AutoModel.from_config(tiny.text.transformer.config)
    other.save_pretrained(tmp_path)
    assert not load_text_weights(tiny, str(tmp_path)).missing
    place = tiny.text.transformer.encoder.layer[0].output.dense.weight
    assert torch.equal(place, other.encoder.layer[0].output.dense.weight)
    file, lost = tmp_path / "model.safetensors", "encoder.layer.0.output.dense.weight"
    state = {k: v for k, v in read_state(file).items() if k != lost}
    save_file(state | {"stray": torch.ones(1)}, file, {"format": "pt"})
    report = load_text_weights(tiny, str(tmp_path))
    assert report.missing == (lost,)
    assert "stray" in report.unused


def test_weights_of_encoders_may_be_in_the_home_folder(
    tiny: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(tiny.image.vit.state_dict(), tmp_path / "image.pt")
    assert not load_image_weights(tiny, "~/image.pt").missing


def test_an_image_encoder_that_cannot_be_found_is_named(tiny: Meter) -> None:
    with pytest.raises(FileNotFoundError, match="neither a file nor a timm model"):
        load_image_weights(tiny, "nowhere.pt")


# --- damaged and malicious files


class Dangerous:
    """Runs code when it is unpickled the usual way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["beside", "inside", "instead", "legacy", "script"])
def test_no_code_runs_from_weights(tmp_path: Path, place: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    evil, good = Dangerous(mark), {"meter.weight": torch.ones(3, 4), "meter.bias": torch.ones(3)}
    content = {
        "beside": {"state_dict": good, "hyper_parameters": evil},
        "inside": {"state_dict": good | {"meter.evil": evil}},
    }.get(place, evil)
    torch.save(content, path, _use_new_zipfile_serialization=place != "legacy")
    if place == "script":
        scripted(good, tmp_path / "whole")
        with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(path, "w") as out:
            for name in whole.namelist():
                harm = name.endswith("/data.pkl")
                out.writestr(name, pickle.dumps(evil, 2) if harm else whole.read(name))
    try:
        report = load_weights(Whole(nn.Linear(4, 3)), str(path))
        assert place in ("beside", "inside")
        assert len(report.used) == 2
    except ValueError as error:
        assert "evil.pt" in str(error)  # noqa: PT017  (the good tensors beside it may be read)
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil))  # noqa: S301  (the same bytes do run code: the test can fail)
    assert mark.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "script"])
def test_a_half_written_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("damaged.safetensors" if kind == "safetensors" else "damaged.pt")
    state = {"meter.weight": torch.ones(3, 4)}
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "script":
        scripted(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    assert read_state(path).keys() == state.keys()
    for part in range(6):
        path.write_bytes(whole[: len(whole) * part // 6])
        with pytest.raises(ValueError, match=r"damaged\."):
            read_state(path)


def test_a_run_with_a_half_written_checkpoint_is_refused(tiny: Meter, tmp_path: Path) -> None:
    path = run_of(tmp_path / "run", ours(tiny)) / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load_weights(Whole(tiny), str(tmp_path / "run"))


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"meter.weight": "x"}}], ids=str)
def test_a_file_without_weights_says_what_it_holds(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt holds"):
        read_state(tmp_path / "other.pt")


def test_tensors_that_do_not_fit_are_named(tiny: Meter, tmp_path: Path) -> None:
    torch.save(ours(tiny) | {"meter.token_types.weight": torch.ones(3, 65)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"token_types.weight is \(3, 65\), expected \(3, 64\)"):
        load_weights(Whole(tiny), str(tmp_path / "a.pt"))


def test_weights_of_another_kind_are_named(tiny: Meter, tmp_path: Path) -> None:
    torch.save(clip_state(64, 5, 64, 8), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"is not a METER checkpoint.*image_weights"):
        load_weights(Whole(tiny), str(tmp_path / "clip.pt"))
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        load_weights(Whole(tiny), str(tmp_path / "gone.pt"))


def test_the_rank_head_starts_from_the_matching_head(tiny: Meter, tmp_path: Path) -> None:
    task = tasks()["Retrieval"]()
    task.build(tiny, 0)
    matching = torch.randn(2, task.state_dict()["rank.weight"].shape[1])
    head = {"task.itm.weight": matching, "task.itm.bias": torch.ones(2)}
    torch.save(ours(tiny) | head, tmp_path / "a.pt")
    load_weights(Whole(tiny, task), str(tmp_path / "a.pt"))
    assert torch.equal(task.state_dict()["rank.weight"], matching[1:])


def test_positions_are_resized_as_images_are() -> None:
    places = torch.randn(1, 5, 3)
    assert torch.equal(resize_positions(places, 4), places)
    assert resize_positions(places, 16).shape == (1, 17, 3)


# --- export


def run_of(folder: Path, state: dict[str, Tensor]) -> Path:
    header = RunHeader(run_id="a1", command="fit", reducer="ToMe", method="ToMe 0.7", protocol="p")
    info = CheckpointInfo(lineage=(header,))
    (folder / "checkpoints").mkdir(parents=True)
    content = {"state_dict": state, "optimizer_states": [{}], INFO_KEY: info.model_dump_json()}
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_the_weights_of_a_run_are_exported_with_its_lineage(
    tiny: Meter, tmp_path: Path, half: bool
) -> None:
    run, out = run_of(tmp_path / "run", ours(tiny)), tmp_path / "models" / "a.safetensors"
    export(run, out, half)
    info = read_checkpoint_info(out)
    assert info is not None
    assert info.lineage[0].method == "ToMe 0.7"
    other = Whole(Meter(MeterConfig().resolve(), vocab_size=50))
    report = load_weights(other, str(out))
    assert not report.missing + report.unused
    for name, value in ours(tiny).items():
        limit = 1e-3 if half else 0
        torch.testing.assert_close(other.state_dict()[name], value, atol=limit / 100, rtol=limit)


def test_tensors_with_two_names_are_exported(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    state = {"meter.a": one, "meter.b": one, "meter.row": one[1], "meter.turned": one.t()}
    export(run_of(tmp_path / "run", state), tmp_path / "out.safetensors")
    found = read_state(tmp_path / "out.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    (tmp_path / "other").touch()  # others can read it like any file
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("value", "out", "message"),
    [
        (1e6, "a.safetensors", "too large for torch.float16"),
        (1.0, "a.pt", "must end in .safetensors"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    value: float, out: str, message: str,
) -> None:  # fmt: skip
    run = run_of(tmp_path / "run", {"meter.a": torch.tensor([value])})
    monkeypatch.setattr("sys.argv", ["weights", str(run), "--out", str(tmp_path / out), "--half"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
