"""The callbacks of every run: record, checkpoints, progress bar, and checks of the reducer."""

from __future__ import annotations

import logging
import math
import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text
from torch import Tensor, nn

from elip.cost.cached import COSTS_NAME, cached_cost
from elip.data.batch import Batch
from elip.environment import environment, peak_memory_bytes
from elip.files import whole_file
from elip.identity import (
    BEST,
    INFO_KEY,
    LAST,
    CheckpointError,
    checkpoint_path,
    content_fingerprint,
    differences,
    digest,
    protocol_options,
    read_checkpoint_info,
    source_fingerprint,
)
from elip.model.guard import check, examine, looks_wrong
from elip.record import (
    CheckpointInfo,
    Evaluation,
    Record,
    RecordError,
    RunHeader,
    Status,
    read_record,
    write_record,
    write_scores,
)
from elip.schedule import Plan
from elip.summary import print_summary
from elip.training.module import LossError, MeterModule
from elip.weights import BROKEN
from reducers.contract import Reduced, Reducer

if TYPE_CHECKING:
    from elip.training.cli import ParsedRun

log = logging.getLogger(__name__)

CONSOLE = Console(stderr=True)
"""Progress, log lines and summaries are printed here."""

SAVE_SECONDS = 120.0
"""Seconds between two saves of the last checkpoint."""

_LEAST_PAUSE = 19.0
"""Shortest pause between two saves, in save times: saving takes at most 5% of a run."""

_ONE_REQUEST_SECONDS = 1.0
_LOG_LINES = 40


class LogLines(logging.Handler):
    """Prints log lines of the first process, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            style = "yellow" if record.levelno >= logging.WARNING else ""
            CONSOLE.print(Text(record.getMessage(), style=style), soft_wrap=True)


class _Tail(logging.Handler):
    """Keeps the last log lines for the record."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, syncs it to disk, and renames it.

    Lightning writes to the system's temporary folder first. If that is on another disk, a killed
    process leaves half a checkpoint under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: Writing failed. An older checkpoint of that name is untouched.
        """
        try:
            with whole_file(Path(path), durable=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"Cannot write the checkpoint {path}: {error}. Make room or set "
                "trainer.default_root_dir; an older checkpoint there is untouched."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint that holds only tensors and plain values.

        Raises:
            CheckpointError: The file is damaged, carries code, or is not a checkpoint of a run.
        """
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} carries objects that are not loaded because they may run code. "
                "To load only its weights, give --model.weights."
            ) from error
        except BROKEN as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(loaded, dict) or "state_dict" not in loaded:
            raise CheckpointError(
                f"{path} is no checkpoint of a run. To start from weights, give --model.weights."
            )
        return loaded


class Recorder(Callback):
    """Identifies the run, keeps its best scores, and writes ``run.json`` however it ends.

    Args:
        parsed: The run.
        labels: ``grid``, ``stage`` and ``axes`` of a grid cell.
    """

    def __init__(self, parsed: ParsedRun, labels: dict[str, Any]) -> None:
        self.parsed = parsed
        self.labels = labels
        self.best = -math.inf
        self.best_step: int | None = None
        self.notes: list[str] = []
        self._started = _now()
        self._written = False
        self._evaluations: tuple[Evaluation, ...] = ()
        self._scores: dict[str, Any] = {}
        self._tokens: dict[str, Any] = {}
        self._skipped: Counter[str] = Counter()
        self._watch: ReducerWatch | None = None
        self._options: dict[str, Any] = {}
        self._fingerprints: dict[str, str] = {}
        self._train_start = time.perf_counter()
        self._images = 0
        self._timer = StepTimer()
        self._log = _Tail()

    # ------------------------------------------------------------------ identity

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compute the protocol, and start listening to the log and the reducer.

        Raises:
            CheckpointError: A resumed run has other data or another number of processes, or the
                weights were trained as a different model.
        """
        module = _module(pl_module)
        logging.getLogger("elip").addHandler(self._log)
        self._watch = ReducerWatch(module.meter.reducer, module.meter.plan)
        self._train_start = time.perf_counter()
        parsed, model = self.parsed, self.parsed.config["model"]
        data = _data_fingerprints(trainer.datamodule, parsed.command, module)  # type: ignore[attr-defined]
        files = {
            f"model.{name}": content_fingerprint(path)
            for name in ("image_weights", "text_weights")
            if model[name] is not None and (path := Path(model[name]).expanduser()).exists()
        }
        if not parsed.lineage and parsed.parent_id and not files:
            files["weights"] = parsed.parent_id
        kinds = [type(module.task), type(module.meter.reducer)]
        code = {
            f"code/{kind.__name__}": found for kind in kinds if (found := source_fingerprint(kind))
        }
        self._fingerprints = {**data, **files, **code}
        parent = parsed.lineage[0] if parsed.lineage else None
        step = trainer.accumulate_grad_batches * trainer.world_size
        self._options = protocol_options(
            parsed.command, parsed.stated, {**data, **files}, parent,
            step * parsed.config["data"]["batch_size"],
        )  # fmt: skip
        self._check_weights(trainer, module)
        if parsed.command != "fit" and parsed.checkpoint is None and module.weights is None:
            self.notes.append("Untrained: no weights of a run were given.")
            log.warning("%s Give --ckpt_path or --model.weights.", self.notes[-1])
        if trainer.strategy.root_device.type == "cuda":
            self._advise(trainer)

    def _check_weights(self, trainer: Trainer, module: MeterModule) -> None:
        """Compare the run with what the checkpoint of its weights says."""
        path = self.parsed.checkpoint or module.weights_file
        info = None if path is None else read_checkpoint_info(path)
        if info is None:
            return
        if self.parsed.resumes:
            differ = differences(info.protocol_options, self._options, ())
            if info.processes != trainer.world_size:
                differ["processes"] = (info.processes, trainer.world_size)
            what = "A run can resume only with the data and number of processes it began with"
        else:
            differ = differences(info.model, self._model_facts(module), ())
            differ = {name: pair for name, pair in differ.items() if None not in pair}
            what = f"{path} fits, but was trained as a different model"
        if differ:
            said = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differ.items())
            raise CheckpointError(f"{what}: {said}.")

    def _model_facts(self, module: MeterModule) -> dict[str, Any]:
        """Return facts about the model and its data that tensor shapes do not show."""
        sizes, facts = module.meter.sizes, dict[str, Any]()
        # timm puts the name of the weights after a dot; the architecture is before it.
        facts["image_encoder"] = sizes.image_encoder.partition(".")[0]
        facts |= {"fusion_heads": sizes.fusion_heads, "pixels": sizes.pixels}
        if sizes.image_encoder == "vit":  # other encoders fix their number of heads
            facts["image_heads"] = sizes.image_heads
        if sizes.text_encoder in ("roberta", "bert"):
            facts["text_heads"] = sizes.text_heads
        data = {name: self._fingerprints.get(name) for name in ("tokenizer", "answers")}
        return facts | {name: value for name, value in data.items() if value is not None}

    def _advise(self, trainer: Trainer) -> None:
        """Allow TF32 on a GPU, and mention a faster precision."""
        if trainer.precision == "32-true":
            torch.set_float32_matmul_precision("high")
            said = "float32 with TF32 products"
            if torch.cuda.is_bf16_supported():
                log.info("Precision: %s; --trainer.precision bf16-mixed is faster.", said)
            self.notes.append(f"Precision: {said}.")

    def header(
        self, trainer: Trainer, checkpoint: Literal["best", "last"] | None = None
    ) -> RunHeader:
        """Return the identity of the run."""
        parsed = self.parsed
        return RunHeader.model_validate(
            {
                "run_id": parsed.run_id,
                "command": parsed.command,
                "reducer": parsed.reducer,
                "method": parsed.method,
                "protocol": digest(self._options, 16),
                "seed": parsed.config["seed_everything"],
                "steps": trainer.global_step,
                "checkpoint": checkpoint,
            }
        )

    def info(self, trainer: Trainer, checkpoint: Literal["best", "last"]) -> str:
        """Return the `CheckpointInfo` of this run, as JSON."""
        module = _module(trainer.lightning_module)
        return CheckpointInfo(
            lineage=(self.header(trainer, checkpoint), *self.parsed.lineage),
            stated_config=self.parsed.stated,
            protocol_options=self._options,
            model=self._model_facts(module),
            processes=trainer.world_size,
        ).model_dump_json()

    # ------------------------------------------------------------------ scores and counts

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock of a step."""
        self._timer.start(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, idx: int
    ) -> None:
        """Add up images and step time."""
        self._timer.stop()
        self._images += len(batch) * batch.images.shape[1] * trainer.world_size

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores of the best validation."""
        assert self._watch is not None
        if not trainer.sanity_checking:
            main = float(trainer.callback_metrics.get("val/main", math.nan))
            better = (-math.inf if math.isnan(main) else main) > self.best
            if self.parsed.command != "fit" or better or self.best_step is None:
                self.best, self.best_step = (main if better else -math.inf), trainer.global_step
                self._keep(trainer, _module(pl_module))
            if self.parsed.command == "fit":
                best = " (best so far)" if self.best_step == trainer.global_step else ""
                name = _module(pl_module).task.main_metric
                log.info("Step %d: validation %s %.4f%s", trainer.global_step, name, main, best)
        self._watch.clear()
        self._skipped = _all_skipped(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores."""
        self._keep(trainer, _module(pl_module))
        self._skipped = _all_skipped(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count skipped images while all processes are still alive."""
        self._skipped = _all_skipped(trainer)

    on_predict_end = on_train_end

    def _keep(self, trainer: Trainer, module: MeterModule) -> None:
        datasets = _datasets(self.parsed.config)
        self._scores = {name: rows.cpu().numpy() for name, rows in module.per_example.items()}
        self._evaluations = tuple(
            Evaluation(
                split=name,
                dataset=next((d for d in datasets if name.startswith(f"{d}_")), "+".join(datasets)),
                examples=int(_sum(trainer, torch.tensor(module.examples[name]))),
                metrics=dict(scores),
                chance=dict(module.chances[name]),
            )
            for name, scores in module.scores.items()
        )
        self._tokens = self._count_tokens(module, lambda sums: _sum(trainer, sums))

    def _count_tokens(
        self, module: MeterModule, join: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """Return the record's token counts; they are measured if they depend on content."""
        assert self._watch is not None
        plan, reducer = module.meter.plan, module.meter.reducer
        counts, spread = self._watch.tokens_per_block(join)
        share = sum(counts[:-1]) / ((len(counts) - 1) * plan.num_patches)
        placement = reducer.placement
        fused = placement == "fusion"
        reduces = bool(plan.keep) and not module.schedule.counts
        return {
            "placement": placement,
            "patches": plan.num_patches,
            "tokens_per_block": counts,
            "tokens_per_block_sd": spread,
            "keep_ratio_asked": module.schedule.keep_ratio if reduces else None,
            "keep_ratio": 1.0 if fused else share,
            "fusion_keep_ratio": share if fused else None,
        }

    # ------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; Lightning saves it."""
        return {
            "best": self.best,
            "best_step": self.best_step,
            "evaluations": [each.model_dump() for each in self._evaluations],
            "scores": {name: torch.from_numpy(rows) for name, rows in self._scores.items()},
            "tokens": self._tokens,
            "seconds": time.perf_counter() - self._train_start,
            "images": self._images,
            "step_seconds": self._timer.seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted training run."""
        if self.parsed.command != "fit":
            return
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._evaluations = tuple(Evaluation(**each) for each in state_dict["evaluations"])
        self._scores = {name: rows.numpy() for name, rows in state_dict["scores"].items()}
        self._tokens = state_dict["tokens"]
        self._train_start -= state_dict["seconds"]
        self._images = state_dict["images"]
        self._timer = StepTimer(state_dict["step_seconds"])

    def forget_best(self) -> None:
        """Make the next validation the best one."""
        self.best, self.best_step, self._evaluations, self._scores = -math.inf, None, (), {}

    # ------------------------------------------------------------------ the record

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of a completed training run, after its last checkpoint."""
        self._write(trainer, _module(pl_module), "completed")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that was stopped or failed.

        Of several processes, the one that raised the error writes it; the others end because of it.
        """
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        said = lost_process(exception) or f"{type(exception).__name__}: {exception}"
        error = None if stopped else said
        self._write(trainer, _module(pl_module), "interrupted" if stopped else "failed", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of a run without training, and stop listening to the log."""
        command = self.parsed.command
        if command == "predict" or (command != "fit" and self._evaluations):
            self._write(trainer, _module(pl_module), "completed")
        logging.getLogger("elip").removeHandler(self._log)

    def _write(
        self, trainer: Trainer, module: MeterModule, status: Status, error: str | None = None
    ) -> None:
        lost = error is not None and error.startswith(_LOST_PROCESS)
        alone = trainer.is_global_zero or (status == "failed" and not lost)
        if self._written or not alone or (lost and self._is_explained()):
            return
        self._written = True
        folder = self.parsed.run_dir
        write_scores(self._scores, folder)
        record = self._record(trainer, module, status, error)
        if status == "completed":
            assert self._watch is not None
            self._watch.stop()
            record = record.model_copy(update=self._costs(trainer, module, record.notes))
        path = write_record(record, folder)
        if status == "completed":
            print_summary(record, path, self._next(), CONSOLE)

    def _costs(
        self, trainer: Trainer, module: MeterModule, notes: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return GFLOPs and times, which all runs of one model share."""
        given_root = self.parsed.config["trainer"]["default_root_dir"]
        home = Path("runs") if given_root is None else self.parsed.run_dir.parent
        found = cached_cost(
            module.meter, module.task, home / COSTS_NAME,
            training=self.parsed.command == "fit", precision=str(trainer.precision),
            facts={"compile": module.compiled},
        )  # fmt: skip
        costs = {field.name: getattr(found, field.name) for field in fields(found)}
        return {**costs, "notes": (*notes, *found.notes)}

    def _is_explained(self) -> bool:
        """Whether the process that died recorded the reason."""
        try:
            found = read_record(self.parsed.run_dir)
        except RecordError:
            return False
        return found.status == "failed" and found.ended >= self._started

    def _next(self) -> str | None:
        """Return the command to type next."""
        if self.labels["grid"] is not None:
            return None
        if self.parsed.command == "fit":
            return self.parsed.again("test", BEST)
        folder = self.parsed.run_dir
        found_by_name = folder.name == self.parsed.command  # it is inside the directory of its fit
        return f"python -m analysis {(folder.parents if found_by_name else [0, folder])[1]}"

    def _record(
        self, trainer: Trainer, module: MeterModule, status: Status, error: str | None
    ) -> Record:
        parsed, config, reducer = self.parsed, self.parsed.config, module.meter.reducer
        # If the run ended before its processes shared their counts, use those of this process.
        skipped = self._skipped | _own_skipped(trainer)
        notes = [
            *self.notes,
            *module.notes,
            *(f"{name}: {count} skipped" for name, count in skipped.items()),
        ]
        if parsed.command != "fit" and parsed.checkpoint is None and module.missing:
            notes.append(f"Untrained, not in the weights: {', '.join(module.missing[:3])}, ...")
        seconds, trained = self._timer.seconds(), parsed.command == "fit"
        tokens = (
            self._tokens or (self._watch and self._count_tokens(module, lambda sums: sums)) or {}
        )
        cuda = module.device.type == "cuda"
        return Record(
            name=parsed.run_dir.name,
            run_id=parsed.run_id,
            command=parsed.command,  # type: ignore[arg-type]
            status=status,
            started=self._started,
            ended=_now(),
            protocol=digest(self._options, 16),
            protocol_options=self._options,
            stated_config=parsed.stated,
            config=config,
            lineage=parsed.lineage,
            weights=self._weights(module),
            fingerprints=self._fingerprints,
            seed=config["seed_everything"],
            task=type(module.task).__name__,
            datasets=tuple(_datasets(config)),
            reducer=parsed.reducer,
            reducer_family=reducer.family,
            reducer_options=(config["model"]["reducer"] or {}).get("init_args") or {},
            main_metric=module.task.main_metric,
            evaluations=self._evaluations,
            precision=str(trainer.precision),
            peak_memory_bytes=peak_memory_bytes(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
            train_steps=trainer.global_step if trained else None,
            train_epochs=_epochs(trainer) if trained else None,
            train_seconds=time.perf_counter() - self._train_start if trained else None,
            train_images_per_second=self._images / seconds if trained and seconds else None,
            processes=trainer.world_size,
            error=error,
            log_tail=tuple(self._log.lines),
            notes=tuple(notes),
            **self.labels,
            **tokens,
            **environment(),
        )

    def _weights(self, module: MeterModule) -> str:
        """Describe where the weights came from."""
        parsed, model = self.parsed, self.parsed.config["model"]
        if parsed.lineage:
            before = parsed.lineage[0]
            said = f"trained with {before.method}"
            done = {"test": "tested", "validate": "validated", "predict": "run"}
            if parsed.command == "fit":
                return f"started from weights {said}"
            if before.method != parsed.method:
                return f"{said}; {done[parsed.command]} with {parsed.method} (off the shelf)"
            return said
        scored = None if parsed.command == "fit" else parsed.checkpoint
        given = scored or module.weights
        if given is not None:
            return f"{given}, of unknown training"
        encoders = {"image": model["image_weights"], "text": model["text_weights"]}
        known = [f"{name} encoder from {path}" for name, path in encoders.items() if path]
        return ", ".join(["random", *known])


def _module(module: LightningModule) -> MeterModule:
    assert isinstance(module, MeterModule)
    return module


class StepTimer:
    """Adds up the time of training steps; on CUDA with events, so that the host never waits.

    Args:
        seconds: Time spent before a resume.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._began: Any = None
        self._pairs: deque[tuple[Any, Any]] = deque()

    def start(self, device: torch.device) -> None:
        """Start a step."""
        if device.type == "cuda":
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()
        else:
            self._began = time.perf_counter()

    def stop(self) -> None:
        """End a step."""
        if isinstance(self._began, float):
            self._seconds += time.perf_counter() - self._began
            return
        ended = torch.cuda.Event(enable_timing=True)
        ended.record()
        self._pairs.append((self._began, ended))
        while len(self._pairs) > 1 and self._pairs[0][1].query():
            first, last = self._pairs.popleft()
            self._seconds += first.elapsed_time(last) / 1e3

    def seconds(self) -> float:
        """Return the time of all steps; waits for the device."""
        for first, last in self._pairs:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
        self._pairs.clear()
        return self._seconds


class StepFlags:
    """Shares after each step whether the loss is finite and whether to save or stop.

    All processes get the same answer at the same step. On CUDA it is that of the previous step,
    copied while the device works on this one, so that the host never waits.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._many = trainer.world_size > 1
        self._cuda = trainer.strategy.root_device.type == "cuda"
        self._copied: Any = None
        self._buffer = torch.empty(3, pin_memory=True) if self._cuda else torch.empty(3)

    def exchange(self, loss: Tensor, request: int) -> tuple[bool, int, float] | None:
        """Submit a step's loss [] and request; return the latest (finite, request, loss)."""
        loss = loss.detach().float()
        flags = torch.stack([(~loss.isfinite()).float(), torch.full_like(loss, request)])
        if self._many:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        before = self.read()
        self._buffer.copy_(torch.cat([flags, loss.view(1)]), non_blocking=True)
        if not self._cuda:
            return self._values()
        self._copied = torch.cuda.Event()
        self._copied.record()
        return before

    def read(self) -> tuple[bool, int, float] | None:
        """Return (finite, request, loss) of a step whose copy is pending; waits for the copy."""
        if self._copied is None:
            return None
        self._copied.synchronize()
        self._copied = None
        return self._values()

    def _values(self) -> tuple[bool, int, float]:
        broken, request, loss = self._buffer.tolist()
        return not broken, int(request), loss


_CONTINUE, _SAVE, _STOP = range(3)


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
        self.loss = math.nan
        self.stop_requested: float | None = None
        self._saves = saves
        self._flags: StepFlags | None = None
        self._request = _CONTINUE
        self._pause = SAVE_SECONDS
        self._saved = 0.0
        self._step = 0
        self._name: Literal["best", "last"] = LAST
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and replace Lightning's signal handlers.

        Lightning's handler broadcasts from inside the signal, so processes would wait forever for
        one that got no signal.
        """
        self._saved = time.monotonic()
        self._flags = StepFlags(trainer)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)
        if self.parsed.checkpoint is not None:
            self._match_best(trainer)

    def _match_best(self, trainer: Trainer) -> None:
        """On resume, delete a best checkpoint that is newer than the last one.

        A run that is killed right after a validation leaves one. Training will make it again.
        """
        recorder, path = self.recorder, checkpoint_path(self.parsed.run_dir, BEST)
        source = path
        if self.parsed.checkpoint is not None and not path.exists():
            source = self.parsed.checkpoint.with_name(path.name)  # the extended run's
        info = read_checkpoint_info(source) if source.exists() else None
        if info is not None and info.lineage[0].steps == recorder.best_step:
            if source != path and trainer.is_global_zero:
                with whole_file(path, durable=True) as temporary:
                    temporary.write_bytes(source.read_bytes())
            return
        trainer.strategy.barrier()  # all processes have read it
        if recorder.best_step is not None:
            log.info("%s is not of this run's best step; the next validation replaces it.", path)
        recorder.forget_best()
        if trainer.is_global_zero:
            path.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.stop_requested is not None:
            # A cluster signals every process of a job, and their parent forwards it as well.
            if now - self.stop_requested < _ONE_REQUEST_SECONDS:
                return
            raise KeyboardInterrupt
        self.stop_requested = now

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
        """Read the flags of the step; save or stop unless a validation comes first."""
        if trainer.global_step == self._step:  # gradients are accumulating
            return
        assert self._flags is not None
        due = self._saves and time.monotonic() - self._saved >= self._pause
        request = _STOP if self.stop_requested is not None else _SAVE if due else _CONTINUE
        self._take(trainer, self._flags.exchange(outputs["loss"], request))
        loop = trainer.fit_loop
        fetcher: Any = loop._data_fetcher
        if not loop.epoch_loop._should_check_val_fx(fetcher):
            self._save_or_stop(trainer)

    def _take(self, trainer: Trainer, flags: tuple[bool, int, float] | None) -> None:
        if flags is None:
            return
        finite, request, self.loss = flags
        if not finite:
            raise LossError(_module(trainer.lightning_module).loss_error(self.loss))
        self._request = max(self._request, request)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to validate weights after a loss that is not finite."""
        if self._flags is not None and not trainer.sanity_checking:
            self._take(trainer, self._flags.read())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best state; save or stop if requested."""
        if trainer.sanity_checking:
            return
        if self.recorder.best_step == trainer.global_step:
            self._save(trainer, BEST)
        self._save_or_stop(trainer)

    def _save_or_stop(self, trainer: Trainer) -> None:
        if self._request == _CONTINUE:
            return
        assert self._flags is not None
        self._take(trainer, self._flags.read())  # never save broken weights
        request, self._request = self._request, _CONTINUE
        if request == _STOP and not trainer.validating:
            # Lightning would log this step after this hook, which is about to raise.
            metrics = trainer.logged_metrics.items()
            last = {name: float(value) for name, value in metrics if name.startswith("train/")}
            for logger in trainer.loggers:
                logger.log_metrics(last, step=trainer.global_step - 1)
        begun = time.monotonic()
        self._save(trainer, LAST)
        self._saved = time.monotonic()
        self._pause = max(self._pause, _LEAST_PAUSE * (self._saved - begun))
        if request == _STOP:
            raise KeyboardInterrupt

    def _save(self, trainer: Trainer, name: Literal["best", "last"]) -> None:
        if self._saves:
            self._name = name
            trainer.save_checkpoint(checkpoint_path(self.parsed.run_dir, name), weights_only=False)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the identity of the run in the checkpoint."""
        checkpoint[INFO_KEY] = self.recorder.info(trainer, self._name)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last state."""
        if self._flags is not None:
            self._take(trainer, self._flags.read())
        self._save(trainer, LAST)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say how to resume a run that was stopped."""
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            path, step = checkpoint_path(self.parsed.run_dir, LAST), trainer.global_step
            resume = f"Resume with: {self.parsed.again('fit', LAST)}"
            log.warning("Stopped at step %d. %s", step, resume if path.exists() else "")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


class Progress(Callback):
    """One progress bar that counts steps in training and batches otherwise.

    Args:
        checkpoints: Knows the latest loss and whether a stop was requested.
    """

    def __init__(self, checkpoints: Checkpoints | None = None) -> None:
        self.checkpoints = checkpoints
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._updated = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the bar."""
        count = "{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}"
        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn(count),
            TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"),
            console=CONSOLE, transient=True,
        )  # fmt: skip

    def _show(self, what: str, done: float, total: float, note: str = "") -> None:
        now, bar = time.monotonic(), self._bar
        if bar is None or now - self._updated < 0.1:
            return
        self._updated = now
        if self.checkpoints is not None and self.checkpoints.stop_requested is not None:
            note = "stopping after this step; Ctrl-C again stops at once"
        unit = "steps" if what == "training" else "batches"
        if self._task is None:
            bar.start()
            self._task = bar.add_task(what, total=total, unit=unit, note=note)
        bar.update(self._task, completed=done, total=total, note=note)

    def on_train_batch_end(self, trainer: Trainer, *given: Any) -> None:
        """Show the step and the latest loss."""
        loss = math.nan if self.checkpoints is None else self.checkpoints.loss
        note = "" if math.isnan(loss) else f"loss {loss:.3f}"
        self._show("training", trainer.global_step, trainer.estimated_stepping_batches, note)

    def on_validation_batch_end(self, trainer: Trainer, *given: Any) -> None:
        """Show the batch; in training as a note."""
        done, total = given[3] + 1, sum(trainer.num_val_batches)
        if trainer.state.fn == "fit":
            note = f"validating: batch {done} of {total:.0f}"
            steps = trainer.estimated_stepping_batches
            self._show("training", trainer.global_step, steps, note)
        else:
            self._show("validating", done, total)

    def on_test_batch_end(self, trainer: Trainer, *given: Any) -> None:
        """Show the batch."""
        self._show("testing", given[3] + 1, sum(trainer.num_test_batches))

    def on_predict_batch_end(self, trainer: Trainer, *given: Any) -> None:
        """Show the batch."""
        self._show("predicting", given[3] + 1, sum(trainer.num_predict_batches))

    def _stop(self, *given: Any, **named: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_train_end = on_test_end = on_predict_end = on_exception = teardown = _stop


class ReducerWatch:
    """Checks the contract of what a reducer returns, and counts the tokens it keeps.

    The first batch and every ``every``-th one get the full check. On a CPU all other calls get a
    cheap check, followed by the full one if something looks wrong. On a GPU a check makes the host
    wait for the device, so they get none. A compiled model is not checked.

    Args:
        reducer: The method.
        plan: The planned counts.
        every: Batches between two full checks.
    """

    def __init__(self, reducer: Reducer, plan: Plan, every: int = 100) -> None:
        self._plan, self._every = plan, every
        self._calls = 0
        # If counts depend on content, for each reduction: images, tokens, squared tokens.
        self._sums: Tensor | None = None
        if not reducer.fixed_count:
            self._sums = torch.zeros(len(plan.keep), 3, dtype=torch.int64)
        self._hook = reducer.register_forward_hook(self._look)

    def stop(self) -> None:
        """Stop checking, so that timing and counting see the model alone."""
        self._hook.remove()

    def clear(self) -> None:
        """Reset the token counts."""
        if self._sums is not None:
            self._sums.zero_()

    def _look(self, reducer: nn.Module, given: tuple[Any, ...], reduced: Reduced) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        assert isinstance(reducer, Reducer)
        patches, num_keep, signals = given
        due = self._calls // max(1, len(self._plan.keep)) % self._every == 0
        self._calls += 1
        if due or patches.device.type == "cpu":
            check(reducer, reduced, patches, num_keep, padded=signals.mask is not None)
            if due or looks_wrong(reduced):
                examine(reducer, reduced, patches, signals.layer)
        if self._sums is not None and reduced.mask is not None and not reducer.training:
            real = reduced.mask.sum(dim=1)
            self._sums = self._sums.to(real.device)
            row = torch.stack([torch.ones_like(real), real, real.square()], dim=1).sum(dim=0)
            self._sums[signals.stage] += row

    def tokens_per_block(
        self, join: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
        """Return how many tokens enter each block and leave the last.

        Args:
            join: Adds up a tensor over all processes.

        Returns:
            Means and standard deviations over images; for fixed counts the planned numbers and
            None.
        """
        plan = self._plan
        if self._sums is None:
            return tuple(float(count) for count in plan.tokens_per_block), None
        counted = join(self._sums).tolist()
        means, spreads, stage, before = [], [], -1, plan.num_patches
        for planned in plan.tokens_per_block:
            stage, before = stage + (planned < before), planned
            images, total, squares = (1, planned, planned**2)
            if stage >= 0 and counted[stage][0]:
                images, total, squares = counted[stage]
            means.append(total / images)
            spreads.append(max(0.0, squares / images - means[-1] ** 2) ** 0.5)
        return tuple(means), tuple(spreads)


_LOST_PROCESS = "another process of this run has died"


def lost_process(error: BaseException) -> str | None:
    """Return a message if this error means that another process of the run died; else None."""
    text = str(error).splitlines()[0] if str(error) else ""
    lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    return f"{_LOST_PROCESS}; see what it printed last ({text})" if lost else None


def _data_fingerprints(data: Any, command: str, module: MeterModule) -> dict[str, str]:
    data.spec = module.task.spec
    found: dict[str, str] = data.fingerprints(command)
    return found


def _epochs(trainer: Trainer) -> float:
    """Return the passes over the training data, fractions included."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return float(batches / trainer.num_training_batches) if trainer.num_training_batches else 0.0


def _datasets(config: dict[str, Any]) -> list[str]:
    names = config["data"]["datasets"]
    return [names] if isinstance(names, str) else list(names)


def _own_skipped(trainer: Trainer) -> Counter[str]:
    return Counter(getattr(trainer.datamodule, "skipped", {}))  # type: ignore[attr-defined]


def _all_skipped(trainer: Trainer) -> Counter[str]:
    """Count skipped images by split, over all processes."""
    every = [_own_skipped(trainer)]
    if trainer.world_size > 1:
        every *= trainer.world_size
        dist.all_gather_object(every, every[0])
    return sum(every, Counter())


def _sum(trainer: Trainer, count: Tensor) -> Tensor:
    """Add up a tensor over all processes."""
    if trainer.world_size == 1:
        return count
    total: Tensor = trainer.strategy.reduce(count.to(trainer.strategy.root_device), reduce_op="sum")
    return total


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
