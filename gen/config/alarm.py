"""The base class of alarms: checks of a run's metrics while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """A check of a run's metrics. To add an alarm, subclass this, and put an object of the subclass into `Alarms.extra`.

    The run's config.json then names the class, so commands that read the run need --trust with its module.
    """

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        """Returns a message for each limit that `numbers` violate. []: they violate none.

        numbers: {metric: value} of the last training step that was not skipped, of the validation at this step, and of
        the comparison of generated with real images (gen.metrics.collapse). Metrics that were not measured at this step
        are missing.
        """
        raise NotImplementedError
