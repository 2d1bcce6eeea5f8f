"""Runs with a budget in place of a keep ratio: their token counts, solved before anything starts.

What was solved is kept beside the grid's runs, so that a grid that goes on, goes on with the very
same counts: a latency is never measured twice the same.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.grid import GridError

if TYPE_CHECKING:
    from elip.schedule import Schedule

BUDGETS_NAME = "budgets.json"


class Budgets:
    """Solves budgets, each model's once.

    Args:
        path: Where the solutions are kept; None keeps them nowhere.

    Raises:
        GridError: What is kept is damaged. It is not solved anew unasked: other counts could come
            of it, and so other runs.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            self._known = _read(path)

    def counts(self, budget: object, resolved: dict[str, Any]) -> list[int]:
        """Return the token counts at which the model of a resolved configuration meets a budget.

        Raises:
            BudgetError: It cannot.
        """
        model = {name: resolved["model"][name] for name in ("task", "reducer", "meter", "schedule")}
        from elip.inputs import code_digests  # late, as it imports torch

        code = code_digests(
            [find_class(model[name]) for name in ("task", "reducer") if model[name]]
        )
        asked = {
            "budget": budget, "model": model, "code": code,
            "datasets": resolved["data"]["datasets"],
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._known:
            counts = _solve(budget, model, resolved["data"])
            self._known[key] = {"counts": counts, "budget": budget, "reducer": model["reducer"]}
            self._keep()
        return list(self._known[key]["counts"])

    def _keep(self) -> None:
        if self._path is not None:
            from elip.data.arrow_writer import (
                write_json,  # late: the launcher needs only the file's name
            )

            write_json(self._path, self._known)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(path.read_bytes())
        return {key: {**met, "counts": list(map(int, met["counts"]))} for key, met in kept.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise GridError(
            f"{path}, which keeps the token counts that meet budgets, is damaged ({error}). "
            "Restore it, or delete it to have them solved anew."
        ) from error


def find_class(named: Mapping[str, Any]) -> Any:
    """Return the class that a resolved configuration names by its import path."""
    module, _, name = named["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def read_schedule(given: dict[str, Any]) -> Schedule:
    """Return the schedule of a resolved configuration.

    Raises:
        ValueError: It fits no model.
    """
    from elip.schedule import Schedule

    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Schedule(**{**given, **lists})


def _solve(given: object, model: dict[str, Any], data: dict[str, Any]) -> list[int]:
    """Build the model as its run will, without memory behind its weights, and solve."""
    import torch

    from elip.cost.budget import BudgetError, match_gflops
    from elip.data.datamodule import DataModule
    from elip.model.config import MeterConfig
    from elip.training.module import MeterModule

    target = given.get("gflops") if isinstance(given, Mapping) and len(given) == 1 else None
    if not isinstance(target, int | float) or not target > 0:
        raise BudgetError(f"{given!r} is no budget; give {{gflops: NUMBER}}, above 0.")
    source = DataModule(**data)
    with torch.device("meta"):
        run = MeterModule(
            **{name: find_class(model[name])(**model[name].get("init_args") or {})
               for name in ("task", "reducer")},
            schedule=read_schedule(model["schedule"]), meter=MeterConfig(**model["meter"]),
            vocab_size=source.info.vocab_size, num_answers=source.info.num_answers,
        )  # fmt: skip
    match_gflops(float(target), run.meter, run.task, run.schedule)
    return list(run.meter.plan.keep.values())
