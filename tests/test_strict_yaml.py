"""YAML is read as everywhere, but for what would be lost in silence or would not end."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from elip.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text",
    ["", "a: &x {b: 1}\nc: *x", "a: &x {b: 1, c: 2}\nd: &y {<<: *x, c: 3}\ne: {<<: [*y, *x]}",
     "a: {b: 1}\nc: {b: 1}", "- a\n- a"],
)  # fmt: skip
def test_right_text_is_read_as_everywhere(text: str) -> None:
    assert read_yaml(text) == yaml.safe_load(text)


def test_files_of_this_repository_are_read_as_everywhere() -> None:
    for path in ROOT.glob("experiments/**/*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert read_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 1", "'a' stands twice.*\n.*line 3"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("- {<<: {a: 1}, <<: {b: 1}}", "'<<' stands twice"),
        ("a: &x [*x]", "stands within"),
        ("a: &x {b: [{c: *x}]}", "stands within"),
        ("a: 2026-13-01", "cannot be read"),
        ("a: !!bool perhaps", "cannot be read"),
        ("a: !!timestamp soon", "cannot be read"),
        ("[" * 10_000, "cannot be read"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_an_error_of_yaml(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)
