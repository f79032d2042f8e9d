"""Fine-tuning with adapters: a few new parameters are trained, and the weights of the base stay fixed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.core import Adapter, Array, Key, Params
from gen.errors import UserError, check_positive
from gen.optim.kernels import matrix_axes

VECTORS = ("bias", "scale")
"""Names of parameters that are vectors. Vectors that are stacked over layers have two axes, but are not matrices."""
Leaves = dict[tuple[str, ...], Array]
"""{path: array}, a tree of parameters as Flax flattens it."""


@dataclass(frozen=True)
class LoRA(Adapter):
    """Adds (alpha / rank) A B to each matrix W whose path matches, and trains A and B. Hu et al. 2022, equation 3."""

    rank: int = 8
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """Scale of the change: the product A B is multiplied by alpha / rank."""
    path: str = r"kernel$"
    """Regular expression of the matrices to change, searched in paths such as "transformer/layers/attention/query/kernel"."""

    def __post_init__(self):
        check_positive(rank=self.rank, alpha=self.alpha)
        try:
            re.compile(self.path)
        except re.error as error:
            raise UserError(f"lora.path {self.path!r} is not a regular expression: {error}") from None

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        leaves: Leaves = flatten_dict(base)  # pyright: ignore[reportAssignmentType]
        found = {p: w for p, w in leaves.items() if re.search(self.path, "/".join(p))}
        matrices = {p: w for p, w in found.items() if w.ndim > 1 and p[-1] not in VECTORS}
        if not matrices:
            raise UserError(f"lora.path {self.path!r} matches no matrix of the base")
        trained: Leaves = {}
        # Sorted, so that a matrix gets the same key in whatever order the tree lists its parameters.
        for i, (path, w) in enumerate(sorted(matrices.items())):
            axes = matrix_axes("/".join(path), w.ndim)
            layers, rows = w.shape[: len(axes.layers)], math.prod(w.shape[axis] for axis in axes.rows)
            a = jax.random.normal(jax.random.fold_in(key, i), (*layers, rows, self.rank), w.dtype)
            # With this scale, x A has about the variance of x.
            trained[(*path, "a")] = a / math.sqrt(rows)
            # B begins at 0, so that step 0 computes what the base computes.
            trained[(*path, "b")] = jnp.zeros((*layers, self.rank, w.shape[axes.columns]), w.dtype)
        return unflatten_dict(trained)

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        merged: Leaves = dict(flatten_dict(base))  # pyright: ignore[reportAssignmentType, reportArgumentType]
        low_rank: Leaves = flatten_dict(trained)  # pyright: ignore[reportAssignmentType]
        # Each matrix has two entries, "a" and "b"; the other parameters of the base are passed on.
        for *path, name in low_rank:
            if name == "a":
                w = merged[tuple(path)]
                change = low_rank[(*path, "a")] @ low_rank[(*path, "b")]
                merged[tuple(path)] = w + (self.alpha / self.rank * change).reshape(w.shape).astype(w.dtype)
        return unflatten_dict(merged)


@dataclass(frozen=True)
class Prompt(Adapter):
    """Puts trained vectors before the embedded tokens of a language model. Every token attends to them (Lester et al. 2021)."""

    length: int = 16
    """Number of vectors."""

    def __post_init__(self):
        check_positive(length=self.length)

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        if "embedding" not in base.get("transformer", {}):
            raise UserError(
                "a learned prompt precedes the tokens of a language model, and this base has no tokens; the fix: --finetune lora"
            )
        table = base["transformer"]["embedding"]["embedding"]
        # The vectors start as embeddings of random tokens: Lester et al. found them a better start than random vectors.
        rows = jax.random.choice(key, len(table), (self.length,))
        return {"prefix": table[rows]}

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        return base | {"transformer": base["transformer"] | {"prefix": trained["prefix"]}}


def split_trained(
    adapter: Adapter | None, key: Key, params: dict[str, Params]
) -> tuple[dict[str, Params], dict[str, Params]]:
    """Returns (trained parameters, frozen parameters) at step 0, {player: pytree} each.

    params: the parameters of the model. Without an adapter all of them are trained: (params, {}). With an adapter only
    its new parameters are trained: (new parameters, params).
    """
    return (params, {}) if adapter is None else (adapter.begin(key, params), params)


def merge_adapter(adapter: Adapter | None, trained: dict[str, Params], frozen: dict[str, Params]) -> dict[str, Params]:
    """Returns the parameters for the networks from the trained and the frozen ones. Gradients reach only the trained ones."""
    return trained if adapter is None else adapter.merge(trained, jax.lax.stop_gradient(frozen))
