"""Methods compared over seeds: runs that nobody watches, results that survive a stop, and a table with intervals."""

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
Results = dict[str, dict[str, Numbers]]
"""{method: {seed: numbers}}."""
Columns = Mapping[str, tuple[str, str]]
"""{number: (title, format)}."""


@contextmanager
def trained(config: Config) -> Iterator[Path]:
    """A run directory, trained without a word, until the context is left. Evaluated, watched and saved at its end."""
    quiet = replace(
        config,
        evaluate_every=0,
        save=Save(every=config.steps),
        log=Log(every=config.steps, tensorboard=False),
    )
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):
            train(quiet, Path(folder))
        yield Path(folder)
    jax.clear_caches()


def finished(
    out: Path, protocol: Mapping[str, Any], methods: Sequence[str], seeds: int, run: Callable[[str, int], Numbers]
) -> Results:
    """The numbers of each method and seed: from the file `out`, or else of `run(method, seed)`, and then kept there.

    Raises: UserError if the file is of another protocol.
    """
    check_positive(seeds=seeds)
    kept = json.loads(out.read_text()) if out.exists() else {"protocol": dict(protocol), "results": {}}
    if kept["protocol"] != dict(protocol):
        raise UserError(f"{out} holds results of {kept['protocol']}, not of {dict(protocol)}; choose another --out")
    for seed in range(seeds):
        for method in methods:
            of = kept["results"].setdefault(method, {})
            if str(seed) not in of:
                begun = time.monotonic()
                of[str(seed)] = run(method, seed) | {"seconds": round(time.monotonic() - begun, 1)}
                write_json(out, kept)
                print(f"{method}, seed {seed}: {json.dumps(of[str(seed)])}", flush=True)
    return {method: {str(s): kept["results"][method][str(s)] for s in range(seeds)} for method in methods}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% confidence interval by Student's t; nan for a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def table(columns: Columns, references: Mapping[str, Numbers], results: Results) -> str:
    """Markdown: a row for each reference and each method, with mean ± interval of the columns, and, where alarms were listened
    to, in how many runs there was one."""
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
