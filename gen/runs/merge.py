"""Merges an adapter into its base: python -m gen.runs.merge RUN DIR [--base DIR]."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax

from gen import files
from gen.core import State
from gen.data.text import tokenizers
from gen.errors import UserError, run_command
from gen.runs import checkpoint, directory
from gen.runs.base import base_of_run, read_weights
from gen.runtime import engine


def merge(workdir: Path, out: Path, moved: str | None = None) -> None:
    """Write a run of its own, which does what the adapter does on its base. moved: where the base is now."""
    config, known = directory.read_config(workdir)
    base = base_of_run(workdir, moved)
    if base is None or config.finetune == "full":
        raise UserError(f"{workdir} is no adapter: it stands on its own already")
    if config.finetune != "lora":
        raise UserError(
            "a learned prompt is no change of matrices, so it can't be merged; sample it with its base there"
        )
    model = config.model.build(directory.read_spec(workdir), config.steps)
    step = checkpoint.best(workdir / "checkpoints", config.save, warn=print)
    if step is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    abstract = engine.on_one_device(jax.eval_shape(model.init, jax.random.key(0)))
    state = checkpoint.restore(workdir / "checkpoints", step, abstract, items=("params", "ema"))
    merged = config.lora.merge(state.ema or state.params, read_weights(base, abstract.frozen))
    whole = replace(config, model=config.model.with_adapter(None), init_from=None, finetune="full")
    if (workdir / tokenizers.FILE).exists():  # not to be trained anew
        whole = replace(whole, data=replace(whole.data, tokenizer=str(base.path)))
    with files.create_folder(out) as aside:
        for name in ("spec.json", "tokenizer.json", "labels.json", "reference.npz"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, aside / name)
        directory.write_config(aside, whole, known["data"])
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
            raise UserError("usage: python -m gen.runs.merge RUN DIR [--base DIR]")


if __name__ == "__main__":
    run_command(main)
