"""Counts FLOPs and bytes of a training step, from its shapes and its jaxpr, without running it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax

from gen.config import Config
from gen.core import Dataset, GenerativeModel
from gen.optim import descend
from gen.plan.inputs import batch_shapes

Shapes = list[jax.ShapeDtypeStruct]
"""Shapes and dtypes of arrays."""


def bytes_per_device(tree: object) -> int:
    """Returns the bytes that one device holds of a tree of jax.ShapeDtypeStruct, given their shardings."""
    return sum(math.prod(_local_shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _local_shape(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def count_step(config: Config, data: Dataset, model: GenerativeModel, n: int) -> tuple[float, int]:
    """Returns (FLOPs of a step, bytes of its activations) for one of n equal parts of the batch.

    n: number of devices, or with tensor parallelism of groups of devices that process the same examples.
    Activations are the arrays that the forward pass keeps for the backward pass and whose shapes grow with the batch.
    If a model has several players, it takes the gradient of one player at a time. So the bytes are the maximum over the
    players.
    """
    examples = config.data.batch_size // n
    jaxpr, kept = _trace_step(config, data, model, n, examples)
    # Arrays whose shape is the same for twice the batch are not activations, but parameters or computed from them.
    _, kept_of_two = _trace_step(config, data, model, n, 2 * examples)
    activations = [
        sum(bytes_per_device(x) for x, y in zip(now, then, strict=True) if x.shape != y.shape)
        for now, then in zip(kept, kept_of_two, strict=True)
    ]
    return flops(jaxpr), max(activations, default=0)


def _trace_step(
    config: Config, data: Dataset, model: GenerativeModel, n: int, examples: int
) -> tuple[object, list[Shapes]]:
    """Returns (jaxpr of an update for one of n parts of the batch, shapes kept for the backward pass of each gradient).

    n: size of the axis "data". examples: number of examples in one part.
    """
    kept: list[Shapes] = []

    def keep(backward: object) -> None:
        # Several parts of the backward pass may hold the same array. It takes memory once.
        tracers = {id(x): x for x in jax.tree.leaves(backward)}
        kept.append([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tracers.values()])

    # The axis "data" has the size n, as in training with pmap, so the jaxpr is the step of one index of this axis.
    state = jax.eval_shape(model.init, jax.random.key(config.seed))
    batch = batch_shapes(config, data, model, examples)
    token = descend.backward_hook.set(keep)
    try:
        return jax.make_jaxpr(model.update, axis_env=[("data", n)])(state, batch, jax.random.key(0)), kept
    finally:
        descend.backward_hook.reset(token)


def flops(jaxpr: Any) -> float:
    """Returns the FLOPs of the matrix products and convolutions of a jaxpr, open or closed. A multiply-add is 2 FLOPs.

    The body of a scan counts as often as it runs. The body of a loop of unknown length counts once. Of a condition,
    only the most expensive branch counts. Products of two vectors with a scalar result, such as norms, do not count.
    """
    # A closed jaxpr holds the open one.
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation_flops(equation) for equation in jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    # For each number of the output, one multiply-add for each pair of numbers that is contracted.
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[i] for i in contracted) if out else 0
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        # Multiplications for one number of the output.
        each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        # Fewer are needed if zeros lie between the inputs (transposed convolution), or if the batch has groups.
        skipped = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * each / skipped
    inner = [flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    # A step may take any of the branches, so the plan assumes the most expensive one.
    if name == "cond":
        return max(inner, default=0)
    return _repetitions(name, params) * sum(inner)


def _repetitions(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    # The body of a shard_map is the part of one device of its mesh.
    return params["mesh"].size if name == "shard_map" else 1


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs that an equation runs.

    If the equation has a branch for each platform (jax.lax.platform_dependent), only the default branch is yielded. It
    is the plain formula, whose FLOPs papers count.
    """
    platforms = params.get("branches_platforms")
    values = [params["branches"][platforms.index(None)]] if platforms else params.values()
    for value in values:
        for x in value if isinstance(value, tuple | list) else [value]:
            if hasattr(getattr(x, "jaxpr", x), "eqns"):
                yield x
