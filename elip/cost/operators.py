"""Which operators cost what: the one table that the counters go by.

Every operator of a traced forward pass is either in `COUNTED`, with a formula for its
multiply-adds, or in `FREE`, which counts zero. There is no third kind. fvcore's own short list of
shape and copy operators counts zero as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Formula = Callable[[Sequence[Any], Sequence[Any]], int]
"""``formula(inputs, outputs) -> multiply-adds``, on the values of a node of a traced graph."""


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    # Each output value is one product with a filter of shape [channels in / groups, *kernel].
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _product(first: int) -> Formula:
    """Matrix product whose left factor is argument ``first``: output values times inner size.

    Holds for vectors, for batches and for broadcast batches alike.
    """

    def formula(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        return math.prod(_shape(outputs[0])) * _shape(inputs[first])[-1]

    return formula


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Output values times the sizes of the indices that both operands share and that are summed.

    Where nothing is summed over both operands, torch multiplies element by element: free.

    Raises:
        NotImplementedError: More than two operands, whose order of products is torch's choice.
    """
    equation = inputs[0].toIValue().replace(" ", "")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2:
        raise NotImplementedError(
            f"einsum({equation!r}) has {len(terms)} operands; write it as products of two, so "
            "that its cost is certain."
        )
    names = "".join(terms)
    single = "".join(name for name in sorted(set(names)) if names.count(name) == 1)
    result = equation.split("->")[1] if "->" in equation else single
    summed = (set(terms[0]) & set(terms[1])) - set(result) - {"."}
    if not summed:
        return 0
    left, shape = terms[0], shapes[0]
    if "." in left:
        before, after = left.split("...")
        sizes = dict(zip(before, shape, strict=False)) | dict(
            zip(reversed(after), reversed(shape), strict=False)
        )
    else:
        sizes = dict(zip(left, shape, strict=True))
    inner: int = math.prod(sizes[name] for name in summed)
    return math.prod(_shape(outputs[0])) * inner


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Scores and their product with the values: for each query, (E + Ev) for each key."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    queries = math.prod(_shape(outputs[0])[:-1])
    count: int = queries * key[-2] * (query[-1] + value[-1])
    return count


def _distance(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


COUNTED: dict[str, Formula] = {
    "aten::_convolution": _convolution,
    "aten::convolution": _convolution,
    "aten::linear": _product(0),
    "aten::matmul": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::addmm": _product(1),
    "aten::baddbmm": _product(1),
    "aten::einsum": _einsum,
    "aten::cdist": _distance,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
}

_FREE = {
    "activations": "celu dropout elu gelu glu hardtanh leaky_relu log_sigmoid log_softmax relu "
    "selu sigmoid silu softmax softplus tanh threshold",
    "normalisation": "batch_norm group_norm instance_norm layer_norm linalg_norm "
    "linalg_vector_norm norm normalize rms_norm cosine_similarity",
    "arithmetic, element by element": "abs add addcdiv addcmul ceil clamp clamp_max clamp_min "
    "cos deg2rad div erf exp expm1 floor floor_divide fmod lerp log log10 log1p log2 maximum "
    "minimum mul neg outer pow reciprocal remainder round rsqrt rsub sign sin sqrt square sub "
    "true_divide trunc",
    "logic and comparison": "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ "
    "__ilshift__ __irshift__ __ixor__ bitwise_and bitwise_left_shift bitwise_not bitwise_or "
    "bitwise_right_shift bitwise_xor eq equal ge gt isfinite isinf isnan le logical_and "
    "logical_not logical_or logical_xor lt nan_to_num ne where",
    "reductions": "all amax amin any argmax argmin bincount count_nonzero cummax cumprod cumsum "
    "logcumsumexp logsumexp max mean median min prod std std_mean sum var var_mean",
    "order": "argsort bucketize kthvalue searchsorted sort topk unique_consecutive unique_dim "
    "_unique2",
    "indexing": "embedding gather index index_add index_copy index_fill index_put index_select "
    "masked_fill masked_scatter masked_select nonzero one_hot scatter scatter_add scatter_reduce "
    "take take_along_dim tril triu",
    "shape and memory": "alias as_strided broadcast_tensors broadcast_to cat chunk clone "
    "concat constant_pad_nd contiguous copy cpu cuda detach detach_ diagonal double expand "
    "expand_as fill flatten flip float half hstack lift_fresh long matrix_H meshgrid mH mT "
    "movedim narrow numpy_T pad permute repeat repeat_interleave reshape reshape_as "
    "resolve_conj roll select select_scatter slice slice_scatter split split_with_sizes squeeze "
    "stack swapaxes t T tile to transpose type_as unbind unflatten unfold unsqueeze view view_as "
    "vstack zero",
    "creation": "arange bernoulli empty empty_like exponential eye full full_like linspace "
    "multinomial new_empty new_full new_ones new_zeros normal ones ones_like rand rand_like "
    "randint randn randn_like randperm scalar_tensor tensor uniform zeros zeros_like",
    "numbers": "Bool Float FloatImplicit Int IntImplicit ScalarImplicit dim is_floating_point item "
    "len numel size sym_size",
    "losses": "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy_loss kl_div "
    "mse_loss nll_loss nll_loss_nd",
}

FREE: frozenset[str] = frozenset(
    f"aten::{name}{ending}" for group in _FREE.values() for name in group.split()
    for ending in ("", "_")
)  # fmt: skip
"""Operators that count zero, in place or not."""


def _vector_product(left: Sequence[int], right: Sequence[int], out_shape: Any = None) -> int:
    return 2 * math.prod(left)


def _cdist(left: Sequence[int], right: Sequence[int], *_: Any, out_shape: Any = None) -> int:
    count: int = 2 * math.prod(out_shape) * left[-1]
    return count


# What torch's own counter leaves at zero. Its convention is two for a multiply-add.
TORCH_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _vector_product,
    torch.ops.aten.dot: _vector_product,
    torch.ops.aten._cdist_forward: _cdist,
    torch.ops.aten._euclidean_dist: _cdist,
}
