"""Checks that a reducer keeps its contract; errors name the reducer, the layer and the fault.

Shapes are checked in every call, which costs nothing. To check values, the host must wait for the
device: `elip.training.watch` does so in the first batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from elip.model.interface import EncodedImage
from reducers import shelf
from reducers.contract import SIGNALS, Placement, Reduced, Reducer, Signal, Signals

_FLOATS = {torch.float32, torch.float16, torch.bfloat16}


class ContractError(ValueError):
    """A reducer breaks its contract."""


def refuse_namesake(kind: type, known: Mapping[str, type]) -> None:
    """Raise `ContractError` if a foreign class has the name of one of the ``known`` classes."""
    if known.get(kind.__name__, kind).__module__ != kind.__module__:
        raise ContractError(
            f"{kind.__name__} of {kind.__module__} has the name of a built-in class, and records "
            "and reports would confuse the two. Give it another name."
        )


def declared(reducer: Reducer) -> None:
    """Check what a reducer declares: its name, placement, signals and signature.

    Raises:
        ContractError: A declaration is not allowed.
    """
    name, places = type(reducer).__name__, get_args(Placement)
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
    if not isinstance(reducer.needs, frozenset) or not reducer.needs <= set(SIGNALS):
        raise ContractError(
            f"Reducer {name} needs {reducer.needs!r}; give a frozenset of {', '.join(SIGNALS)}."
        )


def reduce(
    reducer: Reducer,
    image: EncodedImage,
    num_keep: int,
    layer: int,
    grid: tuple[int, int],
    requested: Mapping[Signal, Any],
) -> Reduced:
    """Let a reducer reduce an image to ``num_keep`` tokens at a layer, and check the result.

    CLS stays with the host unless the method includes it. ``requested`` are the signals that the
    method needs.
    """
    start = 0 if reducer.includes_cls and reducer.placement == "fusion" else 1
    patches, padded = image.tokens[:, start:], image.mask is not None
    signals = Signals(
        cls=image.tokens[:, :1],
        stage=len(image.stages),
        layer=layer,
        grid=grid,
        seeds=image.seeds,
        mask=None if image.mask is None else image.mask[:, start:],
        requested=requested,
        reader=type(reducer).__name__,
    )
    reduced: Reduced = reducer(patches, num_keep, signals)
    check(reducer, reduced, patches, num_keep, padded)
    return reduced


def check(reducer: Reducer, reduced: Reduced, patches: Tensor, num_keep: int, padded: bool) -> None:
    """Check the types and shapes of a reducer's result for the input ``patches`` [B,N,D].

    ``padded`` says whether the input contains padding.

    Raises:
        ContractError: A type or shape is wrong, or there is a mask although ``fixed_count`` is set.
    """
    broke = f"Reducer {type(reducer).__name__} broke its contract: it"
    if not isinstance(reduced, Reduced):
        raise ContractError(f"{broke} must return a Reduced, not a {type(reduced).__name__}.")

    def same(what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        # Under autocast a method may return another float type, as every layer does.
        alike = tensor.dtype == dtype or (
            {tensor.dtype, dtype} <= _FLOATS and torch.is_autocast_enabled(tensor.device.type)
        )
        if tuple(tensor.shape) != shape or not alike:
            given = tuple(tensor.shape) if tuple(tensor.shape) != shape else tensor.dtype
            raise ContractError(
                f"{broke} must return {what} of shape {shape} ({dtype}), but returned {given}."
            )

    batch, count, width = patches.shape
    same("tokens", reduced.tokens, (batch, num_keep, width), patches.dtype)
    same("assignment", reduced.assignment, (batch, count), torch.int64)
    if reduced.mask is not None:
        if reducer.fixed_count and not padded:
            raise ContractError(
                f"{broke} returned a mask although it declares fixed_count. Declare "
                "fixed_count = False, so that real tokens are counted, or return no mask."
            )
        same("mask", reduced.mask, (batch, num_keep), torch.bool)


@torch.no_grad()
def examine(reducer: Reducer, reduced: Reduced, patches: Tensor, layer: int) -> None:
    """Check the values of a result whose shapes are right; the host waits for the device once.

    Raises:
        ContractError: Tokens are not finite although the input is, the assignment points outside
            the tokens, or a token has no patches.
    """
    went, count = reduced.assignment, reduced.tokens.shape[1]
    inside = (went >= -1) & (went < count)
    # Two extra places collect dropped patches and wrong assignments.
    place = torch.where(went == -1, count, torch.where(inside, went, count + 1))
    members = torch.zeros(len(went), count + 2, dtype=torch.bool, device=went.device)
    members = members.scatter(1, place, True)[:, :count]
    real = torch.ones_like(members) if reduced.mask is None else reduced.mask
    finite = torch.isfinite(reduced.tokens).all(dim=-1) | ~real
    # Broken input is not this method's fault.
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
