"""Whose checkpoint it is: what a checkpoint keeps of its run, inside its seal.

A checkpoint goes with one config, one data set and one tokenizer. Weights that are read with others give other numbers, without an
error. So each checkpoint keeps its step and the digests of what it was trained with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen import config as configs
from gen import files
from gen.config import Config
from gen.data.digest import sha256
from gen.errors import UserError, note

CONFIG = "config.json"
MAX_FILE_BYTES = 2**28
"""Bytes of a file that a data set leaves in a run."""


class Owner(NamedTuple):
    """The run of a checkpoint."""

    identity: str
    """Digest of the config without launch fields, as config.json has it."""
    data: str
    """Digest of the data set."""
    base: str | None
    """SHA-256 of the manifest of the base's checkpoint, if the run has a base."""
    files: Mapping[str, str]
    """{file of the run that never changes, such as spec.json or tokenizer.json: SHA-256}."""
    reference: Mapping[str, str]
    """{array of reference.npz that holds validation examples: SHA-256}."""


def describe(workdir: Path, examples: Mapping[str, np.ndarray]) -> Owner | None:
    """Returns the owner of the checkpoints that are saved in a run from now on. None: it has no config.json.

    examples: the arrays of reference.npz that hold validation examples.
    """
    config = _read_config(workdir)
    if config is None:
        return None
    # Runs of older versions don't list their files.
    names = config.get("files") or ("spec.json", "tokenizer.json", "labels.json")
    found = {name: sum_ for name in names if (sum_ := sum_of(workdir / name)) is not None}
    base = (config.get("base") or {}).get("sha256")
    return Owner(config["identity"], config["data"], base, found, sums_of(examples))


def sums_of(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns {name: SHA-256} of arrays."""
    return {name: sha256(array) for name, array in arrays.items()}


def sum_of(file: Path) -> str | None:
    """Returns the SHA-256 of a file. None: it is missing, or not a file that can be read."""
    try:
        return hashlib.sha256(files.read_bytes(file, MAX_FILE_BYTES)).hexdigest()
    except (FileNotFoundError, UserError):
        return None


def sum_of_json(content: Mapping[str, object]) -> str:
    """Returns the SHA-256 of JSON values, without their entry "sha256"."""
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_config(workdir: Path, content: Mapping[str, Any], config: Config) -> None:
    """Checks the content of a config.json. Warns if launch fields were edited since gen wrote it. config: its config, decoded.

    Raises: UserError if anything else was edited.
    """
    path = workdir / CONFIG
    # Older versions of gen wrote no sum.
    if content.get("sha256") == sum_of_json(content):
        return
    if configs.identity_changed(content["identity"], content["config"], config):
        raise UserError(
            f"{path} has changed since gen wrote it: its identity does not fit its config; the fix: restore it from a copy "
            "of the run"
        )
    if "sha256" in content:
        warn(f"{path} has changed since gen wrote it, in a field that may differ between launches, such as save.best")


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    note(f"warning: {text}")


def read_step(checkpoint: Path) -> int | None:
    """Returns the step at which a checkpoint was saved. None: it does not contain the step (older versions of gen)."""
    step = _read_meta(checkpoint).get("step")
    return step if type(step) is int else None


def read_owner(checkpoint: Path) -> Owner | None:
    """Returns the owner of a checkpoint. None: it does not contain the owner (older versions of gen)."""
    return parse(_read_meta(checkpoint).get("owner"))


def parse(value: object) -> Owner | None:
    """Returns the owner that JSON values describe. None: they do not describe one."""
    if not isinstance(value, dict) or value.keys() != set(Owner._fields):
        return None
    owner = Owner(**value)
    texts = [owner.identity, owner.data, owner.base or ""]
    for part in (owner.files, owner.reference):
        if not isinstance(part, dict):
            return None
        texts += [*part, *part.values()]
    # A name from a stranger's checkpoint must not lead out of the run.
    inside = all(Path(name).name == name not in ("", "..") for name in owner.files)
    return owner if inside and all(isinstance(text, str) for text in texts) else None


def changed_file(owner: Owner, workdir: Path) -> str | None:
    """Returns the first file of a run that is not the one that a checkpoint was saved with. None: all are.

    A run without a readable config.json has no file to compare with, so None is returned. reference.npz is not compared.
    """
    config = _read_config(workdir)
    if config is None:
        return None
    # A newer version of gen may have other names of classes, and more fields. It lists the digests of older versions.
    known = {config["identity"], *texts(config.get("earlier"))}
    base = (config.get("base") or {}).get("sha256")
    if owner.identity not in known or owner.data != config["data"] or owner.base != base:
        return CONFIG
    return next((name for name, sum_ in owner.files.items() if sum_of(workdir / name) != sum_), None)


def texts(value: object) -> list[str]:
    """Returns the strings in a JSON list. []: it is not a list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _read_config(workdir: Path) -> dict[str, Any] | None:
    """Returns the content of config.json. None: it is missing or damaged, which is an error where it is needed."""
    try:
        found = files.read_json(workdir / CONFIG)
    except (FileNotFoundError, UserError):
        return None
    kinds = {"identity": str, "data": str, "base": dict, "files": dict}
    whole = isinstance(found, dict) and {"identity", "data"} <= found.keys()
    return found if whole and all(isinstance(found[k], kind) for k, kind in kinds.items() if k in found) else None


def _read_meta(checkpoint: Path) -> dict[str, Any]:
    try:
        found = files.read_json(checkpoint / "meta" / "metadata")
    except (FileNotFoundError, UserError):
        return {}
    return found if isinstance(found, dict) else {}
