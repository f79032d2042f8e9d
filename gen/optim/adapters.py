"""Fine-tuning as functions on parameter trees: a few parameters are trained beside a base that stays as it is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.core import Adapter, Array, Key, Params
from gen.errors import UserError, check_positive

VECTORS = ("bias", "scale")  # which have two axes where they are stacked over layers


@dataclass(frozen=True)
class LoRA(Adapter):
    """W + alpha / rank A B for the matrices whose path matches. Hu et al. 2022, equation 3."""

    rank: int = 8
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """Size of the change, in units of the rank."""
    path: str = r"kernel$"
    """Regular expression, searched in paths such as "transformer/layers/attention/query/kernel"."""

    def __post_init__(self):
        check_positive(rank=self.rank, alpha=self.alpha)
        try:
            re.compile(self.path)
        except re.error as error:
            raise UserError(f"lora.path {self.path!r} is no regular expression: {error}") from None

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        leaves: dict[Any, Any] = dict(flatten_dict(base))
        found = {p: w for p, w in leaves.items() if re.search(self.path, "/".join(p))}
        matrices = {p: w for p, w in found.items() if w.ndim > 1 and p[-1] not in VECTORS}
        if not matrices:
            raise UserError(f"lora.path {self.path!r} matches no matrix of the base")
        trained: dict[Any, Array] = {}
        for i, (path, w) in enumerate(sorted(matrices.items())):
            layers, rows, columns = sides(w.shape)
            a = jax.random.normal(jax.random.fold_in(key, i), (*layers, rows, self.rank), w.dtype)
            trained[(*path, "a")] = a / math.sqrt(rows)
            trained[(*path, "b")] = jnp.zeros((*layers, self.rank, columns), w.dtype)
        return unflatten_dict(trained)

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        merged: dict[Any, Any] = dict(flatten_dict(base))
        low_rank: dict[Any, Any] = dict(flatten_dict(trained))
        for *path, name in low_rank:
            if name == "a":
                w = merged[tuple(path)]
                change = low_rank[(*path, "a")] @ low_rank[(*path, "b")]
                merged[tuple(path)] = w + (self.alpha / self.rank * change).reshape(w.shape).astype(w.dtype)
        return unflatten_dict(merged)


@dataclass(frozen=True)
class Prompt(Adapter):
    """Vectors before the embedded tokens, which every token sees (Lester et al. 2021)."""

    length: int = 16
    """Number of vectors."""

    def __post_init__(self):
        check_positive(length=self.length)

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        if "embedding" not in base.get("transformer", {}):
            raise UserError("a learned prompt stands before the tokens of a language model; this base has none")
        table = base["transformer"]["embedding"]["embedding"]
        rows = jax.random.choice(key, len(table), (self.length,))
        return {"prefix": table[rows]}

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        return base | {"transformer": base["transformer"] | {"prefix": trained["prefix"]}}


def sides(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(axes of layers, rows, columns) of [in, out], stacked [L, in, out], and a convolution's [h, w, in, out]."""
    match shape:
        case (rows, columns):
            return (), rows, columns
        case (layers, rows, columns):
            return (layers,), rows, columns
        case _:
            return (), math.prod(shape[:-1]), shape[-1]


def split_trained(
    adapter: Adapter | None, key: Key, params: dict[str, Params]
) -> tuple[dict[str, Params], dict[str, Params]]:
    """(what is trained, what is frozen) of a model with these parameters."""
    return (params, {}) if adapter is None else (adapter.begin(key, params), params)


def merge_adapter(adapter: Adapter | None, trained: dict[str, Params], frozen: dict[str, Params]) -> dict[str, Params]:
    """The parameters that the networks take; gradients are of what is trained."""
    return trained if adapter is None else adapter.merge(trained, jax.lax.stop_gradient(frozen))
