"""Several hosts on one machine: they have the same training curve as one host, and all stop if one stops."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from gen.errors import Requeue
from gen.runs import checkpoint
from gen.runtime import failures, signals
from gen.runtime import hosts as runtime_hosts
from gen.runtime.backend import start_devices
from tests.processes import QUICK, environment, hosts, statuses, until

pytestmark = pytest.mark.slow  # several processes that wait for each other

STEPS = 240
RUN = ["vae_digits", *QUICK, "--steps", STEPS, "--save.every", 20, "--evaluate-every", 120, "--log.every", 1]


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(env, tmp_path_factory) -> Path:
    """A finished run of one host with two devices."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [*RUN, "--workdir", folder / "run", "--parallel.cpu-devices", 2]
    with hosts(1, arguments, env, folder) as running:
        assert statuses(running) == [0], said(folder)
    return folder / "run"


def said(folder: Path, host: int = 0) -> str:
    return (folder / f"host-{host}.txt").read_text()


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_close(one: list[dict], other: list[dict]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["split"]) == (b["step"], b["split"])
        for name in a.keys() - {"step", "split"}:
            assert b[name] == pytest.approx(a[name], rel=1e-5), (a["step"], name)


def step_of(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.long
def test_two_hosts_go_through_faults_on_the_curve_of_one(whole, env, tmp_path):
    """A signal to one host, the death of each, and at the end one host with two devices and another engine."""
    workdir, arguments = tmp_path / "run", [*RUN, "--workdir", tmp_path / "run"]

    # SIGUSR1 to one host: both save the same step, and exit to be started again.
    with hosts(2, arguments, env, tmp_path) as running:
        assert until(lambda: step_of(workdir) > 30, running), said(tmp_path)
        running[1].send_signal(signal.SIGUSR1)
        assert statuses(running, 60) == [75, 75], said(tmp_path)
    stopped = max(checkpoint.steps(workdir / "checkpoints"))
    for host in range(2):
        assert f"stopped at step {stopped}, as asked" in said(tmp_path, host)
        assert f"stopped at step {stopped}, as asked" in (workdir / "logs" / f"host-{host:03d}.log").read_text()

    # Death of one host: the other ends soon, with the reason. The first host also runs the runtime's coordinator.
    for victim in (1, 0):
        begun = time.monotonic()
        before = step_of(workdir)
        with hosts(2, arguments, env, tmp_path) as running:
            assert until(lambda: step_of(workdir) > before, running), said(tmp_path)  # noqa: B023
            assert time.monotonic() - begun < 60  # from the restart to the next step
            assert until(lambda: step_of(workdir) > before + 25, running), said(tmp_path)  # noqa: B023
            running[victim].kill()
            killed = time.monotonic()
            running[1 - victim].wait(30)
            print(f"host {victim} killed; the other ended {time.monotonic() - killed:.1f} s later")
        assert running[1 - victim].returncode == 75, said(tmp_path, 1 - victim)
        assert "another host has ended" in said(tmp_path, 1 - victim), said(tmp_path, 1 - victim)

    # One host with two devices and another engine, until it is told to stop. Then to the end under pmap again.
    switched = step_of(workdir)
    alone = [*arguments, "--parallel.cpu-devices", 2]
    with hosts(1, [*alone, "--parallel.engine", "jit", "--parallel.fsdp"], env, tmp_path) as running:
        assert until(lambda: step_of(workdir) >= min(switched + 5, STEPS - 20), running), said(tmp_path)
        running[0].terminate()
        assert statuses(running, 60) == [75], said(tmp_path)
    with hosts(1, alone, env, tmp_path) as running:
        assert statuses(running) == [0], said(tmp_path)

    found, expected = metrics(workdir), metrics(whole)
    assert [(m["step"], m["split"]) for m in found] == [(m["step"], m["split"]) for m in expected]
    # float32 agrees within 1e-5 for ten steps. After that, the rounding of the two engines has grown.
    assert_close(expected[: switched + 5], found[: switched + 5])


def test_all_hosts_refuse_a_wrong_run_directory(whole, env, tmp_path):
    arguments = [*RUN, "--workdir", whole, "--seed", 7]
    with hosts(2, arguments, env, tmp_path) as running:
        assert statuses(running, 120) == [2, 2], said(tmp_path)
    for host in range(2):
        assert "seed: 0 -> 7" in said(tmp_path, host)


def test_hosts_that_shard_the_state_have_the_same_curve(whole, env, tmp_path):
    fsdp = "--parallel.engine", "jit", "--parallel.fsdp"
    with hosts(2, [*RUN, "--steps", 10, "--workdir", tmp_path / "run", *fsdp], env, tmp_path) as running:
        assert statuses(running) == [0, 0], said(tmp_path)
    assert_close(metrics(whole)[:10], [m for m in metrics(tmp_path / "run") if m["split"] == "train"])


def test_hosts_with_different_configs_are_refused(env, tmp_path):
    each = [("--seed", 0), ("--seed", 1)]
    with hosts(2, [*RUN, "--workdir", tmp_path / "run"], env, tmp_path, each=each) as running:
        assert statuses(running, 120) == [2, 2], said(tmp_path)
    for host in range(2):
        assert "the hosts have different configs: seed is 0 on host 0 and 1 on host 1" in said(tmp_path, host)
    assert not (tmp_path / "run").exists()


def test_a_host_that_never_comes_ends_the_wait_with_a_message(env, tmp_path):
    lonely = ["--parallel.coordinator", "127.0.0.1:9", "--parallel.hosts", "2", "--parallel.host", "1"]
    command = [sys.executable, "train.py", *map(str, RUN), "--workdir", tmp_path / "run", *lonely]
    begun = time.monotonic()
    done = subprocess.run(
        [*map(str, command), "--parallel.startup-seconds", "3"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    assert "the hosts did not meet within 3 s" in done.stderr
    assert time.monotonic() - begun < 45
    assert not (tmp_path / "run").exists()


def test_hosts_without_a_cluster_name_the_fix(env, tmp_path):
    command = [sys.executable, "train.py", "vae_digits", "--workdir", tmp_path / "run", "--parallel.hosts", 2]
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--parallel.coordinator HOST:PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("UNAVAILABLE: Gloo all-reduce failed: Connection closed by peer"),
        ValueError("Barrier Id: save::0 failed"),
        # Orbax raises it if the other host was killed while both saved.
        TimeoutError("Timed out while waiting for async_write_complete barrier."),
        # JAX raises it if the other host was killed while both started.
        RuntimeError("Unable to initialize backend 'cpu': UNAVAILABLE: recvmsg:Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_a_lost_host_asks_for_a_restart(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(failures, "WAIT_SECONDS", 0.0)
    with pytest.raises(type(error)), runtime_hosts.requeue_if_lost():
        raise error  # with one host it is a bug
    monkeypatch.setattr(failures, "place", lambda: (0, 2))
    with pytest.raises(Requeue, match="another host has ended"), runtime_hosts.requeue_if_lost():
        raise error
    with pytest.raises(ValueError, match="a bug"), runtime_hosts.requeue_if_lost():
        raise ValueError("a bug")
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(Requeue, match="another host has ended"):
        start_devices()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_that_has_not_saved_within_the_grace_ends(number):
    """Also while Python is not running: in a computation of half a minute."""
    program = (
        "import os\nimport numpy as np\nfrom gen.runtime import signals\n"
        "with signals.exit_on_signal(0.3), signals.notice_signals() as notice:\n"
        f" os.kill(os.getpid(), {int(number)})\n assert notice()\n np.linalg.svd(np.ones((6000, 6000)))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 75
    assert "grace-seconds are over" in done.stderr
    assert time.monotonic() - begun < 25


def test_a_signal_while_arrays_are_read_waits_for_them():
    read = []

    def stopped() -> None:
        with signals.exit_on_signal(60), signals.delay_signals():
            signal.raise_signal(signal.SIGTERM)
            read.append("all")

    with pytest.raises(Requeue, match="SIGTERM"):
        stopped()
    assert read == ["all"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_before_the_first_step_ends_at_once(env, tmp_path):
    with hosts(1, [*RUN, "--workdir", tmp_path / "run"], env, tmp_path) as running:
        assert until(lambda: (tmp_path / "run" / ".lock").exists(), running)
        running[0].terminate()
        assert statuses(running, 60) == [75], said(tmp_path)
    assert re.search("SIGTERM: stopped|stopped at step", said(tmp_path))


def test_the_first_interrupt_saves(env, tmp_path):
    workdir = tmp_path / "run"
    with hosts(1, [*RUN, "--workdir", workdir, "--save.every", 1000, "--steps", 100_000], env, tmp_path) as running:
        assert until(lambda: step_of(workdir) > 20, running), said(tmp_path)
        running[0].send_signal(signal.SIGINT)
        assert statuses(running, 60) == [75], said(tmp_path)
    assert "saving first" in said(tmp_path)
    (stopped,) = checkpoint.steps(workdir / "checkpoints")
    assert f"stopped at step {stopped}, as asked" in said(tmp_path)
