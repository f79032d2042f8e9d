"""Measures how well images fit their captions, with a small image network and a small text network that embed both as vectors.

The networks are trained on the training split of the data, so scores of different data can't be compared. Source: Radford et al. 2021
(CLIP) for the loss; Hessel et al. 2021 (CLIPScore) and Xu et al. 2018 (R-precision) for the scores.

Networks recognize the captions of the images that they were trained on too easily. So there are two pairs of networks, each trained on
half of the training split. An image is judged by the pair that was not trained on the training image nearest to it. So copies of
training images have no advantage over other images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.core import Array, Dataset, Feature, Key, Params
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.data.order import permute
from gen.errors import UserError
from gen.metrics.images import READ_CHUNK, ImageSet, read_split, to_float
from gen.networks.classifier import Classifier
from gen.networks.layers import Dense
from gen.networks.text_encoder import TextEncoder

FORMAT = 1
"""Part of the cache key. Raise it if the training below changes, so that old scorers are not reused."""
MAX_SCALE = 100.0
"""Upper bound on the trained factor by which the loss multiplies similarities. Radford et al. 2021, section 2.5."""
CANDIDATES = 100
"""Number of captions from which R-precision chooses the caption of an image: the right one and 99 others. Xu et al. 2018, section 4."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the image network, the text network and their training.

    The training uses AdamW (Loshchilov and Hutter 2019), a cosine schedule, and no augmentation.
    """

    convolutions: tuple[int, ...] = (16, 32)
    """Output channels of each convolution of the image network."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the dense layers of the image network before the vector of an image."""
    width: int = 128
    """Size of the vectors of images and captions."""
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1


class Towers(nn.Module):
    """The image network and the text network. They embed images and captions as vectors of length 1."""

    recipe: Recipe
    vocab: int
    """Size of the vocabulary of the captions."""
    end: int
    """The token that pads captions."""

    def setup(self):
        self.images = Classifier(self.recipe.convolutions, self.recipe.hidden, self.recipe.width)
        self.encoder = TextEncoder(self.vocab, self.end, self.recipe.width, {})
        self.last = Dense(self.recipe.width)
        # The parameter is the log of the factor, so that the factor stays positive. Initial value: Radford et al. 2021, section 2.4.
        self.log_scale = self.param("log_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def image(self, x: Array) -> Array:
        """Returns the vectors of images, [B, width], each of length 1. x: [B, H, W, C] in [-1, 1]."""
        return unit(self.images(x)[0])

    def caption(self, tokens: Array) -> Array:
        """Returns the vectors of captions, [B, width], each of length 1. tokens: int32 [B, L]."""
        return unit(self.last(self.encoder(tokens)))

    def __call__(self, x: Array, tokens: Array) -> tuple[Array, Array, Array]:
        """Returns the vectors of images and of captions, [B, width] each, and the factor of their similarities."""
        return self.image(x), self.caption(tokens), jnp.minimum(jnp.exp(self.log_scale), MAX_SCALE)


def unit(x: Array) -> Array:
    """Divides vectors x [B, D] by their lengths. A vector of zeros stays zero."""
    # The gradient of a square root at 0 is infinite, and a vector may be zero.
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def contrast(images: Array, captions: Array, same: Array, scale: Array) -> Array:
    """Returns the mean of two cross-entropies: of finding each image's caption, and each caption's image, in the batch.

    images, captions: [B, D]. same: bool [B, B], whether two examples have the same caption. scale: []. Radford et al. 2021, figure 3.
    """
    # Examples with the same caption are all right answers, and share the target probability.
    logits, target = scale * images @ captions.T, same / same.sum(-1, keepdims=True)
    both = (optax.softmax_cross_entropy(x, target).mean() for x in (logits, logits.T))
    return sum(both, jnp.zeros(())) / 2


@partial(jax.jit, static_argnames=("towers",))
def _fit(images: Array, captions: Array, order: Array, key: Key, towers: Towers) -> Params:
    """Trains the networks in one compiled loop. order: int32 [steps, B], the examples of each step."""
    recipe = towers.recipe
    tx = optax.adamw(optax.cosine_decay_schedule(recipe.learning_rate, len(order)), weight_decay=recipe.weight_decay)

    def loss(params: Params, rows: Array) -> Array:
        tokens = captions[rows]
        image, caption, scale = cast("tuple[Array, ...]", towers.apply(params, to_float(images[rows]), tokens))
        return contrast(image, caption, (tokens[:, None] == tokens[None]).all(-1), scale)

    def step(carry: tuple[Params, optax.OptState], rows: Array) -> tuple[tuple[Params, optax.OptState], None]:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = towers.init(key, to_float(images[:1]), captions[:1])
    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


def train(examples: ImageSet, rows: np.ndarray, caption: Feature, recipe: Recipe, seed: int) -> Params:
    """Trains the networks on some images with captions and returns their parameters, which depend on the arguments alone.

    rows: int64 [n], the examples to train on. caption: the feature of the captions. If there are fewer examples than a batch holds, a
    batch is all of them.
    """
    size = min(recipe.batch_size, len(rows))
    # Training is one compiled scan, as for classifiers, because dispatching such small steps one by one is slow.
    order = rows[permute(len(rows))(seed, range(recipe.steps * size))].reshape(recipe.steps, size)
    towers = Towers(recipe, caption.vocab or 1, caption.end or 0)
    return _fit(examples.image, examples.caption, order.astype(np.int32), jax.random.key(seed), towers)


def halves(examples: ImageSet) -> np.ndarray:
    """Divides the training examples into two halves. Returns the half of each example, 0 or 1, int64 [N].

    Variants of an image, which have the same `group`, are in the same half.

    Raises: UserError if all examples are variants of one image.
    """
    assert examples.group is not None
    groups, own = np.unique(examples.group, return_inverse=True)
    if len(groups) < 2:
        raise UserError(
            "all training images are variants of one image, so captions can't be compared; leave captions out of --metrics"
        )
    return own % 2


class Scorer(NamedTuple):
    """Embeds images and captions as vectors of length 1. The product of two vectors is their similarity, in [-1, 1].

    Each half of the training split has its own networks.
    """

    image: Callable[[int, np.ndarray], np.ndarray]
    """(half, uint8 [N, H, W, C]) -> float32 [N, D], by the networks that were trained on this half."""
    caption: Callable[[int, np.ndarray], np.ndarray]
    """(half, tokens int32 [N, L]) -> float32 [N, D], by the networks that were trained on this half."""
    protocol: Mapping[str, object]
    """The recipe and the SHA-256 of the weights, which are stored with the scores."""

    def similarity(self, images: np.ndarray, captions: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Returns the similarity of each image with each caption, float32 [N, M].

        images: uint8 [N, H, W, C]. captions: int32 [M, L]. seen: [N], the half with the training image nearest to each image. The
        networks of the other half judge it.
        """
        found = np.zeros((len(images), len(captions)), np.float32)
        for half in (0, 1):
            judged = seen != half
            if judged.any():
                found[judged] = self.image(half, images[judged]) @ self.caption(half, captions).T
        return found

    def nearest(self, captions: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Returns the position of the caption in `known` [N, L] that is the most similar to each of `captions` [M, L], int64 [M].

        The similarities of both halves count equally.
        """
        asked, there = (np.concatenate([self.caption(half, x) for half in (0, 1)], 1) for x in (captions, known))
        # One caption at a time: all similarities at once may not fit in memory.
        return np.array([(there @ vector).argmax() for vector in asked])


def load_scorer(data: Dataset, recipe: Recipe = Recipe()) -> Scorer:
    """Returns the scorer of data with images, captions and groups, trained with seed 0 on the halves of the training split.

    It is trained once: its weights are kept in the user's cache. Raises: UserError as `halves`.
    """
    feature = data.spec["caption"]

    def make() -> dict[str, np.ndarray]:
        examples = read_split(data, "train")
        half = halves(examples)
        params = {str(i): train(examples, np.flatnonzero(half == i), feature, recipe, seed=0) for i in (0, 1)}
        return jax.device_get(flatten_dict(params, sep="."))

    # The key contains everything on which the weights depend. The digest depends on the captions' tokenizer, too.
    key = sha256(f"captions {FORMAT}", data.digest, repr(sorted(data.spec.items())), repr(recipe))
    weights = dict(sorted(load_or_make(key, make, "a scorer of captions").items()))
    towers = Towers(recipe, feature.vocab or 1, feature.end or 0)
    # The weights are put on the device once, and not at each call.
    params = jax.device_put(unflatten_dict(weights, sep="."))

    @jax.jit
    def embed_images(params: Params, x: Array) -> Array:
        return towers.apply(params, to_float(x), method=Towers.image)  # pyright: ignore[reportReturnType]

    @jax.jit
    def embed_captions(params: Params, tokens: Array) -> Array:
        return towers.apply(params, tokens, method=Towers.caption)  # pyright: ignore[reportReturnType]

    def image(half: int, x: np.ndarray) -> np.ndarray:
        return _in_chunks(partial(embed_images, params[str(half)]), x)

    def caption(half: int, tokens: np.ndarray) -> np.ndarray:
        return _in_chunks(partial(embed_captions, params[str(half)]), tokens)

    digest = sha256(*(part for pair in weights.items() for part in pair))
    protocol = {"scorer": asdict(recipe), "weights": digest}
    return Scorer(image, caption, protocol)


def _in_chunks(embed: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    """Returns the vectors of x [N, ...], computed in chunks, because the activations of a whole split may not fit in memory."""
    # The last chunk is filled up with the last example, so that all chunks have the same shape and compile once.
    rows = [np.minimum(np.arange(i, i + READ_CHUNK), len(x) - 1) for i in range(0, len(x), READ_CHUNK)]
    return np.concatenate([np.asarray(embed(jnp.asarray(x[row]))) for row in rows])[: len(x)]


class Fit(NamedTuple):
    """How well images fit their captions."""

    similarity: float
    """Mean similarity of an image and its caption, in [-1, 1]."""
    choice: float
    """Probability that an image is more similar to its own caption than to one random other caption of the split. By chance: 1/2."""
    precision: float
    """Probability that an image is more similar to its own caption than to each of CANDIDATES - 1 random others. By chance:
    1 / CANDIDATES."""


def fit(similarity: np.ndarray, own: np.ndarray) -> Fit:
    """Returns how well N images fit their captions.

    similarity: [N, M], of each image with each of M different captions. own: int [N], index of each image's caption.
    If there are fewer captions than CANDIDATES, all of them are candidates.
    """
    mine = similarity[np.arange(len(own)), own]
    below = (similarity < mine[:, None]).sum(1)
    m = similarity.shape[1]
    return Fit(float(mine.mean()), win(below, m, min(2, m)), win(below, m, min(CANDIDATES, m)))


def win(below: np.ndarray, m: int, candidates: int) -> float:
    """Returns the probability that an image is more similar to its own caption than to candidates - 1 other captions.

    The others are drawn without replacement from the m - 1 captions that are not its own. The result is the mean over
    images of C(below, candidates - 1) / C(m - 1, candidates - 1), with binomial coefficients C.

    below: int [N], the number of captions to which an image is less similar than to its own. m: number of captions.
    """
    # One factor for each of the candidates - 1 draws: the remaining captions with a lower similarity, over all remaining captions.
    drawn = np.arange(candidates - 1)
    return float((np.maximum(below[:, None] - drawn, 0) / (m - 1 - drawn)).prod(1).mean())
