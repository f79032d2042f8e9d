"""Classification by a language model: the label is the text that is likeliest after the prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Dataset, GenerativeModel, State
from gen.data.text import tokenizers
from gen.errors import UserError

CHUNK = 64  # rows scored at a time


class Score(NamedTuple):
    accuracy: float
    """Share of the examples whose own label is the likeliest, in [0, 1]."""
    majority: float
    """That of always saying the label that is the most frequent among these examples."""
    n: int


def scored(
    data: Dataset, model: GenerativeModel, state: State, split: str = "test", shots: int = 0, seed: int = 0
) -> Score:
    """The score on a split of labelled pairs that are joined. shots: training examples, drawn for each, that stand before
    the prompt (Brown et al. 2020).

    Raises: UserError if the data have no labels, or no room for the shots.
    """
    if "labels.json" not in data.files or "source" in data.spec:
        raise UserError('labels are scored on joined pairs with a "label" in each line; these data have none')
    tokenizer = tokenizers.load(data.files[tokenizers.FILE])
    labels = [tokenizers.encode(tokenizer, label) for label in json.loads(data.files["labels.json"])]
    prompts, truth = _examples(data, split, labels)
    if shots:
        prompts = _after(
            prompts, data, labels, shots, seed, room=data.spec["tokens"].shape[0] - max(map(len, labels)) - 1
        )
    nats = likelihoods(data, model, state, [(prompt, label) for prompt in prompts for label in labels])
    chosen = nats.reshape(len(prompts), len(labels)).argmin(axis=1)
    return Score(float((chosen == truth).mean()), float(np.bincount(truth).max() / len(truth)), len(truth))


def likelihoods(
    data: Dataset, model: GenerativeModel, state: State, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> np.ndarray:
    """-log p(target | prompt) of each (prompt, target) of tokens, float64 [N] nats. A prompt begins with the token `end`, and
    loses what is after that where it is too long."""
    end, width = data.spec["tokens"].end, data.spec["tokens"].shape[0]
    tokens = np.full((len(pairs), width), end, np.int32)
    counted = np.zeros((len(pairs), width), np.uint8)
    for i, (prompt, target) in enumerate(pairs):
        kept = [*prompt[:1], *prompt[1:][-(width - len(target) - 1) :]]
        row = [*kept, *target]
        tokens[i, : len(row)], counted[i, len(kept) : len(row)] = row, 1

    def each(state: State, tokens: Array, counted: Array) -> Array:
        def one(tokens: Array, counted: Array) -> Array:
            row = jnp.zeros(1, jnp.int32)
            batch = {"tokens": tokens[None], "counted": counted[None], "row": row, "index": row, "bytes": row}
            alone = lambda batch: model.evaluate(state, batch | {"weight": jnp.ones(1)}, jax.random.key(0))["loss"][0]
            return jax.vmap(alone, axis_name="data", out_axes=None)(jax.tree.map(lambda x: x[None], batch))

        return jax.vmap(one)(tokens, counted)

    compiled, out = jax.jit(each), []
    for first in range(0, len(pairs), CHUNK):
        part = slice(first, first + CHUNK)
        fill = max(0, first + CHUNK - len(pairs))
        padded = lambda x: np.pad(x[part], ((0, fill), (0, 0)))  # noqa: B023
        out.append(np.asarray(compiled(state, padded(tokens), padded(counted)), np.float64)[: CHUNK - fill])
    return np.concatenate(out)


def _examples(data: Dataset, split: str, labels: Sequence[Sequence[int]]) -> tuple[list[list[int]], np.ndarray]:
    """The prompts of a split, and the number of the label of each."""
    number = {tuple(label): i for i, label in enumerate(labels)}
    prompts, truth = [], []
    for batch in data.evaluation(split, CHUNK):
        for tokens, counted, weight in zip(batch["tokens"], batch["counted"], batch["weight"], strict=True):
            if weight:
                at = int(counted.argmax())
                prompts.append(tokens[:at].tolist())
                truth.append(number[tuple(tokens[at : at + int(counted.sum()) - 1].tolist())])
    return prompts, np.array(truth)


def _after(
    prompts: list[list[int]], data: Dataset, labels: Sequence[Sequence[int]], shots: int, seed: int, room: int
) -> list[list[int]]:
    """The prompts, each after `shots` training examples, which a new line ends."""
    known, truth = _examples(data, "train", labels)
    line: Any = tokenizers.encode(tokenizers.load(data.files[tokenizers.FILE]), "\n")
    if shots > len(known):
        raise UserError(f"{shots} examples asked for before each prompt; there are {len(known)} to train on")
    out = []
    for i, prompt in enumerate(prompts):
        drawn = np.random.default_rng([seed, i]).choice(len(known), shots, replace=False)
        before = [token for j in drawn for token in [*known[j][1:], *labels[int(truth[j])], *line]]
        if 1 + len(before) + len(prompt) > room:
            raise UserError(
                f"{shots} examples and a prompt are longer than the {room} tokens of a window; fewer --shots"
            )
        out.append([*prompt[:1], *before, *prompt[1:]])
    return out
