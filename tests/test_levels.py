"""Which values count as far outside of a metric's history, on artificial curves of losses and gradient norms."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gen.runtime.levels import GRADIENT, LOSS, PLAYERS, START, Kind, Level, after, jump, limit

RNG = np.random.default_rng(0)
N = 4000
STEPS = np.arange(N)
NOISE = RNG.normal(size=N)


def watch(values: Sequence[float] | np.ndarray, kind: Kind) -> tuple[int | None, int]:
    """Returns the first step that jumped or was the 20th above the limit, and the largest count above the limit."""
    level, first, most = Level(), None, 0
    for step, value in enumerate(values, start=1):
        far = value > jump(level, kind)
        level = after(level, float(value), kind)
        most = max(most, level.above)
        if first is None and (far or level.above == 20):
            first = step
    return first, most


def fall(start: float, end: float, noise: float) -> np.ndarray:
    return end + (start - end) * np.exp(-STEPS / 200) + noise * NOISE


SOUND = {
    "nats of images": (fall(543, 90, 1), LOSS),
    "negative nats of densities": (fall(1000, -2000, 20), LOSS),
    "through zero": (fall(3, -1, 0.3), LOSS),
    "to nearly zero": (np.exp(-STEPS / 100) * (1 + 0.3 * NOISE), LOSS),
    "nats of tokens": (fall(5.5, 1.5, 0.05), LOSS),
    "no progress": (2 + 0.3 * NOISE, LOSS),
    "no progress after a lucky first batch": (np.concatenate([[1.2], 2 + 0.3 * NOISE]), LOSS),
    "a constant": (np.full(N, math.log(2)), LOSS),
    "heavy tails": (90 + RNG.standard_t(4, N), LOSS),
    "a KL that warms up": (fall(543, 60, 1) + 45 * np.minimum(1, STEPS / 3000), LOSS),
    "players that hover": (1.4 + 0.3 * np.sin(STEPS / 300) + 0.1 * NOISE, PLAYERS),
    "players that leave an equal start": (
        2 * math.log(2) + 0.45 * np.clip((STEPS - 45) / 10, 0, 1) + np.where(STEPS < 50, 0.003, 0.1) * NOISE,
        PLAYERS,
    ),
    "players that climb": (0.7 + 3 * STEPS / N + 0.1 * NOISE, PLAYERS),
    "critics around zero": (-5 + 20 * np.sin(STEPS / 700) + 3 * NOISE, PLAYERS),
    "gradients that grow": (np.exp(STEPS / 500) * np.exp(0.5 * NOISE), GRADIENT),
    "gradients that begin at zero": (np.where(STEPS < 30, 0, 0.5 + 0.1 * NOISE), GRADIENT),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_curve_is_not_reported(name):
    first, most = watch(*SOUND[name])
    assert first is None
    assert most < 20


@pytest.mark.parametrize("name", [name for name in SOUND if "gradients" not in name and "KL" not in name])
def test_an_explosion_is_reported_at_once_and_stays_far_away(name):
    """Ten times the range of the curve, from step 2000 on."""
    values, kind = SOUND[name]
    exploded = np.array(values)
    exploded[2000:] += 10 * (np.ptp(values) + 1)
    first, most = watch(exploded, kind)
    assert first == 2001
    assert most > 200


@pytest.mark.parametrize("kind", [LOSS, PLAYERS])
@pytest.mark.parametrize("growth", [0.005, 0.02, 0.1])
def test_steady_growth_is_reported_before_the_loss_has_doubled_twice_and_stays_far_away(growth, kind):
    values = np.minimum(90 * np.exp(growth * np.maximum(0, STEPS - 500)), 1e30) * (1 + 0.02 * NOISE)
    first, most = watch(values, kind)
    assert first is not None
    assert values[first - 1] < 4 * 90
    assert most > 200


def test_an_explosion_among_the_first_steps_is_reported():
    values = np.concatenate([[147.0, 75_000.0], 3000 + 500 * NOISE])
    first, most = watch(values, LOSS)
    assert first == 2
    assert most > 200
    values = np.concatenate([[147.0, 12_800.0], fall(170, 90, 1)])
    first, most = watch(values, LOSS)
    assert first == 2, "a step that is ten times the first loss"
    assert most < 20, "but the run recovers"


def test_a_loss_far_below_its_start_that_jumps_is_reported():
    """A diverged language model writes tokens by their frequency: worse than before, and better than at the start."""
    values = fall(5.5, 1.5, 0.05) + np.clip(0.05 * (STEPS - 3000), 0, 1.8)
    first, _ = watch(values, LOSS)
    assert first is not None
    assert 3000 < first <= 3050


def test_rules_for_losses_do_not_depend_on_their_scale():
    values = fall(5.5, 1.5, 0.05)
    levels = [Level(), Level()]
    for value in values:
        levels = [after(level, scale * float(value), LOSS) for level, scale in zip(levels, (1, 1000), strict=True)]
    assert limit(levels[1], LOSS) == pytest.approx(1000 * limit(levels[0], LOSS))
    assert jump(levels[1], LOSS) == pytest.approx(1000 * jump(levels[0], LOSS))


def test_a_gradient_is_far_away_above_a_hundred_times_its_highest_mean():
    values = np.full(START, 40.0)
    level = Level()
    for value in values:
        level = after(level, value, GRADIENT)
    assert limit(level, GRADIENT) == pytest.approx(4000)
    assert watch([*values, 3900.0], GRADIENT)[0] is None
    assert watch([*values, 4100.0], GRADIENT)[0] == START + 1
