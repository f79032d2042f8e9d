"""Captions for which samples are generated: a user's prompts, or the captions of examples."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from gen.core import Array, Feature

GIVEN = "captions_to_generate"
"""Name of the array of `given` that holds a user's prompts, int32 [P, L], in the form of the feature "caption"."""


def captions_to_generate(n: int, caption: Feature | None, given: Mapping[str, Array]) -> Array | None:
    """Returns the caption of each sample, int32 [n, L]: the prompts in turn, or the captions of examples in turn if there are none.

    caption: the feature of captions. None: the model reads no captions, and None is returned.
    given: the argument of `generate`. It may hold prompts as GIVEN, and captions of examples as "caption", int32 [P, L] each. Without
        both, all captions are empty.
    """
    if caption is None:
        return None
    empty = jnp.full((1, *caption.shape), caption.end or 0, jnp.int32)
    found = jnp.asarray(given.get(GIVEN, given.get("caption", empty)), jnp.int32)
    return found[jnp.arange(n, dtype=jnp.int32) % len(found)]
