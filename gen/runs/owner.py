"""The owner of a checkpoint: digests of the config, the data and the files of its run, which are stored in the checkpoint.

With another config, data set or tokenizer, the weights would give wrong results without an error. So each checkpoint stores its
step and these digests, in a file that its manifest protects, and they are compared before it is used.
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
"""Largest size of a file that a data set keeps in a run directory, in bytes."""


class Owner(NamedTuple):
    """Digests that identify the run of a checkpoint."""

    identity: str
    """Digest of the run's identity: its config without launch fields. config.json has it, too."""
    data: str
    """Digest of the data set."""
    base: str | None
    """SHA-256 of the manifest of the base's checkpoint, if the run has a base."""
    files: Mapping[str, str]
    """{file name: SHA-256} of the run's files that never change, such as spec.json or tokenizer.json."""
    reference: Mapping[str, str]
    """{feature: SHA-256} of the validation examples in reference.npz."""


def describe(workdir: Path, examples: Mapping[str, np.ndarray]) -> Owner | None:
    """Computes the digests of a run to store in its new checkpoints. None: the run has no readable config.json.

    examples: {feature: array} of the validation examples in reference.npz.
    """
    config = _read_config(workdir)
    if config is None:
        return None
    # Older versions of gen did not list the files in config.json.
    names = config.get("files") or ("spec.json", "tokenizer.json", "labels.json")
    found = {name: sum_ for name in names if (sum_ := sum_of(workdir / name)) is not None}
    base = (config.get("base") or {}).get("sha256")
    return Owner(config["identity"], config["data"], base, found, sums_of(examples))


def sums_of(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns {name: SHA-256} of {name: array}."""
    return {name: sha256(array) for name, array in arrays.items()}


def sum_of(file: Path) -> str | None:
    """Returns the SHA-256 of a file. None: it is missing, can't be read, or is larger than MAX_FILE_BYTES."""
    try:
        return hashlib.sha256(files.read_bytes(file, MAX_FILE_BYTES)).hexdigest()
    except (FileNotFoundError, UserError):
        return None


def sum_of_json(content: Mapping[str, object]) -> str:
    """Returns the SHA-256 of a JSON object without its entry "sha256". Files of gen store the result in this entry."""
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_config(workdir: Path, content: Mapping[str, Any], config: Config) -> None:
    """Checks that a config.json was not edited since gen wrote it. Prints a warning if only launch fields were edited.

    content: the JSON object in config.json. config: its entry "config", decoded. Raises: UserError if the run's
    identity was edited.
    """
    path = workdir / CONFIG
    # Older versions of gen wrote no entry "sha256"; then only the identity is checked.
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
    """Returns the digests of its run that a checkpoint stores. None: it stores none (older versions of gen)."""
    return parse(_read_meta(checkpoint).get("owner"))


def parse(value: object) -> Owner | None:
    """Converts the JSON values of an Owner to an Owner. None: they are not the values of an Owner."""
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
    """Returns the name of a file in `workdir` that has changed since a checkpoint of this owner was saved. None: none.

    Returns "config.json" if the run's identity, data or base differ. If the run has no readable config.json, nothing
    can be compared, and None is returned. reference.npz is not compared.
    """
    config = _read_config(workdir)
    if config is None:
        return None
    # The checkpoint may be older than the gen that wrote config.json, which may have renamed classes or added fields. Such
    # changes give another digest of the same identity, so config.json lists the earlier digests.
    known = {config["identity"], *texts(config.get("earlier"))}
    base = (config.get("base") or {}).get("sha256")
    if owner.identity not in known or owner.data != config["data"] or owner.base != base:
        return CONFIG
    return next((name for name, sum_ in owner.files.items() if sum_of(workdir / name) != sum_), None)


def texts(value: object) -> list[str]:
    """Returns the strings in a JSON list. []: the value is not a list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _read_config(workdir: Path) -> dict[str, Any] | None:
    """Returns the content of config.json. None: it is missing or damaged, which `directory.read_config` reports."""
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
