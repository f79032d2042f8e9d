"""Shows that a refactoring changed no number: python -m benchmarks.same OTHER_CHECKOUT

Trains short runs of every family in this checkout and in the other, on one device, on two with pmap, and on four with FSDP. Then
compares metrics.jsonl, the test metrics, the samples drawn during training, and the arrays that sample.py writes. Exits with
status 1 if a byte differs. Bytes can only be equal with the same version of jax and the same number of visible CPU cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from gen.errors import UserError, run_command

ROOT = Path(__file__).parent.parent
COMMON = "--data.batch-size 16 --log.every 1 --log.no-tensorboard --save.every 6 --evaluate-every 6"
SHORT = "--steps 12 --steps-per-call 1"
SMALL = "--data.length 32 --model.network.layers 2 --model.network.width 32 --model.network.heads 2"
SMALL += " --model.optim.lr WarmupCosine(5e-3,warmup=6)"  # the config's warm-up is longer than these runs
ENGINES = {
    "pmap on 1": "--parallel.devices 1",
    "pmap on 2": "--parallel.cpu-devices 2",
    "fsdp on 4": "--parallel.engine jit --parallel.fsdp --parallel.cpu-devices 4",
}


class Job(NamedTuple):
    """A family's short run."""

    config: str
    options: str
    samples: tuple[str, ...]
    """Options of each call of sample.py, as one string."""


JOBS = {
    "vae": Job(
        "vae_digits",
        "--model.test-samples 25",
        ("--n 16", "--n 16 --mode traverse", "--n 16 --mode interpolate", "--n 16 --mode reconstruct --pixels sample"),
    ),
    "gan": Job("gan_digits", "", ("--n 16", "--n 16 --mode interpolate --truncation 1.5")),
    "lm": Job(
        "lm_pydoc",
        SMALL,
        ("--prompt Once --tokens 40", "--tokens 10 --temperature 0", "--tokens 12 --top-k 5 --top-p 0.9 --stop e"),
    ),
    "mlm": Job("mlm_pydoc", SMALL, ("--prompt Once --turns 8",)),
    "seq2seq": Job(
        "seq2seq_docstring",
        f"--data.source-length 32 {SMALL}",
        ("--source pass --tokens 16",),
    ),
}


@dataclass(frozen=True)
class Options:
    """Short runs of two checkouts, compared byte for byte."""

    other: Annotated[Path, tyro.conf.Positional]
    """The other checkout, for instance a git worktree of the commit before."""
    families: tuple[str, ...] = tuple(JOBS)
    """Families to compare."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.same")
    if unknown := set(options.families) - JOBS.keys():
        raise UserError(f"there is no family {min(unknown)}; choose from {', '.join(JOBS)}")
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder) / "pairs.jsonl")
        for family in options.families:
            for engine in ENGINES:
                found = compare(family, engine, options.other, Path(folder), pairs)
                print(f"{family}, {engine}: {', '.join(found) or 'the same bytes'}", flush=True)
                differences += found
    sys.exit(1 if differences else 0)


def compare(family: str, engine: str, other: Path, folder: Path, pairs: Path) -> list[str]:
    """Returns the names of the files in which a run of the two checkouts differs."""
    runs = []
    for name, checkout in (("ours", ROOT), ("theirs", other)):
        run = folder / f"{family} {engine}".replace(" ", "_") / name
        train(JOBS[family], engine, checkout, run, pairs)
        runs.append(run)
    ours, theirs = (read_run(run) for run in runs)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def train(job: Job, engine: str, checkout: Path, run: Path, pairs: Path) -> None:
    """Trains and samples one run. Raises: RuntimeError with the output of a command that failed."""
    data = ["--data.name", f"jsonl:{pairs}"] if job.config == "seq2seq_docstring" else []
    options = f"{COMMON} {SHORT} {job.options} {ENGINES[engine]}".split()
    call(checkout, "train.py", job.config, *data, *options, "--workdir", str(run))
    for i, options in enumerate(job.samples):
        call(checkout, "sample.py", str(run), *options.split(), "--out", str(run / f"sample{i}"))


def call(checkout: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{checkout}: {' '.join(command)}\n{done.stdout}{done.stderr}")


def read_run(run: Path) -> dict[str, object]:
    """Returns {file: content that must be equal}. Archives are compared by their arrays, because they also contain the time."""
    found: dict[str, object] = {"metrics.jsonl": (run / "metrics.jsonl").read_bytes()}
    found["evaluation.json"] = json.loads((run / "evaluation.json").read_text())["metrics"]
    for file in [*run.glob("samples/*"), *run.glob("sample[0-9]/*")]:
        name = str(file.relative_to(run))
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                found |= {f"{name}: {key}": (x.dtype.str, x.shape, x.tobytes()) for key, x in arrays.items()}
        elif file.name != "manifest.json":
            found[name] = file.read_bytes()
    return found


def write_pairs(path: Path) -> Path:
    """Writes 400 pairs of a number and its digits in words, as lines of JSON. Returns the path."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = [{"source": str(7 * i), "target": " ".join(words[int(digit)] for digit in str(7 * i))} for i in range(400)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


if __name__ == "__main__":
    run_command(main)
