"""Compares a run that was killed with a run that was left alone: to the last bit, or up to rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROUNDING = 1e-5
"""Difference between engines, relative to the largest number of an array, or of a metric over the run."""
ITEMS = ("params", "opt_state", "ema", "stats")
"""Items of a checkpoint that hold arrays."""
TIMED = ("_METADATA", "_sharding", "array_metadatas", "commit_success")
"""Parts of the names of files that Orbax writes about when and where it wrote."""


def compare_bits(whole: Path, hurt: Path, steps: int) -> None:
    """Raises: AssertionError for the first thing that is not the same to the last bit."""
    one, other = (_arrays(run / "checkpoints" / str(steps)) for run in (whole, hurt))
    assert any(name.startswith("params") for name in one), "the checkpoint has no parameters"
    _same_bytes(one, other, "the checkpoint's")
    one, other = (_named(run, [run / "metrics.jsonl", run / "evaluation.json"]) for run in (whole, hurt))
    _same_bytes(one, other, "the run's")
    one, other = (_named(run, (run / "samples").glob("*")) for run in (whole, hurt))
    _same_bytes(one, other, "the run's")
    with np.load(whole / "reference.npz") as a, np.load(hurt / "reference.npz") as b:
        assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a), "reference.npz differs"


def _arrays(step: Path) -> dict[str, Path]:
    found = _named(step, (file for item in ITEMS for file in (step / item).rglob("*")))
    return {name: file for name, file in found.items() if not any(part in name for part in TIMED)}


def _named(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def _same_bytes(whole: dict[str, Path], hurt: dict[str, Path], what: str) -> None:
    assert whole.keys() == hurt.keys(), f"{what} files: only one run has {sorted(whole.keys() ^ hurt.keys())[:5]}"
    different = [name for name, file in whole.items() if file.read_bytes() != hurt[name].read_bytes()]
    assert not different, f"{what} {', '.join(sorted(different)[:5])} differ"


def compare_close(whole: Path, hurt: Path, steps: int) -> None:
    """As `compare_bits`, but numbers may differ by rounding. It starts threads, so it needs a process of its own."""
    for file in (whole / "checkpoints" / str(steps)).rglob(".zarray"):
        name = file.parent.relative_to(whole)
        one, other = (_read(run / name) for run in (whole, hurt))
        error = np.abs(one - other).max(initial=0.0)
        assert error <= ROUNDING * np.abs(one).max(initial=0.0), f"{name} differs by {error:.3g}"
    one, other = (_lines(run) for run in (whole, hurt))
    assert [line.keys() for line in one] == [line.keys() for line in other], "metrics.jsonl has other lines"
    for name in {name for line in one for name in line}:
        _close(f"{name} of metrics.jsonl", [line.get(name) for line in one], [line.get(name) for line in other])
    one, other = (json.loads((run / "evaluation.json").read_text())["metrics"] for run in (whole, hurt))
    assert one.keys() == other.keys(), "evaluation.json has other metrics"
    for name, value in one.items():
        _close(f"{name} of evaluation.json", [value], [other[name]])


def _read(path: Path) -> np.ndarray:
    # Imported late, because it starts threads.
    import tensorstore

    found = tensorstore.open({"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}).result()
    return np.asarray(found.read().result(), np.float64)


def _lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _close(what: str, whole: list[object], hurt: list[object]) -> None:
    scale = max((abs(x) for x in whole if isinstance(x, float)), default=0.0)
    for a, b in zip(whole, hurt, strict=True):
        same = (
            math.isclose(a, b, rel_tol=0, abs_tol=ROUNDING * scale)
            if isinstance(a, float) and isinstance(b, float)
            else a == b
        )
        assert same, f"{what} is {b}, and {a} in the run left alone"
