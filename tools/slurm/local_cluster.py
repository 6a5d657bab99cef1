"""Start and stop a real SLURM on one machine, to test the scripts in this folder: `local_cluster.py start DIR`.

Needs Debian's (or Ubuntu's) slurm-wlm and munge, and root. All that it writes lies in DIR: configuration, key, socket,
logs, state. Nothing of an installed SLURM is touched. `start` prints the line that makes sbatch and srun use it:

    $ eval "$(python tools/slurm/local_cluster.py start /tmp/slurm)"
    $ sinfo
    $ python tools/slurm/local_cluster.py stop /tmp/slurm

It is a toy in three ways: several nodes are several daemons on one machine, so that a job of two nodes is possible; a
node claims more cores than there are (`--cpus`), so that many small tasks run at once; and jobs are not confined to the
cores and memory that they asked for.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
START_SECONDS = 60.0
CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
KillWait=5
MessageTimeout=30
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
{nodes}
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
"""


def missing_programs() -> list[str]:
    """Return the programs that this machine lacks to run SLURM."""
    return [name for name in PROGRAMS if _program(name) is None]


def start(folder: Path, *, nodes: int = 2, cpus: int = 8) -> Path:
    """Start the daemons, wait until the nodes are idle, and return the path for SLURM_CONF.

    Raises RuntimeError with the end of the logs when they do not come up, and leaves nothing running then.
    """
    if lacking := missing_programs():
        raise RuntimeError(f"no {', '.join(lacking)} on this machine; install slurm-wlm and munge")
    if os.geteuid() != 0:
        raise RuntimeError("SLURM's daemons need root to start jobs; run this as root")
    folder = folder.absolute()
    stop(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    (folder / "state").mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{n} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={ports[n]} CPUs={cpus} "
        f"RealMemory={_memory_mb()} State=UNKNOWN"
        for n in range(1, nodes + 1)
    ]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=socket.gethostname(), controller_port=ports[0], folder=folder, nodes="\n".join(lines))
    )
    try:
        files = {"pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
        files |= {"key-file": key.name, "socket": "munge.socket"}
        _run(folder, "munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
        _run(folder, "slurmctld", "-f", str(configuration))
        for n in range(1, nodes + 1):
            _run(folder, "slurmd", "-f", str(configuration), "-N", f"n{n}")
        _wait_until_idle(configuration, nodes)
    except (RuntimeError, OSError) as error:
        logs = "\n".join(_end(path) for path in sorted(folder.glob("*.log")))
        stop(folder)
        raise RuntimeError(f"SLURM does not come up: {error}\n{logs}") from error
    return configuration


def stop(folder: Path) -> None:
    """End all jobs and daemons that `start` left running in `folder`. Its files stay."""
    configuration = folder.absolute() / "slurm.conf"
    pids = {path: _pid(path) for path in sorted(folder.absolute().glob("*.pid"))}
    if any(path.name == "slurmctld.pid" and pid for path, pid in pids.items()):
        for command in (["scancel", "--user=root"], ["scancel", "--full", "--signal=KILL", "--user=root"]):
            subprocess.run(command, env=_environment(configuration), capture_output=True, timeout=60, check=False)
    for name in ("slurmd", "slurmctld", "munged"):  # dependents first
        for path, pid in pids.items():
            if path.name.startswith(name) and pid is not None:
                _end_process(pid)
                path.unlink(missing_ok=True)


def _environment(configuration: Path) -> dict[str, str]:
    return {**os.environ, "SLURM_CONF": str(configuration)}


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _run(folder: Path, name: str, *arguments: str) -> None:
    program = _program(name)
    assert program is not None
    with open(folder / f"{name}.out", "ab") as output:
        done = subprocess.run([program, *arguments], stdout=output, stderr=output, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {_end(folder / f'{name}.out')}")


def _wait_until_idle(configuration: Path, nodes: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        shown = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env=_environment(configuration), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if shown.stdout.split() == ["idle"] * nodes:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"its nodes are {shown.stdout.split() or shown.stderr}, expected idle")
        time.sleep(0.5)


def _end_process(pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)


def _pid(path: Path) -> int | None:
    """Return the process id in a pid file if that process is still one of ours."""
    with suppress(OSError, ValueError):
        pid = int(path.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        return pid if path.name.startswith(name) else None
    return None


def _end(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(errors="replace").splitlines()[-8:]
        return "\n".join([f"{path.name}:", *lines])
    return ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=8, help="cores that each node claims to have")
    options = parser.parse_args()
    if options.what == "stop":
        stop(options.folder)
        return
    try:
        print(f"export SLURM_CONF={start(options.folder, nodes=options.nodes, cpus=options.cpus)}")
    except RuntimeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
