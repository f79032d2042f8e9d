"""Base runs: the trained runs that other runs are fine-tuned from.

A run whose config has `init_from` starts from the weights and the tokenizer of this base, or trains an adapter of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from gen import files, memory
from gen.config import Config
from gen.core import Data, Dataset, Feature, Params, Spec, State
from gen.data.text import tokenizers
from gen.errors import UserError, note
from gen.runs import checkpoint, directory, owner
from gen.runs.directory import CODEC_FILES, BaseRecord, RunFacts


@dataclass(frozen=True)
class Base:
    """A base run and one of its checkpoints, from which another run starts. Create it with `open_base`."""

    path: Path
    config: Config
    spec: Spec
    step: int
    sha256: str
    """SHA-256 of the checkpoint's manifest, which names each of its files."""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @cached_property
    def abstract(self) -> State:
        """Shapes and dtypes of the checkpoint's state, without shardings. Raises: UserError if the state does not fit in memory."""
        model = self.config.model.build(self.spec, self.config.steps)
        return memory.check_fits(jax.eval_shape(model.init, jax.random.key(0)), self.path)

    def record(self, workdir: Path) -> BaseRecord:
        """Returns the entry "base" for the config.json of a run in `workdir` that starts from this base."""
        return BaseRecord(os.path.relpath(self.path.resolve(), workdir.resolve()), self.step, self.sha256)


def open_base(path: Path, step: int | None = None) -> Base:
    """Opens the base run in a directory. step: the checkpoint to start from; None: the best.

    Raises: UserError if the checkpoint does not exist, or if a file of the checkpoint or of the run has changed.
    """
    config, _ = directory.read_config(path)
    checkpoint.check_owner(path, owner.warn)
    checkpoints = path / "checkpoints"
    if step is None:
        step = checkpoint.best(checkpoints, config.save, warn=owner.warn)
        if step is None:
            raise UserError(f"{path} has no checkpoint to start from")
    elif reason := checkpoint.damage(checkpoints, step):
        raise UserError(f"the base's checkpoint {checkpoints / str(step)}: {reason}")
    return Base(path, config, directory.read_spec(path), step, checkpoint.digest(checkpoints, step))


def resolve_config(config: Config) -> Config:
    """Returns the config with the settings filled in that depend on files.

    Settings of the data come from its files (see Data.resolve). If the config has `init_from`, the sizes of the model
    are copied from the base, and the adapter that `finetune` names is added to the model.

    Raises: UserError if the data are missing, or if the base does not exist, is itself an adapter, or is of another family.
    """
    config = replace(config, data=config.data.resolve())
    if config.init_from is None:
        return config
    path = location(config)
    base, _ = directory.read_config(path)
    if base.finetune == "prompt":
        # A learned prompt changes no weights, so unlike LoRA it can't be merged either.
        raise UserError(
            f"{path} is a learned prompt, which is nothing without its base; choose a whole run to start from"
        )
    if base.finetune != "full":
        raise UserError(
            f"{path} is an adapter, which needs its own base; merge it first: python -m gen.runs.merge {path} DIR"
        )
    model = config.model.inherit(base.model, directory.read_spec(path))
    if config.finetune != "full":
        model = model.with_adapter({"lora": config.lora, "prompt": config.prompt}[config.finetune])
    return replace(config, model=model)


def build_data(config: Config) -> Dataset:
    """Builds the data set of a config. If its base has a tokenizer.json, the texts are encoded by that tokenizer.

    The spec then has at least the base's vocabulary size, which may exceed the number of tokens in the tokenizer.

    Prints a warning if the data are codes, and the base was trained on the codes of another tokenizer.
    """
    if config.init_from is None:
        return config.data.build()
    path = location(config)
    text = path if (path / tokenizers.FILE).exists() else None
    data = with_tokenizers(config.data, text).build()
    _compare_codecs(data, path)
    if text is None:
        return data
    known = directory.read_spec(path)
    return data._replace(spec={name: _widen(feature, known.get(name)) for name, feature in data.spec.items()})


def _compare_codecs(data: Dataset, base: Path) -> None:
    """Prints a warning if the data are codes of another tokenizer than the base's, or latents of another scale."""
    ours = {name: hashlib.sha256(data.files[name]).hexdigest() for name in CODEC_FILES if name in data.files}
    theirs = {name: owner.sum_of(base / name) for name in CODEC_FILES if (base / name).exists()}
    if ours and theirs and ours != theirs:
        note(
            f"warning: {base} was trained on codes of another tokenizer, or of another scale, so its weights mean little here; "
            f"the fix: --data.tokenizer {base}"
        )


def with_tokenizers(data: Data, text: Path | None = None, codec: Path | None = None) -> Data:
    """Returns a copy of the data that reads its tokenizers from run directories. Data that are wrapped are changed, too.

    text: of a run whose tokenizer.json encodes the texts. codec: of a run whose tokenizer encodes images or sound. None: unchanged.
    """
    folder, inner = codec if data.keeps_tokenizer else text, getattr(data, "data", None)
    changes: dict[str, Any] = {}
    if folder is not None and hasattr(data, "tokenizer"):
        changes["tokenizer"] = str(folder)
    if isinstance(inner, Data):
        changes["data"] = with_tokenizers(inner, text, codec)
    return replace(data, **changes)


def text_tokenizer(data: Data) -> str | None:
    """Returns the option `tokenizer` of data with texts, such as "bpe". Looks into wrapped data, too. None: the data have no texts."""
    found = None if data.keeps_tokenizer else getattr(data, "tokenizer", None)
    if found is not None:
        return found
    inner = getattr(data, "data", None)
    return text_tokenizer(inner) if isinstance(inner, Data) else None


def with_changes(data: Data, changes: Mapping[str, Any]) -> Data:
    """Returns a copy of the data with {field: value} changed. If `data` wraps other data, as Encoded and ToText do, fields that it
    lacks are changed in the wrapped data."""
    inner = getattr(data, "data", None)
    if not isinstance(inner, Data):
        return replace(data, **changes)
    own = {f.name for f in fields(data)}
    rest = {name: value for name, value in changes.items() if name not in own}
    return replace(data, data=with_changes(inner, rest), **{k: v for k, v in changes.items() if k in own})


def _widen(feature: Feature, known: Feature | None) -> Feature:
    """Returns the feature with the vocabulary size of the base's feature `known`, if that size is larger."""
    # The base's embedding has one row per token, so its weights fit only with the same vocabulary size.
    theirs = (known.vocab or 0) if known else 0
    return replace(feature, vocab=max(feature.vocab or 0, theirs) or None)


def location(config: Config) -> Path:
    """Returns the run directory of a config's base: the field `base`, or if it is None, `init_from`, which must be set.

    Raises: UserError if it is not a run directory.
    """
    assert config.init_from is not None
    path = files.expand_user(config.base or config.init_from)
    if not (path / "config.json").exists():
        if config.base:
            raise UserError(f"--base {path} is not a run directory; it has to be where the run of --init-from is now")
        raise UserError(f"{path}, the base of this run, is not a run directory; if it was moved: --base DIR")
    return path


def choose_base(config: Config, workdir: Path) -> Base | None:
    """Opens the base of a config. None: the config has no `init_from`.

    If `workdir` already holds a run, opens the checkpoint of the base that this run began with. Otherwise, opens the
    best checkpoint of the base.

    Raises: UserError as `open_base` or `base_of_run`.
    """
    if config.init_from is None:
        return None
    if (workdir / "config.json").exists():
        _, facts = directory.read_config(workdir)
        if facts.base is not None:
            return base_of_run(workdir, facts, str(location(config)))
    return open_base(location(config))


def base_of_run(workdir: Path, facts: RunFacts, moved: str | None = None) -> Base | None:
    """Opens the base that the config.json of a run records. None: it records none.

    moved: the base's run directory, if it is not at the recorded path.

    Raises: UserError if the base does not exist, or is not the one that the run was trained with.
    """
    if facts.base is None:
        return None
    path = files.expand_user(moved) if moved else workdir / facts.base.path
    step = facts.base.step
    if not path.is_dir() and moved:
        raise UserError(f"--base {path} does not exist; it has to be where the base of {workdir} is now")
    if not path.is_dir():
        raise UserError(f"{workdir} needs its base {path}, which does not exist; if it was moved: --base DIR")
    if moved is None:
        # The path comes from the run, which may be a stranger's, so the user should see which folder is read.
        note(f"{workdir} has the base {os.path.realpath(path)}")
    # The digest of the manifest is compared before any other file in that folder is read. So a stranger's run can't make gen read
    # private files elsewhere.
    sealed = (path / "checkpoints" / str(step) / checkpoint.MANIFEST).is_file()
    if sealed and checkpoint.digest(path / "checkpoints", step) != facts.base.sha256:
        raise UserError(f"{path} is not the base that {workdir} was trained on (their digests differ)")
    # If the checkpoint has no manifest, `open_base` reports it as damaged.
    return open_base(path, step)


def check_unchanged(base: Base) -> None:
    """Raises: UserError if a file of the base's checkpoint has changed since the base was opened."""
    if checkpoint.damage(base.checkpoints, base.step) or checkpoint.digest(base.checkpoints, base.step) != base.sha256:
        raise UserError(f"the base {base.path} has changed during the training of this run")


def check_base(base: Base, abstract: State) -> None:
    """Checks that a new run can start from the parameters of its base.

    abstract: shapes of the new run's state. Dtypes may differ. Shapes may differ where `Family.adopt` of the base replaces the
    parameter, such as for another number of classes. For an adapter, its frozen parameters are compared.

    Raises: UserError if any other parameter is missing on one side, or has another shape.
    """
    # A run of an adapter has the base's parameters in `frozen`. Any other run has them in `params`.
    like = abstract.frozen or abstract.params
    adopted = jax.eval_shape(partial(base.config.model.adopt, like=like), base.abstract.frozen or base.abstract.params)
    theirs, ours = _shapes(adopted), _shapes(like)
    for path in sorted(theirs.keys() | ours.keys()):
        if theirs.get(path) != ours.get(path):
            raise UserError(
                f"the base {base.path} does not fit: its {path} is {theirs.get(path, 'missing')}, and this config's is "
                f"{ours.get(path, 'missing')}; choose data and a model like those in {base.path / 'config.json'}"
            )


def read_weights(base: Base, like: dict[str, Params]) -> dict[str, Params]:
    """Reads the base's parameters into host memory, to start a run from. Takes moving averages where they exist.

    like: the new run's parameters, or their shapes and dtypes. The result has these dtypes. Where shapes differ,
    `Family.adopt` of the base decides.
    """
    # `abstract` has no shardings, so the arrays stay in host memory. The caller places them on the devices.
    state = checkpoint.restore(base.checkpoints, base.step, base.abstract, items=("params", "ema"))
    # The averages replace the parameters of the same name, as they do when the base is sampled.
    found = jax.device_get(base.config.model.adopt({**state.params, **state.ema}, like))
    return jax.tree.map(lambda x, own: x.astype(own.dtype), found, like)


def with_stats(state: State, base: Base, names: tuple[str, ...]) -> State:
    """Returns the state of step 0 with the entries `names` of `State.stats` read from the base, on the same devices.

    Names that `state.stats` does not have are ignored.
    """
    if not set(names) & state.stats.keys():
        return state
    theirs = checkpoint.restore(base.checkpoints, base.step, base.abstract, items=("stats",)).stats
    kept = {name: state.stats[name] for name in names if name in state.stats}
    placed = {
        name: jax.tree.map(lambda x, own: jax.device_put(x.astype(own.dtype), own.sharding), theirs[name], like)
        for name, like in kept.items()
    }
    return replace(state, stats=state.stats | placed)


def with_base(state: State, abstract: State, base: Base | None) -> State:
    """Returns a restored state with the base's weights in `State.frozen`, which checkpoints of adapters do not hold.

    abstract: shapes and shardings of the state. If its `frozen` is empty, the model has no adapter, and `state` is
    returned unchanged.
    """
    if not jax.tree.leaves(abstract.frozen):
        return state
    assert base is not None
    weights = read_weights(base, abstract.frozen)
    return replace(
        state, frozen=jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), weights, abstract.frozen)
    )


def _shapes(params: dict[str, Params]) -> dict[str, tuple[int, ...]]:
    leaves: Any = flatten_dict(params, sep="/")
    return {path: x.shape for path, x in leaves.items()}
