"""Makes a folder of recordings with texts from two Debian packages: python -m benchmarks.voice UNPACKED FOLDER

    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-wav      (one speaker, CC BY-SA 3.0)
    for f in asterisk-core-sounds-en*.deb; do dpkg-deb -x $f unpacked; done
    python -m benchmarks.voice unpacked voice

The spoken texts come from a file of the first package, because the name of a recording is often not its text: letters/ascii91 is
"left bracket". Recordings without words, such as tones, are left out.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import tyro

from gen.errors import UserError, run_command

SOUNDS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def read_texts(content: str) -> dict[str, str]:
    """Returns {name of a recording: its text} of lines "name: text". Lines in brackets describe sounds without words."""
    pairs = (line.partition(":")[::2] for line in content.splitlines() if not line.startswith(";"))
    return {name.strip(): clean(text) for name, text in pairs if text.strip() and text.strip()[0] not in "[("}


def clean(text: str) -> str:
    """Returns the words of a text in lower case, without punctuation, and with numbers up to ten in letters."""
    words = re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()
    return " ".join(NUMBERS[int(word)] if word.isdigit() and int(word) < len(NUMBERS) else word for word in words)


def main(unpacked: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path]) -> None:
    """Copies the recordings that have a text to the folder, and writes texts.jsonl."""
    sounds, texts = unpacked / SOUNDS, unpacked / TEXTS
    if not sounds.is_dir() or not texts.is_file():
        raise UserError(f"{unpacked} has no {SOUNDS} or no {TEXTS}; unpack both packages into it")
    known = read_texts(gzip.decompress(texts.read_bytes()).decode())
    lines = []
    for file in sorted(sounds.rglob("*.wav")):
        name = file.relative_to(sounds).with_suffix("").as_posix()
        if text := known.get(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / f"{name}.wav")
            lines.append({"audio": f"{name}.wav", "text": text})
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{folder}: {len(lines):,} recordings of {len({line['text'] for line in lines}):,} texts")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.voice"))
