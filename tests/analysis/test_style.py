"""Colours that everybody can tell apart, on paper and on a dark screen; markers of their own."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.style import FAMILY_COLOURS, looks

# Machado, Oliveira and Fernandes, 2009: what full colour blindness makes of linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # fmt: skip


def linear(colour: str) -> NDArray[np.float64]:
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.cbrt(TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_families_differ_to_every_eye(sight: str) -> None:
    seen = {name: lab(SIGHT[sight] @ linear(colour)) for name, colour in FAMILY_COLOURS.items()}
    closest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2))
    assert closest > 20  # a difference of 2 can just be seen


@pytest.mark.parametrize("page", ["#ffffff", "#14171b"])
def test_families_show_on_light_and_dark(page: str) -> None:
    ground = TO_XYZ[1] @ linear(page)
    for colour in FAMILY_COLOURS.values():
        light = TO_XYZ[1] @ linear(colour)
        contrast = (max(light, ground) + 0.05) / (min(light, ground) + 0.05)
        assert contrast > 2.5


def test_methods_of_one_family_have_markers_of_their_own() -> None:
    families = {f"method {number}": ("text", "attention")[number % 2] for number in range(20)}
    found = looks(families | {"stranger": "unheard of"})
    assert len({(look.colour, look.marker) for look in found.values()}) == 21
    assert found["stranger"].colour == FAMILY_COLOURS["other"]
