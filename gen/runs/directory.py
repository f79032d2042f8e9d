"""The run directory: what it is made of, whose it is, and how it is read back.

    config.json     the resolved config, and the digests of the run's identity and of its data
    spec.json       what the model sees of the data
    tokenizer.json  what the tokens of a text are
    reference.npz   64 held-out examples, and statistics of the last evaluation (KL of each latent)
    checkpoints/    metrics.jsonl  telemetry.jsonl  events*  samples/  evaluation.json

A run is a folder that can be copied: sampling needs nothing else.
"""

from __future__ import annotations

import fcntl
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gen import config as configs
from gen import files
from gen.config import Config
from gen.core import MAX_SIZE, Dataset, Feature, Spec
from gen.errors import UserError
from gen.files import write_bytes, write_json

FORMAT = 1
REFERENCE = 64
AXES = {"image": 3, "label": 0, "tokens": 1, "source": 1}


@contextmanager
def lock_run(workdir: Path) -> Iterator[None]:
    """Hold the run directory; a second process is refused. Creates it if need be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir} can't be a run directory: {error.strerror}") from None
    if (workdir / "config.json").exists():
        files.check_contained(workdir)  # before anything is written there
    with open(os.open(workdir / ".lock", os.O_CREAT | os.O_RDONLY)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir} is in use by another process; wait for it, or choose another --workdir"
            ) from None
        yield


def begin_run(workdir: Path, config: Config, data: Dataset, base: Mapping[str, Any] | None = None) -> None:
    """Write the run's facts, or check that a run that is there is the same. base: what the run keeps of the run that it goes
    on from (its path, step and SHA-256).

    Raises: UserError with the difference, if the directory belongs to another identity, other data or another base.
    """
    if (workdir / "config.json").exists():
        old, facts = read_config(workdir)
        if changed := configs.difference(old, config):
            longer = "(a schedule of this config reads steps)\n" if any(c.startswith("steps:") for c in changed) else ""
            raise UserError(
                f"{workdir} is a run of another config:\n  "
                + "\n  ".join(changed)
                + f"\n{longer}choose another --workdir"
            )
        if facts["data"] != data.digest:
            raise UserError(f"the data have changed since {workdir} was begun; choose another --workdir")
        if (base or {}).get("sha256") != facts.get("base", {}).get("sha256"):
            raise UserError(f"the base is not the one that {workdir} was begun on; choose another --workdir")
    write_config(workdir, config, data.digest, base)
    for name, content in data.files.items():
        write_bytes(workdir / name, content)
    write_json(workdir / "spec.json", {name: asdict(feature) for name, feature in data.spec.items()})


def write_config(workdir: Path, config: Config, data: str, base: Mapping[str, Any] | None = None) -> None:
    """config.json. data: the digest of the data."""
    facts = {"format": FORMAT, "identity": configs.digest(config), "data": data, "config": configs.encode(config)}
    write_json(workdir / "config.json", facts if base is None else facts | {"base": base})


def read_config(workdir: Path, trust: Sequence[str] = ()) -> tuple[Config, dict[str, Any]]:
    """The config of a run, and the other facts of config.json. Imports only families, and modules in `trust`.

    Raises: UserError if there is no run, if its config.json is not a config, or if a link leads out of it.
    """
    facts = _read_required(workdir / "config.json", f"{workdir} is no run directory: it has no config.json")
    if not isinstance(facts, dict) or not {"format", "identity", "data", "config"} <= facts.keys():
        raise UserError(f"{workdir}/config.json is no config of gen")
    if facts["format"] != FORMAT:
        raise UserError(f"{workdir}/config.json is of format {facts['format']}; this version of gen reads {FORMAT}")
    base = facts.get("base", {"path": "", "step": 0, "sha256": ""})
    if not isinstance(base, dict) or [type(base.get(k)) for k in ("path", "step", "sha256")] != [str, int, str]:
        raise UserError(f"{workdir}/config.json is damaged: its base is no path, step and sha256")
    files.check_contained(workdir)
    return configs.decode(Config, facts["config"], trust), facts


def read_spec(workdir: Path) -> Spec:
    """What the model sees of the data. Raises: UserError if spec.json is missing or damaged."""
    value = _read_required(workdir / "spec.json", f"{workdir} has no spec.json")
    if not isinstance(value, dict) or not all(isinstance(feature, dict) for feature in value.values()):
        raise UserError(f"{workdir}/spec.json is damaged: it has no features by name")
    kind = {"type": f"{Feature.__module__}.{Feature.__name__}"}
    spec = {
        name: configs.decode(Feature, {**x, **kind}, at=f"{workdir}/spec.json: {name}") for name, x in value.items()
    }
    for name, feature in spec.items():
        if len(feature.shape) != AXES.get(name, len(feature.shape)):
            raise UserError(f"{workdir}/spec.json is damaged: {name} has the shape {feature.shape}")
        numbers = (*feature.shape, feature.classes, feature.vocab, feature.levels, feature.sample_rate)
        small = math.prod(feature.shape) <= MAX_SIZE and all(x is None or 0 < x <= MAX_SIZE for x in numbers)
        if not small or not (feature.end is None or 0 <= feature.end < (feature.vocab or 1)):
            raise UserError(f"{workdir}/spec.json is damaged: {name} has sizes that no data have")
    return spec


def write_reference(workdir: Path, arrays: Mapping[str, Any]) -> None:
    """Add arrays to reference.npz, in one rename."""
    content = io.BytesIO()
    all_arrays: dict[str, Any] = {**read_reference(workdir), **{k: np.asarray(v) for k, v in arrays.items()}}
    np.savez_compressed(content, **all_arrays)
    write_bytes(workdir / "reference.npz", content.getvalue())


def read_reference(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays of reference.npz, {} if there is none. Raises: UserError if it is damaged, or not of such data."""
    path = workdir / "reference.npz"
    try:
        found = files.read_arrays(path)
    except FileNotFoundError:
        return {}
    shapes = {name: feature.shape for name, feature in read_spec(workdir).items()}
    for name, array in found.items():
        if not array.ndim or array.shape[1:] != shapes.get(name, array.shape[1:]):
            raise UserError(f"{path} is damaged: {name[:80]!r} has the shape {array.shape}")
    return found


def read_evaluation(workdir: Path) -> dict[str, Any] | None:
    """{"metrics": {name: number}, "protocol": {name: ...}}, or None if there is none, or half of one: it can be made again."""
    try:
        value = files.read_json(workdir / "evaluation.json")
        metrics, protocol = ({**value[part]} for part in ("metrics", "protocol"))
        return {"metrics": {name: float(number) for name, number in metrics.items()}, "protocol": protocol}
    except (FileNotFoundError, UserError, KeyError, TypeError, ValueError, OverflowError):
        return None


def write_evaluation(workdir: Path, metrics: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
    """Merge metrics and their protocols into evaluation.json."""
    old = read_evaluation(workdir) or {"metrics": {}, "protocol": {}}
    write_json(
        workdir / "evaluation.json",
        {"metrics": {**old["metrics"], **metrics}, "protocol": {**old["protocol"], **protocol}},
    )


def _read_required(path: Path, absent: str) -> Any:
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(absent) from None
