"""The medium of codes of sound. It decodes samples to sound, and encodes a user's recording for the model to continue or fill in."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import tyro

from gen.core import Array, Feature, Given, Medium, RunView
from gen.data.audio import sound, to_float
from gen.derived.code_images import CodeImages, read_kept_codec
from gen.errors import UserError, note
from gen.files import read_bytes
from gen.media.audio import SOUND
from gen.media.gap import Gap, parse_gap
from gen.media.prompts import encode_prompts

MAX_BYTES = 2**24
"""Largest size of a recording's file, in bytes. It is bounded because the manifest of the samples holds its content."""


def parse(gap: str) -> Gap:
    """Parses --gap FROM:TO, in seconds. Raises: UserError if the text has another form, or if TO is not after FROM."""
    return parse_gap(gap, "seconds", "0.3:0.6")


@dataclass(frozen=True)
class SoundOptions:
    """Options of samples of sound: texts to speak, and a recording to continue, or to fill a gap of."""

    audio: Path | None = None
    """File of a recording. The samples begin with it and continue it to the length of the model's windows. With --gap, they replace
    a part of it."""
    gap: str | None = None
    """Part of the recording to replace, in seconds: FROM:TO, such as 0.3:0.6, or 0.3: for everything after 0.3 seconds. Masked models
    also read the part after the gap; causal models don't."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to speak, for a model of recordings with texts. Repeat the option for several texts, which samples use in turn. Default:
    texts of validation examples."""
    content: tyro.conf.Suppress[str] = ""
    """Content of the file, in base64, as a manifest keeps it."""

    def __post_init__(self):
        if self.gap is not None and self.audio is None and not self.content:
            raise UserError("--gap needs a recording; give it by --audio FILE")
        if self.gap is not None:
            parse(self.gap)


@dataclass(frozen=True)
class CodeSounds(CodeImages):
    """Shows codes of sound, tokens or latents [n, time, ...], as sound."""

    options: ClassVar[type] = SoundOptions
    shown_as: ClassVar[Medium] = SOUND

    def read_options(self, options: SoundOptions) -> SoundOptions:
        """Returns the options with `content` instead of the file name `audio`. Raises: UserError if the file can't be read."""
        return options if options.audio is None else replace(options, audio=None, content=embed_sound(options.audio))

    def give(self, options: SoundOptions, run: RunView) -> Given:
        """Returns validation examples, and the encoded prompts if any. If a recording is given, adds its codes.

        The codes are "tokens" int32 [1, time, ...], and "known" bool of the same shape: True for tokens to keep.

        Raises: UserError if the recording can't be decoded or is too long, if it is shorter than one code or
        leaves nothing to generate, if the run's codes are latents, or if the run can't read prompts.
        """
        reference = {**run.reference(), **encode_prompts(options.prompt, run)}
        if not options.content:
            return Given(reference)
        codec = read_kept_codec(run)
        if codec.coder.codes.vocab is None:
            raise UserError("--audio needs a model of codes that are tokens, and the run models latents; leave it out")
        x = read_recording(base64.b64decode(options.content), codec.coder.example)
        kept = find_kept(len(x), codec.coder.example, codec.coder.codes.shape[0], options.gap)
        # The tokenizer encodes whole windows only. The codes of the silence at the end are not kept.
        padded = np.pad(x, ((0, codec.coder.example.shape[0] - len(x)), (0, 0)))
        tokens: Array = jax.jit(codec.encode)(to_float(padded)[None])
        # A position in time may have several tokens. All of them are kept, or none.
        known = np.broadcast_to(kept.reshape(1, -1, *[1] * (tokens.ndim - 2)), tokens.shape)
        arrays: Mapping[str, np.ndarray] = {"tokens": np.asarray(tokens), "known": known}
        return Given({**reference, **arrays})


CODE_SOUNDS = CodeSounds()
"""The medium of codes of sound."""


def embed_sound(file: Path) -> str:
    """Returns the content of a file, in base64. Raises: UserError if it can't be read or is empty."""
    try:
        content = read_bytes(file, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"--audio {file}: No such file or directory") from None
    # Empty content means that the option was not given, so it would be ignored without an error.
    if not content:
        raise UserError(f"--audio {file} is empty: it has no bytes")
    return base64.b64encode(content).decode()


def read_recording(content: bytes, audio: Feature) -> np.ndarray:
    """Decodes a sound file to int16 [n, channels]. It is resampled to the rate and the channels of the feature `audio`.

    Raises: UserError if it can't be decoded, or has more samples than the feature.
    """
    samples, channels = audio.shape
    assert audio.sample_rate is not None
    try:
        found = sound.read_header(content).rate
        x = sound.decode(content, audio.sample_rate, channels)
    except ValueError as error:
        raise UserError(f"--audio: the file {error}") from None
    if found != audio.sample_rate:
        note(f"--audio: resampled from {found:,} Hz to {audio.sample_rate:,} Hz")
    if len(x) > samples:
        seconds = (n / audio.sample_rate for n in (len(x), samples))
        raise UserError(
            "--audio: the file has {:.3g} s, and the model's windows have {:.3g} s; cut it".format(*seconds)
        )
    return x


def find_kept(n: int, audio: Feature, places: int, gap: str | None) -> np.ndarray:
    """Returns which codes of a recording to keep, bool [places], for each position in time.

    A position covers audio.shape[0] / places samples. It is kept if all of them are in the recording, and none is
    in the gap.

    n: samples of the recording. audio: feature of a whole window. places: number of positions in time of a window's
    codes. gap: --gap, FROM:TO in seconds. None: no gap.

    Raises: UserError if the recording is shorter than one position, or if all positions would be kept.
    """
    rate = audio.sample_rate or 1
    edges = np.arange(places + 1) * audio.shape[0] / places
    kept = edges[1:] <= n
    if not kept.any():
        raise UserError(
            f"--audio: the file has {n / rate:.3g} s, and a code has {edges[1] / rate:.3g} s; give a longer one"
        )
    if gap is not None:
        start, end = (seconds * rate for seconds in parse(gap))
        # A position whose samples overlap with the gap, even partly, is generated again.
        kept &= (edges[1:] <= start) | (edges[:-1] >= end)
    if kept.all():
        raise UserError(
            "--audio fills the model's window, so nothing is left to write; give a --gap, or a shorter file"
        )
    return kept
