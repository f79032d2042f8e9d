"""Compares methods over several seeds: trains runs without output, keeps finished results in a file, and makes a table with 95%
confidence intervals.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gen.config import Config, Log, Save
from gen.errors import UserError, check_positive
from gen.files import write_json
from gen.train import train

Numbers = dict[str, Any]
"""{name: number} of a run, and "alarms": the alarms that it raised."""
Results = dict[str, dict[str, Numbers]]
"""{method: {seed: numbers}}. Seeds are strings, as in JSON."""
Columns = Mapping[str, tuple[str, str]]
"""{name of a number: (title of its column, format)}."""


@contextmanager
def train_silently(config: Config) -> Iterator[Path]:
    """Trains a run without output, and yields its directory, which is deleted when the context ends.

    The run is evaluated, checked for alarms and saved only at its end.
    """
    silent = replace(
        config,
        evaluate_every=0,
        save=Save(every=config.steps),
        log=Log(every=config.steps, tensorboard=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):
            train(silent, Path(folder))
        yield Path(folder)
    # Programs of finished runs would otherwise fill the memory over many seeds.
    jax.clear_caches()


def run_missing(
    out: Path, protocol: Mapping[str, Any], methods: Sequence[str], seeds: int, run: Callable[[str, int], Numbers]
) -> Results:
    """Returns the numbers of each method and seed, from the file `out` or otherwise from `run(method, seed)`.

    New numbers are written to the file after each run, so an interrupted command continues where it stopped.

    Raises: UserError if the file has results of another protocol.
    """
    check_positive(seeds=seeds)
    kept = json.loads(out.read_text()) if out.exists() else {"protocol": dict(protocol), "results": {}}
    if kept["protocol"] != dict(protocol):
        raise UserError(
            f"{out} holds results of {kept['protocol']}, and this command has {dict(protocol)}; the fix: choose another --out"
        )
    for seed in range(seeds):
        for method in methods:
            runs = kept["results"].setdefault(method, {})
            if str(seed) in runs:
                continue
            start = time.monotonic()
            runs[str(seed)] = run(method, seed) | {"seconds": round(time.monotonic() - start, 1)}
            write_json(out, kept)
            print(f"{method}, seed {seed}: {json.dumps(runs[str(seed)])}", flush=True)
    return {method: {str(s): kept["results"][method][str(s)] for s in range(seeds)} for method in methods}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and half of its 95% confidence interval by Student's t. The half is nan for a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def table(columns: Columns, references: Mapping[str, Numbers], results: Results) -> str:
    """Returns a table in Markdown: a row for each reference and each method, with the mean ± interval of each column.

    If the runs recorded alarms, the last column counts the runs that raised one.
    """
    watched = any("alarms" in run for runs in results.values() for run in runs.values())

    def cell(values: Sequence[float], form: str) -> str:
        if not values:
            return ""
        mean, half = interval(values)
        return form.format(mean) + ("" if math.isnan(half) else " ± " + form.format(half))

    def row(name: str, runs: Sequence[Numbers]) -> list[str]:
        cells = [cell([r[c] for r in runs if c in r], form) for c, (_, form) in columns.items()]
        raised = f"{sum(map(bool, (r['alarms'] for r in runs)))} of {len(runs)}" if watched and name in results else ""
        return [name, *cells, *([raised] if watched else [])]

    titles = [*(title for title, _ in columns.values()), *(["alarms"] if watched else [])]
    rows = [["", *titles], ["---", *("---:" for _ in titles)]]
    rows += [row(name, [numbers]) for name, numbers in references.items()]
    rows += [row(name, list(runs.values())) for name, runs in results.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
