"""Spectra of sound, as pure functions: short-time Fourier transforms and back, mel filters, log-mels, and Griffin-Lim.

Waveforms are [..., T], with any leading axes. Frames are as in librosa (McFee et al. 2015): frame f is centred on sample f * hop, and
samples outside of the waveform are 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Key
from gen.errors import UserError, check_not_negative, check_positive
from gen.networks.kernels.axes import overlap_add
from gen.networks.kernels.sums import as_row

LINEAR_HZ, LINEAR_TOP = 200 / 3, 1000.0
"""Slaney's mel scale is linear up to 1000 Hz: 200 / 3 Hz per mel."""
LOG_STEP = math.log(6.4) / 27
"""Above 1000 Hz the mel scale is logarithmic: 27 mels multiply the frequency by 6.4."""
MOMENTUM = 0.99
"""Momentum of the fast Griffin-Lim algorithm. Perraudin et al. 2013, section 4."""
MEL_MOMENTUM = 0.8
"""Momentum of `correct_mels`. On speech, 0.5 and 0.95 were worse after 16 and 28 rounds, and 1.2 diverged."""
TINY = 1e-8
"""Lower bound on denominators, so that no division is by 0."""


@dataclass(frozen=True)
class Mel:
    """Settings of log-mel spectrograms: log amplitudes in frequency bands that are equally wide on the mel scale."""

    window: int = 256
    """Number of samples in a frame, even and a multiple of `hop`. Each frame is multiplied by a Hann window."""
    hop: int = 64
    """Number of samples from the start of a frame to the start of the next."""
    bands: int = 40
    """Number of mel bands."""
    low: float = 0.0
    """Lower end of the first band, in Hz."""
    high: float | None = None
    """Upper end of the last band, in Hz. None: half of the sample rate."""
    floor: float = 1e-5
    """Lower bound on the amplitude in a band, so that the log of silence is finite."""

    def __post_init__(self):
        check_positive(window=self.window, hop=self.hop, bands=self.bands, floor=self.floor)
        check_not_negative(low=self.low)
        check_positive(**{} if self.high is None else {"high": self.high})
        if self.window % self.hop or self.window % 2:
            raise UserError(
                f"window is {self.window} and hop is {self.hop}; the window must be even, and a multiple of the hop, such as "
                f"{-(-self.window // (2 * self.hop)) * 2 * self.hop}"
            )

    @property
    def bins(self) -> int:
        """Number of frequencies in the Fourier transform of a frame: window / 2 + 1."""
        return self.window // 2 + 1

    def frames(self, samples: int) -> int:
        """Returns the number of frames of a waveform of this many samples."""
        return 1 + samples // self.hop


def hann(window: int) -> np.ndarray:
    """Returns the periodic Hann window, float64 [window]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


def stft(x: Array, window: int, hop: int) -> Array:
    """Returns the short-time Fourier transform of waveforms x [..., T], complex [..., 1 + T // hop, window // 2 + 1].

    window: samples in a frame, an even number and a multiple of hop. Frames are multiplied by a Hann window. hop:
    samples from the start of a frame to the start of the next.
    """
    count, parts = 1 + x.shape[-1] // hop, window // hop
    # `total` is the length that the frames cover. Samples after the last frame are cut off.
    before, total = window // 2, (count - 1 + parts) * hop
    after = max(0, total - before - x.shape[-1])
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])[..., :total]
    # Frames are joined from blocks of `hop` samples. With a gather, the gradient would be a scatter, which is slow.
    blocks = padded.reshape(*x.shape[:-1], -1, hop)
    frames = jnp.concatenate([blocks[..., i : i + count, :] for i in range(parts)], -1)
    return jnp.fft.rfft(frames * as_row(jnp.asarray(hann(window), x.dtype), frames.ndim))


def istft(spectrum: Array, hop: int, length: int) -> Array:
    """Returns the waveforms [..., length] whose `stft` is nearest, in least squares, to a spectrum [..., frames, bins].

    hop: samples from the start of a frame to the start of the next. The inverse transforms of the frames are weighted
    by the Hann window, added up, and divided by the sum of the squared windows. Griffin and Lim 1984, equation 6.
    """
    window = 2 * (spectrum.shape[-1] - 1)
    frames = jnp.fft.irfft(spectrum, window)
    weights = hann(window)
    added = overlap_add(frames * as_row(jnp.asarray(weights, frames.dtype), frames.ndim), hop)
    squares = np.zeros(added.shape[-1])
    for f in range(spectrum.shape[-2]):
        squares[f * hop : f * hop + window] += weights**2
    # Samples that no window covers are 0.
    scale = np.where(squares > TINY, 1 / np.maximum(squares, TINY), 0)
    # `stft` puts half a window of zeros before the waveform, which is cut off here.
    x = (added * as_row(jnp.asarray(scale, added.dtype), added.ndim))[..., window // 2 :][..., :length]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])


def mel_filters(rate: int, mel: Mel) -> np.ndarray:
    """Returns triangular filters of equal area, float64 [bins, bands]. Slaney 1998, as in librosa.filters.mel.

    rate: samples per second. Raises: UserError if the bands lie outside of [0, rate / 2].
    """
    high = mel.high or rate / 2
    if not 0 <= mel.low < high <= rate / 2:
        raise UserError(
            f"mel bands from {mel.low:g} to {high:g} Hz do not lie in [0, {rate / 2:g}]; change low or high"
        )
    # Each band goes from the centre of the band before it to the centre of the band after it.
    edges = to_hertz(np.linspace(to_mel(mel.low), to_mel(high), mel.bands + 2))
    frequencies = np.arange(mel.bins) * rate / mel.window
    # A triangle is the minimum of a rising and a falling line.
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def to_mel(hertz: float) -> float:
    """Returns the number of mels of a frequency in Hz, on Slaney's scale."""
    if hertz < LINEAR_TOP:
        return hertz / LINEAR_HZ
    return LINEAR_TOP / LINEAR_HZ + math.log(hertz / LINEAR_TOP) / LOG_STEP


def to_hertz(mels: np.ndarray) -> np.ndarray:
    """Returns the frequencies in Hz of numbers of mels, on Slaney's scale."""
    top = LINEAR_TOP / LINEAR_HZ
    return np.where(mels < top, mels * LINEAR_HZ, LINEAR_TOP * np.exp(LOG_STEP * (mels - top)))


def magnitude(spectrum: Array) -> Array:
    """Returns |spectrum|, with a gradient that is finite even where the spectrum is 0."""
    square = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    positive = square > 0
    # The inner `where` keeps the gradient of sqrt finite in the branch that the outer `where` does not take.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def mels(x: Array, rate: int, mel: Mel) -> Array:
    """Returns the amplitudes of waveforms x [..., T] in mel bands, [..., frames, bands]. rate: samples per second.

    Equal to librosa.feature.melspectrogram(y=x, sr=rate, n_fft=window, hop_length=hop, n_mels=bands, power=1), but with frames
    before bands.
    """
    return to_bands(stft(x, mel.window, mel.hop), mel_filters(rate, mel))


def to_bands(spectrum: Array, filters: np.ndarray) -> Array:
    """Returns the amplitudes of spectra [..., frames, bins] in mel bands, [..., frames, bands]. filters: see `mel_filters`."""
    amplitudes = magnitude(spectrum)
    return jnp.matmul(amplitudes, jnp.asarray(filters, amplitudes.dtype), precision="highest")


def log_mels(x: Array, rate: int, mel: Mel) -> Array:
    """Returns log(max(mel.floor, amplitude)) in mel bands of waveforms x [..., T], [..., frames, bands]. rate: samples per second."""
    return jnp.log(jnp.maximum(mels(x, rate, mel), mel.floor))


def from_log_mels(log_mel: Array, rate: int, mel: Mel) -> Array:
    """Returns magnitudes of spectra [..., frames, bins] whose log-mels are near `log_mel`, [..., frames, bands].

    The pseudo-inverse of the filters gives the least-squares solution. Negative magnitudes become 0. rate: samples per
    second.
    """
    # numpy: the pseudo-inverse is a constant of the compiled program.
    inverse = jnp.asarray(np.linalg.pinv(mel_filters(rate, mel)), log_mel.dtype)
    return jnp.maximum(jnp.matmul(jnp.exp(log_mel), inverse, precision="highest"), 0)


def correct_mels(x: Array, log_mel: Array, rate: int, mel: Mel, rounds: int) -> Array:
    """Returns sound near x whose log-mels are nearer to `log_mel`.

    Each round divides the wanted amplitude of each mel band by the amplitude that x has, and multiplies the spectrum of
    x in this band by the ratio. The phases of the spectrum do not change. Griffin and Lim 1984 iterate in the same way,
    with the magnitude of each frequency instead of each band. The momentum is as in Perraudin et al. 2013.

    x: waveforms [..., T]; log_mel: wanted log-mels [..., frames, bands]; rate: samples per second; rounds: number of
    rounds.
    """
    filters = mel_filters(rate, mel)
    shares = jnp.asarray((filters / np.maximum(filters.sum(1, keepdims=True), TINY)).T, x.dtype)

    def correct(x: Array) -> Array:
        spectrum = stft(x, mel.window, mel.hop)
        missing = log_mel - jnp.log(jnp.maximum(to_bands(spectrum, filters), mel.floor))
        # The log of the ratio at a frequency is the mean over its bands, weighted by their filters there.
        ratio = jnp.exp(jnp.matmul(missing, shares, precision="highest"))
        return istft(spectrum * ratio, mel.hop, x.shape[-1])

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        now, before = carry
        return (correct(now + MEL_MOMENTUM * (now - before)), now), None

    (x, _), _ = jax.lax.scan(step, (x, x), None, rounds)
    return x


def griffin_lim(magnitudes: Array, hop: int, length: int, key: Key, iterations: int = 60) -> Array:
    """Returns waveforms [..., length] whose spectra have magnitudes near `magnitudes`, [..., frames, bins].

    hop: samples from the start of a frame to the start of the next. key: draws the phases of the first iteration.
    Griffin and Lim 1984, section III, with the momentum of Perraudin et al. 2013, algorithm 2.
    """
    window = 2 * (magnitudes.shape[-1] - 1)
    angle = jax.random.uniform(key, magnitudes.shape, magnitudes.dtype, 0, 2 * jnp.pi)
    consistent = partial(_project, hop=hop, length=length, window=window)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        phase, before = carry
        new = consistent(magnitudes * phase)
        moved = new + MOMENTUM * (new - before)
        return (moved / jnp.maximum(jnp.abs(moved), TINY), new), None

    phase = jnp.exp(1j * angle)
    # No spectrum comes before the first round. With zeros, momentum only scales the new one, which `step` normalizes.
    (phase, _), _ = jax.lax.scan(step, (phase, jnp.zeros_like(phase)), None, iterations)
    return istft(magnitudes * phase, hop, length)


def _project(spectrum: Array, hop: int, length: int, window: int) -> Array:
    """Returns the nearest spectrum, in least squares, that is the `stft` of a waveform of `length` samples."""
    return stft(istft(spectrum, hop, length), window, hop)
