"""The command that makes a folder of recordings with texts (benchmarks.voice), on three recordings."""

import gzip
import json

import pytest

from benchmarks import voice
from gen.errors import UserError

TEXTS = """; Core sounds

vm-press: Press 1 for "voice-mail", or 12 for help.
letters/ascii91: Left bracket.
beep: [a simple beep]
absent: Not recorded.
"""


def test_recordings_get_their_words_and_sounds_without_words_are_left_out(tmp_path):
    sounds, texts = tmp_path / "root" / voice.SOUNDS, tmp_path / "root" / voice.TEXTS
    (sounds / "letters").mkdir(parents=True)
    texts.parent.mkdir(parents=True)
    with pytest.raises(UserError, match="unpack both packages into it"):
        voice.main(tmp_path / "root", tmp_path / "voice")
    texts.write_bytes(gzip.compress(TEXTS.encode()))
    for name in ("vm-press", "letters/ascii91", "beep", "unknown"):
        (sounds / f"{name}.wav").write_bytes(name.encode())
    voice.main(tmp_path / "root", tmp_path / "voice")
    lines = [json.loads(line) for line in (tmp_path / "voice" / "texts.jsonl").read_text().splitlines()]
    assert lines == [
        {"audio": "letters/ascii91.wav", "text": "left bracket"},
        {"audio": "vm-press.wav", "text": "press one for voice mail or 12 for help"},
    ]
    assert (tmp_path / "voice" / "letters" / "ascii91.wav").read_bytes() == b"letters/ascii91"
    assert len(list((tmp_path / "voice").rglob("*.wav"))) == 2
