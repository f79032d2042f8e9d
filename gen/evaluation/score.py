"""The types of gen.evaluate: its options, a run to be scored (Subject), a Metric, and the numbers that it plans (Score)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import tyro

from gen.core import Dataset, State
from gen.errors import UserError, check_positive, check_seed
from gen.evaluation.labels import LabelRule
from gen.evaluation.measure import split_facts
from gen.evaluation.request import encode_request, parse_request
from gen.runs.trained import TrainedRun


@dataclass(frozen=True)
class Options:
    """Scores trained runs, and prints them next to the scores of real data and of trivial models."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, and folders of images that any model has made. If sub-folders have the names of classes, their images are
    labelled."""
    metrics: tuple[str, ...] | None = None
    """Metrics to compute. None: all metrics of gen that apply.
    Images and sound: tstr, frechet, kid, inception, prdc.
    Images of captions: captions. Pairs: psnr. Speech: words.
    Texts: likelihood, labels. Scores of music: likelihood, voices, rules.
    From outside gen: package.module:Metric, with --trust."""
    n: int | None = None
    """Number of images or scores of music to generate, or of images to take from a folder.
    None: 64 for scores of music. For images 10,000, or the size of the training split or of the smallest folder, if smaller."""
    seed: int = 0
    """Seed of the generated samples, of their labels, and of the choice of --shots."""
    labels: LabelRule = "training"
    """Frequencies of the classes of a conditional model's images. training: as in the training split. uniform: all equal."""
    data_of: Path | None = None
    """The run with whose data folders of images are compared. None: the first run on the command line."""
    split: Literal["test", "validation"] = "test"
    """Held-out split on which the run is scored."""
    request: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE of the family's request, which changes what is generated. `--request.truncation 0.5` is the same as
    `--request truncation=0.5`. The fields are the options of `sample.py RUN --help`."""
    features: str | None = None
    """How images are compared: classifier (trained on the data's labels), pixels, or a file with Inception's weights. None: the
    classifier if the data have two classes or more, otherwise pixels."""
    shots: int = 0
    """Number of labelled training examples in front of each text whose label is predicted."""
    step: int | None = None
    """Step of the checkpoint to score. None: the best checkpoint."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets, if it was moved after training."""
    data_name: str | None = None
    """The data's --data.name now, if the folder or file was moved after training. Its content must be the same."""
    base: str | None = None
    """Directory of the run that an adapter was trained on, if it was moved after training."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that a run's config or --metrics names, and that may be imported."""

    def __post_init__(self):
        check_seed(self.seed)
        if self.n is not None:
            check_positive(n=self.n)
        if self.shots:
            check_positive(shots=self.shots)


# eq=False keeps it hashable by identity: its cached inputs are arrays, which cannot be compared.
@dataclass(frozen=True, eq=False)
class Subject:
    """A run to be scored: a checkpoint, the data that it is compared with, and the options.

    A subclass for a medium adds the inputs that its metrics share, such as generated images. Each is a cached property, so it is
    computed once, and only if a metric needs it.
    """

    run: TrainedRun
    step: int
    """Step of the checkpoint."""
    data: Dataset
    """The data that the run was trained on, or for codes the images or sounds that were encoded."""
    options: Options

    medium: ClassVar[str] = "samples"
    """What the model generates, for error messages."""

    @property
    def workdir(self) -> Path:
        return self.run.workdir

    @property
    def summary(self) -> str:
        """A short name of the scored images, texts or sounds, such as "checkpoint 500". It is printed before the scores are computed."""
        return f"checkpoint {self.step}"

    def check(self) -> None:
        """Checks that the options fit the medium, before metrics plan their scores. Raises: UserError if they don't."""
        if self.options.labels != "training":
            raise UserError(
                f"--labels chooses classes of images, and {self.workdir} generates {self.medium}; leave it out"
            )

    # A large model is read once, and only if a metric generates samples.
    @cached_property
    def state(self) -> State:
        """The state of the checkpoint, on one device."""
        return self.run.restore(self.step, self.options.base)

    @cached_property
    def request(self) -> dict[str, object]:
        """{field: value}: the settings of `generate` that --request changes. Fields with their default value are left out.

        Raises: UserError if the family's request has no such field, or if a value is wrong.
        """
        return parse_request(self.run.model.request, self.options.request, spec=self.run.spec)

    @property
    def split_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the held-out split and not on the
        run, such as baselines.


        Metrics of images do not use it. They use the protocols of ImageSubject.
        """
        return split_facts(self.data, self.options.split)

    @property
    def run_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the held-out split and the run.

        Metrics of images do not use it. They use the protocols of ImageSubject.
        """
        # The numbers of an adapter depend on its base too.
        base = self.run.facts.base
        return self.split_protocol | {"checkpoint": self.step} | ({} if base is None else {"base": base.sha256})

    @property
    def sampled_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that also depend on the run's samples.

        A metric adds the number of samples.
        """
        return self.run_protocol | {"seed": self.options.seed} | encode_request(self.request)


class Score(NamedTuple):
    """Numbers to be computed together, with one protocol: a description of how they are computed."""

    names: tuple[str, ...]
    """Names of the numbers, which are keys of evaluation.json."""
    protocol: Mapping[str, object]
    """{setting: JSON value} of everything that the numbers depend on. Numbers of two runs can be compared if their protocols differ
    at most in the entries that identify the run: "checkpoint", "run", "base" and "folder"."""
    compute: Callable[[], Iterable[float]]
    """() -> the numbers, in the order of `names`."""
    missing: str | None = None
    """Reason why the numbers of a baseline can't be computed. They are then left out, and the reason is printed. The metric's other
    numbers are still computed. None: they can be computed."""


S = TypeVar("S", bound=Subject)


@dataclass(frozen=True)
class Metric(Generic[S]):
    """A metric of gen.evaluate. To add a metric, subclass this.

    A subclass gives `name` a default, sets `subject` to the kind of runs that it scores, and overrides `plan`. On the command line
    it is named with its module: --metrics mylab.scores:MyMetric --trust mylab.scores.
    """

    name: str
    """Name of the metric in --metrics and in messages."""

    subject: ClassVar[type[Subject]] = Subject
    """Kind of runs that the metric scores: ImageSubject, TextSubject, or Subject for all."""
    generates: ClassVar[bool] = True
    """Whether the metric depends on generated samples, and so on --request."""

    def unsuited(self, subject: S) -> str | None:
        """Returns the reason why this metric can't be computed for a run. None: it can be computed.

        Without --metrics, a metric with a reason is left out, and the reason is printed. If --metrics names it, the reason is an
        error. This method generates nothing.
        """
        return None

    def plan(self, subject: S) -> list[Score]:
        """Returns the scores of the metric, which `Score.compute` computes later. This method itself does nothing slow.

        Raises: UserError if the options don't allow it.
        """
        raise NotImplementedError
