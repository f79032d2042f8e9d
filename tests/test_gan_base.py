"""A GAN, or a tokenizer with a discriminator, that starts from the weights of a trained run."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from contract import build
from untrained import make_run

import gen
from gen.config import Config, Parallel
from gen.data.images import Images
from gen.families.gan import ADA, GAN
from gen.families.tokenizer import FSQ, VQ, Adversary, Tokenizer
from gen.networks import discriminator, generator, tokenizer
from gen.runs import base
from gen.runs.run import Run

SPECTRAL = discriminator.Perceptron((8,), spectral=True)
MODELS = {
    "gan": GAN(latent=3, generator=generator.Perceptron((8,), norm="batch"), discriminator=SPECTRAL),
    "tokenizer": Tokenizer(network=tokenizer.Residual((4,), (2,)), bottleneck=VQ(8, 2), adversary=Adversary(SPECTRAL)),
}
STARTS = {
    "gan": GAN(augment=ADA()),
    "tokenizer": Tokenizer(
        network=tokenizer.Residual((4,), (2,)), bottleneck=FSQ((3, 2)), adversary=Adversary(SPECTRAL)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kept"), [("gan", "generator"), ("tokenizer", "bottleneck")])
def test_the_statistics_of_both_players_are_those_of_the_base(name, kept, tmp_path):
    """The vectors of D's spectral norms, and the averages of G's batch normalization, or the codebook."""
    data = Images(name="digits", batch_size=8)
    config = Config(model=MODELS[name], data=data, steps=5, parallel=Parallel(devices=1))
    known = gen.open(make_run(tmp_path / "base", config, stats=0.5)).trained.restore(5)
    config = base.resolve_config(replace(config, model=STARTS[name], seed=1, init_from=str(tmp_path / "base")))
    state = Run(config, tmp_path / "new", *build(config)[:3], base.choose_base(config, tmp_path / "new")).state_at(0)
    expected = {part: known.stats[part] for part in ("discriminator", kept)}
    jax.tree.map(np.testing.assert_array_equal, {part: state.stats[part] for part in expected}, expected)
    assert len(jax.tree.leaves(expected)) > 2
    # The base had no augmentation, so its strength begins anew.
    assert state.stats.get("augment", 0) == 0
