"""Weights: every key accounted for, no code run from a file, errors that say what was found."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import write_record
from elip.tasks import tasks
from elip.weights import load_image_weights, load_text_weights, load_weights
from elip.weights.__main__ import export, main
from elip.weights.load import resize_positions
from elip.weights.names import from_meter
from elip.weights.read import read_state
from tests.test_record import FULL

# What METER carries along and never uses, or what is no weight.
DEAD = {
    "vit_model.positional_embedding", "vit_model.ln_final.weight", "vit_model.ln_final.bias",
    "text_transformer.pooler.dense.weight", "text_transformer.pooler.dense.bias",
    "text_transformer.embeddings.position_ids",
}  # fmt: skip


class Whole(nn.Module):
    def __init__(self, meter: Meter, task: nn.Module) -> None:
        super().__init__()
        self.meter = meter
        self.task = task


@pytest.fixture(scope="module")
def tiny() -> Meter:
    torch.manual_seed(0)
    return Meter(MeterConfig().resolve(), vocab_size=50)


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
    for key, value in renamed.items():
        if key in target:
            assert value.shape == target[key].shape, key


def clip_state(width: int, blocks: int, patches: int, patch: int) -> dict[str, Tensor]:
    """An image tower under OpenAI's names, with one block and a projection too many."""
    state = {
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(1 + patches, width),
        "visual.conv1.weight": torch.randn(width, 3, patch, patch),
        "visual.proj": torch.randn(width, 32),
    }
    for norm in ("ln_pre", "ln_post"):
        state |= {f"visual.{norm}.{kind}": torch.randn(width) for kind in ("weight", "bias")}
    for block in range(blocks):
        prefix = f"visual.transformer.resblocks.{block}"
        for name, rows, columns in (
            ("attn.in_proj_", 3 * width, width),
            ("attn.out_proj.", width, width),
            ("mlp.c_fc.", 4 * width, width),
            ("mlp.c_proj.", width, 4 * width),
        ):
            state[f"{prefix}.{name}weight"] = torch.randn(rows, columns)
            state[f"{prefix}.{name}bias"] = torch.randn(rows)
        for norm in ("ln_1", "ln_2"):
            state |= {f"{prefix}.{norm}.{kind}": torch.randn(width) for kind in ("weight", "bias")}
    return state


@pytest.mark.parametrize("form", ["plain", "torchscript", "half"])
def test_clip_archives(tiny: Meter, tmp_path: Path, form: str) -> None:
    state = clip_state(64, blocks=6, patches=64, patch=8)
    if form == "half":
        state = {k: v.half() for k, v in state.items()}
    file = tmp_path / "clip.pt"
    if form == "torchscript":
        archive = nn.Module()
        for name, value in state.items():
            *parents, last = name.split(".")
            module = archive
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_parameter(last, nn.Parameter(value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(archive), file)
    else:
        torch.save(state, file)
    report = load_image_weights(tiny, str(file))
    assert not report.missing
    assert "visual.proj" in report.unused
    assert {name.split(".")[1] for name in report.unused if name.startswith("blocks")} == {"5"}
    want = state["visual.transformer.resblocks.3.attn.in_proj_weight"].float()
    assert torch.equal(tiny.image.vit.blocks[3].attn.qkv.weight, want)


def test_a_text_encoder_comes_from_a_folder(tiny: Meter, tmp_path: Path) -> None:
    from transformers import AutoModel

    config = tiny.text.transformer.config
    other = AutoModel.from_config(config)
    other.save_pretrained(tmp_path)
    report = load_text_weights(tiny, str(tmp_path))
    assert not report.missing
    want = other.encoder.layer[0].output.dense.weight
    assert torch.equal(tiny.text.transformer.encoder.layer[0].output.dense.weight, want)


class Dangerous:
    """Runs code when it is unpickled the usual way."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_not_run(tiny: Meter, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    state = {f"meter.{name}": value for name, value in tiny.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": Dangerous(mark)}, tmp_path / "bad.ckpt")
    whole = Whole(tiny, nn.Module())
    report = load_weights(whole, str(tmp_path / "bad.ckpt"))
    assert not mark.exists()
    assert len(report.used) == len(state)
    # The same bytes do run code when they are loaded without care: the check can fail.
    torch.load(tmp_path / "bad.ckpt", weights_only=False)
    assert mark.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = tmp_path / "bad.pt"
    file.write_bytes(pickle.dumps(Dangerous(mark), protocol=2))
    with pytest.raises(ValueError, match=r"bad\.pt"):
        read_state(file)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="weights"):
        read_state(file)


def test_truncated_checkpoint_is_named(tiny: Meter, tmp_path: Path) -> None:
    file = tmp_path / "whole.ckpt"
    torch.save({"state_dict": tiny.state_dict()}, file)
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut\.ckpt"):
        read_state(cut)


def test_wrong_kinds_of_weights_say_what_they_are(tiny: Meter, tmp_path: Path) -> None:
    whole = Whole(tiny, nn.Module())
    torch.save(clip_state(64, 5, 64, 8), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match="image_weights"):
        load_weights(whole, str(tmp_path / "clip.pt"))
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no METER checkpoint"):
        load_weights(whole, str(tmp_path / "other.pt"))
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        load_weights(whole, str(tmp_path))
    wide = Meter(MeterConfig(image_width=128).resolve(), vocab_size=50)
    state = {f"meter.{name}": value for name, value in wide.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "wide.ckpt")
    with pytest.raises(ValueError, match="does not fit this model"):
        load_weights(whole, str(tmp_path / "wide.ckpt"))


def test_the_weights_of_a_run_are_handed_on_as_one_file(tiny: Meter, tmp_path: Path) -> None:
    torch.manual_seed(3)
    task = tasks()["Statement"]()
    task.build(tiny, 0)
    trained = Whole(tiny, task)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"state_dict": trained.state_dict(), "optimizer_states": [{}]}, folder / "last.ckpt")
    write_record(FULL, tmp_path / "run")
    out = tmp_path / "models" / "statement.safetensors"
    export(tmp_path / "run", out)
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["task"] == FULL.task
        assert file.metadata()["config_hash"] == FULL.config_hash
    other = Whole(Meter(MeterConfig().resolve(), vocab_size=50), tasks()["Statement"]())
    other.task.build(other.meter, 0)
    report = load_weights(other, str(out))
    assert not report.missing
    assert not report.unused
    for name, value in trained.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    export(tmp_path / "run", tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * out.stat().st_size
    load_weights(other, str(tmp_path / "half.safetensors"))
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, atol=1e-6, rtol=1e-3)


TYPES = "meter.token_types.weight"
PLACES = "meter.image.vit.pos_embed"
METER = {"cross_modal_text_transform.weight": torch.ones(2, 2)}
LAYER = "cross_modal_text_layers.0.attention.self"
# What is changed in whole weights of ours (or, begun with METER's, all there is), and what is said.
HOSTILE: dict[str, tuple[dict[str, Tensor], str]] = {
    "sparse": ({TYPES: torch.ones(3, 64).to_sparse()}, f"{TYPES} is .*not read .*sparse_coo"),
    "on no device": ({TYPES: torch.ones(3, 64, device="meta")}, f"{TYPES} is .*not read .*meta"),
    "complex": ({TYPES: torch.ones(3, 64, dtype=torch.complex64)}, f"{TYPES} is .*complex64"),
    "8 bits": ({TYPES: torch.ones(3, 64).to(torch.float8_e4m3fn)}, f"{TYPES} is .*float8"),
    "whole numbers": ({TYPES: torch.ones(3, 64, dtype=torch.int8)}, f"{TYPES} holds torch.int8"),
    "infinite in 32 bits": (
        {TYPES: torch.full((3, 64), 1e300, dtype=torch.float64)}, f"not finite .*{TYPES}",
    ),
    "no type": ({**METER, "token_type_embeddings.weight": torch.tensor(1.0)}, r"is \(\), wanted"),
    "a key unlike its value": (
        {**METER, f"{LAYER}.key.weight": torch.ones(2, 3), f"{LAYER}.value.weight": torch.ones(2)},
        r"key\.weight is \(2, 3\), and .*value\.weight \(2,\)",
    ),
    "no key": (
        {**METER, f"{LAYER}.key.bias": torch.tensor(1.0), f"{LAYER}.value.bias": torch.tensor(1.0)},
        r"key\.bias is \(\)",
    ),
    "no match": (
        {"task.itm.weight": torch.tensor(1.0), "task.itm.bias": torch.ones(3)}, "task.rank.bias is",
    ),
    **{
        f"places {shape}": ({PLACES: torch.ones(shape)}, r"Position embeddings are \(.*wanted \(1,")
        for shape in ((), (5,), (5, 64), (1, 0, 64), (1, 1, 64), (2, 5, 64))
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_cannot_be_used_are_named(tiny: Meter, tmp_path: Path, name: str) -> None:
    changed, message = HOSTILE[name]
    task = tasks()["Retrieval"]()
    task.build(tiny, 0)
    state = {f"meter.{name}": value for name, value in tiny.state_dict().items()}
    torch.save(changed if METER.keys() <= changed.keys() else state | changed, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(Whole(tiny, task), str(tmp_path / "a.pt"))


def test_what_a_text_encoder_lacks_is_not_made_up(tiny: Meter, tmp_path: Path) -> None:
    from transformers import AutoModel

    AutoModel.from_config(tiny.text.transformer.config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state, lost = read_state(file), "encoder.layer.0.output.dense.weight"
    stray = {"stray": torch.ones(1)}
    save_file({k: v for k, v in state.items() if k != lost} | stray, file, {"format": "pt"})
    before = tiny.text.transformer.state_dict()[lost].clone()
    report = load_text_weights(tiny, str(tmp_path))
    assert report.missing == (lost,)
    assert "stray" in report.unused
    assert torch.equal(tiny.text.transformer.state_dict()[lost], before)
    save_file(stray, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"Nothing in .* fits this model"):
        load_text_weights(tiny, str(tmp_path))


CONFIG = {"model_type": "roberta", "vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "null"},
        {"config.json": json.dumps(CONFIG | {"hidden_size": "a"})},
        {"config.json": json.dumps(CONFIG), "model.safetensors": "cut"},
        {"config.json": json.dumps(CONFIG), "pytorch_model.bin": "cut"},
        {"config.json": json.dumps(CONFIG), "model.safetensors.index.json": "[]"},
    ],
)
def test_a_damaged_folder_of_a_text_encoder_is_named(
    tiny: Meter, tmp_path: Path, files: dict[str, str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"text_weights '{tmp_path}'"):
        load_text_weights(tiny, str(tmp_path))


def test_weights_of_encoders_may_lie_in_the_home_folder(
    tiny: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(tiny.image.vit.state_dict(), tmp_path / "image.pt")
    torch.save(
        {f"meter.text.transformer.{k}": v for k, v in tiny.text.transformer.state_dict().items()},
        tmp_path / "text.pt",
    )
    assert not load_image_weights(tiny, "~/image.pt").missing
    assert not load_text_weights(tiny, "~/text.pt").missing


def test_a_timm_model_that_cannot_be_fetched_is_named(tiny: Meter) -> None:
    with pytest.raises(
        ValueError, match=r"'vit_tiny_patch16_224\.none' is a timm model that cannot"
    ):
        load_image_weights(tiny, "vit_tiny_patch16_224.none")


def run_of(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state}, folder / "checkpoints" / "last.ckpt")
    write_record(FULL, folder)
    return folder


def test_tensors_with_two_names_are_handed_on(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    state = {"meter.a": one, "meter.b": one, "meter.row": one[1], "meter.turned": one.t()}
    export(run_of(tmp_path / "run", state), tmp_path / "out.safetensors")
    found = read_state(tmp_path / "out.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    (tmp_path / "other").touch()  # as readable for others as any file
    assert (tmp_path / "out.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (1e6, ["--half"], "in 1 tensors, meter.a first, that float16 cannot hold"),
        (float("nan"), [], "in 1 tensors, meter.a first, that are not finite"),
    ],
)
def test_weights_that_cannot_be_used_are_not_handed_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    options: list[str],
    message: str,
) -> None:
    run = run_of(tmp_path / "run", {"meter.a": torch.tensor([value]), "meter.n": torch.tensor(3)})
    given = [str(run), "--out", str(tmp_path / "out.safetensors"), *options]
    monkeypatch.setattr("sys.argv", ["elip.weights", *given])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_in_place_of_a_run_is_said(tmp_path: Path) -> None:
    file = run_of(tmp_path / "run", {"meter.a": torch.ones(1)}) / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt is a file; give the run directory"):
        export(file, tmp_path / "out.safetensors")


def test_a_folder_in_the_place_of_the_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    out.mkdir()
    monkeypatch.setattr(sys, "argv", ["elip.weights", str(tmp_path), "--out", str(out)])
    with pytest.raises(SystemExit):
        main()
    assert f"{out} is a folder; give the name of a file" in capsys.readouterr().err


def test_positions_of_odd_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="squares"):
        resize_positions(torch.zeros(1, 8, 4), 9)
