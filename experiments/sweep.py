"""The work of a grid's processes: parse a run, run it, or score many runs in one sweep.

The fork server imports this module, and so the model, once for all its children.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from elip.cost.budget import BudgetError, match_gflops
from elip.cost.cached import COSTS_NAME, time_together
from elip.data.batch import Batch
from elip.data.datamodule import DataModule
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.base import Evaluator, Task
from elip.training import cli
from elip.training.module import MeterModule
from elip.training.recorder import Recorder
from experiments.grid import BUDGET, Cell, Draft, Parsed
from reducers import Identity
from reducers import shelf as all_reducers
from reducers.contract import Placement, Reducer

log = logging.getLogger(__name__)


def shelf() -> list[str]:
    """Return the names of all reducers."""
    return list(all_reducers())


# --------------------------------------------------------------------------------- parsing


def parse_draft(draft: Draft, parent_id: str | None) -> Parsed | str:
    """Parse a run. Return an error message if it is invalid.

    Args:
        draft: The run.
        parent_id: Id of its initial weights, if an earlier stage makes them.
    """
    args = ["--trainer.enable_progress_bar=false", *draft.args]  # a progress bar would fill the log
    start = [] if parent_id is None else ["--model.weights=the earlier stage's"]
    labels = dict(draft.labels)

    def parse() -> cli.ParsedRun:
        return cli.parse([draft.stage.command, *args, *start], parent_id)

    try:
        parsed = parse()
        if not _reduces(parsed.config):
            # Keep ratio and budget have no effect.
            labels = {a: b for a, b in labels.items() if a not in ("keep_ratio", BUDGET)}
            if labels != draft.labels:
                args.append("--model.schedule.keep_ratio=1.0")
                parsed = parse()
        elif draft.budget is not None:
            args.append(
                f"--model.schedule.keep_ratio={match_budget(draft.budget, parsed.config)!r}"
            )
            parsed = parse()
    except (ValueError, OSError, BudgetError) as error:
        return str(error)
    return Parsed(labels, tuple(args), parsed.run_id, parsed.stated, parsed.config)


def _reduces(config: Mapping[str, Any]) -> bool:
    """Return whether the reducer acts. Raise ValueError if schedule and sizes do not fit."""
    model = config["model"]
    placement: Placement = "never"
    if model["reducer"] is not None:
        module, _, name = model["reducer"]["class_path"].rpartition(".")
        placement = getattr(importlib.import_module(module), name).placement
    sizes = MeterConfig(**model["meter"]).resolve()
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


def _reducer(config: Mapping[str, Any]) -> Reducer | None:
    given = config["model"]["reducer"]
    return None if given is None else _build(Reducer, given)


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


def sweep(grid: str, cells: Sequence[Cell], arguments: Sequence[list[str]]) -> int:
    """Score many runs in one pass over the data and return the exit status.

    Args:
        grid: Name of the grid.
        cells: The runs.
        arguments: Their command lines.
    """
    settings = [
        _Setting(cell, tuple(args), {"grid": grid, "stage": cell.stage.name, "axes": cell.labels})
        for cell, args in zip(cells, arguments, strict=True)
    ]
    # Build the shared model without a learned reducer: its weights would be missing.
    settings.sort(key=lambda each: _reducer(each.cell.config) is not None)
    all_at_once, first = Sweep(settings), settings[0]
    status = cli.run(first.args, **first.labels, around=all_at_once.around)
    for each in all_at_once.learned:
        status = max(status, cli.run(each.args, **each.labels))
    return max(status, int(any(each.failed for each in settings)))


@dataclass
class _Setting:
    """One run of a sweep.

    Attributes:
        cell: The run.
        args: The command line that runs it alone.
        labels: ``grid``, ``stage`` and ``axes``.
        reducer: Its method.
        schedule: Its schedule.
        recorder: Writes its record.
        callbacks: The callbacks of a separate run.
        results: For each split: scores, chance, per-example scores, predictions.
        notes: Notes for its record.
        failed: Whether it has failed. The others continue.
        reduction: Its `Meter.reduction`.
    """

    cell: Cell
    args: tuple[str, ...]
    labels: dict[str, Any]
    reducer: Reducer = field(init=False)
    schedule: Schedule = field(init=False)
    recorder: Recorder = field(init=False)
    callbacks: list[Callback] = field(default_factory=list)
    results: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    reduction: Any = None

    def parsed(self, first: cli.ParsedRun) -> cli.ParsedRun:
        """Return this run, derived from the first one of the sweep."""
        config = _with_method(first.config, self.cell.config)
        stated = _with_method(first.stated, self.cell.stated)
        for each in (config, stated):
            each["trainer"]["default_root_dir"] = str(self.cell.folder)
        return replace(
            first, config=config, stated=stated, run_id=self.cell.run_id,
            run_dir=self.cell.folder, args=self.args,
        )  # fmt: skip


class Sweep(Callback):
    """Scores many reductions of one model in one pass over the data.

    The runs differ only in reducer and schedule. For each batch, reading, text encoding and the
    blocks before the first reduction happen once. Then every setting finishes the batch. Each run
    has its own callbacks and writes the same files as a separate run.

    Args:
        settings: The runs.

    Attributes:
        learned: Runs whose reducer has weights. Building the model initialises those, so these
            runs follow separately.
    """

    def __init__(self, settings: Sequence[_Setting]) -> None:
        self._settings = list(settings)
        self.learned: list[_Setting] = []
        self._module: MeterModule
        self._trainer: Trainer

    @contextmanager
    def around(self, first: cli.ParsedRun, trainer: Trainer, module: MeterModule) -> Iterator[None]:
        """Replace the first run's callbacks by those of all runs."""
        self._module, self._trainer = module, trainer
        runs = []
        for setting in list(self._settings):
            parsed = setting.parsed(first)
            setting.reducer = _reducer(parsed.config) or Identity()
            setting.schedule = _schedule(parsed.config)
            module.meter.set_reduction(setting.reducer, setting.schedule)
            setting.reduction = module.meter.reduction
            if any(True for _ in setting.reducer.parameters()):
                self._settings.remove(setting)
                self.learned.append(setting)
                continue
            setting.notes = list(module.notes)
            setting.recorder = Recorder(parsed, setting.labels)
            setting.callbacks = cli.scoring_callbacks(parsed, setting.recorder)
            runs.append(parsed)
        make = module.task.evaluator
        # The module runs as usual; its evaluators and predictions serve all settings.
        replaced: list[tuple[Any, str, Any]] = [
            (module.task, "evaluator", lambda: _Evaluators(self, [make() for _ in runs])),
            (module, "predict_step", lambda *given: None),
            (trainer, "callbacks", [self]),
            (trainer, "loggers", []),
        ]
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with ExitStack() as stack:
            for parsed in runs:
                if parsed.run_dir != first.run_dir:
                    stack.enter_context(cli.hold_directory(parsed, trainer, True))
            yield

    def each(self) -> Iterator[_Setting]:
        """Apply each setting that has not failed to the module and the trainer in turn."""
        module, trainer = self._module, cast(Any, self._trainer)
        for setting in self._settings:
            if setting.failed:
                continue
            module.meter.reduction = setting.reduction
            module.schedule, module.notes = setting.schedule, setting.notes
            trainer._default_root_dir = str(setting.cell.folder)
            if setting.results:
                names = trainer.datamodule.split_names(setting.cell.stage.command)
                columns = zip(*setting.results, strict=True)
                parts = [dict(zip(names, column, strict=True)) for column in columns]
                module.scores, module.chances, module.per_example, module.predictions = parts
            yield setting

    def fail(self, setting: _Setting, error: Exception) -> None:
        """Record that a setting failed. The others continue."""
        log.exception("%s failed", setting.cell.key)
        for callback in setting.callbacks:
            callback.on_exception(self._trainer, self._module, error)
        setting.failed = True
        if all(each.failed for each in self._settings):
            raise error

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Time all settings together, and write the records."""
        module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        for setting in self._settings:
            setting.recorder._watch.stop()
        folder = self._settings[0].cell.folder.parent
        time_together(
            self._module.meter, self._module.task,
            [each.reduction for each in self._settings if not each.failed], folder / COSTS_NAME,
            precision=str(trainer.precision), facts={"compile": self._module.compiled},
        )  # fmt: skip
        for setting in self.each():
            for callback in setting.callbacks:
                callback.teardown(trainer, module, stage)

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *where: int
    ) -> None:
        """Predict a batch in every setting."""
        with self._module.meter.reuse_encodings():
            for setting in self.each():
                try:
                    rows = self._module.task.predict(self._module.meter, batch)
                except Exception as error:  # noqa: BLE001  (the others continue)
                    self.fail(setting, error)
                    continue
                for callback in setting.callbacks:
                    callback.on_predict_batch_end(trainer, module, rows, batch, *where)


def _forward(hook: str) -> Callable[..., None]:
    """Return a hook that calls this hook of every run's callbacks."""

    def call(self: Sweep, *given: Any, **named: Any) -> None:
        for setting in self.each():
            for callback in setting.callbacks:
                getattr(callback, hook)(*given, **named)

    return call


for _stage in ("validation", "test", "predict"):
    for _hook in ("start", "end", "batch_start"):
        setattr(Sweep, f"on_{_stage}_{_hook}", _forward(f"on_{_stage}_{_hook}"))
for _hook in ("setup", "on_exception"):
    setattr(Sweep, _hook, _forward(_hook))


class _Evaluators(Evaluator):
    """One evaluator per setting, on one split."""

    def __init__(self, sweep: Sweep, parts: list[Evaluator]) -> None:
        self._sweep, self._parts = sweep, parts
        super().__init__()

    @property
    def keeps_predictions(self) -> bool:
        """Whether each of them keeps predictions."""
        return self._parts[0].keeps_predictions

    @keeps_predictions.setter
    def keeps_predictions(self, wanted: bool) -> None:
        for part in self._parts:
            part.keeps_predictions = wanted

    def _each(self) -> Iterator[tuple[_Setting, Evaluator]]:
        parts = dict(zip(map(id, self._sweep._settings), self._parts, strict=True))
        for setting in self._sweep.each():
            yield setting, parts[id(setting)]

    def update(self, meter: Meter, batch: Batch) -> None:
        with meter.reuse_encodings():
            for setting, part in self._each():
                try:
                    part.update(meter, batch)
                except Exception as error:  # noqa: BLE001  (the others continue)
                    self._sweep.fail(setting, error)

    def compute(self, meter: Meter) -> dict[str, float]:
        for setting, part in self._each():
            try:
                scores = part.compute(meter)
                others = (part.chance(meter), part.per_example_scores(meter), part.predictions)
            except Exception as error:  # noqa: BLE001  (the others continue)
                self._sweep.fail(setting, error)
            else:
                setting.results.append((scores, *others))
        return scores

    def chance(self, meter: Meter) -> dict[str, float]:
        return {}

    def per_example_scores(self, meter: Meter) -> Tensor:
        return torch.zeros(0, 3)


def _with_method(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the reducer and the schedule of another."""
    result = deepcopy(dict(config))
    model = {k: v for k, v in result.get("model", {}).items() if k not in ("reducer", "schedule")}
    own = other.get("model", {})
    result["model"] = model | {k: own[k] for k in ("reducer", "schedule") if k in own}
    return result
