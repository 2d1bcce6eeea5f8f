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
    row, column, place = _binary(positions, grid)
    return ((row << 1 | column) << 2 * place).sum(dim=-1)


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
    row, column, place = _binary(positions, grid)
    return (((row ^ column) << 1 | row) << 2 * place.flip(0)).sum(dim=-1)


def _binary(positions: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the binary digits [B,N,bits] of rows and columns, and the digits' places, from 0."""
    bits = max(1, (max(grid) - 1).bit_length())
    place = torch.arange(bits, device=positions.device)
    row, column = ((positions.floor().long().unsqueeze(-1) >> place) & 1).unbind(dim=2)
    return row, column, place
