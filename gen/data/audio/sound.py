"""Decodes sound files with libsndfile, and resamples them with SoX's resampler. Both are optional packages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from gen.data.audio.preprocess import LEVELS, to_integers
from gen.errors import UserError
from gen.files import check_regular

ENDINGS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"}
CODECS = {".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3"}
"""{ending: name of the format in libsndfile}, for formats that some builds of libsndfile can't read."""
MAX_SAMPLES = 2**28
"""Largest number of samples of a file, over all channels: 93 minutes of mono at 48 kHz. Larger files would not fit into the memory of a
small machine."""
MAX_AMPLITUDE = 4.0
"""Largest amplitude of a file. Decoded sound may exceed 1 a little. Much larger numbers have another unit, such as 16-bit integers that
were stored as floats."""

SAMPLE_CHUNKS: dict[bytes, tuple[bytes, Literal["little", "big"]]] = {
    b"RIFF": (b"data", "little"),
    b"FORM": (b"SSND", "big"),
}
"""{first bytes of a WAV or AIFF file: (name of the chunk with its samples, order of the bytes in its length)}."""
UNKNOWN_LENGTH = 0x7FFF0000
"""A chunk length of at least this number of bytes means "until the end of the file". Programs that write to a pipe don't know the length
when they write it."""

MAX_FIRST_FRAME = 1441
"""Bytes of the longest frame of an MP3."""


class Header(NamedTuple):
    """Facts of a sound file that can be read without decoding it."""

    frames: int
    """Number of samples of each channel."""
    rate: int
    """Samples per second."""
    channels: int


def load_soundfile() -> ModuleType:
    """Returns the package soundfile. Raises: UserError if it is not installed, or can't find libsndfile."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise UserError(f"sound files need soundfile and soxr ({error}): pip install 'gen[audio]'") from None
    return soundfile


def versions() -> str:
    """Returns the versions of the decoder and the resampler. Other versions may decode the same file to different samples."""
    soundfile, soxr = load_soundfile(), load_soxr()
    return f"soundfile {soundfile.__version__} {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"


def load_soxr() -> ModuleType:
    """Returns the package soxr. Raises: UserError if it is not installed."""
    try:
        import soxr
    except ImportError as error:
        raise UserError(f"sound files need soundfile and soxr ({error}): pip install 'gen[audio]'") from None
    return soxr


def read_header(source: Path | bytes) -> Header:
    """Reads the length, the sample rate and the channels of a sound file. source: its path, or its content.

    Raises: ValueError with the reason if it can't be read.
    """
    with open_sound(source) as file:
        # libsndfile's estimate may be too long, and the last window would end with silence. So the file is decoded to count.
        frames = len(file.read(always_2d=True)) if has_estimated_length(source, file) else file.frames
        return Header(frames, file.samplerate, file.channels)


def decode(source: Path | bytes, rate: int, channels: int) -> np.ndarray:
    """Returns the samples of a sound file as int16 [n, channels], resampled to `rate`. source: its path, or its content.

    Mono is the mean of the file's channels. A mono file gives two equal stereo channels.

    Raises: ValueError with the reason if the file can't be read, is cut off, is silent, or has samples that are not finite or far too
    loud.
    """
    with open_sound(source) as file:
        x = file.read(dtype="float32", always_2d=True)
        found = file.samplerate
        if len(x) < file.frames and not has_estimated_length(source, file):
            raise ValueError(cut_off(f"{len(x):,} of {file.frames:,} samples"))
    check_samples(x)
    x = mix(x, channels)
    # The resampler removes frequencies that are too high for the new rate. Dropping samples without a filter would cause aliasing.
    if found != rate:
        x = load_soxr().resample(x, found, rate)
    return to_integers(x)


def check_samples(x: np.ndarray) -> None:
    """Raises: ValueError with the reason if samples [n, channels] are empty, not finite, silent or too loud."""
    if not x.size:
        raise ValueError("is empty: it has no samples")
    if not np.isfinite(x).all():
        raise ValueError("has samples that are NaN or infinite")
    loudest = float(np.abs(x).max())
    if loudest < 0.5 / LEVELS:
        raise ValueError("is silent: all of its samples are 0")
    if loudest > MAX_AMPLITUDE:
        raise ValueError(f"has amplitudes up to {loudest:.4g}, and sound lies in [-1, 1]: normalize it")


def mix(x: np.ndarray, channels: int) -> np.ndarray:
    """Converts samples [n, C] to this number of channels. Raises: ValueError if `channels` is 2 and C is neither 1 nor 2."""
    if x.shape[1] == channels:
        return x
    # The mean and not the sum, so that the loudness of two equal channels does not change.
    if channels == 1:
        return x.mean(1, keepdims=True)
    if x.shape[1] == 1:
        return x.repeat(channels, axis=1)
    raise ValueError(
        f"has {x.shape[1]} channels, which can't be mixed down to {channels}: make it stereo, or train with --data.channels 1"
    )


def check_whole(content: BinaryIO, size: int) -> None:
    """Checks that a WAV or AIFF file has all the samples that its header counts. libsndfile does not report a file that is cut off.

    content: the file, at its beginning. size: bytes of the file. Raises: ValueError if it is cut off.
    """
    kind = content.read(12)[:4]
    if kind not in SAMPLE_CHUNKS:
        return
    name, order = SAMPLE_CHUNKS[kind]
    # The file is a list of chunks: a name of 4 bytes, a length of 4 bytes, and this many bytes, filled up to an even number.
    while len(head := content.read(8)) == 8:
        length, at = int.from_bytes(head[4:], order), content.tell()
        if head[:4] == name:
            if at + length > size and length < UNKNOWN_LENGTH:
                raise ValueError(cut_off(f"{size - at:,} of {length:,} bytes of its samples"))
            return
        content.seek(at + length + length % 2)


def has_estimated_length(source: Path | bytes, file: Any) -> bool:
    """Returns whether the number of samples of an open file is an estimate.

    libsndfile estimates it for an MP3 whose first frame doesn't hold the number of frames. file: a soundfile.SoundFile.
    """
    if file.format != "MP3":
        return False
    with open_bytes(source) as content:
        start = content.read(10)
        # An MP3 may begin with ID3 tags, such as the title. Their length is stored with 7 bits in each byte.
        tags = 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(start[6:])) if start[:3] == b"ID3" else 0
        content.seek(tags)
        first = content.read(MAX_FIRST_FRAME)
    return not any(name in first for name in (b"Xing", b"Info", b"VBRI"))


def open_bytes(source: Path | bytes) -> BinaryIO:
    """Opens a file for reading, given its path or its content."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def cut_off(found: str) -> str:
    """Returns the reason for an error about a file that is shorter than its header says. found: the part that the file has, as text."""
    return f"is cut off: it has {found}; copy it again"


@contextmanager
def open_sound(source: Path | bytes) -> Iterator[Any]:
    """Yields the open file, a soundfile.SoundFile. source: its path or its content.

    Raises: ValueError with the reason for anything that goes wrong in the block.
    """
    soundfile = load_soundfile()
    try:
        # Since the listing, another program may have replaced the file by a pipe, which could block for ever.
        size = len(source) if isinstance(source, bytes) else check_regular(source)
        if not size:
            raise ValueError("is empty: it has no bytes")
        with open_bytes(source) as content:
            check_whole(content, size)
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if file.frames == 0:
                raise ValueError("is empty: it has no samples")
            # A damaged header may claim any length, and decoding allocates memory for that length.
            if (claimed := file.frames * file.channels) > MAX_SAMPLES:
                raise ValueError(f"has {claimed:,} samples, and at most {MAX_SAMPLES:,} can be read: cut it into parts")
            yield file
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        # Broken files make libsndfile raise several kinds of errors.
        codec = CODECS.get(source.suffix.lower(), "WAV") if isinstance(source, Path) else "WAV"
        if codec not in soundfile.available_formats():
            raise ValueError(f"is {codec}, which this libsndfile can't read: pip install -U soundfile") from error
        reason = str(error).rpartition(": ")[2]
        raise ValueError(f"can't be read as sound ({reason.rstrip('.')})") from error
