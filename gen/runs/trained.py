"""A trained run: its model, its checkpoints, its data, and samples from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gen import files
from gen.config import Config, Parallel
from gen.core import Dataset, GenerativeModel, State
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory
from gen.runtime import backend, engine


def load_model(workdir: Path, trust: Sequence[str]) -> tuple[Config, GenerativeModel]:
    """The config and the model of a run."""
    backend.start_backend(Parallel())
    config, _ = directory.read_config(workdir, trust)
    return config, config.model.build(directory.read_spec(workdir), config.steps)


def choose_step(workdir: Path, config: Config, step: int | None) -> int:
    """The step asked for, or the best sound one. Raises: UserError if there is none."""
    checkpoints = workdir / "checkpoints"
    if step is not None:
        if reason := checkpoint.damage(checkpoints, step):
            there = ", ".join(map(str, checkpoint.steps(checkpoints))) or "none"
            raise UserError(f"checkpoint {step} of {workdir}: {reason}; there: {there}")
        return step
    best = checkpoint.best(checkpoints, config.save, warn=lambda text: print(f"warning: {text}"))
    if best is None:
        raise UserError(f"{workdir} has no checkpoint yet; its training saves one each {config.save.every} steps")
    return best


def restore_state(workdir: Path, model: GenerativeModel, step: int, base: str | None = None) -> State:
    """What samples are drawn from, of a checkpoint; on one device. base: where the run that it stands on was moved to."""
    abstract = files.check_fits(engine.on_one_device(jax.eval_shape(model.init, jax.random.key(0))), workdir)
    state = checkpoint.restore(workdir / "checkpoints", step, abstract, items=("params", "ema", "stats"))
    if jax.tree.leaves(abstract.frozen):
        state = runs_base.with_base(state, abstract, runs_base.base_of_run(workdir, base))
    return replace(state, step=jax.numpy.int32(step))


def generate(
    workdir: Path,
    model: GenerativeModel,
    step: int,
    seed: int,
    request: Any,
    given: Mapping[str, Any] | None = None,
    functions: Mapping[str, Any] = {},
    base: str | None = None,
) -> dict[str, Any]:
    """Arrays, a function of the run, the checkpoint, the seed, the request and what is given; on one device."""
    if functions.keys() - inspect.signature(model.generate).parameters.keys():
        raise UserError("a masked model writes at all places at once; leave out --stream and --stop")
    state = restore_state(workdir, model, step, base)
    given = directory.read_reference(workdir) if given is None else given
    inputs = state, jax.random.key(seed), given
    program = jax.jit(partial(model.generate, request=request, **functions)).lower(*inputs).compile()
    if size := program.memory_analysis():
        files.check_memory(size.temp_size_in_bytes + size.output_size_in_bytes, "what is to be generated")
    return jax.device_get(program(*inputs))


def build_dataset(workdir: Path, data_dir: str | None, trust: Sequence[str], **read: Any) -> Dataset:
    """The data set that a run was trained on; `read`, fields of its config that change how it is read.

    Raises: UserError if it is another one now.
    """
    config, facts = directory.read_config(workdir, trust)
    if data_dir is not None and hasattr(config.data, "data_dir"):
        read["data_dir"] = data_dir
    made_here = getattr(config.data, "tokenizer", None) in tokenizers.TRAINED and config.init_from is None
    if (workdir / tokenizers.FILE).exists() and not made_here:
        read["tokenizer"] = str(workdir)
    data = replace(config.data, **read).build()
    if data.digest != facts["data"]:
        raise UserError(f"the data are not those that {workdir} was trained on (their digests differ)")
    return data
