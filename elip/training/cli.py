"""The command line: ``fit``, ``validate``, ``test``, ``predict`` on a typed configuration.

`elip.training.parse` works out what to run; this module builds and runs it.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any

import rich
import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from elip.data.datasets.base import DataError
from elip.files import remove_remains, set_aside, whole_file
from elip.identity import FOLDER, CheckpointError
from elip.model.guard import ContractError
from elip.record import RECORD_NAME
from elip.summary import CONSOLE
from elip.training.callbacks import Checkpoints, DurableCheckpointIO, LogLines, Progress
from elip.training.module import LossError, MeterModule
from elip.training.parse import (
    ParsedRun,
    UsageError,
    first_cause,
    parse,
    parse_args,
    parsers,
    resolve,
)
from elip.training.predict import Predictions
from elip.training.recorder import Recorder, lost_process

__all__ = ["ParsedRun", "hold_directory", "main", "parse", "run", "scoring_callbacks"]

log = logging.getLogger(__name__)

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_LOCK_SECONDS = 5.0

Around = Callable[[ParsedRun, Trainer, MeterModule], AbstractContextManager[None]]
"""Makes a context to run a command in."""

_MISTAKES = (
    UsageError, DataError, CheckpointError, ContractError, LossError, OSError,
    MisconfigurationException,
)  # fmt: skip
"""Errors that are reported as one message, without a traceback."""


def run(
    args: Sequence[str],
    grid: str | None = None,
    stage: str | None = None,
    axes: Mapping[str, str] | None = None,
    around: Around | None = None,
) -> int:
    """Run a command line and return its exit status; mistakes are one message on stderr.

    Args:
        args: The command and its options.
        grid: Name of the grid if the run is a grid cell; its launcher manages the directory.
        stage: Stage of that grid.
        axes: Label of the cell on each axis.
        around: Makes a context around the command, after everything is built.
    """
    _quiet()
    labels = {"grid": grid, "stage": stage, "axes": dict(axes or {})}
    try:
        given = parse_args(args)
        _execute(resolve(given, args), given, labels, around)
    except _MISTAKES as error:
        said = str(error)
    except (KeyboardInterrupt, SIGTERMException):
        return 130
    except SystemExit as ended:  # 0 after --help; Lightning ends a stopped run with 1
        return 130 if ended.code else 0
    except RuntimeError as error:
        if (lost := lost_process(error)) is None:
            raise
        said = lost
    else:
        return 0
    sys.stderr.write(f"error: {said}\n")
    return 2


def main() -> None:
    """Run the command line of the terminal."""
    if status := run(sys.argv[1:]):
        raise SystemExit(status)


def _execute(
    parsed: ParsedRun, config: Namespace, labels: dict[str, Any], around: Around | None
) -> None:
    """Build data, model and trainer, and run the command."""
    command, given = parsed.command, config[parsed.command]
    if given.trainer.accelerator == "auto" and torch.backends.mps.is_available():
        given.trainer.accelerator = "cpu"  # scores need float64, which Apple's GPUs lack
    recorder = Recorder(parsed, labels)
    try:
        seed_everything(parsed.config["seed_everything"], workers=True, verbose=False)
        built = parsers()[1][command].instantiate(given)
        module, data = built.model, built.data
        if command != "fit" and parsed.checkpoint is None:
            module.refuse_untrained()
        trainer = _trainer(parsed, dict(built.trainer), recorder)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UsageError(first_cause(str(error))) from error
    more = {
        "fit": {},
        "predict": {"return_predictions": False},  # `Predictions` writes them
    }.get(command, {"verbose": False})
    context = nullcontext() if around is None else around(parsed, trainer, module)
    with hold_directory(parsed, trainer, labels["grid"] is not None), context:
        getattr(trainer, command)(
            module, datamodule=data, ckpt_path=parsed.checkpoint, weights_only=True, **more
        )


def _trainer(parsed: ParsedRun, options: dict[str, Any], recorder: Recorder) -> Trainer:
    """Build the trainer with our callbacks and loggers.

    Raises:
        ValueError: The trainer's options do not fit this machine.
    """
    fit, folder = parsed.command == "fit", parsed.run_dir
    asked, logger = _list(options["callbacks"]), options["logger"]
    callbacks = scoring_callbacks(parsed, recorder)
    if any(isinstance(each, Predictions) for each in asked):  # the user's has options
        callbacks = [recorder]
    checkpoints = None
    if fit:
        checkpoints = Checkpoints(parsed, recorder, options["enable_checkpointing"] is not False)
        callbacks.append(checkpoints)
    if logger is not False:
        loggers: list[Logger] = [CSVLogger(save_dir=folder, name="", version="")]
        if logger not in (None, True):
            loggers += _list(logger)
        elif fit:
            loggers.append(TensorBoardLogger(save_dir=folder, name="", version="tensorboard"))
        callbacks += [LearningRateMonitor(logging_interval="step")] if fit else []
        options["logger"] = loggers
    bar = any(isinstance(each, ProgressBar) for each in asked)
    if not bar and options["enable_progress_bar"] is not False and CONSOLE.is_terminal:
        callbacks.insert(0, Progress(checkpoints))  # it ends before the summary
        bar = True
    own = {
        "callbacks": [*callbacks, *asked],
        "enable_checkpointing": fit,  # by our callback
        "enable_progress_bar": bar,
        "default_root_dir": str(folder),
    }
    trainer = Trainer(**options | own)
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}; allowed: {', '.join(_PRECISIONS)}, which "
            "compute targets and scores in float32."
        )
    if fit and parsed.config["effective_batch_size"] is not None:
        trainer.accumulate_grad_batches = _accumulated(parsed.config, trainer.world_size)
    if trainer.world_size == 1:
        # Ignore a RANK or SLURM_PROCID that is left over in the shell.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
    return trainer


def _list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def scoring_callbacks(parsed: ParsedRun, recorder: Recorder) -> list[Callback]:
    """Return the callbacks that write the results of a command."""
    return [recorder, *([Predictions()] if parsed.command in ("test", "predict") else [])]


def _accumulated(config: Mapping[str, Any], processes: int) -> int:
    """Return the number of batches over which gradients are accumulated.

    Raises:
        ValueError: Effective batch size, batch size and accumulation do not agree.
    """
    wanted, given = config["effective_batch_size"], config["trainer"]["accumulate_grad_batches"]
    at_once = config["data"]["batch_size"] * processes
    if wanted < 1 or wanted % at_once or given not in (1, wanted // at_once):
        raise ValueError(
            f"effective_batch_size {wanted} must be a multiple of data.batch_size times processes "
            f"({at_once}), and trainer.accumulate_grad_batches ({given}) left out."
        )
    return int(wanted // at_once)


@contextmanager
def hold_directory(parsed: ParsedRun, trainer: Trainer, in_grid: bool) -> Iterator[None]:
    """Lock the run directory while the run lasts, and remove what an earlier attempt left.

    The files of an older run are moved aside, unless this run resumes it or a grid manages it.

    Raises:
        CheckpointError: Another process is writing there.
    """
    if not trainer.is_global_zero:
        yield
        return
    folder, checkpoint = parsed.run_dir, parsed.checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".running")
    try:
        lock.acquire(timeout=_LOCK_SECONDS)  # data loaders outlive a killed run by a moment
    except Timeout as error:
        raise CheckpointError(
            f"Another process is writing into {folder}. Wait for it, or give this run another "
            "trainer.default_root_dir."
        ) from error
    except (OSError, NotImplementedError):  # this file system has no locks
        pass
    try:
        resumes_here = (
            parsed.command == "fit"
            and checkpoint is not None
            and checkpoint.resolve().parent == (folder / FOLDER).resolve()
        )
        older = any((folder / name).exists() for name in (RECORD_NAME, "metrics.csv", FOLDER))
        if older and not (resumes_here or in_grid):
            taken = (folder.with_name(f"{folder.name}~{number}") for number in count(1))
            aside = next(name for name in taken if not name.exists())
            aside.mkdir()
            for each in [*folder.iterdir()]:
                if each.name != ".running":
                    each.rename(aside / each.name)
            log.warning("%s held an earlier run, now moved to %s.", folder, aside)
        remove_remains(folder)
        remove_remains(folder / FOLDER)
        (folder / RECORD_NAME).unlink(missing_ok=True)
        set_aside(folder / "metrics.csv")  # the logger would delete it
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(parsed.config, sort_keys=False), encoding="utf-8")
        yield
    finally:
        lock.release()


# Warnings of Lightning that come with every run and that no user can act on.
_HARMLESS = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning itself makes a deprecated call
    ".*[Dd]irectory .* exists and is not empty.*",  # a resumed run writes to its own directory
    ".*The `srun` command is available on your system but is not used.*",  # inside a SLURM job
    ".*does not have many workers.*",  # loading in the main process is a choice, see DataModule
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*It is recommended to use .*sync_dist=True.*",  # evaluators add up over processes
)


def _quiet() -> None:
    """Silence Lightning's usual warnings, and print our log above the progress bar."""
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    rich.reconfigure(stderr=True)
    logger = logging.getLogger("elip")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, LogLines) for handler in logger.handlers):
        logger.addHandler(LogLines())
