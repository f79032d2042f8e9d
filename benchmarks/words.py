"""Prints the error rates, on real recordings, of the recognizer that scores generated speech: python -m benchmarks.words FOLDER

FOLDER has recordings with texts (docs/sound.md). The recognizer is trained on the training split, or read from the cache. Its errors
on held-out recordings show how large a difference of the scores must be to mean anything.
"""

from __future__ import annotations

from pathlib import Path

import tyro

from gen.data.audio import Transcribed
from gen.errors import run_command
from gen.metrics.recognizer import load_recognizer, read_recordings


def main(folder: tyro.conf.Positional[Path], rate: int = 8000, seconds: float = 4.0, length: int = 80) -> None:
    """Prints the errors of words and characters on each split. The options are those of the data."""
    data = Transcribed(
        name=f"captions:{folder}", rate=rate, seconds=seconds, length=length, tokenizer="character"
    ).build()
    recognizer = load_recognizer(data)
    known: set[str] = set()
    for split in ("train", "validation", "test"):
        frames, texts = read_recordings(data, split)
        words = [word for text in texts for word in text.split()]
        known = known or set(words)
        errors, unseen = recognizer.errors(frames, texts), sum(word not in known for word in words)
        print(
            f"{split}: {len(texts)} recordings, {len(words)} words, of which {unseen} are not in train: "
            f"word error {errors.word:.3f}, character error {errors.character:.3f}"
        )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.words"))
