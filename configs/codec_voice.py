"""The codec of codec_speech for the recordings of one speaker, 3 s each: 2.9 kbit/s. Not scored yet.

docs/sound.md says how to make the folder `voice` from a free set of 553 recordings. Then: python train.py codec_voice
"""

from dataclasses import replace

from gen.config import load
from gen.data.audio import Transcribed

codec = load("codec_speech")
data = Transcribed(name="captions:voice", rate=8000, seconds=3.0, tokenizer="character", length=48, batch_size=8)
config = replace(codec, data=data, steps=10_000)
