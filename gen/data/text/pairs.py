"""Examples of prompts and targets, one pair an example, as functions of (seed, step, rows)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gen.core import HostBatch
from gen.data.order import permute
from gen.data.text.windows import Examples, example, numbered
from gen.errors import UserError


class Pairs(NamedTuple):
    """Where the pairs of a split that fit lie in its tokens. int64 [n] each."""

    prompt: np.ndarray
    """The first token of each prompt."""
    target: np.ndarray
    """The first token of each target; the prompt ends one before."""
    stop: np.ndarray
    """The end of each target."""


def pairs(
    tokens: Mapping[str, np.ndarray],
    end: int,
    widths: np.ndarray,
    length: int,
    source_length: int | None,
    batch_size: int,
) -> tuple[Examples, dict[str, dict[str, int]]]:
    """Examples, and {split: {"cut": prompts that lost their beginning, "dropped": pairs whose target doesn't fit}}.

    Joined: end, prompt, target, end, and `end` as padding up to length + 1 tokens; what counts are the target and the end
    after it. With a source_length S the prompt is apart: "source" int32 [B, S], padded with `end`, and "tokens" are end,
    target, end, padding. A prompt that doesn't fit loses its beginning; a pair whose target has more than length - 1
    tokens is dropped.

    tokens: end, prompt, end, target, ... of each split; widths: bytes of each token, int32 [V].
    Raises: UserError for a split of which nothing is left.
    """
    found, lost = {}, {}
    for split, stream in tokens.items():
        ends = np.append(np.flatnonzero(stream == end), len(stream))
        all_ = Pairs(ends[:-1:2] + 1, ends[1::2] + 1, ends[2::2])
        fits = all_.stop - all_.target < length
        found[split] = Pairs(*(array[fits] for array in all_))
        prompts, targets = found[split].target - 1 - found[split].prompt, found[split].stop - found[split].target
        room = source_length or length - 1 - targets
        lost[split] = {"cut": int((prompts > room).sum()), "dropped": int((~fits).sum())}
        if not fits.any():
            raise UserError(
                f"--data.length {length} is too short for every target of {split}: the shortest has"
                f" {int((all_.stop - all_.target).min())} tokens, and an end before and after it"
            )
    sizes = {split: len(pairs.prompt) for split, pairs in found.items()}
    shuffle = permute(sizes["train"])

    def read(split: str, index: np.ndarray) -> HostBatch:
        x = np.full((len(index), length + 1), end, np.int32)
        counted = np.zeros((len(index), length + 1), bool)
        source = np.full((len(index), source_length or 0), end, np.int32)
        for row, i in enumerate(index):
            start, middle, stop = (int(array[i]) for array in found[split])
            prompt, target = tokens[split][start : middle - 1], tokens[split][middle:stop]
            room = source_length or length - 1 - len(target)
            prompt = prompt[max(len(prompt) - room, 0) :]
            if source_length:
                source[row, : len(prompt)] = prompt
                prompt = prompt[:0]
            at = 1 + len(prompt)
            x[row, 1:at] = prompt
            x[row, at : at + len(target)] = target
            counted[row, at : at + len(target) + 1] = True
        return example(x, counted, widths) | ({"source": source} if source_length else {})

    def batch(seed: int, step: int, rows: range) -> HostBatch:
        first = step * batch_size
        index = shuffle(seed, range(first + rows.start, first + rows.stop, rows.step))
        return read("train", index) | numbered(np.asarray(rows), index, np.ones(len(rows)))

    def evaluation(split: str, batch_size: int, rows: range | None = None) -> Iterator[HostBatch]:
        n = sizes[split]
        for start in range(0, n, batch_size):
            row = start + np.asarray(rows or range(batch_size))
            yield read(split, np.where(row < n, row, 0)) | numbered(row, row, row < n)

    return Examples(sizes, batch, evaluation), lost
