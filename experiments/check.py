"""Parse every run of a grid with the command line's own parser.

The launcher calls ``python -m experiments.check GRID`` once and reads the JSON that it prints, so
that it never has to import the model itself.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elip.provenance import VOLATILE, config_hash
from elip.training.options import accumulated, check_options, known_processes
from experiments.budgets import Budgets, find_class, read_schedule
from experiments.grid import Draft, Grid, GridError, get, put
from experiments.grid_file import read_grid

if TYPE_CHECKING:
    from experiments.present import Present
    from reducers.contract import Placement

# Groups of options; the parser takes anything in their place.
_GROUPS = ("trainer", "data", "model", "model.meter", "model.schedule")
# What a method that never reduces does not depend on.
_UNREDUCED = ("model.schedule", "model.reducer")


@dataclass(frozen=True)
class Checked:
    """A combination that the parser has seen.

    Attributes:
        stage: Name of the stage.
        labels: Label on each axis.
        config: Nested configuration, only what the grid says.
        settings: Hash of the resolved configuration, without what leaves the result as it is.
        resolved: The resolved configuration.
        reduces: Whether the reducer ever acts; if not, its keep ratio means nothing.
        files: Digest of each file or folder that the run starts from, by option; None where it is
            missing.
        inputs: Digests of the data and code that it would read, as far as they are here; no part
            of its identity.
        problem: What is wrong with it; None where all is well.
    """

    stage: str
    labels: dict[str, str]
    config: dict[str, Any]
    settings: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)
    reduces: bool = True
    files: dict[str, str | None] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def check(grid: Grid, budgets: Path | None = None) -> Iterator[Checked]:
    """Parse every combination of a grid, in its order.

    Args:
        grid: The grid.
        budgets: Where solved budgets are kept; None keeps them nowhere.
    """
    # Imported late: the command line takes seconds to import, and a wrong grid file should not.
    from elip.cost.count import CostError
    from experiments.present import Present
    from reducers import shelf

    parser, solver, present = RunParser(), Budgets(budgets), Present()
    for draft in grid.drafts(list(shelf())):
        command = grid.stage(draft.stage).command
        try:
            budget = draft.config.pop("budget", None)
            resolved = parser.parse(command, draft.config)
            reduces = _reduces(resolved)
            if budget is not None and reduces:
                put(draft.config, "model.schedule.counts", solver.counts(budget, resolved))
                resolved = parser.parse(command, draft.config)
            checked = _checked(draft, command, resolved, reduces, present)
        except (ValueError, OSError, CostError) as error:
            checked = Checked(draft.stage, draft.labels, draft.config, problem=str(error))
        yield checked


def _checked(
    draft: Draft, command: str, resolved: dict[str, Any], reduces: bool, present: Present
) -> Checked:
    config = draft.config
    if not reduces:
        # One run stands for all keep ratios; it must not carry the one that came first.
        config = {**config, "model": {**config["model"], "schedule": {"keep_ratio": 1.0}}}
    leave_out = VOLATILE if reduces else (*VOLATILE, *_UNREDUCED)
    return Checked(
        draft.stage, draft.labels, config, config_hash(resolved, leave_out), resolved, reduces,
        present.files(resolved), present.inputs(command, resolved),
    )  # fmt: skip


class RunParser:
    """The command line's parser, built once, without anything behind it."""

    def __init__(self) -> None:
        from elip.training.cli import ExperimentCLI

        class ParserOnly(ExperimentCLI):
            """A command line that stops when its parser stands."""

            def parse_arguments(self, parser: Any, args: Any) -> None:
                self.config = {"subcommand": None}

            def _set_seed(self) -> None: ...

            def _add_instantiators(self) -> None: ...

            def before_instantiate_classes(self) -> None: ...

            def instantiate_classes(self) -> None: ...

            def _run_subcommand(self, subcommand: str) -> None: ...

        self._parser = ParserOnly(["fit"]).parser

    def parse(self, command: str, config: dict[str, Any]) -> dict[str, Any]:
        """Return the resolved configuration as plain values.

        Raises:
            ValueError: The parser refuses it, or the run would refuse an option of its trainer;
                the message is theirs.
        """
        if "config" in config:
            raise ValueError("config is no option of a run of a grid; name files under `base`.")
        for option in _GROUPS:
            group = get(config, option, {})
            if not isinstance(group, dict):
                raise ValueError(f"{option} is {group!r}; give its options, as a mapping.")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                # It puts what it makes of lists of classes into the lists that it was given.
                given = {"subcommand": command, command: copy.deepcopy(config)}
                parsed = self._parser.parse_object(given)
        except SystemExit as error:
            lines = said.getvalue().removeprefix("error: ").strip().splitlines()
            told = [line for line in lines if not line.strip().startswith("See: ")]
            raise ValueError("\n".join(told)) from error
        plain: dict[str, Any] = json.loads(json.dumps(parsed[command].as_dict(), default=str))
        check_options(plain, command)
        processes = known_processes(plain)
        if command == "fit" and processes is not None:
            accumulated(plain, processes)
        return plain


def _reduces(resolved: dict[str, Any]) -> bool:
    """Return whether the reducer ever acts.

    Raises:
        ValueError: The schedule or the sizes fit no model; found here, before anything is built.
    """
    from elip.model.config import MeterConfig

    model = resolved["model"]
    sizes = MeterConfig(**model["meter"]).resolve()
    schedule = read_schedule(model["schedule"])
    placement: Placement = find_class(model["reducer"]).placement if model["reducer"] else "never"
    blocks = sizes.fusion_layers if placement == "fusion" else sizes.image_blocks
    if placement != "never" and blocks is not None:
        schedule.plan((sizes.image_size // sizes.patch_size) ** 2, blocks, placement)
    return placement != "never"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every parsed run of a grid as one JSON list; return the status of the process."""
    parser = argparse.ArgumentParser(prog="python -m experiments.check", description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--budgets", type=Path, help="file that keeps solved budgets")
    options = parser.parse_args(arguments)
    try:
        grid = read_grid(options.grid, options.set)
        # Whatever libraries print while they are imported is kept out of the JSON.
        with contextlib.redirect_stdout(sys.stderr):
            checked = [asdict(each) for each in check(grid, options.budgets)]
    except (GridError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(json.dumps(checked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
