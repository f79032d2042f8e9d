"""The base class of alarms: checks of a run's numbers while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """A check of a run's numbers. Subclass it to add one, and name an object of the subclass in `Alarms.extra`.

    The run's config.json then names the class, so commands that read the run need --trust with its module.
    """

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        """Returns a message for each limit that `numbers` break, [] if all is well.

        numbers: the metrics of the last logged step and of the last validation by name, and the comparison of generated images
        with real ones (gen.metrics.collapse). Numbers that were not measured are missing.
        """
        raise NotImplementedError
