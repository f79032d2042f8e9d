"""Prepares a transformer to decode texts token by token."""

from __future__ import annotations

from collections.abc import Callable

import jax

from gen.core import Params
from gen.networks.transformer.cache import Cache, empty_cache
from gen.networks.transformer.transformer import Transformer, unstack_layers


def begin_decoding(network: Transformer, params: Params, rows: int) -> tuple[Params, Callable[[int], Cache]]:
    """Returns (parameters for decoding, function from a number of tokens to an empty cache with room for them).

    On a CPU each layer has its own arrays in both, see `unstack_layers`; otherwise the layers are stacked. params:
    parameters of the network. rows: B, number of texts that are decoded together.
    """
    # On a CPU each layer has its own arrays: see `unstack_layers`.
    unstacked = jax.default_backend() == "cpu"
    # A trained prefix (see gen.optim.adapters) takes slots of the cache too.
    prefix = len(params.get("prefix", ()))

    def empty(tokens: int) -> Cache:
        return empty_cache(network.arch, rows, prefix + tokens, network.dtypes["dtype"], unstacked)

    return unstack_layers(params) if unstacked else params, empty
