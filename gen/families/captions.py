"""Chooses the captions for which samples are generated: a user's prompts, or the captions of examples."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from gen.core import Array, Feature

GIVEN = "captions_to_generate"
"""Key of the captions to generate for, in the argument `given` of GenerativeModel.generate: int32 [P, L], the tokens of
P captions, encoded like the feature "caption" of the data. They are a user's prompts, or captions that an evaluation
chose."""


def captions_to_generate(n: int, caption: Feature | None, given: Mapping[str, Array]) -> Array | None:
    """Returns the caption from which each of n samples is generated, int32 [n, L] tokens.

    Sample i gets caption i modulo P of the array given[GIVEN], int32 [P, L]. If `given` lacks this entry, the array is
    given["caption"], the captions of P examples. If it lacks both, all captions are empty: each token is the end token.

    caption: the feature "caption" of the data, which has the shape (L,). None: the model reads no captions, and the
        result is None.
    given: input arrays of GenerativeModel.generate.
    """
    if caption is None:
        return None
    empty = jnp.full((1, *caption.shape), caption.end or 0, jnp.int32)
    found = jnp.asarray(given.get(GIVEN, given.get("caption", empty)), jnp.int32)
    return found[jnp.arange(n, dtype=jnp.int32) % len(found)]
