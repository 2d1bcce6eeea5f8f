"""Orders of the patch grid by position alone."""

from __future__ import annotations

import torch
from torch import Tensor


def z_order(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Number positions along a Z-shaped curve.

    The bits of row and column alternate, so the numbers in each aligned square of 2, 4, 8, ...
    patches are consecutive.

    Source: Morton, A Computer Oriented Geodetic Data Base, 1966.

    Args:
        positions: [B,N,2] float, row and column in patches.
        grid: Rows and columns of the grid.

    Returns:
        [B,N] int64; positions between patches are rounded down.
    """
    row, column, place = _binary(positions, grid)
    return ((row << 1 | column) << 2 * place).sum(dim=-1)


def spread_order(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Number positions so that the first K are spread evenly over the grid, for any K.

    The first quarter is every second row and column, the first half a chessboard, and so on at
    every scale, as in a Bayer matrix.

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
    """Return the bits [B,N,bits] of rows and columns, lowest first, and the bits' indices."""
    bits = max(1, (max(grid) - 1).bit_length())
    place = torch.arange(bits, device=positions.device)
    row, column = ((positions.floor().long().unsqueeze(-1) >> place) & 1).unbind(dim=2)
    return row, column, place
