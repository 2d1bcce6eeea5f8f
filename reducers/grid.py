"""Orders of the patch grid that know nothing but places."""

from __future__ import annotations

import torch
from torch import Tensor


def z_order(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Number places along a Z-shaped curve, on which near numbers are near places.

    The bits of row and column take turns: in each aligned square of 2, 4, 8, ... patches the
    numbers are consecutive.

    Source: Morton, A Computer Oriented Geodetic Data Base, 1966.

    Args:
        positions: [B,N,2] float, row and column in patches.
        grid: Rows and columns of the grid.

    Returns:
        [B,N] int64; places between patches count as the patch that they are rounded down to.
    """
    row, column = positions.floor().long().unbind(dim=-1)
    number = torch.zeros_like(row)
    for bit in range(_bits(grid)):
        pair = (((row >> bit) & 1) << 1) | ((column >> bit) & 1)
        number = number | (pair << (2 * bit))
    return number


def spread_order(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Number places so that any first K of them are spread evenly over the grid.

    The first quarter is every second row and column, the first half a chessboard, and so on at
    every scale: the order of a Bayer matrix.

    Source: Bayer, An optimum method for two-level rendition of continuous-tone pictures, 1973.

    Args:
        positions: [B,N,2] float, row and column in patches.
        grid: Rows and columns of the grid.

    Returns:
        [B,N] int64.
    """
    row, column = positions.floor().long().unbind(dim=-1)
    bits = _bits(grid)
    number = torch.zeros_like(row)
    for bit in range(bits):
        across = ((row ^ column) >> bit) & 1
        pair = (across << 1) | ((row >> bit) & 1)
        number = number | (pair << (2 * (bits - 1 - bit)))
    return number


def _bits(grid: tuple[int, int]) -> int:
    return max(1, (max(grid) - 1).bit_length())
