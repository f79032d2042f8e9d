"""Divides documents into training, validation and test splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple

from gen.data.text.documents import Document, PairFields
from gen.errors import UserError

FIELD = re.compile(r"\{(\w+)\}")  # a field in a template


class Split(NamedTuple):
    """How documents are divided into training, validation and test, as parsed from --data.split. See `assign`."""

    kind: Literal["hash", "tail", "slices"]
    share: float = 0.0
    """Fraction of the texts for validation. "hash" holds out the same fraction again for the test split."""
    slices: tuple[str, str, str] | None = None
    """For "slices": the training, validation and test documents, in the slicing syntax of TFDS."""


def parse(split: str) -> Split:
    """Parses --data.split: hash:FRACTION, tail:FRACTION, or three slices with commas between.

    Raises: UserError for another text, or a fraction that is out of range.
    """
    kind, colon, share = split.partition(":")
    if colon and kind in ("hash", "tail"):
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        # `hash` takes the fraction twice, for validation and for test, and must leave documents to train on.
        limit = 0.5 if kind == "hash" else 1
        if not 0 < number < limit:
            raise UserError(f"--data.split {split!r}: {share!r} is not a fraction above 0 and below {limit}")
        return Split("hash" if kind == "hash" else "tail", number)
    slices = tuple(part.strip() for part in split.split(","))
    if len(slices) != 3 or not all(slices):
        raise UserError(
            f"--data.split {split!r} is neither hash:0.1, tail:0.1 nor three slices of a TFDS set such as"
            " train[:90%],train[90%:],test"
        )
    return Split("slices", slices=slices)


@dataclass(frozen=True)
class Writing:
    """Settings that turn a document into texts: one text, or a prompt and a target for a pair."""

    pair: PairFields | None
    """Fields of the source and the target. None: documents are not pairs."""
    template: str
    """The prompt of a pair. {NAME} is replaced by the field NAME, and {source} by the source."""

    def texts(self, document: Document) -> list[str]:
        """Returns the texts of a document: [text], or [prompt, target] for a pair."""
        if self.pair is None:
            return [document.fields["text"]]
        fields = {**document.fields, "source": document.fields[self.pair.source]}

        def fill(match: re.Match[str]) -> str:
            return fields[match[1]]

        # The replacement is a function, because re.sub would read backslashes in a text as escapes.
        return [FIELD.sub(fill, self.template), fields[self.pair.target]]


def assign(documents: Iterable[Document], split: Split, total: int, writing: Writing) -> Iterator[tuple[str, str]]:
    """Assigns documents to splits. Yields (split, text) for each text of each document, in order.

    The kind of `split` decides how:

    - hash: by the SHA-256 of the document, or of the source of a pair. So adding documents does not change the split
      of any other document.
    - tail: the first int(total (1 - share)) characters of all texts are "train", as in nanoGPT, and the others
      "validation". For pairs, pairs are counted instead of characters.
    - slices: the split that the document already has, because it was read from the slice of this split.

    total: number of characters of all documents, or number of pairs. writing: turns a document into its texts.
    """
    position, cut = 0, int(total * (1 - split.share))
    for document in documents:
        texts = writing.texts(document)
        if split.kind == "tail" and writing.pair is None:
            (text,) = texts
            # The cut may be inside of a document. The two parts of this document become two documents.
            head = min(max(cut - position, 0), len(text))
            yield from ((part, piece) for part, piece in (("train", text[:head]), ("validation", text[head:])) if piece)
            position += len(text)
            continue
        # A prompt and its target always belong to the same split.
        if split.kind == "tail":
            part = "train" if position < cut else "validation"
            position += 1
        elif split.kind == "hash":
            part = split_by_hash(document.fields[writing.pair.source if writing.pair else "text"], split.share)
        else:
            part = document.split or "train"
        yield from ((part, text) for text in texts)


def split_by_hash(text: str, share: float) -> str:
    """Returns the split of a text. Its SHA-256 gives a number u that is uniform in [0, 1).

    "validation" if u < share, "test" if share <= u < 2 share, otherwise "train".
    """
    # 8 bytes of the digest are a uniform number that depends on nothing but the text.
    u = int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64
    if u < share:
        return "validation"
    return "test" if u < 2 * share else "train"
