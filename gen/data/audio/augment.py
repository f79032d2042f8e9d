"""Random changes of training recordings: a delay, the loudness, and the speed. Each epoch hears other variants of a recording."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Key
from gen.errors import UserError, check_not_negative

TAPS = 8
"""The sound at a point in time is interpolated from this number of samples before it, and the same number after it."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training window, drawn uniformly. The default changes nothing."""

    delay: float = 0.0
    """Longest delay in seconds. The window then begins with silence, and its end is cut off."""
    gain: float = 0.0
    """Largest change of the loudness in either direction, in dB. Samples outside of [-1, 1] are then clipped."""
    speed: float = 0.0
    """Largest change of the speed, below 1. 0.1: a window is played 0.9 to 1.1 times as fast, so its pitch changes too (Ko et al.
    2015)."""

    def __post_init__(self):
        check_not_negative(**{f"augment.{name}": value for name, value in asdict(self).items()})
        if self.speed >= 1:
            raise UserError(f"augment.speed is {self.speed:g}; it must be below 1, such as 0.1")


def augment(x: Array, augmentation: Augmentation, rate: int, key: Key, rows: Array) -> Array:
    """Returns sound x [B, T, C] in [-1, 1] with random changes, which depend on (key, row) alone.

    rate: samples per second. rows: [B], the batch's "row".
    """
    limits = jnp.array([augmentation.delay * rate, augmentation.gain, augmentation.speed], x.dtype)
    lowest = jnp.array([0.0, -1.0, -1.0], x.dtype)

    def draw(key: Key) -> Array:
        return jax.random.uniform(key, (3,), x.dtype, lowest) * limits

    delay, gain, speed = axis.per_example(draw, key, rows).T
    if augmentation.delay or augmentation.speed:
        x = jax.vmap(play)(x, jnp.floor(delay), 1 + speed)
    return jnp.clip(x * 10 ** (gain / 20)[:, None, None], -1, 1)


def play(x: Array, delay: Array, speed: Array) -> Array:
    """Returns sound [T, C] that begins after `delay` samples of silence and is x [T, C], played `speed` times as fast.

    Between samples, it is interpolated by a sinc with a Hann window. If it is played faster, frequencies that would alias are
    removed. A delay by whole samples at speed 1 is exact up to rounding.
    """
    at = (jnp.arange(len(x)) - delay) * speed
    # The samples around each point, [T, 2 TAPS].
    near = jnp.floor(at)[:, None] + jnp.arange(1 - TAPS, TAPS + 1)[None]
    distance = at[:, None] - near
    band = jnp.minimum(1, 1 / speed)
    weight = band * jnp.sinc(band * distance) * jnp.square(jnp.cos(jnp.pi / 2 * distance / TAPS))
    inside = (near >= 0) & (near < len(x))
    # Points outside of x are clipped only to be valid indices. `inside` gives them the weight 0.
    index = jnp.clip(near, 0, len(x) - 1).astype(jnp.int32)
    return jnp.einsum("tk,tkc->tc", jnp.where(inside, weight, 0), x[index], precision="highest")
