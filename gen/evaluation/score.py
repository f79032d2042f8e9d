"""What a score is: of a checkpoint of a run, with how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from gen.config import Config
from gen.core import Dataset, GenerativeModel, State
from gen.errors import check_positive, check_seed

Metric = Literal["tstr", "frechet", "kid", "inception", "prdc", "likelihood", "labels"]


@dataclass(frozen=True)
class Options:
    """Scores of trained runs, beside what real data and trivial models score."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    metrics: tuple[Metric, ...] | None = None
    """What to compute; None: all that apply (tstr: to conditional models; likelihood and labels: to texts)."""
    n: int | None = None
    """Number of images to generate; None: 10,000, or as many as there are to train on."""
    seed: int = 0
    """Seed of the images, or of the shots."""
    split: Literal["test", "validation"] = "test"
    """Held-out examples to compare with."""
    features: str | None = None
    """What images are compared by: classifier (of the data's own labels), pixels, or a file of Inception's weights; None: the
    classifier where there are labels, else pixels."""
    shots: int = 0
    """Training examples before each text that is to be labelled."""
    step: int | None = None
    """Checkpoint; None: the best."""
    data_dir: str | None = None
    """Where TFDS sets are prepared now, if elsewhere than when the run was trained."""
    data_name: str | None = None
    """What --data.name is now, if folders or files were moved since; their content must be the same."""
    base: str | None = None
    """Where the run that an adapter stands on is now, if it was moved."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that a run's config names and that may be imported."""

    def __post_init__(self):
        check_seed(self.seed)
        if self.n is not None:
            check_positive(n=self.n)
        if self.shots:
            check_positive(shots=self.shots)


class Subject(NamedTuple):
    """A checkpoint of a run, and the data that it was trained on."""

    workdir: Path
    step: int
    config: Config
    model: GenerativeModel
    data: Dataset
    state: Callable[[], State]
    """The checkpoint, on one device; read when it is called, once."""


class Score(NamedTuple):
    """Numbers that are computed together."""

    metric: Metric
    names: tuple[str, ...]
    protocol: Mapping[str, Any]
    """What must be equal for two of them to compare, but for what names the run."""
    compute: Callable[[], Iterable[float]]
    """In the order of names."""
