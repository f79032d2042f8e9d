"""Optimizers as configs that build optax transformations: schedules for every scalar, parameter groups by path."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from gen.errors import UserError, check_positive
from gen.optim.descend import norm
from gen.optim.historical import historical_averaging
from gen.optim.paths import map_with_path
from gen.optim.schedules import Scalar, schedule

Rule = Literal["adam", "muon", "sgd", "frozen"]
At = Callable[[Scalar], optax.Schedule]


@dataclass(frozen=True)
class Group:
    """The parameters whose path matches, with an optimizer of their own."""

    path: str
    """Regular expression, searched in paths such as "encoder/Dense_0/kernel"."""
    rule: Rule | None = None
    """Their update rule; None: the optimizer's."""
    lr_factor: float = 1.0
    """Factor on the learning rate."""
    weight_decay: Scalar | None = None
    """Their weight decay; None: the optimizer's."""


@dataclass(frozen=True)
class Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) unless told otherwise."""

    rule: Rule = "adam"
    """adam (AdamW where weight decay is set), muon (Jordan 2024; matrices and kernels, Adam for the rest), sgd, frozen."""
    lr: Scalar = 1e-3
    """Learning rate."""
    b1: Scalar = 0.9
    """Decay of the first moment; momentum of muon and sgd."""
    b2: Scalar = 0.999
    """Decay of Adam's second moment."""
    eps: Scalar = 1e-8
    """Adam's epsilon."""
    weight_decay: Scalar = 0.0
    """Decoupled weight decay, multiplied by the learning rate; none on parameters that match `undecayed`."""
    undecayed: str = r"(bias|scale|shift|embedding|pseudo_inputs|prefix)(/kernel)?$"
    """Regular expression of the paths without weight decay."""
    clip: float | None = None
    """Clip gradients to this global norm."""
    historical: float = 0.0
    """Weight of historical averaging (Salimans et al. 2016), see gen/optim/historical.py; 0: none."""
    accumulate: int = 1
    """Average the gradients of so many steps into one update."""
    groups: tuple[Group, ...] = ()
    """Parameter groups; the first that matches a path takes it."""

    def __post_init__(self):
        if self.accumulate < 1:
            raise UserError(f"accumulate is {self.accumulate}; it counts steps, so at least 1")
        if self.clip is not None:
            check_positive(clip=self.clip)
        for name, path in [("undecayed", self.undecayed), *(("parameter group", group.path) for group in self.groups)]:
            try:
                re.compile(path)
            except re.error as error:
                raise UserError(f"{name} {path!r} is no regular expression: {error}") from None

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` calls. Schedules count calls, also where `accumulate` joins several."""
        groups = (*self.groups, Group(""))
        of = lambda path: next(i for i, group in enumerate(groups) if re.search(group.path, path))

        def at(value: Scalar) -> optax.Schedule:
            by_call = schedule(value, steps)
            return lambda count: by_call(count * self.accumulate)

        transforms: dict[Any, optax.GradientTransformation] = {
            i: _rule(self, group, at) for i, group in enumerate(groups)
        }
        tx = optax.partition(transforms, lambda params: map_with_path(lambda path, _: of(path), params))
        if self.clip is not None:
            thawed = lambda path, _: (groups[of(path)].rule or self.rule) != "frozen"
            clip = optax.masked(_clip(self.clip), lambda params: map_with_path(thawed, params))
            tx = optax.chain(clip, tx)
        if self.historical:
            tx = optax.chain(historical_averaging(self.historical), tx)
        if self.accumulate > 1:
            every = optax.MultiSteps(tx, self.accumulate)
            tx = optax.GradientTransformation(every.init, every.update)  # pyright: ignore[reportArgumentType]
        return tx


def _clip(most: float) -> optax.GradientTransformation:
    """Gradients scaled down to the norm `most`, if theirs is more (Pascanu et al. 2013, algorithm 1)."""

    def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
        factor = most / jnp.maximum(norm(grads), most)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(clip)


def _rule(config: Optimizer, group: Group, at: At) -> optax.GradientTransformation:
    rule = group.rule or config.rule
    if rule == "frozen":
        return optax.set_to_zero()
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    adam = _scheduled(optax.scale_by_adam, at, **moments)
    direction = {
        "adam": lambda: adam,
        "sgd": lambda: _scheduled(optax.trace, at, decay=config.b1),
        "muon": lambda: optax.partition(
            {"muon": _muon(config.b1, at), "adam": adam},
            lambda params: map_with_path(lambda path, p: "muon" if _matrix(path, p) else "adam", params),
        ),
    }[rule]()
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    decayed = lambda params: map_with_path(lambda path, _: not re.search(config.undecayed, path), params)
    lr = at(config.lr)
    return optax.chain(
        direction,
        optax.add_decayed_weights(at(decay), mask=decayed) if decay != 0.0 else optax.identity(),
        optax.scale_by_learning_rate(lambda count: group.lr_factor * lr(count)),
    )


def _muon(momentum: Scalar, at: At) -> optax.GradientTransformation:
    """Orthogonalized momentum, scaled to the size of Adam's updates so that one learning rate serves both
    (Liu et al. 2025, equation 4)."""

    def scale(u: jax.Array) -> jax.Array:
        fan_in = u.shape[1] if u.ndim == 3 else math.prod(u.shape[:-1])
        return 0.2 * max(fan_in, u.shape[-1]) ** 0.5 * u

    direction = lambda b1: contrib.scale_by_muon(beta=b1, weight_dimension_numbers=_matrices)
    return optax.chain(
        _scheduled(direction, at, b1=momentum), optax.stateless(lambda updates, _: jax.tree.map(scale, updates))
    )


def _scheduled(transformation: Any, at: At, **scalars: Scalar) -> optax.GradientTransformation:
    """`transformation(**scalars)`, with those that are schedules read at each step."""
    if all(isinstance(value, float | int) for value in scalars.values()):
        return transformation(**scalars)
    return optax.inject_hyperparams(transformation)(**{k: at(v) for k, v in scalars.items()})


def _matrix(path: str, p: Any) -> contrib.MuonDimensionNumbers | None:
    """Which axes of a kernel are in and out: [in, out], [h, w, in, out], or stacked over layers [L, in, out]."""
    if not path.endswith("kernel"):
        return None
    match p.ndim:
        case 2:
            return contrib.MuonDimensionNumbers(0, 1)
        case 3:
            return contrib.MuonDimensionNumbers(1, 2)
        case 4:
            return contrib.MuonDimensionNumbers((0, 1, 2), 3)
        case _:
            return None


def _matrices(params: Any) -> Any:
    # Inside the partition the other leaves are masked, so each that remains has its axes.
    return map_with_path(lambda path, p: _matrix(path, p) if hasattr(p, "ndim") else p, params)
