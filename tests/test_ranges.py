"""Every number of every config has a range, and a number outside of it is refused."""

import math
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from gen import core
from gen.config import Config, check_new_run
from gen.config.objects import choices, dataclasses_in
from gen.data.images import Images
from gen.data.music import Music
from gen.data.text import Text
from gen.derived import Encoded
from gen.errors import UserError
from gen.evaluation.score import Options
from gen.families.flow import Flow
from gen.families.gan import GAN
from gen.families.grid import GridLM, GridMLM
from gen.families.language.lm import LM
from gen.families.language.mlm import MLM
from gen.families.language.sampling import Sampling
from gen.families.language.seq2seq import Seq2Seq
from gen.families.tokenizer import Tokenizer
from gen.families.vae import VAE
from gen.optim import Group, Optimizer, Piecewise, Schedule, Warmup, WarmupCosine, WarmupLinear

FAMILIES = (GAN, VAE, LM, MLM, Seq2Seq, GridLM, GridMLM, Tokenizer, Flow)  # imported, so that `choices` finds them
REQUIRED: dict[type, dict[str, Any]] = {
    Config: {"model": VAE(), "data": Images(), "steps": 10},
    Group: {"path": "kernel"},
    WarmupCosine: {"peak": 1.0},
    WarmupLinear: {"peak": 1.0},
    Warmup: {"value": 1.0, "warmup": 5},
    Piecewise: {"boundaries": (3,), "values": (1.0, 2.0)},
    Text: {"tokenizer": "bpe"},  # otherwise its vocabulary is not read
    Encoded: {"tokenizer": "a run"},
    Options: {"runs": ()},
}
"""Arguments without which a class cannot be made, or would not read its numbers."""
UNCHECKED = {
    ("GridRequest", "label"): "compared with the model's classes when samples are drawn",
    ("LabelRequest", "label"): "compared with the model's classes when samples are drawn",
    ("OneStepRequest", "label"): "compared with the model's classes when samples are drawn",
    ("Request", "label"): "compared with the model's classes when samples are drawn",
    ("Options", "step"): "has to be the step of a checkpoint",
}


def reachable() -> Iterator[type]:
    """Yields each dataclass of gen that a config, or the request of a family, may hold."""
    left: list[type] = [Config, core.Request, Sampling, Options]
    seen: set[type] = set()
    while left:
        for cls in choices(left.pop()).values():
            # Other tests define families of their own. gen.evaluation makes alarms from limits that a config has checked.
            own = cls.__module__.startswith("gen.") and not cls.__module__.startswith("gen.evaluation.")
            if cls not in seen and (own or cls is Options):
                seen.add(cls)
                left += [member for hint in typing.get_type_hints(cls).values() for member in dataclasses_in(hint)]
                yield cls


def wrong_value(hint: object) -> object:
    """Returns a number of a field's type that no field takes. None: the field holds no number."""
    members = typing.get_args(hint)
    if hint is float or float in members or Schedule in members:
        wrong: object = math.nan
    elif hint is int or int in members:
        wrong = -7
    else:
        return None
    return wrong if typing.get_origin(hint) is not tuple else (wrong,) * max(1, len(members) - (... in members))


NUMBERS = [
    pytest.param(cls, f.name, wrong, id=f"{cls.__module__.removeprefix('gen.')}.{cls.__name__}.{f.name}")
    for cls in sorted(reachable(), key=lambda cls: (cls.__module__, cls.__name__))
    for f in fields(cls)
    if (wrong := wrong_value(typing.get_type_hints(cls)[f.name])) is not None
    and (cls.__name__, f.name) not in UNCHECKED
]


@pytest.mark.parametrize(("cls", "name", "wrong"), NUMBERS)
def test_a_number_out_of_range_is_refused(cls, name, wrong):
    def make():
        made = cls(**{**REQUIRED.get(cls, {}), name: wrong})
        # Data are checked when they are opened.
        return made.build() if isinstance(made, core.Data) else made

    with pytest.raises(UserError):
        make()


def test_the_configs_that_are_checked_include_every_kind():
    classes = {case.values[0] for case in NUMBERS}
    assert {Config, GAN, VAE, LM, MLM, Optimizer, Group, WarmupCosine, Images, Text, Music} <= classes
    assert len(NUMBERS) > 120


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (VAE(optim=Optimizer(lr=WarmupCosine(1e-3, warmup=101))), "model.optim.lr warms up for 101 steps"),
        (VAE(beta=Warmup(1.0, warmup=500)), '--model.beta "Warmup(value=1.0, warmup=10, start=0.0)"'),
        (LM(optim=Optimizer(lr=WarmupLinear(1e-3, warmup=1000))), "--steps 1000"),
        (GAN(critic_steps=5, generator_optim=Optimizer(lr=WarmupCosine(1e-3, warmup=101))), "generator_optim.lr"),
        (GAN(critic_steps=5, discriminator_optim=Optimizer(lr=WarmupCosine(1e-3, warmup=501))), "the run has 500"),
        (
            VAE(optim=Optimizer(groups=(Group("a", weight_decay=Warmup(1.0, 200)),))),
            "the fix: warmup=10 in the config, or a longer run: --steps 200",
        ),
    ],
)
def test_a_warm_up_longer_than_the_run_is_refused_with_one_that_fits(model, named):
    with pytest.raises(UserError) as error:
        check_new_run(Config(model=model, data=Images(), steps=100))
    assert named in str(error.value)


def test_a_warm_up_that_ends_in_the_run_is_taken():
    """The discriminator makes five steps in each step of the run, and its schedules count them."""
    slow = Optimizer(lr=WarmupCosine(1e-3, warmup=500))
    model = GAN(critic_steps=5, discriminator_optim=slow, generator_optim=Optimizer(lr=WarmupCosine(1e-3, warmup=100)))
    check_new_run(Config(model=model, data=Images(), steps=100))
