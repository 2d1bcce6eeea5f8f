"""Count multiply-adds: a forward pass by part with fvcore, a training step with torch.

One multiply-add = 1. Matrix products, convolutions and attention count; element-wise work, norms,
sorting and copying do not. The two counters are independent. The tests compare them with each other
and with closed forms; ``python -m elip.cost --check`` compares them for any method.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from elip.cost.timing import inference, undisturbed
from elip.data.batch import Batch, TextBatch
from elip.model.meter import Meter
from elip.record import Gflops
from elip.tasks.base import Task

with warnings.catch_warnings():
    # On import, fvcore scripts a function that is not used here; newer torch warns of that.
    warnings.simplefilter("ignore")
    from fvcore.nn.jit_analysis import JitModelAnalysis

GIGA = 1e9
PARTS = ("vision", "probe", "reducer", "text", "fusion", "head")


class CostError(RuntimeError):
    """The cost is not known."""


def random_batch(meter: Meter, count: int, task: Task | None = None) -> Batch:
    """Return ``count`` examples of random pixels and words of full length, on the CPU.

    Costs do not depend on their content. The task decides on images, negative texts and targets.
    """
    sizes, generator = meter.sizes, torch.Generator().manual_seed(0)
    length, classes = sizes.max_text_len, getattr(task, "classes", 1)
    kind, texts = (task.spec.kind, task.spec.negative_texts) if task is not None else ("", 0)

    def pixels(number: int) -> Tensor:
        shape = (count, number, 3, sizes.image_size, sizes.image_size)
        return torch.randint(256, shape, generator=generator).to(torch.uint8)

    def words(*shape: int) -> TextBatch:
        ids = torch.randint(5, meter.vocab_size, (*shape, length), generator=generator)
        return TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    # 15 % of the words, rounded up to a multiple of 4 as in `Batch.trimmed`.
    places = min(4 * math.ceil(0.15 * length / 4), length)
    soft = torch.rand(count, classes, generator=generator)
    text = words(count)
    return Batch(
        images=pixels(2 if kind == "pair" else 1),
        text=text,
        strings=("",) * count,
        example=torch.arange(count),
        image_id=torch.arange(count),
        masked=text,
        masked_labels=text.ids.masked_fill(torch.arange(length) >= places, -100),
        masked_places=places,
        negative_images=pixels(1),
        negative_text=words(count, texts) if texts else None,
        target=soft if kind == "question" else torch.arange(count) % classes,
    )


# --- forward pass


def count_forward(meter: Meter, task: Task, batch: Batch) -> Gflops:
    """Count `Task.infer` by part, in evaluation mode: G multiply-adds per example.

    Work outside the model's parts counts as the head's.

    Raises:
        CostError: The cost of an operator that multiplies matrices is unknown.
    """
    counts = count_parts(
        lambda: task.infer(meter, batch), nn.ModuleList([meter, task]), meter.cost_parts(), "head"
    )
    return Gflops(**{part: counts.get(part, 0) / len(batch) / GIGA for part in PARTS})


def count_parts(
    forward: Callable[[], Tensor | tuple[Tensor, ...]],
    model: nn.Module,
    parts: Mapping[str, Sequence[nn.Module]] | None = None,
    rest: str = "rest",
) -> dict[str, int]:
    """Count the multiply-adds of any forward pass by part.

    fvcore traces the pass, so a result that nothing uses is not counted.

    Args:
        forward: Runs the pass and returns its results.
        model: Contains every parameter that the pass uses.
        parts: Modules whose work, with all that they call, belongs to a part. Where modules of
            several parts are running, the first part in this mapping counts.
        rest: Name of the part for work outside all of these.

    Returns:
        Multiply-adds by part; parts without any are left out.

    Raises:
        CostError: An operator multiplies matrices and its cost is not known.
    """
    traced = _Traced(model, forward)
    names = {id(module): name for name, module in traced.named_modules()}
    paths = [
        (part, f"{names[id(module)]}.")
        for part, modules in (parts or {}).items()
        for module in modules
    ]

    def booked(formula: Formula) -> Callable[[Sequence[Any], Sequence[Any]], Counter[str]]:
        # fvcore groups counts by the key that a formula returns. Here that is the part, found from
        # the stack of running modules.
        def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
            stack = [f"{name}." for name in outputs[0].node().scopeName().split("/")]
            running = (part for part, path in paths if any(at.startswith(path) for at in stack))
            return Counter({next(running, rest): formula(inputs, outputs)})

        return count

    with inference(traced, eager=True):
        analysis = JitModelAnalysis(traced, ())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(**{name: booked(each) for name, each in _FORMULAS.items()})
        counts = dict(analysis.by_operator())
    unknown = sorted(name for name in analysis.unsupported_ops() if not _FREE.fullmatch(name))
    if unknown:
        raise CostError(
            f"The cost of {', '.join(unknown)} is not known. Write it as matrix products, or give "
            "it a formula in elip/cost/count.py."
        )
    return {part: count for part, count in counts.items() if count}


class _Traced(nn.Module):
    """Wraps a call in a module, which tracing requires."""

    def __init__(self, model: nn.Module, call: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        with _PlainNumbers():
            return self.call()


_SIZES = (Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement,  # type: ignore[attr-defined]
          Tensor.__len__)  # fmt: skip
_SCATTERS = (torch.scatter, Tensor.scatter, Tensor.scatter_)


class _PlainNumbers(TorchFunctionMode):
    """Gives traced code plain numbers for sizes.

    While tracing, torch returns sizes as tensors, on which ``round`` and the like fail. It also
    rejects a Python bool as the value of `scatter`.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SCATTERS:
            args = tuple(int(value) if isinstance(value, bool) else value for value in args)
        if func not in _SIZES:
            return func(*args, **kwargs)
        tracing = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


# --- what fvcore counts by: multiply-adds of a node of the traced graph

Formula = Callable[[Sequence[Any], Sequence[Any]], int]
"""``formula(inputs, outputs) -> multiply-adds``, on the values of a node of a traced graph."""


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product(first: int) -> Formula:
    """Matrix product whose left factor is argument ``first``: output values times inner size."""
    return lambda inputs, outputs: math.prod(_shape(outputs[0])) * _shape(inputs[first])[-1]


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    # Each output value is one product with a filter of shape [channels in / groups, *kernel].
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    # Scores and their product with the values: for each query, (E + Ev) for each key.
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    queries = math.prod(_shape(outputs[0])[:-1])
    count: int = queries * key[-2] * (query[-1] + value[-1])
    return count


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    # Output values times the indices that two operands share and that are summed. Where nothing is
    # summed over both, torch multiplies element by element: free.
    equation = inputs[0].toIValue().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    if len(operands) > 2 or "." in terms or not arrow:
        raise CostError(
            f"The cost of einsum({equation!r}) is not known. Write it as products of two operands "
            "whose indices are all named, those of the result too."
        )
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    sizes = dict(zip("".join(operands), [n for shape in shapes for n in shape], strict=True))
    summed = set.intersection(*map(set, operands)) - set(result) if operands[1:] else set()
    return math.prod(_shape(outputs[0])) * math.prod(sizes[i] for i in summed) if summed else 0


_FORMULAS: dict[str, Formula | Any] = {
    **dict.fromkeys(("aten::_convolution", "aten::convolution"), _convolution),
    **{f"aten::{name}": _product(0) for name in ("linear", "matmul", "mm", "bmm", "mv", "dot")},
    **{f"aten::{name}": _product(1) for name in ("addmm", "baddbmm", "baddbmm_")},
    "aten::einsum": _einsum,
    "aten::cdist": _product(0),
    "aten::scaled_dot_product_attention": _attention,
}

# Every other operator of torch is free unless its name says that it multiplies matrices. What an
# operator of another library does is not known.
_FREE = re.compile(
    r"aten::(?!\w*(mm|mv|matmul|conv|attention|linalg(?!_vector_norm)|lstm|gru|rnn|cholesky|svd|qr$|lu_|inverse"
    r"|pdist|fft|encoder_layer|multi_dot|tensordot|bilinear$))\w+"
)


# --- training step


def count_training_step(meter: Meter, task: Task, batch: Batch) -> float:
    """Count one step, forward and backward: G multiply-adds per example.

    The step runs for real, in training mode. Passes without gradient and frozen layers count as
    they run, the optimiser's element-wise update does not count.
    """
    both = nn.ModuleList([meter, task])
    with undisturbed(both, eager=True):
        both.train()
        return count_backward(both, lambda: task.loss(meter, batch).total) / len(batch) / GIGA


def count_backward(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Count the multiply-adds of a loss and of its gradient."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return count_run(lambda: torch.autograd.grad(loss(), weights, allow_unused=True))


def count_run(run: Callable[[], object]) -> int:
    """Count the multiply-adds of everything that ``run`` does, by torch.

    Tensors on the device ``meta`` are enough. Attention runs as plain matrix products, because the
    backward passes of fused kernels count differently.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_TORCH_FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops()) // 2


# Operators that torch's counter takes as free. It counts two per multiply-add.
_TORCH_FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys(
        (torch.ops.aten.mv, torch.ops.aten.dot),
        lambda left, right, out_shape=None: 2 * math.prod(left),
    ),
    torch.ops.aten.baddbmm_: lambda added, left, right, *_, out_shape=None, **__: (
        2 * math.prod(left) * right[-1]
    ),
    **dict.fromkeys(
        (torch.ops.aten._cdist_forward, torch.ops.aten._euclidean_dist),
        lambda left, right, *_, out_shape=None: 2 * math.prod(out_shape) * left[-1],
    ),
}


# --- both counters, and operators


def check_count(meter: Meter, task: Task, batch: Batch) -> Gflops:
    """Count a forward pass with both counters.

    Raises:
        CostError: They disagree.
    """
    cost = count_forward(meter, task, batch)
    with inference(meter, task, eager=True):
        other = count_run(lambda: task.infer(meter, batch))
    total = round((cost.total or 0) * len(batch) * GIGA)
    if total != other:
        raise CostError(
            f"The two counters disagree: fvcore counts {total:,} multiply-adds, torch {other:,}. "
            "Either a result is computed and never used (remove it), or one of them does not know "
            "an operator (give it a formula in elip/cost/count.py)."
        )
    return cost


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view  # views launch nothing
        return func(*args, **(kwargs or {}))


def count_operators(meter: Meter, task: Task, batch: Batch) -> int:
    """Count the operators of one forward pass, without views."""
    with inference(meter, task, eager=True), _Launches() as launches:
        task.infer(meter, batch)
    count: int = launches.count
    return count
