"""Trains each config at higher learning rates, and says which are stable: python -m benchmarks.sweep [CONFIG ...]

Each config is trained with 1, 3 and 10 times its learning rate, for a tenth of its steps. A run with one loss has exploded if, at
its end, the loss has lost more than half of its improvement. A run with several losses, such as a GAN, has exploded if, at its end,
the gradient norm is more than 100 times the norm of its first steps. A run that ended with an error has exploded, too.

A run that explodes should print a warning soon after. The warnings have other rules (gen.runtime.levels), which this tests. Results
are written to a file after each run, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks.study import Numbers, Results, run_missing
from gen import config as configs
from gen.config import Config, Log, Save
from gen.config.files import CONFIGS
from gen.core import Family
from gen.errors import UserError, run_command
from gen.optim import Optimizer, Schedule
from gen.train import train

PLANNED = ("dit_imagenet_256", "kl_imagenet_256", "lm_1b", "lm_7b", "lm_gpt2_small", "sngan_cifar10")
"""Configs that need accelerators."""
RATES = (1.0, 3.0, 10.0)
SHARE = 10
"""A run has a tenth of the config's steps. The last tenth of these counts as its end."""
MAX_LOST = 0.5
"""A loss has exploded if it lost more than this fraction of its improvement."""
MAX_RATIO = 100.0
"""A gradient norm has exploded if it is more than this number times the first ones."""
WINDOW = 10
"""Number of steps of the running means that find the step of an explosion."""


class Curve(NamedTuple):
    """Metrics and warnings of a run."""

    loss: np.ndarray
    """Sum of the losses of each step."""
    gradient: np.ndarray
    """Gradient norm over all players."""
    players: int
    """Number of losses."""
    warned: list[int]
    """Steps with a warning."""
    error: str
    """Error message with which the run ended. "": it ended without an error."""


def main(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    out: Path = Path("runs/sweep/results.json"),
    steps: int | None = None,
    options: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    rates: tuple[float, ...] = RATES,
) -> None:
    """Prints a table: a row for each config, a column for each learning rate.

    names: configs, or config files; default: all that need no accelerator. out: file of the results. Runs are trained in its folder.
    steps: steps of each run; default: a tenth of the config's. options: a config and options of train.py for it, such as --options
    "vae_folder --data.name folder:pictures". rates: factors on the learning rate.
    """
    names = names or tuple(sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in PLANNED))
    runs = plan(names, rates, steps, options)

    def run(method: str, seed: int) -> Numbers:
        return judge(
            read_run(replace(runs[method], seed=seed), out.parent / method.replace(" ", "_").replace("/", "_"))
        )

    out.parent.mkdir(parents=True, exist_ok=True)
    # The file may also hold results of other configs and rates, but only of runs with the same length and options.
    results = run_missing(out, {"steps": steps, "options": sorted(options)}, list(runs), 1, run)
    print(table(names, rates, results))


def plan(names: Sequence[str], rates: Sequence[float], steps: int | None, options: Sequence[str]) -> dict[str, Config]:
    """Returns the configs to train, by the names of their runs. The arguments are those of `main`.

    Raises: UserError if an element of `options` does not begin with one of the names.
    """
    given: dict[str, list[str]] = {}
    for text in options:
        name, *words = shlex.split(text) or [""]
        given.setdefault(name, []).extend(words)
    if unknown := given.keys() - set(names):
        raise UserError(
            f"--options names {unknown.pop()!r}, which is not in this sweep; the fix: begin each with a config of the sweep"
        )
    runs: dict[str, Config] = {}
    for name in names:
        config = configs.override(configs.load(name), given.get(name, []), prog=f"train.py {name}").config
        config = replace(config, steps=steps or max(1, config.steps // SHARE))
        config = replace(config, model=shorten(config.model, config.steps))
        runs |= {title(name, rate): with_rate(config, rate) for rate in rates}
    return runs


def title(name: str, rate: float) -> str:
    """Returns the name of a run."""
    return f"{name} x{rate:g}"


def with_rate(config: Config, rate: float) -> Config:
    """Returns the config with the learning rates of all its optimizers multiplied."""
    model: Family = config.model
    optimizers = {f.name: x for f in fields(model) if isinstance(x := getattr(model, f.name), Optimizer)}
    changed: dict[str, Any] = {name: replace(x, lr=multiply(x.lr, rate)) for name, x in optimizers.items()}
    return replace(config, model=replace(model, **changed))


def multiply(lr: object, rate: float) -> Any:
    """Returns a learning rate multiplied by a factor. In a schedule, all numbers except steps are multiplied."""
    if isinstance(lr, tuple):
        return tuple(multiply(x, rate) for x in lr)
    if isinstance(lr, Schedule) and is_dataclass(lr):
        values = {f.name: multiply(getattr(lr, f.name), rate) for f in fields(lr) if "warmup" not in f.name}
        values.pop("boundaries", None)
        return replace(lr, **values)
    return lr * rate if isinstance(lr, float | int) else lr


def shorten(x: Any, steps: int) -> Any:
    """Returns a config, or a part of a config, with warm-ups of at most half of the run, and with the fewest test samples."""
    if isinstance(x, tuple):
        return tuple(shorten(element, steps) for element in x)
    if isinstance(x, Schedule):
        return replace(x, warmup=min(warmup, steps // 2)) if (warmup := getattr(x, "warmup", 0)) else x  # pyright: ignore
    if not is_dataclass(x) or isinstance(x, type):
        return x
    changed: dict[str, Any] = {f.name: shorten(getattr(x, f.name), steps) for f in fields(x) if f.init}
    changed |= {name: 1 for name in ("validation_samples", "test_samples") if name in changed}
    return replace(x, **changed)


def read_run(config: Config, workdir: Path) -> Curve:
    """Trains a run, without output, and returns its curve. The run directory is removed.

    Raises: UserError if the run cannot begin.
    """
    silent = replace(
        config,
        evaluate_every=0,
        save=Save(every=max(1, config.steps // SHARE)),
        log=Log(every=1, tensorboard=False),
    )
    error = ""
    try:
        with redirect_stdout(io.StringIO()):
            train(silent, workdir)
    except UserError as stop:
        error = str(stop)
    lines = read_lines(workdir / "metrics.jsonl")
    curve = [line for line in lines if line["split"] == "train"]
    if not curve:
        raise UserError(f"no step was trained: {error}")
    losses = [name for name in curve[0] if name == "loss" or name.startswith("loss/")]
    norms = [name for name in curve[0] if name.split("/")[0] == "gradient"]
    warned = [line["step"] for line in read_lines(workdir / "telemetry.jsonl") if "alarm" in line or "skipped" in line]
    shutil.rmtree(workdir)
    # Programs of finished runs would otherwise fill the memory.
    jax.clear_caches()
    return Curve(
        np.array([sum(line[name] for name in losses) for line in curve]),
        np.array([math.hypot(*(line[name] for name in norms)) for line in curve]),
        len(losses),
        sorted(warned),
        error,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def judge(curve: Curve) -> Numbers:
    """Returns {"verdict": ..., "loss": mean at the end, "exploded": step of the explosion or None, "told": step of the first warning or
    None}. The verdict is "trained" if the run did not explode, "told" if it exploded with a warning, and otherwise "silent".
    """
    end = max(1, len(curve.loss) // SHARE)
    exploded = explosion(curve.loss) if curve.players == 1 else None
    if curve.players > 1 and np.median(curve.gradient[-end:]) > MAX_RATIO * np.median(curve.gradient[:WINDOW]):
        exploded = 1 + int(np.argmax(curve.gradient > MAX_RATIO * np.median(curve.gradient[:WINDOW])))
    if curve.error and exploded is None:
        # The loss was not finite, or gen stopped a run that these rules would not stop.
        exploded = len(curve.loss)
    # An error message counts as a warning.
    told = min([*curve.warned, *([len(curve.loss)] if curve.error else [])], default=None)
    verdict = "trained" if exploded is None else "silent" if told is None else "told"
    return {"verdict": verdict, "loss": float(curve.loss[-end:].mean()), "exploded": exploded, "told": told}


def explosion(loss: np.ndarray) -> int | None:
    """Returns the step after which a loss has, until its end, lost more than MAX_LOST of its improvement. None: it has not exploded."""
    window = min(WINDOW, len(loss))
    means = np.convolve(loss, np.ones(window) / window, "valid")
    low, first = float(means.min()), float(loss[0])
    end = max(1, len(loss) // SHARE)
    most = low + MAX_LOST * max(first - low, 0.0)
    # A loss that never fell has no improvement to lose. It must rise by half of its size, so that noise is no explosion.
    most = max(most, first + 0.5 * abs(first)) if low >= first else most
    if loss[-end:].mean() <= most:
        return None
    below = np.flatnonzero(means <= most)
    return int(below[-1]) + window + 1 if len(below) else 1


def cell(numbers: Numbers) -> str:
    """Returns the text of a cell of the table."""
    loss, exploded, told = (numbers[name] for name in ("loss", "exploded", "told"))
    if numbers["verdict"] == "trained":
        return f"trained, {loss:.4g}" + ("" if told is None else f" (warned at {told})")
    if numbers["verdict"] == "silent":
        return f"EXPLODED SILENTLY at {exploded}, {loss:.4g}"
    return f"told {max(0, told - exploded)} steps after it exploded at {exploded}"


def table(names: Sequence[str], rates: Sequence[float], results: Results) -> str:
    """Returns the table in Markdown. The numbers are the sums of losses at the end."""
    rows = [["config", *(f"lr x{rate:g}" for rate in rates)], ["---"] * (1 + len(rates))]
    rows += [[name, *(cell(results[title(name, rate)]["0"]) for rate in rates)] for name in names]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
