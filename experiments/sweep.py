"""The work of a grid's processes: parse a run, run it, or score many runs in one sweep.

The fork server imports this module, and so the model, once for all its children.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer

from elip.cost.budget import BudgetError, match_gflops
from elip.cost.cached import COSTS_NAME, time_together
from elip.data.batch import Batch
from elip.data.datamodule import DataModule
from elip.model.config import MeterConfig
from elip.schedule import Schedule
from elip.tasks.base import Task
from elip.training import cli
from elip.training.module import MeterModule
from elip.training.parse import ParsedRun
from elip.training.recorder import Recorder
from experiments.grid import BUDGET, Cell, Draft
from reducers import Identity
from reducers import shelf as all_reducers
from reducers.contract import Placement, Reducer

log = logging.getLogger(__name__)


def shelf() -> list[str]:
    """Return the names of all reducers."""
    return list(all_reducers())


# --------------------------------------------------------------------------------- parsing


def parse_draft(draft: Draft, root: Path) -> Cell | str:
    """Return a draft as a cell of the grid in ``root``, or an error message if it is invalid."""
    args = ["--trainer.enable_progress_bar=false", *draft.args]  # a progress bar would fill the log
    start = [] if draft.parent is None else ["--model.weights=the earlier stage's"]
    labels = dict(draft.labels)

    def parse() -> ParsedRun:
        return cli.parse([draft.stage.command, *args, *start], draft.parent_id)

    try:
        parsed, ratio = parse(), None
        if not _reduces(parsed.config):
            # Keep ratio and budget have no effect.
            labels = {a: b for a, b in labels.items() if a not in ("keep_ratio", BUDGET)}
            ratio = None if labels == draft.labels else 1.0
        elif draft.budget is not None:
            ratio = match_budget(draft.budget, parsed.config)
        if ratio is not None:
            args.append(f"--model.schedule.keep_ratio={ratio!r}")
            parsed = parse()
    except (ValueError, OSError, BudgetError) as error:
        return str(error)
    return draft.cell(root, labels, args, parsed)


def _reduces(config: Mapping[str, Any]) -> bool:
    """Return whether the reducer acts. Raise ValueError if schedule and sizes do not fit."""
    placement: Placement = "never"
    if (given := config["model"]["reducer"]) is not None:
        module, _, name = given["class_path"].rpartition(".")
        placement = getattr(import_module(module), name).placement
    sizes = MeterConfig(**config["model"]["meter"]).resolve()
    blocks = sizes.fusion_layers if placement == "fusion" else sizes.image_blocks
    if placement != "never" and blocks is not None:
        patches = (sizes.image_size // sizes.patch_size) ** 2
        _schedule(config).plan(patches, blocks, placement)
    return placement != "never"


def match_budget(budget: Any, config: Mapping[str, Any]) -> float:
    """Return the keep ratio at which a model meets a budget.

    Raises:
        ValueError: The budget is malformed.
        BudgetError: No keep ratio meets it.
    """
    target = budget.get("gflops") if isinstance(budget, dict) and len(budget) == 1 else None
    if not isinstance(target, int | float) or not target > 0:
        raise ValueError(f"budget is {budget!r}; give {{gflops: NUMBER}} with a number above 0.")
    info = DataModule(**config["data"]).info
    with torch.device("meta"):
        module = MeterModule(
            _build(Task, config["model"]["task"]), _reducer(config), _schedule(config),
            MeterConfig(**config["model"]["meter"]), vocab_size=info.vocab_size,
            num_answers=info.num_answers,
        )  # fmt: skip
    found = match_gflops(target, module.meter, module.task, module.schedule)
    assert found.keep_ratio is not None
    return found.keep_ratio


def _reducer(config: Mapping[str, Any]) -> Reducer:
    given = config["model"]["reducer"]
    return Identity() if given is None else _build(Reducer, given)


def _schedule(config: Mapping[str, Any]) -> Schedule:
    given = config["model"]["schedule"]
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Schedule(**options)


def _build(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """Build an object from a resolved configuration."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=kind)
    return parser.instantiate(parser.parse_object({"it": dict(given)})).it


# --------------------------------------------------------------------------------- running


def run(args: Sequence[str], grid: str, stage: str, axes: Mapping[str, str]) -> int:
    """Run one cell and return the exit status."""
    return cli.run(args, grid, stage, axes)


def sweep(grid: str, cells: Sequence[Cell], arguments: Sequence[Sequence[str]]) -> int:
    """Score many runs in one pass over the data and return the exit status.

    A reducer with weights of its own runs alone: building its model initialises them.
    """
    together: list[_Asked] = []
    alone: list[_Asked] = []
    for cell, args in zip(cells, arguments, strict=True):
        asked: _Asked = args, grid, cell.stage.name, cell.labels
        (alone if _reducer(cell.config).trained else together).append(asked)
    status = 0
    if together:
        many = Sweep(together)
        status = cli.run(*together[0], around=many.around)
        status = max(status, int(any(run.failed for run in many.runs)))
    for asked in alone:
        if status != 130:  # stopped
            status = max(status, cli.run(*asked))
    return status


_Asked = tuple[Sequence[str], str, str, Mapping[str, str]]
"""The arguments of `run`."""


@dataclass
class _Run:
    """One run of a sweep: its callbacks, and its share of the module's state."""

    parsed: ParsedRun
    recorder: Recorder
    callbacks: list[Callback]
    reduction: Any  # its `Meter.reduction`
    state: dict[str, Any]
    failed: bool = False


# What scoring keeps in the module; each run of a sweep has its own.
_STATE = ("notes", "schedule", "results", "_evaluators", "_seen")


class Sweep(Callback):
    """Scores many reductions of one model in one pass over the data.

    The runs differ only in reducer and schedule. For each batch, reading, text encoding and the
    blocks before the first reduction happen once. Then every run finishes the batch. Each has its
    own callbacks and writes the same files as a separate run. If one fails, the others continue.

    Args:
        asked: The arguments of `run` for each run.

    Attributes:
        runs: The runs, once `around` has prepared them.
    """

    def __init__(self, asked: Sequence[_Asked]) -> None:
        self._asked = asked
        self.runs: list[_Run] = []

    @contextmanager
    def around(self, first: ParsedRun, trainer: Trainer, module: MeterModule) -> Iterator[None]:
        """Make module and trainer of the first run serve all runs."""
        self._module, self._trainer = module, cast(Any, trainer)
        module.eval()  # so that every reducer is set in this mode; Lightning reaches only one
        with ExitStack() as stack:
            for args, grid, cell_stage, axes in self._asked:
                parsed = cli.parse(args)
                if parsed.run_dir != first.run_dir:
                    stack.enter_context(cli.hold_directory(parsed, trainer, True))
                schedule = _schedule(parsed.config)
                module.meter.set_reduction(_reducer(parsed.config), schedule)
                recorder = Recorder(parsed, {"grid": grid, "stage": cell_stage, "axes": dict(axes)})
                callbacks = cli.scoring_callbacks(parsed, recorder)
                state = {name: copy(vars(module)[name]) for name in _STATE}
                state["schedule"] = schedule
                reduction = module.meter.reduction
                self.runs.append(_Run(parsed, recorder, callbacks, reduction, state))
            trainer.callbacks, trainer.loggers = [self], []  # type: ignore[attr-defined]
            for stage in ("validation", "test"):
                for name in (f"on_{stage}_epoch_start", f"{stage}_step", f"on_{stage}_epoch_end"):
                    setattr(module, name, self._for_all_runs(getattr(module, name)))
            vars(module)["predict_step"] = lambda *given: []  # see `on_predict_batch_end`
            yield

    def _for_each(self, do: Callable[[_Run], Any]) -> None:
        """Do something for each run, with the module and the trainer in its state."""
        module = self._module
        for run in self.runs:
            if run.failed:
                continue
            module.meter.reduction = run.reduction
            vars(module).update(run.state)
            self._trainer._default_root_dir = str(run.parsed.run_dir)
            try:
                do(run)
            except Exception as error:
                log.exception("%s failed", run.parsed.run_dir)
                run.failed = True
                for callback in run.callbacks:
                    callback.on_exception(self._trainer, module, error)
                if all(each.failed for each in self.runs):
                    raise
            run.state = {name: vars(module)[name] for name in _STATE}

    def _for_all_runs(self, hook: Callable[..., Any]) -> Callable[..., None]:
        """Return a hook of the module that calls the given one for each run."""

        @wraps(hook)
        def call(*given: Any, **named: Any) -> None:
            with self._module.meter.reuse_encodings():
                self._for_each(lambda run: hook(*given, **named))

        return call

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *where: int
    ) -> None:
        """Predict a batch for each run."""

        def predict(run: _Run) -> None:
            rows = self._module.task.predict(self._module.meter, batch)
            for callback in run.callbacks:
                callback.on_predict_batch_end(trainer, module, rows, batch, *where)

        with self._module.meter.reuse_encodings():
            self._for_each(predict)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Time all runs together, and write their records."""
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        for run in self.runs:
            run.recorder._watch.stop()
        time_together(
            self._module.meter, self._module.task,
            [run.reduction for run in self.runs if not run.failed],
            self.runs[0].parsed.run_dir.parent / COSTS_NAME,
            precision=str(trainer.precision), facts={"compile": self._module.compiled},
        )  # fmt: skip
        _forward("teardown")(self, trainer, module, stage)


def _forward(hook: str) -> Callable[..., None]:
    """Return a hook that calls this hook of every run's callbacks."""

    def call(self: Sweep, *given: Any, **named: Any) -> None:
        self._for_each(lambda run: [getattr(each, hook)(*given, **named) for each in run.callbacks])

    return call


for _stage in ("validation", "test", "predict"):
    for _hook in (f"on_{_stage}_start", f"on_{_stage}_end"):
        setattr(Sweep, _hook, _forward(_hook))
for _hook in ("setup", "on_exception"):
    setattr(Sweep, _hook, _forward(_hook))
