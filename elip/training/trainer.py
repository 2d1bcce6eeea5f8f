"""What every trainer carries: loggers, checkpoints, progress, clean stop, record, guard."""

from __future__ import annotations

import logging
import re
import signal
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from elip.checkpoints import BEST, FOLDER, LAST, checkpoint_path
from elip.files import remove_remains, set_aside
from elip.old_record import Origin
from elip.training.predictions import Predictions
from elip.training.recorder import Recorder
from elip.training.rows import AnswerRows
from elip.training.watch import ContractGuard

log = logging.getLogger(__name__)

METRICS_NAME = "metrics.csv"

_EVENTS = "tensorboard"
_ABANDONED = "abandoned"

CHECKPOINT_INTERVAL = timedelta(minutes=2)
"""Time between two checkpoints that a killed run goes on from."""

_LEAST_PAUSE = 19.0
"""Times that it takes to save, between the end of one and the next."""

_ONE_REQUEST_SECONDS = 1.0

_GO_ON, _SAVE, _STOP = range(3)


# What Lightning says on every run and no user can act on.
_HARMLESS = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # its own use of a deprecated call
    ".*Experiment logs directory .* exists and is not empty.*",  # older logs were set aside
    ".*Checkpoint directory .* exists and is not empty.*",  # the run goes on in its own directory
    ".*The `srun` command is available on your system but is not used.*",  # a run of its own
    ".*does not have many workers.*",  # loading in the main process is a choice, see DataModule
)


def quiet() -> None:
    """Silence Lightning's standing remarks; everything else is said."""
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    remarks = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    remarks.addFilter(lambda record: not re.search("litlogger|litmodels", str(record.msg), re.I))
    logging.getLogger("elip").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)


def build_loggers(run_dir: Path, command: str) -> list[Logger]:
    """Return the CSV log, and for training the TensorBoard log, both inside the run directory."""
    # The CSV logger would delete it when a run goes on.
    rank_zero_only(set_aside)(run_dir / METRICS_NAME)
    for folder in (run_dir, run_dir / FOLDER):
        rank_zero_only(remove_remains)(folder)
    loggers: list[Logger] = [CSVLogger(save_dir=run_dir, name="", version="")]
    if command == "fit":
        loggers.append(TensorBoardLogger(save_dir=run_dir, name="", version=_EVENTS))
    return loggers


@rank_zero_only
def abandon_logs(run_dir: Path) -> None:
    """Put away what a killed run has logged, where one begins anew in its place.

    A log that is only set aside counts as this run's, which goes on. So does a job that its cluster
    requeued, from the checkpoint that Lightning saved for it.
    """
    requeued = SLURMEnvironment.detect() and any(run_dir.glob("hpc_ckpt_*.ckpt"))
    logs = [*run_dir.glob("metrics*.csv"), *run_dir.glob(_EVENTS)]
    if logs and not requeued:
        set_aside(run_dir / _ABANDONED)
        (run_dir / _ABANDONED).mkdir()
        for log in logs:
            log.rename(run_dir / _ABANDONED / log.name)


def build_callbacks(
    run_dir: Path, command: str, own: Origin, ckpt_path: str | None
) -> list[Callback]:
    """Return the callbacks of every run.

    Args:
        run_dir: The run directory.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        own: Resolved configuration, inputs, and how the weights were made that it begins from.
        ckpt_path: The checkpoint that is resumed or scored.
    """
    callbacks: list[Callback] = [
        Recorder(run_dir, command, own, ckpt_path),
        ContractGuard(),
    ]
    config = own.config
    given = str(config["trainer"].get("callbacks"))
    if config["trainer"]["enable_progress_bar"] is not False and "ProgressBar" not in given:
        callbacks.append(RichProgressBar(leave=False))
    if command == "predict" and "Predictions" not in given:
        callbacks.append(Predictions())
    if command == "test":
        callbacks.append(AnswerRows())
    if command == "fit":
        logs = config["trainer"].get("logger") is not False
        best, last = (checkpoint_path(run_dir, name) for name in (BEST, LAST))
        callbacks += [
            *([LearningRateMonitor(logging_interval="step")] if logs else []),
            ModelCheckpoint(
                dirpath=best.parent,
                filename=best.stem,
                monitor="val/main",
                mode="max",
                save_top_k=1,
                enable_version_counter=False,
                save_on_train_epoch_end=False,  # behind its validation, before the last one
            ),
            LastCheckpoint(last, CHECKPOINT_INTERVAL),
        ]
    return callbacks


class LastCheckpoint(Checkpoint):
    """Keeps what a run goes on from: saved from time to time, when it is to stop, and at its end.

    Always between two steps, where a run can go on as if nothing had happened. That is behind a
    batch with which a step was taken, since gradients that wait for more batches are in no
    checkpoint; and where a validation is due it is behind that, since a run that goes on from
    before it would leave it out. (Being a `Checkpoint` makes it come behind the best one, too.)

    Ctrl-C and SIGTERM let the step finish and stop all processes there; another signal, a second
    later or more, stops at once.

    Args:
        path: Where the checkpoint goes.
        interval: Time from one to the next; longer where saving would take more than a twentieth.
    """

    def __init__(self, path: Path, interval: timedelta) -> None:
        self.path = path
        self.asked: float | None = None
        self._pause = interval.total_seconds()
        self._saved = 0.0
        self._step = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and listen for the signals in the place of Lightning.

        Lightning's own handler broadcasts from within a signal, and processes wait forever for
        one that was not asked to stop.
        """
        self._saved = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is not None:
            # A cluster signals every process of a job, and the one above hands it on as well.
            if now - self.asked < _ONE_REQUEST_SECONDS:
                return
            raise KeyboardInterrupt
        self.asked = now
        log.warning("Stopping after this step; once more to stop at once.")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step that this batch is part of.

        Lightning's own count for logs is one too high in a run that goes on from its end.
        """
        self._step = trainer.global_step
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop, unless a validation comes first."""
        loop = trainer.fit_loop
        fetcher: Any = loop._data_fetcher
        if not loop.epoch_loop._should_check_val_fx(fetcher):
            self._between_steps(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save or stop, unless training has not begun."""
        if not trainer.sanity_checking:
            self._between_steps(trainer)

    def _between_steps(self, trainer: Trainer) -> None:
        if trainer.global_step == self._step:  # gradients wait
            return
        due = time.monotonic() - self._saved >= self._pause
        wish = _STOP if self.asked is not None else _SAVE if due else _GO_ON
        # What one process wants all do, at the same step.
        wishes = torch.tensor(wish, device=trainer.strategy.root_device)
        wish = int(trainer.strategy.reduce(wishes, reduce_op="max"))
        if wish == _GO_ON:
            return
        if wish == _STOP and not trainer.validating:
            # Lightning logs a step after this hook, which this step will not live to see.
            metrics = trainer.logged_metrics.items()
            last = {name: float(value) for name, value in metrics if name.startswith("train/")}
            for logger in trainer.loggers:
                logger.log_metrics(last, step=trainer.global_step - 1)
        begun = time.monotonic()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved = time.monotonic()
        self._pause = max(self._pause, _LEAST_PAUSE * (self._saved - begun))
        if wish == _STOP:
            log.warning(
                "Stopped at step %d. Go on with the same command and: --ckpt_path last "
                "--trainer.default_root_dir %s",
                trainer.global_step,
                trainer.default_root_dir,
            )
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
