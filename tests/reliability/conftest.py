"""Fixtures of the reliability tests."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from elip.data.shapes import Options, write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little built-in data."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root / "shapes", Options(train=100, val=50, test=50), progress=False)
    return root


@pytest.fixture
def in_a_process() -> Callable[[Callable[[], object]], object]:
    """Call a function in a forked process, and return its result."""

    def call(function: Callable[[], object]) -> object:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(300)
            try:
                os.write(writing, json.dumps(function()).encode())
            except BaseException as error:  # noqa: BLE001  (the outermost frame of a process)
                os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            said = answer.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"the process ended with {status}"
        return json.loads(said)

    return call
