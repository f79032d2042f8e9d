"""Texts that people read: prompts in, samples out."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from gen.core import LAUNCH
from gen.data.text import tokenizers
from gen.data.text.tokenizers import Tokenizer
from gen.errors import UserError, printable
from gen.networks.positions import PADDING

RULE = "\n" + 60 * "-" + "\n"
TAIL = 64  # tokens at least in which a stop string is looked for


@dataclass(frozen=True)
class TextOptions:
    """What a text goes on from, and where it stops."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to go on from; again for another."""
    prompt_file: Path | None = None
    """A file whose text is a prompt; - is the standard input, without the newline at its end."""
    prefix: str | None = None
    """Text before what is to be filled in."""
    suffix: str | None = None
    """Text after it."""
    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to write a target for, of a model of pairs; again for another."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text that ends a sample; it is not shown."""
    stream: bool = field(default=False, metadata=LAUNCH)
    """Show the first sample as it comes, instead of all at the end."""

    def __post_init__(self):
        if (self.prefix is None) != (self.suffix is None):
            raise UserError("what is filled in stands between two texts: give both --prefix and --suffix")
        if self.prefix is not None and (self.prompt or self.prompt_file):
            raise UserError("a sample goes on from a prompt or fills in between --prefix and --suffix, not both")
        if self.source and (self.prompt or self.prompt_file or self.prefix is not None):
            raise UserError("a target is written for a --source alone: leave --prompt, --prefix and --suffix out")
        if "" in self.stop:
            raise UserError("--stop is empty; it is the text that ends a sample")


def resolved(options: TextOptions) -> TextOptions:
    """The options with the prompt that is in a file. Raises: UserError if there is none to be read."""
    if options.prompt_file is None:
        return options
    piped = str(options.prompt_file) == "-"
    try:
        text = (sys.stdin.buffer.read() if piped else options.prompt_file.read_bytes()).decode()
        return replace(options, prompt=(*options.prompt, text.removesuffix("\n") if piped else text), prompt_file=None)
    except OSError as error:
        raise UserError(f"--prompt-file {options.prompt_file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {options.prompt_file}: no UTF-8 at byte {error.start}") from None


def joined(options: TextOptions, template: str) -> TextOptions:
    """The options with each source as the prompt that the template makes of it. Raises: UserError if it takes more than a source."""
    if set(re.findall(r"\{(\w+)\}", template)) - {"source", "text"}:
        raise UserError(f"the run's prompts are {template!r}; fill that in, and give it as a --prompt")
    fill = lambda source: re.sub(r"\{\w+\}", lambda _: source, template)
    return replace(options, prompt=tuple(map(fill, options.source)), source=())


def given(options: TextOptions, tokenizer: Tokenizer, begins: bool = False) -> dict[str, np.ndarray]:
    """What a language model goes on from: int32 [P, W], PADDING on the left of the shorter ones. begins: whether prompts begin
    a document, so with the token between documents.

    Raises: UserError for a text that the tokenizer has no tokens for.
    """
    if "" in options.prompt:
        raise UserError("a prompt is empty; leave it out for samples that begin as documents do")
    if "" in options.source:
        raise UserError("a source is empty; a target is written for a text")
    asked: dict[str, Sequence[str]] = {"prompt": options.prompt, "source": options.source}
    if options.prefix is not None and options.suffix is not None:
        asked |= {"prefix": (options.prefix,), "suffix": (options.suffix,)}
    try:
        "".join(text for several in asked.values() for text in several).encode()
    except UnicodeEncodeError:
        raise UserError("what is given is no UTF-8; write it into a file for --prompt-file") from None
    first = lambda name: [tokenizers.end(tokenizer)] if begins and name == "prompt" else []
    encoded = lambda name: [first(name) + tokenizers.encode(tokenizer, text) for text in asked[name]]
    return {name: aligned(encoded(name)) for name, several in asked.items() if several}


def aligned(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of tokens with their ends below each other: int32 [P, W]."""
    width = max(map(len, rows))
    return np.array([[PADDING] * (width - len(row)) + list(row) for row in rows], np.int32).reshape(len(rows), width)


def listener(options: TextOptions, tokenizer: Tokenizer) -> Callable[[np.ndarray], np.ndarray] | None:
    """What hears the tokens [B] as they come, PADDING after the end of a sample, shows the first sample's, and says which
    samples have met a stop string; None if nobody has to listen."""
    if not (options.stop or options.stream):
        return None
    heard: list[list[int]] = []
    shown = 0
    tail = max([TAIL, *(len(stop.encode()) for stop in options.stop)])

    def listen(tokens: np.ndarray) -> np.ndarray:
        nonlocal shown
        heard.extend([] for _ in range(len(tokens) - len(heard)))
        for row, token in zip(heard, np.asarray(tokens).tolist(), strict=True):
            if token != PADDING:
                row.append(token)
        if options.stream:
            whole = tokenizers.decode(tokenizer, heard[0])
            text = cut(whole, options.stop)
            if text == whole and tokens[0] != PADDING:
                text = settled(text, options.stop)
            print(printable(text[shown:]), end="", flush=True)
            shown = max(shown, len(text))
        tails = [tokenizers.decode(tokenizer, row[-tail:]) for row in heard] if options.stop else [""] * len(heard)
        return np.array([any(stop in tail for stop in options.stop) for tail in tails])

    return listen


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def settled(text: str, stops: Sequence[str]) -> str:
    """The text but for what may not stay at its end: half of a character, and what may become a stop string."""
    text = text.rstrip("\ufffd")
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]


def samples(arrays: Mapping[str, Any], tokenizer: Tokenizer, options: TextOptions = TextOptions()) -> list[str]:
    """Each sample after its prompt, or between prefix and suffix."""
    read = lambda tokens: tokenizers.decode(tokenizer, [t for t in tokens if t != PADDING])
    made = [cut(read(row), options.stop) for row in np.asarray(arrays["samples"]).tolist()]
    if options.prefix is not None:
        return [f"{options.prefix}{text}{options.suffix}" for text in made]
    prompts = options.prompt or ("",)
    each = len(made) // len(prompts)
    return [prompts[i // each] + text for i, text in enumerate(made)]


def files(arrays: Mapping[str, Any], tokenizer: Tokenizer, options: TextOptions = TextOptions()) -> dict[str, bytes]:
    """{file name: content} of what a model wrote: the texts, and all arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return {
        "samples.txt": (RULE.join(samples(arrays, tokenizer, options)) + "\n").encode(),
        "samples.npz": content.getvalue(),
    }
