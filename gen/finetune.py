"""Going on from another run: its weights and tokenizer as a start, or as the base that an adapter stands on.

python -m gen.finetune merge RUN DIR [--base DIR]     a run of its own from an adapter and its base
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from gen import checkpoint, foreign, parallel, run
from gen.config import Config
from gen.core import Dataset, Params, State, UserError, command
from gen.data import tokenizers


class Base(NamedTuple):
    """A checkpoint that other runs go on from."""

    path: Path
    config: Config
    step: int
    sha256: str
    """Of the checkpoint's manifest, which names each of its files."""


def opened(path: Path, step: int | None = None) -> Base:
    """The base in a run directory, each of its files as it was written: its best checkpoint, or that of a step.

    Raises: UserError if there is none.
    """
    config, _ = run.read_config(path)
    checkpoints = path / "checkpoints"
    if step is None:
        step = checkpoint.best(checkpoints, config.save, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
        if step is None:
            raise UserError(f"{path} has no checkpoint to go on from")
    elif reason := checkpoint.damage(checkpoints, step):
        raise UserError(f"the base's checkpoint {checkpoints / str(step)}: {reason}")
    return Base(path, config, step, checkpoint.digest(checkpoints, step))


def resolved(config: Config) -> Config:
    """The config with its base's network, and adapted as it says. Without a base, the config."""
    if config.init_from is None:
        return config
    path = location(config)
    base, _ = run.read_config(path)
    if base.finetune != "full":
        raise UserError(f"{path} is an adapter on another run; first: python -m gen.finetune merge {path} DIR")
    model = config.model.inherit(base.model, run.read_spec(path))
    if config.finetune != "full":
        model = model.adapted({"lora": config.lora, "prompt": config.prompt}[config.finetune])
    return replace(config, model=model)


def data(config: Config) -> Dataset:
    """The config's data; with the base's tokenizer, and as many tokens as its model has, which may be more than are used."""
    if config.init_from is None or not (location(config) / tokenizers.FILE).exists():
        return config.data.build()
    path = location(config)
    found, known = replace(config.data, tokenizer=str(path)).build(), run.read_spec(path)
    vocab = lambda name, used: max(used or 0, (known[name].vocab or 0) if name in known else 0) or None
    return found._replace(spec={name: replace(f, vocab=vocab(name, f.vocab)) for name, f in found.spec.items()})


def location(config: Config) -> Path:
    assert config.init_from is not None
    path = Path(config.base or config.init_from)
    if not (path / "config.json").exists():
        raise UserError(f"{path}, which this run goes on from, is no run directory; if it was moved: --base DIR")
    return path


def chosen(config: Config, workdir: Path) -> Base | None:
    """The base of a config: the one that a run that is there was begun on, or else the best of `init_from`."""
    if config.init_from is None:
        return None
    if (workdir / "config.json").exists() and "base" in run.read_config(workdir)[1]:
        return of_run(workdir, str(location(config)))
    return opened(location(config))


def facts(base: Base, workdir: Path) -> dict[str, Any]:
    """What a run keeps of its base."""
    return {"path": os.path.relpath(base.path.resolve(), workdir.resolve()), "step": base.step, "sha256": base.sha256}


def of_run(workdir: Path, moved: str | None = None) -> Base | None:
    """The base of a run, None if it has none. Raises: UserError if it is not there, or not what it was."""
    _, known = run.read_config(workdir)
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
    base = opened(path, step)  # with no manifest, this says so
    return base


def check(base: Base, abstract: State) -> None:
    """Raises: UserError for the first parameter of the base that this state has otherwise."""
    theirs, ours = (_shapes(state.frozen or state.params) for state in (_abstract(base), abstract))
    for path in sorted(theirs.keys() | ours.keys()):
        if theirs.get(path) != ours.get(path):
            has = lambda shapes: shapes.get(path, "none")  # noqa: B023
            raise UserError(
                f"the base {base.path} does not fit: its {path} is {has(theirs)}, and this config's {has(ours)}; "
                f"choose data and a model like those in {base.path / 'config.json'}"
            )


def weights(base: Base, like: dict[str, Params]) -> dict[str, Params]:
    """The parameters that the base makes samples with, in the dtypes of `like`; on the host: whoever takes them places them."""
    state = checkpoint.restore(base.path / "checkpoints", base.step, _abstract(base), items=("params", "ema"))
    found = {**state.params, **state.ema}
    return jax.tree.map(lambda x, own: x.astype(own.dtype), found, like)


def _abstract(base: Base) -> State:
    model = base.config.model.build(run.read_spec(base.path), base.config.steps)
    return foreign.fits(jax.eval_shape(model.init, jax.random.key(0)), base.path)


def _shapes(params: dict[str, Params]) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return {path: x.shape for path, x in leaves.items()}


def standing(state: State, abstract: State, base: Base | None) -> State:
    """A restored state with the base that it stands on, placed as `abstract` says."""
    if not jax.tree.leaves(abstract.frozen):
        return state
    assert base is not None
    put = lambda x, like: jax.device_put(x, like.sharding)
    return replace(state, frozen=jax.tree.map(put, weights(base, abstract.frozen), abstract.frozen))


def merge(workdir: Path, out: Path, moved: str | None = None) -> None:
    """Write a run of its own, which does what the adapter does on its base. moved: where the base is now."""
    config, known = run.read_config(workdir)
    base = of_run(workdir, moved)
    if base is None or config.finetune == "full":
        raise UserError(f"{workdir} is no adapter: it stands on its own already")
    if config.finetune != "lora":
        raise UserError(
            "a learned prompt is no change of matrices, so it can't be merged; sample it with its base there"
        )
    model = config.model.build(run.read_spec(workdir), config.steps)
    step = checkpoint.best(workdir / "checkpoints", config.save, warn=print)
    if step is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    abstract = parallel.on_one_device(jax.eval_shape(model.init, jax.random.key(0)))
    state = checkpoint.restore(workdir / "checkpoints", step, abstract, items=("params", "ema"))
    merged = config.lora.merge(state.ema or state.params, weights(base, abstract.frozen))
    whole = replace(config, model=config.model.adapted(None), init_from=None, finetune="full")
    if (workdir / tokenizers.FILE).exists():  # not to be trained anew
        whole = replace(whole, data=replace(whole.data, tokenizer=str(base.path)))
    with run.made(out) as aside:
        for name in ("spec.json", "tokenizer.json", "labels.json", "reference.npz"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, aside / name)
        run.write_config(aside, whole, known["data"])
        with checkpoint.saver(aside / "checkpoints", config.save, 0) as save:
            save(
                State(jax.numpy.int32(step), params=merged, opt_state={}, ema=merged if state.ema else {}),
                {"validation": {}, "merged": json.dumps(known["base"])},
            )
    print(f"{out}: {base.path} with what {workdir} changed; next: python sample.py {out}")


def main() -> None:
    match sys.argv[1:]:
        case ["merge", workdir, out]:
            merge(Path(workdir), Path(out))
        case ["merge", workdir, out, "--base", base]:
            merge(Path(workdir), Path(out), base)
        case _:
            raise UserError("usage: python -m gen.finetune merge RUN DIR [--base DIR]")


if __name__ == "__main__":
    command(main)
