"""Callbacks of every run: checkpoints, progress bar, log lines. `recorder` holds one more."""

from __future__ import annotations

import logging
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from elip.files import whole_file
from elip.identity import BEST, INFO_KEY, LAST, checkpoint_path, read_checkpoint_info
from elip.summary import CONSOLE
from elip.training.module import LossError
from elip.training.recorder import Recorder

if TYPE_CHECKING:
    from elip.training.parse import ParsedRun

log = logging.getLogger(__name__)

SAVE_SECONDS = 120.0
"""Seconds between two saves of the last checkpoint."""

_LEAST_PAUSE = 19.0  # between two saves, in save times
_CONTINUE, _SAVE, _STOP = range(3)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, syncs it to disk, and renames it.

    Lightning writes to the system's temporary folder first. If that is on another disk, a killed
    process leaves half a checkpoint under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint. If that fails, an older one of that name is untouched."""
        with whole_file(Path(path), durable=True) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides the cause, such as a full disk
                raise (error.__context__ or error) from None


class StepFlags:
    """Tells all processes at the same step whether the loss is finite and whether to save or stop.

    On CUDA the answer is that of the previous step, copied while the device works on this one, so
    that the host never waits.
    """

    def __init__(self) -> None:
        self.loss = math.nan  # the latest that was read
        self._sent: Tensor | None = None
        self._copied: Any = None
        self._step = 0

    def exchange(self, loss: Tensor, request: int, step: int) -> int:
        """Submit the loss [] and the request of a step; return the latest request of any process.

        Raises:
            LossError: The loss of the latest step is not finite.
        """
        latest = self.read()
        broken = (~loss.isfinite()).float()
        flags = torch.stack([broken, torch.full_like(broken, request)])
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        sent = torch.cat([flags, loss.detach().float().view(1)])
        self._sent, self._step = sent.to("cpu", non_blocking=True), step
        if not loss.is_cuda:
            return self.read()
        self._copied = torch.cuda.Event()
        self._copied.record()
        return latest

    def read(self) -> int:
        """Return the request of the latest step if it was not read; wait for its copy.

        Raises:
            LossError: Its loss is not finite.
        """
        if self._sent is None:
            return _CONTINUE
        if self._copied is not None:
            self._copied.synchronize()
        broken, request, self.loss = self._sent.tolist()
        self._sent = None
        if broken:
            raise LossError(self.loss, self._step)
        return int(request)


class Checkpoints(Checkpoint):
    """Keeps the best and the last state, and stops a run between two steps.

    The last state is saved every few minutes, when the run is stopped, and at its end. Saves
    happen only after an optimiser step, because accumulated gradients are in no checkpoint, and
    only after a validation that is due, because a resumed run would skip it. (Lightning calls a
    `Checkpoint` after all other callbacks.)

    Ctrl-C and SIGTERM let the step finish and stop all processes there. A second signal, at least
    a second later, stops at once.

    Args:
        parsed: The run.
        recorder: Knows which validation is the best.
        saves: False saves nothing.
    """

    def __init__(self, parsed: ParsedRun, recorder: Recorder, saves: bool = True) -> None:
        self.parsed = parsed
        self.recorder = recorder
        self.flags = StepFlags()
        self._saves = saves
        self._stop_requested: float | None = None
        self._request = _CONTINUE
        self._pause = SAVE_SECONDS
        self._step = 0
        self._name: Literal["best", "last"] = LAST

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and replace Lightning's signal handlers until it restores them.

        Lightning's handler broadcasts from inside the signal, so processes would wait forever for
        one that got no signal.

        On resume, a best checkpoint that is newer than the last one is deleted. A run that is
        killed right after a validation leaves one, and training will make it again.
        """
        self._saved = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self.parsed.checkpoint is None:
            return
        source = self.parsed.checkpoint.with_name(f"{BEST}.ckpt")
        best = checkpoint_path(self.parsed.run_dir, BEST)
        info = read_checkpoint_info(source)
        trainer.strategy.barrier()  # all processes have read it
        if info is None or info.lineage[0].steps != self.recorder.best_step:
            self.recorder.forget_best()
            if trainer.is_global_zero:
                best.unlink(missing_ok=True)
        elif source != best and trainer.is_global_zero:  # of the run that this one extends
            with whole_file(best, durable=True) as temporary:
                temporary.write_bytes(source.read_bytes())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stop_requested is None:
            self._stop_requested = now
            log.warning("Stopping after this step. Ctrl-C again stops at once.")
        # A cluster signals every process of a job, and their parent forwards it as well.
        elif now - self._stop_requested > 1:
            raise KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step of this batch.

        Lightning's step count for logs is one too high when a completed run is extended.
        """
        self._step = trainer.global_step
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exchange the flags of the step; save or stop unless a validation comes first."""
        if trainer.global_step == self._step:  # gradients are accumulating
            return
        due = self._saves and time.monotonic() - self._saved >= self._pause
        request = _STOP if self._stop_requested is not None else _SAVE if due else _CONTINUE
        latest = self.flags.exchange(outputs["loss"], request, self._step)
        self._request = max(self._request, latest)
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if not loop._should_check_val_fx(fetcher):  # type: ignore[arg-type]
            self._save_or_stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to validate weights after a loss that is not finite."""
        self._request = max(self._request, self.flags.read())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best state; save or stop if requested."""
        if not trainer.sanity_checking:
            if self.recorder.best_step == trainer.global_step:
                self._save(trainer, BEST)
            self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: Trainer) -> None:
        request, self._request = self._request, _CONTINUE
        if request == _CONTINUE:
            return
        begun = time.monotonic()
        self._save(trainer, LAST)
        self._saved = time.monotonic()
        # Saving takes at most 5% of a run.
        self._pause = max(self._pause, _LEAST_PAUSE * (self._saved - begun))
        if request == _STOP:
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer, name: Literal["best", "last"]) -> None:
        self.flags.read()  # never save broken weights
        if self._saves:
            self._name = name
            trainer.save_checkpoint(checkpoint_path(self.parsed.run_dir, name), weights_only=False)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the identity of the run in the checkpoint."""
        checkpoint[INFO_KEY] = self.recorder.info(self._name)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state."""
        self._save(trainer, LAST)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how to resume a run that was stopped."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.is_global_zero:
            log.warning("Stopped at step %d.", trainer.global_step)
            if checkpoint_path(self.parsed.run_dir, LAST).exists():
                line = f"Resume: {self.parsed.again('fit', LAST)}"
                CONSOLE.print(line, markup=False, soft_wrap=True)


class Progress(RichProgressBar):
    """One bar that counts the batches of the whole run.

    Args:
        checkpoints: Knows the latest loss of training; reading the logged one would wait for the
            device in every step.
    """

    def __init__(self, checkpoints: Checkpoints | None = None) -> None:
        super().__init__(refresh_rate=10, console_kwargs={"stderr": True})
        self.checkpoints = checkpoints

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return columns that fit into 80 characters."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        return [*columns, TimeRemainingColumn(compact=True)]

    @property
    def total_train_batches(self) -> int:
        """Batches of the whole run, not of an epoch."""
        return int(self.trainer.estimated_stepping_batches) * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training  "

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the bar of the first epoch."""
        if self.train_progress_bar_id is None:
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the number of batches."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the loss, once it is known."""
        loss = math.nan if self.checkpoints is None else self.checkpoints.flags.loss
        return {} if math.isnan(loss) else {"loss": loss}


class LogLines(logging.Handler):
    """Prints log lines of the first process, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line; a terminal breaks it between words, a file keeps it whole."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            style = "yellow" if record.levelno >= logging.WARNING else ""
            line = Text(record.getMessage(), style=style)
            CONSOLE.print(line, soft_wrap=not CONSOLE.is_terminal)
