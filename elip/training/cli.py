"""The command line: ``fit``, ``validate``, ``test``, ``predict`` on a typed configuration.

`parse` decides who a run is without building anything; `run` builds it and runs it.
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
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

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
from elip.environment import precision_advice
from elip.files import whole_file
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
from elip.record import RECORD_NAME, CheckpointInfo, RecordError, RunHeader, read_record
from elip.tasks import tasks
from elip.training.callbacks import (
    CONSOLE,
    Checkpoints,
    DurableCheckpointIO,
    LogLines,
    Progress,
    Recorder,
    lost_process,
)
from elip.training.module import LossError, MeterModule
from elip.training.predict import Predictions, TestPredictions
from reducers import shelf

log = logging.getLogger(__name__)

COMMANDS = {
    "fit": "Train.",
    "validate": "Score on the validation split.",
    "test": "Score on the test split.",
    "predict": "Write what the model says of each example, and which tokens it kept.",
}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_LOCK_SECONDS = 5.0
_ALIKE_SECONDS = 1.0


@dataclass(frozen=True)
class ParsedRun:
    """A run that was asked for; nothing is built or written yet.

    Attributes:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The full resolved configuration, as plain values.
        stated: The stated config: options that differ from the defaults.
        run_id: Who it is.
        run_dir: Where it writes.
        parent_id: What it starts from, see `elip.identity.run_id`.
        lineage: The runs whose weights it starts from, newest first.
        checkpoint: The file of ``--ckpt_path``: what it goes on from, or what it scores.
        goes_on: Whether it is the run that left that checkpoint, which goes on.
        start_id: What its first weights were; ``parent_id``, save for a run that was made longer
            and for the scores of a fit.
        args: What it was asked with.
    """

    command: str
    config: dict[str, Any]
    stated: dict[str, Any]
    run_id: str
    run_dir: Path
    parent_id: str | None = None
    lineage: tuple[RunHeader, ...] = ()
    checkpoint: Path | None = None
    goes_on: bool = False
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
        """Return what to type for another command with these options and this run's checkpoint."""
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
"""What is entered around a run, with all that it is made of."""


class UsageError(SystemExit):
    """What was asked for cannot be; `message` says why, and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def parse(args: Sequence[str], parent_id: str | None = None) -> ParsedRun:
    """Return the run that a command line asks for.

    Args:
        args: The command and its options.
        parent_id: Run id of the weights that it starts from, for one that has not run yet; None
            reads it from the weights that are given.

    Raises:
        ValueError: The command line is wrong; the message says in what.
    """
    try:
        return _resolve(*_parse(args), args, parent_id)
    except UsageError as error:
        raise ValueError(error.message) from error


def parse_config(
    command: str, config: Mapping[str, Any], parent_id: str | None = None
) -> ParsedRun:
    """Return the run that a command and a configuration in plain values ask for; see `parse`."""
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
        grid: Name of the grid that the run is a cell of; its launcher looks after the directory.
        stage: Stage of that grid.
        axes: Label of the cell on each axis.
        around: Is entered when all is built, around the command itself.
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
    except (KeyboardInterrupt, SIGTERMException, SystemExit):  # the last is how Lightning ends it
        return 130
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        said = lost_process(error) or _refused_by_trainer(error)
        if said is None:
            raise
        return _say(said, folder)


def main() -> None:
    """Run what the terminal asks for."""
    if status := run(sys.argv[1:]):
        raise SystemExit(status)


# ------------------------------------------------------------------------------------- parsing


class Parser(LightningArgumentParser):
    """A parser whose errors are one message, with the nearest valid names."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and what would be right, and end with status 2."""
        message = re.sub(r"\b(fit|validate|test|predict)\.(?=model|data|trainer)", "", message)
        lines = [_first_cause(message)]
        for word in dict.fromkeys(_words(message)):
            near = get_close_matches(word, _known_names(), n=3, cutoff=0.6)
            if near and word not in near:
                lines.append(f"{word!r} is not known here; near it: {', '.join(near)}.")
        if "import path" in message and "reducer" in message:
            lines.append(f"Reducers: {', '.join(shelf())}; or the import path of a class.")
        elif "import path" in message and re.search(r"\btask\b", message):
            lines.append(f"Tasks: {', '.join(tasks())}; or the import path of a class.")
        if "'class_path' is not accepted" in message:
            lines.append("Options of a class stand below it: class_path: NAME, init_args: {...}.")
        if "model.task" in message and "required" in message:
            lines.append("Give --config, for instance experiments/elip_0.7.yaml.")
        lines.append("See: python run_experiment.py fit --help")
        raise UsageError("\n  ".join(lines)) from ex


# Lines in which jsonargparse lists every type it tried; the line that says what is wrong stays.
_NOISE = re.compile(
    r"(- )?(Expected a path but|Does not validate against|Subtypes:|Errors:|Given value type"
    r"|Expected a <class 'NoneType'>)"
)
_PLAIN = ((r"<class '([\w.]+)'>", r"\1"), (r"a typing\.Literal\[(.*)\]", r"one of \1"))


def _first_cause(message: str) -> str:
    """Return the message without jsonargparse's listing of every alternative that it tried."""
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
    """Return the parser of the command line, and that of each command."""
    shelf()  # importing the methods and tasks makes them choosable by class name
    tasks()
    whole = Parser(description="METER with token reduction.", dump_header=[])
    commands, found = whole.add_subcommands(dest="command"), {}
    for command, description in COMMANDS.items():
        parser = found[command] = Parser(description=description, dump_header=[])
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file.")
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
        parser.add_argument(
            "--effective_batch_size", type=int | None, default=None,
            help="Examples an optimiser step over all processes; gradients are accumulated to it.",
        )  # fmt: skip
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None,
            help="fit goes on from it, the others score it: best or last of the fit with these "
            "options, a run directory, or a checkpoint.",
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
    """Return the configuration, as plain values, and what of it differs from the defaults."""
    whole, commands = _parsers()
    for option, value in zip(args, [*args[1:], ""], strict=True):
        name, equals, text = option.partition("=")
        if name in ("-c", "--config") and (problem := _file_problem(text if equals else value)):
            raise UsageError(problem)
    command = args[0] if args else ""
    if command not in commands:
        config = whole.parse_args(list(args))  # help, or what is wrong
    else:  # the same in half the time
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
    """Return what keeps a file from being a configuration; a missing one the parser reports."""
    if not Path(file).is_file():
        return None
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  (safe)
    except (yaml.YAMLError, ValueError, RecursionError, LookupError) as error:
        return f"{file} is no configuration file: {error}"
    if content is not None and not isinstance(content, dict):
        return f"{file} is no configuration file: it must hold `name: value` lines."
    return None


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping; YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1 and name != "<<"]:
            raise yaml.MarkedYAMLError(f"{twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check_options(config: Mapping[str, Any], command: str) -> None:
    """Refuse options of the trainer that would give another result than they say."""
    trainer, wrong = config["trainer"], None
    for name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if isinstance(trainer[name], int | float) and not trainer[name] > 0:
            wrong = f"trainer.{name} is {trainer[name]}; it must be above 0."
    used = {"fit": "train", "validate": "val"}.get(command, command)
    lengths = [f"limit_{used}_batches", *(("max_steps", "max_epochs") if command == "fit" else ())]
    for name in lengths:
        if trainer[name] in (0, 0.0):
            wrong = f"trainer.{name} is 0: {command} would have nothing to do."
    if trainer["use_distributed_sampler"]:
        wrong = "trainer.use_distributed_sampler would score some examples twice; leave it out."
    if trainer["overfit_batches"]:
        wrong = "trainer.overfit_batches draws anew in each epoch; give data.train_limit instead."
    if found := re.search("spawn|fork|notebook|fsdp|deepspeed", str(trainer["strategy"])):
        wrong = f"trainer.strategy {found[0]} is not supported; several processes run with ddp."
    if found := re.search("LearningRateFinder|BatchSizeFinder", str(trainer["callbacks"])):
        wrong = f"{found[0]} would change the recorded options; set them instead."
    if command == "fit" and trainer["max_steps"] == -1 and trainer["max_epochs"] in (None, -1):
        wrong = (
            "The learning rate needs the length of the run: give trainer.max_steps or max_epochs."
        )
    if wrong:
        _parsers()[0].error(wrong)


# ---------------------------------------------------------------------------- who a run is


def _resolve(
    config: Namespace,
    plain: dict[str, Any],
    stated: dict[str, Any],
    args: Sequence[str],
    parent_id: str | None,
) -> ParsedRun:
    """Settle run id, run directory and checkpoint."""
    command, asked = str(config.command), plain["ckpt_path"]
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
    """Return the id of what a run's initial weights are, and their lineage."""
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
    """Return the fingerprint of a file or folder; a name on a hub as it is."""
    path = None if given is None else Path(given).expanduser()
    return content_fingerprint(path) if path is not None and path.exists() else given


def _checkpoint_of(fit_dir: Path, asked: str, command: str) -> Path:
    """Return the checkpoint of the fit with these options, or list the fits that there are."""
    if any(is_whole(checkpoint_path(fit_dir, name)) for name in (BEST, LAST)):
        return find_checkpoint(fit_dir, asked)
    there = sorted(fit_dir.parent.glob(f"*/{FOLDER}/*.ckpt"))
    runs = dict.fromkeys(str(file.parent.parent) for file in there)
    if not runs:
        raise CheckpointError(f"There is no fit with these options ({fit_dir}): run fit first.")
    listed = "".join(f"\n    {run}" for run in runs)
    use = "" if command == "fit" else ", or score the weights of one of them: --ckpt_path DIRECTORY"
    raise CheckpointError(
        f"There is no fit with these options ({fit_dir}). There are:{listed}\n"
        f"  Give the options of one of them{use}."
    )


def _continued(
    run: ParsedRun,
    checkpoint: Path,
    info: CheckpointInfo | None,
    directory: Any,
    root: Path | None,
) -> ParsedRun:
    """Return a fit that goes on from a checkpoint.

    With the options it began with it is the same run, wherever its directory is by now. With
    another length it is a run of its own, that starts from the first.

    Raises:
        CheckpointError: More differs.
    """
    if info is None:
        raise CheckpointError(
            f"{checkpoint} does not say how it was trained, so no run can go on from it. To start "
            "from its weights: --model.weights."
        )
    own, began = (identifying("fit", each) for each in (run.stated, info.stated_config))
    differ = differences(began, own, LENGTH_OPTIONS)
    if differ:
        said = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differ.items())
        raise CheckpointError(
            f"A run can go on with its own options only, save its length: {said}. To train anew "
            "from its weights, give --model.weights in place of --ckpt_path."
        )
    place = checkpoint.parent.parent if checkpoint.parent.name == FOLDER else None
    if own == began:
        header = info.lineage[0]
        return replace(
            run, run_id=header.run_id, run_dir=root or place or directory(header.run_id),
            lineage=info.lineage[1:], checkpoint=checkpoint, goes_on=True,
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
        given.trainer.accelerator = "cpu"  # Apple's GPUs have no float64, which scores need
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
    """Build the trainer with the callbacks and loggers of every run.

    Raises:
        ValueError: Its options do not fit this machine.
    """
    command, options = parsed.command, dict(built.trainer)
    callbacks = scoring_callbacks(parsed, recorder)
    checkpoints = None
    asked = options["callbacks"] or []
    asked = list(asked) if isinstance(asked, list | tuple) else [asked]
    if command == "fit":
        checkpoints = Checkpoints(parsed, recorder, options["enable_checkpointing"] is not False)
        callbacks.append(checkpoints)
        options["enable_checkpointing"] = True  # of ours
        if options["logger"] is not False:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
    else:
        options["enable_checkpointing"] = False
    if any(isinstance(each, Predictions) for each in asked):  # with options of their own
        callbacks = [each for each in callbacks if not isinstance(each, Predictions)]
    theirs = any(isinstance(each, ProgressBar) for each in asked)
    if options["enable_progress_bar"] is not False and CONSOLE.is_terminal and not theirs:
        callbacks.append(Progress(checkpoints))
    options["enable_progress_bar"] = theirs
    options["callbacks"] = [*callbacks, *asked]
    if options["logger"] is not False:
        options["logger"] = _loggers(parsed, options["logger"])
    options["default_root_dir"] = str(parsed.run_dir)
    try:
        trainer = Trainer(**options)
    except (MisconfigurationException, TypeError, RuntimeError) as error:
        asked_for = f"accelerator {options['accelerator']}, devices {options['devices']}"
        said = str(error)
        if "--ntasks" in said:
            said = "SLURM_NTASKS is above 1; start with srun and --ntasks-per-node."
        raise ValueError(f"The trainer cannot be built ({asked_for}): {said}") from error
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}; targets and scores need float32 beside it: "
            f"{', '.join(_PRECISIONS)}."
        )
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and (advice := precision_advice(trainer.precision)):
        log.info("%s", advice)
    if trainer.world_size == 1:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # a RANK or SLURM_PROCID that was left in the shell means nothing
    if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
    return trainer


def scoring_callbacks(parsed: ParsedRun, recorder: Recorder) -> list[Callback]:
    """Return the callbacks of every run that is scored."""
    more: dict[str, list[Callback]] = {"predict": [Predictions()], "test": [TestPredictions()]}
    return [recorder, *more.get(parsed.command, [])]


def _loggers(parsed: ParsedRun, given: Any) -> list[Logger]:
    """Return the CSV log, and for training the TensorBoard log or what the user gave."""
    loggers: list[Logger] = [CSVLogger(save_dir=parsed.run_dir, name="", version="")]
    if given not in (None, True):
        return loggers + (list(given) if isinstance(given, list | tuple) else [given])
    if parsed.command == "fit":
        loggers.append(TensorBoardLogger(save_dir=parsed.run_dir, name="", version="tensorboard"))
    return loggers


def _accumulated(config: Mapping[str, Any], processes: int) -> int:
    """Return over how many batches gradients are accumulated.

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
    """Hold the run directory for as long as the run lives.

    An older run that lies there is moved aside, unless this one continues it or a grid's launcher
    looks after it.

    Raises:
        CheckpointError: Another living process writes there.
    """
    folder = parsed.run_dir
    if not trainer.is_global_zero:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        checkpoint = parsed.checkpoint if parsed.command == "fit" else None
        same = checkpoint is not None and _is_in(checkpoint, folder)
        traces = [RECORD_NAME, "metrics.csv", FOLDER]
        if not (same or in_grid) and any((folder / name).exists() for name in traces):
            aside = _next_name(folder)
            folder.rename(aside)
            _release(lock)
            folder.mkdir(parents=True)
            lock = _lock(folder)
            log.warning("%s held %s; it is %s now.", folder, _state(aside, parsed.command), aside)
        _tidy(folder, keep_logs=same)
        with whole_file(folder / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(parsed.config, sort_keys=False), encoding="utf-8")
        yield
    finally:
        _release(lock)


def _lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / ".running")
    try:
        lock.acquire(timeout=_LOCK_SECONDS)  # loaders of a run that was killed end a little later
    except Timeout as error:
        raise CheckpointError(
            f"Another process is writing into {folder}. Wait for it, or give this run another "
            "trainer.default_root_dir."
        ) from error
    except (OSError, NotImplementedError):  # a file system without locks
        return None
    return lock


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        lock.release()


def _is_in(checkpoint: Path, folder: Path) -> bool:
    return checkpoint.resolve().parent == (folder / FOLDER).resolve()


def _next_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return aside


def _state(folder: Path, command: str) -> str:
    """Return in words what lies in a run directory."""
    try:
        return f"a {read_record(folder).status} {command}"
    except RecordError:
        resumable = command == "fit" and is_whole(checkpoint_path(folder, LAST))
        return f"a {command} that was killed" + (
            f" (to go on with it: --ckpt_path {folder})" if resumable else ""
        )


def _tidy(folder: Path, keep_logs: bool) -> None:
    """Remove what killed processes were writing, and keep older logs of a run that goes on."""
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

# What Lightning says on every run and no user can act on.
_HARMLESS = (
    ".*isinstance\\(treespec, LeafSpec\\).*",  # its own use of a deprecated call
    ".*[Dd]irectory .* exists and is not empty.*",  # the run goes on in its own directory
    ".*The `srun` command is available on your system but is not used.*",  # a run of its own
    ".*does not have many workers.*",  # loading in the main process is a choice, see DataModule
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*It is recommended to use .*sync_dist=True.*",  # evaluators add up over processes themselves
)


def _quiet() -> None:
    """Silence Lightning's standing remarks, and print ours above the progress bar."""
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logger = logging.getLogger("elip")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, LogLines) for handler in logger.handlers):
        logger.addHandler(LogLines())


def _say(message: str, folder: Path | None = None) -> int:
    """Print an error; of several processes that fail alike, only the first does."""
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
    """Whether this is the first process of a node, or the only one.

    A rank that was left in the shell means nothing without a launcher.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 or SLURMEnvironment.detect()
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return not launched or local == "0"


def _refused_by_trainer(error: Exception) -> str | None:
    """Return what Lightning says of options that it finds amiss while it runs."""
    raised_in = Path(extract_tb(error.__traceback__)[-1].filename).parts
    refused = isinstance(error, ValueError | MisconfigurationException) or "callbacks" in raised_in
    return str(error).strip() if refused and "lightning" in raised_in else None
