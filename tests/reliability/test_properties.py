"""What must hold for any input, tried on inputs that nobody thought of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.statistics import by_image, holm, t_interval
from elip.data.arrow import ArrowTable
from elip.data.datasets.base import Columns
from elip.record import Evaluation, RecordError, read_record, write_record
from elip.schedule import Schedule
from elip.tasks.ranking import guesses, recalls
from elip.training.optimizer import Optimization, learning_rate_factor
from reducers import shelf
from tests.contract.subjects import bound, scene
from tests.data.tiny import png, write
from tests.test_record import FULL

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# --- schedule

ACTS = st.sampled_from(["before_block", "after_attention", "fusion"])
SHARE = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0.01, 1)


@settings(max_examples=400, deadline=None)
@given(
    ratio=st.none() | SHARE,
    layers=st.none() | st.lists(st.integers(-2, 14), max_size=4).map(tuple),
    profile=st.none() | st.lists(SHARE, max_size=4).map(tuple),
    counts=st.none() | st.lists(st.integers(-2, 400), max_size=4).map(tuple),
    patches=st.integers(1, 400),
    blocks=st.integers(1, 14),
    placement=ACTS,
)
def test_any_schedule_is_refused_or_can_be_carried_out(
    ratio: Any, layers: Any, profile: Any, counts: Any, patches: int, blocks: int, placement: Any
) -> None:
    try:
        plan = Schedule(ratio, layers, profile, counts).plan(patches, blocks, placement)
    except ValueError as error:
        assert len(str(error)) > 20  # noqa: PT017
        return
    assert len(plan.tokens_per_block) == blocks + 1
    assert list(plan.tokens_per_block) == sorted(plan.tokens_per_block, reverse=True)
    assert all(1 <= count <= patches for count in plan.tokens_per_block)
    assert 0 < plan.keep_ratio <= 1
    assert all(isinstance(count, int) for count in plan.tokens_per_block)
    if counts is not None:
        assert list(plan.keep.values()) == [min(count, patches) for count in counts]
    elif ratio is not None and 1 not in plan.keep.values():
        assert plan.keep_ratio == pytest.approx(ratio, abs=0.5 / patches + 1e-6)


@given(
    step=st.integers(0, 10_000),
    steps=st.integers(1, 10_000),
    warmup=st.floats(0, 0.99) | st.integers(1, 5000).map(float),
    power=st.floats(0.1, 4) | st.just("cosine"),
    end=st.floats(0, 1e-3),
)
def test_the_learning_rate_stays_between_0_and_its_peak(
    step: int, steps: int, warmup: float, power: Any, end: float
) -> None:
    end = 0.0 if power == "cosine" else end
    options = Optimization(1e-3, warmup=warmup, decay_power=power, end_learning_rate=end)
    factor = learning_rate_factor(step, steps, options)
    assert 0 <= factor <= 1
    assert factor >= learning_rate_factor(step + 1, steps, options) or step < max(
        warmup, warmup * steps
    )


# --- reducers

REDUCERS = [name for name, made in shelf().items() if made.placement != "never"]


@pytest.mark.parametrize("name", REDUCERS)
@few
@given(
    rows=st.integers(2, 6),
    columns=st.integers(2, 6),
    share=st.floats(0, 0.999),
    batch=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 30.0]),
)
def test_a_reducer_keeps_its_contract_at_any_size(
    name: str, rows: int, columns: int, share: float, batch: int, seed: int, scale: float
) -> None:
    reducer = bound(shelf()[name]())
    patches, signals = scene(reducer, batch, (rows, columns), seed)
    count = rows * columns
    keep = 1 + int(share * (count - 1))
    with torch.no_grad():
        reduced = reducer(patches * scale, keep, signals)
    assert reduced.tokens.shape == (batch, keep, patches.shape[2])
    assert bool(reduced.tokens.isfinite().all())
    went = reduced.assignment
    assert went.shape == (batch, count)
    assert went.dtype == torch.int64
    assert int(went.min()) >= -1
    assert int(went.max()) < keep
    real = torch.ones(batch, keep, dtype=torch.bool) if reduced.mask is None else reduced.mask
    for row, kept in zip(went, real, strict=True):
        assert set(row[row >= 0].tolist()) == set(kept.nonzero().flatten().tolist())


# --- readers

CAPTIONS = pa.schema({"image": pa.binary(), "caption": pa.list_(pa.string())})
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@few
@given(
    files=st.lists(st.lists(st.lists(WORDS, max_size=4), max_size=5), min_size=1, max_size=3),
    distinct=st.booleans(),
)
def test_a_reader_gives_back_what_was_written(files: list[list[list[str]]], distinct: bool) -> None:
    rows = [texts for file in files for texts in file]
    wanted = [list(dict.fromkeys(texts)) if distinct else texts for texts in rows]
    with TemporaryDirectory() as folder:
        paths = []
        for number, file in enumerate(files):
            columns = {"image": [png(1)] * len(file), "caption": file}
            paths.append(write(Path(folder) / f"{number}.arrow", columns, CAPTIONS))
        table = ArrowTable(paths, Columns(("image",), "caption"), distinct)
        assert table.num_items == sum(map(len, wanted))
        found = [table.text(*table.locate(item)) for item in range(table.num_items)]
    assert found == [text for texts in wanted for text in texts]


# --- statistics

SCORES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(values=SCORES, shift=st.floats(-10, 10))
def test_an_interval_holds_its_mean_and_moves_with_the_data(
    values: list[float], shift: float
) -> None:
    first, moved = t_interval(values), t_interval([value + shift for value in values])
    assert first.value == pytest.approx(np.mean(values), abs=1e-6)
    if first.low is None or moved.low is None:
        assert max(values) - min(values) < 1e-6  # nothing to judge the spread by
        return
    assert first.low <= first.value <= first.high
    for a, b in ((first.low, moved.low), (first.value, moved.value), (first.high, moved.high)):
        assert b - a == pytest.approx(shift, abs=1e-6)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrected_p_values_are_larger_and_in_the_same_order(values: list[float]) -> None:
    corrected = holm(values)
    assert all(old <= new <= 1 for old, new in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert list(np.array(corrected)[order]) == sorted(corrected)
    assert min(corrected) == pytest.approx(min(1.0, min(values) * len(values)))


@given(rows=st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=1, max_size=40))
def test_values_by_image_have_the_mean_of_the_examples(rows: list[tuple[float, int]]) -> None:
    gaps, images = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    values = by_image(gaps, images)
    assert len(values) == len(set(images.tolist()))
    assert values.mean() == pytest.approx(gaps.mean(), abs=1e-9)


@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
)
def test_recalls_lie_between_nothing_and_everything(owners: list[int], seed: int) -> None:
    known = sorted(set(owners))
    owner = torch.tensor([known.index(each) for each in owners])
    scores = torch.rand(len(known), len(owners), generator=torch.Generator().manual_seed(seed))
    found, chance = recalls(scores, owner), guesses(owner)
    assert found.keys() == chance.keys()
    assert all(0 <= value <= 1 for value in (*found.values(), *chance.values()))
    assert found["ir_r1"] <= found["ir_r5"] <= found["ir_r10"]
    perfect = torch.zeros_like(scores).scatter(0, owner[None], 1.0)
    assert recalls(perfect, owner)["r1"] == 1


# --- records

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner,
                                                                max_size=3),
    max_leaves=12,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@few
@given(
    config=st.dictionaries(TEXT, PLAIN, max_size=4),
    name=TEXT,
    error=st.none() | TEXT,
    score=st.floats(allow_nan=True, allow_infinity=True),
    notes=st.lists(TEXT, max_size=3).map(tuple),
)
def test_a_record_comes_back_as_it_was_written(
    config: Any, name: str, error: str | None, score: float, notes: tuple[str, ...]
) -> None:
    split = Evaluation(split="val", dataset="shapes", examples=3, metrics={"accuracy": score})
    changes = {"config": config, "name": name, "error": error, "notes": notes}
    whole = FULL.model_copy(update={**changes, "evaluations": (split,)})
    with TemporaryDirectory() as folder:
        write_record(whole, folder)
        back = read_record(folder)
    if math.isfinite(score):
        assert back == whole
    else:
        assert back.evaluations[0].metrics == {"accuracy": None}
        assert any("stored as missing" in note for note in back.notes)


@few
@given(content=PLAIN, at=st.lists(st.integers(0, 40), max_size=3), value=PLAIN)
def test_any_json_is_a_record_or_refused(content: Any, at: list[int], value: Any) -> None:
    with TemporaryDirectory() as folder:
        path = write_record(FULL, folder)
        known = json.loads(path.read_text())
        for place in at:  # somewhere in a good record stands something else
            key = list(known)[place % len(known)]
            known[key] = value
        for changed in (content, known):
            path.write_text(json.dumps(changed))
            try:
                read_record(folder)
            except RecordError as error:
                assert str(path) in str(error)  # noqa: PT017
