"""Opens the runs to be scored, chooses their metrics, and plans their scores. Metrics from outside gen are imported here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from gen.core import Dataset
from gen.errors import UserError
from gen.evaluation import captions, images, music, pairs, texts, words
from gen.evaluation.captions import CaptionedSubject
from gen.evaluation.image_folder import FolderSubject, is_image_folder
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.music import MusicSubject
from gen.evaluation.pairs import PairSubject
from gen.evaluation.reconstructions import ReconstructionSubject
from gen.evaluation.score import Metric, Options, Score, Subject
from gen.evaluation.sound import CaptionedSound, SoundReconstructions, SoundSubject, with_spectrograms
from gen.evaluation.texts import TextSubject
from gen.families.tokenizer import Tokenizer
from gen.media.music import is_score
from gen.metrics.images import has_sources
from gen.runs.trained import TrainedRun, open_run

SUBJECTS: dict[str, type[Subject]] = {
    "caption": CaptionedSubject,
    "image": ImageSubject,
    "audio": SoundSubject,
    "tokens": TextSubject,
}
"""{feature: class for runs on data with this feature}. The first match is used. `open_subject` has exceptions."""
METRICS: tuple[Metric[Any], ...] = (
    *images.METRICS,
    *captions.METRICS,
    *words.METRICS,
    *pairs.METRICS,
    *texts.METRICS,
    *music.METRICS,
)
"""gen's own metrics. Scores are planned and shown in this order, and metrics from outside follow."""


class Plan(NamedTuple):
    """The scores that are planned for a run."""

    scores: list[Score]
    left_out: list[str]
    """A line for each metric or baseline that can't be computed, with the reason."""


class Choice(NamedTuple):
    """The metrics to compute for a run."""

    metrics: list[Metric[Any]]
    left_out: dict[str, str]
    """{name of a metric of gen that can't be computed for the run: the reason}."""


def open_subjects(options: Options) -> list[Subject]:
    """Opens all runs and folders of images to be scored.

    If a folder is among them and --n is not given, all use the same number of images: the smallest of their default numbers.

    Raises: UserError if a run or folder does not exist, if data have changed, or if there is a folder but no run with whose data
    it can be compared.
    """
    if not options.runs:
        raise UserError("no run is named; the fix: python -m gen.evaluate RUN [RUN ...]")
    folders = [path for path in options.runs if is_image_folder(path)]
    if not folders:
        if options.data_of is not None:
            raise UserError("--data-of is for folders of images, and none is named; leave it out")
        return [open_subject(workdir, options) for workdir in options.runs]
    runs = {path: open_subject(path, options) for path in options.runs if path not in folders}
    run, data = _open_data(folders[0], runs, options)
    opened = [runs.get(path) or FolderSubject(run, 0, data, options, path) for path in options.runs]
    if options.n is not None:
        return opened
    # Numbers can only be compared under the same protocol, so every subject uses the same number of images.
    n = min(subject.n for subject in opened if isinstance(subject, ImageSubject))
    return [replace(subject, options=replace(options, n=n)) for subject in opened]


def _open_data(folder: Path, runs: Mapping[Path, Subject], options: Options) -> tuple[TrainedRun, Dataset]:
    """Returns the run with whose data folders of images are compared, and these data.

    folder: the first folder, for messages. runs: {path: opened run} of the command line.

    Raises: UserError if no run gives data, if the data have no images, or for options that no folder uses.
    """
    if options.data_of is None and not runs:
        raise UserError(
            f"{folder} is a folder of images, and no run says which data they are compared with; the fix: "
            f"python -m gen.evaluate {folder} --data-of RUN"
        )
    first = next(iter(runs.values()), None)
    if first is None and (options.request or options.step is not None or options.labels != "training"):
        raise UserError(
            "--request, --step and --labels change what a run generates, and only folders of images are named; leave "
            "them out"
        )
    # A run that is scored too is already open. Opening it again would build its data a second time.
    if options.data_of is None or options.data_of in runs:
        subject = first if options.data_of is None else runs[options.data_of]
        assert subject is not None
        run, data = subject.run, subject.data
    else:
        run = open_run(options.data_of, options.trust)
        data = build_data(run, options)
    if "image" not in data.spec:
        raise UserError(
            f"{folder} is a folder of images, and the data of {run.workdir} have none; name a run of images"
        )
    return run, data


def open_subject(workdir: Path, options: Options) -> Subject:
    """Opens a run to be scored. Raises: UserError if it or the checkpoint does not exist, or if its data have changed."""
    run = open_run(workdir, options.trust)
    step = run.choose_step(options.step)
    data = build_data(run, options)
    kind = next((kind for feature, kind in SUBJECTS.items() if feature in data.spec), Subject)
    if kind is ImageSubject and has_sources(data.spec):
        kind = PairSubject
    if kind is TextSubject and is_score(data.spec):
        kind = MusicSubject
    # Sound with texts has the features "caption" and "audio", and is compared by its spectrograms.
    if kind is CaptionedSubject and "audio" in data.spec:
        kind = CaptionedSound
    # A tokenizer does not generate. Its reconstructions of training images are scored, because a model that has learned the
    # codes perfectly would generate them.
    if isinstance(run.config.model, Tokenizer):
        kind = SoundReconstructions if "audio" in data.spec else ReconstructionSubject
    if "audio" in data.spec:
        data = with_spectrograms(data)
    return kind(run, step, data, options)


def build_data(run: TrainedRun, options: Options) -> Dataset:
    """Returns the data that a run is compared with: its own, or if they are codes, the images or sounds that were encoded.

    Raises: UserError if the data have changed since training.
    """
    moved = {} if options.data_name is None else {"name": options.data_name}
    data = run.build_data(options.data_dir, **moved)
    return data.images or data


def choose_metrics(subject: Subject) -> Choice:
    """Returns the metrics that the options name, or all of gen's metrics that suit the run.

    Raises: UserError for an unknown metric, for a named metric that can't be computed for the run, or if no metric can.
    """
    names, trust = subject.options.metrics, subject.options.trust
    if not names:
        fitting = [metric for metric in METRICS if isinstance(subject, metric.subject)]
        unsuited = {metric.name: reason for metric in fitting if (reason := metric.unsuited(subject))}
        if len(unsuited) == len(fitting):
            reasons = [f"  {name}: {reason}" for name, reason in unsuited.items()]
            raise UserError(
                f"no metric of gen can be computed for {subject.workdir}, which generates {subject.medium}; another one: "
                "--metrics package.module:Metric --trust package",
                *reasons,
            )
        return Choice([metric for metric in fitting if metric.name not in unsuited], unsuited)
    # The order is that of METRICS and not of the options, so that all tables have the same order.
    metrics = [metric for metric in METRICS if metric.name in names]
    known = {metric.name for metric in METRICS}
    metrics += [load_metric(name, trust) for name in dict.fromkeys(names) if name not in known]
    for metric in metrics:
        if not isinstance(subject, metric.subject):
            raise UserError(
                f"{metric.name} is a metric of {metric.subject.medium}, and {subject.workdir} generates "
                f"{subject.medium}; leave it out"
            )
        if reason := metric.unsuited(subject):
            raise UserError(
                f"{metric.name} of {subject.workdir} can't be computed: {reason}; leave {metric.name} out of --metrics"
            )
    return Choice(metrics, {})


def plan_scores(subject: Subject) -> Plan:
    """Plans the scores of a run.

    Raises: UserError, before anything is generated, if a score that the options ask for can't be computed.
    """
    subject.check()
    metrics, unsuited = choose_metrics(subject)
    if subject.request and not any(metric.generates for metric in metrics):
        names = ", ".join(metric.name for metric in metrics)
        raise UserError(f"--request changes what is generated, and {names} don't generate anything; leave it out")
    planned = [score for metric in metrics for score in metric.plan(subject)]
    scores = [score for score in planned if score.missing is None]
    unsuited |= {", ".join(score.names): score.missing for score in planned if score.missing is not None}
    # Names of numbers are keys of evaluation.json, so a second metric would overwrite the first.
    names = [name for score in scores for name in score.names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"two of the metrics report a number named {twice[0]!r}; the fix: rename one, or leave out a metric"
        )
    return Plan(scores, [f"{name} left out: {reason}" for name, reason in unsuited.items()])


def load_metric(name: str, trust: Sequence[str]) -> Metric[Any]:
    """Imports the metric "package.module:Name": a subclass of Metric whose fields have defaults, or an instance of a subclass.

    Raises: UserError if the module is not in `trust`, or if there is no such metric.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        known = [metric.name for metric in METRICS]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"gen has {', '.join(known)}"
        raise UserError(f"--metrics {name}: there is no such metric; {hint} (from outside gen: package.module:Metric)")
    # Checked before the import, because importing a module runs its code.
    if not any(module == package or module.startswith(f"{package}.") for package in trust):
        raise UserError(f"--metrics {name} is not part of gen; if you trust that code: --trust {module}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"--metrics {name}: {error}") from None
    if isinstance(found, type) and issubclass(found, Metric):
        found = cast("Callable[[], Metric[Any]]", found)()
    if not isinstance(found, Metric):
        raise UserError(f"--metrics {name}: {module} has no metric {attribute}; subclass gen.evaluation.score.Metric")
    return found
