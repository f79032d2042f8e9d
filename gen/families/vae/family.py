"""Variational autoencoders (Kingma and Welling 2014; Rezende et al. 2014), with one latent group or a hierarchy of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen import axis, core
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import labels as families_labels
from gen.families import learner
from gen.families.learner import LearnedFamily
from gen.families.vae import losses
from gen.families.vae.latent import LatentModel, kl_by_latent
from gen.families.vae.likelihoods import Bernoulli, Likelihood, checked
from gen.families.vae.priors import Prior, StandardNormal, VampPrior
from gen.networks.vae import Architecture, Perceptron
from gen.optim import Scalar, schedule

COLUMNS = 8  # of an interpolation or a traversal
MAX_IMAGES = 100_000  # images of one request


@dataclass(frozen=True)
class VAE(LearnedFamily):
    """A variational autoencoder."""

    latents: tuple[int, ...] = (20,)
    """Dimensions of each latent group, top group first; one number is the plain VAE."""
    network: Architecture = Perceptron()
    """What encoder and decoder are made of."""
    likelihood: Likelihood = Bernoulli()
    """p(x | z)."""
    prior: Prior = StandardNormal()
    """p(z) of the top group."""
    conditional: bool = False
    """Condition encoder and decoder on the label."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """The evidence lower bound, or the importance-weighted one (Burda et al. 2016)."""
    samples: int = 1
    """Posterior samples of an example in training (K of the importance-weighted bound)."""
    dreg: bool = False
    """Doubly reparameterized gradients of the importance-weighted bound (Tucker et al. 2019)."""
    beta: Scalar = 1.0
    """Weight of the KL in the evidence lower bound (Higgins et al. 2017); a Warmup for KL warm-up."""
    free_bits: float = 0.0
    """Nats below which the batch's mean KL of a latent is not penalty (Kingma et al. 2016)."""
    validation_samples: int = 16
    """K of `nll_bound` during training."""
    test_samples: int = 1000
    """K of `nll_bound` in the final test."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"the number of latents": min(self.latents, default=0), "samples": self.samples})
        check_positive(validation_samples=self.validation_samples, test_samples=self.test_samples)
        for name in ("beta", "free_bits"):
            if isinstance(value := getattr(self, name), float | int) and not value >= 0:
                raise UserError(f"{name} is {value}; it must be at least 0")
        if self.objective == "iwae" and (self.beta != 1.0 or self.free_bits):
            raise UserError(
                "beta and free_bits change the KL, which the importance-weighted bound has not; use objective elbo"
            )
        if self.free_bits != 0.0 and self.microbatches > 1:
            raise UserError(
                "free bits are of the whole batch's mean KL, and microbatches divide it; leave one of them out"
            )
        if self.dreg and self.objective != "iwae":
            raise UserError("dreg is a gradient of the importance-weighted bound; the fix: --model.objective iwae")
        if self.dreg and len(self.latents) > 1:
            raise UserError("dreg is derived for one latent group (in a hierarchy its estimate is biased)")
        if self.conditional and isinstance(self.prior, VampPrior):
            raise UserError("the pseudo-inputs of a VampPrior have no label; a conditional VAE has another prior")

    def tiny(self) -> VAE:
        return replace(
            self,
            latents=(3,) * len(self.latents),
            network=self.network.tiny(),
            prior=self.prior.tiny(),
            samples=min(2, self.samples),
            validation_samples=2,
            test_samples=4,
        )

    def inherit(self, base: core.Family, spec: Spec) -> VAE:
        super().inherit(base, spec)
        assert isinstance(base, VAE)
        shaped = ("latents", "network", "likelihood", "prior", "conditional")
        return replace(self, **{name: getattr(base, name) for name in shaped})

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


@dataclass(frozen=True)
class Request:
    """What to generate."""

    n: int = 64
    """Number of images (interpolate, traverse: in rows of 8)."""
    mode: Literal["generate", "reconstruct", "interpolate", "traverse"] = "generate"
    """Samples of the model; held-out images beside what is decoded of them; between two of them; along each latent, ordered
    by KL."""
    label: int | None = None
    """Class to generate, of a conditional model; None: all in turn."""
    temperature: float = 1.0
    """Factor on the standard deviation of the prior."""
    pixels: Literal["mean", "sample"] = "mean"
    """Show the mean of p(x | z), or draw from it."""

    def __post_init__(self):
        check_positive(n=self.n, temperature=self.temperature)
        if self.n > MAX_IMAGES:
            raise UserError(f"n is {self.n}; at most {MAX_IMAGES} at once, with other seeds for more")
        if self.label is not None and self.mode != "generate":
            raise UserError(
                f"mode {self.mode} keeps the labels of its held-out examples; --label goes with mode generate"
            )


def build(config: VAE, spec: Spec, steps: int) -> GenerativeModel:
    if "image" not in spec:
        raise UserError(f"a VAE models images, and the data have {', '.join(spec)}")
    image = spec["image"]
    classes = families_labels.num_classes(spec) if config.conditional else None
    likelihood = checked(config.likelihood, image)
    flaw = likelihood.flaw(image)
    real = jnp.promote_types(config.dtype, jnp.float32)  # of latents, log-probabilities and sums
    dtypes = config.dtypes()
    encoder = config.network.encoder(config.latents, dtypes)
    decoder = config.network.decoder(config.latents, (*image.shape[:2], likelihood.outputs(image.shape[2])), dtypes)
    model = LatentModel(encoder, decoder, config.prior, likelihood, image)
    beta = schedule(config.beta, steps)

    def begin(key: Key) -> dict[str, Params]:
        return model.init(key, None if classes is None else jnp.zeros((1, classes), real), dtypes)

    learned = learner.make_learner(config, steps, "vae", begin)

    def inputs(batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
        label = None if classes is None else jax.nn.one_hot(batch["label"], classes, dtype=real)
        return batch["image"].astype(real), label

    def noise(key: Key, row: Array, k: int) -> list[Array]:
        """Standard normal noise of each group, [k, B, D]."""
        draw = lambda key: jax.random.normal(key, (k, sum(config.latents)), real)
        eps = jnp.moveaxis(axis.per_example(draw, key, row), 0, 1)
        return jnp.split(eps, np.cumsum(config.latents)[:-1], axis=-1)

    # --- training ---

    def elbo(params: Params, x: Array, label: Array | None, eps: Sequence[Array], step: Array) -> tuple[Array, Metrics]:
        """-E_q[log p(x | z)] + beta KL(q || p), averaged over examples. Kingma and Welling 2014, equation 10."""
        t = model.terms(params, x, label, model.infer(params, model.encode(params, x, label), eps))
        reconstruction = -t.log_px.mean()
        kl = jnp.asarray(sum(k.sum(-1).mean() for k in t.kl))
        penalty = kl
        if config.free_bits:
            floors = [config.free_bits * size / k.shape[-1] for size, k in zip(config.latents, t.kl, strict=True)]
            penalty = sum(
                losses.free_bits(k.mean(0), axis.mean(k.mean((0, 1))), floor).sum(-1).mean()
                for k, floor in zip(t.kl, floors, strict=True)
            )
        loss = reconstruction + beta(step) * penalty
        return loss, {"loss": loss, "neg_elbo": reconstruction + kl, "reconstruction": reconstruction, "kl": kl}

    def iwae(params: Params, x: Array, label: Array | None, eps: Sequence[Array], step: Array) -> tuple[Array, Metrics]:
        draw = model.infer(params, model.encode(params, x, label), eps)
        if config.dreg:
            constant = jax.lax.stop_gradient(draw.q)
            log_w = lambda z: model.log_weight(params, x, label, model.given(params, z, constant))
            bound, surrogate = losses.doubly_reparameterized(log_w, draw.z)
            return -surrogate.mean(), {"loss": -bound.mean()}
        bound = losses.importance_weighted_bound(model.log_weight(params, x, label, draw))
        return -bound.mean(), {"loss": -bound.mean()}

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        objective = {"elbo": elbo, "iwae": iwae}[config.objective]

        def loss(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            return objective(params, *inputs(batch), noise(key, batch["row"], config.samples), state.step)

        state, metrics, gradient = learned.step(state, loss, batch)
        return state, axis.mean(metrics) | {"gradient": gradient}

    # --- evaluation ---

    def estimate(k: int) -> Any:
        """Sums of a batch's terms and of its bound with k samples, in chunks that fit memory: of the largest divisor of k
        up to 25, so a round k is faster than a prime one."""
        chunk = max(c for c in range(1, min(k, 25) + 1) if k % c == 0)

        def evaluate(state: State, batch: Batch, key: Key) -> Sums:
            params = learned.weights(state)
            x, label = inputs(batch)
            features = model.encode(params, x, label)

            def step(carry: Any, i: Array) -> tuple[Any, None]:
                log_w, moments = carry
                draw = model.infer(params, features, noise(jax.random.fold_in(key, i), batch["row"], chunk))
                t = model.terms(params, x, label, draw)
                # Where the KL is closed, the bound still weighs the drawn z.
                log_w = jnp.logaddexp(log_w, jax.nn.logsumexp(model.log_weight(params, x, label, draw), axis=0))
                now = {
                    "reconstruction": -t.log_px.mean(0),
                    "kl": sum(kl.sum(-1).mean(0) for kl in t.kl),
                    "kl_per_latent": jnp.concatenate(
                        [kl_by_latent(q, kl) for q, kl in zip(draw.q, t.kl, strict=True)], axis=-1
                    ),
                    "mean": jnp.concatenate([q.mean.mean(0) for q in draw.q], axis=-1),
                }
                return (log_w, jax.tree.map(lambda a, b: a + b * (chunk / k), moments, now)), None

            b, d = x.shape[0], sum(config.latents)
            zero = lambda *shape: jnp.zeros(shape, x.dtype)
            start = {"reconstruction": zero(b), "kl": zero(b), "kl_per_latent": zero(b, d), "mean": zero(b, d)}
            (log_w, values), _ = jax.lax.scan(step, (jnp.full(b, -jnp.inf, x.dtype), start), jnp.arange(k // chunk))
            values["neg_elbo"] = values["reconstruction"] + values["kl"]
            values["nll_bound"] = math.log(k) - log_w
            values["mean_squared"] = jnp.square(values["mean"])
            weight = batch["weight"].astype(x.dtype)
            count = weight.sum()
            return axis.total({name: (jnp.tensordot(weight, v, axes=1), count) for name, v in values.items()})

        return evaluate

    def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        value = {name: np.asarray(total, np.float64) / np.asarray(count) for name, (total, count) in sums.items()}
        variance = value["mean_squared"] - value["mean"] ** 2
        metrics = {
            **{name: float(value[name]) for name in ("neg_elbo", "reconstruction", "kl")},
            "active_units": float((variance > 0.01).sum()),
            "kl_per_latent": value["kl_per_latent"],
        }
        if flaw is None:
            metrics["nll_bound"] = float(value["nll_bound"])
            if image.levels is not None:
                metrics["bits_per_dim"] = metrics["nll_bound"] / (math.prod(image.shape) * math.log(2))
        return metrics

    # --- sampling ---

    def ancestors(params: Params, key: Key, index: Array, temperature: float) -> list[Array]:
        """z ~ p(z), groups of [N, D]; each sample's noise is its own."""
        top_key, *keys = jax.random.split(key, len(config.latents))
        top = axis.per_example(lambda k: model.sample_top(params, k, temperature), top_key, index).astype(real)
        normal = lambda size: lambda k: temperature * jax.random.normal(k, (size,), real)
        below = zip(config.latents[1:], keys, strict=True)
        return model.ancestors(params, top, [axis.per_example(normal(size), k, index) for size, k in below]).z

    def generate(state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        params = learned.weights(state)
        z_key, x_key = jax.random.split(key)

        def show(z: Sequence[Array], label: Array | None) -> Array:
            """z: groups of [N, D] -> images [N, H, W, C]."""
            outputs = model.decode(params, model.given(params, z, [None] * len(z)), label)
            if request.pixels == "mean":
                x = likelihood.mean(outputs)
            else:
                keys = jax.vmap(lambda i: jax.random.fold_in(x_key, i))(jnp.arange(outputs.shape[0]))
                x = jax.vmap(likelihood.sample)(outputs, keys)
            return x.astype(jnp.float32)

        labels = families_labels.labels_to_generate(request.n, request.label, classes)
        if request.mode == "generate":
            z = ancestors(params, z_key, jnp.arange(request.n), request.temperature)
            label = None if labels is None or classes is None else jax.nn.one_hot(labels, classes)
            samples = {"samples": show(z, label), "latents": jnp.concatenate(z, axis=-1)}
            return samples if labels is None else samples | {"labels": labels}

        rows = max(1, request.n // COLUMNS)
        n = {"reconstruct": request.n, "interpolate": rows + 1, "traverse": 1}[request.mode]
        needed = ("image",) if classes is None else ("image", "label")
        there = min((len(given[name]) if name in given else 0) for name in needed)
        if n > there:
            raise UserError(
                f"mode {request.mode} with n {request.n} takes {n} held-out examples; reference.npz has {there}"
            )
        x, label = inputs({name: given[name][:n] for name in needed})
        zeros = [jnp.zeros((1, 1, size), x.dtype) for size in config.latents]
        means = [z[0] for z in model.infer(params, model.encode(params, x, label), zeros).z]
        if request.mode == "reconstruct":
            pairs = jnp.stack([x.astype(jnp.float32), show(means, label)], axis=1)
            if len(x) % (COLUMNS // 2) == 0:
                pairs = pairs.reshape(-1, COLUMNS, *image.shape)
            return {"samples": pairs, "latents": jnp.concatenate(means, axis=-1)}
        if request.mode == "interpolate":
            t = jnp.linspace(0, 1, COLUMNS)[None, :, None]
            path = lambda m: (m[:-1, None] * (1 - t) + m[1:, None] * t).reshape(-1, m.shape[-1])
            z, between = [path(m) for m in means], None if label is None else path(label)
        else:
            if "kl_per_latent" not in given:
                raise UserError("mode traverse orders the latents by their KL, and the run was not evaluated yet")
            order = jnp.argsort(-given["kl_per_latent"])[:rows]
            base = jnp.concatenate(means, axis=-1)[0]
            values = jnp.linspace(-3, 3, COLUMNS)
            moved = jax.vmap(lambda i: jax.vmap(lambda v: base.at[i].set(v))(values))(order)
            z = jnp.split(moved.reshape(-1, base.shape[0]), np.cumsum(config.latents)[:-1], axis=-1)
            between = None if label is None else jnp.repeat(label, z[0].shape[0], axis=0)
        grid = show(z, between)
        return {"samples": grid.reshape(-1, COLUMNS, *grid.shape[1:]), "latents": jnp.concatenate(z, axis=-1)}

    bound = {"refused": flaw} if flaw else {"samples": config.test_samples, "source": "Burda et al. 2016, equation 8"}
    return GenerativeModel(
        init=learned.init,
        update=update,
        evaluate=estimate(config.validation_samples),
        test=estimate(config.test_samples),
        summarize=summarize,
        generate=generate,
        request=Request,
        together=config.microbatches,
        protocol={
            "neg_elbo": {"samples": config.test_samples, "unit": "nats"},
            "nll_bound": {**bound, "unit": "nats"},
            "bits_per_dim": {**bound, "of": "nll_bound"},
            "active_units": {"threshold": 0.01, "source": "Burda et al. 2016, section 5"},
        },
    )
