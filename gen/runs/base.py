"""Going on from another run: its weights and tokenizer as a start, or as the base that an adapter stands on.

python -m gen.runs.merge RUN DIR [--base DIR]     a run of its own from an adapter and its base
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from gen import files
from gen.config import Config
from gen.core import Dataset, Params, State
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.runs import checkpoint, directory


class Base(NamedTuple):
    """A checkpoint that other runs go on from."""

    path: Path
    config: Config
    step: int
    sha256: str
    """Of the checkpoint's manifest, which names each of its files."""


def open_base(path: Path, step: int | None = None) -> Base:
    """The base in a run directory, each of its files as it was written: its best checkpoint, or that of a step.

    Raises: UserError if there is none.
    """
    config, _ = directory.read_config(path)
    checkpoints = path / "checkpoints"
    if step is None:
        step = checkpoint.best(checkpoints, config.save, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
        if step is None:
            raise UserError(f"{path} has no checkpoint to go on from")
    elif reason := checkpoint.damage(checkpoints, step):
        raise UserError(f"the base's checkpoint {checkpoints / str(step)}: {reason}")
    return Base(path, config, step, checkpoint.digest(checkpoints, step))


def resolve_config(config: Config) -> Config:
    """The config with its base's network, and adapted as it says. Without a base, the config."""
    if config.init_from is None:
        return config
    path = location(config)
    base, _ = directory.read_config(path)
    if base.finetune != "full":
        raise UserError(f"{path} is an adapter on another run; first: python -m gen.runs.merge {path} DIR")
    model = config.model.inherit(base.model, directory.read_spec(path))
    if config.finetune != "full":
        model = model.with_adapter({"lora": config.lora, "prompt": config.prompt}[config.finetune])
    return replace(config, model=model)


def build_data(config: Config) -> Dataset:
    """The config's data; with the base's tokenizer, and as many tokens as its model has, which may be more than are used."""
    if config.init_from is None or not (location(config) / tokenizers.FILE).exists():
        return config.data.build()
    path = location(config)
    found, known = replace(config.data, tokenizer=str(path)).build(), directory.read_spec(path)
    vocab = lambda name, used: max(used or 0, (known[name].vocab or 0) if name in known else 0) or None
    return found._replace(spec={name: replace(f, vocab=vocab(name, f.vocab)) for name, f in found.spec.items()})


def location(config: Config) -> Path:
    assert config.init_from is not None
    path = Path(config.base or config.init_from)
    if not (path / "config.json").exists():
        raise UserError(f"{path}, which this run goes on from, is no run directory; if it was moved: --base DIR")
    return path


def choose_base(config: Config, workdir: Path) -> Base | None:
    """The base of a config: the one that a run that is there was begun on, or else the best of `init_from`."""
    if config.init_from is None:
        return None
    if (workdir / "config.json").exists() and "base" in directory.read_config(workdir)[1]:
        return base_of_run(workdir, str(location(config)))
    return open_base(location(config))


def base_facts(base: Base, workdir: Path) -> dict[str, Any]:
    """What a run keeps of its base."""
    return {"path": os.path.relpath(base.path.resolve(), workdir.resolve()), "step": base.step, "sha256": base.sha256}


def base_of_run(workdir: Path, moved: str | None = None) -> Base | None:
    """The base of a run, None if it has none. Raises: UserError if it is not there, or not what it was."""
    _, known = directory.read_config(workdir)
    if "base" not in known:
        return None
    path, step = Path(moved or workdir / known["base"]["path"]), known["base"]["step"]
    if not path.is_dir():
        raise UserError(f"{workdir} stands on the run {path}, which is not there; if it was moved: --base DIR")
    if moved is None:  # the run says so, and may be a stranger's
        print(f"{workdir} stands on {os.path.realpath(path)}", file=sys.stderr)
    # Nothing else of that folder is read before: whoever made the run has to know the base already.
    there = (path / "checkpoints" / str(step) / checkpoint.MANIFEST).is_file()
    if there and checkpoint.digest(path / "checkpoints", step) != known["base"]["sha256"]:
        raise UserError(f"{path} is not the base that {workdir} was trained on (their digests differ)")
    base = open_base(path, step)  # with no manifest, this says so
    return base


def check_base(base: Base, abstract: State) -> None:
    """Raises: UserError for the first parameter of the base that this state has otherwise."""
    theirs, ours = (_shapes(state.frozen or state.params) for state in (_abstract(base), abstract))
    for path in sorted(theirs.keys() | ours.keys()):
        if theirs.get(path) != ours.get(path):
            has = lambda shapes: shapes.get(path, "none")  # noqa: B023
            raise UserError(
                f"the base {base.path} does not fit: its {path} is {has(theirs)}, and this config's {has(ours)}; "
                f"choose data and a model like those in {base.path / 'config.json'}"
            )


def read_weights(base: Base, like: dict[str, Params]) -> dict[str, Params]:
    """The parameters that the base makes samples with, in the dtypes of `like`; on the host: whoever takes them places them."""
    state = checkpoint.restore(base.path / "checkpoints", base.step, _abstract(base), items=("params", "ema"))
    found = {**state.params, **state.ema}
    return jax.tree.map(lambda x, own: x.astype(own.dtype), found, like)


def _abstract(base: Base) -> State:
    model = base.config.model.build(directory.read_spec(base.path), base.config.steps)
    return files.check_fits(jax.eval_shape(model.init, jax.random.key(0)), base.path)


def _shapes(params: dict[str, Params]) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return {path: x.shape for path, x in leaves.items()}


def with_base(state: State, abstract: State, base: Base | None) -> State:
    """A restored state with the base that it stands on, placed as `abstract` says."""
    if not jax.tree.leaves(abstract.frozen):
        return state
    assert base is not None
    put = lambda x, like: jax.device_put(x, like.sharding)
    return replace(state, frozen=jax.tree.map(put, read_weights(base, abstract.frozen), abstract.frozen))
