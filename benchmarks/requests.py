"""Scores one run for several requests, such as other samplers or other weights of guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.study import Numbers
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.plan import plan_scores


def score_request(subject: ImageSubject, assignments: Sequence[str]) -> Numbers:
    """Returns {name: number} of gen.evaluate for images of another request. assignments: its fields, as FIELD=VALUE.

    The numbers are not written into the run, whose evaluation.json has those of the default request.
    """
    changed = replace(subject, options=replace(subject.options, request=tuple(assignments)))
    scores = plan_scores(changed).scores
    return {name: value for score in scores for name, value in zip(score.names, score.compute(), strict=True)}
