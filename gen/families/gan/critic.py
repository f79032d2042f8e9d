"""Training of a discriminator D on real and generated images. A tokenizer uses it too, with reconstructions as generated images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen import axis
from gen.core import Array, Key, Metrics, Params, State
from gen.families.gan.losses import Objective
from gen.families.gan.penalties import Penalties
from gen.families.gan.players import DiscriminatorModel, Examples, Stats
from gen.optim import descend


class CriticBatch(NamedTuple):
    """The inputs of D's loss that have one entry per example. Microbatches divide these arrays."""

    real: Examples
    """Real images, with their labels and their positions in the global batch ("rows")."""
    fake: Array
    """Generated images [B, H, W, C], one for each real one, with the same labels and rows."""


class CriticAux(NamedTuple):
    """Results of D's loss function in addition to the loss."""

    metrics: Metrics
    """Means over the examples of this device."""
    stats: Stats
    """The statistics of the networks after this batch (see `players.Stats`)."""


@dataclass(frozen=True)
class Critic:
    """A discriminator D with its losses and its optimizer.

    In a State, `params`, `opt_state` and `stats` each have the key "discriminator": for D's parameters, its optimizer's
    state and its statistics. If images are augmented, stats["augment"] is the strength of the augmentation.
    """

    discriminator: DiscriminatorModel
    objective: Objective
    penalties: Penalties
    optimizer: optax.GradientTransformation
    microbatches: int
    """Number of parts of the batch whose gradients are computed one after the other and averaged."""

    def step(self, state: State, real: Examples, fake: Array, key: Key) -> tuple[State, Metrics]:
        """Makes one optimizer step of D, and adapts the strength of its augmentation. `state.step` does not change.

        real: real images with labels. fake: one generated image for each real image, [B, H, W, C]. key: for
        augmentation, dropout and the penalties. Returns the new state, and metrics averaged over the global batch. Must
        run under the mapped axis "data" (see gen.axis).
        """

        def loss(d: Params, batch: CriticBatch) -> tuple[Array, CriticAux]:
            return self.loss(d, state.stats, batch, key, state.step)

        d, opt_state = state.params["discriminator"], state.opt_state["discriminator"]
        d, opt_state, _, (metrics, stats), gradients = descend.descend(
            loss, d, opt_state, self.optimizer, CriticBatch(real, fake), self.microbatches
        )
        metrics = axis.mean(metrics)
        # These metrics are means over all devices, so the strength stays equal on every device.
        if self.discriminator.augment:
            examples = axis.total(real.image.shape[0])
            strength = self.discriminator.augment.adapt(stats["augment"], metrics["score/sign"], examples)
            stats, metrics = stats | {"augment": strength}, metrics | {"augment": strength}
        state = replace(
            state,
            params=state.params | {"discriminator": d},
            opt_state=state.opt_state | {"discriminator": opt_state},
            stats=stats,
        )
        return state, metrics | {"gradient/discriminator": descend.norm(gradients)}

    def loss(self, d: Params, stats: Stats, batch: CriticBatch, key: Key, step: Array) -> tuple[Array, CriticAux]:
        """Returns D's loss on real and generated images plus its gradient penalties; and its metrics and statistics.

        The loss is a scalar, a mean over the batch. d: D's parameters. stats: statistics before this batch.
        step: int32 [], number of steps of the generator done, which the schedules of R1 and R2 read.
        """
        (x, label, row), x_fake = batch
        real_key, fake_key, penalty_key = jax.random.split(key, 3)
        real = self.discriminator.score(d, stats, x, label, real_key, row)
        # The second pass continues with the statistics of the first, so that no update of them is lost.
        fake = self.discriminator.score(d, real.stats, x_fake, label, fake_key, row)
        stats = fake.stats

        # The penalties use the noise with which D scored these images, so that they belong to the same function D.
        def on_real(x: Array) -> Array:
            return self.discriminator.score(d, stats, x, label, real_key, row).scores

        def on_fake(x: Array) -> Array:
            return self.discriminator.score(d, stats, x, label, fake_key, row).scores

        penalty = self.penalties(on_real, on_fake, x, x_fake, penalty_key, row[:: self.discriminator.pack], step)
        loss = self.objective.discriminator(real.scores, fake.scores).mean()
        metrics = {
            "loss/discriminator": loss,
            "penalty": penalty,
            "score/real": real.scores.mean(),
            "score/fake": fake.scores.mean(),
            "score/sign": jnp.sign(real.scores).mean(),
        }
        return loss + penalty, CriticAux(metrics, stats)
