"""Train a config: python train.py [CONFIG] [--workdir DIR] [--steps N] [--any.field value]

CONFIG is a file, or the name of one in configs/ (vae_digits if left out); --help lists every field of it.
"""

import sys
from pathlib import Path

from gen import config as configs
from gen.errors import run_command
from gen.runtime.hosts import exit_process

ROOT = Path(__file__).parent / "configs"


def main() -> None:
    named = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    name = sys.argv[1] if named else "vae_digits"
    launch = configs.override(configs.load(name, ROOT), sys.argv[1 + named :], prog=f"train.py {name}")

    if launch.dry_run:
        from gen.plan.plan import dry_run

        dry_run(launch)
    else:
        from gen.train import train

        train(launch.config, Path(launch.config.workdir or f"runs/{Path(name).stem}"))


if __name__ == "__main__":
    run_command(main, exit_process)
