"""Converts runs to and from the GPT-2 files of Hugging Face:

python -m gen.interop export RUN DIR
python -m gen.interop import DIR RUN
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gen.errors import run_command, say
from gen.files import expand_paths
from gen.interop.convert import export_run, import_run


@dataclass(frozen=True)
class Export:
    """Writes a run with GPT-2's architecture to a folder that transformers loads with from_pretrained."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder to write. If it exists, it must be empty."""
    step: int | None = None
    """Step of the checkpoint to export. None: the best checkpoint."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""

    def execute(self) -> str:
        """Exports, and returns the message for the user."""
        step = export_run(self.run, self.folder, self.step, self.trust)
        return f"{self.folder}: checkpoint {step} of {self.run}; load it with from_pretrained of transformers"


@dataclass(frozen=True)
class Import:
    """Makes a run directory from a GPT-2 that transformers saved. The run can be sampled from, or be the base of a new run."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder with config.json, model.safetensors and a tokenizer."""
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory to write. If it exists, it must be empty."""

    def execute(self) -> str:
        """Imports, and returns the message for the user."""
        count = import_run(self.folder, self.run)
        return f"{self.run}: {count:,} parameters; next: python sample.py {self.run} --prompt ..."


Command = Annotated[Export, tyro.conf.subcommand("export")] | Annotated[Import, tyro.conf.subcommand("import")]


def main() -> None:
    """Runs `python -m gen.interop export` or `python -m gen.interop import` with the options of the command line."""
    command: Export | Import = tyro.cli(Command, prog="python -m gen.interop")  # pyright: ignore
    say(expand_paths(command).execute())


if __name__ == "__main__":
    run_command(main)
