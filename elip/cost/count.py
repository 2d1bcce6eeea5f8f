"""Counting multiply-adds: the forward pass by fvcore, the training step by torch.

Each of the two has its blind spots, so the forward pass is counted by both, and a difference is
an error. One multiply-add = 1.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from elip.cost.operators import COUNTED, FREE, TORCH_FORMULAS, Formula
from elip.old_record import Cost
from reducers.contract import Reducer

with warnings.catch_warnings():
    # On import, fvcore scripts a function that is not used here; newer torch warns of that.
    warnings.simplefilter("ignore")
    from fvcore.nn.jit_analysis import JitModelAnalysis

_GIGA = 1e9
# Submodules of METER that run only because a reducer asks for signals.
_FOR_THE_REDUCER = ("image.signals", "image.joint_embeddings", "fusion.reduction")
_SIZES = (
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.numel,
    Tensor.nelement,
    Tensor.__len__,
)
_SCATTERS = (torch.scatter, Tensor.scatter, Tensor.scatter_)


class CostError(RuntimeError):
    """The cost cannot be stated with certainty; the message says why."""


def measure_cost(
    meter: nn.Module,
    forward: Callable[[], object],
    examples: int = 1,
    head: nn.Module | None = None,
) -> Cost:
    """Count one forward pass of METER and of whatever head ``forward`` puts on it.

    Work is booked by what was running: the probe (``image.probe``, the encoder's own blocks that
    it calls included), else the reducer and the signals made for it, else the image encoder
    (``image``), ``text``, METER's other submodules as fusion, and what runs outside METER as head.
    The pass is run twice, in evaluation mode without gradient; random states and modes are left
    as they were.

    Args:
        meter: The model.
        forward: Runs the pass on a batch that it already holds and returns its tensors, for
            instance ``lambda: meter(images, text, "pooled")``.
        examples: Number of examples in that batch.
        head: Whatever else with parameters the pass runs: the task, which owns its heads.

    Returns:
        G multiply-adds an example.

    Raises:
        CostError: An operator is not in the table, or the two counters disagree.
    """
    parts = {"model.image.probe": "probe"}
    parts |= {f"model.{name}": "reducer" for name in _FOR_THE_REDUCER}
    for name, module in meter.named_modules():
        if isinstance(module, Reducer):
            parts[f"model.{name}"] = "reducer"
    parts |= {"model.image": "vision", "model.text": "text"}
    for name, _ in meter.named_children():
        parts.setdefault(f"model.{name}", "fusion")
    counts = count_forward(meter, forward, parts, rest="head", others=head)
    names = [field.name for field in dataclasses.fields(Cost)]
    return Cost(**{name: counts.get(name, 0) / examples / _GIGA for name in names})


def measure_training_cost(model: nn.Module, loss: Callable[[], Tensor], examples: int = 1) -> float:
    """Count one training step: forward, backward, passes without gradient, frozen layers.

    The step is really run, on the model as it stands. Its gradients are dropped; parameters, the
    gradients they had and random states are left as they were. The optimiser's element-wise update
    is not counted.

    Args:
        model: All that is trained.
        loss: Runs the forward pass on a batch that it already holds; returns the scalar loss.
        examples: Number of examples in that batch.

    Returns:
        G multiply-adds an example.
    """
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in saved:
        parameter.grad = None  # a backward pass adds to a gradient that is there, in place
    try:
        with _left_as_it_was(model):
            count = count_run(lambda: loss().backward())
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient
    return count / examples / _GIGA


def count_forward(
    model: nn.Module,
    forward: Callable[[], object],
    parts: Mapping[str, str] | None = None,
    rest: str = "rest",
    others: nn.Module | None = None,
) -> dict[str, int]:
    """Count the multiply-adds of a forward pass, by part.

    Args:
        model: The model that ``forward`` runs; its submodules are called ``model.<path>``.
        forward: Runs the pass and returns its tensors (also inside dataclasses and containers).
        parts: Part that the work of a submodule and of all below it belongs to, by the
            submodule's name. Where several of them are running, the first in this mapping counts.
        rest: Name of the part for work outside all of these.
        others: A module outside the model whose parameters ``forward`` uses too.

    Returns:
        Multiply-adds by part; parts without any are left out.

    Raises:
        CostError: An operator is not in the table, or the two counters disagree.
    """
    traced = _Traced(model, others, forward)
    with torch.no_grad(), _left_as_it_was(traced):
        traced.eval()
        counts = _count_by_fvcore(traced, parts or {}, rest)
        check = count_run(forward)
    total = sum(counts.values())
    if total != check:
        raise CostError(
            f"The two counters disagree on the forward pass: fvcore counts {total:,} "
            f"multiply-adds, torch {check:,}. Either a result is computed and never used (fvcore "
            "leaves such work out: remove it), or an operator is counted by one of them only "
            "(add it to elip/cost/operators.py)."
        )
    return counts


class _Traced(nn.Module):
    """Makes one module of a call and of all whose parameters it uses, as tracing wants it."""

    def __init__(
        self, model: nn.Module, others: nn.Module | None, forward: Callable[[], object]
    ) -> None:
        super().__init__()
        self.model = model
        self.others = others
        self.call = forward

    def forward(self) -> tuple[Tensor, ...]:
        with _PlainNumbers():
            return tuple(_tensors(self.call()))


class _PlainNumbers(TorchFunctionMode):
    """Lets traced code see numbers where it would see them untraced.

    While tracing, torch hands out sizes as tensors, on which ``round`` and the like fail, and
    cannot find `scatter` of a Python bool.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SCATTERS:
            args = tuple(int(value) if isinstance(value, bool) else value for value in args)
            return func(*args, **kwargs)
        if func not in _SIZES:
            return func(*args, **kwargs)
        tracing = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for field in dataclasses.fields(result):
            yield from _tensors(getattr(result, field.name))
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from _tensors(value)


def _count_by_fvcore(traced: _Traced, parts: Mapping[str, str], rest: str) -> dict[str, int]:
    def booked(formula: Formula) -> Callable[[Sequence[Any], Sequence[Any]], Counter[str]]:
        # fvcore groups counts by the key that a formula returns; here that is the part, read off
        # the stack of modules that were running.
        def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
            running = [f"{name}." for name in outputs[0].node().scopeName().split("/")]
            inside = (
                part
                for name, part in parts.items()
                if any(path.startswith(f"{name}.") for path in running)
            )
            part = next(inside, rest)
            return Counter({part: formula(inputs, outputs)})

        return count

    analysis = JitModelAnalysis(traced, ())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle(**dict.fromkeys(FREE))
    analysis.set_op_handle(**{name: booked(formula) for name, formula in COUNTED.items()})
    counts = dict(analysis.by_operator())
    unknown = analysis.unsupported_ops()
    if unknown:
        names = ", ".join(f"{name} ({count} times)" for name, count in sorted(unknown.items()))
        raise CostError(
            f"The cost of these operators is not known: {names}. Give each a formula in COUNTED, "
            "or name it in FREE if it multiplies no matrices (elip/cost/operators.py)."
        )
    return counts


def count_run(run: Callable[[], object]) -> int:
    """Count the multiply-adds of everything that ``run`` does, backward included, by torch.

    Shapes are all that it takes: tensors on the device ``meta`` do. Attention runs as plain matrix
    products, since the fused kernels count differently in their backward passes.
    """
    counter = FlopCounterMode(display=False, custom_mapping=TORCH_FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops()) // 2


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back every submodule's mode and the random states; run what the counters can see.

    That is the uncompiled model, without the fused path of `nn.MultiheadAttention`, which both
    counters take for nothing.
    """
    states = [(module, module.training, module._compiled_call_impl) for module in model.modules()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            for module, _, _ in states:
                module._compiled_call_impl = None
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode, compiled in states:
            module.training = mode
            module._compiled_call_impl = compiled
