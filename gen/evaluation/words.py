"""Word error rates of generated speech, by a small recognizer that is trained on the same data as the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from gen.core import Array, Key, State
from gen.evaluation.score import Metric, Score
from gen.evaluation.sound import CaptionedSound
from gen.families.captions import GIVEN
from gen.metrics.edits import Errors
from gen.metrics.recognizer import MAX_RECORDINGS, frames_of, read_recordings

SPEAK_CHUNK = 64
"""Number of texts per call of `generate`. The speech depends on it, because each call has its own random key."""


@dataclass(frozen=True)
class Words(Metric[CaptionedSound]):
    """Error rates of words and characters when a recognizer transcribes speech generated for the held-out texts.

    Baseline: the error rates on the real recordings of the same texts. Their names end with "_real".
    """

    name: str = "words"
    subject = CaptionedSound

    def unsuited(self, subject: CaptionedSound) -> str | None:
        return None if subject.captioned else "the model reads no texts (--model.conditional)"

    def plan(self, subject: CaptionedSound) -> list[Score]:
        def score() -> Iterable[float]:
            real = read_recordings(subject.data, subject.options.split)
            return subject.recognizer.errors(speak(subject), real.texts)

        def score_real() -> Iterable[float]:
            frames, texts = read_recordings(subject.data, subject.options.split)
            return subject.recognizer.errors(frames, texts)

        recognizer = dict(subject.recognizer.protocol)
        # Each text is spoken as often as it is in the split, so the number does not depend on --n.
        spoken = {"n_fake": min(subject.n_held_out, MAX_RECORDINGS), "texts": "each recording's once"}
        return [
            Score(names(""), subject.compared_protocol | spoken | recognizer, score),
            Score(names("_real"), subject.held_out_protocol | recognizer, score_real),
        ]


def names(end: str) -> tuple[str, ...]:
    """Returns the names of the fields of `Errors` in evaluation.json, such as "word_error". end: suffix, such as "_real"."""
    return tuple(f"{name}_error{end}" for name in Errors._fields)


def speak(subject: CaptionedSound) -> np.ndarray:
    """Generates speech for the held-out texts, and returns its log-mel frames: float16 [N, F, bands], in the order of the split.

    N is the number of held-out texts, but at most MAX_RECORDINGS.
    """
    model, audio, given = subject.run.model, subject.data.spec["audio"], subject.run.reference()
    request = model.request(n=SPEAK_CHUNK, **subject.request)
    assert subject.held_out.caption is not None
    # The real recordings beside them are cut at the same number.
    texts, seed = subject.held_out.caption[:MAX_RECORDINGS], jax.random.key(subject.options.seed)

    @jax.jit
    def generate(state: State, key: Key, texts: np.ndarray) -> Array:
        made = model.generate(state, key, {**given, GIVEN: texts}, request)
        return frames_of(subject.run.to_images(made)["samples"], audio)

    spoken = []
    for i, start in enumerate(range(0, len(texts), SPEAK_CHUNK)):
        # The last chunk is filled up with its last text, so that all chunks compile once.
        rows = np.minimum(np.arange(start, start + SPEAK_CHUNK), len(texts) - 1)
        frames = generate(subject.state, jax.random.fold_in(seed, i), texts[rows])
        # Sound that is not finite is silence to the recognizer: every word is then an error.
        spoken.append(np.nan_to_num(np.asarray(frames), nan=-1, posinf=-1, neginf=-1).astype(np.float16))
    return np.concatenate(spoken)[: len(texts)]


METRICS: tuple[Metric[CaptionedSound], ...] = (Words(),)
"""The metrics that are only computed for a run on recordings with texts."""
