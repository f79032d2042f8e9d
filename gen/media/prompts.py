"""Encodes prompts as captions, for models that read captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen.core import RunView
from gen.data.captions import clean, fill_up
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.families.captions import GIVEN


def encode_prompts(prompts: Sequence[str], run: RunView) -> dict[str, np.ndarray]:
    """Returns {gen.families.captions.GIVEN: int32 [P, L]}, the tokens of P prompts. {}: there are no prompts.

    L: number of tokens of a caption of the run. Shorter prompts are padded with the end token.

    Raises: UserError if the model reads no captions, or a prompt is empty, too long, or has a character without a
    token.
    """
    if not prompts:
        return {}
    feature = run.spec.get("caption")
    if feature is None:
        raise UserError("--prompt is a caption, and the run was trained without captions; leave it out")
    tokenizer, (length,) = tokenizers.load(run.read_file(tokenizers.FILE)), feature.shape
    # Prompts are cleaned like the training captions, which are in lower case: a capital letter may have no token.
    texts = [clean(prompt) for prompt in prompts]
    if "" in texts:
        raise UserError("a prompt is empty; give it a text")
    rows = tokenizers.encode_all(tokenizer, texts)
    for text, row in zip(texts, rows, strict=True):
        if len(row) > length:
            raise UserError(f"the prompt {text[:40]!r} has {len(row)} tokens, and the model reads {length}; shorten it")
    return {GIVEN: fill_up(rows, length, tokenizers.end(tokenizer))}
