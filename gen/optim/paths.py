"""Paths of leaves in a tree of parameters."""

from __future__ import annotations

from typing import Any

import jax

from gen.core import Params


def map_with_path(function: Any, params: Params) -> Any:
    """Map `function(path, leaf)` over a tree; paths are joined by "/"."""
    return jax.tree_util.tree_map_with_path(lambda p, leaf: function(path_name(p), leaf), params)


def path_name(path: tuple[Any, ...]) -> str:
    """ "encoder/Dense_0/kernel" for a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
