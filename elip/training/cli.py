"""The command line: ``fit``, ``validate``, ``test``, ``predict`` on a typed configuration.

`parse` works out the identity of a run and builds nothing; `run` builds and runs it.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import count
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

import rich
import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from elip.data.datamodule import DataModule
from elip.data.datasets import known_datasets
from elip.data.datasets.base import DataError
from elip.files import UniqueKeyLoader, whole_file
from elip.identity import (
    BEST,
    FOLDER,
    LAST,
    LENGTH_OPTIONS,
    CheckpointError,
    checkpoint_path,
    content_fingerprint,
    differences,
    digest,
    directory_name,
    find_checkpoint,
    identifying,
    is_whole,
    method_name,
    read_checkpoint_info,
    run_id,
)
from elip.model.config import MeterConfig
from elip.model.guard import ContractError
from elip.record import RECORD_NAME, CheckpointInfo, Command, RecordError, RunHeader, read_record
from elip.summary import CONSOLE
from elip.tasks import tasks
from elip.training.callbacks import Checkpoints, DurableCheckpointIO, LogLines, Progress
from elip.training.module import LossError, MeterModule
from elip.training.predict import Predictions, TestPredictions
from elip.training.recorder import Recorder, lost_process
from reducers import shelf

log = logging.getLogger(__name__)

COMMANDS = {
    "fit": "Train.",
    "validate": "Score on the validation split.",
    "test": "Score on the test split.",
    "predict": "Write the answer to each example, and which tokens were kept.",
}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_LOCK_SECONDS = 5.0
_ALIKE_SECONDS = 1.0


@dataclass(frozen=True)
class ParsedRun:
    """A requested run; nothing is built or written yet.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The full resolved configuration, as plain values.
        stated: The stated config: options that differ from the defaults.
        run_id: Its identity, see `elip.identity.run_id`.
        run_dir: The directory it writes to.
        parent_id: Identity of the weights it starts from, see `elip.identity.run_id`.
        lineage: The runs whose weights it starts from, newest first.
        checkpoint: The file of ``--ckpt_path``, to resume or to score.
        resumes: Whether it resumes the run that wrote that checkpoint.
        start_id: Identity of the weights in its configuration; differs from ``parent_id`` if
            ``--ckpt_path`` gives others.
        args: The command line.
    """

    command: Command
    config: dict[str, Any]
    stated: dict[str, Any]
    run_id: str
    run_dir: Path
    parent_id: str | None = None
    lineage: tuple[RunHeader, ...] = ()
    checkpoint: Path | None = None
    resumes: bool = False
    start_id: str | None = None
    args: tuple[str, ...] = ()

    @property
    def reducer(self) -> str:
        """Class name of the reducer."""
        return _class_name(self.config["model"]["reducer"]) or "Identity"

    @property
    def method(self) -> str:
        """The method in words."""
        return method_name(self.reducer, self.config["model"]["schedule"])

    def again(self, command: str, name: str) -> str:
        """Return the line to type for another command on this run's checkpoint."""
        by_options = run_id("fit", self.stated, self.start_id) == self.run_id
        given_root = self.config["trainer"]["default_root_dir"] is not None
        ckpt_path = name if by_options or given_root else str(self.run_dir)
        kept, skip = [], False
        for word in self.args[1:]:
            if not skip and word.partition("=")[0] != "--ckpt_path":
                kept.append(word)
            skip = word == "--ckpt_path"
        words = ["python", "run_experiment.py", command, *kept, "--ckpt_path", ckpt_path]
        return shlex.join(words)


Around = Callable[[ParsedRun, Trainer, MeterModule], AbstractContextManager[None]]
"""Makes a context to run a command in."""


class UsageError(SystemExit):
    """The command line is wrong; `message` says why and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def parse(args: Sequence[str], parent_id: str | None = None) -> ParsedRun:
    """Return the run that a command line describes.

    Args:
        args: The command and its options.
        parent_id: Run id of the weights it starts from, if that run does not exist yet; None
            reads it from the given weights.

    Raises:
        ValueError: The command line is wrong.
    """
    try:
        return _resolve(*_parse(args), args, parent_id)
    except UsageError as error:
        raise ValueError(error.message) from error


def parse_config(
    command: str, config: Mapping[str, Any], parent_id: str | None = None
) -> ParsedRun:
    """Return the run of a command and a configuration of plain values; see `parse`."""
    try:
        given = {"command": command, command: copy.deepcopy(dict(config))}
        resolved = _parsers()[0].parse_object(given)
        return _resolve(resolved, *_plain(resolved), [command], parent_id)
    except UsageError as error:
        raise ValueError(error.message) from error


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
    folder: Path | None = None
    try:
        config, plain, stated = _parse(args)
        parsed = _resolve(config, plain, stated, args, None)
        labels = {"grid": grid, "stage": stage, "axes": dict(axes or {})}
        folder = parsed.run_dir
        return _execute(parsed, config, labels, around or (lambda *built: nullcontext()))
    except UsageError as error:
        return _say(error.message)
    except (DataError, CheckpointError, ContractError, LossError, OSError) as error:
        return _say(str(error), folder)
    except (KeyboardInterrupt, SIGTERMException, SystemExit):  # the last is from Lightning
        return 130
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        said = lost_process(error) or _refused_by_trainer(error)
        if said is None:
            raise
        return _say(said, folder)


def main() -> None:
    """Run the command line of the terminal."""
    if status := run(sys.argv[1:]):
        raise SystemExit(status)


# ------------------------------------------------------------------------------------- parsing


class Parser(LightningArgumentParser):
    """A parser that reports an error as one message, with the nearest valid names."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and what is allowed, and exit with status 2."""
        message = re.sub(r"\b(fit|validate|test|predict)\.(?=model|data|trainer)", "", message)
        lines = [_first_cause(message)]
        for word in dict.fromkeys(_words(message)):
            near = get_close_matches(word, _known_names(), n=3, cutoff=0.6)
            if near and word not in near:
                lines.append(f"{word!r} is unknown. Did you mean: {', '.join(near)}?")
        if "import path" in message and "reducer" in message:
            lines.append(f"Reducers: {', '.join(shelf())}; or the import path of a class.")
        elif "import path" in message and re.search(r"\btask\b", message):
            lines.append(f"Tasks: {', '.join(tasks())}; or the import path of a class.")
        if "'class_path' is not accepted" in message:
            lines.append("Write a class with options as class_path: NAME, init_args: {...}.")
        if "model.task" in message and "required" in message:
            lines.append("Give --config, such as experiments/elip_0.7.yaml.")
        lines.append("See: python run_experiment.py fit --help")
        raise UsageError("\n  ".join(lines)) from ex


# Lines in which jsonargparse lists every type it tried.
_NOISE = re.compile(
    r"(- )?(Expected a path but|Does not validate against|Subtypes:|Errors:|Given value type"
    r"|Given value: Namespace|Expected a (<class ')?NoneType)"
)
_PLAIN = ((r"<class '([\w.]+)'>", r"\1"), (r"a typing\.Literal\[(.*)\]", r"one of \1"))


def _first_cause(message: str) -> str:
    """Return a message of jsonargparse without the types that it tried."""
    message = re.sub(r"Call to compute_fn of link .* failed: ", "", message, flags=re.DOTALL)
    for pattern, plain in _PLAIN:
        message = re.sub(pattern, plain, message)
    lines = [line.strip() for line in message.splitlines()]
    return "\n  ".join(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))


def _words(message: str) -> Iterator[str]:
    quotes = r"'([\w.\-]+)'|\"([\w.\-]+)\"|: ([\w.\-]+)$|path string: (\S+)"
    for quoted in re.findall(quotes, message):
        yield from (word.removeprefix("--") for word in quoted if word)
    yield from re.findall(r"--([\w.]*\w)", message)


def _known_names() -> list[str]:
    names = {*shelf(), *tasks(), *known_datasets(), *COMMANDS}
    for parser in _parsers()[1].values():
        for action in parser._actions:
            names |= {action.dest, *(each.removeprefix("--") for each in action.option_strings)}
    return sorted(name for name in names if name)


@lru_cache(maxsize=1)
def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and the parser of each command."""
    shelf()  # importing methods and tasks makes their class names valid
    tasks()
    whole = Parser(description="METER with token reduction.", dump_header=[])
    commands, found = whole.add_subcommands(dest="command"), {}
    for command, description in COMMANDS.items():
        parser = found[command] = Parser(description=description, dump_header=[])
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file.")
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
        parser.add_argument(
            "--effective_batch_size", type=int | None, default=None,
            help="Examples per optimiser step over all processes; gradients are accumulated.",
        )  # fmt: skip
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None,
            help="fit resumes it, the others score it: best or last of the fit with these options, "
            "a run directory, or a checkpoint.",
        )  # fmt: skip
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.add_lightning_class_args(MeterModule, "model")
        parser.add_lightning_class_args(DataModule, "data")
        parser.link_arguments(
            "model.meter", "data.image_size", compute_fn=lambda meter: _sizes(meter).image_size
        )
        parser.link_arguments(
            "model.meter", "data.max_text_len", compute_fn=lambda meter: _sizes(meter).max_text_len
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        for fact in ("vocab_size", "num_answers"):
            parser.link_arguments(
                "data.info", f"model.{fact}", attrgetter(fact), apply_on="instantiate"
            )
        parser.set_defaults(
            {"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False}
        )
        commands.add_subcommand(command, parser, help=description)
    return whole, found


def _sizes(meter: Any) -> Any:
    if isinstance(meter, Namespace):
        meter = MeterConfig(**meter.as_dict())
    return meter.resolve()


def _seed(value: int) -> int:
    if not 0 <= value < 2**32:
        raise ValueError(f"seed_everything is {value}; it must be from 0 to {2**32 - 1}.")
    return value


def _parse(args: Sequence[str]) -> tuple[Namespace, dict[str, Any], dict[str, Any]]:
    """Return the configuration, the same in plain values, and the stated config."""
    whole, commands = _parsers()
    for option, value in zip(args, [*args[1:], ""], strict=True):
        name, equals, text = option.partition("=")
        if name in ("-c", "--config") and (problem := _file_problem(text if equals else value)):
            raise UsageError(problem)
    command = args[0] if args else ""
    if command not in commands:
        config = whole.parse_args(list(args))  # prints help or an error
    else:  # the same, in half the time
        config = Namespace(command=command, **{command: commands[command].parse_args(args[1:])})
    return config, *_plain(config)


def _plain(config: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    parser = _parsers()[1][config.command]
    given = config[config.command]
    as_json = partial(parser.dump, given, "json", skip_unset=False, skip_validation=True)
    plain: dict[str, Any] = json.loads(as_json(skip_link_targets=False))
    _check_options(plain, config.command)
    return plain, json.loads(as_json(skip_default=True)) or {}


def _file_problem(file: str) -> str | None:
    """Say what is wrong with a configuration file; the parser reports a missing one."""
    if not Path(file).is_file():
        return None
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506  (safe)
    except (yaml.YAMLError, ValueError, RecursionError, LookupError) as error:
        return f"{file} is no configuration file: {error}"
    if content is not None and not isinstance(content, dict):
        return f"{file} is no configuration file: it must hold `name: value` lines."
    return None


def _check_options(config: Mapping[str, Any], command: str) -> None:
    """Refuse trainer options that would not do what they say."""
    trainer, wrong = config["trainer"], None
    used = {"fit": "train", "validate": "val"}.get(command, command)
    lengths = [f"limit_{used}_batches", *(("max_steps", "max_epochs") if command == "fit" else ())]
    for name in lengths:
        if trainer[name] in (0, 0.0):
            wrong = f"trainer.{name} is 0: {command} would have nothing to do."
    if trainer["use_distributed_sampler"]:
        wrong = "trainer.use_distributed_sampler would score some examples twice. Leave it out."
    if found := re.search("spawn|fork|notebook|fsdp|deepspeed", str(trainer["strategy"])):
        wrong = f"trainer.strategy {found[0]} is not supported. Use ddp."
    if command == "fit" and trainer["max_steps"] == -1 and trainer["max_epochs"] in (None, -1):
        wrong = "Give trainer.max_steps or max_epochs: the learning rate depends on it."
    if wrong:
        _parsers()[0].error(wrong)


# ---------------------------------------------------------------------------- identity


def _resolve(
    config: Namespace,
    plain: dict[str, Any],
    stated: dict[str, Any],
    args: Sequence[str],
    parent_id: str | None,
) -> ParsedRun:
    """Work out run id, run directory and checkpoint."""
    command, asked = config.command, plain["ckpt_path"]
    files = [str(file) for file in config[command].get("config") or []]
    home = Path("runs", Path(files[-1]).stem if files else "run")
    given_root = plain["trainer"]["default_root_dir"]
    root = None if given_root is None else Path(given_root)
    reducer = _class_name(plain["model"]["reducer"]) or "Identity"

    def directory(identity: str) -> Path:
        name = directory_name(
            reducer, plain["model"]["schedule"], plain["seed_everything"], identity
        )
        return root or home / (name if command == "fit" else f"{command}-{name}")

    try:
        start_id, start_lineage = _start(plain["model"], parent_id)
        run = ParsedRun(
            command, plain, stated, "", Path(), start_id, start_lineage,
            start_id=start_id, args=tuple(args),
        )  # fmt: skip
        if asked is None:
            identity = run_id(command, stated, start_id)
            return replace(run, run_id=identity, run_dir=directory(identity))
        fit_dir = None
        if asked in (BEST, LAST):
            fit_id = run_id("fit", stated, start_id)
            name = directory_name(
                reducer, plain["model"]["schedule"], plain["seed_everything"], fit_id
            )
            fit_dir = root or home / name
            checkpoint = _checkpoint_of(fit_dir, asked, command)
        else:
            checkpoint = find_checkpoint(asked, LAST if command == "fit" else BEST)
            if not checkpoint.is_file():
                raise CheckpointError(f"There is no checkpoint {asked}.")
        info = read_checkpoint_info(checkpoint)
        if command == "fit":
            return _continued(run, checkpoint, info, directory, root)
    except (CheckpointError, OSError) as error:
        raise UsageError(str(error)) from error
    parent = parent_id or _parent_id(info, checkpoint)
    identity = run_id(command, stated, parent)
    return replace(
        run, run_id=identity, parent_id=parent, checkpoint=checkpoint,
        run_dir=fit_dir / command if fit_dir else directory(identity),
        lineage=info.lineage if info else (),
    )  # fmt: skip


def _start(
    model: Mapping[str, Any], parent_id: str | None
) -> tuple[str | None, tuple[RunHeader, ...]]:
    """Return the identity and lineage of the weights that the configuration gives."""
    if model["weights"] is not None:
        if parent_id is not None:
            return parent_id, ()
        path = find_checkpoint(model["weights"])
        info = read_checkpoint_info(path)
        return _parent_id(info, path), info.lineage if info else ()
    encoders = [model["image_weights"], model["text_weights"]]
    if encoders == [None, None]:
        return None, ()
    return digest([_file_id(each) for each in encoders]), ()


def _parent_id(info: CheckpointInfo | None, path: Path) -> str:
    if info is None:
        return _file_id(str(path)) or ""
    header = info.lineage[0]
    return f"{header.run_id}/last" if header.checkpoint == LAST else header.run_id


def _file_id(given: str | None) -> str | None:
    """Return the fingerprint of a file or folder; the name of weights on a hub unchanged."""
    path = None if given is None else Path(given).expanduser()
    return content_fingerprint(path) if path is not None and path.exists() else given


def _checkpoint_of(fit_dir: Path, asked: str, command: str) -> Path:
    """Return the checkpoint of the fit with these options, or list the existing fits."""
    if any(is_whole(checkpoint_path(fit_dir, name)) for name in (BEST, LAST)):
        return find_checkpoint(fit_dir, asked)
    there = sorted(fit_dir.parent.glob(f"*/{FOLDER}/*.ckpt"))
    runs = dict.fromkeys(str(file.parent.parent) for file in there)
    if not runs:
        raise CheckpointError(f"There is no fit with these options ({fit_dir}). Run fit first.")
    listed = "".join(f"\n    {run}" for run in runs)
    use = "" if command == "fit" else ", or score the weights of one of them: --ckpt_path DIRECTORY"
    raise CheckpointError(
        f"There is no fit with these options ({fit_dir}). Existing fits:{listed}\n"
        f"  Give the options of one of them{use}."
    )


def _continued(
    run: ParsedRun,
    checkpoint: Path,
    info: CheckpointInfo | None,
    directory: Any,
    root: Path | None,
) -> ParsedRun:
    """Return a fit that continues from a checkpoint.

    With the same options it is the same run, even if its directory was moved. With another length
    it is a new run whose parent is the first.

    Raises:
        CheckpointError: Other options differ.
    """
    if info is None:
        raise CheckpointError(
            f"{checkpoint} does not say how it was trained, so it cannot be resumed. To start from "
            "its weights, give --model.weights."
        )
    own, began = (identifying("fit", each) for each in (run.stated, info.stated_config))
    differ = differences(began, own, LENGTH_OPTIONS)
    if differ:
        said = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differ.items())
        raise CheckpointError(
            f"A resumed run may change only its length: {said}. To start a new run from its "
            "weights, give --model.weights instead of --ckpt_path."
        )
    place = checkpoint.parent.parent if checkpoint.parent.name == FOLDER else None
    if own == began:
        header = info.lineage[0]
        return replace(
            run, run_id=header.run_id, run_dir=root or place or directory(header.run_id),
            lineage=info.lineage[1:], checkpoint=checkpoint, resumes=True,
        )  # fmt: skip
    parent = _parent_id(info, checkpoint)
    identity = run_id("fit", run.stated, parent)
    return replace(
        run, run_id=identity, run_dir=directory(identity), parent_id=parent,
        lineage=info.lineage, checkpoint=checkpoint,
    )  # fmt: skip


def _class_name(given: Any) -> str | None:
    path = given.get("class_path") if isinstance(given, dict) else given
    return None if path is None else str(path).rsplit(".", 1)[-1]


# ------------------------------------------------------------------------------------- running


def _execute(parsed: ParsedRun, config: Namespace, labels: dict[str, Any], around: Around) -> int:
    """Build data, model and trainer, and run the command."""
    command, given = parsed.command, config[parsed.command]
    seed_everything(parsed.config["seed_everything"], workers=True, verbose=False)
    if given.trainer.accelerator == "auto" and torch.backends.mps.is_available():
        given.trainer.accelerator = "cpu"  # scores need float64, which Apple's GPUs lack
    recorder = Recorder(parsed, labels)
    try:
        built = _parsers()[1][command].instantiate(given)
        module, data = built.model, built.data
        if command != "fit" and parsed.checkpoint is None:
            module.refuse_untrained()
        trainer = _trainer(parsed, built, recorder)
        if command == "fit":
            trainer.accumulate_grad_batches = _accumulated(parsed.config, trainer.world_size)
    except (ValueError, FileNotFoundError, ImportError, RuntimeError) as error:
        raise UsageError(_first_cause(str(error))) from error
    more = {} if command == "fit" else {"verbose": False}
    if command == "predict":
        more = {"return_predictions": False}  # `Predictions` writes them
    in_grid = labels["grid"] is not None
    with hold_directory(parsed, trainer, in_grid), around(parsed, trainer, module):
        getattr(trainer, command)(
            module, datamodule=data, ckpt_path=parsed.checkpoint, weights_only=True, **more
        )
    return 0


def _trainer(parsed: ParsedRun, built: Namespace, recorder: Recorder) -> Trainer:
    """Build the trainer with our callbacks and loggers.

    Raises:
        ValueError: The trainer's options do not fit this machine.
    """
    command, options = parsed.command, dict(built.trainer)
    callbacks = scoring_callbacks(parsed, recorder)
    checkpoints = None
    asked = options["callbacks"] or []
    asked = list(asked) if isinstance(asked, list | tuple) else [asked]
    if command == "fit":
        checkpoints = Checkpoints(parsed, recorder, options["enable_checkpointing"] is not False)
        callbacks.append(checkpoints)
        options["enable_checkpointing"] = True  # by our callback
        if options["logger"] is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
    else:
        options["enable_checkpointing"] = False
    if any(isinstance(each, Predictions) for each in asked):  # the user's has options
        callbacks = [each for each in callbacks if not isinstance(each, Predictions)]
    callbacks += asked
    theirs = any(isinstance(each, ProgressBar) for each in asked)
    ours = options["enable_progress_bar"] is not False and CONSOLE.is_terminal and not theirs
    callbacks += [Progress(checkpoints)] if ours else []
    options["enable_progress_bar"] = theirs or ours
    options["callbacks"] = callbacks
    if options["logger"] is not False:
        options["logger"] = _loggers(parsed, options["logger"])
    options["default_root_dir"] = str(parsed.run_dir)
    try:
        trainer = Trainer(**options)
    except (MisconfigurationException, TypeError, RuntimeError) as error:
        asked_for = f"accelerator {options['accelerator']}, devices {options['devices']}"
        said = str(error)
        if "--ntasks" in said:
            said = "SLURM_NTASKS is above 1. Start with srun and --ntasks-per-node."
        raise ValueError(f"The trainer cannot be built ({asked_for}): {said}") from error
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}; allowed: {', '.join(_PRECISIONS)}, which "
            "compute targets and scores in float32."
        )
    if trainer.world_size == 1:
        # Ignore a RANK or SLURM_PROCID that is left over in the shell.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
    return trainer


def scoring_callbacks(parsed: ParsedRun, recorder: Recorder) -> list[Callback]:
    """Return the callbacks that write the results of a command."""
    more: dict[str, list[Callback]] = {"predict": [Predictions()], "test": [TestPredictions()]}
    return [recorder, *more.get(parsed.command, [])]


def _loggers(parsed: ParsedRun, given: Any) -> list[Logger]:
    """Return the CSV logger, and the user's loggers or, for training, TensorBoard."""
    loggers: list[Logger] = [CSVLogger(save_dir=parsed.run_dir, name="", version="")]
    if given not in (None, True):
        return loggers + (list(given) if isinstance(given, list | tuple) else [given])
    if parsed.command == "fit":
        loggers.append(TensorBoardLogger(save_dir=parsed.run_dir, name="", version="tensorboard"))
    return loggers


def _accumulated(config: Mapping[str, Any], processes: int) -> int:
    """Return the number of batches over which gradients are accumulated.

    Raises:
        ValueError: Effective batch size, batch size and accumulation do not agree.
    """
    wanted, given = config["effective_batch_size"], config["trainer"]["accumulate_grad_batches"]
    if wanted is None:
        return int(given)
    at_once = config["data"]["batch_size"] * processes
    if wanted < 1 or wanted % at_once or given not in (1, wanted // at_once):
        raise ValueError(
            f"effective_batch_size {wanted} must be a multiple of data.batch_size times processes "
            f"({at_once}), and trainer.accumulate_grad_batches ({given}) left out."
        )
    return int(wanted) // int(at_once)


@contextmanager
def hold_directory(parsed: ParsedRun, trainer: Trainer, in_grid: bool) -> Iterator[None]:
    """Lock the run directory while the run lasts.

    An older run in it is moved aside, unless this run resumes it or a grid manages it.

    Raises:
        CheckpointError: Another process is writing there.
    """
    folder = parsed.run_dir
    if not trainer.is_global_zero:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        same = False  # whether the run continues the one in the directory
        if parsed.command == "fit" and parsed.checkpoint is not None:
            same = parsed.checkpoint.resolve().parent == (folder / FOLDER).resolve()
        traces = [RECORD_NAME, "metrics.csv", FOLDER]
        if not (same or in_grid) and any((folder / name).exists() for name in traces):
            taken = (folder.with_name(f"{folder.name}~{number}") for number in count(1))
            aside = next(name for name in taken if not name.exists())
            folder.rename(aside)
            lock.release()
            folder.mkdir(parents=True)
            lock = _lock(folder)
            held = _state(aside, parsed.command)
            log.warning("%s held %s, now moved to %s.", folder, held, aside)
        _tidy(folder, keep_logs=same)
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(parsed.config, sort_keys=False), encoding="utf-8")
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
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
    return lock


def _state(folder: Path, command: str) -> str:
    """Describe the content of a run directory."""
    try:
        return f"a {read_record(folder).status} {command}"
    except RecordError:
        resumable = command == "fit" and is_whole(checkpoint_path(folder, LAST))
        return f"a killed {command}" + (
            f" (resume it with --ckpt_path {folder})" if resumable else ""
        )


def _tidy(folder: Path, keep_logs: bool) -> None:
    """Remove partial files of killed processes, and keep the logs of a resumed run."""
    (folder / RECORD_NAME).unlink(missing_ok=True)  # of an earlier attempt
    for temporary in [*folder.glob(".*.part"), *(folder / FOLDER).glob(".*.part")]:
        temporary.unlink(missing_ok=True)
    metrics = folder / "metrics.csv"
    if keep_logs and metrics.exists():  # the logger would delete it
        numbers = [int(m[1]) for f in folder.iterdir() if (m := re.match(r"metrics-(\d+)", f.name))]
        metrics.rename(folder / f"metrics-{max(numbers, default=0) + 1}.csv")
    if not keep_logs:
        for stale in [*folder.glob("metrics*.csv"), *folder.glob("tensorboard/*")]:
            stale.unlink()


# ------------------------------------------------------------------------------------- messages

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


def _say(message: str, folder: Path | None = None) -> int:
    """Print an error once, also if several processes raise it."""
    if not _is_first():
        if folder is None:
            return 2
        time.sleep(_ALIKE_SECONDS)
        with suppress(RecordError):
            if message in (read_record(folder).error or ""):
                return 2
    sys.stderr.write(f"error: {message}\n")
    return 2


def _is_first() -> bool:
    """Whether this is the first process of a node; a rank counts only under a launcher."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 or SLURMEnvironment.detect()
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return not launched or local == "0"


def _refused_by_trainer(error: Exception) -> str | None:
    """Return the message if Lightning refuses an option during the run."""
    raised_in = Path(extract_tb(error.__traceback__)[-1].filename).parts
    refused = isinstance(error, ValueError | MisconfigurationException) or "callbacks" in raised_in
    return str(error).strip() if refused and "lightning" in raised_in else None
