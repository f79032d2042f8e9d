"""The word error of generated speech: edit distances, the recognizer, and the metric of gen.evaluate."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Feature
from gen.errors import UserError
from gen.evaluation import words
from gen.evaluation.sound import CaptionedSound
from gen.families.captions import GIVEN
from gen.metrics import recognizer
from gen.metrics.edits import edit_distance, error_rates
from gen.metrics.recognizer import Examples, Recipe, augment, decode, encode, fits, spell, stretch, train
from gen.networks.recognizer import around

PLAIN = Recipe(speed=0, pitch=0, noise=0, masks=0)


def test_the_edit_distance_is_that_of_a_plain_recursion():
    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(2))
        assert edit_distance(a, b) == distance(a, b)


def test_errors_are_divided_by_the_length_of_the_true_texts():
    found, true = ["the cat sat", "ab"], ["the cat", "a bee"]
    # Words: one insertion, then a substitution and a deletion. Characters: four insertions, then " " and "ee" are missing.
    assert error_rates(found, true) == ((1 + 2) / 4, (4 + 3) / 12)
    assert error_rates(["", ""], true) == (1, 1)


def test_greedy_decoding_of_a_hand_example():
    # "a a" with one a twice as long, a doubled b with a blank between, and spaces at both ends.
    path = [3, 0, 1, 1, 3, 1, 0, 0, 2, 2, 0, 2, 3]
    assert decode(np.array(path), "ab ") == "a abb"
    assert decode(np.zeros(4, int), "ab ") == ""


def test_words_are_those_of_a_lexicon():
    lexicon = ["the", "level", "label", "be"]
    assert spell("thee lebel bx", lexicon) == "the level be"
    assert spell("", lexicon) == ""


def test_texts_are_labels_without_characters_that_the_alphabet_lacks():
    labels, padding = encode(["ab!", "", "bba"], "ab")
    assert labels.tolist() == [[1, 2, 0], [0, 0, 0], [2, 2, 1]]
    assert padding.tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
    # "bba" needs a blank between its first two letters.
    assert fits(labels, padding, 3).tolist() == [True, True, False]
    assert fits(labels, padding, 4).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_stretching_interpolates_and_ends_with_silence(axis, factor):
    x = np.random.default_rng(0).normal(size=(9, 7))
    found = np.asarray(stretch(jnp.asarray(x, jnp.float32), jnp.float32(factor), axis))
    moved, got = np.moveaxis(x, axis, 0), np.moveaxis(found, axis, 0)
    at = np.arange(len(moved)) * factor
    padded = np.concatenate([moved, np.full((20, moved.shape[1]), -1.0)])
    wanted = [np.interp(at, np.arange(len(padded)), column) for column in padded.T]
    np.testing.assert_allclose(got, np.stack(wanted, 1), atol=1e-5)


def test_augmentation_masks_frames_and_bands_and_may_be_turned_off():
    x = jnp.ones((30, 12))
    masked = replace(PLAIN, masks=2, masked_frames=6, masked_bands=4)

    @jax.jit
    def both(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(lambda key: augment(x, key, masked))(keys), augment(x, keys[0], PLAIN)

    found, same = (np.asarray(y) for y in both(jax.random.split(jax.random.key(0), 20)))
    np.testing.assert_array_equal(same, x)
    assert set(np.unique(found)) == {0, 1}
    frames, bands = (found == 0).all(2).sum(1), (found == 0).all(1).sum(1)
    assert 0 < frames.max() <= 2 * 7
    assert 0 < bands.max() <= 2 * 5
    assert len(set(frames.tolist())) > 3, "each recording has masks of its own"


def test_a_layer_reads_two_positions_on_each_side():
    x = np.random.default_rng(0).normal(size=(1, 9, 2)).astype(np.float32)
    found = np.asarray(around(jnp.asarray(x), 3))
    for t in range(9):
        reach = [t - 6, t - 3, t, t + 3, t + 6]
        wanted = [x[0, i] if 0 <= i < 9 else np.zeros(2) for i in reach]
        np.testing.assert_array_equal(found[0, t], np.concatenate(wanted))


def light(texts: list[str], frames: int) -> np.ndarray:
    """Returns frames in which each letter lights a band of its own for five frames."""
    found = np.full((len(texts), frames, 4), -1, np.float16)
    for row, text in zip(found, texts, strict=True):
        for i, letter in enumerate(text):
            row[6 * i : 6 * i + 5, "abc ".index(letter)] = 1
    return found


@pytest.mark.slow
def test_a_recognizer_learns_to_read():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc "), 5)) for _ in range(80)]
    recipe = Recipe(16, (1,), 0, steps=200, warmup=10, learning_rate=1e-2, noise=0.05, masks=0, pitch=0)
    params = train(Examples(light(texts[:60], 32), texts[:60]), "abc ", recipe, seed=0)
    found = recognizer.recognize(params, light(texts[60:], 32), "abc ", recipe)
    assert error_rates(found, [" ".join(text.split()) for text in texts[60:]]).character < 0.1


def test_texts_that_are_too_long_for_their_recordings_are_refused():
    with pytest.raises(UserError, match="leave words out of --metrics"):
        train(Examples(np.zeros((1, 4, 3), np.float16), ["aab"]), "ab", PLAIN, seed=0)


def test_real_and_generated_speech_are_read_by_one_recognizer(monkeypatch):
    """Real recordings are read without an error. A generated one has a wrong word, and another one a word that is only spelled wrong."""
    real = Examples(np.zeros((3, 2, 4), np.float16), ["good day", "yes", "no no"])
    read = {0.0: real.texts, 1.0: ["good day", "yess", "no so"]}
    lexicon = ["no", "so", "good", "day", "yes"]
    trained = recognizer.Trained(lambda frames: read[float(frames.max())], lexicon, {"weights": "abc"})
    subject = SimpleNamespace(
        data=None,
        recognizer=trained,
        n_held_out=3,
        compared_protocol={"n_fake": 9, "run": "r"},
        held_out_protocol={"n": 3},
        options=SimpleNamespace(split="test"),
    )
    monkeypatch.setattr(words, "read_recordings", lambda data, split: real)
    monkeypatch.setattr(words, "speak", lambda subject: np.ones((3, 2, 4), np.float16))
    made, known = words.Words().plan(cast("CaptionedSound", subject))
    assert made.names == ("word_error", "character_error") and known.names == (
        "word_error_real",
        "character_error_real",
    )
    assert list(made.compute()) == [1 / 5, 2 / 16] and list(known.compute()) == [0, 0]
    assert made.protocol == {"n_fake": 3, "run": "r", "texts": "each recording's once", "weights": "abc"}
    assert known.protocol == {"n": 3, "weights": "abc"}


def test_each_held_out_text_is_spoken_in_its_place(monkeypatch):
    """The loudness of a fake recording says which text it was made for. The last chunk is not full."""
    monkeypatch.setattr(words, "SPEAK_CHUNK", 2)
    texts = np.array([[3, 0], [1, 0], [2, 0]], np.int32)

    def generate(state: Any, key: Any, given: Any, request: Any) -> dict[str, jax.Array]:
        assert request.n == len(given[GIVEN]) == 2
        return {"samples": given[GIVEN][:, :1, None] * jnp.sin(jnp.arange(400.0))[None, :, None] / 4}

    model = SimpleNamespace(generate=generate, request=lambda n, **more: SimpleNamespace(n=n, **more))
    subject = SimpleNamespace(
        run=SimpleNamespace(model=model, reference=dict, to_images=lambda made: made),
        data=SimpleNamespace(spec={"audio": Feature((400, 1), sample_rate=1000)}),
        held_out=SimpleNamespace(caption=texts),
        options=SimpleNamespace(seed=0),
        request={},
        state={},
    )
    frames = words.speak(cast("CaptionedSound", subject))
    loudness = frames[:, 5].max(-1)
    assert frames.shape[0] == 3
    assert np.argsort(loudness).tolist() == [1, 2, 0]
