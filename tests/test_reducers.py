"""The command ``python -m reducers``, and promises of single methods."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from reducers import Reducer, shelf
from reducers.__main__ import card, main, table
from reducers.contract import SIGNALS, Family, Placement
from reducers.pool import Pool
from tests.contract.device import HostReads, fake_cuda, on_cuda
from tests.contract.subjects import FOREIGN, bound, mapped, scene


def test_the_table_has_a_line_for_every_method() -> None:
    lines = table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(shelf())


@pytest.mark.parametrize("method", shelf().values())
def test_methods_use_the_words_of_the_contract(method: type[Reducer]) -> None:
    assert method.family in get_args(Family)
    assert method.placement in get_args(Placement)
    assert set(method().needs) <= set(SIGNALS)
    assert card(method).startswith(f"{method.__name__}(")


def test_a_card_is_found_by_name_or_import_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "ELIP"]) == 0
    assert "mix: float = 0.8" in capsys.readouterr().out
    assert main(["show", FOREIGN]) == 0
    assert "needs      keys" in capsys.readouterr().out
    assert main([]) == 0
    assert "PuMer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tome", "Did you mean ToMe"),
        ("nowhere.to.Be", "No module named 'nowhere'"),
        ("tests.contract.foreign.Shortest", "has no reducer class 'Shortest'"),
    ],
)
def test_a_wrong_name_is_one_line(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", name]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("grid", [(18, 18), (14, 14), (7, 9), (5, 12), (1, 10)])
def test_pool_cuts_the_grid_into_rectangles(grid: tuple[int, int]) -> None:
    rows, columns = grid
    count = rows * columns
    patches, signals = scene(Pool(), 1, grid)
    for first in range(1, count, 1 + count // 40):
        once = Pool()(patches, first, signals).assignment
        _rectangles(once.view(rows, columns), first)
        second = max(1, first * 2 // 3)
        if second < first:
            sizes = torch.zeros(1, first).scatter_add(1, once, torch.ones(1, count))
            places = signals.positions[:1].new_zeros(1, first, 2)
            index = once.unsqueeze(-1).expand(-1, -1, 2)
            places = places.scatter_add(1, index, signals.positions) / sizes.unsqueeze(-1)
            requested = {"positions": places, "sizes": sizes}
            later = type(signals)(**{**vars(signals), "requested": requested})
            twice = Pool()(patches[:, :first], second, later).assignment
            _rectangles(twice.gather(1, once).view(rows, columns), second)


def _rectangles(pieces: torch.Tensor, count: int) -> None:
    """Each piece fills its bounding box, and none is much larger than necessary."""
    areas = []
    for piece in range(count):
        places = (pieces == piece).nonzero()
        height, width = (places.amax(dim=0) - places.amin(dim=0) + 1).tolist()
        assert len(places) == height * width > 0
        areas.append(height * width)
    assert max(areas) <= 4 * -(-pieces.numel() // count)


@pytest.mark.parametrize(
    ("name", "by_step", "steps"), [("DivPrune", 3, 20), ("CDPruner", 8, 20), ("ATC", 15, 16)]
)
def test_step_by_step_methods_launch_few_operators(name: str, by_step: int, steps: int) -> None:
    reducer = bound(shelf()[name]())
    patches, signals = scene(reducer)
    with fake_cuda():
        signals, patches = mapped(signals, on_cuda), on_cuda(patches)
        with HostReads() as host:
            reducer(patches, 20, signals)
    assert host.launches <= by_step * steps + 60
