"""The guard against bad steps and exploding runs. It reports them, and can discard bad steps or stop the run.

The guard reads the metrics of each step. It reports a step whose loss or gradient norm is far outside of its history. It stops a run
whose loss stays far above its best. gen/runtime/levels.py computes the limits. With --faults.action skip or rollback, the engine also
discards the updates of bad steps: steps whose metrics are not finite, or above the limits (gen/runtime/engine.py). The step number
never decreases, so each batch is used only once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gen.config import Faults
from gen.errors import UserError
from gen.runtime import levels
from gen.runtime.levels import GRADIENT, LOSS, PLAYERS, START, Kind, Level

REPORT_AFTER = 20
"""A loss that is far above its best for this number of steps is reported, even if it never jumped."""
MAX_LOG = 709.0
"""Largest number whose exponential does not overflow in float64."""


class History(NamedTuple):
    """Summary of the steps of a run so far, which a checkpoint keeps."""

    bad: int = 0
    """Number of bad steps since the last checkpoint."""
    loss: Level = Level()
    """Statistics of the sum of losses."""
    gradient: Level = Level()
    """Statistics of the gradient norm over all players (networks with their own optimizers)."""


class Limits(NamedTuple):
    """Upper bounds on the metrics of a step. A step that exceeds a bound is bad."""

    loss: float = math.inf
    """Upper bound on the sum of losses."""
    gradient: float = math.inf
    """Upper bound on the gradient norm over all players."""


class Verdict(NamedTuple):
    """Result of checking the metrics of one step."""

    bad: bool = False
    """Whether the step was bad, so that the engine discarded its update."""
    reports: tuple[str, ...] = ()
    """Warnings about the metrics of the step, to print."""
    exploded: str | None = None
    """Reason why the run must stop. None: it continues."""


NOTHING = Verdict()


def guards(config: Faults) -> bool:
    """Returns whether the engine must check each step itself, to discard bad steps."""
    return config.action != "stop" or config.spike is not None


def is_gradient(name: str) -> bool:
    """Returns whether a metric is a gradient norm: "gradient", or "gradient/PLAYER"."""
    return name.startswith("gradient") and name.split("/")[0] == "gradient"


def limits(config: Faults, history: History, kind: Kind = LOSS) -> Limits:
    """Returns the limits above which the engine discards a step. inf: no limit.

    kind: how the sum of losses may move in a good run. LOSS: a single loss. PLAYERS: losses of several players.
    """
    if not guards(config):
        return Limits()
    loss, gradient = history.loss, history.gradient
    far = levels.limit(loss, kind)
    if kind.climbs:
        # The level of players may climb quickly, so only a jump is bad.
        far = max(far, levels.jump(loss, kind))
    if config.spike is not None and loss.count >= START:
        far = min(far, loss.mean + config.spike * math.sqrt(loss.variance))
    return Limits(far, levels.limit(gradient, GRADIENT))


def after(
    history: History, values: Mapping[str, float], losses: Sequence[str] = ("loss",), kind: Kind = LOSS
) -> History:
    """Returns the history of losses and gradient norms with one more step.

    values: {metric: value} of the step. losses: names of the metrics whose sum is the loss. kind: whether this loss may climb in
    a good run, as it does if two networks compete.
    """
    # The update of a skipped step was discarded, so its metrics say nothing about the model's history.
    if values.get("skipped"):
        return history._replace(bad=history.bad + 1)
    loss = levels.after(history.loss, sum([values[name] for name in losses]), kind)
    norms = [value for name, value in values.items() if is_gradient(name)]
    # With several players, this is the norm of all their gradients as one vector.
    gradient = levels.after(history.gradient, math.hypot(*norms), GRADIENT) if norms else history.gradient
    return History(history.bad, loss, gradient)


class Record:
    """Keeps the history of a run's losses and gradient norms, checks new metrics, and gives limits for the next call.

    A call of the compiled update makes one or several steps. The limits of a call use the history at the end of the
    second-last call before it. The loop has always read the metrics of that call by then, but not always the metrics of
    the last call. So a resumed run applies the same limits.
    """

    def __init__(self, config: Faults, start: int, kept: Sequence[Sequence[object]], losses: Sequence[str] = ("loss",)):
        """start: number of steps done. kept: result of `Record.kept` in the checkpoint of this step, or () at step 0. losses: names of the
        metrics that are losses."""
        self.config, self.losses = config, losses
        self.kind = LOSS if len(losses) == 1 else PLAYERS
        before, last = [_read(values) for values in kept] or [History(), History()]
        self.now = last
        # `ends`: last steps of the latest three calls. `at`: {last step: history} of calls whose metrics were read.
        self.ends = [start - 1, start]
        self.at = {start - 1: before, start: last}

    def limits(self, call: range) -> Limits:
        """Returns the limits of a call. call: the 1-based steps of the call. Must be called before each call of the update, in order."""
        if call[-1] != self.ends[-1]:
            self.ends = [*self.ends[-2:], call[-1]]
        return limits(self.config, self.at[self.ends[-3]], self.kind)

    def read(self, step: int, values: Mapping[str, float]) -> Verdict:
        """Records the metrics of a step (1-based), and returns whether the step is bad, what to report, and whether the run must stop.

        Raises: UserError if there are too many bad steps.
        """
        old, self.now = self.now, after(self.now, values, self.losses, self.kind)
        if step in self.ends:
            self.at[step] = self.now
            if len(self.at) > len(self.ends):
                del self.at[min(self.at)]
        if values.get("skipped"):
            self._check_patience(step, values)
            return Verdict(bad=True)
        loss, gradient = self.now.loss, self.now.gradient
        if loss.above or loss.remarked == loss.count or gradient.above or gradient.remarked == gradient.count:
            return Verdict(False, tuple(self._reports(step, old)), self._exploded())
        return NOTHING

    def is_sound(self) -> bool:
        """Returns whether no recent step was far outside of the run's history, so that the state is good enough to go back to."""
        return all(level.above == 0 and level.count - level.remarked >= START for level in self.now[1:])

    def kept(self, due: bool) -> list[History]:
        """Returns the histories at the ends of the last two calls, for a checkpoint at the end of the last call.

        due: whether it is a regular checkpoint, one that save.every asks for. Such a checkpoint resets the count of bad
        steps, in this record as well.
        """
        ends = self.ends[-2:]
        self.at = {end: self.at[end]._replace(bad=0) if due else self.at[end] for end in ends}
        self.now = self.at[ends[-1]]
        return [self.at[end] for end in ends]

    def _check_patience(self, step: int, values: Mapping[str, float]) -> None:
        bad = self.now.bad
        if self.config.action == "stop" or bad >= self.config.patience:
            why = f"{bad} bad steps since the last checkpoint" if bad > 1 else "a bad step"
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name in self.losses)
            # The action that has just failed is not proposed again.
            other = ", or --faults.action rollback" if self.config.action == "stop" else ""
            raise UserError(
                f"stopped at step {step} by {why} (not finite, or a jump: {shown}); the last checkpoint is kept. A lower "
                f"learning rate or clipped gradients (optim.clip) may help{other}"
            )

    def _reports(self, step: int, old: History) -> list[str]:
        loss, gradient = self.now.loss, self.now.gradient
        reports = []
        if _is_new(old.loss, loss):
            reports.append(
                f"the {self._loss} jumped to {loss.last:.4g} at step {step}, from a mean of {old.loss.mean:.4g}"
            )
        if old.loss.above < loss.above == REPORT_AFTER:
            reports.append(
                f"the {self._loss} is {loss.last:.4g} at step {step}, far above its best mean {loss.low:.4g}"
            )
        if _is_new(old.gradient, gradient):
            reports.append(
                f"the gradient's norm jumped to {gradient.last:.4g} at step {step}, from a mean of {old.gradient.mean:.4g}"
            )
        return reports

    def _exploded(self) -> str | None:
        patience = self.config.explosion
        if patience is None:
            return None
        loss, gradient = self.now.loss, self.now.gradient
        if loss.above >= patience:
            return f"the {self._loss} is {loss.last:.4g}, far above its best mean {loss.low:.4g} for {patience} steps"
        # The loss of a single player shows whether a run is lost. With several players the losses don't show it, but the gradients do.
        if self.kind.climbs and gradient.above >= patience:
            return f"the gradient's norm is {gradient.last:.4g}, far above its highest mean {gradient.high:.4g}"
        return None

    @property
    def _loss(self) -> str:
        return "loss" if len(self.losses) == 1 else "sum of the losses"


def _is_new(old: Level, now: Level) -> bool:
    """Returns whether the last value is far outside its history, and none of the MEMORY values before it was.

    So a long explosion is reported once. old, now: the level before and after the last value.
    """
    return now.remarked == now.count > old.count and now.count - old.remarked > levels.MEMORY


def check_kept(value: object) -> bool:
    """Returns whether a value from JSON has the form of `Record.kept`: two histories, or none at step 0."""
    return isinstance(value, list) and len(value) in (0, 2) and all(_is_history(each) for each in value)


def _is_history(values: object) -> bool:
    if not isinstance(values, list):
        return False
    if len(values) == len(History._fields):
        return _is_number(values[0]) and all(_is_level(level) for level in values[1:])
    # The form that version 0.2 wrote.
    return len(values) == 4 and all(map(_is_number, values)) and values[2] >= 0


def _is_level(values: object) -> bool:
    if not (isinstance(values, list) and len(values) == len(Level._fields) and all(map(_is_number, values))):
        return False
    level = Level(*values)
    # The exponential of a larger log_noise overflows, and a negative variance has no square root.
    return level.count >= 0 and level.variance >= 0 and level.noise >= 0 and level.log_noise < MAX_LOG


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # pyright: ignore


def _read(values: Sequence[object]) -> History:
    """Returns a history that was stored as JSON."""
    if len(values) == len(History._fields):
        bad, *numbers = values
        return History(bad, *(Level(*level) for level in numbers))  # pyright: ignore
    # Before version 0.3, a history had count, mean and variance of the loss, and the bad steps. All other levels start here.
    count, mean, variance, bad = values
    known = Level(count, mean, variance, last=mean, low=mean, high=mean, noise=math.sqrt(variance))  # pyright: ignore
    return History(bad, known._replace(log_noise=math.log(known.noise or 1.0)))  # pyright: ignore
