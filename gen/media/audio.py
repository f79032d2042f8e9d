"""The medium of sound: WAV files, a sheet of waveforms and log-mel spectrograms, and a page with players."""

from __future__ import annotations

import html
import io
import math
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import numpy as np
from PIL import Image, ImageDraw

from gen.core import Medium, RunView, Shown
from gen.data.audio import to_integers
from gen.families.labels import class_names
from gen.media.arrays import FILES, name_samples
from gen.networks.spectra import Mel, log_mels

# Sizes on the sheet, in pixels: width of a sample, height of its waveform and of its spectrogram, and the empty border.
WIDTH, WAVE_HEIGHT, MEL_HEIGHT, BORDER = 160, 40, 60, 4
MAX_COLUMNS = 8
"""Maximum number of samples side by side, unless the samples are in rows already."""
MAX_DRAWN = 64
"""Maximum number of samples on the sheet."""
MAX_PLAYED = 16
"""Maximum number of samples in samples.wav."""
PAUSE = 0.25
"""Seconds of silence between two samples in samples.wav."""
MEL_SECONDS = 0.032
"""Minimum length of the frames of spectrograms, in seconds. Frames of 32 ms resolve the harmonics of a voice."""
RANGE = 8.0
"""Range of log amplitudes in a spectrogram, in nats: from the maximum of the sample (black) down to white. 8 nats are
70 dB."""


@dataclass(frozen=True)
class Sounds(Medium):
    """Shows generated waveforms as a sheet and as WAV files.

    A generated waveform is float32 [T, channels] in [-1, 1]. They come as [n, T, channels], or in rows [rows, columns,
    T, channels].
    """

    features: ClassVar[Mapping[str, int]] = {"audio": 2}

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns samples.png, a sheet, and samples.wav, the first MAX_PLAYED waveforms one after the other.

        If `options` is not None, also returns each waveform as a WAV file in the folder samples, and samples.html, a
        page that plays them.
        """
        made, rate = np.asarray(samples["samples"]), run.spec["audio"].sample_rate or 1
        # The samples of a model that diverges have NaN and infinities. The sheet must not fail then.
        audio = np.nan_to_num(made.reshape(-1, *run.spec["audio"].shape), posinf=1.0, neginf=-1.0)
        labels, names = samples.get("labels"), class_names(run.spec)
        columns = made.shape[1] if made.ndim == 4 else min(MAX_COLUMNS, len(audio))
        first = audio[:MAX_PLAYED]
        pauses = np.pad(first, ((0, 0), (0, round(PAUSE * rate)), (0, 0)))
        files = {"samples.png": draw_sheet(audio[:MAX_DRAWN], rate, columns)}
        files["samples.wav"] = encode_wav(np.concatenate(pauses), rate)
        if options is None:
            return Shown(files)
        stems = name_samples(len(audio), labels, names)
        files |= {f"{FILES}/{stem}.wav": encode_wav(x, rate) for stem, x in zip(stems, audio, strict=True)}
        files["samples.html"] = make_page(stems, columns, "waveforms and log-mel spectrograms").encode()
        arrays = {"label_names": np.array(names)} if names and labels is not None else {}
        return Shown(files, arrays)


SOUND = Sounds()


def encode_wav(x: np.ndarray, rate: int) -> bytes:
    """Returns the content of a WAV file with 16-bit samples. x: float [T, channels] in [-1, 1]. rate: in Hz."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(x.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        # WAV is little-endian.
        file.writeframes(to_integers(x).astype("<i2").tobytes())
    return content.getvalue()


def draw_sheet(audio: np.ndarray, rate: int, columns: int) -> bytes:
    """Returns a PNG of a sheet of waveforms, each above its log-mel spectrogram. Channels are averaged.

    audio: float [n, T, channels] in [-1, 1]. rate: in Hz. columns: number of waveforms side by side.
    """
    rows, height = math.ceil(len(audio) / columns), WAVE_HEIGHT + MEL_HEIGHT + BORDER
    sheet = Image.new("L", (columns * (WIDTH + BORDER) + BORDER, rows * height + BORDER), 255)
    draw = ImageDraw.Draw(sheet)
    # The sheet shows the mean over the channels.
    mono = audio.mean(2).astype(np.float32)
    for i, (x, mel) in enumerate(zip(mono, np.asarray(spectrograms(mono, rate)), strict=True)):
        left, top = BORDER + i % columns * (WIDTH + BORDER), BORDER + i // columns * height
        draw_waveform(draw, x, left, top)
        # Frames from left to right, and low frequencies at the bottom.
        shade = np.clip(1 - (mel.T[::-1] - mel.max() + RANGE) / RANGE, 0, 1)
        picture = Image.fromarray(np.rint(255 * shade).astype(np.uint8)).resize((WIDTH, MEL_HEIGHT))
        sheet.paste(picture, (left, top + WAVE_HEIGHT))
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    return content.getvalue()


def draw_waveform(draw: ImageDraw.ImageDraw, x: np.ndarray, left: int, top: int) -> None:
    """Draws a waveform x, float [T] in [-1, 1], into a rectangle of WIDTH x WAVE_HEIGHT pixels.

    In each column of pixels, a line goes from the lowest to the highest value of the waveform.

    draw: draws on the sheet. left, top: corner of the rectangle on the sheet, in pixels.
    """
    edges = np.linspace(0, len(x), WIDTH + 1).astype(int)
    for column, (start, end) in enumerate(zip(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1), strict=True)):
        part = np.clip(x[start:end], -1, 1) if start < len(x) else np.zeros(1)
        low, high = (top + round((1 - float(v)) / 2 * (WAVE_HEIGHT - 1)) for v in (part.min(), part.max()))
        draw.line([(left + column, high), (left + column, low)], fill=64)


def spectrograms(x: np.ndarray, rate: int) -> np.ndarray:
    """Returns log-mel spectrograms, float32 [n, frames, bands] in nats, of waveforms float32 [n, T]. rate: in Hz."""
    # Rounded up to a power of two, for the FFT.
    window = 2 ** math.ceil(math.log2(max(16, MEL_SECONDS * rate)))
    return np.asarray(_log_mels(rate, Mel(window=window, hop=window // 4, bands=min(40, window // 8)))(x))


@lru_cache
def _log_mels(rate: int, mel: Mel) -> Any:
    return jax.jit(lambda x: log_mels(x, rate, mel))


def make_page(stems: Sequence[str], columns: int, sheet: str) -> str:
    """Returns an HTML page with samples.png, and a player for each file samples/STEM.wav of `stems`.

    columns: number of players side by side. sheet: description of samples.png, for readers who can't see it.
    """
    players = [
        f'<figure><audio controls preload="none" src="{FILES}/{html.escape(stem)}.wav"></audio>'
        f"<figcaption>{html.escape(stem)}</figcaption></figure>"
        for stem in stems
    ]
    style = f"main {{ display: grid; grid-template-columns: repeat({columns}, auto) }} figure {{ margin: 4px }}"
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>samples</title>',
            f"<style>body {{ font-family: sans-serif }} audio {{ width: 160px }} {style}</style></head><body>",
            f'<img src="samples.png" alt="{html.escape(sheet)}"><main>',
            *players,
            "</main></body></html>\n",
        ]
    )
