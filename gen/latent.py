"""A latent-variable model q(z | x), p(z), p(x | z) over groups of latents, as pure functions of the parameters.

Everything has the axes [K, B, ...]: K posterior samples (1 where there is one for all) of B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from gen import losses
from gen.core import Array, Feature, Key, Params
from gen.likelihoods import Likelihood, log_cell
from gen.losses import Gaussian
from gen.networks.vae import Decoder, Encoder
from gen.priors import Encode, Prior


class Terms(NamedTuple):
    """What the bounds are made of. nats."""

    log_px: Array
    """log p(x | z), [K, B]."""
    kl: list[Array]
    """KL of each group, [K or 1, B, D], or [K, B, 1] where it has no closed form by dimension."""


@dataclass(frozen=True)
class LatentModel:
    """params: {"encoder": ..., "decoder": ..., "prior": ... if it has any}."""

    encoder: Encoder
    decoder: Decoder
    prior: Prior
    likelihood: Likelihood
    image: Feature

    def encode(self, params: Params, x: Array, label: Array | None) -> Array:
        """[B, H, W, C] -> features [1, B, F]."""
        return self._encoder(params, x, label)[None]

    def infer(self, params: Params, features: Array, noise: Sequence[Array]) -> tuple[list[Array], list[Gaussian]]:
        """z ~ q(z | x), group by group, from standard normal noise [K, B, D] each; noise of 0 gives the means."""
        z: list[Array] = []
        qs: list[Gaussian] = []
        for eps in noise:
            q = self._encoder(params, features, z, method="posterior")
            z, qs = [*z, q.sample(eps)], [*qs, q]
        return z, qs

    def next_prior(self, params: Params, above: Sequence[Array]) -> Gaussian:
        """p(z_i | the groups above)."""
        return self._decoder(params, above, method="prior")

    def decode(self, params: Params, z: Sequence[Array], label: Array | None) -> Array:
        """z: [..., B, D] each -> outputs of the likelihood [..., B, H, W, outputs]."""
        return self._decoder(params, z, label)

    def sample_top(self, params: Params, key: Key, temperature: float) -> Array:
        """One z_0 ~ p, [D]."""
        return self.prior.sample(params.get("prior"), self._pseudo(params), key, self.encoder.latents[0], temperature)

    def terms(self, params: Params, x: Array, label: Array | None, z: list[Array], qs: list[Gaussian]) -> Terms:
        """log p(x | z), and KL(q || p) in closed form where there is one, else log q(z | x) - log p(z)."""
        top = self.prior.kl(params.get("prior"), qs[0])
        if top is None:
            top = (losses.gaussian_log_prob(z[0], qs[0]).sum(-1) - self._log_p_top(params, z))[..., None]
        lower = [losses.gaussian_kl(q, p) for q, p in zip(qs[1:], self._below(params, z), strict=True)]
        return Terms(self._log_px(params, x, label, z), [top, *lower])

    def log_weight(
        self, params: Params, x: Array, label: Array | None, z: Sequence[Array], qs: Sequence[Gaussian]
    ) -> Array:
        """log w = log p(x, z) - log q(z | x), [K, B]. Burda et al. 2016, equation 8."""
        log_p = self._log_px(params, x, label, z) + self._log_p_top(params, z)
        for below, p in zip(z[1:], self._below(params, z), strict=True):
            log_p += losses.gaussian_log_prob(below, p).sum(-1)
        for group, q in zip(z, qs, strict=True):
            log_p -= losses.gaussian_log_prob(group, q).sum(-1)
        return log_p

    def _log_px(self, params: Params, x: Array, label: Array | None, z: Sequence[Array]) -> Array:
        return self.likelihood.log_prob(self.decode(params, z, label), x[None]) + log_cell(self.image)

    def _log_p_top(self, params: Params, z: Sequence[Array]) -> Array:
        return self.prior.log_prob(params.get("prior"), self._pseudo(params), z[0])

    def _below(self, params: Params, z: Sequence[Array]) -> list[Gaussian]:
        return [self.next_prior(params, z[:i]) for i in range(1, len(z))]

    def _pseudo(self, params: Params) -> Encode:
        """Images -> q(z | x) of the top group, for a prior made of posteriors."""
        return lambda x: self._encoder(params, self.encode(params, x, None)[0], [], method="posterior")

    def _encoder(self, params: Params, *arguments: Any, method: str | None = None) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, *arguments, method=method)

    def _decoder(self, params: Params, *arguments: Any, method: str | None = None) -> Any:
        return self.decoder.apply({"params": params["decoder"]}, *arguments, method=method)


def kl_by_latent(q: Gaussian, kl: Array) -> Array:
    """KL of each latent, [B, D], averaged over samples; against N(0, I) where the prior has no closed form by dimension."""
    if kl.shape[-1] != q.mean.shape[-1]:
        kl = losses.gaussian_kl(q, Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.log_std)))
    return kl.mean(0)
