"""Processes that end early: fixed scenarios of tests/two_hosts.py, signals from the first second, low limits and broken pipes."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import two_hosts
from tests.processes import QUICK, ROOT, environment, until

pytestmark = pytest.mark.slow  # they start processes

SAMPLE = (
    "SIGTERM to host 1 at import",
    "SIGUSR1 to host 0 at train",
    "SIGKILL of host 0 at train",
    f"host 0 stalls for {two_hosts.LONG} s at train",
    pytest.param(f"host 1 stalls for {two_hosts.LONG} s at train", marks=pytest.mark.long),
    "other code at host 1",
    pytest.param("another comment in the code", marks=pytest.mark.long),
    "other missing data at host 1",
    "host 1 can't write its log",
)
MANY_ARRAYS = """
import sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from gen.config import Save
from gen.core import State
from gen.errors import run_command
from gen.runs import checkpoint

def main():
    noise = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    state = State(jnp.int32(1), {str(i): {"w": jnp.asarray(noise)} for i in range(300)}, {"a": {"m": jnp.ones(3)}})
    with checkpoint.saver(Path(sys.argv[1]), Save(), 0) as save:
        save(state)

run_command(main)
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    return environment(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", SAMPLE)
def test_two_hosts_end_with_the_right_statuses_and_reasons(name, env, tmp_path):
    (scenario,) = [each for each in two_hosts.scenarios() if each.name == name]
    assert two_hosts.run(scenario, tmp_path, env) is None


def catches(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    (mask,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_signal_while_importing_asks_for_a_restart(number, seconds, env, tmp_path):
    command = [sys.executable, ROOT / "train.py", "vae_digits", *QUICK, "--workdir", tmp_path / "run"]
    process = subprocess.Popen(list(map(str, command)), env=env, stderr=subprocess.PIPE, text=True)
    assert until(lambda: catches(process.pid, number), [process], 60)
    # Only Python itself was loaded before.
    assert seconds or "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text()
    time.sleep(seconds)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert said == f"{number.name}: stopped; the same command continues from the last checkpoint\n"


def test_a_limit_of_file_sizes_in_a_save_is_one_line(env, tmp_path):
    """Many arrays are being written when the first of them fails."""
    command = f"ulimit -f 10; exec {sys.executable} -c '{MANY_ARRAYS}' {tmp_path}/checkpoints"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large; the fix: raise the limit of file sizes (ulimit -f)" in done.stderr


UNAWAITED = """
from gen.runs import checkpoint

def {name}():
    async def write_fragment(): pass
    return write_fragment()

{name}()
"""


@pytest.mark.parametrize(("name", "times"), [("async_serialize_from_host", 0), ("of_ours", 1)])
def test_only_writes_that_orbax_never_began_are_left_out_of_the_warnings(name, times, env):
    code = UNAWAITED.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.count("never awaited") == times, done.stderr


def shell(command: str, env: dict[str, str], workdir: Path) -> tuple[int, str]:
    """The status of train.py in a shell's command, and what is printed to stderr."""
    train = f"{sys.executable} {ROOT}/train.py vae_digits {' '.join(QUICK)} --steps 20 --workdir {workdir}"
    done = subprocess.run(["bash", "-c", command.format(train=train)], env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_low_limit_of_open_files_is_one_line(env, tmp_path):
    status, said = shell("ulimit -n 64; {train}", env, tmp_path / "run")
    assert (status, said) == (2, "error: the limit of open files is 64; the fix: ulimit -n 1024\n")


def test_a_reader_that_leaves_ends_the_run_quietly(env, tmp_path):
    status, said = shell("{train} | head -1; exit ${{PIPESTATUS[0]}}", env, tmp_path / "run")
    assert (status, said) == (141, "")


def test_a_run_without_streams_goes_to_its_end(env, tmp_path):
    assert shell("{train} <&- >&- 2>&-", env, tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "evaluation.json").exists()
    # The files of the run did not get the numbers of the streams.
    assert (tmp_path / "run" / ".lock").read_bytes() == b""
