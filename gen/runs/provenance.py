"""Manifests of samples: the inputs and outputs of one call of sample.py, so that the call can be repeated and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

from gen import files
from gen.errors import UserError, check_seed
from gen.runtime import backend

FORMAT = 2
"""Version of manifest.json."""
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers")
"""Packages on whose versions the bytes of a sample may depend."""


class CheckpointRecord(NamedTuple):
    """The checkpoint from which the samples were generated."""

    step: int
    sha256: str
    """SHA-256 of the checkpoint's manifest."""


class Manifest(NamedTuple):
    """The inputs and outputs of one call of sample.py, as manifest.json holds them."""

    run: str
    """Path of the run directory, relative to the manifest's folder."""
    identity: str
    """Digest of the run's identity."""
    checkpoint: CheckpointRecord
    reference: str
    """SHA-256 of the run's reference.npz."""
    seed: int
    request: Mapping[str, object]
    """The family's request, as JSON values."""
    medium: Mapping[str, object]
    """Options of the medium, such as images, as JSON values. Fields with the metadata LAUNCH are left out."""
    conditions: Mapping[str, object]
    """{name: value} of package versions, devices and CPU, because the bytes of the outputs may depend on them."""
    outputs: Mapping[str, str]
    """{NAME or FOLDER/NAME of a file, relative to the manifest's folder: SHA-256}."""
    classes: Sequence[str] | None = None
    """Name of each class, for people who read the labels in samples.npz. None: the data have no names of classes."""


def conditions() -> dict[str, str | int | None]:
    """Returns {name: value} of the present package versions, devices and CPU, for `Manifest.conditions`."""
    # A container or a cluster's job may use fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **{name: metadata.version(name) for name in PACKAGES},
        "gen": metadata.version("gen"),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": backend.cpu_name(),
        "visible_cores": cores,
    }


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest as JSON."""
    content = {"format": FORMAT, **manifest._asdict(), "checkpoint": manifest.checkpoint._asdict()}
    files.write_json(path, content)


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest.json, without `classes`. Raises: UserError if it is missing or damaged."""
    try:
        content = files.read_json(path)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"{path} can't be read as a manifest: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a manifest of format {FORMAT}")
    # Each value is checked before it is used: a manifest may have been edited.
    kinds = {"run": str, "identity": str, "checkpoint": dict, "reference": str, "seed": int, "request": dict}
    kinds |= {"medium": dict, "conditions": dict, "outputs": dict}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{path}: {name} is missing or is not a {kind.__name__}")
    check_seed(content["seed"])
    if {k: type(v) for k, v in content["checkpoint"].items()} != {"step": int, "sha256": str}:
        raise UserError(f"{path}: checkpoint is not a step and its sha256")
    if not content["outputs"]:
        raise UserError(f"{path} names no outputs")
    # Files with these names will be read, and the manifest may come from a stranger.
    if not all(_is_inside(name) for name in content["outputs"]):
        raise UserError(f"{path}: an output's name leaves the manifest's folder")
    # `classes` is left out: nothing reads it, and older manifests don't have it.
    manifest = Manifest(**{name: content[name] for name in kinds})
    return manifest._replace(checkpoint=CheckpointRecord(**content["checkpoint"]))


def _is_inside(name: str) -> bool:
    """Returns whether an output's name is FILE or FOLDER/FILE, so that it can't lead out of the manifest's folder."""
    parts = name.split("/")
    return len(parts) <= 2 and all(Path(part).name == part and part != ".." for part in parts)
