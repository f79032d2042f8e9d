"""Classifiers of a data set's images, the score of training on generated images, and its Gaussian baseline."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.data.images import Images
from gen.errors import UserError
from gen.metrics import classifier
from gen.metrics import images as metrics_images
from gen.metrics.classifier import Recipe, accuracy, classifier_features
from gen.metrics.features import pixels
from gen.metrics.gaussian import gaussian
from gen.metrics.images import ImageSet
from gen.metrics.tstr import baselines, tstr
from gen.networks.classifier import Classifier, patches

RNG = np.random.default_rng(0)
PERCEPTRON = Recipe((), (32,), steps=150, batch_size=64, learning_rate=3e-3, weight_decay=0.1)
CONVOLUTIONAL = replace(PERCEPTRON, convolutions=(8,), hidden=(16,))


@pytest.fixture(scope="module")
def digits():
    return Images().build()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def apply(network: Classifier, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs: Any = network.apply(params, x)
    return outputs


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 28), (1, 5)])
def test_a_matrix_product_of_patches_is_a_convolution(height, width):
    x = jnp.asarray(RNG.normal(size=(2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(4, 4, 3, 5)), jnp.float32)
    expected = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(patches(x, 4, 2) @ kernel.reshape(-1, 5), expected, atol=1e-4)


def test_the_features_are_the_last_hidden_layer():
    network, x = Classifier((4,), (6, 7), 3), jnp.ones((2, 8, 8, 1))
    params = network.init(jax.random.key(0), x)
    logits, features = apply(network, params, x)
    assert features.shape == (2, 7)
    assert float(features.min()) >= 0
    kernel, bias = (np.asarray(params["params"]["Dense_3"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(np.asarray(features) @ kernel + bias, logits, rtol=1e-4, atol=1e-6)


def test_real_images_are_the_preprocessed_ones_as_bytes(digits):
    whole, some = metrics_images.read_split(digits, "test"), metrics_images.read_training(digits, 1100)
    assert whole.image.shape == (360, 8, 8, 1)
    assert some.image.shape == (1100, 8, 8, 1)
    raw = np.concatenate([b["image"][b["weight"] > 0] for b in digits.evaluation("test", 100)])  # in [0, 16]
    np.testing.assert_array_equal(whole.image, np.rint(raw * (255 / 16)))
    np.testing.assert_array_equal(some.label, digits.batch(0, 0, range(1100))["label"])
    np.testing.assert_allclose(np.asarray(metrics_images.to_float(raw * 0 + 255)), 1)
    binary = metrics_images.read_split(replace(Images(), binarize="static").build(), "test")
    assert np.unique(binary.image).tolist() == [0, 255]


def test_features_of_any_number_of_images_are_in_order():
    images = RNG.integers(0, 256, (2 * metrics_images.FEATURE_CHUNK + 3, 2, 2, 1)).astype(np.uint8)
    found, probabilities = metrics_images.extract_features(pixels(), images)
    np.testing.assert_allclose(found, images.reshape(len(images), -1) / 127.5 - 1, atol=1e-6)
    assert probabilities is None


def test_training_depends_on_its_arguments_alone(digits):
    examples = metrics_images.read_training(digits, 50)  # fewer than a batch
    brief = replace(PERCEPTRON, steps=5)
    one, again, other = (jax.tree.leaves(classifier.train(examples, 10, brief, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_accuracy_is_the_fraction_that_is_right(digits):
    """The images fill one chunk and a part of another."""
    examples = metrics_images.read_split(digits, "train")
    assert examples.label is not None
    params = classifier.train(examples, 10, PERCEPTRON, 0)
    logits, _ = apply(PERCEPTRON.network(10), params, metrics_images.to_float(examples.image))
    right = np.asarray(logits).argmax(-1) == examples.label
    assert len(right) > metrics_images.READ_CHUNK
    assert accuracy(params, examples, 10, PERCEPTRON) == right.mean()
    assert right.mean() > 0.9
    assert accuracy(params, ImageSet(examples.image[right], examples.label[right]), 10, PERCEPTRON) == 1


def test_real_images_give_trtr_and_shuffled_labels_give_chance(digits):
    real, test = metrics_images.read_training(digits, 600), metrics_images.read_split(digits, "test")
    known = baselines(digits, 600, "test", PERCEPTRON)
    assert known.trtr == tstr(real, test, 10, PERCEPTRON).mean
    assert known.trtr > 0.85
    assert known.trtr - 0.2 < known.tstr_gaussian < 1
    assert real.label is not None
    shuffled = ImageSet(real.image, RNG.permutation(real.label))
    assert tstr(shuffled, test, 10, PERCEPTRON).mean < 0.25


def test_a_score_is_the_mean_and_deviation_over_the_seeds(digits):
    real, test = metrics_images.read_training(digits, 100), metrics_images.read_split(digits, "validation")
    each = [accuracy(classifier.train(real, 10, PERCEPTRON, s), test, 10, PERCEPTRON) for s in (0, 1, 2)]
    found = tstr(real, test, 10, PERCEPTRON)
    assert found.mean == pytest.approx(np.mean(each))
    assert found.std == pytest.approx(np.std(each))
    assert found.std > 0


def test_more_real_images_than_there_are_is_an_error(digits):
    with pytest.raises(UserError, match="1294 real training images are needed, and the data have 1293"):
        baselines(digits, 1294, "test", PERCEPTRON)


def test_a_classifier_is_trained_once(digits, monkeypatch):
    images = metrics_images.to_float(metrics_images.read_split(digits, "test").image[:20])
    first = classifier_features(digits, CONVOLUTIONAL)
    assert float(first.protocol["accuracy"]) > 0.7
    assert str(first.protocol["features"]).startswith("classifier")
    features, probabilities = first.extract(images)
    assert features.shape == (20, 16)
    np.testing.assert_allclose(np.asarray(probabilities).sum(1), 1, rtol=1e-5)

    monkeypatch.setattr(classifier, "train", lambda *_, **__: pytest.fail("trained again"))
    kept = classifier_features(digits, CONVOLUTIONAL)
    assert kept.protocol == first.protocol
    np.testing.assert_array_equal(kept.extract(images)[0], features)
    for data, recipe in ((digits._replace(digest="other"), CONVOLUTIONAL), (digits, PERCEPTRON)):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            classifier_features(data, recipe)


def test_data_without_labels_have_no_classifier(digits):
    with pytest.raises(UserError, match="the data have no labels; compare their pixels"):
        classifier_features(digits._replace(spec={"image": digits.spec["image"]}))


def correlated(mean: float, n: int) -> np.ndarray:
    """Returns n images of 2 x 3 correlated pixels, with a mean of `mean` and deviations of 10 to 20 levels."""
    mix = RNG.normal(size=(6, 6)) * 6
    return np.rint(mean + RNG.normal(size=(n, 6)) @ mix).reshape(n, 2, 3, 1).clip(0, 255).astype(np.uint8)


def test_a_gaussian_per_class_has_its_mean_and_covariance():
    images, labels = np.concatenate([correlated(110, 500), correlated(140, 40)]), np.repeat([0, 1], [500, 40])
    drawn = gaussian(ImageSet(images, labels), np.arange(100_000) % 2, seed=0)
    assert drawn.label is not None

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).astype(np.float64)

    for c in (0, 1):
        real, fake = flat(images[labels == c]), flat(drawn.image[drawn.label == c])
        expected = np.cov(real.T) + np.eye(6) / 12  # the variance of rounding to whole levels
        deviation = np.sqrt(np.diag(expected))
        np.testing.assert_allclose(fake.mean(0), real.mean(0), atol=5 * deviation.max() / np.sqrt(50_000))
        error = (np.cov(fake.T) - expected) / np.outer(deviation, deviation)
        assert np.abs(error).max() < 5 * np.sqrt(2 / 50_000)


def test_gaussian_samples_stay_in_the_subspace_and_the_range_of_the_pixels():
    """Two examples span a line, so the covariance is singular. Values outside the range of bytes are clipped, not wrapped."""
    pair = np.array([[100, 50, 0, 255], [100, 60, 40, 205]], np.uint8).reshape(2, 2, 2, 1)
    drawn = gaussian(ImageSet(pair, np.zeros(2, np.int32)), np.zeros(2000, np.int32), seed=1).image.reshape(-1, 4)
    assert (drawn[:, 0] == 100).all()
    assert drawn[:, 2].min() == 0
    assert drawn[:, 3].max() == 255
    inside = (drawn[:, 2] > 0) & (drawn[:, 3] < 255)
    np.testing.assert_allclose(drawn[inside, 2], 4.0 * drawn[inside, 1] - 200, atol=2.6)


def test_one_example_is_its_own_gaussian_and_a_class_without_examples_is_an_error():
    one = ImageSet(correlated(100, 1), np.array([1], np.int32))
    np.testing.assert_array_equal(gaussian(one, np.ones(3, np.int32), seed=0).image, np.repeat(one.image, 3, axis=0))
    with pytest.raises(UserError, match="no training image has class 0"):
        gaussian(one, np.zeros(3, np.int32), seed=0)
