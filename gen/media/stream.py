"""Tokens received as soon as they are drawn: the first sample is printed as it grows, and stop strings end samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen.data.text import tokenizers
from gen.data.text.tokenizers import Tokenizer
from gen.errors import show
from gen.networks.positions import PADDING

# Minimum number of tokens at the end of a sample in which stop strings are searched.
MIN_TAIL = 64


class Listener:
    """Called with the tokens of each step. It prints the first sample if asked to, and returns which samples have a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], show: bool):
        self.tokenizer, self.stops, self.show = tokenizer, stops, show
        # The tokens of each sample so far.
        self.received: list[list[int]] = []
        # Characters of the first sample.
        self.printed = 0
        # A token has at least one byte, so a stop string fits into this many tokens.
        self.tail = max([MIN_TAIL, *(len(stop.encode()) for stop in stops)])

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Takes the next token of each sample: int32 [B], PADDING after its end. Returns bool [B]: whether it has a stop string."""
        # The number of samples is known with the first tokens.
        self.received.extend([] for _ in range(len(tokens) - len(self.received)))
        for row, token in zip(self.received, np.asarray(tokens).tolist(), strict=True):
            if token != PADDING:
                row.append(token)
        if self.show:
            self._print(ended=bool(tokens[0] == PADDING))
        if not self.stops:
            return np.zeros(len(tokens), bool)
        tails = [tokenizers.decode(self.tokenizer, row[-self.tail :]) for row in self.received]
        return np.array([any(stop in tail for stop in self.stops) for tail in tails])

    def finish(self) -> None:
        """Prints the end of the first sample, which was held back while it could still change."""
        self(np.full(len(self.received), PADDING))

    def _print(self, ended: bool) -> None:
        # All of it is decoded each time: a character may have several tokens, and text depends on the tokens before it.
        whole = tokenizers.decode(self.tokenizer, self.received[0])
        text = cut_at_stop(whole, self.stops)
        if text == whole and not ended:
            text = stable_part(text, self.stops)
        show(text[self.printed :], end="")
        self.printed = max(self.printed, len(text))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """Returns the text before the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def stable_part(text: str, stops: Sequence[str]) -> str:
    """Returns the text without the end that the next token may still change.

    That is half of a UTF-8 character, or the beginning of a stop string.
    """
    text = text.rstrip("\ufffd")
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]
