"""The model's own promises, beside those that parity and contract tests hold it to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elip.data.batch import TextBatch
from elip.model.config import MeterConfig
from elip.model.interface import Fused, Reading
from elip.model.meter import Meter
from elip.schedule import Schedule
from reducers import Reducer, shelf
from reducers.identity import Identity
from tests.contract.subjects import pairs, tiny

SHELF = shelf()


def equal(one: Fused, other: Fused) -> bool:
    assert one.pooled is not None
    assert other.pooled is not None
    stages = zip(one.stages, other.stages, strict=True)
    same = all(torch.equal(a.assignment, b.assignment) for a, b in stages)
    return same and torch.equal(one.pooled, other.pooled)


def test_encodings_that_reductions_share_are_reused_to_the_last_bit() -> None:
    meter = tiny(None).eval()
    images, text, seeds = pairs()
    settings = [(name, ratio) for name in ("ToMe", "ELIP", "Identity", "PuMer", "Random", "TRIPS")
                for ratio in (0.6, 0.8)]  # fmt: skip
    ran: list[int] = []
    meter.image.vit.blocks[0].register_forward_hook(lambda *_: ran.append(0))
    meter.text.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), meter.reuse_encodings():
        got = {}
        for name, ratio in settings:
            meter.set_reduction(SHELF[name](), Schedule(keep_ratio=ratio))
            words = TextBatch(text.ids.clone(), text.mask.clone())  # tasks make batches anew
            got[name, ratio] = meter(images.clone(), words, "pooled", seeds)
    assert sorted(ran) == [0, 1]
    with torch.no_grad():
        for name, ratio in settings:
            alone = tiny(SHELF[name](), ratio).eval()(images, text, "pooled", seeds)
            assert equal(got[name, ratio], alone), (name, ratio)


def test_other_texts_and_images_are_not_taken_for_known_ones() -> None:
    meter = tiny(SHELF["ELIP"]()).eval()
    images, text, seeds = pairs()
    other, words = 255 - images, TextBatch(text.ids.flip(0), text.mask.flip(0))
    with torch.no_grad():
        want = [meter(*each, "pooled", seeds) for each in ((images, text), (other, words))]
        with meter.reuse_encodings():
            for _ in range(2):
                for each, wanted in zip(((images, text), (other, words)), want, strict=True):
                    prefix = meter.encode_prefix(each[0], seeds)
                    encoded = meter.encode_text(each[1])
                    image = meter.encode_suffix(prefix, encoded)
                    assert equal(meter.fuse(encoded, image, "pooled"), wanted)


@pytest.mark.parametrize("name", ["Identity", "ELIP", "PuMer", "ATS"])
def test_readings_of_one_pass_are_those_of_passes_of_their_own(name: str) -> None:
    meter = tiny(SHELF[name]()).eval()
    images, text, seeds = pairs()
    places = torch.tensor([[3, 1], [0, 2], [2, 0]])
    with torch.no_grad():
        encoded = meter.encode_text(text)
        image = meter.encode_image(images, encoded, seeds)
        words = meter.fuse(encoded, image, "text").text
        pooled = meter.fuse(encoded, image, "pooled").pooled
        twice = torch.arange(3).repeat(2)
        sides = meter.prepare_text(encoded).rows(twice), meter.prepare_image(image).rows(twice)
        both = meter.fuse_prepared(*sides, [Reading(3, "text", places), Reading(3, "pooled")])
    torch.testing.assert_close(both[0].text, words[torch.arange(3)[:, None], places])
    torch.testing.assert_close(both[1].pooled, pooled)


@pytest.mark.parametrize("make", [Identity, SHELF["ToMe"], SHELF["PuMer"]])
def test_another_reduction_is_as_if_built_with_it(make: Callable[[], Reducer]) -> None:
    meter, (images, text, seeds) = tiny(SHELF["ELIP"]()).eval(), pairs()
    plan = meter.set_reduction(make(), Schedule(keep_ratio=0.7))
    built = tiny(make(), 0.7).eval()
    assert plan == meter.plan == built.plan
    with torch.no_grad():
        assert equal(meter(images, text, "pooled", seeds), built(images, text, "pooled", seeds))


def test_results_do_not_depend_on_how_far_texts_are_padded(make_any: Reducer) -> None:
    meter = tiny(make_any).eval()
    images, text, seeds = pairs()
    ids = torch.nn.functional.pad(text.ids, (0, 8), value=1)
    longer = TextBatch(ids, torch.nn.functional.pad(text.mask, (0, 8)))
    with torch.no_grad():
        short, long = (meter(images, each, "pooled", seeds).pooled for each in (text, longer))
    torch.testing.assert_close(short, long, atol=2e-6, rtol=1e-5)


@pytest.fixture(params=[name for name, cls in SHELF.items() if "text" in cls.needs or
                        cls.placement == "fusion" or name == "Identity"])  # fmt: skip
def make_any(request: pytest.FixtureRequest) -> Reducer:
    return SHELF[request.param]()


def test_the_width_of_the_fusion_is_an_option() -> None:
    meter = Meter(MeterConfig(vocab_size=50, mlp_ratio=2.0).resolve())
    weights = meter.state_dict()
    assert weights["fusion.text_layers.0.feed_forward.up.weight"].shape[0] == 2 * meter.width
    with pytest.raises(ValueError, match="mlp_ratio is 0"):
        MeterConfig(mlp_ratio=0).resolve()
