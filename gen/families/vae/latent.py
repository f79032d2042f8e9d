"""A latent-variable model q(z | x), p(z), p(x | z) over groups of latents, as pure functions of the parameters.

Everything has the axes [K, B, ...]: K posterior samples (1 where there is one for all) of B examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array, Feature, Key, Params
from gen.families.vae.likelihoods import Likelihood, log_cell
from gen.families.vae.priors import Encode, Prior
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian
from gen.networks.vae import Decoder, Encoder

Choose = Callable[[int, "Array | None", "Gaussian | None"], "tuple[Gaussian | None, Array]"]
"""(group, context, prior) -> (q, z)."""


class Draw(NamedTuple):
    """A sample of every group from the top down, with what it was drawn from."""

    z: list[Array]
    """[K, B, D] each."""
    q: list[Gaussian]
    """Posteriors, [K or 1, B, D] each."""
    p: list[Gaussian]
    """Priors of the groups below the top, [K, B, D] each."""
    context: Array | None
    """The decoder's features of all groups but the last, [K, B, F]."""


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

    def init(self, key: Key, label: Array | None, dtypes: dict[str, Any]) -> Params:
        """label: [1, classes] or None."""
        encoder_key, decoder_key, prior_key = jax.random.split(key, 3)
        x = jnp.zeros((1, *self.image.shape))
        z = [jnp.zeros((1, size)) for size in self.encoder.latents]

        def decode(decoder: Decoder) -> Array:
            context = None
            for i, group in enumerate(z[:-1]):
                context = decoder.context(context, group, i)
                decoder.prior(context, i + 1)
            return decoder(context, z[-1], label)

        def encode(encoder: Encoder) -> list[Gaussian]:
            features, context = encoder(x, label), jnp.zeros((1, self.encoder.hidden))
            standard = [Gaussian(group, group) for group in z]
            top = encoder.posterior(features, None, None, 0)
            return [top, *(encoder.posterior(features, context, standard[i], i) for i in range(1, len(z)))]

        params = {
            "encoder": nn.init(encode, self.encoder)(encoder_key)["params"],
            "decoder": nn.init(decode, self.decoder)(decoder_key)["params"],
        }
        prior = self.prior.init(prior_key, self.encoder.latents[0], self.image, dtypes["param_dtype"])
        return {**params, "prior": prior} if prior else params

    def encode(self, params: Params, x: Array, label: Array | None) -> Array:
        """[B, H, W, C] -> features [1, B, F]."""
        return self._encoder(params, x, label)[None]

    def infer(self, params: Params, features: Array, noise: Sequence[Array]) -> Draw:
        """z ~ q(z | x) from standard normal noise, [K, B, D] a group; noise of 0 gives the means."""

        def choose(i: int, context: Array | None, p: Gaussian | None) -> tuple[Gaussian, Array]:
            q = self._encoder(params, features, context, p, i, method="posterior")
            return q, q.sample(noise[i])

        return self._descend(params, choose)

    def ancestors(self, params: Params, top: Array, noise: Sequence[Array]) -> Draw:
        """z ~ p(z) below a top group [..., B, D], from noise of the groups below; q is left empty."""
        return self._descend(params, lambda i, _, p: (None, top if p is None else p.sample(noise[i - 1])))

    def given(self, params: Params, z: Sequence[Array], qs: Sequence[Gaussian | None]) -> Draw:
        """The draw whose z and q are known."""
        return self._descend(params, lambda i, *_: (qs[i], z[i]))

    def decode(self, params: Params, draw: Draw, label: Array | None) -> Array:
        """Outputs of the likelihood, [K, B, H, W, outputs]."""
        return self._decoder(params, draw.context, draw.z[-1], label)

    def sample_top(self, params: Params, key: Key, temperature: float) -> Array:
        """One z_0 ~ p, [D]."""
        return self.prior.sample(params.get("prior"), self._pseudo(params), key, self.encoder.latents[0], temperature)

    def terms(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Terms:
        """log p(x | z), and KL(q || p) in closed form where there is one, else log q(z | x) - log p(z)."""
        top = self.prior.kl(params.get("prior"), draw.q[0])
        if top is None:
            top = (gaussian.gaussian_log_prob(draw.z[0], draw.q[0]).sum(-1) - self._log_p_top(params, draw))[..., None]
        lower = [gaussian.gaussian_kl(q, p) for q, p in zip(draw.q[1:], draw.p, strict=True)]
        return Terms(self._log_px(params, x, label, draw), [top, *lower])

    def log_weight(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Array:
        """log w = log p(x, z) - log q(z | x), [K, B]. Burda et al. 2016, equation 8."""
        log_w = self._log_px(params, x, label, draw) + self._log_p_top(params, draw)
        for z, p in zip(draw.z[1:], draw.p, strict=True):
            log_w += gaussian.gaussian_log_prob(z, p).sum(-1)
        for z, q in zip(draw.z, draw.q, strict=True):
            log_w -= gaussian.gaussian_log_prob(z, q).sum(-1)
        return log_w

    def _descend(self, params: Params, choose: Choose) -> Draw:
        """From the top group down, each z as chosen from the context and the prior that those above give."""
        draw = Draw([], [], [], None)
        context, p = None, None
        for i in range(len(self.encoder.latents)):
            if i:
                context = self._decoder(params, context, draw.z[-1], i - 1, method="context")
                p = self._decoder(params, context, i, method="prior")
                draw.p.append(p)
            q, z = choose(i, context, p)
            draw.z.append(z)
            if q is not None:
                draw.q.append(q)
        return draw._replace(context=context)

    def _log_px(self, params: Params, x: Array, label: Array | None, draw: Draw) -> Array:
        return self.likelihood.log_prob(self.decode(params, draw, label), x[None]) + log_cell(self.image)

    def _log_p_top(self, params: Params, draw: Draw) -> Array:
        return self.prior.log_prob(params.get("prior"), self._pseudo(params), draw.z[0])

    def _pseudo(self, params: Params) -> Encode:
        """Images -> q(z | x) of the top group, for a prior made of posteriors."""
        return lambda x: self._encoder(params, self.encode(params, x, None)[0], None, None, 0, method="posterior")

    def _encoder(self, params: Params, *arguments: Any, method: str | None = None) -> Any:
        return self.encoder.apply({"params": params["encoder"]}, *arguments, method=method)

    def _decoder(self, params: Params, *arguments: Any, method: str | None = None) -> Any:
        return self.decoder.apply({"params": params["decoder"]}, *arguments, method=method)


def kl_by_latent(q: Gaussian, kl: Array) -> Array:
    """KL of each latent, [B, D], averaged over samples; against N(0, I) where the prior has no closed form by dimension."""
    if kl.shape[-1] != q.mean.shape[-1]:
        kl = gaussian.gaussian_kl(q, Gaussian(jnp.zeros_like(q.mean), jnp.zeros_like(q.log_std)))
    return kl.mean(0)
