"""Limits for a loss or a gradient norm while a run trains, computed from the history of its values.

The rules for a loss use differences of losses only (and, as a floor, a tenth of its size), so they mean the same for losses that are
negative or near zero. A mean and a deviation alone never notice a loss that grows by 2% at each step, because both grow with it.
Therefore the level is also compared with the lowest one so far.
"""

from __future__ import annotations

import math
from typing import NamedTuple

START = 50
"""Number of values that must be known before a value can be far from its history."""
MEMORY = 200
"""Approximate number of values over which the running means average."""
MAX_DEVIATIONS = 20.0
"""A loss is far outside its history if it is this number of standard deviations above it."""
MIN_JUMP = 0.1
"""Minimum jump of a loss that is reported, as a fraction of its running mean."""
MAX_START_RATIO = 10.0
"""Before START values are known, a value is far away if it is above first + (MAX_START_RATIO - 1) * max(|first|, 1)."""
MAX_GRADIENT_RATIO = 100.0
"""A gradient norm is far outside its history if it is larger than this number times its highest running mean so far."""
MIN_GRADIENT = 0.01
"""Lower bound on the highest running mean of a gradient norm in that rule, so that tiny gradients raise no alarm."""
LOG_RATIO = 0.288
"""log(s / g) for independent normal numbers, with their standard deviation s and the geometric mean g of |x - y|."""


class Level(NamedTuple):
    """Summary of the values of a number so far."""

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
    """Lowest mean so far."""
    high: float = 0.0
    """A loss: the running mean after START values, or the first value if the mean had not fallen by then. A number that may climb: its
    highest running mean since START values."""
    noise: float = 0.0
    """Standard deviation of the values when the mean was lowest. 0: not known."""
    above: int = 0
    """Counter: plus 1 for each value above `limit`, minus 1 for each other value, and never below 0."""
    remarked: int = -MEMORY
    """The count at which a value was last far away."""

    @property
    def deviation(self) -> float:
        """Standard deviation of the last values, estimated from their differences: it does not grow if the level moves."""
        return math.exp(self.log_noise + LOG_RATIO) if self.count > 1 else 0.0


class Kind(NamedTuple):
    """Which movements of a number are normal in a good run."""

    climbs: bool = False
    """Whether the level may climb. The losses of a generator and a discriminator do: each player raises the loss of the other."""
    ratio: float | None = None
    """The limit is this number times the highest running mean. None: the limit is computed from differences of values."""


LOSS, PLAYERS, GRADIENT = Kind(), Kind(climbs=True), Kind(climbs=True, ratio=MAX_GRADIENT_RATIO)


def limit(level: Level, kind: Kind) -> float:
    """Returns the value above which a run is far above its best so far. inf: nothing is known yet.

    A loss is far above its best if the model is worse than at the start. The losses of several players don't say how good the players
    are. Their limit is above their highest level by twice the range of their levels.
    """
    if not level.count:
        return math.inf
    count, _, _, _, _, low, high, noise, _, _ = level
    if count < START:
        # `low` is the first value.
        return low + ((kind.ratio or MAX_START_RATIO) - 1) * max(abs(low), 1.0)
    if kind.ratio is not None:
        return kind.ratio * max(high, MIN_GRADIENT)
    # If the loss never fell, its noise is not known, and its own size replaces it.
    least = 0.1 * abs(low) if noise else max(abs(low), 1.0)
    if kind.climbs:
        return high + max(MAX_DEVIATIONS * noise, least, 2 * (high - low))
    return low + max(MAX_DEVIATIONS * noise, least, high - low)


def jump(level: Level, kind: Kind) -> float:
    """Returns the value above which a single value is far outside its history. inf: nothing is known yet."""
    if level.count < START or kind.ratio is not None:
        return limit(level, kind)
    away = MAX_DEVIATIONS * level.deviation, 0.25 * (level.high - level.low), MIN_JUMP * abs(level.mean)
    return level.mean + max(away)


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
    # An average over all values at first, then an exponential one. A value that is far away must not move it far: otherwise the
    # limit would follow an explosion.
    new = 1 / min(count, MEMORY)
    most = away if kind.ratio is None else 3 * away / kind.ratio
    change = (value if value <= away else most) - mean
    mean += new * change
    variance = (1 - new) * (variance + new * change**2)
    size = math.log(max(abs(value - last), 1e-6 * abs(value), 1e-30))
    log_noise += (size - log_noise) / min(count - 1, MEMORY)
    if count == START and (kind.climbs or mean < low):
        # The level at the start. If a loss has not fallen yet, its first value is the level.
        high = mean
    if count > START and kind.climbs and mean > high:
        high = mean
    if count >= START and mean < low:
        low, noise = mean, math.exp(log_noise + LOG_RATIO)
    return Level(count, mean, variance, log_noise, value, low, high, noise, above, remarked)
