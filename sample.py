"""Sample a trained run: python sample.py RUN [--n 64] [--seed 0] [--mode ...]; python sample.py --verify manifest.json"""

import os
import sys

from gen.errors import run_command


def main() -> None:
    from gen.sample import main

    # Modules that --trust names may lie in the current folder, as with `python -m`.
    sys.path.append(os.getcwd())

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run_command(main)
