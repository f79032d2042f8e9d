"""A small speech recognizer, trained on the recordings and texts of a data set. It measures the word error rate of generated speech.

It predicts characters by CTC (Graves et al. 2006), which allows only monotone alignments of sound and text. An attention model would
have to learn the alignment, for which small data sets do not suffice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.axis import split_keys
from gen.core import Array, Batch, Dataset, Feature, Key, Params
from gen.data.audio.frames import stretch, to_frames
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.data.order import permute
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.metrics.edits import Errors, edit_distance, error_rates
from gen.networks.recognizer import STACKED, Recognizer
from gen.networks.spectra import Mel

FORMAT = 1
"""Part of the cache key. Raise it if the training below changes, so that old recognizers are not reused."""
MAX_RECORDINGS = 4000
"""Largest number of recordings that are read from a split, because their frames are held in memory."""
CHUNK = 64
"""Number of recordings that are read or recognized at a time."""
Carry = tuple[Params, optax.OptState]
"""The parameters, and the state of the optimizer."""
BLANK = 0
"""Index of the logit of "no character". Character i of the alphabet has the index i + 1."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the network and of its training: AdamW, a cosine schedule after a warmup, and augmentation of the frames."""

    width: int = 128
    """Channels of each layer."""
    dilations: tuple[int, ...] = (1, 1, 2, 2)
    """Dilation of each layer's convolution over time."""
    dropout: float = 0.2
    steps: int = 2000
    warmup: int = 200
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    speed: float = 0.15
    """Recordings are played faster by a random factor in [1 - speed, 1 + speed]."""
    pitch: float = 0.1
    """Band b is read from band b times a random factor in [1 - pitch, 1 + pitch] (Jaitly and Hinton 2013)."""
    noise: float = 0.1
    """Standard deviation of the noise that is added to frames, which are in about [-1, 1]."""
    masks: int = 2
    """Number of masks over frames, and also of masks over bands (SpecAugment, Park et al. 2019)."""
    masked_frames: int = 10
    """Largest number of frames that a mask hides."""
    masked_bands: int = 8
    """Largest number of bands that a mask hides."""


class Examples(NamedTuple):
    """Recordings and their texts."""

    frames: np.ndarray
    """Log-mel frames of the recordings, float16 [N, F, bands]."""
    texts: list[str]


def choose_mel(audio: Feature) -> Mel:
    """Returns the settings of the log-mel frames: windows of about 32 ms that begin half a window apart."""
    window = 2 ** round(math.log2(max(16, 0.032 * (audio.sample_rate or 1))))
    return Mel(window=window, hop=window // 2, bands=min(40, window // 8))


def read_recordings(data: Dataset, split: str) -> Examples:
    """Returns the recordings of a split, at most MAX_RECORDINGS, and their texts."""
    audio, coder = data.spec["audio"], tokenizers.load(data.files[tokenizers.FILE])
    frames, texts = [], []

    @jax.jit
    def compute(batch: Batch) -> Array:
        return frames_of(data.preprocess(batch, jax.random.key(0), False)["audio"], audio)

    for batch in data.evaluation(split, min(CHUNK, data.sizes[split])):
        real = batch["weight"] > 0
        frames.append(np.asarray(compute(jax.device_put(batch)), np.float16)[real])
        texts += [tokenizers.decode(coder, row) for row in batch["caption"][real].tolist()]
        if len(texts) >= MAX_RECORDINGS:
            break
    return Examples(np.concatenate(frames)[:MAX_RECORDINGS], texts[:MAX_RECORDINGS])


def frames_of(sound: Array, audio: Feature) -> Array:
    """Returns the log-mel frames [B, F, bands] of sound [B, T, channels] in [-1, 1]. audio: feature of the sound."""
    return to_frames(sound, audio.sample_rate or 1, choose_mel(audio))


def encode(texts: Sequence[str], alphabet: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels int32 [N, L] and padding float32 [N, L], 1 after a text. Unknown characters are left out."""
    number = {character: i for i, character in enumerate(alphabet, start=1)}
    rows = [[number[c] for c in text if c in number] for text in texts]
    length = max(1, *map(len, rows))
    padding = np.array([[0.0] * len(row) + [1.0] * (length - len(row)) for row in rows], np.float32)
    return np.array([row + [BLANK] * (length - len(row)) for row in rows], np.int32), padding


def decode(best: np.ndarray, alphabet: str) -> str:
    """Decodes CTC: merges equal neighbours, then drops blanks. best: int [T], likeliest output of each position."""
    # A doubled letter is written with a blank between its two positions, so merging must come before dropping blanks.
    kept = best[np.insert(np.diff(best) != 0, 0, True)]
    return " ".join("".join(alphabet[i - 1] for i in kept if i != BLANK).split())


def spell(text: str, lexicon: Sequence[str]) -> str:
    """Replaces each word of a text by the word of the lexicon with the smallest edit distance. The first such word wins a tie."""
    return " ".join(min(lexicon, key=partial(edit_distance, word)) for word in text.split())


def count_words(data: Dataset) -> list[str]:
    """Returns the words of the texts of all splits, the most frequent first."""
    coder, counts = tokenizers.load(data.files[tokenizers.FILE]), Counter[str]()
    for split, size in data.sizes.items():
        for batch in data.evaluation(split, min(CHUNK, size)):
            for row in batch["caption"][batch["weight"] > 0].tolist():
                counts.update(tokenizers.decode(coder, row).split())
    return sorted(counts, key=lambda word: (-counts[word], word))


def fits(labels: np.ndarray, padding: np.ndarray, positions: int) -> np.ndarray:
    """Returns whether CTC can align each text with `positions` outputs, bool [N]. Doubled labels need a blank."""
    lengths = (1 - padding).sum(1)
    doubled = ((labels[:, 1:] == labels[:, :-1]) & (padding[:, 1:] == 0)).sum(1)
    return lengths + doubled <= positions


def augment(x: Array, key: Key, recipe: Recipe) -> Array:
    """Augments the frames x [F, bands] of a recording: changes speed and pitch, adds noise, sets random masks to 0."""
    speed, pitch, noise, frames, bands = jax.random.split(key, 5)

    def factor(key: Key, width: float) -> Array:
        return jax.random.uniform(key, (), minval=1 - width, maxval=1 + width)

    x = stretch(stretch(x, factor(speed, recipe.speed), 0), factor(pitch, recipe.pitch), 1)
    x += recipe.noise * jax.random.normal(noise, x.shape)
    for axis, (key, most) in enumerate(((frames, recipe.masked_frames), (bands, recipe.masked_bands))):
        index = jnp.arange(x.shape[axis])[None]
        start, length = jax.random.uniform(key, (2, recipe.masks, 1))
        first, size = start * x.shape[axis], length * most
        masked = ((index >= first) & (index < first + size)).any(0)
        x = jnp.where(jnp.expand_dims(masked, 1 - axis), 0, x)
    return x


def train(examples: Examples, alphabet: str, recipe: Recipe, seed: int) -> Params:
    """Trains the network on recordings with texts, and returns its parameters, which depend on the arguments alone.

    Recordings that are too short for their texts are left out. Raises: UserError if no recording is left.
    """
    labels, padding = encode(examples.texts, alphabet)
    rows = np.flatnonzero(fits(labels, padding, -(-examples.frames.shape[1] // STACKED)))
    if not len(rows):
        raise UserError(
            "every text is too long for its recording, so no recognizer can be trained; leave words out of --metrics"
        )
    size = min(recipe.batch_size, len(rows))
    # Training is one compiled scan, as for classifiers, because dispatching small steps one by one is slow.
    order = rows[permute(len(rows))(seed, range(recipe.steps * size))].reshape(recipe.steps, size)
    # Recordings that are played more slowly need room at their end.
    room = math.ceil(examples.frames.shape[1] * recipe.speed)
    frames = np.pad(examples.frames, ((0, 0), (0, room), (0, 0)), constant_values=-1)
    return _fit(frames, labels, padding, order.astype(np.int32), jax.random.key(seed), len(alphabet), recipe)


def make_network(characters: int, recipe: Recipe) -> Recognizer:
    """Returns the network for an alphabet of this many characters."""
    return Recognizer(characters + 1, recipe.width, recipe.dilations, recipe.dropout)


@partial(jax.jit, static_argnames=("characters", "recipe"))
def _fit(
    frames: Array, labels: Array, padding: Array, order: Array, key: Key, characters: int, recipe: Recipe
) -> Params:
    """Trains the network in one compiled loop. order: int32 [steps, B], the examples of each step."""
    network = make_network(characters, recipe)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup, max(len(order), recipe.warmup + 1)
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=recipe.weight_decay))

    def loss(params: Params, rows: Array, keys: Key) -> Array:
        augment_keys, dropout_keys = split_keys(keys, 2)
        x = jax.vmap(partial(augment, recipe=recipe))(frames[rows].astype(jnp.float32), augment_keys)
        logits: Array = network.apply(params, x, dropout_keys)  # pyright: ignore[reportAssignmentType]
        nats = optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels[rows], padding[rows], blank_id=BLANK)
        # The loss is in nats per character of the batch.
        return nats.sum() / (1 - padding[rows]).sum()

    def step(carry: Carry, at: tuple[Array, Array]) -> tuple[Carry, None]:
        (params, opt_state), (rows, number) = carry, at
        keys = jax.random.split(jax.random.fold_in(key, number), len(rows))
        updates, opt_state = tx.update(jax.grad(loss)(params, rows, keys), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None  # pyright: ignore[reportReturnType]

    params: Params = network.init(key, frames[:1].astype(jnp.float32))  # pyright: ignore[reportAssignmentType]
    return jax.lax.scan(step, (params, tx.init(params)), (order, jnp.arange(len(order))))[0][0]


@partial(jax.jit, static_argnames=("characters", "recipe"))
def _recognize(params: Params, frames: Array, characters: int, recipe: Recipe) -> Array:
    """Returns the likeliest output at each position, int32 [B, T]."""
    logits: Array = make_network(characters, recipe).apply(params, frames.astype(jnp.float32))  # pyright: ignore
    return logits.argmax(-1).astype(jnp.int32)


def recognize(params: Params, frames: np.ndarray, alphabet: str, recipe: Recipe) -> list[str]:
    """Returns the text of each recording. frames: [N, F, bands]."""
    texts: list[str] = []
    for start in range(0, len(frames), CHUNK):
        # The last chunk is filled up with its last recording, so that all chunks compile once.
        rows = np.minimum(np.arange(start, start + CHUNK), len(frames) - 1)
        best = np.asarray(_recognize(params, frames[rows], len(alphabet), recipe))
        texts += [decode(row, alphabet) for row in best]
    return texts[: len(frames)]


class Trained(NamedTuple):
    """A trained recognizer."""

    read: Callable[[np.ndarray], list[str]]
    """Frames [N, F, bands] -> recognized texts, in which words may be spelled wrongly."""
    lexicon: Sequence[str]
    """The words of the data's texts, the most frequent first."""
    protocol: Mapping[str, object]
    """The recipe, the settings of the frames, and the SHA-256 of the weights, which are stored with the scores."""

    def errors(self, frames: np.ndarray, texts: Sequence[str]) -> Errors:
        """Returns the error rates on recordings whose true texts are `texts`. frames: [N, F, bands].

        For the word error rate, each recognized word is first replaced by the nearest word of the lexicon, because its spelling says
        little about the speech. The character error rate uses the words as recognized.
        """
        heard = self.read(frames)
        spelled = [spell(text, self.lexicon) for text in heard]
        return Errors(error_rates(spelled, texts).word, error_rates(heard, texts).character)


def load_recognizer(data: Dataset, recipe: Recipe = Recipe()) -> Trained:
    """Returns the recognizer of data with recordings and texts, trained with seed 0 on the training split.

    It is trained once: its weights are kept in the user's cache. Raises: UserError as `train`.
    """

    def make() -> dict[str, np.ndarray]:
        examples = read_recordings(data, "train")
        alphabet = "".join(sorted(set("".join(examples.texts))))
        params = train(examples, alphabet, recipe, seed=0)
        texts = {"alphabet": alphabet, "lexicon": " ".join(count_words(data))}
        letters = {name: np.array([ord(character) for character in text], np.int32) for name, text in texts.items()}
        return {**letters, **jax.device_get(flatten_dict(params, sep="."))}

    # The key contains everything on which the weights depend.
    key = sha256(f"recognizer {FORMAT}", data.digest, repr(sorted(data.spec.items())), repr(recipe))
    arrays = dict(sorted(load_or_make(key, make, "a recognizer of speech").items()))
    digest = sha256(*(part for pair in arrays.items() for part in pair))
    alphabet, words = ("".join(map(chr, arrays.pop(name).tolist())) for name in ("alphabet", "lexicon"))
    params, lexicon = jax.device_put(unflatten_dict(arrays, sep=".")), words.split()

    protocol = {
        "recognizer": asdict(recipe),
        "frames": asdict(choose_mel(data.spec["audio"])),
        "lexicon": f"the {len(lexicon)} words of all texts",
        "weights": digest,
    }
    return Trained(partial(recognize, params, alphabet=alphabet, recipe=recipe), lexicon, protocol)
