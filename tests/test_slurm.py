"""Several hosts on a cluster: tasks of a real SLURM, its signals, and the job that requeues itself."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
import slurm

from gen.runs import checkpoint, trained

pytestmark = pytest.mark.slow  # a SLURM of its own, with jobs that are requeued

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "cluster" / "train.sbatch"
TWO = "--nodes=1", "--ntasks-per-node=2"
STEPS = 300
SMALL = [
    *("--model.network.hidden", "24", "--model.latents", "3", "--model.test-samples", "4", "--steps", str(STEPS)),
    *("--model.validation-samples", "2", "--data.batch-size", "16", "--log.every", "1"),
    *("--evaluate-every", "100", "--save.every", "50"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Yields the environment for commands of the cluster. `python` is the interpreter of the tests."""
    if why := slurm.missing():
        pytest.skip(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        kept = processes.inherited(found)
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        cache = str(tmp_path_factory.mktemp("cache"))
        yield {**kept, "PATH": path, "XDG_CACHE_HOME": cache, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def call(environment):
    """call(command, ...) -> the finished process."""

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)

    return run


@pytest.fixture(scope="module")
def submit(environment):
    """submit(folder, argument, ...) -> a job that runs the script of cluster/. Its log is folder/log."""

    def run(folder: Path, *arguments: object, cwd: Path = ROOT) -> "Job":
        command = ["sbatch", "--parsable", f"--output={folder / 'log'}", *TWO, str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
        return Job(done.stdout.strip(), folder / "log", environment)

    return run


class Job:
    def __init__(self, number: str, log: Path, environment: dict[str, str]):
        self.number, self.log, self._environment = number, log, environment

    def facts(self) -> dict[str, str]:
        """Returns the fields of `scontrol show job`: JobState, Restarts, ExitCode ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self._output("scontrol", "show", "job", self.number)))

    def task(self, rank: int) -> int | None:
        """Returns the process id of a running task."""
        found = re.search(
            rf"^(\d+) +{self.number} +0 +{rank} ", self._output("scontrol", "listpids", self.number), re.M
        )
        return int(found[1]) if found else None

    def signal(self, *arguments: str) -> None:
        self._output("scancel", *arguments, self.number)

    def until(self, true: Callable[[], object], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"{self.facts()}\n{self.log.read_text() if self.log.exists() else ''}"
            time.sleep(0.05)

    def end(self, seconds: float = 240) -> dict[str, str]:
        ends = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"
        self.until(lambda: self.facts()["JobState"] in ends, seconds)
        return self.facts()

    def _output(self, *command: str) -> str:
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60).stdout


STAND_IN = """
import os, signal, sys, time
config, _, run, what, *_ = sys.argv[1:]
start = int(os.environ.get("SLURM_RESTART_COUNT", 0))
def save():
    folder = f"{run}/checkpoints/{start}"
    os.makedirs(folder, exist_ok=True)
    open(f"{folder}/manifest.json", "w").close()
def stop(number, frame):
    save()
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
if what == "saves":  # four times: a job may start three times in a row without saving
    save()
    sys.exit(0 if start == 4 else 75)
if what == "waits" and start == 0:
    open(f"{run}/waiting", "w").close()
    time.sleep(60)
if what == "killed" and start == 0 and os.environ["SLURM_PROCID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "killed" and start == 0:  # the first task to end does not end the others
    time.sleep(2)
    save()
    sys.exit(75)
sys.exit(int(what) if what.isdigit() else 0)
"""


def test_a_job_is_requeued_while_it_makes_progress_and_never_against_its_owner(submit, tmp_path):
    (tmp_path / "train.py").write_text(STAND_IN)
    expected = {
        "saves": ("COMPLETED", "0:0", 4),
        "75": ("FAILED", "75:0", 2),  # saves nothing: at most three starts
        "2": ("FAILED", "2:0", 0),  # a user's mistake
        "0": ("COMPLETED", "0:0", 0),
        "killed": ("COMPLETED", "0:0", 1),
    }
    jobs = {}
    for what in expected:
        (tmp_path / what).mkdir()
        jobs[what] = submit(tmp_path / what, "config", tmp_path / what, what, cwd=tmp_path)

    for name, arguments in {"told": ["--signal=USR1", "--full"], "cancelled": []}.items():
        folder = tmp_path / name
        folder.mkdir()
        jobs[name] = job = submit(folder, "config", folder, "waits", cwd=tmp_path)
        job.until((folder / "waiting").exists)
        job.signal(*arguments)
    expected |= {"told": ("COMPLETED", "0:0", 1), "cancelled": ("CANCELLED", "0:15", 0)}

    for what, (state, code, restarts) in expected.items():
        facts = jobs[what].end()
        assert (facts["JobState"], facts["ExitCode"], int(facts["Restarts"])) == (state, code, restarts), what
    assert (tmp_path / "killed" / "checkpoints" / "0" / "manifest.json").exists()
    assert "not requeued: 3 starts in a row saved nothing" in jobs["75"].log.read_text()
    assert (tmp_path / "cancelled" / "checkpoints" / "0" / "manifest.json").exists()  # tasks had time to save


def first_steps(workdir: Path, n: int) -> list[dict[str, float]]:
    """Returns the training metrics of steps 1 to n."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [x for x in records if x.pop("split") == "train" and x["step"] <= n]


def assert_same(whole: Path, other: Path) -> None:
    """Checks that the curve, scores and parameters are the same bits."""
    assert (other / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (other / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    abstract = trained.open_run(whole).abstract
    a, b = (checkpoint.restore(path / "checkpoints", STEPS, abstract) for path in (whole, other))
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.fixture(scope="module")
def whole(call, tmp_path_factory) -> Path:
    """A run of two tasks with two devices each that was not interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train = "python", "train.py", "vae_digits", "--workdir", workdir, *SMALL
    done = call("srun", "--ntasks=2", *train, "--parallel.cpu-devices", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("next: python sample.py") == 1, done.stdout  # only one host prints
    return workdir


def test_two_tasks_of_srun_have_the_curve_of_one_process(whole, call, tmp_path):
    alone = tmp_path / "alone"
    train = "python", "train.py", "vae_digits", "--workdir", alone, *SMALL
    done = call(*train, "--steps", 10, "--parallel.cpu-devices", 4)
    assert done.returncode == 0, done.stderr
    ours, theirs = first_steps(whole, 10), first_steps(alone, 10)
    assert [x["step"] for x in ours] == list(range(1, 11))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.long
def test_in_double_precision_the_curve_of_two_tasks_is_that_of_one_for_100_steps(call, environment, tmp_path):
    environment["JAX_ENABLE_X64"] = "1"
    double = "--model.dtype", "float64", "--model.param-dtype", "float64", "--steps", 100
    train = "python", "train.py", "vae_digits", *SMALL, *double
    try:
        together = call("srun", "--ntasks=2", *train, "--workdir", tmp_path / "two", "--parallel.cpu-devices", 2)
        jit = "--parallel.engine", "jit", "--parallel.fsdp"
        alone = call(*train, "--workdir", tmp_path / "one", "--parallel.cpu-devices", 4, *jit)
    finally:
        del environment["JAX_ENABLE_X64"]
    assert (together.returncode, alone.returncode) == (0, 0), together.stderr + alone.stderr
    ours, theirs = (first_steps(tmp_path / name, 100) for name in ("two", "one"))
    assert [x["step"] for x in ours] == list(range(1, 101))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-9)


def under_way(workdir: Path) -> bool:
    """Returns whether a run is after its first save and before its last."""
    metrics = workdir / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"\n") > 70


def test_a_signalled_job_saves_is_requeued_and_ends_bit_identical(whole, submit, tmp_path):
    workdir = tmp_path / "run"
    never = "--save.every", STEPS  # so a save before the end is due to the signal
    job = submit(tmp_path, "vae_digits", workdir, *SMALL, *never, "--parallel.cpu-devices", 2)
    job.until(lambda: under_way(workdir))
    job.signal("--signal=USR1", "--full")
    job.until(lambda: job.facts()["JobState"] == "PENDING", 60)
    stopped_at = checkpoint.newest(workdir / "checkpoints", pytest.fail)
    assert stopped_at, job.log.read_text()
    assert stopped_at < STEPS

    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()
    assert f"resuming {workdir} at step {stopped_at}" in job.log.read_text()
    assert_same(whole, workdir)


def test_a_job_that_loses_tasks_says_so_is_requeued_and_ends_bit_identical(whole, submit, tmp_path):
    workdir = tmp_path / "run"
    heartbeat = "--parallel.heartbeat-seconds", 10
    job = submit(tmp_path, "vae_digits", workdir, *SMALL, "--parallel.cpu-devices", 2, *heartbeat)
    for starts, rank in enumerate((1, 0)):  # rank 0 also runs the coordinator
        job.until(lambda: job.log.exists() and job.log.read_text().count("resuming") == starts)  # noqa: B023
        job.until(lambda: under_way(workdir))
        before = len(job.log.read_text())
        pid = job.task(rank)
        assert pid
        os.kill(pid, signal.SIGKILL)
        job.until(lambda: job.facts()["JobState"] == "PENDING", 60)
        log = job.log.read_text()[before:]
        assert "Traceback" not in log, log
        # The second message is JAX's. It ends a process whose collective hangs, if not all of its devices learn of the death.
        assert re.search("another host has ended|another task died", log), log

    facts = job.end()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), job.log.read_text()
    assert_same(whole, workdir)
