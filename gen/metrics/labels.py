"""Classification by a language model: the predicted label is the likeliest label after the prompt.

The probability of a label includes its end. Otherwise "1" would always be at least as likely as "10", which begins with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Batch, Dataset, GenerativeModel, State
from gen.data.text import tokenizers
from gen.errors import UserError

ROW_CHUNK = 64
"""Number of token sequences that are scored at a time."""

Tokens = Sequence[int]


class Score(NamedTuple):
    """Accuracy of a language model as a classifier."""

    accuracy: float
    """Fraction of examples whose true label is predicted, in [0, 1]."""
    majority: float
    """Accuracy of always predicting the most frequent true label of these examples, in [0, 1]."""
    n: int
    """Number of examples."""


class Examples(NamedTuple):
    """Labelled examples of a split."""

    prompts: list[list[int]]
    """Tokens of each prompt. The first is the end token, which separates documents."""
    truth: np.ndarray
    """Index of each example's true label, int64 [N]."""


def score_labels(
    data: Dataset, model: GenerativeModel, state: State, split: str = "test", shots: int = 0, seed: int = 0
) -> Score:
    """Classifies each prompt of a split by a language model. The score is the accuracy.

    The predicted label is the one with the highest probability after the prompt. The data must be joined pairs: each
    example is one sequence of the end token, a prompt, a label, and the end token. The probability of a label includes the
    end token after it, as in training. With shots, a label may also end with a new line, as the label of each shot does.
    Its probability is then the sum over both endings. Without shots, a prompt that is too long loses its beginning.

    shots: number of labelled training examples that are put before each prompt (Brown et al. 2020). They are drawn
    separately for each prompt, by `seed`.

    Raises: UserError if the data have no labels or fewer than `shots` training examples, or if a prompt with its shots does not fit.
    """
    if "labels.json" not in data.files or "source" in data.spec:
        raise UserError('labels are scored on joined pairs with a "label" in each line, and these data have no labels')
    tokenizer = tokenizers.load(data.files[tokenizers.FILE])
    width = data.spec["tokens"].shape[0]
    every_label = (tokenizers.encode(tokenizer, label) for label in json.loads(data.files["labels.json"]))
    # Examples with a label that does not fit between two end tokens were dropped from the data.
    labels = [label for label in every_label if len(label) <= width - 2]
    examples = _read_examples(data, split, labels)
    line = tokenizers.encode(tokenizer, "\n") if shots else []
    endings = [[tokenizers.end(tokenizer)], *([line] if shots else [])]
    # All labels of a prompt are compared after the same tokens, so there must be room for the longest one.
    room = width - max(map(len, labels)) - max(map(len, endings))
    prompts = [_cut(prompt, room) for prompt in examples.prompts]
    if shots:
        prompts = _add_shots(examples.prompts, _read_examples(data, "train", labels), labels, line, shots, seed, room)
    targets = [[*label, *ending] for label in labels for ending in endings]
    nats = negative_log_likelihoods(data, model, state, [(prompt, target) for prompt in prompts for target in targets])
    log_p = np.logaddexp.reduce(-nats.reshape(len(prompts), len(labels), len(endings)), axis=2)
    predicted, truth = log_p.argmax(axis=1), examples.truth
    return Score(float((predicted == truth).mean()), float(np.bincount(truth).max() / len(truth)), len(truth))


def negative_log_likelihoods(
    data: Dataset, model: GenerativeModel, state: State, pairs: Sequence[tuple[Tokens, Tokens]]
) -> np.ndarray:
    """Returns -log p(target | prompt) of each pair (prompt, target) of tokens: float64 [N], in nats.

    A prompt begins with the end token. If a prompt is too long, the tokens right after the end token are dropped.
    """
    end, width = data.spec["tokens"].end, data.spec["tokens"].shape[0]
    # Rows are padded with the end token. Only the tokens of the target count, so `evaluate` returns the sum of their nats.
    tokens = np.full((len(pairs), width), end, np.int32)
    counted = np.zeros((len(pairs), width), np.uint8)
    for i, (prompt, target) in enumerate(pairs):
        kept = _cut(prompt, width - len(target))
        row = [*kept, *target]
        tokens[i, : len(row)], counted[i, len(kept) : len(row)] = row, 1

    def evaluate_batch(state: State, batch: Batch) -> Array:
        return model.evaluate(state, batch | {"weight": jnp.ones(1)}, jax.random.key(0))["loss"][0]

    def evaluate_rows(state: State, tokens: Array, counted: Array) -> Array:
        def evaluate_row(tokens: Array, counted: Array) -> Array:
            row = jnp.zeros(1, jnp.int32)
            batch = {"tokens": tokens[None], "counted": counted[None], "row": row, "index": row, "bytes": row}
            # `evaluate` sums over a mapped axis named "data". An axis of size one gives each row's sum.
            evaluate = jax.vmap(partial(evaluate_batch, state), axis_name="data", out_axes=None)
            return evaluate(jax.tree.map(lambda x: x[None], batch))

        return jax.vmap(evaluate_row)(tokens, counted)

    compiled, nats = jax.jit(evaluate_rows), []
    for start in range(0, len(pairs), ROW_CHUNK):
        # The last chunk is padded, so that every chunk has one shape and compiles once.
        rows, padding = slice(start, start + ROW_CHUNK), max(0, start + ROW_CHUNK - len(pairs))
        inputs = (np.pad(x[rows], ((0, padding), (0, 0))) for x in (tokens, counted))
        nats.append(np.asarray(compiled(state, *inputs), np.float64)[: ROW_CHUNK - padding])
    return np.concatenate(nats)


def _cut(prompt: Tokens, room: int) -> list[int]:
    """Returns at most `room` tokens of a prompt: its first, which is the end token, and its last room - 1."""
    return [*prompt[:1], *prompt[1:][max(len(prompt) - room, 0) :]]


def _read_examples(data: Dataset, split: str, labels: Sequence[Tokens]) -> Examples:
    """Reads the prompt of each example of a split, and the index of its label in `labels`."""
    number = {tuple(label): i for i, label in enumerate(labels)}
    prompts, truth = [], []
    for batch in data.evaluation(split, ROW_CHUNK):
        for tokens, counted, weight in zip(batch["tokens"], batch["counted"], batch["weight"], strict=True):
            if weight:
                # The label begins at the first token that counts.
                start = int(counted.argmax())
                prompts.append(tokens[:start].tolist())
                # The last token that counts ends the document and is not part of the label.
                truth.append(number[tuple(tokens[start : start + int(counted.sum()) - 1].tolist())])
    return Examples(prompts, np.array(truth))


def _add_shots(
    prompts: list[list[int]],
    known: Examples,
    labels: Sequence[Tokens],
    line: Tokens,
    shots: int,
    seed: int,
    room: int,
) -> list[list[int]]:
    """Returns the prompts, each with `shots` random examples of `known` and their labels before it.

    line: tokens that end each shot (a new line). room: largest number of tokens of a prompt with its shots.

    Raises: UserError if `known` has fewer than `shots` examples, or if a prompt with its shots is longer than `room`.
    """
    if shots > len(known.prompts):
        raise UserError(
            f"{shots} examples before each prompt are more than the {len(known.prompts)} training examples; use fewer --shots"
        )
    extended = []
    for i, prompt in enumerate(prompts):
        # A generator per prompt, so that the shots of a prompt don't depend on the prompts before it.
        drawn = np.random.default_rng([seed, i]).choice(len(known.prompts), shots, replace=False)
        before = [token for j in drawn for token in [*known.prompts[j][1:], *labels[int(known.truth[j])], *line]]
        if 1 + len(before) + len(prompt) > room:
            raise UserError(
                f"{shots} examples and a prompt are longer than the {room} tokens that fit in a window; use fewer --shots"
            )
        extended.append([*prompt[:1], *before, *prompt[1:]])
    return extended
