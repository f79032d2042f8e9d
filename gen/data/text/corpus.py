"""From documents to tokens: cleaned, split, tokenized and written in one pass, and from then on mapped from the cache."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import tokenizers as library

from gen.data import digest as data_digest
from gen.data.cache import Arrays, cached
from gen.data.text import cleaning, tokenizers
from gen.data.text.documents import Document, Source
from gen.data.text.tokenizers import Tokenizer
from gen.errors import UserError

VERSION = "corpus 1"  # of what lies in the cache
CHUNK = 2**20  # characters that are tokenized at once, each PIECE by a thread
PIECE = 2**16
LABELS = 1000  # more different ones are no classes
BETWEEN_LINES = re.compile(r"(?<=\S\n)(?=\S)")  # where no tokenizer joins what is before with what is after


class Corpus(NamedTuple):
    """The tokens of three splits, each text with `end` before it: documents; or a prompt and a target in turn."""

    tokens: Mapping[str, np.ndarray]
    """uint16 or uint32 [N] of "train", "validation" and "test", which may be the same as "validation"."""
    tokenizer: Tokenizer
    digest: str
    """SHA-256 of the tokens and the tokenizer."""
    counts: Counter[str]
    """What cleaning kept and dropped."""
    labels: list[str]
    """The different labels, sorted; none if there are more than LABELS."""


class Split(NamedTuple):
    """How documents are divided into training, validation and test."""

    kind: Literal["hash", "tail", "slices"]
    share: float = 0.0
    """Held out for validation and, of "hash", as much again for the test."""
    slices: tuple[str, str, str] | None = None


def parse(split: str) -> Split:
    """hash:SHARE, tail:SHARE, or three slices. Raises: UserError if it is none of them."""
    kind, colon, share = split.partition(":")
    if colon and kind in ("hash", "tail"):
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        most = 0.5 if kind == "hash" else 1
        if not 0 < number < most:
            raise UserError(f"--data.split {split!r}: {share!r} is no share above 0 and below {most}")
        return Split("hash" if kind == "hash" else "tail", number)
    slices = tuple(part.strip() for part in split.split(","))
    if len(slices) != 3 or not all(slices):
        raise UserError(
            f"--data.split {split!r} is neither hash:0.1, tail:0.1 nor three slices of a TFDS set such as"
            " train[:90%],train[90%:],test"
        )
    return Split("slices", slices=slices)


def built(
    name: str,
    source: Source,
    split: str,
    tokenizer: str,
    vocabulary: int,
    between: str | None,
    min_characters: int,
    template: str,
) -> Corpus:
    """The corpus of a source, made unless the cache has it. The arguments are those of gen.data.text.dataset.Text.

    Raises: UserError for documents that can't be read, a template of unknown fields, or a split without documents.
    """
    pair = source.pair
    if pair and (unknown := set(re.findall(r"\{(\w+)\}", template)) - source.keys - {"source"}):
        raise UserError(
            f"--data.template has {{{min(unknown)}}}, and the lines of {name} have {', '.join(sorted(source.keys))}"
        )
    rule = parse(split)
    content = b"" if tokenizer in tokenizers.TRAINED else tokenizers.read(Path(tokenizer))

    def documents(counts: Counter[str]) -> Iterator[Document]:
        return cleaning.cleaned(
            source.read(), pair[1] if pair else "text", None if pair else between, min_characters, counts
        )

    def make() -> Arrays:
        counts: Counter[str] = Counter()
        labels: set[str] = set()
        alphabet: set[str] = set()
        for document in documents(counts):
            if tokenizer == "character":
                alphabet.update(*texts(document, pair, template))
            if pair and pair[1] == "label" and len(labels) <= LABELS:
                labels.add(document.fields["label"])
        if len(labels) == 1:
            raise UserError(
                f"--data.name {name}: the label of each line is {min(labels)!r}; it takes two to tell apart"
            )
        if not counts["documents"]:
            raise UserError(f"--data.name {name}: it is empty, or nothing of it is kept: {cleaning.dropped(counts)}")

        total = counts["documents" if pair else "characters"]
        parts = lambda: assigned(documents(Counter()), rule, total, pair, template)
        if tokenizer == "bpe":
            trained = tokenizers.bpe((text for part, text in parts() if part == "train"), vocabulary)
        elif tokenizer in tokenizers.TRAINED:
            trained = tokenizers.character(alphabet) if tokenizer == "character" else tokenizers.byte()
        else:
            trained = tokenizers.load(content, tokenizer)
        tokens = tokenized(parts(), trained)
        for part in ("train", "validation", "test"):
            if part not in tokens and (part != "test" or rule.kind == "hash"):
                raise UserError(
                    f"--data.split {split!r} leaves no document for {part}, of {counts['documents']}; choose another share,"
                    " --data.split tail:0.1, or divide the text into more documents with --data.document-break"
                )
        dump = tokenizers.dump(trained)
        digest = data_digest.sha256(dump.decode(), *(part for name in sorted(tokens) for part in (name, tokens[name])))
        facts = {"digest": digest, "counts": counts, "labels": sorted(labels) if len(labels) <= LABELS else []}
        return {**tokens, "tokenizer": _bytes(dump), "facts": _bytes(json.dumps(facts).encode())}

    settings = (split, tokenizer, vocabulary if tokenizer == "bpe" else None, min_characters, library.__version__)
    key = (repr(settings), repr(template if pair else between), sha256(content).hexdigest())
    arrays = cached(data_digest.sha256(VERSION, source.fingerprint, *key), make)
    facts = json.loads(arrays["facts"].tobytes())
    tokens = {part: arrays.get(part, arrays["validation"]) for part in ("train", "validation", "test")}
    trained = tokenizers.load(arrays["tokenizer"].tobytes())
    return Corpus(tokens, trained, facts["digest"], Counter(facts["counts"]), facts["labels"])


def texts(document: Document, pair: tuple[str, str] | None, template: str) -> list[str]:
    """What is tokenized of a document: its text; or a prompt, the template with its {fields}, and the target."""
    if pair is None:
        return [document.fields["text"]]
    fields = {**document.fields, "source": document.fields[pair[0]]}
    return [re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], template), fields[pair[1]]]


def assigned(
    documents: Iterable[Document], split: Split, total: int, pair: tuple[str, str] | None, template: str
) -> Iterator[tuple[str, str]]:
    """(split, text) of what is tokenized. `total` counts characters, or pairs.

    hash: by the SHA-256 of the text, or of the source, so that a document keeps its split whatever comes to it. tail:
    the first int(total (1 - share)) characters of all texts are "train", as in nanoGPT, or so many pairs.
    """
    place, cut = 0, int(total * (1 - split.share))
    for document in documents:
        found = texts(document, pair, template)
        if split.kind == "tail" and pair is None:
            (text,) = found
            head = min(max(cut - place, 0), len(text))
            yield from ((part, piece) for part, piece in (("train", text[:head]), ("validation", text[head:])) if piece)
            place += len(text)
            continue
        if split.kind == "tail":
            part = "train" if place < cut else "validation"
            place += 1
        elif split.kind == "hash":
            basis = document.fields[pair[0] if pair else "text"]
            u = int.from_bytes(sha256(basis.encode()).digest()[:8], "big") / 2**64
            part = "validation" if u < split.share else "test" if u < 2 * split.share else "train"
        else:
            part = document.split or "train"
        yield from ((part, text) for text in found)


def tokenized(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """(split, text) -> {split: tokens [N]}, each text with `end` before it: uint16 if the vocabulary allows it, or else
    uint32, mapped from files without a name."""
    dtype = np.dtype(np.uint16 if tokenizers.size(tokenizer) <= 2**16 else np.uint32)
    end = dtype.type(tokenizers.end(tokenizer)).tobytes()
    with ExitStack() as opened:
        files = defaultdict[str, IO[bytes]](lambda: opened.enter_context(tempfile.TemporaryFile()))
        for batch in batches(texts):
            encoded = tokenizers.encode_all(tokenizer, [piece for _, _, piece in batch])
            for (part, begins, _), tokens in zip(batch, encoded, strict=True):
                files[part].write(end * begins + np.array(tokens, dtype).tobytes())
        for file in files.values():
            file.flush()
        return {part: np.memmap(file, dtype, mode="r") for part, file in files.items()}


def batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, bool, str]]]:
    """Lists of (split, whether a text begins here, piece of it), of about CHUNK characters each."""
    batch: list[tuple[str, bool, str]] = []
    size = 0
    for part, text in texts:
        for begins, piece in pieces(text):
            batch.append((part, begins, piece))
            size += len(piece)
            if size >= CHUNK:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def pieces(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is the first, piece) of a text, of about PIECE characters each where the text has lines."""
    start = 0
    while match := BETWEEN_LINES.search(text, start + PIECE):
        yield start == 0, text[start : match.start()]
        start = match.start()
    yield start == 0, text[start:]


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
