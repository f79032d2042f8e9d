"""FLOPs and bytes of a step, read from its shapes and its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax

from gen.config import Config
from gen.core import Dataset, GenerativeModel
from gen.optim import descend
from gen.plan.inputs import shapes


def on_each(tree: Any) -> int:
    """Bytes of a tree of shapes on one device, under their shardings."""
    shape = lambda x: x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def traced(config: Config, data: Dataset, model: GenerativeModel, n: int) -> tuple[float, int]:
    """FLOPs of one device's part of a step whose batch n share, and bytes of the activations that are kept of it for the backward
    pass: of the player that keeps most. They are what `core.descend` keeps and what is larger the more examples there are; the rest are
    parameters, or made of them."""
    state = jax.eval_shape(model.init, jax.random.key(config.seed))
    examples = config.data.batch_size // n

    def trace(examples: int) -> tuple[Any, list[list[Any]]]:
        kept: list[list[Any]] = []

        def keep(backward: Any) -> None:
            tracers = {id(x): x for x in jax.tree.leaves(backward)}
            kept.append([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tracers.values()])

        token = descend.backward_hook.set(keep)
        try:
            batch = shapes(config, data, model, examples)
            return jax.make_jaxpr(model.update, axis_env=[("data", n)])(state, batch, jax.random.key(0)), kept
        finally:
            descend.backward_hook.reset(token)

    (jaxpr, kept), (_, more) = trace(examples), trace(2 * examples)
    grows = lambda now, then: sum(on_each(x) for x, y in zip(now, then, strict=True) if x.shape != y.shape)
    return flops(jaxpr), max((grows(now, then) for now, then in zip(kept, more, strict=True)), default=0)


def flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, two for a multiplication and addition. A scan's body counts
    as often as it is run, that of a loop of unknown length once; of branches the dearest, but of a platform's own form and the
    plain one the plain; of two vectors, whose product is a sum, nothing."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # of a closed one
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            out = eqn.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted) if out else 0
        elif name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
            each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]  # multiplications for one number that comes out
            spread = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * each / spread
        else:
            platforms = params.get("branches_platforms")
            given = [params["branches"][platforms.index(None)]] if platforms else params.values()
            inner = [flops(j) for value in given for j in _jaxprs(value)]
            times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> Iterator[Any]:
    for x in value if isinstance(value, tuple | list) else [value]:
        if hasattr(getattr(x, "jaxpr", x), "eqns"):
            yield x
