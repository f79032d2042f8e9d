"""How well images fit their captions: the networks that compare them, their scores, and the metric of gen.evaluate."""

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from gen import core
from gen.core import Dataset
from gen.data.images.captions import Captioned
from gen.errors import UserError
from gen.evaluation.captions import CaptionedSubject
from gen.evaluation.plan import plan_scores
from gen.evaluation.score import Options
from gen.families.captions import GIVEN
from gen.metrics.captions import Fit, Recipe, Scorer, contrast, fit, halves, load_scorer, unit, win
from gen.metrics.images import ImageSet, read_split, to_float
from gen.networks.text_encoder import TextEncoder

RNG = np.random.default_rng(0)
RECIPE = Recipe(convolutions=(4,), hidden=(32,), width=16, steps=150, batch_size=24, learning_rate=5e-3)


def test_the_loss_is_the_cross_entropy_of_finding_a_caption_and_an_image():
    images, captions = (np.array(unit(jnp.asarray(RNG.normal(size=(4, 3))))) for _ in range(2))
    # Examples 1 and 2 have the same caption.
    captions[2] = captions[1]
    same = np.eye(4, dtype=bool)
    same[1, 2] = same[2, 1] = True
    logits = 7 * images @ captions.T
    by_image, by_caption = -log_softmax(logits, axis=1), -log_softmax(logits, axis=0)
    found = contrast(jnp.asarray(images), jnp.asarray(captions), jnp.asarray(same), jnp.float32(7))
    expected = np.mean([(matrix[i, same[i]]).mean() for matrix in (by_image, by_caption.T) for i in range(4)])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_precision_is_the_share_of_all_draws_of_other_captions():
    similarity, own = RNG.normal(size=(5, 7)), np.array([0, 3, 6, 3, 2])
    for candidates in (2, 4, 7):
        won = [
            all(row[own_i] > row[j] for j in drawn)
            for row, own_i in zip(similarity, own, strict=True)
            for drawn in combinations([j for j in range(7) if j != own_i], candidates - 1)
        ]
        below = (similarity < similarity[np.arange(5), own][:, None]).sum(1)
        assert win(below, 7, candidates) == pytest.approx(np.mean(won))
    assert fit(similarity, own).similarity == pytest.approx(similarity[np.arange(5), own].mean())


def test_a_text_is_encoded_without_the_places_after_its_end():
    network = TextEncoder(vocab=6, end=0, width=8, dtypes={})
    tokens = jnp.asarray([[3, 1, 2, 0, 0, 0], [4, 5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])

    @jax.jit
    def encode(key: jax.Array) -> list[Any]:
        params = network.init(key, tokens)
        return [network.apply(params, x) for x in (tokens, tokens[:, :3], tokens[:, [1, 0, 2, 3, 4, 5]])]

    long, short, swapped = encode(jax.random.key(0))
    np.testing.assert_allclose(long, short, atol=1e-6)
    assert not np.any(long[2]), "no text is the vector zero"
    assert np.abs(long[0] - swapped[0]).max() > 0.01, "the order of words matters"


@pytest.fixture(scope="module")
def data(captions: Path) -> Dataset:
    return Captioned(name=f"captions:{captions}", held_out=0.2, tokenizer="character", length=8).build()


@pytest.fixture(scope="module")
def scorer(data, tmp_path_factory) -> Scorer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        trained = load_scorer(data, RECIPE)
        patch.setattr("gen.metrics.captions.train", lambda *_: pytest.fail("it is kept in the cache"))
        assert load_scorer(data, RECIPE).protocol == trained.protocol
        return trained


def drawing(data: Dataset, scorer: Scorer, options: Options, shift: int = 0, obedient: bool = True) -> CaptionedSubject:
    """Returns a subject whose model draws the held-out image of each caption, or of the caption `shift` places after it."""
    held_out = read_split(data, options.split)
    images, captions = to_float(np.roll(held_out.image, -shift, axis=0)), jnp.asarray(held_out.caption)

    def generate(state: Any, key: jax.Array, given: Any, request: Any) -> dict[str, jax.Array]:
        asked = given[GIVEN] if GIVEN in given else captions[:1]
        place = (asked[:, None] == captions[None]).all(-1).argmax(1)
        return {"samples": images[place], "captions": asked if obedient else captions[place - 1]}

    model = SimpleNamespace(generate=generate, init=lambda key: jnp.zeros(()), request=core.Request)
    run: Any = SimpleNamespace(
        model=model, workdir=Path("run"), digest=str, reference=dict, to_images=lambda made: made, spec=data.spec
    )
    subject = CaptionedSubject(run, 1, data, options)
    subject.__dict__.update(state=0, scorer=scorer)
    return subject


def measure(subject: CaptionedSubject) -> dict[str, float]:
    scores = plan_scores(subject).scores
    return {name: x for score in scores for name, x in zip(score.names, score.compute(), strict=True)}


def options(data: Dataset, **changes: Any) -> Options:
    return Options((Path("run"),), ("captions",), **{"n": 2 * data.sizes["test"], **changes})


@pytest.mark.slow
def test_images_of_the_captions_score_as_real_ones_and_images_of_others_do_not(data, scorer):
    right, wrong = (measure(drawing(data, scorer, options(data), shift)) for shift in (0, 1))
    for name in Fit._fields:
        assert right[f"caption_{name}"] == pytest.approx(right[f"caption_{name}_real"], abs=1e-5)
    # A colour is drawn by a third of the captions, and the networks have never seen the number.
    assert right["caption_choice"] > 0.75 > 0.6 > wrong["caption_choice"]
    assert right["caption_similarity"] > wrong["caption_similarity"] + 0.2
    assert right["train_distance"] == pytest.approx(right["train_distance_real"], rel=1e-5)
    known, image = (read_split(data, split).image / 127.5 for split in ("train", "test"))
    distance = np.sqrt(np.square(image[:, None] - known[None]).sum((2, 3, 4))).min(1).mean()
    assert right["train_distance"] == pytest.approx(distance, rel=1e-4)


def test_the_nearest_caption_of_training_has_the_same_colour(data, scorer):
    found = drawing(data, scorer, options(data))
    pictures = read_split(data, "test").image, found.known.image[found.nearest[found.captions[1]]]
    asked, nearest = (image[:, 4, 4].argmax(-1) for image in pictures)
    assert (asked == nearest).mean() > 0.8


def test_an_image_is_judged_by_the_networks_that_have_not_seen_its_neighbour():
    """Against vectors that say by which networks they were made."""
    scorer = Scorer(lambda half, x: np.full((len(x), 1), 1.0 + half), lambda half, x: np.ones((len(x), 1)), {})
    found = scorer.similarity(np.zeros((3, 2, 2, 1)), np.zeros((2, 4)), np.array([0, 1, 0]))
    np.testing.assert_array_equal(found, [[2, 2], [1, 1], [2, 2]])


def test_variants_are_in_the_same_half(data):
    known = read_split(data, "train")
    # Each picture of this folder is a group of its own.
    assert known.group is not None and len(set(known.group.tolist())) == len(known.image)
    group = np.repeat(np.arange(5, 15), 3)
    half = halves(ImageSet(np.zeros(30), group=group))
    assert all(len(set(half[group == each].tolist())) == 1 for each in group) and half.sum() == 15
    with pytest.raises(UserError, match="variants of one"):
        halves(ImageSet(np.zeros(2), group=np.array([3, 3])))


def test_captions_are_as_frequent_as_in_the_split_and_are_in_the_protocol(data, scorer):
    n = data.sizes["test"]
    more, fewer, other = (
        drawing(data, scorer, options(data, n=count, seed=seed)).conditions(count)[GIVEN]
        for count, seed in ((3 * n, 0), (n // 2, 0), (3 * n, 1))
    )
    held_out = read_split(data, "test").caption
    assert held_out is not None
    assert sorted(map(tuple, more)) == sorted(3 * [*map(tuple, held_out)])
    np.testing.assert_array_equal(more[: n // 2], fewer)
    assert not np.array_equal(more, other)
    scores = plan_scores(drawing(data, scorer, options(data))).scores
    protocols = {score.names[0]: score.protocol for score in scores}
    assert protocols["caption_similarity"]["captions"] == protocols["train_distance"]["captions"] == "test"
    assert "run" not in protocols["caption_similarity_real"], "references don't depend on the run"


def test_models_that_do_not_read_captions_are_told_apart(data, scorer):
    disobedient = drawing(data, scorer, options(data), obedient=False)
    with pytest.raises(UserError, match=r"does not generate the captions that it is given.*captions_to_generate"):
        measure(disobedient)
    blind = drawing(data, scorer, options(data))
    generate = blind.run.model.generate
    blind.run.model.generate = lambda *args: {"samples": generate(*args)["samples"]}  # pyright: ignore
    with pytest.raises(UserError, match="the model reads no captions"):
        plan_scores(blind)
    assert blind.conditions(3) == {}
