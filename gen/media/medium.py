"""Kinds of samples: how each is shown, written, and given as input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen.config import Config
from gen.core import Spec
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.media import image
from gen.media import text as media_text
from gen.runs import directory
from gen.runs.trained import build_dataset


class Medium(NamedTuple):
    """What samples are made of, and how people see them."""

    options: type
    """Its part of the command line."""
    resolved: Callable[[Any], Any]
    """The options with the contents of files that they name."""
    given: Callable[[Path, Config, Any], tuple[dict[str, Any], dict[str, Any]]]
    """(run directory, its config, options) -> what is given to `generate`: arrays, and functions by name."""
    files: Callable[..., dict[str, bytes]]
    """(run directory, options, arrays, trust) -> {file name: content}."""


def medium_of(spec: Spec) -> Medium:
    """Texts if the model's data are tokens, else pictures."""
    return TEXTS if "tokens" in spec else PICTURES


def _pictures(workdir: Path, options: image.ImageOptions, arrays: Any, trust: Sequence[str]) -> dict[str, bytes]:
    return image.files(arrays, build_dataset(workdir, options.data_dir, trust) if options.neighbours else None)


def _given(workdir: Path, config: Config, options: media_text.TextOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    tokenizer = tokenizers.of_run(workdir)
    listen = media_text.listener(options, tokenizer)
    seen = directory.read_reference(workdir).get("tokens", np.zeros((0, 1)))[:, 0]
    begins = len(seen) > 1 and bool((seen == tokenizers.end(tokenizer)).all())  # as each pair does
    if options.source and "source" not in directory.read_spec(workdir):
        if not begins:
            raise UserError(f"{workdir} was trained on texts, not on pairs; give it a --prompt")
        options = media_text.joined(options, getattr(config.data, "template", ""))
    return media_text.given(options, tokenizer, begins), {} if listen is None else {"listen": listen}


PICTURES = Medium(
    image.ImageOptions, lambda options: options, lambda workdir, *_: (directory.read_reference(workdir), {}), _pictures
)
TEXTS = Medium(
    media_text.TextOptions,
    media_text.resolved,
    _given,
    lambda workdir, options, arrays, _: media_text.files(arrays, tokenizers.of_run(workdir), options),
)
