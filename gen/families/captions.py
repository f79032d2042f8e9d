"""Captions that samples are generated for: the prompts of a user, or those of examples."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from gen.core import Array, Feature

GIVEN = "captions_to_generate"
"""Name of the array of `given` with prompts as captions, int32 [P, L] as the data's "caption"."""


def captions_to_generate(n: int, caption: Feature | None, given: Mapping[str, Array]) -> Array | None:
    """Returns the caption of each sample, int32 [n, L]: the prompts in turn, otherwise the captions of examples in turn.

    caption: the data's feature. None: the model reads no captions, and gets None.
    given: `given` of `generate`. It may hold prompts as GIVEN, and the captions of examples as "caption", int32 [P, L] each.
    Without both, captions are empty.
    """
    if caption is None:
        return None
    empty = jnp.full((1, *caption.shape), caption.end or 0, jnp.int32)
    found = jnp.asarray(given.get(GIVEN, given.get("caption", empty)), jnp.int32)
    return found[jnp.arange(n, dtype=jnp.int32) % len(found)]
