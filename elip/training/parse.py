"""From a command line or a configuration to a `ParsedRun`: its options, identity and directory.

Nothing is built or written here; `elip.training.cli` does that.
"""

from __future__ import annotations

import json
import re
import shlex
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

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
    content_fingerprint,
    describe,
    differences,
    digest,
    directory_name,
    find_checkpoint,
    identifying,
    method_name,
    read_checkpoint_info,
    run_id,
    weights_id,
)
from elip.model.config import MeterConfig
from elip.record import Command, RunHeader
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
    """A requested run; nothing is built or written yet."""

    command: Command
    config: dict[str, Any]  # the full resolved configuration, as plain values
    stated: dict[str, Any]  # the options that differ from the defaults
    run_id: str  # see `elip.identity.run_id`
    run_dir: Path  # where it writes
    parent_id: str | None = None  # of the weights it starts from, see `elip.identity.run_id`
    lineage: tuple[RunHeader, ...] = ()  # the runs behind those weights, newest first
    checkpoint: Path | None = None  # the file of --ckpt_path, to resume or to score
    resumes: bool = False  # whether it resumes the run that wrote that checkpoint
    args: tuple[str, ...] = ()  # the command line

    @property
    def reducer(self) -> str:
        """Class name of the reducer."""
        return _reducer_name(self.config["model"])

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


class UsageError(ValueError):
    """The command line is wrong; the message says why and what is allowed."""


def parse(args: Sequence[str], parent_id: str | None = None) -> ParsedRun:
    """Return the run that a command line describes.

    Args:
        args: The command and its options.
        parent_id: Run id of the weights it starts from, if that run does not exist yet; None
            reads it from the given weights.

    Raises:
        ValueError: The command line is wrong, or its checkpoint does not exist or does not fit.
    """
    return resolve(parse_args(args), args, parent_id)


def parse_args(args: Sequence[str]) -> Namespace:
    """Return the configuration of a command line, of which one entry is named like its command.

    Raises:
        UsageError: The command line is wrong.
    """
    whole, commands = parsers()
    command = args[0] if args else ""
    try:
        if command not in commands or any(each.startswith("--print_config") for each in args):
            return whole.parse_args(list(args))  # prints help or the configuration
        # The same as above, in half the time.
        return Namespace(command=command, **{command: commands[command].parse_args(args[1:])})
    except ArgumentError as error:
        raise UsageError(_explain(str(error))) from error


# ------------------------------------------------------------------------------- the parser


def _load_yaml(text: str, path: str = "") -> Any:
    if ":" in text:
        loader = UniqueKeyLoader(text)
        loader.name = path or loader.name  # for error messages
        loader.get_single_data()  # raises if a key occurs twice
    return get_loader("yaml")(text)


set_loader("unique keys", _load_yaml, exceptions=(yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Works out all defaults once; that takes a quarter of the time of parsing."""

    all_defaults: Namespace | None = None

    def get_defaults(self, skip_validation: bool = False, **kwargs: Any) -> Namespace:
        """Return all defaults."""
        if self.all_defaults is not None:
            return self.all_defaults.clone()
        found: Namespace = super().get_defaults(skip_validation, **kwargs)
        return found


@lru_cache(maxsize=1)
def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and the parser of each command."""
    shelf()  # importing methods and tasks makes their class names valid
    tasks()
    new = partial(Parser, parser_mode="unique keys", dump_header=[], exit_on_error=False)
    whole = new(description="METER with token reduction.")
    commands, found = whole.add_subcommands(dest="command"), {}
    for command, description in COMMANDS.items():
        usage = f"python run_experiment.py {command} --config FILE [options]"
        parser = found[command] = new(description=description, usage=usage)
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


# Lines in which jsonargparse lists every type it tried.
_NOISE = re.compile(
    r"(- )?(Expected a path but|Does not validate against|Subtypes:|Errors:|Given value type"
    r"|Given value: (Namespace|NestedArg)|Expected a (<class ')?NoneType|Problem with given class)"
)


def first_cause(message: str) -> str:
    """Return a message of jsonargparse without the types that it tried."""
    message = re.sub(r"Call to compute_fn of link .* failed: ", "", message, flags=re.DOTALL)
    message = re.sub(r"\b(fit|validate|test|predict)\.(?=model|data|trainer)", "", message)
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    lines = [line.strip() for line in message.splitlines()]
    return "\n  ".join(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))


def _explain(message: str) -> str:
    """Return a message of jsonargparse with the nearest valid names, and what is allowed."""
    lines, options = [first_cause(message)], parsers()[1]["fit"]._actions
    known = [*shelf(), *tasks(), *known_datasets(), *COMMANDS, *(each.dest for each in options)]
    quoted = r"'([\w.\-]+)'|\"([\w.\-]+)\"|: ([\w.\-]+)$|path string: (\S+)|--([\w.]*\w)"
    words = (word for found in re.findall(quoted, lines[0]) for word in found if word)
    for word in dict.fromkeys(word.removeprefix("--") for word in words):
        near = get_close_matches(word, known, cutoff=0.6)
        if near and word not in near:
            lines.append(f"{word!r} is unknown. Did you mean: {', '.join(near)}?")
    for option, names in (("reducer", shelf()), ("task", tasks())):
        if "import path" in message and re.search(rf"\b{option}\b", message):
            lines.append(f"model.{option}: {', '.join(names)}; or the import path of a class.")
    if "model.task" in message and "required" in message:
        lines.append("Give --config, such as experiments/elip_0.7.yaml.")
    kind = re.search(r"key \"([\w.]+)\".*?given class_path '([\w.]+)'", message, re.DOTALL)
    topic = f"--{kind[1]}.help={kind[2]}" if kind else "--help"
    return "\n  ".join([*lines, f"See: python run_experiment.py fit {topic}"])


# ---------------------------------------------------------------------------- identity


def resolve(given: Namespace, args: Sequence[str], parent_id: str | None = None) -> ParsedRun:
    """Work out run id, run directory and checkpoint of a configuration; see `parse`."""
    command: Command = given.command
    parser, options = parsers()[1][command], given[command]
    dump = partial(parser.dump, options, "json", skip_unset=False, skip_validation=True)
    config: dict[str, Any] = json.loads(dump(skip_link_targets=False))
    stated: dict[str, Any] = json.loads(dump(skip_default=True)) or {}
    model, trainer, asked = config["model"], config["trainer"], config["ckpt_path"]
    if trainer["use_distributed_sampler"]:
        raise UsageError("trainer.use_distributed_sampler would score some examples twice.")
    if found := re.search("spawn|fork|notebook|fsdp|deepspeed", str(trainer["strategy"])):
        raise UsageError(f"trainer.strategy {found[0]} is not supported. Use ddp.")
    files = options.get("config") or []
    home = Path("runs", Path(str(files[-1])).stem if files else "run")

    def place(kind: str, parent: str | None) -> tuple[str, Path]:
        identity, seed = run_id(kind, stated, parent), config["seed_everything"]
        name = directory_name(_reducer_name(model), model["schedule"], seed, identity)
        folder = home / (name if kind == "fit" else f"{kind}-{name}")
        return identity, Path(trainer["default_root_dir"] or folder)

    parent, lineage = _start(model, parent_id)
    identity, folder = place(command, parent)
    checkpoint, resumes = None, False
    if asked is not None:
        _, fit_dir = place("fit", parent)
        by_name = asked in (BEST, LAST)
        if by_name and not any((fit_dir / FOLDER).glob("[!.]*.ckpt")):
            raise CheckpointError(_no_fit(fit_dir))
        first = asked if by_name else LAST if command == "fit" else BEST
        checkpoint = find_checkpoint(fit_dir if by_name else asked, first)
        if not checkpoint.is_file():
            raise CheckpointError(f"There is no checkpoint {asked}.")
        origin, ancestors = _origin(checkpoint)
        resumes = command == "fit" and _resumes(checkpoint, stated)
        if resumes:  # the same run, even if its directory was moved
            identity, lineage = ancestors[0].run_id, ancestors[1:]
            if trainer["default_root_dir"] is None and checkpoint.parent.name == FOLDER:
                folder = checkpoint.parent.parent
        else:  # a test, or a longer run whose parent is the first
            parent, lineage = origin, ancestors
            identity, folder = place(command, parent)
            if by_name and command != "fit":
                folder = fit_dir / command
    return ParsedRun(
        command, config, stated, identity, folder, parent, lineage, checkpoint, resumes, tuple(args)
    )


def _reducer_name(model: Mapping[str, Any]) -> str:
    given = model["reducer"]
    return "Identity" if given is None else str(given["class_path"]).rpartition(".")[2]


def _no_fit(fit_dir: Path) -> str:
    others = sorted(folder.parent for folder in fit_dir.parent.glob(f"*/{FOLDER}"))
    listed = "".join(f"\n    {each}" for each in others)
    return f"There is no fit with these options ({fit_dir}). Run fit first." + (
        f"\n  Or give --ckpt_path DIRECTORY. Existing fits:{listed}" if others else ""
    )


def _resumes(checkpoint: Path, stated: Mapping[str, Any]) -> bool:
    """Return whether a fit continues the run of a checkpoint; False makes it a longer run.

    Raises:
        CheckpointError: More than its length differs.
    """
    if (info := read_checkpoint_info(checkpoint)) is None:
        raise CheckpointError(
            f"{checkpoint} does not say how it was trained, so it cannot be resumed. To start from "
            "its weights, give --model.weights."
        )
    own, began = (identifying("fit", each) for each in (stated, info.stated_config))
    if differ := differences(began, own, LENGTH_OPTIONS):
        raise CheckpointError(
            f"A resumed run may change only its length: {describe(differ)}. To start a new run "
            "from its weights, give --model.weights instead of --ckpt_path."
        )
    return own == began


_Origin = tuple[str | None, tuple[RunHeader, ...]]
"""Identity and lineage of weights."""


def _start(model: Mapping[str, Any], parent_id: str | None) -> _Origin:
    """Return the origin of the weights that the configuration gives."""
    if model["weights"] is not None:
        return _origin(find_checkpoint(model["weights"])) if parent_id is None else (parent_id, ())
    encoders = [model["image_weights"], model["text_weights"]]
    return None if encoders == [None, None] else digest(list(map(_content_id, encoders))), ()


def _origin(path: Path) -> _Origin:
    """Return the run that made a weights file, or else a hash of its content."""
    if (info := read_checkpoint_info(path)) is None:
        return _content_id(str(path)), ()
    made = info.lineage[0]
    return weights_id(made.run_id, made.checkpoint), info.lineage


def _content_id(name: str | None) -> str | None:
    """Return the content fingerprint of a file or folder, or the name of a published model."""
    path = None if name is None else Path(name).expanduser()
    return content_fingerprint(path) if path is not None and path.exists() else name
