"""Training losses of a VAE, the evidence lower bound and the importance-weighted bound, and the update that descends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from gen import axis
from gen.core import Array, Batch, Key, Metrics, Params, State
from gen.families.learner import Learner
from gen.families.vae import losses
from gen.families.vae.latent import LatentModel


@dataclass(frozen=True)
class Objective:
    """Base class of the training losses of a latent-variable model."""

    model: LatentModel

    def loss(
        self, params: Params, x: Array, label: Array | None, noise: Sequence[Array], step: Array
    ) -> tuple[Array, Metrics]:
        """Returns the loss and the metrics, all of them means over the examples in nats.

        x: [B, H, W, C] in [-1, 1]; label: one-hot [B, classes] or None; noise: standard normal, [K, B, D] for each latent group;
        step: int32 [], the number of steps done, for schedules.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, negated: -E_q[log p(x | z)] + beta KL(q || p). Kingma and Welling 2014, equation 10."""

    beta: optax.Schedule
    """Step -> weight of the KL."""
    free_bits: float
    """Floor of the average KL of each latent dimension, in nats. 0: no floor."""

    def loss(
        self, params: Params, x: Array, label: Array | None, noise: Sequence[Array], step: Array
    ) -> tuple[Array, Metrics]:
        draw = self.model.infer(params, self.model.encode(params, x, label), noise)
        terms = self.model.terms(params, x, label, draw)
        reconstruction = -terms.log_px.mean()
        kl = jnp.asarray(sum(k.sum(-1).mean() for k in terms.kl))
        penalty = self._penalty(terms.kl) if self.free_bits else kl
        loss = reconstruction + self.beta(step) * penalty
        # "neg_elbo" has the KL itself, so it stays a bound, whatever beta and free bits do to the loss.
        return loss, {"loss": loss, "neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def _penalty(self, kls: Sequence[Array]) -> Array | int:
        """Returns the KL with free bits, summed over latent dimensions and groups, and averaged over examples.

        kls: KL of each group, as in `latent.Terms`.
        """
        # A KL without a closed form is one number for its whole group. Its floor is the sum of its dimensions' floors.
        floors = [self.free_bits * size / kl.shape[-1] for size, kl in zip(self.model.latents, kls, strict=True)]
        return sum(
            losses.free_bits(kl.mean(0), axis.mean(kl.mean((0, 1))), floor).sum(-1).mean()
            for kl, floor in zip(kls, floors, strict=True)
        )


@dataclass(frozen=True)
class IWAE(Objective):
    """The importance-weighted bound, negated: -E_q[log 1/K sum_k w_k]. Burda et al. 2016, equation 8."""

    doubly_reparameterized: bool
    """Use the encoder's gradient of Tucker et al. 2019, which has less variance."""

    def loss(
        self, params: Params, x: Array, label: Array | None, noise: Sequence[Array], step: Array
    ) -> tuple[Array, Metrics]:
        draw = self.model.infer(params, self.model.encode(params, x, label), noise)
        if not self.doubly_reparameterized:
            bound = losses.importance_weighted_bound(self.model.log_weight(params, x, label, draw))
            return -bound.mean(), {"loss": -bound.mean()}

        # The density of q is a constant, so the encoder gets its gradient through z alone. The weights v^2 in
        # `losses.doubly_reparameterized` make up for the missing part: same expectation, less variance.
        constant = jax.lax.stop_gradient(draw.q)

        def log_weight(z: Sequence[Array]) -> Array:
            return self.model.log_weight(params, x, label, self.model.with_latents(params, z, constant))

        bound, surrogate = losses.doubly_reparameterized(log_weight, draw.z)
        return -surrogate.mean(), {"loss": -bound.mean()}


@dataclass(frozen=True)
class Training:
    """Trains a latent-variable model: its `update` makes one training step."""

    objective: Objective
    learner: Learner
    samples: int
    """Number K of posterior samples of each example."""

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Returns the state after one step, and the metrics averaged over the global batch."""
        model = self.objective.model

        def loss(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            # This `batch` may be a microbatch. Noise is drawn for the row, so microbatches give the update of the whole batch.
            x, label = model.inputs(batch)
            return self.objective.loss(params, x, label, model.noise(key, batch["row"], self.samples), state.step)

        state, metrics, gradient = self.learner.step(state, loss, batch)
        return state, axis.mean(metrics) | {"gradient": gradient}
