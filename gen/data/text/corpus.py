"""Cleans documents, divides them into splits and tokenizes them once. Later starts map the tokens from the cache."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers as library

from gen.data import digest as data_digest
from gen.data.cache import Arrays, load_or_make
from gen.data.text import cleaning, splits, tokenizers
from gen.data.text.documents import Document, Source
from gen.data.text.splits import Split, Writing
from gen.data.text.streams import Streams, tokenize
from gen.data.text.tokenizers import Tokenizer
from gen.errors import UserError

VERSION = "corpus 2"  # part of the cache key: raise it when the cached arrays change
MAX_LABELS = 1000  # if there are more different labels, they are not treated as classes


class Corpus(NamedTuple):
    """The tokens of three splits."""

    tokens: Mapping[str, np.ndarray]
    """{"train", "validation" or "test": uint16 or uint32 [N]}, with the end token before each text. The texts are documents, or for pairs
    prompt, target, prompt, target, ... If there is no test split, its tokens are the validation tokens."""
    tokenizer: Tokenizer
    digest: str
    """SHA-256 of the tokens and the tokenizer."""
    counts: Counter[str]
    """Numbers of kept and dropped documents and characters. See `gen.data.text.cleaning.clean`."""
    labels: list[str]
    """The different labels of pairs of a text and a label, sorted. []: there are none, or more than MAX_LABELS."""

    def streams(self) -> Streams:
        """Returns the tokens with the end token and the token widths of the tokenizer."""
        return Streams(self.tokens, tokenizers.end(self.tokenizer), tokenizers.widths(self.tokenizer))


@dataclass(frozen=True)
class Recipe:
    """The settings of gen.data.text.Text that determine which texts are in a corpus, and in which split."""

    name: str
    """Name of the documents, the --data.name, for errors."""
    split: str
    tokenizer: str
    vocabulary: int
    document_break: str | None
    min_characters: int
    template: str

    def key(self, source: Source, tokenizer: bytes) -> str:
        """Returns the cache key of the corpus, a SHA-256 in hexadecimal.

        tokenizer: content of the tokenizer.json that the recipe names. b"": it names none.
        """
        # Only settings that change the tokens are part of the key. A change of another setting does not tokenize again.
        settings = (
            self.split,
            self.tokenizer,
            self.vocabulary if self.tokenizer == "bpe" else None,
            self.min_characters,
            library.__version__,
        )
        parts = (repr(settings), repr(self.template if source.pair else self.document_break))
        return data_digest.sha256(VERSION, source.fingerprint, *parts, sha256(tokenizer).hexdigest())


def build_corpus(source: Source, recipe: Recipe, whole: bool = False) -> Corpus:
    """Returns the corpus of a source of documents, from the cache if it was built before.

    whole: compare every byte of the cache with its hash, not only a random sample.

    Raises: UserError for documents that cannot be read, an unknown field in the template, or a split without documents.
    """
    if source.pair and (unknown := set(splits.FIELD.findall(recipe.template)) - source.keys - {"source"}):
        raise UserError(
            f"--data.template has {{{min(unknown)}}}, and the lines of {recipe.name} have {', '.join(sorted(source.keys))}"
        )
    split = splits.parse(recipe.split)
    content = b"" if recipe.tokenizer in tokenizers.TRAINED else tokenizers.read(Path(recipe.tokenizer))
    builder = Builder(source, recipe, split, content, Writing(source.pair, recipe.template))
    arrays = load_or_make(recipe.key(source, content), builder.make, f"tokens of {recipe.name}", whole)
    facts = json.loads(arrays["facts"].tobytes())
    return Corpus(
        tokens={part: arrays.get(part, arrays["validation"]) for part in ("train", "validation", "test")},
        tokenizer=tokenizers.load(arrays["tokenizer"].tobytes()),
        digest=facts["digest"],
        counts=Counter(facts["counts"]),
        labels=facts["labels"],
    )


class Survey(NamedTuple):
    """Results of one pass over the cleaned documents, before they are tokenized."""

    counts: Counter[str]
    """Numbers of kept and dropped documents and characters. See `gen.data.text.cleaning.clean`."""
    labels: set[str]
    """The different labels of pairs. At most MAX_LABELS + 1 are collected."""
    alphabet: set[str]
    """The different characters of all texts, for a character tokenizer."""


@dataclass(frozen=True)
class Builder:
    """Makes the arrays of a corpus. It reads the documents several times, because they may be larger than the memory."""

    source: Source
    recipe: Recipe
    split: Split
    content: bytes
    """Content of the tokenizer.json that the recipe names. b"": it names none."""
    writing: Writing

    def make(self) -> Arrays:
        """Returns the arrays that are cached: {split: tokens}, and uint8 arrays with the bytes of two files.

        The files are "tokenizer", the tokenizer.json, and "facts", a JSON object with the digest, the counts and the
        labels.
        """
        survey = self.survey()
        # The split "tail" needs the total before it can assign the first text, so a first pass counts.
        total = survey.counts["documents" if self.source.pair else "characters"]
        tokenizer = self.make_tokenizer(survey.alphabet, total)
        tokens = tokenize(self.split_texts(total), tokenizer)
        self.check_splits(tokens, survey.counts["documents"])
        # The cache holds arrays only, so the tokenizer and the facts are stored as bytes.
        dump = tokenizers.dump(tokenizer)
        digest = data_digest.sha256(dump.decode(), *(part for name in sorted(tokens) for part in (name, tokens[name])))
        labels = sorted(survey.labels) if len(survey.labels) <= MAX_LABELS else []
        facts = {"digest": digest, "counts": survey.counts, "labels": labels}
        return {**tokens, "tokenizer": _as_array(dump), "facts": _as_array(json.dumps(facts).encode())}

    def documents(self, counts: Counter[str]) -> Iterator[Document]:
        """Yields the documents of the source, cleaned. `counts` is increased as in `gen.data.text.cleaning.clean`."""
        pair = self.source.pair
        body, separator = (pair.target, None) if pair else ("text", self.recipe.document_break)
        return cleaning.clean(self.source.read(), body, separator, self.recipe.min_characters, counts)

    def survey(self) -> Survey:
        """Reads all documents once. Returns their counts and labels, and their characters for a character tokenizer.

        Raises: UserError if all documents are dropped, or all labels are the same.
        """
        found, pair = Survey(Counter(), set(), set()), self.source.pair
        for document in self.documents(found.counts):
            if self.recipe.tokenizer == "character":
                found.alphabet.update(*self.writing.texts(document))
            # Targets that are not labels may be millions of different texts.
            if pair and pair.target == "label" and len(found.labels) <= MAX_LABELS:
                found.labels.add(document.fields["label"])
        name = self.recipe.name
        if len(found.labels) == 1:
            raise UserError(
                f"--data.name {name}: the label of each line is {min(found.labels)!r}; a classification needs two labels"
            )
        if not found.counts["documents"]:
            dropped = cleaning.describe_dropped(found.counts)
            raise UserError(f"--data.name {name}: it is empty, or nothing of it is kept: {dropped}")
        return found

    def split_texts(self, total: int) -> Iterator[tuple[str, str]]:
        """Yields (split, text) of all texts that are tokenized. total: number of characters, or of pairs for pairs."""
        # Documents are counted in the first pass only.
        return splits.assign(self.documents(Counter()), self.split, total, self.writing)

    def make_tokenizer(self, alphabet: set[str], total: int) -> Tokenizer:
        """Trains or loads the tokenizer. A bpe is trained on the training split alone.

        alphabet: characters of all texts, for a character tokenizer. total: as in `split_texts`.
        """
        kind = self.recipe.tokenizer
        if kind == "bpe":
            train = (text for part, text in self.split_texts(total) if part == "train")
            return tokenizers.bpe(train, self.recipe.vocabulary)
        if kind == "character":
            return tokenizers.character(alphabet)
        if kind == "byte":
            return tokenizers.byte()
        return tokenizers.load(self.content, kind)

    def check_splits(self, tokens: Mapping[str, np.ndarray], documents: int) -> None:
        """Raises: UserError for a split without documents. Only "hash" needs a test split: others test on validation.

        tokens: {split: its tokens}, without empty splits. documents: number of all documents, for the error.
        """
        for part in ("train", "validation", "test"):
            if part not in tokens and (part != "test" or self.split.kind == "hash"):
                raise UserError(
                    f"--data.split {self.recipe.split!r} leaves no document for {part}, of {documents}; choose another"
                    " share, --data.split tail:0.1, or divide the text into more documents with --data.document-break"
                )


def _as_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
