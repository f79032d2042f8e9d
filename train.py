"""Trains a config: python train.py [CONFIG] [--workdir DIR] [--steps N] [--any.field value]

CONFIG is a file, or the name of a file in ./configs or in gen's configs/ (default: vae_digits). --help lists all fields.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gen.errors import run_command
from gen.runtime.early import leave, prepare_process


def main() -> None:
    """Runs the command line. A config is named first, because its fields are the options."""
    prepare_process(sys.argv[1:])
    # Imported only now, so that signals have a handler during the slow imports, and --help and mistakes are quick.
    from gen import config as configs
    from gen.files import expand_user

    # The current folder is searched for modules, such as a fork's family, as `python -m` does.
    sys.path.append(os.getcwd())
    name, *options = sys.argv[1:] or ["vae_digits"]
    if name.startswith("-"):
        name, options = "vae_digits", [name, *options]
    launch = configs.override(configs.load(name), options, prog=f"train.py {name}")

    if launch.dry_run:
        from gen.plan.plan import dry_run

        dry_run(launch)
    else:
        from gen.runtime import hosts
        from gen.train import train

        train(launch.config, expand_user(launch.config.workdir or f"runs/{Path(name).stem}"))
        hosts.disconnect()


if __name__ == "__main__":
    run_command(main, leave)
