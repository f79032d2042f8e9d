"""Manifests of samples: the inputs and outputs of one call of sample.py, so that it can be repeated and checked."""

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
    """The checkpoint of a manifest."""

    step: int
    sha256: str
    """SHA-256 of the checkpoint's manifest."""


class Manifest(NamedTuple):
    """The inputs and outputs of one call of sample.py, as manifest.json holds them."""

    run: str
    """The run directory, relative to the manifest."""
    identity: str
    """Digest of the run's identity."""
    checkpoint: CheckpointRecord
    reference: str
    """SHA-256 of the run's reference.npz."""
    seed: int
    request: Mapping[str, object]
    """The family's request, encoded."""
    medium: Mapping[str, object]
    """The medium's options, encoded, without launch fields."""
    conditions: Mapping[str, object]
    """{name: value} of everything else that the bytes may depend on: versions and devices."""
    outputs: Mapping[str, str]
    """{file name, or SUB-FOLDER/NAME: SHA-256}."""
    classes: Sequence[str] | None = None
    """Name of each class, to read the labels in samples.npz. It changes no output. None: the data have none."""


def conditions() -> dict[str, str | int | None]:
    """Returns the versions and devices that the bytes of a sample depend on."""
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
    """Writes a manifest.json."""
    content = {"format": FORMAT, **manifest._asdict(), "checkpoint": manifest.checkpoint._asdict()}
    files.write_json(path, content)


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of a file. Raises: UserError if it is missing or damaged."""
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
    # The files are read by these names, and a manifest may come from a stranger.
    if not all(_is_inside(name) for name in content["outputs"]):
        raise UserError(f"{path}: an output's name leaves the manifest's folder")
    # Names of classes are for people alone, and older manifests have none.
    manifest = Manifest(**{name: content[name] for name in kinds})
    return manifest._replace(checkpoint=CheckpointRecord(**content["checkpoint"]))


def _is_inside(name: str) -> bool:
    """Returns whether an output is a file in the manifest's folder, or in a sub-folder of it."""
    parts = name.split("/")
    return len(parts) <= 2 and all(Path(part).name == part and part != ".." for part in parts)
