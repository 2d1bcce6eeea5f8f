"""A process that has imported everything, and forks a copy of itself for each run.

Importing the model takes longer than scoring a small one. A grid of many short runs pays for it
once: ``python -m experiments.warm`` reads requests as JSON lines and answers with the runs' process
ids and exit statuses. A run is a process of its own all the same: it can fail, run out of memory or
be killed without harm to others, and it outlives this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.attempt import acquire, sign

_LOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """A run to be started.

    Attributes:
        arguments: What the command line is given.
        environment: Its environment.
        log: File that its output is appended to.
        lock: The run's lock, which it takes and holds.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    log: str
    lock: str


class WarmRun:
    """A forked run, seen from the launcher; as much of `subprocess.Popen` as that needs."""

    def __init__(self, pid: int, ended: Mapping[int, int], server: subprocess.Popen[str]) -> None:
        self.pid = pid
        self._ended, self._server = ended, server

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, None while it runs."""
        if self.pid in self._ended:
            return self._ended[self.pid]
        if self._server.poll() is not None and not Path(f"/proc/{self.pid}").exists():
            return -signal.SIGKILL  # nobody was left to learn its status
        return None


class Warm:
    """The launcher's side: starts the process, and runs in it.

    Args:
        command: How the process is started.
        environment: Its environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
        self._pids: queue.Queue[int] = queue.Queue()
        self._ended: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, request: Request) -> WarmRun | None:
        """Start a run; None when the process is gone."""
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(json.dumps(asdict(request)) + "\n")
            self._server.stdin.flush()
        except OSError:
            return None
        pid = self._pids.get()
        return WarmRun(pid, self._ended, self._server) if pid else None

    def close(self) -> None:
        """Let the process end; its runs stay."""
        assert self._server.stdin is not None
        with contextlib.suppress(OSError):
            self._server.stdin.close()
        self._server.wait()

    def _listen(self) -> None:
        assert self._server.stdout is not None
        with self._server.stdout as lines:
            for line in lines:
                told = json.loads(line)
                if "status" in told:
                    self._ended[told["pid"]] = told["status"]
                else:
                    self._pids.put(told["pid"])
        self._pids.put(0)


def serve(run: Callable[[list[str]], Any]) -> None:
    """Fork a run for each request on standard input, until that is closed.

    Args:
        run: The command line.
    """
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what is printed here must not mix with the answers
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    kept = b""
    while True:
        for key, _ in selector.select():
            received = os.read(key.fd, 1 << 16)
            if key.fd == woken:
                _reap(answers)
                continue
            if not received:
                return
            *lines, kept = (kept + received).split(b"\n")
            for line in lines:
                request = Request(**json.loads(line))
                pid = os.fork()
                if pid == 0:
                    for descriptor in (requests, answers, woken, wake):
                        os.close(descriptor)
                    os._exit(_be_the_run(request, run))
                _answer(answers, pid=pid)


def _reap(answers: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _answer(answers, pid=ended[0], status=os.waitstatus_to_exitcode(ended[1]))


def _answer(answers: int, **told: int) -> None:
    # The launcher may be gone; its runs go on, and the end of the input ends this process.
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, json.dumps(told).encode() + b"\n")


def _be_the_run(request: Request, run: Callable[[list[str]], Any]) -> int:
    """Become the run: own session, environment, output and lock. Returns the exit status."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request.environment)
    until = time.monotonic() + _LOCK_SECONDS
    while (lock := acquire(Path(request.lock))) is None:
        if time.monotonic() > until:
            sys.stderr.write(f"error: {request.lock} is held by another process.\n")
            return 1
        time.sleep(0.01)
    sign(lock, os.getpid())
    sys.argv = ["run_experiment.py", *request.arguments]
    try:
        run(list(request.arguments))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (this is the outermost frame of a process)
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _run(arguments: list[str]) -> None:
    import torch

    from elip.training.cli import main as command_line

    # The libraries read the number of threads when they were loaded, before the fork.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    command_line(arguments)


def main() -> None:
    """Import everything, then serve."""
    # The last two are what pyarrow and transformers load in the middle of a run.
    import pandas  # noqa: F401
    import transformers.models.roberta.modeling_roberta  # noqa: F401

    from experiments.check import RunParser

    RunParser()  # imports reducers, tasks and data sets, and learns their options
    serve(_run)


if __name__ == "__main__":
    main()
