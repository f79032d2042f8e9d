"""Metrics of language models: the likelihood of held-out texts, and the accuracy of labels that are predicted by likelihood."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

from gen.config import Parallel
from gen.data.preprocess import with_preprocess
from gen.evaluation.measure import measure
from gen.evaluation.score import Metric, Score, Subject
from gen.families.language import LM
from gen.metrics.labels import score_labels
from gen.runtime.engine import compile_engine


@dataclass(frozen=True, eq=False)
class TextSubject(Subject):
    """A run that generates texts. Its likelihood is measured once, when a metric first needs it."""

    medium = "texts"

    @cached_property
    def measured(self) -> dict[str, float]:
        """The model's metrics on the held-out split, as `model.test` measures them."""
        # One device is used on every machine, so that sums are always added in the same order.
        config = self.run.config
        model = with_preprocess(self.run.model, self.data.preprocess)
        engine = compile_engine(model, Parallel(devices=1), config.seed, config.data.batch_size)
        batches = self.data.evaluation(self.options.split, config.data.batch_size)
        return measure(self.run.model, engine.test, self.state, batches)


@dataclass(frozen=True)
class Likelihood(Metric[TextSubject]):
    """The model's own metrics on the held-out split, such as perplexity. Baselines: metrics of trivial models, such as n-grams."""

    name: str = "likelihood"
    subject = TextSubject
    generates = False

    def plan(self, subject: TextSubject) -> list[Score]:
        def score(names: Iterable[str]) -> Iterable[float]:
            return [subject.measured[name] for name in names]

        # A Score has one protocol, so metrics are grouped by their protocols. All groups read the same measurement.
        names_by_protocol: dict[str, list[str]] = {}
        for name, protocol in subject.run.model.protocol.items():
            names_by_protocol.setdefault(json.dumps(protocol), []).append(name)
        scores = [
            Score(tuple(names), subject.run_protocol | json.loads(protocol), partial(score, names))
            for protocol, names in names_by_protocol.items()
        ]
        # Baselines are only defined on the test split.
        baselines = subject.data.baselines() if subject.options.split == "test" else {}
        if baselines:
            scores.append(Score(tuple(baselines), subject.split_protocol | {"baseline": True}, baselines.values))
        return scores


@dataclass(frozen=True)
class Labels(Metric[TextSubject]):
    """Accuracy of labels that a language model predicts by their likelihood after a text.

    Baseline: the accuracy of always predicting the most frequent label ("label_majority").
    """

    name: str = "labels"
    subject = TextSubject
    generates = False

    def unsuited(self, subject: TextSubject) -> str | None:
        if isinstance(subject.run.config.model, LM) and "labels.json" in subject.data.files:
            return None
        return (
            'there are no labels to predict; they need a causal model (lm) of joined lines {"text": ..., "label": ...}'
        )

    def plan(self, subject: TextSubject) -> list[Score]:
        options = subject.options

        def score() -> Iterable[float]:
            found = score_labels(
                subject.data, subject.run.model, subject.state, options.split, options.shots, options.seed
            )
            return found.accuracy, found.majority

        # Older versions of gen did not count the end of a label. Their protocols lack "label_end", so they differ.
        facts = {"shots": options.shots, "seed": options.seed, "label_end": "counted"}
        protocol = subject.run_protocol | facts
        return [Score(("label_accuracy", "label_majority"), protocol, score)]


METRICS: tuple[Metric[TextSubject], ...] = (Likelihood(), Labels())
"""The metrics that are computed for a run that generates texts, in the order of the table."""
