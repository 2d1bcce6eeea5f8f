"""Rebuild the reference's small models from their recorded configuration and weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, RobertaConfig

from elip.data.batch import TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.weights import LoadReport, from_meter, load_weights
from reducers.elip import ELIP


@dataclass(frozen=True)
class Case:
    """One recorded case: its description, its tensors, and where its files lie."""

    folder: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def text(self, suffix: str = "") -> TextBatch:
        return TextBatch(self.tensors[f"in.text_ids{suffix}"], self.tensors["in.text_masks"].bool())

    def weights(self) -> dict[str, Tensor]:
        """The official state: files merged in order, unused parts included."""
        index = json.loads((self.folder / "index.json").read_text())
        entry = next(case for case in index["cases"] if case["case"] == self.about["case"])
        state: dict[str, Tensor] = {}
        for file in entry["weights"]:
            state |= load_file(self.folder / file)
        drop = tuple(f"{prefix}." for prefix in self.about.get("drop_prefixes", []))
        return {name: value for name, value in state.items() if not name.startswith(drop)}


def load_case(golden: Path, name: str) -> Case:
    folder = golden / "meter"
    if not (folder / f"{name}.json").is_file():
        pytest.skip(f"no case {name} in {folder}")
    tensors = folder / f"{name}.safetensors"
    return Case(
        folder,
        json.loads((folder / f"{name}.json").read_text()),
        load_file(tensors) if tensors.is_file() else {},
    )


def build_meter(case: Case, scratch: Path) -> Meter:
    """Build our model with the case's sizes; ELIP with explicit counts where the case prunes."""
    config = case.about["config"]
    vision, text, fusion = config["vision"], config["text"], config["fusion"]
    kind = RobertaConfig if text["kind"] == "roberta" else BertConfig
    kind(
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        num_hidden_layers=text["num_layers"],
        num_attention_heads=text["num_heads"],
        intermediate_size=text["intermediate_size"],
        max_position_embeddings=text["max_position_embeddings"],
        layer_norm_eps=text["layer_norm_eps"],
        type_vocab_size=text["type_vocab_size"],
        pad_token_id=text["pad_token_id"],
    ).save_pretrained(scratch / "text")
    sizes = MeterConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        image_width=vision["width"],
        image_blocks=vision["layers_built"],
        image_heads=vision["heads"],
        text_encoder=str(scratch / "text"),
        max_text_len=config["max_text_len"],
        fusion_width=fusion["hidden_size"],
        fusion_layers=fusion["layers"],
        fusion_heads=fusion["heads"],
        dropout=0.1,
    ).resolve()
    prune = config.get("prune_state")
    if prune is None:
        return Meter(sizes).eval()
    # The official count leaves out the fused token, ours counts it.
    schedule = Schedule(
        layers=tuple(prune["begin_layer"]),
        counts=tuple(count + 1 for count in prune["num_keep_tokens"]),
    )
    reducer = ELIP(mix=config.get("lamd", 0.8), probe_depth=tuple(prune["num_act_layers"]))
    return Meter(sizes, reducer, schedule).eval()


class Whole(nn.Module):
    """A model and a task's heads, under the names that weights are loaded by."""

    def __init__(self, meter: Meter, task: nn.Module) -> None:
        super().__init__()
        self.meter = meter
        self.task = task


def load_case_weights(case: Case, whole: nn.Module, scratch: Path) -> LoadReport:
    """Load the case's official weights through the public importer."""
    file = scratch / "official.safetensors"
    save_file({name: value.contiguous() for name, value in case.weights().items()}, file)
    return load_weights(whole.eval(), str(file))


def official_gradients(case: Case) -> dict[str, Tensor]:
    """The recorded gradients under our names (the renaming is linear, so it maps gradients too)."""
    grads = {k.removeprefix("grad."): v for k, v in case.tensors.items() if k.startswith("grad.")}
    return from_meter(grads)[0]


def assert_close(got: Tensor, want: Tensor, atol: float) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0)
