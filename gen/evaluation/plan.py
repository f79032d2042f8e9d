"""Which metrics apply to a run, and the scores that they plan. Metrics from outside gen are imported here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from gen.errors import UserError
from gen.evaluation import images, texts
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.score import Metric, Options, Score, Subject
from gen.evaluation.texts import TextSubject
from gen.runs.trained import open_run

SUBJECTS: dict[str, type[Subject]] = {"image": ImageSubject, "tokens": TextSubject}
"""{feature of the data: kind of runs}. The first feature that the data have decides."""
METRICS: tuple[Metric[Any], ...] = (*images.METRICS, *texts.METRICS)
"""gen's own metrics. Scores are planned and shown in this order, and metrics from outside follow."""


def open_subject(workdir: Path, options: Options) -> Subject:
    """Opens a run to be scored. Raises: UserError if it or the checkpoint does not exist, or if its data have changed."""
    run = open_run(workdir, options.trust)
    step = run.choose_step(options.step)
    moved = {} if options.data_name is None else {"name": options.data_name}
    data = run.build_data(options.data_dir, **moved)
    kind = next((kind for feature, kind in SUBJECTS.items() if feature in data.spec), Subject)
    return kind(run, step, data, options)


def choose_metrics(subject: Subject) -> list[Metric[Any]]:
    """Returns the metrics that the options name, or all of gen's metrics that suit the run.

    Raises: UserError for an unknown metric, or for a named one that does not suit the run.
    """
    names, trust = subject.options.metrics, subject.options.trust
    if not names:
        fitting = [metric for metric in METRICS if isinstance(subject, metric.subject)]
        metrics = [metric for metric in fitting if metric.unsuited(subject) is None]
        if not metrics:
            raise UserError(
                f"no metric of gen suits {subject.workdir}, which generates {subject.medium}; the fix: --metrics "
                "package.module:Metric --trust package"
            )
        return metrics
    # In the order of METRICS and not of the options, so that all tables are in the same order.
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
            raise UserError(reason)
    return metrics


def plan_scores(subject: Subject) -> list[Score]:
    """Returns how each number of a run is computed.

    Raises: UserError for anything that can't be computed, before anything is generated.
    """
    subject.check()
    metrics = choose_metrics(subject)
    if subject.request and not any(metric.generates for metric in metrics):
        names = ", ".join(metric.name for metric in metrics)
        raise UserError(f"--request changes what is generated, and {names} don't generate anything; leave it out")
    scores = [score for metric in metrics for score in metric.plan(subject)]
    # Names of numbers are keys of evaluation.json, so a second metric would overwrite the first.
    names = [name for score in scores for name in score.names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"two of the metrics report a number named {twice[0]!r}; the fix: rename one, or leave out a metric"
        )
    return scores


def load_metric(name: str, trust: Sequence[str]) -> Metric[Any]:
    """Imports the metric "package.module:Name": a subclass of Metric with defaults for its fields, or an object of one.

    Raises: UserError if the module is not in `trust`, or if there is no such metric.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        known = [metric.name for metric in METRICS]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"gen has {', '.join(known)}"
        raise UserError(f"--metrics {name}: there is no such metric; {hint} (from outside gen: package.module:Metric)")
    # Importing runs code, so this comes first.
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
