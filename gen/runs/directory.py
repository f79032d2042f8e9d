"""Reads and writes the files of a run directory, and locks it for one process.

    config.json     the resolved config, and the digests of the run's identity, of its data, and of the data's files below
    spec.json       the features of the data, as the model sees them
    tokenizer.json  the tokenizer, if the data are texts
    codec.json      the config of the tokenizer of images or sound, if the data are its codes; codec.npz has its weights
    reference.npz   the first 64 validation examples, and arrays of the last evaluation (such as the KL of each latent)
    checkpoints/    metrics.jsonl  telemetry.jsonl  events*  samples/  evaluation.json

A run directory can be copied and moved. Sampling reads no other files, except that an adapter needs its base run.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gen import config as configs
from gen import files
from gen.config import Config
from gen.core import Dataset, Spec
from gen.errors import UserError, note
from gen.files import write_bytes, write_json
from gen.runs import owner
from gen.runs.features import decode_spec, encode_spec
from gen.runs.lock import hold_lock
from gen.runs.ranking import check_owner, steps

FORMAT = 1
"""Version of config.json."""
CODEC_FILES = ("codec.json", "codec.npz")
"""Files of the tokenizer of images or sound in a run on its codes."""
REFERENCE_EXAMPLES = 64
"""Number of validation examples in reference.npz."""
MAX_REFERENCE_BYTES = 2**26
"""Largest size of the other arrays in reference.npz, in bytes, all together."""


class BaseRecord(NamedTuple):
    """The base of a run (the run that it is fine-tuned from), as config.json records it."""

    path: str
    """Run directory of the base, relative to the run that records it."""
    step: int
    """Step of the base's checkpoint."""
    sha256: str
    """SHA-256 of the manifest of that checkpoint, which names each of its files."""


class RunFacts(NamedTuple):
    """The content of a run's config.json, with the config as JSON values. `read_config` also decodes the config."""

    data: str
    """Digest of the data set."""
    base: BaseRecord | None
    """The base that an adapter needs, or that a fine-tuned run began with."""
    format: int
    """Version of config.json."""
    identity: str
    """Digest of the run's identity (its config without launch fields), computed when config.json was written."""
    config: Mapping[str, Any]
    """The config as it was written. It may lack fields that newer versions of gen added."""
    earlier: Sequence[str] = ()
    """Digests of the same identity, as computed by older versions of gen that began or continued the run."""


class Evaluation(NamedTuple):
    """The scores of a run on the test split, as evaluation.json holds them."""

    metrics: Mapping[str, float] = {}
    """{metric: value}."""
    protocol: Mapping[str, Mapping[str, Any]] = {}
    """{metric: {setting: value}}: how each metric was computed, such as the checkpoint and the split."""


@contextmanager
def lock_run(workdir: Path) -> Iterator[None]:
    """Locks a run directory for this process, and creates it if it does not exist.

    Raises: UserError if another process holds the lock, if the directory can't be created, if a link leads out of it, or if it has
    a folder in the place of a run's file, or the other way round.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir} can't be a run directory: {error.strerror}") from None
    # The folder may come from a stranger, even if it is not a run yet. So links must not lead out of it before gen writes to it.
    files.check_contained(workdir)
    with hold_lock(workdir):
        yield


def begin_run(workdir: Path, config: Config, data: Dataset, base: BaseRecord | None = None) -> None:
    """Writes config.json, spec.json and the entries of `data.files`, if the directory holds no run yet or this same run.

    base: the run whose checkpoint this run starts from or adapts. None: there is none.

    Raises: UserError if the directory holds a run of another config, other data or another base, or if a file of the run was lost or
    changed. See `check_same_run`.
    """
    write_run(workdir, config, data, base, check_same_run(workdir, config, data, base))


def check_same_run(workdir: Path, config: Config, data: Dataset, base: BaseRecord | None = None) -> list[str]:
    """Checks that a directory holds no run yet, or a run of this config, these data and this base.

    Returns all digests of the run's identity in config.json: one, or several if older versions of gen computed others.
    []: there is no run.

    Raises: UserError if the run has another config (the message lists the differences), other data or another base, or if
    config.json, spec.json or a file of the data was lost or changed since a checkpoint was saved.
    """
    if not (workdir / "config.json").exists():
        # Without config.json, the checkpoints could be continued with other settings.
        if steps(workdir / "checkpoints"):
            raise UserError(
                f"{workdir} has checkpoints, but its config.json is lost; the fix: restore it from a copy of the run, or "
                "choose another --workdir"
            )
        return []
    old, facts = read_config(workdir)
    check_owner(workdir, owner.warn)
    # Fields that gen got after the run began were decoded to their defaults, so they are not a difference.
    if changed := configs.difference(old, config):
        longer = ["(a schedule of this config reads steps)"] if any(c.startswith("steps:") for c in changed) else []
        lines = [f"  {line}" for line in changed]
        raise UserError(f"{workdir} is a run of another config:", *lines, *longer, "choose another --workdir")
    if not is_same_data(facts.data, data, workdir):
        raise UserError(f"the data have changed since {workdir} was begun; choose another --workdir")
    ours, theirs = (record.sha256 if record else None for record in (base, facts.base))
    if ours != theirs:
        raise UserError(f"the base is not the one that {workdir} was begun with; choose another --workdir")
    return [*facts.earlier, facts.identity]


def is_same_data(then: str, data: Dataset, workdir: Path) -> bool:
    """Returns whether the digest of `data` is `then`, which the run in `workdir` stores.

    Prints a warning if `then` is a digest of an older version of gen, which does not cover the content of the files.
    """
    if then in data.older:
        note(
            f"warning: {workdir} was begun by a version of gen that noted the names and sizes of its data files, not their content:"
            " whether the content has changed since can't be checked"
        )
    return then in (data.digest, *data.older)


def write_run(
    workdir: Path, config: Config, data: Dataset, base: BaseRecord | None, identities: Sequence[str] = ()
) -> None:
    """Writes config.json, spec.json and the entries of `data.files`, such as tokenizer.json.

    base: the run whose checkpoint this run starts from or adapts. None: there is none. identities: the result of
    `check_same_run`.
    """
    content = {**data.files, "spec.json": files.encode_json(encode_spec(data.spec))}
    write_config(workdir, config, data.digest, base, content, identities)
    for name, text in content.items():
        write_bytes(workdir / name, text)


def write_config(
    workdir: Path,
    config: Config,
    data: str,
    base: BaseRecord | None = None,
    kept: Mapping[str, bytes] = {},
    identities: Sequence[str] = (),
) -> None:
    """Writes the config.json of a run.

    data: the digest of the data set. kept: {name: content} of the run's files that never change; their SHA-256 are written.
    identities: digests of this config by older versions of gen. They are written too, because old checkpoints hold them.
    """
    identity = configs.digest(config)
    content = {"format": FORMAT, "identity": identity, "data": data, "config": configs.encode(config)}
    content["files"] = {name: hashlib.sha256(text).hexdigest() for name, text in kept.items()}
    if base is not None:
        content["base"] = base._asdict()
    if earlier := [digest for digest in identities if digest != identity]:
        content["earlier"] = earlier
    write_json(workdir / "config.json", {**content, "sha256": owner.sum_of_json(content)})


def read_config(workdir: Path, trust: Sequence[str] = ()) -> tuple[Config, RunFacts]:
    """Reads the config.json of a run. Returns (its config, all entries of the file).

    Only modules of gen and the modules in `trust` are imported.

    Raises: UserError if there is no run, if its config.json is not a config or was edited, or if a link leads out of the run.
    """
    content = _read_required(workdir / "config.json", f"{workdir} is not a run directory: it has no config.json")
    if not isinstance(content, dict) or not {"format", "identity", "data", "config"} <= content.keys():
        raise UserError(f"{workdir}/config.json is not a config of gen")
    if content["format"] != FORMAT:
        raise UserError(
            f"{workdir}/config.json has format {content['format']}, and this version of gen reads {FORMAT}; use the"
            " version of gen that wrote it"
        )
    base = _decode_base(content["base"], workdir) if "base" in content else None
    # A stranger's run must not make gen read or write files elsewhere.
    files.check_contained(workdir)
    # Imported here rather than in `decode`, since other files of the run, such as codec.json, may name their classes, too.
    configs.import_trusted(trust)
    config = configs.decode(Config, content["config"], trust)
    facts = RunFacts(content["data"], base, content["format"], content["identity"], content["config"])
    owner.check_config(workdir, content, config)
    return config, facts._replace(earlier=owner.texts(content.get("earlier")))


def _decode_base(value: object, workdir: Path) -> BaseRecord:
    if isinstance(value, dict):
        path, step, sha256 = (value.get(name) for name in BaseRecord._fields)
        if type(path) is str and type(step) is int and type(sha256) is str:
            return BaseRecord(path, step, sha256)
    raise UserError(f"{workdir}/config.json is damaged: its base is not a path, a step and a sha256")


def read_spec(workdir: Path) -> Spec:
    """Returns the spec of a run's data: {name: feature}. Raises: UserError if spec.json is missing or damaged."""
    value = _read_required(workdir / "spec.json", f"{workdir} has no spec.json")
    return decode_spec(value, f"{workdir}/spec.json")


def write_reference(workdir: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes arrays to reference.npz. Its other arrays are kept."""
    content = io.BytesIO()
    # savez compresses with a fixed date, so equal arrays give equal bytes.
    merged: dict[str, Any] = {**read_reference(workdir), **{k: np.asarray(v) for k, v in arrays.items()}}
    np.savez_compressed(content, **merged)
    write_bytes(workdir / "reference.npz", content.getvalue())


def read_reference(workdir: Path, spec: Spec | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of reference.npz. {}: the file does not exist. spec: the run's spec; None: it is read from spec.json.

    Raises: UserError if the file is damaged, or if its arrays don't have the shapes of the spec.
    """
    path = workdir / "reference.npz"
    if not path.exists():
        return {}
    spec = read_spec(workdir) if spec is None else spec
    # A small file could unpack to gigabytes, so the size is bounded. A number of an example has at most 8 bytes.
    examples = REFERENCE_EXAMPLES * 8 * sum(math.prod(feature.shape) for feature in spec.values())
    found = files.read_arrays(path, min(files.MAX_BYTES, MAX_REFERENCE_BYTES + examples))
    shapes = {name: feature.shape for name, feature in spec.items()}
    for name, array in found.items():
        if not array.ndim or array.shape[1:] != shapes.get(name, array.shape[1:]):
            raise UserError(f"{path} is damaged: {name[:80]!r} has the shape {array.shape}, unlike spec.json")
    return found


def read_examples(workdir: Path) -> dict[str, np.ndarray]:
    """Returns {feature: array [n, ...]} of the validation examples in reference.npz. {}: they can't be read."""
    try:
        spec = read_spec(workdir)
        return {name: array for name, array in read_reference(workdir, spec).items() if name in spec}
    except UserError:
        return {}


def read_evaluation(workdir: Path) -> Evaluation | None:
    """Returns the content of evaluation.json. None: it is missing or damaged, and must be computed again."""
    try:
        value = files.read_json(workdir / "evaluation.json")
        # Older versions of gen wrote no SHA-256.
        if "sha256" in value and value["sha256"] != owner.sum_of_json(value):
            return None
        metrics, protocol = ({**value[part]} for part in Evaluation._fields)
        return Evaluation({name: float(number) for name, number in metrics.items()}, protocol)
    except (FileNotFoundError, UserError, KeyError, TypeError, ValueError, OverflowError):
        return None


def write_evaluation(workdir: Path, metrics: Mapping[str, float], protocol: Mapping[str, Any]) -> None:
    """Writes metrics and their protocols to evaluation.json. Its other metrics are kept."""
    old = read_evaluation(workdir) or Evaluation()
    new = Evaluation({**old.metrics, **metrics}, {**old.protocol, **protocol})
    content = new._asdict()
    write_json(workdir / "evaluation.json", {**content, "sha256": owner.sum_of_json(content)})


def _read_required(path: Path, absent: str) -> Any:
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(absent) from None
