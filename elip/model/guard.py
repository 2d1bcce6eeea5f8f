"""Holds a reducer to its contract while it runs, and says which one broke it, where and how.

Shapes are looked at in every call; they cost nothing. For values the host has to wait for the
device: `elip.training.watch` says when that is done.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from reducers import shelf
from reducers.contract import SIGNALS, Placement, Reduced, Reducer

_FLOATS = {torch.float32, torch.float16, torch.bfloat16}


class ContractError(ValueError):
    """A reducer breaks its contract; the message names it and says how."""


def refuse_namesake(kind: type, known: Mapping[str, type]) -> None:
    """Hold a class of somebody else's to a name of its own.

    Args:
        kind: The class.
        known: Ours of its sort, by name.

    Raises:
        ContractError: It goes by the name of another.
    """
    if known.get(kind.__name__, kind).__module__ != kind.__module__:
        raise ContractError(
            f"{kind.__name__} of {kind.__module__} has the name of a built-in class, for which "
            "records and reports would take it. Give it another name."
        )


def declared(reducer: Reducer) -> None:
    """Hold a reducer to what it may say of itself.

    Raises:
        ContractError: It acts at no known place, needs a signal that there is none of, cannot be
            called with what reducers are handed, or goes by the name of another on the shelf.
    """
    name, places, signals = type(reducer).__name__, get_args(Placement), SIGNALS
    refuse_namesake(type(reducer), shelf())
    if not hasattr(reducer, "_forward_hooks"):
        raise ContractError(f"Reducer {name}: its __init__ must call super().__init__() first.")
    try:
        inspect.signature(reducer.forward).bind("patches", "num_keep", "signals")
    except TypeError as error:
        raise ContractError(
            f"Reducer {name}: forward must take (patches, num_keep, signals): {error}."
        ) from error
    if reducer.placement not in places:
        raise ContractError(
            f"Reducer {name}: placement is {reducer.placement!r}; it may be {', '.join(places)}."
        )
    if not isinstance(reducer.needs, frozenset) or not reducer.needs <= set(signals):
        raise ContractError(
            f"Reducer {name} needs {reducer.needs!r}; give a frozenset of {', '.join(signals)}."
        )


def check(reducer: Reducer, reduced: Reduced, patches: Tensor, num_keep: int, padded: bool) -> None:
    """Hold a reducer to the type and shapes of its contract.

    Args:
        reducer: The method.
        reduced: What it returned.
        patches: [B,N,D], what it was given.
        num_keep: K, how many tokens it was to return.
        padded: Whether there is padding among what it was given.

    Raises:
        ContractError: It returned no `Reduced`, another number of tokens, an assignment or a
            mask of another shape or type, or a mask although it says that its count is fixed.
    """
    if not isinstance(reduced, Reduced):
        raise ContractError(
            f"Reducer {type(reducer).__name__} broke its contract: it was to return a Reduced and "
            f"returned a {type(reduced).__name__}."
        )
    batch, count, width = patches.shape
    _same(reducer, "tokens", reduced.tokens, (batch, num_keep, width), patches.dtype)
    _same(reducer, "assignment", reduced.assignment, (batch, count), torch.int64)
    if reduced.mask is not None:
        if reducer.fixed_count and not padded:
            raise ContractError(
                f"Reducer {type(reducer).__name__} broke its contract: it returned a mask although "
                "it says fixed_count. Say fixed_count = False, so that what is real is counted; "
                "or return no mask."
            )
        _same(reducer, "mask", reduced.mask, (batch, num_keep), torch.bool)


def _same(
    reducer: Reducer, what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    # Under autocast a method may return another float type, as every layer does.
    alike = tensor.dtype == dtype or (
        {tensor.dtype, dtype} <= _FLOATS and torch.is_autocast_enabled(tensor.device.type)
    )
    if tuple(tensor.shape) != shape or not alike:
        given = tuple(tensor.shape) if tuple(tensor.shape) != shape else tensor.dtype
        raise ContractError(
            f"Reducer {type(reducer).__name__} broke its contract: it was to return {what} of "
            f"shape {shape} ({dtype}) and returned {given}."
        )


@torch.no_grad()
def looks_wrong(reduced: Reduced) -> bool:
    """Take a cheap look at the values: whether a closer one, `examine`, is called for."""
    low, high = reduced.assignment.aminmax()
    inside = int(low) >= -1 and int(high) < reduced.tokens.shape[1]
    return not (inside and math.isfinite(float(reduced.tokens.sum())))


@torch.no_grad()
def examine(reducer: Reducer, reduced: Reduced, patches: Tensor, layer: int) -> None:
    """Hold a reducer to the values of its contract; the host waits for the device once.

    Args:
        reducer: The method.
        reduced: What it returned, of the right shapes.
        patches: [B,N,D], what it was given.
        layer: The reduction layer.

    Raises:
        ContractError: Its tokens are not finite although what it was given is, its assignment
            points at no token, or a token stands for nothing.
    """
    went, count = reduced.assignment, reduced.tokens.shape[1]
    inside = (went >= -1) & (went < count)
    # Two more places take what is dropped and what points outside.
    place = torch.where(went == -1, count, torch.where(inside, went, count + 1))
    members = torch.zeros(len(went), count + 2, dtype=torch.bool, device=went.device)
    members = members.scatter(1, place, True)[:, :count]
    real = torch.ones_like(members) if reduced.mask is None else reduced.mask
    finite = torch.isfinite(reduced.tokens).all(dim=-1) | ~real
    # What came in broken is not this method's fault.
    came = torch.isfinite(patches).flatten(1).all(dim=1, keepdim=True)
    faults = {
        "tokens that are not finite, from patches that are": ~finite & came,
        f"an assignment outside -1 to {count - 1}": ~inside,
        "tokens that no old token went into": real & ~members,
    }
    found = torch.stack([fault.any() for fault in faults.values()]).tolist()
    for (what, fault), wrong in zip(faults.items(), found, strict=True):
        if wrong:
            row, where = fault.nonzero()[0].tolist()
            raise ContractError(
                f"Reducer {type(reducer).__name__} broke its contract at reduction layer {layer}: "
                f"it returned {what} ({int(fault.sum())} of them; the first: example {row} of the "
                f"batch, place {where})."
            )
