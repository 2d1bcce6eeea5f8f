"""A real SLURM of one node, started for these tests and stopped after them.

Needs Debian's packages slurmctld, slurmd, slurm-client and munge, and root; without them the tests
are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
MinJobAge=300
KillWait=3
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running cluster; SLURM_CONF points to it."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): apt install slurmctld slurmd "
                    "slurm-client munge")  # fmt: skip
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    pytest.importorskip("submitit", reason="pip install 'elip[slurm]'")
    folder = tmp_path_factory.mktemp("slurm")
    for part in ("state", "spool"):
        (folder / part).mkdir()
    ports = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, port=ports[0], node_port=ports[1]))
    started: list[subprocess.Popen[bytes]] = []
    before = dict(os.environ)
    os.environ.update(SLURM_CONF=str(config), PATH=SEARCH)
    try:
        _start_munge(folder, started)
        with (folder / "out.log").open("wb") as out:
            for program in ("slurmctld", "slurmd"):
                command = [program, "-D", "-f", str(config)]
                started.append(subprocess.Popen(command, stdout=out, stderr=out))
        _wait_until_idle(folder)
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], check=False, capture_output=True)
        _wait_until_empty()
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.environ.clear()
        os.environ.update(before)


def _start_munge(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    key = folder / "munge.key"
    subprocess.run(["mungekey", "-c", "-k", str(key)], check=True)
    command = [
        "munged", "--foreground", "--force", f"--key-file={key}",
        f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    with (folder / "munge.out").open("wb") as out:
        started.append(subprocess.Popen(command, stdout=out, stderr=out))
    until = time.monotonic() + 20
    while not (folder / "munge.socket").exists():
        assert time.monotonic() < until, (folder / "munge.out").read_text()
        time.sleep(0.1)


def _wait_until_idle(folder: Path) -> None:
    until = time.monotonic() + 40
    state = ""
    while time.monotonic() < until:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False
        )
        state = done.stdout.strip()
        if state == "idle":
            return
        time.sleep(0.3)
    logs = "\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("*.log")))
    pytest.fail(f"The cluster did not come up; its node is {state!r}.\n{logs}")


def _wait_until_empty() -> None:
    """Wait for the last steps to be gone: without its daemons, a step's process stays for ever."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        listed = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=False)
        if not listed.stdout.strip():
            return
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
