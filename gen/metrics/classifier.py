"""Trains small image classifiers on a data set. Their accuracy is a score (TSTR), and their features compare images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.core import Array, Dataset, Key, Params
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.data.order import permute
from gen.errors import UserError
from gen.families.labels import num_classes
from gen.metrics.features import Features
from gen.metrics.images import READ_CHUNK, ImageSet, read_split, read_training, to_float
from gen.networks.classifier import Classifier

FORMAT = 1
"""Part of the cache key: raise it when the training below changes, so that old classifiers are not reused."""
MAX_TRAINING_IMAGES = 60_000
"""Largest number of training images of a classifier whose features compare images."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a network and of its training: AdamW (Loshchilov and Hutter 2019), a cosine schedule, no augmentation."""

    convolutions: tuple[int, ...]
    """Output channels of each convolution, with 4x4 kernels and stride 2. (): no convolutions."""
    hidden: tuple[int, ...]
    """Widths of the dense layers before the logits. The outputs of the last are the features."""
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def network(self, classes: int) -> Classifier:
        """Returns the untrained network for this number of classes."""
        return Classifier(self.convolutions, self.hidden, classes)


CONVOLUTIONAL = Recipe((16, 32), (128,), steps=2500, batch_size=128, learning_rate=3e-3, weight_decay=0.1)
"""The recipe of classifiers whose features compare images. On Fashion-MNIST with 54,000 training images it takes half a minute on two
cores, and reaches a test accuracy of 91%."""


def train(examples: ImageSet, classes: int, recipe: Recipe, seed: int) -> Params:
    """Trains `recipe.network(classes)` on `examples` and returns its parameters, which depend on the arguments alone.

    Each epoch draws its batches from a new permutation. If there are fewer examples than a batch holds, a batch is all of them.
    """
    n = len(examples.image)
    size = min(recipe.batch_size, n)
    # The rows of all steps, because training is one compiled scan: dispatching such small steps one by one is slow.
    order = permute(n)(seed, range(recipe.steps * size)).reshape(recipe.steps, size)
    return _fit(examples.image, examples.label, order.astype(np.int32), jax.random.key(seed), classes, recipe)


@partial(jax.jit, static_argnames=("classes", "recipe"))
def _fit(images: Array, labels: Array, order: Array, key: Key, classes: int, recipe: Recipe) -> Params:
    """Trains the network in one compiled loop. order: int32 [steps, B], the examples of each step."""
    network = recipe.network(classes)
    tx = optax.adamw(optax.cosine_decay_schedule(recipe.learning_rate, len(order)), weight_decay=recipe.weight_decay)

    def loss(params: Params, rows: Array) -> Array:
        # The images stay bytes on the device, and only the rows of a step become floats.
        logits, _ = _forward(network, params, to_float(images[rows]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry: tuple[Params, optax.OptState], rows: Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = network.init(key, to_float(images[:1]))
    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


def accuracy(params: Params, examples: ImageSet, classes: int, recipe: Recipe) -> float:
    """Returns the fraction of examples whose label is the likeliest class, in [0, 1]."""
    assert examples.label is not None
    correct = 0
    # In chunks, since the activations of a whole split may not fit in memory.
    for i in range(0, len(examples.image), READ_CHUNK):
        probabilities = _classify(params, to_float(examples.image[i : i + READ_CHUNK]), classes, recipe)[1]
        correct += int((np.asarray(probabilities).argmax(axis=-1) == examples.label[i : i + READ_CHUNK]).sum())
    return correct / len(examples.image)


NO_CLASSIFIER = "there is no classifier to compare images with"
PIXELS = "compare their pixels (gen.evaluate --features pixels)"


class OneClassError(UserError):
    """Raised if the data have several classes, but all training images have the same class."""


def untrainable(data: Dataset) -> str | None:
    """Returns the reason why no classifier can be trained on the data. None: a classifier can be trained."""
    if "label" not in data.spec:
        return "the data have no labels"
    # A classifier of one class learns nothing. By its features, all sets of images would look the same.
    return "the data have one class only" if num_classes(data.spec) < 2 else None


def classifier_features(data: Dataset, recipe: Recipe = CONVOLUTIONAL) -> Features:
    """Returns the features and class probabilities of a classifier of the data's training split.

    The classifier is trained once, with seed 0 on at most MAX_TRAINING_IMAGES images. Its weights are kept in the user's cache.

    Raises: UserError if the data have no labels or only one class; OneClassError if all training images have the same class.
    """
    if reason := untrainable(data):
        raise UserError(f"{NO_CLASSIFIER}, since {reason}; {PIXELS}")
    classes = num_classes(data.spec)

    def make() -> dict[str, np.ndarray]:
        examples = read_training(data, min(MAX_TRAINING_IMAGES, data.sizes["train"]))
        assert examples.label is not None
        if len(np.unique(examples.label)) < 2:
            raise OneClassError(f"{NO_CLASSIFIER}, since all training images have one class; {PIXELS}")
        params = train(examples, classes, recipe, seed=0)
        score = accuracy(params, read_split(data, "test"), classes, recipe)
        return {"accuracy": np.array(score), **jax.device_get(flatten_dict(params, sep="."))}

    # The key has everything that the weights depend on.
    key = sha256(f"classifier {FORMAT}", data.digest, repr(sorted(data.spec.items())), repr(recipe))
    arrays = load_or_make(key, make, "a classifier of images")
    weights = {name: array for name, array in sorted(arrays.items()) if name != "accuracy"}
    # The weights are put on the device once. Otherwise each call of `extract` would transfer them.
    params = jax.device_put(unflatten_dict(weights, sep="."))

    def extract(images: Array) -> tuple[Array, Array]:
        return _classify(params, images, classes, recipe)

    protocol: dict[str, str | float] = {
        "features": "classifier of the training split",
        "weights": sha256(*(part for pair in weights.items() for part in pair)),
        "resize": "none",
        "accuracy": float(arrays["accuracy"]),
    }
    return Features(extract, protocol)


@partial(jax.jit, static_argnames=("classes", "recipe"))
def _classify(params: Params, images: Array, classes: int, recipe: Recipe) -> tuple[Array, Array]:
    """Returns features [B, D] and class probabilities [B, classes] of images in [-1, 1]."""
    logits, features = _forward(recipe.network(classes), params, images)
    return features, jax.nn.softmax(logits)


def _forward(network: Classifier, params: Params, images: Array) -> tuple[Array, Array]:
    """Returns logits [B, classes] and features [B, D] of images in [-1, 1]."""
    return cast("tuple[Array, Array]", network.apply(params, images))
