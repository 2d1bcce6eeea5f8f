"""Recall at k against counting by hand, ties and small galleries included."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elip.tasks.ranking import CUTOFFS, first_hits, guesses, recalls


@st.composite
def galleries(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of few distinct values, so that ties abound, and 1 to 4 texts an image."""
    texts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=14))
    owner = [image for image, count in enumerate(texts) for _ in range(count)]
    values = st.integers(-2, 2)
    rows = draw(
        st.lists(
            st.lists(values, min_size=len(owner), max_size=len(owner)),
            min_size=len(texts),
            max_size=len(texts),
        )
    )
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(owner)


def by_hand(scores: list[list[float]], owner: list[int]) -> dict[str, float]:
    """Sort each row and column; among equals the lower index stands first."""
    images, texts = range(len(scores)), range(len(owner))
    found = {}
    for k in CUTOFFS:
        best = [sorted(images, key=lambda i, t=t: (-scores[i][t], i))[:k] for t in texts]
        found[f"ir_r{k}"] = sum(owner[t] in best[t] for t in texts) / len(owner)
        best = [sorted(texts, key=lambda t, i=i: (-scores[i][t], t))[:k] for i in images]
        found[f"tr_r{k}"] = sum(any(owner[t] == i for t in best[i]) for i in images) / len(scores)
    return found | {"r1": (found["ir_r1"] + found["tr_r1"]) / 2}


@given(galleries())
def test_recalls_equal_sorting_by_hand(gallery: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, owner = gallery
    assert recalls(scores, owner) == pytest.approx(by_hand(scores.tolist(), owner.tolist()))


@given(galleries())
def test_what_each_image_adds_has_the_main_score_as_its_mean(gallery) -> None:
    hits = first_hits(*gallery)
    assert len(hits) == len(gallery[0])
    assert hits.mean().item() == pytest.approx(recalls(*gallery)["r1"])


@given(galleries())
def test_recalls_rise_with_k(gallery: tuple[torch.Tensor, torch.Tensor]) -> None:
    found = recalls(*gallery)
    for side in ("ir", "tr"):
        assert found[f"{side}_r1"] <= found[f"{side}_r5"] <= found[f"{side}_r10"]


def test_a_score_that_is_not_finite_leaves_no_order() -> None:
    scores = torch.eye(3)
    scores[1, 2] = math.nan
    assert all(math.isnan(value) for value in recalls(scores, torch.arange(3)).values())
    assert first_hits(scores, torch.arange(3)).numel() == 0
    assert math.isnan(recalls(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))["r1"])


@pytest.mark.parametrize("texts", [[1, 1, 1], [2, 1], [1, 3], [2, 2, 1]])
def test_guesses_are_the_mean_over_all_orders(texts: list[int]) -> None:
    owner = torch.tensor([image for image, count in enumerate(texts) for _ in range(count)])
    total = len(owner)
    # For a random order of the texts, row by row; the rows share it, which leaves the mean as is.
    orders = [torch.tensor(o).float() for o in itertools.permutations(range(total))]
    text = [recalls(order.expand(len(texts), total), owner) for order in orders]
    guess = guesses(owner)
    for k in CUTOFFS:
        mean = sum(found[f"tr_r{k}"] for found in text) / len(text)
        assert guess[f"tr_r{k}"] == pytest.approx(mean)
        assert guess[f"ir_r{k}"] == pytest.approx(min(k, len(texts)) / len(texts))


def test_guesses_in_a_usual_gallery() -> None:
    guess = guesses(torch.arange(1000).repeat_interleave(5))
    assert guess["ir_r10"] == pytest.approx(0.01)
    assert guess["tr_r1"] == pytest.approx(0.001)
    assert guess["tr_r10"] == pytest.approx(1 - (1 - 0.001) ** 10, abs=2e-5)
    assert guesses(torch.empty(0, dtype=torch.int64)) == {}
