"""The masked language model: tokens given the others around them (Devlin et al. 2019), or, with every share of them masked, a
model of whole texts (absorbing diffusion: Austin et al. 2021; Sahoo et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import learner
from gen.families.language import decoding, language, losses
from gen.families.language.language import LanguageModel
from gen.networks.positions import PADDING, places
from gen.networks.transformer import RULES, Transformer

MASK, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are. Devlin et al. 2019, section 3.1


@dataclass(frozen=True)
class MLM(LanguageModel):
    """A masked language model."""

    rate: float | None = 0.15
    """Share of the tokens to be told from the others; None: each share from none to all, which bounds the likelihood of
    texts, and lets it write them."""

    def __post_init__(self):
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate <= 1:
            raise UserError(f"rate is {self.rate}; it is a share above 0, or None")

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


@dataclass(frozen=True)
class Request(decoding.Sampling):
    """What to generate."""

    n: int = 4
    """Number of samples (of each prompt)."""
    tokens: int | None = None
    """Tokens to write; None: as many as the context has room for."""
    turns: int = 64
    """Turns in which they are written, a few at a time, anywhere."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(n=self.n, turns=self.turns)
        if self.tokens is not None:
            check_positive(tokens=self.tokens)


def build(config: MLM, spec: Spec, steps: int) -> GenerativeModel:
    arch, (length, vocab, end) = config.network, language.tokens(spec)
    language.check_alone(spec)
    context = language.context(arch, length)
    mask = vocab  # one token more
    real_dtype = jnp.promote_types(config.dtype, jnp.float32)
    network = Transformer(arch, vocab + 1, context, causal=False, dtypes=config.dtypes())

    learned = learner.make_learner(config, steps, "transformer", language.begin(network, end))

    def logits(params: Params, tokens: Array, segment: Array, position: Array, keys: Array | None = None) -> Array:
        return network.apply({"params": params["transformer"]}, tokens, segment, position, keys)[0][..., :vocab]

    def masked(x: Array, counts: Array, key: Key, row: Array) -> tuple[Array, Array, Array]:
        """What the model sees of the tokens [B, T], which of those that count it is asked for, and the weight of each."""

        def draw(key: Key) -> tuple[Array, Array, Array, Array]:
            rate_key, choose_key, change_key, token_key = jax.random.split(key, 4)
            uniform = lambda key: jax.random.uniform(key, (length,), real_dtype)
            words = jax.random.randint(token_key, (length,), 0, vocab, jnp.int32)
            return jax.random.uniform(rate_key, (), real_dtype), uniform(choose_key), uniform(change_key), words

        rate, choice, change, words = axis.per_example(draw, key, row)
        choice = jnp.where(counts, choice, 1)  # never asked for
        if config.rate is None:
            t = jnp.maximum(rate, 1 / length)[:, None]
            asked = choice < t
            return jnp.where(asked, mask, x), asked, 1 / t
        asked = choice < config.rate
        seen = jnp.where(change < MASK, mask, jnp.where(change < MASK + RANDOM, words, x))
        return jnp.where(asked, seen, x), asked, jnp.ones_like(rate)[:, None]

    def asking(batch: Batch, key: Key) -> Batch:
        """The batch with what the model sees of the tokens after the first, [B, T], how the nats of each are weighted, "asked":
        which it is asked for, and "over" which the nats are averaged: these, or in the bound all that count."""
        x, weight = batch["tokens"][:, 1:], language.counted(batch, real_dtype)[:, 1:]
        seen, asked, scale = masked(x, batch["counted"][:, 1:] > 0, key, batch["row"])
        over = weight if config.rate is None else asked * weight
        return batch | {"seen": seen, "scale": asked * scale, "asked": asked * weight, "over": over}

    def told(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        """Of the tokens after the first, [B, T]: weighted nats, log Z, and whether the likeliest is right."""
        x = batch["tokens"][:, 1:]
        # Where all tokens may be masked, attention that stopped at documents' ends would tell where they are.
        out = logits(params, batch["seen"], *places(x, None if config.rate is None else end), batch.get("keys"))
        value, log_z = losses.cross_entropy(out, x)
        right = (out.argmax(-1) == x).astype(real_dtype)
        return value * batch["scale"], log_z, right

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        mask_key, dropout_key = jax.random.split(key)
        batch = asking(batch, mask_key) | language.dropout_keys(arch, dropout_key, batch)
        batch |= {"over": language.shares(batch["over"]), "asked": language.shares(batch["asked"])}

        def loss(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            value, log_z, right = told(params, batch)
            whole, mean = language.with_z_loss(config, value, log_z, batch["over"])
            return whole, {"loss": mean, "accuracy": language.token_mean(right, batch["asked"])}

        state, metrics, gradient = learned.step(state, loss, batch)
        return state, axis.mean(metrics) | {"gradient": gradient}

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        batch = asking(batch, key)
        (value, _, right), asked, over = told(learned.weights(state), batch), batch["asked"], batch["over"]
        sums = {"accuracy": ((right * asked).sum(), asked.sum())} | language.token_sums(value, over, batch)
        if config.rate is not None:  # no likelihood of the text
            del sums["bits_per_byte"]
        return axis.total(sums)

    def generate(state: State, key: Key, given: Mapping[str, Array], request: Request) -> dict[str, Array]:
        """given: "prompt", int32 [P, W], PADDING on the left of shorter ones; or "prefix" and "suffix", [1, W], to be joined;
        without them, samples are parts of documents."""
        before = given.get("prefix", given.get("prompt", jnp.zeros((1, 0), jnp.int32)))
        after = given.get("suffix", jnp.zeros((1, 0), jnp.int32))
        room = context - before.shape[1] - after.shape[1]
        tokens = room if request.tokens is None else request.tokens
        if not 0 < tokens <= room:
            raise UserError(
                f"{context - room} tokens are given and {tokens} asked for; the model's context is {context} in all"
            )
        before = jnp.repeat(before, request.n, axis=0)
        after = jnp.broadcast_to(after, (len(before), after.shape[1]))
        params, keys = learned.weights(state), decoding.row_keys(key, len(before))
        text = jnp.concatenate([before, jnp.full((len(before), tokens), mask, jnp.int32), after], axis=1)

        def turn(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            """Of the tokens still masked, each is written with probability (t - s) / t, t the share left and s the next."""
            text, log_probs = carry
            padding = text < 0
            segment = jnp.where(padding, PADDING, 0)
            position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
            out = logits(params, jnp.maximum(text, 0), segment, position)

            def draw(key: Key, row: Array, out: Array) -> tuple[Array, Array]:
                choose_key, token_key = jax.random.split(jax.random.fold_in(key, i))
                choice = decoding.filtered(out, jax.nn.one_hot(row, vocab, dtype=bool).any(0, keepdims=True), request)
                drawn = choice.argmax(-1) if request.temperature == 0 else jax.random.categorical(token_key, choice)
                now = jax.random.uniform(choose_key, row.shape) * (request.turns - i) < 1
                return (row == mask) & now, drawn.astype(jnp.int32)

            now, drawn = jax.vmap(draw)(keys, text, out)
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(out), drawn[..., None], axis=-1)[..., 0]
            return jnp.where(now, drawn, text), jnp.where(now, log_prob, log_probs).astype(jnp.float32)

        start = text, jnp.zeros(text.shape, jnp.float32)
        text, log_probs = jax.lax.fori_loop(0, request.turns, turn, start)
        written = slice(before.shape[1], before.shape[1] + tokens)
        return {"samples": text[:, written], "log_probs": log_probs[:, written], "prompt": before}

    counts = "each share of masked tokens, one draw a window" if config.rate is None else f"{config.rate} masked"
    names = ("loss", "accuracy", "perplexity", *(("bits_per_byte",) if config.rate is None else ()))
    return GenerativeModel(
        init=learned.init,
        update=update,
        evaluate=evaluate,
        test=evaluate,
        summarize=language.summarize,
        generate=generate,
        request=Request,
        together=config.microbatches,
        rules=RULES,
        protocol={name: {"tokens": counts} for name in names},
    )
