"""A SLURM cluster of one node on this machine, started by root in its own folder: real srun, sbatch and requeueing for tests.

    with slurm.cluster(folder) as environment:
        subprocess.run(["srun", "-n", "2", "hostname"], env=environment)

It needs the programs of Debian's packages slurmctld, slurmd, slurm-client and munge on PATH. Their services need not run.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = "munged", "setpriv", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun"
KILL_WAIT = 30  # seconds between SIGTERM and SIGKILL for the tasks of a cancelled job
ADMINISTRATORS = "/usr/sbin:/sbin"  # where Debian puts the daemons; often not on a user's PATH

# A requeued job waits until the credentials of its last start have expired (cred_expire: 120 seconds by default, and for values
# below 5), and then for the next round of the scheduler (sched_interval). A wait this short is only safe for jobs whose steps SLURM
# did not end itself: after KillWait it would end the step of the same number again.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait={wait}
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Returns why no cluster can be started here. None: one can."""
    if os.geteuid() != 0:
        return "only root can start SLURM"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which SLURM's commands find the cluster. Ends its jobs and daemons at the end."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o400)
    controller, node = _free_ports(2)
    config = folder / "slurm.conf"
    values = {"host": socket.gethostname(), "controller": controller, "node": node, "wait": KILL_WAIT}
    config.write_text(CONFIG.format(folder=folder, **values))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    environment = {**kept, "PATH": _path(), "SLURM_CONF": str(config)}
    munge = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{k}={folder}/munge/{v}" for k, v in munge.items())]

    with ExitStack() as stack:
        # --force: the folder may belong to another user, or be closed to others.
        stack.enter_context(_daemon(munged, environment, folder / "munged.out"))
        _until(lambda: (folder / "munge" / "socket").exists(), 10, folder)
        stack.enter_context(_daemon(["slurmctld", "-D", "-i"], environment, folder / "slurmctld.out"))
        stack.enter_context(_daemon(["slurmd", "-D", "-N", "localhost"], environment, folder / "slurmd.out"))
        idle = lambda: "idle" in _output(["sinfo", "--noheader", "--format=%t"], environment)
        _until(idle, 60, folder)
        stack.callback(_end_jobs, environment)
        yield environment


def log(folder: Path) -> str:
    """Returns the last lines that the daemons have written, to find out why the cluster does not work."""
    files = [*folder.glob("*.log"), *folder.glob("*.out"), folder / "munge" / "log"]
    tails = {path.name: path.read_text(errors="replace").splitlines()[-20:] for path in files if path.exists()}
    return "\n".join(f"{name}: {line}" for name, lines in tails.items() for line in lines)


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancels all jobs and waits for their ends, so that the daemons leave no task behind."""
    left = lambda: _output(["squeue", "--noheader", "--format=%i"], environment).split()
    if jobs := left():
        _output(["scancel", *jobs], environment)
        end = time.monotonic() + KILL_WAIT + 10
        while left() and time.monotonic() < end:
            time.sleep(0.1)


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], output: Path) -> Iterator[None]:
    command = ["setpriv", "--pdeathsig=TERM", *command]  # ends the daemon even if the tests are killed
    with open(output, "wb") as file:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(true, seconds: float, folder: Path) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"SLURM did not start in {seconds} seconds\n{log(folder)}")
        time.sleep(0.05)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATORS}"


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
