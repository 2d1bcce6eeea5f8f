"""What is watched during a run: broken contracts by name, and counts that content decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elip.model.guard import ContractError, check, examine, refuse_namesake
from elip.record import read_record
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.vqa import VQA
from elip.training.watch import ReducerWatch
from reducers import Reduced, Signals
from reducers.ats import ATS
from reducers.topk import TopK
from tests.contract.subjects import bound, pairs, scene, tiny
from tests.training.conftest import Go


def result(reducer: TopK) -> tuple[Tensor, Reduced]:
    patches, signals = scene(reducer)
    return patches, reducer(patches, 20, signals)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": torch.zeros(3, 19, 32)}, r"TopK .* tokens of shape \(3, 20, 32\) .* 19, 32"),
        ({"assignment": torch.zeros(3, 35, dtype=torch.int64)}, r"TopK .* assignment .* 35"),
        ({"assignment": torch.zeros(3, 36)}, "TopK .* assignment .*float32"),
        ({"tokens": torch.zeros(3, 20, 32, dtype=torch.float64)}, "TopK .* tokens .*float64"),
        ({"tokens": torch.zeros(3, 20, 32, dtype=torch.bfloat16)}, "TopK .* tokens .*bfloat16"),
        ({"mask": torch.ones(3, 20, dtype=torch.bool)}, "TopK .* mask although .* fixed_count"),
    ],
)
def test_shapes_are_checked_in_every_call(change: dict[str, Tensor], said: str) -> None:
    reducer = bound(TopK())
    patches, reduced = result(reducer)
    check(reducer, reduced, patches, 20, padded=False)
    with pytest.raises(ValueError, match=said):
        check(reducer, replace(reduced, **change), patches, 20, padded=False)


def test_a_mask_and_other_floats_have_their_place() -> None:
    reducer = bound(TopK())
    patches, reduced = result(reducer)
    masked = replace(reduced, mask=torch.ones(3, 20, dtype=torch.bool))
    check(reducer, masked, patches, 20, padded=True)
    longer = replace(reduced, mask=torch.ones(3, 36, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"TopK .* mask .* 36"):
        check(reducer, longer, patches, 20, padded=True)
    half = replace(reduced, tokens=reduced.tokens.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        check(reducer, half, patches, 20, padded=False)


def broken(reduced: Reduced, how: str) -> Reduced:
    tokens, assignment = reduced.tokens.clone(), reduced.assignment.clone()
    if how == "nan":
        tokens[1, 4, 0] = torch.nan
    elif how == "infinite":
        tokens[1, 4, 0] = torch.inf
    elif how == "too large":
        assignment[1, 4] = 20
    elif how == "too small":
        assignment[1, 4] = -2
    else:
        assignment[assignment == 4] = 5
    return Reduced(tokens, assignment)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", r"TopK .* layer 3: .* not finite.* \(1 of them; .* example 1 .*, place 4\)"),
        ("infinite", "TopK .* not finite"),
        ("too large", "TopK .* assignment outside -1 to 19.* place 4"),
        ("too small", "TopK .* assignment outside"),
        ("empty", r"TopK .* no old token went into \(3 of them; .* example 0 .*, place 4\)"),
    ],
)
def test_values_are_examined(how: str, said: str) -> None:
    reducer = bound(TopK())
    patches, reduced = result(reducer)
    examine(reducer, reduced, patches, 3)
    with pytest.raises(ValueError, match=said):
        examine(reducer, broken(reduced, how), patches, 3)


def test_what_came_in_broken_is_not_the_reducers_fault() -> None:
    reducer = bound(TopK())
    patches, reduced = result(reducer)
    examine(reducer, broken(reduced, "nan"), patches.index_fill(1, torch.tensor(0), torch.nan), 3)


class GoesBad(TopK):
    """Returns what is no number.

    Source: made up for the tests.
    Differs: not at all.
    """

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        return broken(super().forward(patches, num_keep, signals), "nan")


class ActsNowhere(TopK):
    """Source: made up for the tests. Differs: in where it acts."""

    placement = "sometimes"  # type: ignore[assignment]


class NeedsTooMuch(TopK):
    """Source: made up for the tests. Differs: in its needs."""

    needs = frozenset({"everything"})  # type: ignore[arg-type]


class ReturnsTokens(TopK):
    """Source: made up for the tests. Differs: in what it returns."""

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        return super().forward(patches, num_keep, signals).tokens  # type: ignore[return-value]


class NotBegun(TopK):
    """Source: made up for the tests. Differs: in that it forgets to call its base class."""

    def __init__(self) -> None:
        pass


class TakesTwo(TopK):
    """Source: made up for the tests. Differs: in what it takes."""

    def forward(self, patches: Tensor, num_keep: int) -> Reduced:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("reducer", "said"),
    [
        ("NotBegun", "Reducer NotBegun: its __init__ must call super().__init__() first"),
        ("TakesTwo", "forward must take (patches, num_keep, signals): too many"),
        ("ActsNowhere", "placement is 'sometimes'; it may be never, before_block"),
        ("NeedsTooMuch", "needs frozenset({'everything'}); give a frozenset of cls_attention"),
        ("ReturnsTokens", "must return a Reduced, not a Tensor"),
    ],
)
def test_a_reducer_that_is_none_is_told_so(
    reducer: str, said: str, go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("fit", f"--model.reducer={__name__}.{reducer}") == 2
    assert said in capsys.readouterr().err


class Asking(VQA):
    """A task of somebody else's."""


def test_a_foreign_class_cannot_take_the_name_of_ours() -> None:
    refuse_namesake(Asking, tasks())
    with pytest.raises(ContractError, match=r"Asking of .* has the name"):
        refuse_namesake(Asking, {"Asking": VQA})


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_at_the_batch_that_breaks_the_contract(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    root = "--trainer.default_root_dir=run"
    assert go("fit", f"--model.reducer={__name__}.GoesBad", root) == 2
    assert "error: Reducer GoesBad broke its contract at reduction layer" in capsys.readouterr().err
    record = read_record("run")
    assert record.status == "failed"
    assert record.error is not None
    assert "GoesBad broke its contract" in record.error


def test_only_the_first_batch_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr("elip.training.watch.examine", lambda *given: looks.append(given[-1]))
    reducer = bound(TopK())
    plan = Schedule(0.5, layers=(1, 2), profile=(0.7, 0.4)).plan(36, 3, "before_block")
    watch = ReducerWatch(reducer, plan)
    patches, signals = scene(reducer)
    for _ in range(4):
        reducer(patches, 20, signals)
    assert len(looks) == 2  # both reductions of the first batch
    watch.stop()
    assert not reducer._forward_hooks


def test_counts_that_depend_on_content_are_measured() -> None:
    reducer = ATS(points=6)
    meter = tiny(reducer).eval()
    kept = ReducerWatch(reducer, meter.plan)
    images, text, seeds = pairs()
    with torch.no_grad():
        found = meter.encode_image(images, meter.encode_text(text), seeds)
    stages = [(stage.patch_to_token.unsqueeze(1) == torch.arange(36).view(1, -1, 1)).any(2).sum(1)
              for stage in found.stages]  # fmt: skip
    means, spreads = kept.tokens_per_block()
    assert spreads is not None
    assert len(means) == len(spreads) == len(meter.plan.tokens_per_block)
    assert means[0] == meter.plan.num_patches
    last = stages[-1].double()
    assert means[-1] == pytest.approx(float(last.mean()))
    assert spreads[-1] == pytest.approx(float(last.std(correction=0)))
    assert means[-1] < meter.plan.tokens_per_block[-1]
    kept.clear()
    assert kept.tokens_per_block()[0] == tuple(map(float, meter.plan.tokens_per_block))
