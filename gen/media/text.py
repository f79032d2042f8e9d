"""The medium of texts: encodes prompts and sources, and shows samples as text."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import tyro

from gen.core import LAUNCH, Given, Medium, RunView, Shown
from gen.data.text import tokenizers
from gen.data.text.documents import decode
from gen.data.text.tokenizers import Tokenizer
from gen.errors import UserError
from gen.files import read_bytes
from gen.media.arrays import FILES, number_names
from gen.media.stream import Listener, cut_at_stop
from gen.networks.positions import PADDING

RULE = "\n" + 60 * "-" + "\n"
"""Text between two samples in samples.txt."""


@dataclass(frozen=True)
class TextOptions:
    """The texts that are given to the model, where samples stop, and how they are shown."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text that samples continue. Repeat the option for more prompts."""
    prompt_file: Path | None = None
    """A file whose text is a prompt. Use - for the standard input; a newline at its end is dropped."""
    prefix: str | None = None
    """Text before the part to fill in. Needs --suffix, too."""
    suffix: str | None = None
    """Text after the part to fill in. Needs --prefix, too."""
    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """For a model of pairs: text for which a target is written. Repeat the option for more sources."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A sample ends where this text occurs, and the text is not shown. Repeat the option for more such texts."""
    stream: bool = field(default=False, metadata=LAUNCH)
    """Print the first sample while it is written. The other samples are printed at the end."""
    files: bool = False
    """Also write each sample as a separate text file into the sub-folder samples."""

    def __post_init__(self):
        if (self.prefix is None) != (self.suffix is None):
            raise UserError("filling in needs the text on both sides: give both --prefix and --suffix")
        if self.prefix is not None and (self.prompt or self.prompt_file):
            raise UserError("a sample continues a prompt or fills in between --prefix and --suffix, not both")
        if self.source and (self.prompt or self.prompt_file or self.prefix is not None):
            raise UserError("a target needs a --source alone: leave --prompt, --prefix and --suffix out")
        if "" in self.stop:
            raise UserError("--stop is empty; give it the text that ends a sample")


@dataclass(frozen=True)
class Texts(Medium):
    """Texts as tokens, int32 [n, T], with PADDING after the end of a sample."""

    features: ClassVar[Mapping[str, int]] = {"tokens": 1, "source": 1}
    options: ClassVar[type] = TextOptions

    def read_options(self, options: TextOptions) -> TextOptions:
        """Returns the options with the text of --prompt-file as the last prompt.

        Raises: UserError if it can't be read.
        """
        return read_prompt_file(options)

    def give(self, options: TextOptions, run: RunView) -> Given:
        """Returns the encoded prompts or sources (see `encode_inputs`), and a `Listener` if --stop or --stream need it.

        Raises: UserError for a --source if the run was not trained on pairs, or for a text that can't be encoded.
        """
        tokenizer = _tokenizer(run)
        first = run.reference().get("tokens", np.zeros((0, 1)))[:, 0]
        # Windows of a corpus begin anywhere in a document. Windows of pairs begin with END, so a prompt must, too.
        begins = len(first) > 1 and bool((first == tokenizers.end(tokenizer)).all())
        if options.source and "source" not in run.spec:
            if not begins:
                raise UserError("the run was trained on texts, not on pairs; give it a --prompt")
            options = fill_template(options, getattr(run.data, "template", ""))
        arrays = encode_inputs(options, tokenizer, begins)
        listener = make_listener(options, tokenizer)
        if listener is None:
            return Given(arrays)
        return Given(arrays, {"listen": listener}, lambda _: listener.finish())

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: TextOptions | None = None) -> Shown:
        """Returns samples.txt, with each sample after its prompt.

        With options.files, also returns each sample as a file samples/NUMBER.txt.
        """
        options = options or TextOptions()
        texts = join_texts(samples, _tokenizer(run), options)
        files = {"samples.txt": (RULE.join(texts) + "\n").encode()}
        if options.files:
            files |= {
                f"{FILES}/{name}.txt": text.encode() for name, text in zip(number_names(len(texts)), texts, strict=True)
            }
        return Shown(files)

    def describe(self, files: Mapping[str, bytes], options: TextOptions) -> str:
        """Returns all samples as text to print. The first is left out if it was streamed already."""
        first, rule, others = files["samples.txt"].decode().removesuffix("\n").partition(RULE)
        return ("" if options.stream else first) + rule + others


TEXT = Texts()


def _tokenizer(run: RunView) -> Tokenizer:
    return tokenizers.load(run.read_file(tokenizers.FILE))


def make_listener(options: TextOptions, tokenizer: Tokenizer) -> Listener | None:
    """Returns the `Listener` for --stop and --stream, or None if neither is given."""
    if not (options.stop or options.stream):
        return None
    return Listener(tokenizer, options.stop, options.stream)


def read_prompt_file(options: TextOptions) -> TextOptions:
    """Returns the options with the text of `prompt_file` as the last prompt. Raises: UserError if it can't be read."""
    if options.prompt_file is None:
        return options
    piped = str(options.prompt_file) == "-"
    try:
        content = sys.stdin.buffer.read() if piped else read_bytes(options.prompt_file)
    except FileNotFoundError:
        raise UserError(f"--prompt-file {options.prompt_file}: No such file or directory") from None
    except OSError as error:
        raise UserError(f"--prompt-file {options.prompt_file}: {error.strerror}") from None
    text = decode(content, f"--prompt-file {options.prompt_file}")
    # Commands such as echo add a new line at the end, which is no part of the prompt.
    return replace(options, prompt=(*options.prompt, text.removesuffix("\n") if piped else text), prompt_file=None)


def fill_template(options: TextOptions, template: str) -> TextOptions:
    """Returns the options with each --source replaced by a prompt: the template with the source in its field.

    template: the prompt of a pair in the training data, such as "Translate {source}: ". The field is {source} or
    {text}.

    Raises: UserError if the template has other fields.
    """
    if set(re.findall(r"\{(\w+)\}", template)) - {"source", "text"}:
        raise UserError(f"the run's prompts are {template!r}; fill that in, and give it as a --prompt")
    # The replacement is a function, because re.sub would interpret backslashes in a text.
    prompts = [re.sub(r"\{\w+\}", lambda _, text=source: text, template) for source in options.source]
    return replace(options, prompt=tuple(prompts), source=())


def encode_inputs(options: TextOptions, tokenizer: Tokenizer, begins: bool = False) -> dict[str, np.ndarray]:
    """Returns the input arrays of a language model, {name: int32 [P, W]}, with PADDING on the left of shorter rows.

    The names are "prompt", "source", "prefix" and "suffix", for the options that are given. P: number of texts of the
    option. W: number of tokens of the longest.

    begins: whether a prompt is the beginning of a document. If so, the token END is placed before it.

    Raises: UserError for a text that the tokenizer can't encode.
    """
    if "" in options.prompt:
        raise UserError("a prompt is empty; leave it out for samples that begin as documents do")
    if "" in options.source:
        raise UserError("a source is empty; give it the text that a target is written for")
    texts: dict[str, Sequence[str]] = {"prompt": options.prompt, "source": options.source}
    if options.prefix is not None and options.suffix is not None:
        texts |= {"prefix": (options.prefix,), "suffix": (options.suffix,)}
    # An argument of the command line that is not UTF-8 arrives with lone surrogates, which no tokenizer takes.
    try:
        "".join(text for group in texts.values() for text in group).encode()
    except UnicodeEncodeError:
        raise UserError("the given text is not UTF-8; write it into a file for --prompt-file") from None
    found = {}
    for name, group in texts.items():
        first = [tokenizers.end(tokenizer)] if begins and name == "prompt" else []
        if group:
            found[name] = align_right([first + tokenizers.encode(tokenizer, text) for text in group])
    return found


def align_right(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns P rows of tokens as int32 [P, W], with PADDING on the left of shorter rows. W: length of the longest."""
    width = max(map(len, rows))
    return np.array([[PADDING] * (width - len(row)) + list(row) for row in rows], np.int32).reshape(len(rows), width)


def join_texts(
    arrays: Mapping[str, np.ndarray], tokenizer: Tokenizer, options: TextOptions = TextOptions()
) -> list[str]:
    """Returns the text of each sample, after its prompt or between prefix and suffix. It ends before a stop string.

    arrays: "samples" int32 [n, T]. The first n / P of them continue the first of the P prompts, and so on.
    """
    rows = [[token for token in row if token != PADDING] for row in np.asarray(arrays["samples"]).tolist()]
    written = [cut_at_stop(tokenizers.decode(tokenizer, row), options.stop) for row in rows]
    if options.prefix is not None:
        return [f"{options.prefix}{text}{options.suffix}" for text in written]
    prompts = options.prompt or ("",)
    per_prompt = len(written) // len(prompts)
    return [prompts[i // per_prompt] + text for i, text in enumerate(written)]
