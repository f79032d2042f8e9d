"""Text data sets: Python's documentation, files, JSON lines, prepared TFDS sets, as functions of (seed, step, row)."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from gen import core, errors
from gen.data import digest
from gen.data.cache import cached
from gen.data.text import cleaning, corpus, documents, tokenizers
from gen.data.text.corpus import Corpus
from gen.data.text.pairs import pairs
from gen.data.text.windows import Examples, windows
from gen.errors import UserError

MIN_BPE = 257  # tokens of a bpe: the bytes and the end
COUNTED = 2**23  # tokens of each split that n-grams are counted in, in about 4 GiB


@dataclass(frozen=True)
class Text(core.Data):
    """Text as tokens, and how it is read."""

    name: str = "pydoc"
    """pydoc, Python's own documentation; text:PATH, a file or folder of UTF-8; jsonl:PATH, of lines with "text", "source" and
    "target", or "text" and "label"; or a TFDS name as tiny_shakespeare or name/config:1.0.0."""
    data_dir: str | None = field(default=None, metadata=core.LAUNCH)
    """Where TFDS sets are prepared; TFDS's own ~/tensorflow_datasets if None."""
    split: str = "hash:0.1"
    """hash:0.1 holds documents out by their SHA-256, this share for validation and as much for the test; tail:0.1 the end of
    the whole text for both; or three slices of a TFDS set, as train[:90%],train[90%:],test."""
    length: int = 256
    """Tokens that a model sees at once."""
    stride: int | None = None
    """Tokens between windows in evaluation, each counting its last `stride`; None: disjoint windows."""
    tokenizer: str = "byte"
    """byte; character, of all that the text has; bpe, trained on the training split; or the path of a tokenizer.json, or of a
    folder, such as a run's, that holds one."""
    vocabulary: int = 1024
    """Tokens of a trained bpe, at most."""
    document_break: str | None = None
    r"""A regular expression on which each text is divided into documents, as (?=^CHAPTER ); None: a file is a document."""
    min_characters: int = 1
    """Shorter documents, or targets, are dropped."""
    template: str = "{source}\n"
    """Of pairs, what comes before the target: {source}, {text} and other keys of the line are replaced by what it says. (A
    newline in a shell: $'{source}\\n')"""
    pairs: Literal["joined", "separate"] = "joined"
    """Whether the source stands before the target, or in a feature of its own, for an encoder."""
    source_length: int | None = None
    """Tokens of a separate source; None: as `length`."""

    def build(self) -> core.Dataset:
        """Reads, cleans and tokenizes the documents, or finds that done; says in a line what there is.

        Raises: UserError for all that a user can get wrong.
        """
        check(self)
        source = documents.opened(self.name, self.data_dir, corpus.parse(self.split).slices)
        if source.pair and self.stride:
            raise UserError(f"--data.stride {self.stride} is of windows, and {self.name} has pairs: leave it out")
        found = corpus.built(
            self.name,
            source,
            self.split,
            self.tokenizer,
            self.vocabulary,
            self.document_break,
            self.min_characters,
            self.template,
        )
        say(cleaning.line(self.name, found.counts, "pairs" if source.pair else "documents"))
        examples, lengths, how = paired(self, found) if source.pair else streamed(self, found)
        token = partial(core.Feature, dtype="int32", vocab=tokenizers.size(found.tokenizer))
        files = {tokenizers.FILE: tokenizers.dump(found.tokenizer)}
        if found.labels:
            files["labels.json"] = (json.dumps(found.labels, ensure_ascii=False) + "\n").encode()
        return core.Dataset(
            spec={name: token((n,), end=tokenizers.end(found.tokenizer)) for name, n in lengths.items()},
            sizes=examples.sizes,
            digest=found.digest,
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=lambda batch, key, training: batch,
            files=files,
            protocol={
                "held_out": self.split,
                "tokenizer": named(found.tokenizer),
                **source.facts,
                **how,
            },
            baselines=dict if source.pair else partial(baselines, found, self.tokenizer in ("byte", "character")),
        )


def named(tokenizer: tokenizers.Tokenizer) -> str:
    """What a tokenizer is, however the config came to it."""
    sha256 = hashlib.sha256(tokenizers.dump(tokenizer)).hexdigest()
    return f"of {tokenizers.size(tokenizer)} tokens, sha256 {sha256[:16]}"


def check(config: Text) -> None:
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
        raise UserError(f"--data.vocabulary is {config.vocabulary}; of bpe it must be at least {MIN_BPE}")
    try:
        re.compile(config.document_break or "", re.MULTILINE)
    except re.error as error:
        raise UserError(f"--data.document-break {config.document_break!r} is no regular expression: {error}") from None


def streamed(config: Text, found: Corpus) -> tuple[Examples, dict[str, int], dict[str, Any]]:
    """Windows of the documents, the lengths of their features, and the protocol."""
    end, widths = tokenizers.end(found.tokenizer), tokenizers.widths(found.tokenizer)
    examples = windows(found.tokens, end, widths, config.length, config.stride, config.batch_size)
    how = f"strided by {config.stride}" if config.stride else "disjoint"
    protocol = {"windows": f"{how}, {config.length} tokens"}
    if max(len(found.tokens[split]) for split in ("train", "test")) > COUNTED:
        protocol |= {"baselines": f"of the last {COUNTED} tokens of train and the first of test"}
    return examples, {"tokens": config.length + 1}, protocol


def paired(config: Text, found: Corpus) -> tuple[Examples, dict[str, int], dict[str, Any]]:
    """The pairs, the lengths of their features, and the protocol."""
    end, widths = tokenizers.end(found.tokenizer), tokenizers.widths(found.tokenizer)
    apart = (config.source_length or config.length) if config.pairs == "separate" else None
    examples, lost = pairs(found.tokens, end, widths, config.length, apart, config.batch_size)
    cut, dropped = (sum(each[key] for each in lost.values()) for key in ("cut", "dropped"))
    if cut or dropped:
        say(f"{config.name}: {cut:,} prompts lost their beginning; dropped {dropped:,} pairs with long targets")
    protocol = {"windows": f"{config.pairs} pairs, {config.length} tokens{f' after {apart}' if apart else ''}"}
    lengths = {"tokens": config.length + 1} | ({"source": apart} if apart else {})
    return examples, lengths, protocol | lost["test"]


def baselines(found: Corpus, of_tokens: bool) -> dict[str, float]:
    """What n-grams and xz reach on the test split after the training split: "kneser_ney_bits_per_byte" with
    its "kneser_ney_order" and "xz_bits_per_byte" of their UTF-8, documents joined by a zero byte; `of_tokens`, "kneser_ney" in
    nats a token too."""
    train, test = found.tokens["train"][-COUNTED:], found.tokens["test"][:COUNTED]
    pieces = tokenizers.pieces(found.tokenizer)
    pieces[tokenizers.end(found.tokenizer)] = b"\0"
    text = lambda tokens: b"".join(map(pieces.__getitem__, tokens.tolist())).removeprefix(b"\0")

    def make() -> dict[str, np.ndarray]:
        from gen.data.text import ngram

        numbers = ngram.baselines(text(train), text(test))
        if of_tokens:
            numbers["kneser_ney"] = ngram.kneser_ney(train, test, len(pieces))[0]
        return {name: np.array(number) for name, number in numbers.items()}

    kept = cached(digest.sha256("baselines 2", found.digest, str((COUNTED, of_tokens))), make)
    return {name: float(number) for name, number in kept.items()}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
