"""From a command line or a configuration to a `ParsedRun`: its options, identity and directory.

Nothing is built or written here; `elip.training.cli` does that.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    Namespace,
    get_loader,
    set_loader,
)
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from elip.data.datamodule import DataModule
from elip.data.datasets import known_datasets
from elip.files import UniqueKeyLoader
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
from elip.record import CheckpointInfo, Command, RunHeader
from elip.tasks import tasks
from elip.training.module import MeterModule
from reducers import shelf

COMMANDS = {
    "fit": "Train.",
    "validate": "Score on the validation split.",
    "test": "Score on the test split.",
    "predict": "Write the answer to each example, and which tokens were kept.",
}


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
    args: tuple[str, ...] = ()

    @property
    def reducer(self) -> str:
        """Class name of the reducer."""
        given = self.config["model"]["reducer"]
        return "Identity" if given is None else str(given["class_path"]).rpartition(".")[2]

    @property
    def method(self) -> str:
        """The method in words."""
        return method_name(self.reducer, self.config["model"]["schedule"])

    def again(self, command: str, name: str) -> str:
        """Return the line to type for another command on this run's checkpoint."""
        by_name = self.config["ckpt_path"] in (None, BEST, LAST)
        given = re.sub(r" --ckpt_path[= ]\S+", "", " " + shlex.join(self.args[1:]))
        place = name if by_name else shlex.quote(str(self.run_dir))
        return f"python run_experiment.py {command}{given} --ckpt_path {place}"


class UsageError(SystemExit):
    """The command line is wrong; `message` says why and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        """Return the message."""
        return self.message


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
        return resolve(parse_args(args), args, parent_id)
    except UsageError as error:
        raise ValueError(error.message) from error


def parse_config(
    command: str, config: Mapping[str, Any], parent_id: str | None = None
) -> ParsedRun:
    """Return the run of a command and a configuration of plain values; see `parse`."""
    try:
        given = {"command": command, command: copy.deepcopy(dict(config))}
        return resolve(parsers()[0].parse_object(given), [command], parent_id)
    except UsageError as error:
        raise ValueError(error.message) from error


# ------------------------------------------------------------------------------- the parser


def parse_args(args: Sequence[str]) -> Namespace:
    """Return the configuration of a command line, of which one entry is named like its command."""
    whole, commands = parsers()
    command = args[0] if args else ""
    if command not in commands or any(each.startswith("--print_config") for each in args):
        return whole.parse_args(list(args))  # prints help, an error or the configuration
    # The same as above, in half the time.
    return Namespace(command=command, **{command: commands[command].parse_args(args[1:])})


def _load_yaml(text: str, path: str = "") -> Any:
    if ":" in text:
        loader = UniqueKeyLoader(text)
        loader.name = path or loader.name  # for error messages
        loader.get_single_data()  # raises if a key occurs twice
    return get_loader("yaml")(text)


set_loader("unique keys", _load_yaml, exceptions=(yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """A parser that reports an error as one message, with the nearest valid names."""

    all_defaults: Namespace | None = None
    """Kept when the parser is complete; to work them out takes a quarter of the time of parsing."""

    def get_defaults(self, skip_validation: bool = False, **kwargs: Any) -> Namespace:
        """Return all defaults."""
        if self.all_defaults is not None:
            return self.all_defaults.clone()
        found: Namespace = super().get_defaults(skip_validation, **kwargs)
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and what is allowed, and exit with status 2."""
        message = re.sub(r"\b(fit|validate|test|predict)\.(?=model|data|trainer)", "", message)
        lines = [first_cause(message)]
        quoted = r"'([\w.\-]+)'|\"([\w.\-]+)\"|: ([\w.\-]+)$|path string: (\S+)|--([\w.]*\w)"
        words = [word for found in re.findall(quoted, message) for word in found if word]
        for word in dict.fromkeys(word.removeprefix("--") for word in words):
            near = get_close_matches(word, _known_names(), n=3, cutoff=0.6)
            if near and word not in near:
                lines.append(f"{word!r} is unknown. Did you mean: {', '.join(near)}?")
        for option, names in (("reducer", list(shelf())), ("task", list(tasks()))):
            if "import path" in message and re.search(rf"\b{option}\b", message):
                lines.append(f"model.{option}: {', '.join(names)}; or the import path of a class.")
        if "model.task" in message and "required" in message:
            lines.append("Give --config, such as experiments/elip_0.7.yaml.")
        lines.append("See: python run_experiment.py fit --help")
        raise UsageError("\n  ".join(lines)) from ex


# Lines in which jsonargparse lists every type it tried.
_NOISE = re.compile(
    r"(- )?(Expected a path but|Does not validate against|Subtypes:|Errors:|Given value type"
    r"|Given value: Namespace|Expected a (<class ')?NoneType)"
)


def first_cause(message: str) -> str:
    """Return a message of jsonargparse without the types that it tried."""
    message = re.sub(r"Call to compute_fn of link .* failed: ", "", message, flags=re.DOTALL)
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    lines = [line.strip() for line in message.splitlines()]
    return "\n  ".join(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))


@lru_cache(maxsize=1)
def _known_names() -> list[str]:
    names = {*shelf(), *tasks(), *known_datasets(), *COMMANDS}
    for parser in parsers()[1].values():
        for action in parser._actions:
            names |= {action.dest, *(each.removeprefix("--") for each in action.option_strings)}
    return sorted(name for name in names if name)


@lru_cache(maxsize=1)
def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and the parser of each command."""
    shelf()  # importing methods and tasks makes their class names valid
    tasks()
    new = partial(Parser, parser_mode="unique keys", dump_header=[])
    whole = new(description="METER with token reduction.")
    commands, found = whole.add_subcommands(dest="command"), {}
    for command, description in COMMANDS.items():
        parser = found[command] = new(description=description)
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
        for size in ("image_size", "max_text_len"):
            parser.link_arguments("model.meter", f"data.{size}", partial(_size, size))
        parser.link_arguments("seed_everything", "data.seed")
        for fact in ("vocab_size", "num_answers"):
            parser.link_arguments(
                "data.info", f"model.{fact}", attrgetter(fact), apply_on="instantiate"
            )
        parser.set_defaults(
            {"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False}
        )
        commands.add_subcommand(command, parser, help=description)
        parser.all_defaults = parser.get_defaults()
    return whole, found


def _size(name: str, meter: Any) -> Any:
    if isinstance(meter, Namespace):
        meter = MeterConfig(**meter.as_dict())
    return getattr(meter.resolve(), name)


# ---------------------------------------------------------------------------- identity


def resolve(given: Namespace, args: Sequence[str], parent_id: str | None = None) -> ParsedRun:
    """Work out run id, run directory and checkpoint of a configuration.

    Raises:
        UsageError: The checkpoint does not exist or does not fit.
    """
    command = given.command
    dump = partial(
        parsers()[1][command].dump, given[command], "json", skip_unset=False, skip_validation=True
    )
    config: dict[str, Any] = json.loads(dump(skip_link_targets=False))
    stated: dict[str, Any] = json.loads(dump(skip_default=True)) or {}
    files = [str(file) for file in given[command].get("config") or []]
    home = Path("runs", Path(files[-1]).stem if files else "run")
    _check_trainer(config["trainer"])
    try:
        return _identify(ParsedRun(command, config, stated, "", home, args=tuple(args)), parent_id)
    except (CheckpointError, OSError) as error:
        raise UsageError(str(error)) from error


def _check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse options that would give a wrong number."""
    if options["use_distributed_sampler"]:
        raise UsageError("trainer.use_distributed_sampler would score some examples twice.")
    if found := re.search("spawn|fork|notebook|fsdp|deepspeed", str(options["strategy"])):
        raise UsageError(f"trainer.strategy {found[0]} is not supported. Use ddp.")


def _identify(run: ParsedRun, parent_id: str | None) -> ParsedRun:
    """Add run id, directory and weights to a run; ``run_dir`` holds the folder of its config."""
    command, stated, config, home = run.command, run.stated, run.config, run.run_dir
    asked, root = config["ckpt_path"], config["trainer"]["default_root_dir"]

    def identified(run: ParsedRun, kind: str = command, identity: str = "") -> ParsedRun:
        identity = identity or run_id(kind, stated, run.parent_id)
        seed, schedule = config["seed_everything"], config["model"]["schedule"]
        name = directory_name(run.reducer, schedule, seed, identity)
        folder = home / (name if kind == "fit" else f"{kind}-{name}")
        return replace(run, run_id=identity, run_dir=folder if root is None else Path(root))

    start, lineage = _start(config["model"], parent_id)
    run = replace(run, parent_id=start, lineage=lineage)
    if asked is None:
        return identified(run)
    by_name = asked in (BEST, LAST)
    if by_name:
        fit_dir = identified(run, "fit").run_dir
        checkpoint = _checkpoint_of(fit_dir, asked)
    else:
        checkpoint = find_checkpoint(asked, LAST if command == "fit" else BEST)
        if not checkpoint.is_file():
            raise CheckpointError(f"There is no checkpoint {asked}.")
    info = read_checkpoint_info(checkpoint)
    run = replace(run, checkpoint=checkpoint)
    if command != "fit":
        lineage = info.lineage if info else ()
        parent = parent_id or _parent_id(info, checkpoint)
        run = identified(replace(run, parent_id=parent, lineage=lineage))
        return replace(run, run_dir=fit_dir / command) if by_name else run
    if info is None:
        raise CheckpointError(
            f"{checkpoint} does not say how it was trained, so it cannot be resumed. To start from "
            "its weights, give --model.weights."
        )
    own, began = (identifying("fit", each) for each in (stated, info.stated_config))
    if differ := differences(began, own, LENGTH_OPTIONS):
        said = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differ.items())
        raise CheckpointError(
            f"A resumed run may change only its length: {said}. To start a new run from its "
            "weights, give --model.weights instead of --ckpt_path."
        )
    if own != began:  # another length: a new run whose parent is the first
        parent = _parent_id(info, checkpoint)
        return identified(replace(run, parent_id=parent, lineage=info.lineage))
    # The same run, even if its directory was moved.
    run = replace(run, lineage=info.lineage[1:], resumes=True)
    run = identified(run, identity=info.lineage[0].run_id)
    moved = root is None and checkpoint.parent.name == FOLDER
    return replace(run, run_dir=checkpoint.parent.parent) if moved else run


def _checkpoint_of(fit_dir: Path, name: str) -> Path:
    """Return a checkpoint of the fit in a directory.

    Raises:
        CheckpointError: There is none; the message lists the other fits.
    """
    if any(is_whole(checkpoint_path(fit_dir, each)) for each in (BEST, LAST)):
        return find_checkpoint(fit_dir, name)
    others = sorted(folder.parent for folder in fit_dir.parent.glob(f"*/{FOLDER}"))
    listed = "".join(f"\n    {each}" for each in others)
    raise CheckpointError(
        f"There is no fit with these options ({fit_dir}). Run fit first."
        + (f"\n  Or give --ckpt_path DIRECTORY. Existing fits:{listed}" if others else "")
    )


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
    return (None if encoders == [None, None] else digest(list(map(_file_id, encoders)))), ()


def _parent_id(info: CheckpointInfo | None, path: Path) -> str:
    if info is None:
        return _file_id(str(path)) or ""
    header = info.lineage[0]
    return f"{header.run_id}/last" if header.checkpoint == LAST else header.run_id


def _file_id(name: str | None) -> str | None:
    """Return the content fingerprint of a file or folder, or the name of a published model."""
    path = None if name is None else Path(name).expanduser()
    return content_fingerprint(path) if path is not None and path.exists() else name
