"""Draws samples from a trained run: python sample.py RUN [--n 64] [--seed 0] [--mode ...]

Makes samples again, and compares them: python sample.py --verify manifest.json
"""

import os
import sys

from gen.errors import run_command


def main() -> None:
    """Runs the command line (gen.sample)."""
    from gen.sample import main

    # The current folder is searched for modules that --trust names, as `python -m` does.
    sys.path.append(os.getcwd())

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run_command(main)
