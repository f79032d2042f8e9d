"""Optimizer rules from outside of gen, in configs and on the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from test_optim import PARAMS, assert_close, train

from gen import config as configs
from gen.config import Config
from gen.core import Array, State
from gen.errors import UserError
from gen.optim import Group, Optimizer, Piecewise, Rule
from gen.optim.rules import SGD, Adam, At, Frozen, Muon, map_with_path, scheduled
from gen.optim.schedules import Scalar


@dataclass(frozen=True)
class Lion(Rule):
    """The optimizer of Chen et al. 2023, as a fork would add it."""

    b1: Scalar = 0.9
    b2: Scalar = 0.99

    def build(self, at: At) -> optax.GradientTransformation:
        return scheduled(optax.scale_by_lion, at, b1=self.b1, b2=self.b2)


def test_a_rule_from_outside_has_the_decay_learning_rate_and_groups_of_every_rule():
    config = Optimizer(rule=Lion(b2=0.9), lr=0.1, weight_decay=0.2, groups=(Group("encoder", rule=SGD(0.0)),))
    kernels = {part: {name: name == "kernel" for name in leaves} for part, leaves in PARAMS.items()}
    theirs = train(optax.lion(0.1, b1=0.9, b2=0.9, weight_decay=0.2, mask=kernels))[-1]
    found = train(config.build(4))[-1]
    assert_close(found["decoder"], theirs["decoder"])
    plain = optax.chain(optax.add_decayed_weights(0.2, mask=kernels), optax.sgd(0.1))
    assert_close(found["encoder"], train(plain)[-1]["encoder"])


def test_a_field_of_a_rule_may_be_a_schedule():
    lion, constant = (Optimizer(rule=Lion(b1), lr=0.1).build(4) for b1 in (Piecewise((1,), (0.9, 0.1)), 0.9))
    assert_close(train(lion)[0], train(constant)[0])
    with pytest.raises(AssertionError):
        assert_close(train(lion)[-1], train(constant)[-1])


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("adam", Adam(0.8, 0.9, 1e-3)),
        ("sgd", SGD(0.8)),
        ("muon", Muon(0.8, Adam(0.8, 0.9, 1e-3))),
        ("frozen", Frozen()),
    ],
)
def test_a_name_is_a_rule_with_the_fields_of_the_optimizer(name, rule):
    named = Optimizer(rule=name, lr=0.1, b1=0.8, b2=0.9, eps=1e-3)
    assert_close(train(named.build(2), 2)[-1], train(Optimizer(rule=rule, lr=0.1).build(2), 2)[-1], rtol=0)


def test_a_config_with_a_rule_survives_json_and_the_command_line():
    config = configs.load("vae_digits", Path(__file__).parent.parent / "configs")
    groups = (Group("bias", rule=SGD(0.5)),)
    optim = Optimizer(rule=Lion(Piecewise((2,), (0.9, 0.8))), groups=groups)
    changed = replace(config, model=replace(config.model, optim=optim))
    assert configs.decode(Config, json.loads(json.dumps(configs.encode(changed)))) == changed
    assert configs.digest(changed) != configs.digest(config)
    assert configs.override(changed, ["--model.optim.lr", "0.5"], "train.py").config.model == replace(
        changed.model, optim=replace(optim, lr=0.5)
    )
    assert configs.override(config, ["--model.optim.rule", "muon"], "train.py").config.model == replace(
        config.model,
        optim=replace(config.model.optim, rule="muon"),  # pyright: ignore[reportAttributeAccessIssue]
    )


def test_the_command_line_names_the_rules_it_knows():
    config = configs.load("vae_digits", Path(__file__).parent.parent / "configs")
    with pytest.raises(UserError, match="no class 'adamw'; did you mean Adam"):
        configs.override(config, ["--model.optim.rule", "adamw"], "train.py")


def test_paths_have_the_names_of_dict_keys_positions_and_fields():
    params = {"encoder": {"kernel": 1}, "pair": (2, [3])}
    state = State(step=jnp.zeros(()), params=params, opt_state={"vae": optax.ScaleByScheduleState(count=jnp.zeros(()))})

    def name(path: str, _: Array) -> str:
        return path

    assert jax.tree.leaves(map_with_path(name, state)) == [
        "step",
        "params/encoder/kernel",
        "params/pair/0",
        "params/pair/1/0",
        "opt_state/vae/count",
    ]
