"""Token streams: all texts of a split as one sequence of tokens, with an end token before each text."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import IO, NamedTuple

import numpy as np

from gen.core import HostBatch
from gen.data.text import tokenizers
from gen.data.text.tokenizers import Tokenizer

BATCH_CHARACTERS = 2**20  # number of characters that are tokenized at once
PIECE_CHARACTERS = 2**16  # number of characters that one thread tokenizes at once
# A line break between two lines that are not blank. No token spans this place, so a text may be cut here.
BETWEEN_LINES = re.compile(r"(?<=\S\n)(?=\S)")


class Streams(NamedTuple):
    """The tokens of a corpus, and the end token and the token widths of its tokenizer."""

    tokens: Mapping[str, np.ndarray]
    """{split: all its tokens, integers [N]} for "train", "validation" and "test"."""
    end: int
    """The end token, which is before each text. It is also the padding."""
    widths: np.ndarray
    """Number of bytes that each token represents, int32 [V]."""

    def examples(self, tokens: np.ndarray, counted: np.ndarray) -> HostBatch:
        """Returns the arrays that the loss of a language model reads: the tokens, and which of them it counts.

        tokens: integers [B, T + 1]. counted: bool [B, T + 1], whether the loss counts each token.

        Returns {"tokens": int32 [B, T + 1], "counted": uint8 [B, T + 1], "bytes": int32 [B]}, where
        "bytes" is the number of bytes of text that the counted tokens represent.
        """
        # Bits per byte can be compared between tokenizers. They are computed from the number of bytes of the counted tokens.
        bytes_ = np.where(counted, self.widths[tokens], 0).sum(1)
        return {
            "tokens": tokens.astype(np.int32),
            "counted": counted.astype(np.uint8),
            "bytes": bytes_.astype(np.int32),
        }


class Piece(NamedTuple):
    """A piece of a text that is tokenized alone."""

    split: str
    """Split of the text."""
    begins: bool
    """Whether this is the first piece of its text."""
    text: str


def tokenize(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Tokenizes texts. Returns {split: tokens of all its texts, [N]}, with the end token before each text.

    The dtype is uint16 if the vocabulary fits, otherwise uint32. The arrays are memory-mapped from temporary files
    without names, so a corpus may be larger than the memory.

    texts: (split, text) of each text. Raises: UserError if the tokenizer can't encode a text.
    """
    # uint16 halves the memory and the cache for all common vocabularies.
    dtype = np.dtype(np.uint16 if tokenizers.size(tokenizer) <= 2**16 else np.uint32)
    end = dtype.type(tokenizers.end(tokenizer)).tobytes()
    with ExitStack() as stack:

        def open_file() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile())

        files = defaultdict[str, IO[bytes]](open_file)
        for batch in batch_pieces(texts):
            encoded = tokenizers.encode_all(tokenizer, [piece.text for piece in batch])
            for piece, tokens in zip(batch, encoded, strict=True):
                files[piece.split].write(end * piece.begins + np.array(tokens, dtype).tobytes())
        for file in files.values():
            file.flush()
        # A memory map keeps its file after the file is closed.
        return {split: np.memmap(file, dtype, mode="r") for split, file in files.items()}


def batch_pieces(texts: Iterable[tuple[str, str]]) -> Iterator[list[Piece]]:
    """Cuts texts into pieces, and yields lists of pieces with together about BATCH_CHARACTERS characters.

    texts: (split, text) of each text.
    """
    batch: list[Piece] = []
    size = 0
    for split, text in texts:
        for begins, piece in cut_pieces(text):
            batch.append(Piece(split, begins, piece))
            size += len(piece)
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def cut_pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Cuts a text into pieces. Yields (whether it is the first piece, piece).

    A piece ends at the first BETWEEN_LINES after PIECE_CHARACTERS characters, otherwise at the end of the text.
    """
    start = 0
    while match := BETWEEN_LINES.search(text, start + PIECE_CHARACTERS):
        yield start == 0, text[start : match.start()]
        start = match.start()
    yield start == 0, text[start:]
