"""The shelf's table and cards."""

from __future__ import annotations

from typing import get_args

import pytest

from reducers import shelf
from reducers.__main__ import card, main, table
from reducers.contract import SIGNALS, Family, Placement


def test_table_has_a_line_for_every_method() -> None:
    lines = table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(shelf())


@pytest.mark.parametrize("name", shelf())
def test_cards_show_options_source_and_difference(name: str) -> None:
    text = card(name)
    assert text.startswith(f"{name}(")
    assert "Source:" in text
    assert "Differs:" in text


@pytest.mark.parametrize("method", shelf().values())
def test_methods_use_the_words_of_the_contract(method: type) -> None:
    assert method.family in get_args(Family)
    assert method.placement in get_args(Placement)
    assert set(method().needs) <= set(SIGNALS)


def test_misspelt_names_get_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "Tome"]) == 2
    assert "Did you mean ToMe" in capsys.readouterr().err
    assert main(["show", "ELIP"]) == 0
    assert "mix: float = 0.8" in capsys.readouterr().out
    assert main([]) == 0
    assert "PuMer" in capsys.readouterr().out
