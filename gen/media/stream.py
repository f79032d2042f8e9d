"""Receives tokens as soon as they are drawn: prints the first sample as it grows, and ends samples at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen.data.text import tokenizers
from gen.data.text.tokenizers import Tokenizer
from gen.errors import show
from gen.networks.positions import PADDING

# Stop strings are searched in at least this number of tokens at the end of a sample.
MIN_TAIL = 64


class Listener:
    """A function for the argument `listen` of a language model's `generate`, which calls it after each drawn token.

    It returns whether each sample has a stop string, and so ends.

    stops: the stop strings. show: also print the first sample while it grows.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], show: bool):
        self.tokenizer, self.stops, self.show = tokenizer, stops, show
        # The tokens of each sample so far.
        self.received: list[list[int]] = []
        # Number of characters of the first sample that were printed.
        self.printed = 0
        # A token has at least one byte, so a stop string has at most as many tokens as bytes.
        self.tail = max([MIN_TAIL, *(len(stop.encode()) for stop in stops)])

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Returns whether each sample has a stop string, bool [B].

        tokens: the next token of each sample, int32 [B], or PADDING if the sample has ended already.
        """
        # The number of samples is only known when the first tokens arrive.
        self.received.extend([] for _ in range(len(tokens) - len(self.received)))
        for row, token in zip(self.received, np.asarray(tokens).tolist(), strict=True):
            if token != PADDING:
                row.append(token)
        if self.show:
            self._print(ended=bool(tokens[0] == PADDING))
        if not self.stops:
            return np.zeros(len(tokens), bool)
        # A stop string of n bytes ends within the last n tokens, so the whole text need not be decoded each time.
        tails = [tokenizers.decode(self.tokenizer, row[-self.tail :]) for row in self.received]
        return np.array([any(stop in tail for stop in self.stops) for tail in tails])

    def finish(self) -> None:
        """Prints the rest of the first sample, which was not printed yet because it could still change."""
        self(np.full(len(self.received), PADDING))

    def _print(self, ended: bool) -> None:
        # Decodes the whole sample each time: a character may have several tokens, and text may depend on earlier
        # tokens.
        whole = tokenizers.decode(self.tokenizer, self.received[0])
        text = cut_at_stop(whole, self.stops)
        if text == whole and not ended:
            text = stable_part(text, self.stops)
        show(text[self.printed :], end="")
        self.printed = max(self.printed, len(text))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first stop string, or the whole text if there is none."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def stable_part(text: str, stops: Sequence[str]) -> str:
    """Returns the part of a text that can be printed before the next tokens are known.

    An incomplete UTF-8 character at the end, or the beginning of a stop string, is left out: the next tokens may change
    or hide it.
    """
    text = text.rstrip("\ufffd")
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]
