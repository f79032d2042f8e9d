"""Augmented recordings: exact delays and loudness, pitch that follows the speed, and draws that depend on the key and the row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.data.audio import Audio, Augmentation
from gen.data.audio.augment import augment, play
from gen.errors import UserError

RATE, T = 8000, 4000
KEY = jax.random.key(0)


def sine(hertz: float) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(T) / RATE).astype(np.float32)[:, None]


def change(x: np.ndarray, augmentation: Augmentation, key=KEY, rows=None) -> np.ndarray:
    rows = jnp.arange(len(x)) if rows is None else rows
    return np.asarray(jax.jit(lambda x: augment(x, augmentation, RATE, key, rows))(x))


def test_a_delay_begins_with_silence_and_cuts_off_the_end():
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (6, T, 2)).astype(np.float32)
    delays = []
    for before, after in zip(x, change(x, Augmentation(delay=0.01)), strict=True):
        delay = int((abs(after) > 1e-5).any(1).argmax())
        delays.append(delay)
        np.testing.assert_allclose(after[delay:], before[: T - delay], atol=1e-6)
    assert len(set(delays)) > 3 and max(delays) < 80


def test_the_loudness_changes_by_at_most_the_gain_and_is_clipped():
    x = np.full((200, 10, 1), 0.25, np.float32)
    decibels = 20 * np.log10(change(x, Augmentation(gain=6.0))[:, 0, 0] / 0.25)
    assert -6.001 < decibels.min() < -5 and 5 < decibels.max() < 6.001
    assert abs(decibels.mean()) < 0.8
    assert change(4 * x, Augmentation(gain=6.0)).max() == 1


@pytest.mark.parametrize("speed", [0.85, 1.0, 1.15])
def test_the_pitch_follows_the_speed(speed):
    played = np.asarray(jax.jit(play)(sine(1000.0), jnp.float32(0), jnp.float32(speed)))
    n = int(T / max(speed, 1)) - 20
    expected = sine(1000.0 * speed)[20:n]
    np.testing.assert_allclose(played[20:n], expected, atol=2e-3)


def test_frequencies_that_would_alias_are_removed():
    # 3,900 Hz at twice the speed are 7,800 Hz, which would be heard as 200 Hz.
    played = np.asarray(jax.jit(play)(sine(3900.0), jnp.float32(0), jnp.float32(2)))
    assert abs(played[20 : T // 2 - 20]).max() < 0.02


def test_changes_depend_on_the_key_and_the_row():
    x = np.repeat(sine(500.0)[None], 3, 0)
    every = Augmentation(delay=0.02, gain=6.0, speed=0.1)
    made = change(x, every)
    np.testing.assert_allclose(change(x, every, rows=jnp.array([2, 1, 0]))[::-1], made, atol=1e-6)
    assert abs(made[0] - made[1]).max() > 0.1
    assert abs(change(x, every, key=jax.random.key(1)) - made).max() > 0.1


def test_only_training_examples_are_changed():
    plain = Audio(name="tones", rate=4400, seconds=0.1, batch_size=4)
    loud = replace(plain, augment=Augmentation(gain=6.0)).build()
    batch = jax.device_put(loud.batch(0, 0, range(4)))
    before = plain.build().preprocess(batch, KEY, True)["audio"]
    np.testing.assert_array_equal(loud.preprocess(batch, KEY, False)["audio"], before)
    ratio = np.asarray(loud.preprocess(batch, KEY, True)["audio"] / before)[:, 50, 0]
    assert len(set(ratio.round(3))) == 4


def test_wrong_augmentations_are_refused():
    with pytest.raises(UserError, match="it must be below 1"):
        Augmentation(speed=1.0)
    with pytest.raises(UserError, match=r"augment\.delay is -0\.1"):
        Augmentation(delay=-0.1)
