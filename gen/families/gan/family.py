"""Generative adversarial networks (Goodfellow et al. 2014): a generator G(z) and a discriminator D(x), descending in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen import axis, core
from gen.core import LAUNCH, Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import labels as families_labels
from gen.families.gan import losses
from gen.families.gan.augment import ADA, Augmentation
from gen.families.gan.players import Players
from gen.networks import discriminator, generator
from gen.networks import dtypes as networks_dtypes
from gen.networks.discriminator import Discriminator
from gen.networks.generator import Conditioning
from gen.optim import Optimizer, Scalar, descend, schedule

COLUMNS = 8  # of an interpolation
GENERATE_CHUNK = 1024  # images generated at a time
MAX_IMAGES = 100_000  # images of one request


@dataclass(frozen=True)
class GAN(core.Family):
    """A generative adversarial network."""

    latent: int = 100
    """Dimensions of z, standard normal."""
    generator: generator.Architecture = generator.DCGAN()
    """What G is made of."""
    discriminator: discriminator.Architecture = discriminator.DCGAN()
    """What D is made of."""
    conditioning: Conditioning | None = None
    """How G and D see the label: joined to their inputs, or conditional normalization and projection; None: not at all."""
    objective: Literal[
        "minimax", "non_saturating", "least_squares", "wasserstein", "hinge", "relativistic", "relativistic_average"
    ] = "non_saturating"
    """What the players descend, see gen/families/gan/losses.py."""
    smoothing: float = 0.0
    """How far D's target for real images is below 1 (one-sided label smoothing)."""
    feature_matching: float = 0.0
    """Weight of feature matching in G's loss."""
    gradient_penalty: float = 0.0
    """Weight of (|grad D| - 1)^2 between real and generated images (10 in WGAN-GP)."""
    one_sided: bool = False
    """Penalize gradients above 1 only."""
    r1: Scalar = 0.0
    """Gamma of R1: gamma / 2 |grad D|^2 at real images."""
    r2: Scalar = 0.0
    """Gamma of R2: the same at generated images."""
    pack: int = 1
    """Images that D sees at once, as channels of one (PacGAN, Lin et al. 2018)."""
    augment: Augmentation | None = None
    """Differentiable augmentation of all that D sees, with a fixed or an adaptive strength."""
    microbatches: int = field(default=1, metadata=LAUNCH)
    """Parts of a device's batch whose gradients are taken one after the other and averaged: the same update in less memory."""
    critic_steps: int = 1
    """Steps of D, each on a batch of its own, for one of G."""
    generator_optim: Optimizer = Optimizer(lr=2e-4, b1=0.5)
    """G's optimizer."""
    discriminator_optim: Optimizer = Optimizer(lr=2e-4, b1=0.5)
    """D's optimizer."""
    ema: float = 0.999
    """Decay of the running average of G's parameters, which is sampled from; 0: none. It warms up from 1/10."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters."""

    def __post_init__(self):
        check_positive(
            latent=self.latent, pack=self.pack, critic_steps=self.critic_steps, microbatches=self.microbatches
        )
        for name in ("feature_matching", "gradient_penalty", "r1", "r2"):
            if isinstance(value := getattr(self, name), float | int) and not value >= 0:
                raise UserError(f"{name} is {value}; it must be at least 0")
        for name in ("ema", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is in [0, 1)")
        if self.smoothing and not losses.ADVERSARIAL[self.objective].smooth:
            raise UserError(f"smoothing moves D's target for real images, and the objective {self.objective} has none")
        penalized = [name for name in ("gradient_penalty", "r1", "r2") if getattr(self, name) != 0.0]
        if penalized and (cause := self.discriminator.couples()):
            raise UserError(
                f"{penalized[0]} is about the gradient of each score by its own image, and with {cause} a score depends on "
                "the whole batch; the fix: --model.discriminator.norm layer or none, --model.discriminator.minibatch 0"
            )
        if self.microbatches > 1 and (cause := self._couples()):
            raise UserError(
                f"with {cause} a score depends on the whole batch, which microbatches divide; leave them out"
            )
        if self.conditioning == "projection" and self.generator.norm == "none":
            raise UserError(
                "conditioning projection scales G's normalizations by class, and G has none; use another norm"
            )
        if self.conditioning and self.pack > 1:
            raise UserError("a pack of images has no one label: pack 1, or no conditioning")
        if isinstance(self.augment, ADA) and not losses.ADVERSARIAL[self.objective].shift:
            raise UserError(
                f"ADA is steered by the signs of D's scores, which have no meaning in the objective {self.objective}; use "
                "DiffAugment, or another objective"
            )
        if self.one_sided and not self.gradient_penalty:
            raise UserError("one_sided is a form of gradient_penalty, which is 0")

    def _couples(self) -> str | None:
        """What makes the players' losses depend on an example's company, if anything does."""
        return (
            self.discriminator.couples()
            or ("batch normalization" if self.generator.norm == "batch" else None)
            or ("feature matching" if self.feature_matching else None)
            or ("packs of images" if self.pack > 1 else None)
            or ("relativistic averages" if self.objective == "relativistic_average" else None)
        )

    def tiny(self) -> GAN:
        return replace(
            self,
            latent=4,
            generator=self.generator.tiny(),
            discriminator=self.discriminator.tiny(),
            critic_steps=min(2, self.critic_steps),
        )

    def inherit(self, base: core.Family, spec: Spec) -> GAN:
        super().inherit(base, spec)
        assert isinstance(base, GAN)
        shaped = ("latent", "generator", "discriminator", "conditioning", "pack")
        return replace(self, **{name: getattr(base, name) for name in shaped})

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


@dataclass(frozen=True)
class Request:
    """What to generate."""

    n: int = 64
    """Number of images (interpolate: in rows of 8)."""
    mode: Literal["generate", "interpolate"] = "generate"
    """Samples, or the way from one sample's latents to another's on the sphere (slerp)."""
    label: int | None = None
    """Class to generate, of a conditional model; None: all in turn."""
    truncation: float | None = None
    """Draw each latent from the standard normal within this distance of 0: less variety, more typical (Brock et al. 2019)."""

    def __post_init__(self):
        check_positive(n=self.n)
        if self.truncation is not None:
            check_positive(truncation=self.truncation)
        if self.n > MAX_IMAGES:
            raise UserError(f"n is {self.n}; at most {MAX_IMAGES} at once, with other seeds for more")


def build(config: GAN, spec: Spec, steps: int) -> GenerativeModel:
    if "image" not in spec:
        raise UserError(f"a GAN models images, and the data have {', '.join(spec)}")
    shape = spec["image"].shape
    classes = families_labels.num_classes(spec) if config.conditioning else None
    real_dtype = jnp.promote_types(config.dtype, jnp.float32)
    dtypes = networks_dtypes.module_dtypes(config.dtype, config.param_dtype)
    objective = losses.ADVERSARIAL[config.objective]
    G = config.generator.build(shape, config.conditioning, dtypes)
    D = Discriminator(config.discriminator, config.conditioning, objective.shift, dtypes)
    players = Players(G, D, shape, config.latent, classes, config.pack, config.augment, real_dtype)
    make, judge, latents = players.make, players.judge, players.latents
    g_tx = config.generator_optim.build(steps)
    d_tx = config.discriminator_optim.build(steps * config.critic_steps)
    r1, r2 = schedule(config.r1, steps), schedule(config.r2, steps)
    floor = objective.least(1 - config.smoothing)

    def init(key: Key, base: dict[str, Params] | None = None) -> State:
        params, stats = players.init(key)
        params = base or params
        g, d = params["generator"], params["discriminator"]
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={"generator": g_tx.init(g), "discriminator": d_tx.init(d)},
            ema={"generator": g} if config.ema else {},
            stats=stats,
        )

    def inputs(batch: Batch) -> tuple[Array, Array | None, Array]:
        return batch["image"].astype(real_dtype), players.one_hot(batch.get("label")), batch["row"]

    # --- training ---

    def discriminate(d: Params, stats: Any, batch: Batch, key: Key, step: Array) -> Any:
        """D's loss: the objective, and what keeps D smooth. -> (loss, (metrics, new statistics))."""
        (x, label, row), x_fake = inputs(batch), batch["fake"]
        real_key, fake_key, penalty_key = jax.random.split(key, 3)
        real, _, new = judge(d, stats, x, label, real_key, row)
        fake, _, new = judge(d, new, x_fake, label, fake_key, row)
        critic = lambda key: lambda x: judge(d, new, x, label, key, row)[0]
        penalty = jnp.zeros((), real_dtype)
        if config.gradient_penalty:
            t = axis.per_example(lambda k: jax.random.uniform(k, (1, 1, 1), real_dtype), penalty_key, row)
            between = losses.gradient_penalty(critic(real_key), x + t * (x_fake - x), config.one_sided)
            penalty += config.gradient_penalty * between.mean()
        if config.r1 != 0.0:
            penalty += r1(step) / 2 * losses.squared_gradient(critic(real_key), x).mean()
        if config.r2 != 0.0:
            penalty += r2(step) / 2 * losses.squared_gradient(critic(fake_key), x_fake).mean()
        loss = objective.discriminator(real, fake, 1 - config.smoothing).mean()
        scores = {"score/real": real.mean(), "score/fake": fake.mean(), "score/sign": jnp.sign(real).mean()}
        return loss + penalty, ({"loss/discriminator": loss, "penalty": penalty, **scores}, new)

    def deceive(g: Params, d: Params, stats: Any, batch: Batch, key: Key) -> Any:
        """G's loss against D. -> (loss, new statistics)."""
        x, label, row = inputs(batch)
        z_key, real_key, fake_key = jax.random.split(key, 3)
        x_fake, new = make(g, stats, latents(z_key, row), label)
        fake, fake_features, _ = judge(d, stats, x_fake, label, fake_key, row)
        real, real_features, _ = judge(d, stats, x, label, real_key, row)
        loss = objective.generator(real, fake).mean()
        if config.feature_matching:
            loss += config.feature_matching * losses.feature_matching(real_features, fake_features)
        return loss, new

    def update(state: State, batches: Batch, key: Key) -> tuple[State, Metrics]:
        """`critic_steps` steps of D on a batch [n, B, ...] each, then one of G. Goodfellow et al. 2014, algorithm 1."""
        g = state.params["generator"]
        *d_keys, g_key = jax.random.split(key, config.critic_steps + 1)

        def critic_step(carry: Any, batch: Batch, key: Key) -> tuple[Any, Metrics]:
            d, opt_state, stats = carry
            z_key, key = jax.random.split(key)
            x, label, row = inputs(batch)
            x_fake, _ = make(g, stats, latents(z_key, row), label)
            loss = lambda d, batch: discriminate(d, stats, batch, key, state.step)
            batch = batch | {"fake": x_fake}
            d, opt_state, _, (seen, stats), grads = descend.descend(
                loss, d, opt_state, d_tx, batch, config.microbatches
            )
            seen = axis.mean(seen)
            if config.augment:
                strength = config.augment.adapt(stats["augment"], seen["score/sign"], axis.total(x.shape[0]))
                stats = stats | {"augment": strength}
                seen["augment"] = strength
            return (d, opt_state, stats), seen | {"gradient/discriminator": descend.norm(grads)}

        carry = state.params["discriminator"], state.opt_state["discriminator"], state.stats
        each = []
        for i, key in enumerate(d_keys):  # no scan: XLA's convolutions are 10 times slower inside a loop on a CPU
            carry, seen = critic_step(carry, {k: v[i] for k, v in batches.items()}, key)
            each.append(seen)
        d, d_opt, stats = carry

        last = {k: v[-1] for k, v in batches.items()}
        loss = lambda g, batch: deceive(g, d, stats, batch, g_key)
        opt_state = state.opt_state["generator"]
        g, g_opt, value, stats, grads = descend.descend(loss, g, opt_state, g_tx, last, config.microbatches)
        ema = (
            {"generator": descend.update_average(state.ema["generator"], g, config.ema, state.step)}
            if config.ema
            else {}
        )
        state = replace(
            state,
            step=state.step + 1,
            params={"generator": g, "discriminator": d},
            opt_state={"generator": g_opt, "discriminator": d_opt},
            ema=ema,
            stats=stats,
        )
        metrics = jax.tree.map(lambda *m: jnp.stack(m).mean(), *each)
        return state, metrics | {"loss/generator": axis.mean(value), "gradient/generator": descend.norm(grads)}

    # --- evaluation ---

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        """D's scores of held-out images, and of as many generated by the raw weights."""
        x, label, row = inputs(batch)
        x_fake, _ = make(state.params["generator"], state.stats, latents(key, row), label, train=False)
        judged = lambda x: judge(state.params["discriminator"], state.stats, x, label, None, row)[0]
        real, fake = judged(x), judged(x_fake)
        weight = batch["weight"].reshape(-1, config.pack).min(-1).astype(real_dtype)
        values = {"score_real": real, "score_fake": fake, "paired_accuracy": (real > fake).astype(real_dtype)}
        if objective.indifferent:
            left = objective.discriminator(real, fake, 1 - config.smoothing) - floor
            learned = left < 0.01 * objective.indifferent
            values["saturation"] = learned.astype(real_dtype)
        return axis.total({name: ((weight * v).sum(), weight.sum()) for name, v in values.items()})

    def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        return {name: float(np.asarray(total) / np.asarray(count)) for name, (total, count) in sums.items()}

    # --- sampling ---

    def generate(state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        g = state.ema.get("generator", state.params["generator"])
        d, stats = state.params["discriminator"], players.standing(g, state.stats) if config.ema else state.stats
        rows = max(1, request.n // COLUMNS)
        n = request.n if request.mode == "generate" else rows + 1
        z, labels = (
            latents(key, jnp.arange(n), request.truncation),
            families_labels.labels_to_generate(n, request.label, classes),
        )
        if request.mode == "interpolate":
            z = jax.vmap(lambda t: slerp(z[:-1], z[1:], t), out_axes=1)(jnp.linspace(0, 1, COLUMNS))
            z, n = z.reshape(-1, config.latent), rows * COLUMNS
            labels = None if labels is None else jnp.repeat(labels[:-1], COLUMNS)

        alone = config.pack == 1 and not config.discriminator.minibatch  # else a score is of several images

        def chunk(given: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
            z, label = given
            x, _ = make(g, stats, z, label, train=False)
            return x.astype(jnp.float32), judge(d, stats, x, label, None, jnp.arange(len(z)))[0] if alone else None

        size = min(n, GENERATE_CHUNK)
        padded = lambda v: jnp.pad(v, ((0, -n % size), (0, 0))).reshape(-1, size, v.shape[-1])
        chunks = jax.tree.map(padded, (z, players.one_hot(labels)))
        if n <= size:
            x, scores = chunk(jax.tree.map(lambda v: v[0], chunks))
        else:
            x, scores = jax.lax.map(chunk, chunks)
        x = x.reshape(-1, *shape)[:n]
        out = {"samples": x if request.mode == "generate" else x.reshape(rows, COLUMNS, *shape), "latents": z}
        if scores is not None:
            out["scores"] = scores.reshape(-1)[:n].astype(jnp.float32)
        return out if labels is None else out | {"labels": labels}

    return GenerativeModel(
        init=init,
        update=update,
        evaluate=evaluate,
        test=evaluate,
        summarize=summarize,
        generate=generate,
        request=Request,
        losses=("loss/discriminator", "loss/generator"),
        protocol={
            "paired_accuracy": {"pairs": "each held-out image and a generated one, scores compared"},
            "saturation": {"threshold": "D's loss below 1% of what scores of 0 cost"},
        },
        batches=config.critic_steps,
        together=config.pack * config.microbatches,
    )


def slerp(a: Array, b: Array, t: Array) -> Array:
    """From a [N, D] to b along great circles (White 2016, equation 1), the length from one's to the other's in a line."""
    length = lambda v: jnp.linalg.norm(v, axis=-1, keepdims=True)
    u, v = a / length(a), b / length(b)
    omega = jnp.arccos(jnp.clip((u * v).sum(-1, keepdims=True), -1 + 1e-7, 1 - 1e-7))
    direction = (jnp.sin((1 - t) * omega) * u + jnp.sin(t * omega) * v) / jnp.sin(omega)
    return ((1 - t) * length(a) + t * length(b)) * direction
