"""Limits for a loss or a gradient norm while a run trains, computed from the history of its values.

The rules for a loss mainly use differences of losses, so they also work for losses that are negative or near zero. A comparison with
the running mean and deviation alone would never notice a loss that grows by 2% at each step, because both grow with it. Therefore
values are also compared with the lowest running mean so far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

START = 50
"""Number of values that must be known before the rules use the history. Until then, a value is only compared with the first."""
MEMORY = 200
"""Approximate number of values over which the running means average."""
MAX_DEVIATIONS = 20.0
"""A loss can only be far outside its history if it is at least this number of standard deviations above it."""
MIN_JUMP = 0.1
"""Minimum size of a jump, as a fraction of the size of the running mean."""
MIN_PLAYERS_JUMP = 0.5
"""The same for the losses of several players. They move by a third within a few steps when a GAN leaves its equal start."""
MAX_START_RATIO = 10.0
"""Before START values are known, a loss is far away if it is above first + (MAX_START_RATIO - 1) * max(|first|, 1), where first is the
first value."""
MAX_GRADIENT_RATIO = 100.0
"""A gradient norm is far outside its history if it is larger than this number times its highest running mean so far."""
MIN_GRADIENT = 0.01
"""In the rule of MAX_GRADIENT_RATIO, the highest running mean counts as at least this number, so that tiny gradients raise no alarm."""
LOG_RATIO = 0.288
"""log(s / g), where s is the standard deviation of independent normal numbers x and y, and g the geometric mean of |x - y|."""


class Level(NamedTuple):
    """Summary of all values so far of a metric, such as a loss or a gradient norm."""

    count: int = 0
    """Number of values."""
    mean: float = 0.0
    """Running mean."""
    variance: float = 0.0
    """Running variance about the running mean."""
    log_noise: float = 0.0
    """Running mean of log |value - previous value|."""
    last: float = 0.0
    """The last value."""
    low: float = 0.0
    """Lowest running mean since START values, or the first value if no mean was lower."""
    high: float = 0.0
    """For a loss, the running mean after START values, or the first value if the mean had not fallen by then. For a metric that may climb,
    its highest running mean since START values."""
    noise: float = 0.0
    """Standard deviation of the values at the time when the running mean was lowest. 0: not known."""
    above: int = 0
    """Counter: plus 1 for each value above `limit`, minus 1 for each other value, and never below 0."""
    remarked: int = -MEMORY
    """The `count` of the last value that was far outside its history."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the last values, estimated from their differences, so that it does not grow if the mean moves."""
        return math.exp(self.log_noise + LOG_RATIO) if self.count > 1 else 0.0


class Kind(NamedTuple):
    """How a metric may move in a good run. `limit` and `jump` compute its limits accordingly."""

    climbs: bool = False
    """Whether the running mean may climb. It does for the losses of a generator and a discriminator: each raises the loss of the other."""
    ratio: float | None = None
    """The limit is this number times the highest running mean. None: the limit is computed from differences of values."""


LOSS, PLAYERS, GRADIENT = Kind(), Kind(climbs=True), Kind(climbs=True, ratio=MAX_GRADIENT_RATIO)
"""The kinds of a single loss, of the sum of the losses of several players (such as a GAN's), and of a gradient norm."""


def limit(level: Level, kind: Kind) -> float:
    """Returns the value above which a metric is far above its best so far. inf: there are no values yet.

    The limit of a loss is at least its level at the start: above it, the model is worse than at the start. The losses of several
    players don't show how good the players are. Their limit is above their highest running mean, by at least twice the range of their
    running means.
    """
    if not level.count:
        return math.inf
    count, _, _, _, _, low, high, noise, _, _ = level
    if count < START:
        # `low` is the first value.
        return low + ((kind.ratio or MAX_START_RATIO) - 1) * max(abs(low), 1.0)
    # The size of a gradient norm has a meaning, so it is compared by a ratio and not by differences.
    if kind.ratio is not None:
        return kind.ratio * max(high, MIN_GRADIENT)
    # If the loss never fell, its noise is not known, and its own size replaces it.
    least = 0.1 * abs(low) if noise else max(abs(low), 1.0)
    if kind.climbs:
        return high + max(MAX_DEVIATIONS * noise, least, 2 * (high - low))
    return low + max(MAX_DEVIATIONS * noise, least, high - low)


def jump(level: Level, kind: Kind) -> float:
    """Returns the limit above which a single value is far above the running mean. inf: there are no values yet.

    `limit` depends on the best values of the whole run instead. For gradient norms, and for the first START values,
    both are the same.
    """
    if level.count < START or kind.ratio is not None:
        return limit(level, kind)
    least = (MIN_PLAYERS_JUMP if kind.climbs else MIN_JUMP) * abs(level.mean)
    return level.mean + max(MAX_DEVIATIONS * level.deviation, 0.25 * (level.high - level.low), least)


def after(level: Level, value: float, kind: Kind) -> Level:
    """Returns the level after one more value, which must be finite."""
    # This runs on the host at each training step, so it must be cheap.
    count, mean, variance, log_noise, last, low, high, noise, above, remarked = level
    count += 1
    if count == 1:
        return Level(1, value, 0.0, 0.0, value, value, value)
    away = limit(level, kind)
    if value > mean + MIN_JUMP * abs(mean) and value > jump(level, kind):
        remarked = count
    above = above + 1 if value > away and count > START else max(above - 1, 0)
    # The mean is over all values at first, then exponential. A value above the limit may not move the mean far: otherwise the limit
    # would follow an explosion.
    new = 1 / min(count, MEMORY)
    most = away if kind.ratio is None else 3 * away / kind.ratio
    change = (value if value <= away else most) - mean
    mean += new * change
    variance = (1 - new) * (variance + new * change**2)
    size = math.log(max(abs(value - last), 1e-6 * abs(value), 1e-30))
    log_noise += (size - log_noise) / min(count - 1, MEMORY)
    if count == START and (kind.climbs or mean < low):
        # The level at the start is this mean. If a loss has not fallen yet, it stays the first value.
        high = mean
    if count > START and kind.climbs and mean > high:
        high = mean
    if count >= START and mean < low:
        low, noise = mean, math.exp(log_noise + LOG_RATIO)
    return Level(count, mean, variance, log_noise, value, low, high, noise, above, remarked)
