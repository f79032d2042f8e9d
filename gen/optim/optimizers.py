"""Optimizers as configs that build optax transformations: a schedule for every scalar, and parameter groups by path."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
import optax
import tyro

from gen.core import Array, Params
from gen.errors import UserError, check_not_negative, check_positive
from gen.optim.accumulation import accumulate
from gen.optim.descend import at_least_float32, norm
from gen.optim.historical import historical_averaging
from gen.optim.rules import SGD, Adam, At, Frozen, Muon, Rule, map_with_path
from gen.optim.schedules import Scalar, check_scalars, schedule

RuleName = Literal["adam", "muon", "sgd", "frozen"]
"""Names of rules that take their hyper-parameters from Optimizer. Any other rule is an object with its own fields."""


def _read_rule(words: list[str]) -> str:
    if words[0] not in get_args(RuleName):
        raise ValueError(
            f"{words[0]!r} is not one of {', '.join(get_args(RuleName))}; a config file may name any other rule"
        )
    return words[0]


# Makes the rule an option with a value. Otherwise tyro would make a subcommand of it, because Rule is a dataclass.
RULE_OPTION = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="{" + ",".join(get_args(RuleName)) + "}",
    instance_from_str=_read_rule,
    is_instance=lambda x: isinstance(x, str | Rule),
    str_from_instance=lambda rule: [str(rule)],
)


@dataclass(frozen=True)
class Group:
    """Settings of the parameters whose path matches a regular expression. They replace the optimizer's settings."""

    path: str
    """Regular expression, searched in paths such as "encoder/Dense_0/kernel"."""
    rule: RuleName | Rule | None = None
    """Update rule of these parameters. None: the optimizer's rule."""
    lr_factor: float = 1.0
    """Factor on the optimizer's learning rate, at least 0."""
    weight_decay: Scalar | None = None
    """Weight decay of these parameters, at least 0. None: the optimizer's weight decay."""

    def __post_init__(self):
        check_not_negative(lr_factor=self.lr_factor)
        check_scalars(check_not_negative, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer. The default is Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    rule: Annotated[RuleName | Rule, RULE_OPTION] = "adam"
    """Update rule: adam (AdamW if weight_decay is set), muon (Jordan 2024: matrices and kernels; Adam for the rest), sgd, or
    frozen. A config file may also give an object of a subclass of gen.optim.Rule, whose own fields replace b1, b2 and eps."""
    lr: Scalar = 1e-3
    """Learning rate, at least 0."""
    b1: Scalar = 0.9
    """Decay of Adam's first moment, or momentum of muon and sgd, in [0, 1)."""
    b2: Scalar = 0.999
    """Decay of Adam's second moment, in [0, 1)."""
    eps: Scalar = 1e-8
    """Adam's epsilon, at least 0."""
    weight_decay: Scalar = 0.0
    """Decoupled weight decay, at least 0: each step subtracts lr * weight_decay * the parameters. Parameters that match `undecayed`
    have none."""
    undecayed: str = r"(bias|scale|shift|embedding|pseudo_inputs|prefix)(/kernel)?$"
    """Regular expression, searched in the paths of parameters. Matching parameters have no weight decay."""
    clip: float | None = None
    """Largest norm of the gradient of all parameters together. A larger gradient is scaled down to it. None: no limit."""
    historical: float = 0.0
    """Weight of historical averaging, a penalty on the distance of the parameters from their mean over all steps (Salimans et al.
    2016, section 3.3). 0: no penalty."""
    accumulate: int = 1
    """Number of steps whose gradients are averaged into one update. Steps of a language model are weighted by their number of
    tokens that count in the loss."""
    groups: tuple[Group, ...] = ()
    """Groups of parameters with other settings. A parameter belongs to the first group that matches its path."""

    def __post_init__(self):
        if self.accumulate < 1:
            raise UserError(f"accumulate is {self.accumulate}; it counts steps, so it must be at least 1")
        if self.clip is not None:
            check_positive(clip=self.clip)
        check_scalars(check_not_negative, lr=self.lr, weight_decay=self.weight_decay)
        check_not_negative(historical=self.historical)
        # Checks b1, b2 and eps.
        Adam(self.b1, self.b2, self.eps)
        for name, path in [("undecayed", self.undecayed), *(("parameter group", group.path) for group in self.groups)]:
            try:
                re.compile(path)
            except re.error as error:
                raise UserError(f"{name} {path!r} is not a regular expression: {error}") from None

    def build(self, steps: int, weighted: bool = False) -> optax.GradientTransformation:
        """Returns the transformation for a run of `steps` steps.

        Schedules count steps and not updates, also if `accumulate` makes one update of several steps.

        weighted: whether `update` takes the keyword `weight` if `accumulate` is above 1 (see gen.optim.accumulation). Otherwise all
        accumulated gradients have the same weight.
        """
        # The last group matches every path, so each parameter belongs to a group.
        groups = (*self.groups, Group(""))

        def at(value: Scalar) -> optax.Schedule:
            by_step = schedule(value, steps)
            # optax counts updates, and an update is `accumulate` steps.
            return lambda count: by_step(count * self.accumulate)

        transforms: dict[Hashable, optax.GradientTransformation] = {
            i: self._transform(group, at) for i, group in enumerate(groups)
        }

        def label(path: str, _: Array) -> int:
            return _first_match(groups, path)

        tx = optax.partition(transforms, partial(map_with_path, label))
        if self.clip is not None:
            # Frozen parameters have gradients, but they must not count in the norm.
            def is_trained(path: str, _: Array) -> bool:
                return not isinstance(self._rule(groups[_first_match(groups, path)]), Frozen)

            clip = optax.masked(_clip(self.clip), partial(map_with_path, is_trained))
            tx = optax.chain(clip, tx)
        if self.historical:
            # Its penalty is not part of the gradient that is clipped.
            tx = optax.chain(historical_averaging(self.historical), tx)
        # Around clipping and rules, so that both see the mean gradient of all accumulated steps.
        if self.accumulate > 1 and weighted:
            tx = accumulate(tx, self.accumulate)
        elif self.accumulate > 1:
            every = optax.MultiSteps(tx, self.accumulate)
            tx = optax.GradientTransformation(every.init, every.update)  # pyright: ignore[reportArgumentType]
        return _in_float32(tx)

    def _rule(self, group: Group) -> Rule:
        """Returns the rule of a group as an object. A rule given by name, such as "adam", gets this config's fields."""
        adam = Adam(self.b1, self.b2, self.eps)
        match group.rule or self.rule:
            case "adam":
                return adam
            case "muon":
                return Muon(self.b1, adam)
            case "sgd":
                return SGD(self.b1)
            case "frozen":
                return Frozen()
            case rule:
                return rule

    def _transform(self, group: Group, at: At) -> optax.GradientTransformation:
        """Returns a group's rule, followed by weight decay and the learning rate."""
        rule = self._rule(group)
        if isinstance(rule, Frozen):
            return rule.build(at)
        decay = self.weight_decay if group.weight_decay is None else group.weight_decay
        lr = at(self.lr)

        def is_decayed(path: str, _: Array) -> bool:
            return not re.search(self.undecayed, path)

        return optax.chain(
            rule.build(at),
            # After the rule, so that its moments don't see the decay (AdamW, Loshchilov and Hutter 2019).
            optax.add_decayed_weights(at(decay), mask=partial(map_with_path, is_decayed))
            if decay != 0.0
            else optax.identity(),
            optax.scale_by_learning_rate(lambda count: group.lr_factor * lr(count)),
        )


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation with its state and its computations in at least float32, for parameters of every dtype.

    Moments in bfloat16 would not move (see `at_least_float32`). The updates are at least float32 too. They are rounded only when
    they are added to the parameters.
    """

    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> optax.OptState:
        return inner.init(at_least_float32(params))

    def update(
        grads: Params, state: optax.OptState, params: Params | None = None, **extra: object
    ) -> tuple[optax.Updates, optax.OptState]:
        return inner.update(at_least_float32(grads), state, at_least_float32(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _first_match(groups: Sequence[Group], path: str) -> int:
    return next(i for i, group in enumerate(groups) if re.search(group.path, path))


def _clip(limit: float) -> optax.GradientTransformation:
    """Returns a transformation that scales the gradient down to the norm `limit` if its norm is larger.

    Pascanu et al. 2013, algorithm 1.
    """

    def clip(grads: Params, params: Params | None) -> Params:
        # The maximum makes the factor exactly 1 for smaller norms, and keeps it finite for a norm of 0.
        factor = limit / jnp.maximum(norm(grads), limit)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(clip)
