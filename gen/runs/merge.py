"""Merges an adapter into its base: python -m gen.runs.merge RUN DIR [--base DIR]."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import tyro

from gen import files
from gen.config import Config
from gen.core import State
from gen.data.text import tokenizers
from gen.errors import UserError, run_command, say
from gen.optim.descend import begin_average
from gen.runs import checkpoint, directory
from gen.runs.base import Base, read_weights, with_tokenizers
from gen.runs.trained import TrainedRun, open_run, sample_command

KEPT_FILES = ("spec.json", "tokenizer.json", "labels.json", *directory.CODEC_FILES, "reference.npz")
"""Files of the adapter's run that are copied to the merged run."""


@dataclass(frozen=True)
class Merge:
    """Merge a LoRA adapter into its base. The new run generates the same samples, and needs no base."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run directory of the adapter."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Run directory to create."""
    base: str | None = None
    """Run directory of the base, if it was moved since the adapter was trained."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""


def merge(workdir: Path, out: Path, moved: str | None = None, trust: tuple[str, ...] = ()) -> None:
    """Writes the run directory `out`: the best checkpoint of the adapter in `workdir`, merged into its base.

    moved: run directory of the base, if it was moved since the adapter was trained. trust: modules outside gen that the run's
    config names and that may be imported.

    Raises: UserError if the run is not a LoRA adapter, if it has no checkpoint, or if `out` is not empty.
    """
    run = open_run(workdir, trust)
    base = run.open_base(moved)
    if base is None or run.config.finetune == "full":
        raise UserError(f"{workdir} is not an adapter: it needs no base")
    if run.config.finetune != "lora":
        raise UserError("a learned prompt does not change the matrices, so it can't be merged; keep it with its base")
    # The folder gets its name only after all is written, so a failure leaves nothing behind.
    with files.create_folder(out) as aside:
        _write(run, base, aside)
    say(f"{out}: {base.path} with the changes of {workdir}; next: {sample_command(out, run.config)}")


def _write(run: TrainedRun, base: Base, folder: Path) -> None:
    # Only the moving averages are merged: samples use them, and fine-tuning starts from them with a new optimizer.
    step = run.choose_step()
    state = checkpoint.restore(run.checkpoints, step, run.abstract, items=("params", "ema", "stats"))
    weights = read_weights(base, run.abstract.frozen)
    merged = run.config.lora.merge(state.ema or state.params, weights)
    kept = {name: run.read_file(name) for name in KEPT_FILES if (run.workdir / name).exists()}
    for name, content in kept.items():
        files.write_bytes(folder / name, content)
    config = _whole_config(run, base)
    # Evaluations change reference.npz, so config.json does not hold its SHA-256.
    constant = {name: content for name, content in kept.items() if name != "reference.npz"}
    directory.write_config(folder, config, run.facts.data, kept=constant)
    with checkpoint.saver(folder / "checkpoints", config.save, 0) as save:
        # The merged run keeps the adapter's setting of `ema`, so its state must have averages, too.
        averages = begin_average(merged) if state.ema else {}
        whole = State(jax.numpy.int32(step), params=merged, opt_state={}, ema=averages, stats=state.stats)
        save(whole, checkpoint.Facts(merged=json.dumps(base.record(run.workdir)._asdict())))


def _whole_config(run: TrainedRun, base: Base) -> Config:
    """Returns the config of the merged run: the adapter's config without its base and its adapter."""
    config = run.config
    config = replace(config, model=config.model.with_adapter(None), init_from=None, finetune="full")
    # Otherwise the tokenizer would be trained again when the merged run is fine-tuned.
    if (run.workdir / tokenizers.FILE).exists():
        config = replace(config, data=with_tokenizers(config.data, text=base.path))
    return config


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with these arguments. None: sys.argv[1:]."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = files.expand_paths(tyro.cli(Merge, args=arguments, prog="python -m gen.runs.merge"))
    merge(options.run, options.out, options.base, options.trust)


if __name__ == "__main__":
    run_command(main)
