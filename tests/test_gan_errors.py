"""The settings and requests that a GAN refuses, and its error messages."""

from dataclasses import replace

import pytest
from tiny_gan import SPEC, TINY, conditional, generate, sampler

from gen.core import Feature
from gen.errors import UserError
from gen.families.gan import ADA, Relativistic, RelativisticAverage, Request, Wasserstein
from gen.networks import discriminator, generator
from gen.optim import Warmup

BATCH_NORM = discriminator.DCGAN(norm="batch")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent": 0}, "latent is 0"),
        ({"pack": 0}, "pack is 0"),
        ({"critic_steps": 0}, "critic_steps is 0"),
        ({"r1": -1.0}, "r1 is -1.0; it must be at least 0"),
        ({"feature_matching": float("nan")}, "feature_matching is nan"),
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and below 1"),
        (
            {"r1": 1.0, "discriminator": BATCH_NORM},
            "r1 .* batch normalization .* fix: --model.discriminator.norm layer$",
        ),
        (
            {"r1": 1.0, "discriminator": replace(BATCH_NORM, minibatch=1)},
            "minibatch discrimination and batch normalization .* fix: --model.discriminator.minibatch 0 --model.discriminator.norm",
        ),
        ({"r2": Warmup(1.0, 9), "discriminator": BATCH_NORM}, "r2 .* --model.discriminator.norm"),
        (
            {"gradient_penalty": 1.0, "discriminator": discriminator.Perceptron(minibatch=1)},
            "fix: --model.discriminator.minibatch 0$",
        ),
        ({"microbatches": 2, "objective": RelativisticAverage()}, "objective RelativisticAverage .*--model.microb"),
        ({"augment": ADA(), "objective": Relativistic()}, "mean nothing with the objective Relativistic; use Diff"),
        ({"augment": ADA(), "objective": Wasserstein()}, "mean nothing with the objective Wasserstein; use Diff"),
        ({"conditioning": "projection"}, "G has none; the fix: --model.generator.norm batch"),
        ({"conditioning": "concatenation", "pack": 2}, "pack 1, or no conditioning"),
        ({"one_sided": True}, "gradient_penalty, which is 0"),
    ],
)
def test_an_impossible_config_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **fields)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (generator.Perceptron, {"widths": (4, 0)}, "width is 0"),
        (generator.DCGAN, {"widths": (4,), "strides": (2, 2)}, "1 widths and 2 strides"),
        (generator.DCGAN, {"widths": (), "strides": ()}, "width is 0"),
        (generator.Residual, {"widths": ()}, "width is 0"),
        (generator.Residual, {"widths": (4, 4, 4), "attention": (3,)}, "block 3, .* blocks 1 to 2"),
        (discriminator.DCGAN, {"widths": (4, -1)}, "width is -1"),
        (discriminator.DCGAN, {"kernel": 0}, "kernel is 0"),
        (discriminator.Perceptron, {"dropout": 1.0}, "dropout is 1.0"),
        (discriminator.Residual, {"minibatch": -1}, "minibatch is -1"),
        (discriminator.Residual, {"widths": (4, 4), "attention": (3,)}, "block 3, .* blocks 1 to 2"),
        (Request, {"n": 0}, "n is 0"),
        (Request, {"n": 100_001}, "use other seeds for more"),
        (Request, {"truncation": 0.0}, "truncation is 0.0"),
    ],
)
def test_impossible_sizes_are_refused(make, fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({}, {"tokens": Feature((8,), "int32", vocab=9)}, "images, and the data have tokens"),
        ({"conditioning": "concatenation"}, {"image": Feature((2, 2, 1))}, "needs labels"),
        ({"generator": generator.DCGAN((4, 4, 4))}, SPEC, "cannot make 2x2 images"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(fields, spec, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **fields).build(spec, 1)


def test_labels_that_the_model_does_not_have_are_refused():
    with pytest.raises(UserError, match="the model is not conditional"):
        generate(sampler(TINY), n=1, label=0)
    for label in (-1, 3):
        with pytest.raises(UserError, match="has labels 0 to 2"):
            generate(conditional(), n=1, label=label)
