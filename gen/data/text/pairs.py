"""Makes examples of pairs: each example is a prompt and the target that a model writes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gen.core import HostBatch
from gen.data.examples import Examples
from gen.data.order import permute
from gen.data.text.streams import Streams
from gen.errors import UserError


class Pairs(NamedTuple):
    """Where each of the n pairs of a split lies in the split's stream of tokens. Each field is int64 [n]."""

    prompt: np.ndarray
    """Position of the first token of each prompt."""
    target: np.ndarray
    """Position of the first token of each target. The token before it is the end token between prompt and target."""
    stop: np.ndarray
    """Position after the last token of each target."""

    def prompt_lengths(self) -> np.ndarray:
        """Returns the number of tokens in each prompt."""
        return self.target - 1 - self.prompt

    def target_lengths(self) -> np.ndarray:
        """Returns the number of tokens in each target."""
        return self.stop - self.target


class Lost(NamedTuple):
    """Numbers of prompts and pairs of a split that do not fit into an example."""

    cut: int
    """Number of prompts that lost their beginning."""
    dropped: int
    """Number of pairs that were dropped because of a long target."""


def make_pairs(
    streams: Streams, length: int, source_length: int | None, batch_size: int
) -> tuple[Examples, dict[str, Lost]]:
    """Returns examples that hold one pair each, and {split: numbers of cut prompts and dropped pairs}.

    - Without source_length, an example is "tokens" int32 [B, length + 1]: END prompt target END, and padding.
    - With source_length, the prompt is separate: "source" int32 [B, source_length], and padding. "tokens" are END target END, and
      padding.

    END is the end token. The padding consists of end tokens, too. The loss counts the tokens of the target and the END after it.
    A prompt that does not fit loses its beginning. A pair is dropped if its target has more than length - 1 tokens.

    streams: in each split, the tokens are END prompt END target END prompt ... batch_size: pairs in a training batch, over all
    devices and hosts.

    Raises: UserError if no pair of a split is left.
    """
    fitting, lost = {}, {}
    for split, stream in streams.tokens.items():
        fitting[split], lost[split] = select_pairs(split, find_pairs(stream, streams.end), length, source_length)
    sizes = {split: len(pairs.prompt) for split, pairs in fitting.items()}
    layout = Layout(streams, fitting, length, source_length)
    return Examples(sizes, layout.read, permute(sizes["train"]), batch_size), lost


def find_pairs(stream: np.ndarray, end: int) -> Pairs:
    """Returns the positions of all pairs in the token stream of a split. end: the end token.

    stream: end, prompt, end, target, end, prompt, ...
    """
    # A stream is END prompt END target END prompt ... So even end tokens precede prompts, and odd ones precede targets. The length of
    # the stream is added as the end of the last target.
    ends = np.append(np.flatnonzero(stream == end), len(stream))
    return Pairs(ends[:-1:2] + 1, ends[1::2] + 1, ends[2::2])


def select_pairs(split: str, pairs: Pairs, length: int, source_length: int | None) -> tuple[Pairs, Lost]:
    """Drops pairs whose target and its end token do not fit into `length` tokens.

    Returns (the other pairs, numbers of prompts that will be cut and of dropped pairs).

    split: name of the split, for errors. source_length: number of tokens of a separate source. None: prompt and target
    share the `length` tokens.

    Raises: UserError if no pair is left.
    """
    targets = pairs.target_lengths()
    fits = targets < length
    if not fits.any():
        raise UserError(
            f"--data.length {length} is too short for every target of {split}: the shortest has"
            f" {int(targets.min())} tokens, and an end token before and after it"
        )
    kept = Pairs(*(array[fits] for array in pairs))
    # Besides the prompt, a joined example holds the end token in front and the target with its end token.
    room = source_length or length - 1 - kept.target_lengths()
    return kept, Lost(cut=int((kept.prompt_lengths() > room).sum()), dropped=int((~fits).sum()))


@dataclass(frozen=True)
class Layout:
    """Reads examples that hold one pair each. See `make_pairs`."""

    streams: Streams
    pairs: Mapping[str, Pairs]
    """The pairs of each split."""
    length: int
    """Number of tokens of an example, with padding, minus 1 because the first token is not predicted."""
    source_length: int | None
    """Number of tokens of a separate source. None: the prompt is in front of the target."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns examples: {"tokens", "counted", "bytes"}, see `Streams.examples`, and "source" if it is separate.

        "source": int32 [n, source_length]. index: numbers of the pairs in the split, int64 [n].
        """
        shape, end = (len(index), self.length + 1), self.streams.end
        x, counted = np.full(shape, end, np.int32), np.zeros(shape, bool)
        source = np.full((len(index), self.source_length or 0), end, np.int32)
        for row, i in enumerate(index):
            prompt, target = self.read_pair(split, i)
            if self.source_length:
                source[row, : len(prompt)] = prompt
                prompt = prompt[:0]
            # Token 0 is the end token that begins every document.
            at = 1 + len(prompt)
            x[row, 1:at] = prompt
            x[row, at : at + len(target)] = target
            # The end token after the target is predicted too: it says where the target stops.
            counted[row, at : at + len(target) + 1] = True
        return self.streams.examples(x, counted) | ({"source": source} if self.source_length else {})

    def read_pair(self, split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (prompt, target) of pair i of a split, as tokens. A prompt that does not fit loses its beginning."""
        stream = self.streams.tokens[split]
        start, middle, stop = (int(array[i]) for array in self.pairs[split])
        prompt, target = stream[start : middle - 1], stream[middle:stop]
        room = self.source_length or self.length - 1 - len(target)
        return prompt[max(len(prompt) - room, 0) :], target
