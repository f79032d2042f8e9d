"""Update rules: the direction in which an optimizer moves the parameters, before weight decay and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import optax
from optax import contrib

from gen.core import Array, Params
from gen.errors import check_decay, check_not_negative
from gen.optim.kernels import matrix_axes
from gen.optim.schedules import Scalar, check_scalars

Value = TypeVar("Value")
At = Callable[[Scalar], optax.Schedule]
"""Turns a hyper-parameter, a number or a schedule, into a function: number of optax's update, from 0 -> value."""


@dataclass(frozen=True)
class Rule:
    """Turns gradients into directions, such as Adam's. To add an optimizer, subclass this, and put an object of the subclass into a
    config: `Optimizer(rule=Lion(), lr=1e-4)`.

    The fields are hyper-parameters. A field of type Scalar may be a schedule.
    """

    def build(self, at: At) -> optax.GradientTransformation:
        """Returns the transformation gradients -> directions, as optax's functions named scale_by_... do.

        The optimizer then adds weight decay, and multiplies by minus the learning rate.

        at: turns a field of type Scalar into a function from the number of an update to a value. Pass it on to
        `scheduled`, which reads the fields at every update.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Adam(Rule):
    """The direction of Adam (Kingma and Ba 2015, algorithm 1)."""

    b1: Scalar = 0.9
    """Decay of the first moment, in [0, 1)."""
    b2: Scalar = 0.999
    """Decay of the second moment, in [0, 1)."""
    eps: Scalar = 1e-8
    """Number added to the root of the second moment, at least 0."""

    def __post_init__(self):
        check_scalars(check_decay, b1=self.b1, b2=self.b2)
        check_scalars(check_not_negative, eps=self.eps)

    def build(self, at: At) -> optax.GradientTransformation:
        return scheduled(optax.scale_by_adam, at, b1=self.b1, b2=self.b2, eps=self.eps)


@dataclass(frozen=True)
class SGD(Rule):
    """The gradient, with momentum."""

    momentum: Scalar = 0.9
    """Decay of the sum of past gradients, in [0, 1). 0: plain stochastic gradient descent."""

    def __post_init__(self):
        check_scalars(check_decay, momentum=self.momentum)

    def build(self, at: At) -> optax.GradientTransformation:
        return scheduled(optax.trace, at, decay=self.momentum)


@dataclass(frozen=True)
class Muon(Rule):
    """Orthogonalized momentum for matrices and convolution kernels (Jordan 2024); another rule for all other parameters."""

    momentum: Scalar = 0.9
    """Decay of the momentum, in [0, 1)."""
    other: Rule = Adam()
    """Rule for biases, embeddings and other parameters that are not matrices."""

    def __post_init__(self):
        check_scalars(check_decay, momentum=self.momentum)

    def build(self, at: At) -> optax.GradientTransformation:
        def choose(path: str, p: Array) -> str:
            return "muon" if _dimension_numbers(path, p) else "adam"

        def direction(b1: Scalar) -> optax.GradientTransformation:
            return contrib.scale_by_muon(beta=b1, weight_dimension_numbers=_all_dimension_numbers)  # pyright: ignore[reportArgumentType]

        # Each of the two rules sees only its parameters, and keeps no state for the others.
        muon = optax.chain(scheduled(direction, at, b1=self.momentum), optax.stateless(_scale_like_adam))
        transforms: dict[Hashable, optax.GradientTransformation] = {"muon": muon, "adam": self.other.build(at)}
        return optax.partition(transforms, partial(map_with_path, choose))


@dataclass(frozen=True)
class Frozen(Rule):
    """No update: the parameters keep their values. Learning rate and weight decay have no effect."""

    def build(self, at: At) -> optax.GradientTransformation:
        return optax.set_to_zero()


def scheduled(
    transformation: Callable[..., optax.GradientTransformation], at: At, **scalars: Scalar
) -> optax.GradientTransformation:
    """Returns `transformation(**scalars)`. If a scalar is a schedule, each update uses its value at that time.

    transformation: function that makes a transformation, such as optax.scale_by_adam. at: turns a schedule into a
    function from the number of an update to a value.
    """
    # Without schedules the state of the transformation stays as small as optax's own.
    if all(isinstance(value, float | int) for value in scalars.values()):
        return transformation(**scalars)
    return optax.inject_hyperparams(transformation)(**{name: at(value) for name, value in scalars.items()})


def map_with_path(function: Callable[[str, Array], Value], params: Params) -> Params:
    """Returns the tree with each leaf replaced by `function(path, leaf)`. A path is a text such as "encoder/Dense_0/kernel"."""

    def call(path: tuple[object, ...], leaf: Array) -> Value:
        return function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)  # pyright: ignore[reportArgumentType]

    return jax.tree_util.tree_map_with_path(call, params)


def _scale_like_adam(updates: Params, params: Params | None) -> Params:
    """Scales orthogonal updates to the usual size of Adam's updates, so that both can have the same learning rate.

    Liu et al. 2025, equation 4.
    """

    def scale(path: str, u: Array) -> Array:
        axes = matrix_axes(path, u.ndim)
        fan_in = math.prod(u.shape[axis] for axis in axes.rows)
        return 0.2 * max(fan_in, u.shape[axes.columns]) ** 0.5 * u

    return map_with_path(scale, updates)


def _dimension_numbers(path: str, p: Array) -> contrib.MuonDimensionNumbers | None:
    """Returns the input axes and the output axis of a kernel. None: the parameter is not a matrix."""
    # An embedding has two axes too, but it is a table of vectors, and no matrix that maps inputs to outputs.
    if not path.endswith("kernel") or p.ndim < 2:
        return None
    axes = matrix_axes(path, p.ndim)
    return contrib.MuonDimensionNumbers(axes.rows, axes.columns)


def _all_dimension_numbers(params: Params) -> Params:
    def numbers_or_mask(path: str, p: Array) -> contrib.MuonDimensionNumbers | Array | None:
        # optax calls this inside of the partition, where other leaves are masked nodes without an ndim.
        return _dimension_numbers(path, p) if hasattr(p, "ndim") else p

    return map_with_path(numbers_or_mask, params)
