"""Quality of reconstructions: PSNR and structural similarity (SSIM) of images; mel distance and SI-SDR of sound.

Examples are [B, *axes, C] in [-1, 1].
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from gen.core import Array, Feature
from gen.families.tokenizer.spectral import MEASURED_SECONDS, mel_distance, si_sdr

RANGE = 2.0
"""Difference between the largest and the smallest possible pixel value."""
MIN_ERROR = 1e-10
"""Lower bound on the mean squared error, so that equal images have a PSNR of 106 dB instead of infinity."""
WINDOW, DEVIATION = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window, in pixels."""
K1, K2 = 0.01, 0.03
"""Constants that keep SSIM finite where the means or the variances of both images are 0."""


CODE_PROTOCOL = {
    "codes_used": {"codes": "different ones in the split, divided by the most possible"},
    "code_perplexity": {"codes": "exp of the entropy over the split"},
}
PROTOCOL = {
    "psnr": {"range": "[-1, 1]", "mean": "over images"},
    "ssim": {"window": "11x11 Gaussian of deviation 1.5, inside of the image", "range": "[-1, 1]"},
    **CODE_PROTOCOL,
}
"""How the metrics of a held-out split of images are estimated."""
SOUND_PROTOCOL = {
    "si_sdr": {"unit": "dB", "mean": "over windows"},
    "mel_distance": {
        "unit": "nats",
        "log_mels": f"log(max(1e-5, amplitude)) of Slaney's bands, frames of {MEASURED_SECONDS} s or more, of a power of 2",
        "mean": "absolute difference over bands, frames and windows",
    },
    "bits_per_second": {"codes": "log2 of their number, times their number per second"},
    **CODE_PROTOCOL,
}
"""How the metrics of a held-out split of sound are estimated."""
CODE_METRICS = (*CODE_PROTOCOL, "bits_per_second")
"""Names of the metrics that are only reported if the codes are tokens."""


def measure_quality(x: Array, y: Array, example: Feature, codes: Feature) -> dict[str, Array]:
    """Returns the quality of reconstructions y of examples x [B, *axes, C], {metric: [B]}.

    For images: "psnr" in dB and "ssim". For sound: "si_sdr" in dB, "mel_distance" in nats, and if codes are tokens,
    "bits_per_second".

    example, codes: the features of one example, and of its codes.
    """
    if example.sample_rate is None:
        return {"psnr": psnr(x, y), "ssim": ssim(x, y)}
    found = {"si_sdr": si_sdr(x, y), "mel_distance": mel_distance(x, y, example.sample_rate)}
    if codes.vocab:
        bits = math.prod(codes.shape) * math.log2(codes.vocab)
        found["bits_per_second"] = jnp.full(len(x), bits * example.sample_rate / example.shape[0], x.dtype)
    return found


def psnr(x: Array, y: Array) -> Array:
    """Returns the peak signal-to-noise ratio of each example in dB, [B]: 10 log10(RANGE^2 / mean squared error).

    x, y: examples and their reconstructions, [B, *axes, C] in [-1, 1].
    """
    error = jnp.square(x - y).mean(range(1, x.ndim))
    return 10 * jnp.log10(RANGE**2 / jnp.maximum(error, MIN_ERROR))


def ssim(x: Array, y: Array) -> Array:
    """Returns the mean structural similarity [B] of x and y, [B, *axes, C] in [-1, 1] each. It is 1 for equal examples.

    The mean is over channels and over all positions where the window fits. The window has 11 pixels, or fewer on a
    shorter axis. Wang et al. 2004, equation 13, with the constants and the window of section 3.C.
    """
    mean_x, mean_y = blur(x), blur(y)
    # Rounding must not make a variance negative.
    variance_x = jnp.maximum(blur(x * x) - mean_x**2, 0)
    variance_y = jnp.maximum(blur(y * y) - mean_y**2, 0)
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return (numerator / denominator).mean(range(1, x.ndim))


def blur(x: Array) -> Array:
    """Returns the Gaussian average of each window inside of x [B, *axes, C]. An axis of size n gets size n - side + 1.

    For the side of the window, see `window_matrix`.
    """
    # The window is separable, so axes are blurred one after the other. Each blur is a matrix product, which is fast.
    for axis in range(1, x.ndim - 1):
        windows = jnp.asarray(window_matrix(x.shape[axis]), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(windows, x, ((1,), (axis,)), precision="highest"), 0, axis)
    return x


def window_matrix(size: int) -> np.ndarray:
    """Returns the matrix that blurs an axis of this size, float64 [size - side + 1, size].

    The side of the window is WINDOW, or the largest odd number up to `size` if this is smaller.
    """
    side = min(WINDOW, size - (size + 1) % 2)
    weights = np.exp(-np.square(np.arange(side) - side // 2) / (2 * DEVIATION**2))
    starts = np.arange(size - side + 1)
    matrix = np.zeros((len(starts), size))
    matrix[starts[:, None], starts[:, None] + np.arange(side)] = weights / weights.sum()
    return matrix
