"""The command line: ``fit``, ``validate``, ``test``, ``predict`` on a typed configuration."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

import torch
from filelock import FileLock
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from elip.checkpoints import CheckpointError
from elip.data.datamodule import DataModule
from elip.data.datasets import known_datasets
from elip.data.datasets.base import DataError
from elip.inputs import input_files, read_origin, run_inputs
from elip.model.guard import ContractError
from elip.old_record import Origin
from elip.strict_yaml import read_mapping
from elip.tasks import tasks
from elip.training.checkpoints import (
    WholeCheckpoints,
    check_goes_on,
    check_same_model,
)
from elip.training.directory import (
    bring_best,
    claim,
    refuse_another,
    resolve_checkpoint,
    run_directory,
)
from elip.training.module import LossError, MeterModule
from elip.training.options import accumulated, check_options
from elip.training.recorder import lost_process
from elip.training.trainer import abandon_logs, build_callbacks, build_loggers, quiet
from reducers import shelf

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Parser(LightningArgumentParser):
    """A parser whose errors are one message, with the nearest valid names."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what would be right, and end with status 2."""
        lines = [_first_cause(message)]
        for word in dict.fromkeys(_words(message)):
            near = get_close_matches(word, self._known(), n=3, cutoff=0.6)
            if near and word not in near:
                lines.append(f"{word!r} is not known here; near it: {', '.join(near)}.")
        if re.search(r"reducer", message) and "import path" in message:
            lines.append(f"Reducers: {', '.join(shelf())}; or the import path of a class.")
        elif re.search(r"\btask\b", message) and "import path" in message:
            lines.append(f"Tasks: {', '.join(tasks())}; or the import path of a class.")
        if "'class_path' is not accepted" in message:
            lines.append("Options of a class stand below it: class_path: NAME, init_args: {...}.")
        lines.append(f"See: python {Path(sys.argv[0]).name} fit --help")
        sys.stderr.write("error: " + "\n  ".join(lines) + "\n")
        raise SystemExit(2)

    def _known(self) -> list[str]:
        names = [*shelf(), *tasks(), *known_datasets()]
        choices = [action.choices for action in self._actions if action.dest == "subcommand"]
        parsers: list[Any] = [self, *(choices[0].values() if choices else ())]  # type: ignore[union-attr]
        for parser in parsers:
            for action in parser._actions:
                names += [option.removeprefix("--") for option in action.option_strings]
                names.append(action.dest)
        names += choices[0] if choices else ()  # type: ignore[arg-type]
        return sorted({name for name in names if name})


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


def _words(message: str) -> Iterable[str]:
    quotes = r"'([\w.\-]+)'|\"([\w.\-]+)\"|: ([\w.\-]+)$|path string: (\S+)"
    for quoted in re.findall(quotes, message):
        yield from (word.removeprefix("--") for word in quoted if word)
    yield from re.findall(r"--([\w.]*\w)", message)


class ExperimentCLI(LightningCLI):
    """LightningCLI for METER with a reducer."""

    run_dir: Path
    claim: FileLock | None = None

    def __init__(self, args: ArgsType = None) -> None:
        shelf()  # importing the methods and tasks makes them choosable by class name
        tasks()
        try:
            super().__init__(
                MeterModule,
                DataModule,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                parser_class=Parser,
                args=args,
                load_from_checkpoint_support=False,
            )
        finally:
            if self.claim is not None:
                self.claim.release()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tie together what the model, the data and the seed must agree on."""
        parser.add_argument(
            "--effective_batch_size",
            type=int | None,
            default=None,
            help="Examples an optimiser step over all processes; gradients are accumulated to it.",
        )
        parser.link_arguments(
            "model.meter", "data.image_size", compute_fn=lambda meter: _sizes(meter).image_size
        )
        parser.link_arguments(
            "model.meter", "data.max_text_len", compute_fn=lambda meter: _sizes(meter).max_text_len
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")
        parser.link_arguments("data.num_answers", "model.num_answers", apply_on="instantiate")
        parser.set_defaults(
            {"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments; a configuration file that is none is named first."""
        given = [str(each) for each in args] if isinstance(args, list) else sys.argv[1:]
        for option, value in zip(given, [*given[1:], ""], strict=True):
            name, equals, text = option.partition("=")
            file = text if equals else value
            is_file = name in ("-c", "--config") or file.endswith((".yaml", ".yml"))
            if name.startswith("-") and is_file and (problem := _file_problem(file)):
                parser.error(problem)
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was asked for.

        LightningCLI would here overwrite it with the checkpoint's, so that a checkpoint tested
        under another reducer would silently run its own.
        """

    def before_instantiate_classes(self) -> None:
        """Settle the run directory and the checkpoint before anything is built."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = str(Path("runs") / _config_name(config))
        if config.trainer.accelerator == "auto" and torch.backends.mps.is_available():
            config.trainer.accelerator = "cpu"  # Apple's GPUs have no float64, which scores need
        root = Path(config.trainer.default_root_dir)
        asked = config.get("ckpt_path")
        if asked is not None:
            try:
                config.ckpt_path = resolve_checkpoint(asked, root, self.subcommand)
                if self.subcommand == "fit":
                    refuse_another(config.ckpt_path, root)
            except (FileNotFoundError, CheckpointError) as error:
                self.parser.error(str(error), error)
        if config.get("weights_only") is False:
            self.parser.error("weights_only false would run code from a checkpoint; leave it out.")
        config.weights_only = True
        if self.subcommand == "predict":
            config.return_predictions = False  # `Predictions` writes them
        self.run_dir = run_directory(root, self.subcommand, resumes=asked is not None)
        config.trainer.default_root_dir = str(self.run_dir)
        if _is_first_process():
            try:
                self.claim = claim(self.run_dir)
            except CheckpointError as error:
                self.parser.error(str(error), error)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what does not fit is a message, not a traceback."""
        try:
            super().instantiate_classes()
        except (ValueError, FileNotFoundError, ImportError) as error:
            self.parser.error(str(error), error)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the trainer with the run directory's loggers and the callbacks of every run."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if config.trainer.logger is not False:
            loggers = build_loggers(self.run_dir, self.subcommand)
            given = self._get(self.config_init, "trainer").logger
            if given not in (None, True):  # in place of TensorBoard; the CSV log is every run's
                loggers = [loggers[0], *(given if isinstance(given, list) else [given])]
            kwargs["logger"] = loggers
        plain = self._plain_config()
        check_options(plain, self.subcommand)
        own = self._own(plain)
        try:
            trainer = self._trainer(config, kwargs, own)
        except (MisconfigurationException, TypeError) as error:
            asked = f"accelerator {config.trainer.accelerator}, devices {config.trainer.devices}"
            raise ValueError(f"The trainer cannot be built ({asked}): {error}") from error
        if trainer.precision not in _PRECISIONS:
            raise ValueError(
                f"trainer.precision is {config.trainer.precision}; targets and scores need float32 "
                f"beside it: {', '.join(_PRECISIONS)}."
            )
        if self.subcommand == "fit" and trainer.max_steps == -1 and trainer.max_epochs == -1:
            raise ValueError(
                "The learning rate needs the length of the run: give trainer.max_steps or "
                "trainer.max_epochs (trainer.max_time may end it earlier)."
            )
        if self.subcommand == "fit":
            trainer.accumulate_grad_batches = accumulated(plain, trainer.world_size)
            if config.get("ckpt_path"):  # before the run's own files are written anew
                check_goes_on(config.ckpt_path, replace(own, processes=trainer.world_size))
                rank_zero_only(bring_best)(config.ckpt_path, self.run_dir)
            else:
                abandon_logs(self.run_dir)
        return trainer

    def _own(self, plain: dict[str, Any]) -> Origin:
        """Return what the run is: configuration, inputs, how the weights it begins from were made.

        Raises:
            CheckpointError: They were made for another model.
        """
        command = str(self.subcommand)
        task, reducer = self.model.task, self.model.meter.reducer
        own = Origin(plain, run_inputs(command, plain, task, reducer, self.datamodule))
        files = input_files(command, plain)
        for option in ("model.weights", "ckpt_path"):  # the latter goes over the former
            if option in files:
                whole, scored = option == "ckpt_path", command != "fit"
                check_same_model(files[option], own, whole, scored)
                own = replace(own, origin=read_origin(files[option]))
        return own

    def _trainer(self, config: Namespace, kwargs: dict[str, Any], own: Origin) -> Any:
        self.trainer_defaults["callbacks"] = build_callbacks(
            self.run_dir, str(self.subcommand), own, config.get("ckpt_path")
        )
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def _plain_config(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        self._dump_config()
        plain: dict[str, Any] = self.config_dump
        return plain


def _is_first_process() -> bool:
    """Whether this is the first process of all nodes, as far as the environment tells."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def _file_problem(file: str) -> str | None:
    """Return what keeps a file from being a configuration; a missing one the parser reports."""
    path = Path(file)
    if not path.is_file():
        return None
    try:
        content = read_mapping(path)
    except ValueError as error:
        return f"This is no configuration file: {error}"
    if not isinstance(content.get("config"), str | None):
        return f"{path}: config is {content['config']!r}; give the path of another such file."
    return None


def _seed(value: int | bool) -> int:
    # Lightning takes false for no seed at all, and no run could be repeated.
    if isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(f"seed_everything is {value}; it must be from 0 to {2**32 - 1}.")
    return value


def _sizes(meter: Any) -> Any:
    from elip.model.config import MeterConfig

    if isinstance(meter, Namespace):
        meter = MeterConfig(**meter.as_dict())
    return meter.resolve()


def _config_name(config: Namespace) -> str:
    files = [str(file) for file in config.get("config") or []]
    return Path(files[-1]).stem if files else "run"


def _options_refused(error: Exception) -> str | None:
    """Return what Lightning says of options of the trainer that it finds amiss in the run."""
    raised_in = Path(extract_tb(error.__traceback__)[-1].filename).parts
    refused = isinstance(error, ValueError | MisconfigurationException) or "callbacks" in raised_in
    return str(error).strip() if refused and "lightning" in raised_in else None


def main(args: ArgsType = None) -> None:
    """Run the command line; what a user can mend is a message, not a traceback."""
    quiet()
    try:
        ExperimentCLI(args)
    except (DataError, CheckpointError, ContractError, LossError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    except SIGTERMException as stop:  # outside of training; its own status would be 0
        raise SystemExit(1) from stop
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        said = lost_process(error) or _options_refused(error)
        if said is None:
            raise
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(2) from error
