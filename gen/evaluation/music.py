"""Metrics of models of musical scores: the likelihood of the voices, and how well generated scores keep the rules of harmony.

In this module a score is a piece of music: a roll of tokens, int32 [frames, voices]. A `Score` is the result of a metric.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from gen.core import Array, Batch, HostBatch, Params
from gen.data.music import counting
from gen.evaluation.score import Metric, Score
from gen.evaluation.texts import TextSubject
from gen.families.grid import GridLM
from gen.families.labels import GIVEN
from gen.metrics.scores import Harmony, distance, measure
from gen.optim import adapters

MAX_SAMPLES = 64
"""Number of musical scores that are generated if --n is not given. It is small, because a score has hundreds of frames."""


@dataclass(frozen=True, eq=False)
class MusicSubject(TextSubject):
    """A run that generates musical scores."""

    medium = "scores"

    def windows(self, split: str) -> HostBatch:
        """Returns all windows of a split as one HostBatch. Pieces are cut into windows of one length.

        Entries: "tokens" int32 [N, frames, voices], "frames" int [N] (frames of a window without padding), and others.
        """
        batches = list(self.data.evaluation(split, self.run.config.data.batch_size))
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        # The last batch is padded with examples of weight 0.
        return {name: x[whole["weight"] > 0] for name, x in whole.items()}

    def rolls(self, split: str) -> list[np.ndarray]:
        """Returns the windows of a split without the padding after the end of a piece, int32 [frames, voices] each."""
        windows = self.windows(split)
        return [tokens[:n] for tokens, n in zip(windows["tokens"], windows["frames"].tolist(), strict=True)]

    @cached_property
    def voice_nats(self) -> np.ndarray:
        """-log p in nats of each held-out token given the tokens before it, float64 [frames of all scores, voices]."""
        config = self.run.config.model
        assert isinstance(config, GridLM)
        causal = config.causal(self.data.spec)

        def nats(params: dict[str, Params], batch: Batch) -> tuple[Array, Array]:
            seen = self.data.preprocess(batch, jax.random.key(0), False)
            found, _ = causal.nats(params, seen, causal.network.grid.conditions.of(seen))
            return found.reshape(seen["tokens"].shape), seen["counted"] * seen["weight"][:, None, None]

        # The weights from which samples are drawn: the moving average, if there is one.
        compiled, found = jax.jit(nats), []
        params = adapters.merge_adapter(config.adapter, self.state.ema or self.state.params, self.state.frozen)
        for batch in self.data.evaluation(self.options.split, self.run.config.data.batch_size):
            x, counted = jax.device_get(compiled(params, batch))
            # All voices of a frame count, or none.
            found.append(x[counted[:, :, 0] > 0])
        return np.concatenate(found).astype(np.float64)

    @cached_property
    def counted_nats(self) -> np.ndarray:
        """Like `voice_nats`, for the baseline that counts tokens of the training split (gen.data.music.counting)."""
        train, held_out = self.rolls("train"), self.rolls(self.options.split)
        nats = counting.count_nats(train, held_out, self.data.spec["tokens"].vocab or 0)
        return nats.reshape(-1, held_out[0].shape[1])

    @cached_property
    def held_out(self) -> Harmony:
        """Statistics of the held-out scores."""
        return measure(self.rolls(self.options.split))

    @property
    def n(self) -> int:
        """Number of musical scores to generate."""
        return self.options.n or MAX_SAMPLES

    @cached_property
    def generated(self) -> list[np.ndarray]:
        """Generated scores, int32 [frames, voices] each."""
        request = self.run.model.request(**{**self.request, "n": self.n})
        made = self.run.generate(self.step, self.options.seed, request, {}, {}, self.options.base)
        return list(np.asarray(made["samples"]))

    @cached_property
    def harmonized(self) -> list[np.ndarray]:
        """The held-out scores after the model has rewritten all voices but the first, int32 [frames, voices] each."""
        windows = self.windows(self.options.split)
        tokens, n = windows["tokens"], windows["frames"]
        # The first voice is kept. The padding after the end of a piece is kept, too.
        frame, voice = np.arange(tokens.shape[1])[None, :, None], np.arange(tokens.shape[2])[None, None]
        given = {"tokens": tokens, "known": (voice == 0) | (frame >= n[:, None, None])}
        if "label" in windows:
            given[GIVEN] = windows["label"]
        request = self.run.model.request(**{**self.request, "n": len(tokens)})
        made = self.run.generate(self.step, self.options.seed, request, given, {}, self.options.base)
        return [roll[:count] for roll, count in zip(made["samples"], n.tolist(), strict=True)]


@dataclass(frozen=True)
class Voices(Metric[MusicSubject]):
    """How well the model predicts held-out pieces: -log p in nats. Lower is better.

    - nats_per_frame: the sum over the voices of a frame, averaged over frames.
    - nats_given_first_voice: the mean over the tokens of all voices but the first. Left out if there is only one voice.

    A token is predicted from all tokens before it: earlier frames, and the earlier voices of its frame. So the second number
    tells how well a model harmonizes the melody in the first voice.

    Baseline: a model that counts tokens of the training split (gen.data.music.counting). The names of its numbers begin with
    "counting_".
    """

    name: str = "voices"
    subject = MusicSubject
    generates = False

    def unsuited(self, subject: MusicSubject) -> str | None:
        if isinstance(subject.run.config.model, GridLM):
            return None
        return "it needs the exact likelihood of a causal model (GridLM)"

    def plan(self, subject: MusicSubject) -> list[Score]:
        def score(nats: np.ndarray) -> Iterable[float]:
            return [float(nats.sum(1).mean()), *([float(nats[:, 1:].mean())] if nats.shape[1] > 1 else [])]

        facts = {"tokens": "each given the tokens before it", "unit": "nats"}
        names = ("nats_per_frame", "nats_given_first_voice")[: min(2, subject.data.spec["tokens"].shape[1])]
        counted = tuple(f"counting_{name}" for name in names)
        return [
            Score(names, subject.run_protocol | facts, lambda: score(subject.voice_nats)),
            Score(counted, subject.split_protocol | facts | {"baseline": True}, lambda: score(subject.counted_nats)),
        ]


@dataclass(frozen=True)
class Rules(Metric[MusicSubject]):
    """How well generated scores keep the rules of harmony. Lower is better, down to the numbers of real scores.

    - tone_distance: total variation distance of the pitch class histograms of these and the held-out scores, in [0, 1].
    - step_distance: the same for the histogram of melodic steps of the voices.
    - parallels, doubled_leading: fractions in [0, 1], see gen.metrics.scores.Harmony.

    All four are also computed for other scores, with these endings of their names:

    - "_real": the training split.
    - "_shuffled": training scores whose voices come from different pieces.

    parallels and doubled_leading are also computed for:

    - "_held_out": the held-out split.
    - "_harmonized": held-out scores in which the model has rewritten all voices but the first.
    """

    name: str = "rules"
    subject = MusicSubject

    def plan(self, subject: MusicSubject) -> list[Score]:
        names = ("tone_distance", "step_distance", "parallels", "doubled_leading")
        protocol = subject.sampled_protocol | {"samples": subject.n}

        def numbers(rolls: Iterable[np.ndarray]) -> Iterable[float]:
            found, other = measure(list(rolls)), subject.held_out
            return (
                distance(found.tones, other.tones),
                distance(found.steps, other.steps),
                found.parallels,
                found.doubled,
            )

        def harmonized() -> Iterable[float]:
            found = measure(subject.harmonized)
            return found.parallels, found.doubled

        train = subject.split_protocol | {"of": "train"}
        harmonies = subject.sampled_protocol | {"samples": "the held-out scores, given the first voice"}
        return [
            Score(names, protocol, lambda: numbers(subject.generated)),
            # Two numbers are distances from the held-out scores. These rolls are made of them, so both are left out.
            Score(tuple(f"{name}_harmonized" for name in names[2:]), harmonies, harmonized),
            Score(tuple(f"{name}_real" for name in names), train, lambda: numbers(subject.rolls("train"))),
            Score(
                tuple(f"{name}_shuffled" for name in names),
                train | {"voices": "of different pieces"},
                lambda: numbers(shuffle_voices(subject.rolls("train"))),
            ),
            Score(
                tuple(f"{name}_held_out" for name in names[2:]),
                subject.split_protocol,
                lambda: (subject.held_out.parallels, subject.held_out.doubled),
            ),
        ]


def shuffle_voices(rolls: list[np.ndarray]) -> list[np.ndarray]:
    """Combines voices of different scores into new scores, one for each of `rolls`, int [frames, voices] each.

    Voice v of new score i is voice v of score i + v (modulo their number). A new score ends with its shortest voice.
    """
    shuffled = []
    for i in range(len(rolls)):
        parts = [rolls[(i + v) % len(rolls)][:, v] for v in range(rolls[i].shape[1])]
        shuffled.append(np.stack([part[: min(map(len, parts))] for part in parts], axis=1))
    return shuffled


METRICS: tuple[Metric[MusicSubject], ...] = (Voices(), Rules())
"""The metrics that are computed for a run that generates musical scores, after the metrics of texts."""
