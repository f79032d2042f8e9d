"""python -m gen.interop import|export: to and from Hugging Face's GPT-2 format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gen.errors import run_command
from gen.interop.convert import export_run, import_run


@dataclass(frozen=True)
class Export:
    """Write a run that is shaped like GPT-2 as a folder that transformers' from_pretrained loads."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    step: int | None = None
    """Checkpoint; None: the best."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""


@dataclass(frozen=True)
class Import:
    """Make a run of a GPT-2 that transformers saved, to sample from or to start from."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder, with config.json, model.safetensors and a tokenizer."""
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory to make."""


def main() -> None:
    exporting, importing = tyro.conf.subcommand("export"), tyro.conf.subcommand("import")
    kind: Any = Annotated[Export, exporting] | Annotated[Import, importing]
    options = tyro.cli(kind, prog="python -m gen.interop")
    if isinstance(options, Export):
        step = export_run(options.run, options.folder, options.step, options.trust)
        print(f"{options.folder}: checkpoint {step} of {options.run}, for transformers' from_pretrained")
    else:
        count = import_run(options.folder, options.run)
        print(f"{options.run}: {count:,} parameters; next: python sample.py {options.run} --prompt ...")


if __name__ == "__main__":
    run_command(main)
