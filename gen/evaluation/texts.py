"""Scores of language models: the likelihood of held-out texts, and labels told by it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache, partial

from gen.config import Parallel
from gen.data.preprocess import with_preprocess
from gen.errors import UserError
from gen.evaluation.measure import measure, split_facts
from gen.evaluation.score import Metric, Options, Score, Subject
from gen.families.language import LM
from gen.metrics import labels
from gen.runs import directory
from gen.runtime import engine as runtime_engine

METRICS: tuple[Metric, ...] = ("likelihood", "labels")
LABELS = ("label_accuracy", "label_majority")


def planned(subject: Subject, options: Options) -> list[Score]:
    """How each number is computed. Raises: UserError for what can't be."""
    data, model, workdir = subject.data, subject.model, subject.workdir
    labelled = isinstance(subject.config.model, LM) and "labels.json" in data.files
    metrics = options.metrics or tuple(m for m in METRICS if labelled or m != "labels")
    if images := set(metrics) - set(METRICS):
        raise UserError(f"{min(images)} is a score of images, and {workdir} makes texts; leave it out")
    if "labels" in metrics and not labelled:
        raise UserError(
            f'{workdir} has no labels to tell; a causal model has that was trained on lines of {{"text", "label"}}, joined'
        )

    @cache
    def likelihood() -> dict[str, float]:
        config, size = subject.config, subject.config.data.batch_size
        engine = runtime_engine.compile_engine(
            with_preprocess(model, data.preprocess), Parallel(devices=1), config.seed, size
        )
        return measure(model, engine.test, subject.state(), data.evaluation(options.split, size))

    def by_likelihood(names: Iterable[str]) -> Iterable[float]:
        return [likelihood()[name] for name in names]

    def by_labels() -> Iterable[float]:
        score = labels.scored(data, model, subject.state(), options.split, options.shots, options.seed)
        return score.accuracy, score.majority

    held_out = split_facts(data, options.split)
    _, known = directory.read_config(workdir)
    base = {"base": known["base"]["sha256"]} if "base" in known else {}
    ours = held_out | {"checkpoint": subject.step} | base
    trivial = data.baselines() if options.split == "test" else {}
    by_kind: dict[str, list[str]] = {}  # numbers of one protocol
    for name, kind in model.protocol.items():
        by_kind.setdefault(json.dumps(kind), []).append(name)
    every = [
        *(
            Score("likelihood", tuple(names), ours | json.loads(kind), partial(by_likelihood, names))
            for kind, names in by_kind.items()
        ),
        Score("likelihood", tuple(trivial), held_out | {"baseline": True}, trivial.values),
        Score("labels", LABELS, ours | {"shots": options.shots, "seed": options.seed}, by_labels),
    ]
    return [score for score in every if score.metric in metrics and score.names]
