"""Chooses the captions for which samples are generated: a user's prompts, or the captions of examples."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from gen.core import Array, Feature

GIVEN = "captions_to_generate"
"""Key of `given` for a user's prompts: int32 [P, L] tokens, encoded like the feature "caption"."""


def captions_to_generate(n: int, caption: Feature | None, given: Mapping[str, Array]) -> Array | None:
    """Returns the caption of each of n samples, int32 [n, L]. Sample i gets caption i modulo P of the first source that exists.

    The sources are: given[GIVEN], a user's prompts; given["caption"], captions of examples; otherwise empty captions. Both arrays
    are int32 [P, L].

    caption: the feature of captions. None: the model reads no captions, and None is returned.
    """
    if caption is None:
        return None
    empty = jnp.full((1, *caption.shape), caption.end or 0, jnp.int32)
    found = jnp.asarray(given.get(GIVEN, given.get("caption", empty)), jnp.int32)
    return found[jnp.arange(n, dtype=jnp.int32) % len(found)]
