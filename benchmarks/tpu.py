"""Compiles each family's step for TPUs, without a TPU: python -m benchmarks.tpu [--chips 4 256]

It uses the TPU compiler (pip install 'gen[tpu-plan]') with both engines. Each row has the compile time, and the memory that a chip
needs. The batch is the config's, but at least one example for each chip. A compile time is left out if other programs used the
machine during the compilation.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import tyro

from benchmarks import machine
from benchmarks.machine import Watch
from gen import config as configs
from gen.config import Config, Parallel
from gen.errors import UserError, run_command
from gen.plan import plan, report

CONFIGS = Path(__file__).parent.parent / "configs"
FAMILIES = ("vae_digits", "gan_digits", "lm_pydoc", "mlm_pydoc", "seq2seq_docstring")
ENGINES = {"pmap": Parallel(), "jit with FSDP": Parallel(engine="jit", fsdp=True)}


def main(families: Sequence[str] = FAMILIES, chips: Sequence[int] = (4, 256)) -> None:
    """Prints a row for each config, number of chips and engine. families: names of configs. chips: numbers of TPU chips."""
    print(machine.begin())
    numbers = ("seconds", "state", "given", "peak", "sent")
    print(f"{'config':20s}{'chips':>6s}  {'engine':14s}" + "".join(f"{name:>11s}" for name in numbers), flush=True)
    for name in families:
        for n in chips:
            for engine, parallel in ENGINES.items():
                print(f"{name:20s}{n:>6d}  {engine:14s}" + row(configs.load(name, CONFIGS), n, parallel), flush=True)


def row(config: Config, chips: int, parallel: Parallel) -> str:
    """Returns the compile time and the bytes of a chip as text, or the reason why it failed."""
    data = replace(config.data, batch_size=max(config.data.batch_size, chips))
    try:
        with redirect_stderr(io.StringIO()):  # messages about reading the data
            planned = replace(config, data=data, parallel=parallel)
            (made, _), load = Watch().observe(lambda: plan.plan(planned, chips, platform="tpu"))
    except UserError as error:
        return f"  {str(error).splitlines()[0]}"
    sent = sum(bytes_ for _, bytes_, _ in made.sent.values())
    bytes_ = (sum(made.held.values()), made.arguments, made.peak, sent)
    seconds = "busy" if load is not None and load.is_busy else f"{made.seconds:.1f}"
    return f"{seconds:>11s}" + "".join(f"{report.binary(b):>11s}" for b in bytes_)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
