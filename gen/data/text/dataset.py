"""The config of text data sets, how their examples are made, and the baselines of the test split."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from gen import core, errors
from gen.core import Batch, Key
from gen.data import digest
from gen.data.cache import Arrays, load_or_make
from gen.data.examples import Examples
from gen.data.text import cleaning, splits, tokenizers
from gen.data.text.corpus import Corpus, Recipe, build_corpus
from gen.data.text.pairs import make_pairs
from gen.data.text.sources import open_source
from gen.data.text.windows import make_windows
from gen.errors import UserError

MIN_BPE = 257  # smallest vocabulary of a bpe: the bytes and the end token
MAX_COUNTED = 2**23  # largest number of tokens of a split that the baselines read. This takes about 4 GiB of memory


@dataclass(frozen=True)
class Text(core.Data):
    """Texts as tokens: "tokens" int32 [B, length + 1], and "source" int32 [B, source_length] for separate pairs.

    Batches also have "counted" and "bytes": see gen.data.text.streams.Streams.examples.
    """

    name: str = "pydoc"
    """pydoc, Python's own documentation; text:PATH, a file or folder of UTF-8; jsonl:PATH, JSON lines or a JSON array with "text",
    with "source" and "target", or with "text" and "label"; or the name of a prepared TFDS set, such as tiny_shakespeare or
    name/config:1.0.0."""
    keys: tuple[str, ...] = ()
    """Keys of the JSON lines, if they are not "text", "source", "target" or "label": text=content, or source=question
    target=answer. text=text reads texts without their labels."""
    data_dir: str | None = field(default=None, metadata=core.LAUNCH)
    """Directory of prepared TFDS sets. None: ~/tensorflow_datasets, the directory that TFDS uses."""
    split: str = "hash:0.1"
    """How texts are held out. hash:0.1: by the SHA-256 of each document, this fraction for validation and the same fraction again for the
    test. tail:0.1: this fraction at the end of the whole text, for both validation and test. Or slices of a TFDS set for training,
    validation and test, such as train[:90%],train[90%:],test."""
    length: int = 256
    """Number of tokens that a model predicts in an example. An example has one token more, because the first is not predicted."""
    stride: int | None = None
    """Number of tokens from the start of an evaluation window to the start of the next. Each window but the first
    predicts only its last `stride` tokens, so a smaller stride gives each prediction more context. None: the same as
    `length`, so windows are disjoint."""
    tokenizer: str = "byte"
    """byte: one token for each byte. character: one token for each character that occurs. bpe: trained on the training split. Or the path
    of a tokenizer.json, or of a folder with a tokenizer.json, such as a run directory."""
    vocabulary: int = 1024
    """Largest number of tokens in the vocabulary of a trained bpe, at least 257."""
    document_break: str | None = None
    r"""Regular expression whose matches divide each text into documents, such as (?=^CHAPTER ). None: each file, each
    JSON line or each TFDS example is one document."""
    min_characters: int = 1
    """Drop documents with fewer characters, and pairs whose target has fewer characters."""
    template: str = "{source}\n"
    """Prompt of a pair: {source}, {text} and other keys of its JSON line are replaced by their values. (A newline in a shell:
    $'{source}\\n')"""
    pairs: Literal["joined", "separate"] = "joined"
    """For pairs. joined: an example is the prompt and then the target. separate: the prompt is the feature "source",
    for an encoder."""
    source_length: int | None = None
    """For separate pairs: number of tokens of a source. None: the same as `length`."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How each later start looks for changed files and a damaged cache. sample: it compares a random sample of the content, 128 chunks of
    1 MiB. all: it compares every byte."""

    def build(self) -> core.Dataset:
        """Reads, cleans and tokenizes the documents, or finds the result in the cache. Prints how much text there is.

        Raises: UserError for a wrong option, or documents that cannot be used.
        """
        check(self)
        whole = self.check == "all"
        source = open_source(self.name, self.data_dir, splits.parse(self.split).slices, self.keys, whole)
        if source.pair and self.stride:
            raise UserError(f"--data.stride {self.stride} is for windows, and {self.name} has pairs: leave it out")
        found = build_corpus(source, self.recipe(), whole)
        # The keys of source and target may be guessed, so the line names them.
        unit = f'pairs of "{source.pair.source}" and "{source.pair.target}"' if source.pair else "documents"
        errors.note(cleaning.describe(self.name, found.counts, unit))
        layout = lay_out_pairs(self, found) if source.pair else lay_out_windows(self, found)
        # The vocabulary of a trained bpe may be smaller than the config asks for.
        vocab, end = tokenizers.size(found.tokenizer), tokenizers.end(found.tokenizer)
        # Scores are only compared if these strings are equal. Changing a string here makes old scores incomparable.
        protocol = {"held_out": self.split, "tokenizer": describe_tokenizer(found.tokenizer)}
        counted_by_token = self.tokenizer in ("byte", "character")
        return core.Dataset(
            spec={name: core.Feature((n,), "int32", vocab=vocab, end=end) for name, n in layout.lengths.items()},
            sizes=layout.examples.sizes,
            digest=found.digest,
            batch=layout.examples.batch,
            evaluation=layout.examples.evaluation,
            preprocess=keep,
            files=run_files(found),
            protocol={**protocol, **source.facts, **layout.protocol},
            baselines=dict if source.pair else partial(baselines, found, counted_by_token),
        )

    def recipe(self) -> Recipe:
        """Returns the settings that decide how the texts are divided and tokenized, without the lengths of examples."""
        return Recipe(
            name=self.name,
            split=self.split,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            document_break=self.document_break,
            min_characters=self.min_characters,
            template=self.template,
        )


def check(config: Text) -> None:
    """Checks the options that can be checked without reading documents. Raises: UserError if one is wrong."""
    errors.check_positive(
        **{
            "--data.batch-size": config.batch_size,
            "--data.length": config.length,
            "--data.min-characters": config.min_characters,
        }
    )
    if config.source_length is not None:
        errors.check_positive(**{"--data.source-length": config.source_length})
    if config.stride is not None and not 0 < config.stride <= config.length:
        raise UserError(
            f"--data.stride is {config.stride}; it must be above 0 and at most --data.length {config.length}"
        )
    if config.tokenizer == "bpe" and config.vocabulary < MIN_BPE:
        raise UserError(f"--data.vocabulary is {config.vocabulary}; for a bpe it must be at least {MIN_BPE}")
    try:
        # Compiled for the error alone, which comes before any document is read.
        re.compile(config.document_break or "", re.MULTILINE)
    except re.error as error:
        raise UserError(
            f"--data.document-break {config.document_break!r} is not a regular expression: {error}"
        ) from None


def keep(batch: Batch, key: Key, training: bool) -> Batch:
    """Returns the batch: tokens need no preprocessing."""
    return batch


def run_files(found: Corpus) -> dict[str, bytes]:
    """Returns {name: content} of the files that a run keeps: tokenizer.json, and labels.json if there are labels."""
    files = {tokenizers.FILE: tokenizers.dump(found.tokenizer)}
    if found.labels:
        files["labels.json"] = (json.dumps(found.labels, ensure_ascii=False) + "\n").encode()
    return files


def describe_tokenizer(tokenizer: tokenizers.Tokenizer) -> str:
    """Returns a phrase that identifies a tokenizer, such as "of 257 tokens, sha256 0123456789abcdef"."""
    sha256 = hashlib.sha256(tokenizers.dump(tokenizer)).hexdigest()
    return f"of {tokenizers.size(tokenizer)} tokens, sha256 {sha256[:16]}"


class Layout(NamedTuple):
    """The examples of a corpus, and how they were cut out of its tokens."""

    examples: Examples
    lengths: Mapping[str, int]
    """{feature: number of tokens in an example}."""
    protocol: Mapping[str, str | int]
    """Entries of gen.core.Dataset.protocol that say how the held-out splits are divided into examples."""


def lay_out_windows(config: Text, found: Corpus) -> Layout:
    """Makes examples that are windows of the token stream, as `make_windows` says."""
    examples = make_windows(found.streams(), config.length, config.stride, config.batch_size)
    how = f"strided by {config.stride}" if config.stride else "disjoint"
    protocol = {"windows": f"{how}, {config.length} tokens"}
    if max(len(found.tokens[split]) for split in ("train", "test")) > MAX_COUNTED:
        protocol |= {"baselines": f"of the last {MAX_COUNTED} tokens of train and the first of test"}
    return Layout(examples, {"tokens": config.length + 1}, protocol)


def lay_out_pairs(config: Text, found: Corpus) -> Layout:
    """Makes examples of one pair each, as `make_pairs` says. Prints how many prompts are cut and pairs dropped."""
    separate = (config.source_length or config.length) if config.pairs == "separate" else None
    examples, lost = make_pairs(found.streams(), config.length, separate, config.batch_size)
    cut, dropped = sum(each.cut for each in lost.values()), sum(each.dropped for each in lost.values())
    # A long prompt is cut at its beginning, since its end is closest to the target. A long target cannot be cut.
    if cut or dropped:
        errors.note(f"{config.name}: {cut:,} prompts lost their beginning; dropped {dropped:,} pairs with long targets")
    lengths, after = {"tokens": config.length + 1}, ""
    if separate:
        lengths, after = lengths | {"source": separate}, f" after {separate}"
    protocol = {"windows": f"{config.pairs} pairs, {config.length} tokens{after}"}
    return Layout(examples, lengths, protocol | lost["test"]._asdict())


def baselines(found: Corpus, counted_by_token: bool) -> dict[str, float]:
    """Returns the scores of n-grams and xz on the test split, with the training split as training text.

    They are baselines for the scores of language models. The names are "kneser_ney_bits_per_byte", "kneser_ney_order"
    and "xz_bits_per_byte", see `ngram.baselines`. Only the last MAX_COUNTED training tokens and the first MAX_COUNTED
    test tokens are used. Documents are joined with a zero byte. The scores are cached.

    counted_by_token: also return "kneser_ney", the loss of n-grams of tokens, in nats per token.
    """
    train, test = found.tokens["train"][-MAX_COUNTED:], found.tokens["test"][:MAX_COUNTED]
    # Both baselines get bytes: the bytes of the tokens, with a zero byte for each end token. So xz and the n-grams over bytes see the
    # same text with every tokenizer.
    pieces = tokenizers.pieces(found.tokenizer)
    pieces[tokenizers.end(found.tokenizer)] = b"\0"

    def text(tokens: np.ndarray) -> bytes:
        return b"".join(map(pieces.__getitem__, tokens.tolist())).removeprefix(b"\0")

    def make() -> Arrays:
        # Imported only when the numbers are not in the cache.
        from gen.data.text import ngram

        numbers = ngram.baselines(text(train), text(test))
        if counted_by_token:
            numbers["kneser_ney"] = ngram.kneser_ney(train, test, len(pieces)).nats
        return {name: np.array(number) for name, number in numbers.items()}

    # Counting takes minutes on a large text. The number in the key is raised when the baselines change.
    key = digest.sha256("baselines 2", found.digest, str((MAX_COUNTED, counted_by_token)))
    kept = load_or_make(key, make, "scores of n-grams and xz")
    return {name: float(number) for name, number in kept.items()}
