"""The causal language model (Radford et al. 2019): each token given those before it in its document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from gen import axis, core
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import learner
from gen.families.language import decoding, language, losses
from gen.families.language.language import LanguageModel
from gen.networks.positions import places
from gen.networks.transformer import RULES, Transformer, empty_cache, unstack_layers

SENTINELS = 3  # tokens that fill in the middle adds to the vocabulary: prefix, suffix, middle


@dataclass(frozen=True)
class LM(LanguageModel):
    """A causal language model."""

    fill_in_the_middle: float = 0.0
    """Share of the training windows whose middle is moved to the end (Bavarian et al. 2022), so that it can be asked for."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.fill_in_the_middle <= 1:
            raise UserError(f"fill_in_the_middle is {self.fill_in_the_middle}; it is a share in [0, 1]")

    def inherit(self, base: core.Family, spec: Spec) -> LM:
        own = super().inherit(base, spec)
        assert isinstance(base, LM)
        return replace(own, fill_in_the_middle=base.fill_in_the_middle)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


@dataclass(frozen=True)
class Request(decoding.Sampling):
    """What to generate."""

    n: int = 4
    """Number of samples (of each prompt)."""
    tokens: int = 256
    """At most so many tokens each."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(n=self.n, tokens=self.tokens)


def build(config: LM, spec: Spec, steps: int) -> GenerativeModel:
    arch, (length, vocab, end) = config.network, language.tokens(spec)
    language.check_alone(spec)
    context = language.context(arch, length)
    fim = config.fill_in_the_middle
    real_dtype = jnp.promote_types(config.dtype, jnp.float32)
    network = Transformer(arch, vocab + SENTINELS * bool(fim), context, causal=True, dtypes=config.dtypes())
    if fim and end is None:
        raise UserError("fill_in_the_middle ends with the token between documents, and the data have none")

    learned = learner.make_learner(config, steps, "transformer", language.begin(network, end))

    def nats(params: Params, batch: Batch) -> tuple[Array, Array]:
        """-log p(token | those before) [B, T], and log Z."""
        x = batch["tokens"]
        segment, position = places(x[:, :-1], end)
        if "rearranged" in batch:  # one text, whatever it was cut from
            whole = batch["rearranged"][:, None]
            segment = jnp.where(whole, 0, segment)
            position = jnp.where(whole, jnp.arange(x.shape[1] - 1, dtype=jnp.int32)[None], position)
        logits, _ = network.apply({"params": params["transformer"]}, x[:, :-1], segment, position, batch.get("keys"))
        return losses.cross_entropy(logits, x[:, 1:])

    def weights(batch: Batch) -> Array:
        return language.counted(batch, real_dtype)[:, 1:]

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        dropout_key, middle_key = jax.random.split(key)
        if fim:
            batch = middle_last(batch, middle_key, fim, vocab, end)
        batch = batch | language.dropout_keys(arch, dropout_key, batch) | {"share": language.shares(weights(batch))}

        def loss(params: Params, batch: Batch) -> tuple[Array, Array]:
            return language.with_z_loss(config, *nats(params, batch), batch["share"])

        state, value, gradient = learned.step(state, loss, batch)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        (value, _), weight = nats(learned.weights(state), batch), weights(batch)
        by_place = {"loss_by_place": ((value * weight).sum(0), weight.sum(0))}
        return axis.total(language.token_sums(value, weight, batch) | by_place)

    def generate(
        state: State,
        key: Key,
        given: Mapping[str, Array],
        request: Request,
        listen: decoding.Listener | None = None,
    ) -> dict[str, Array]:
        """given: "prompt", int32 [P, W], PADDING on the left of shorter ones; or "prefix" and "suffix", int32 [1, W], to be
        joined; without them, samples begin as documents do."""
        prompt = given.get("prompt", jnp.full((1, 1), end or 0, jnp.int32))
        if "prefix" in given:
            if not fim:
                raise UserError(
                    "the model was not trained to fill in the middle; the fix: --model.fill-in-the-middle 0.5"
                )
            word = lambda i: jnp.full((1, 1), vocab + i, jnp.int32)
            prompt = jnp.concatenate([word(0), given["prefix"], word(1), given["suffix"], word(2)], axis=1)
        if prompt.shape[1] > context:
            raise UserError(f"a prompt has {prompt.shape[1]} tokens, and the model's context is {context}; shorten it")
        prompt = jnp.repeat(prompt, request.n, axis=0)
        weights, apart = learned.weights(state)["transformer"], jax.default_backend() == "cpu"
        params = {"params": unstack_layers(weights) if apart else weights}
        unlimited = arch.window is not None and arch.positions != "learned"

        prefix = len(params["params"].get("prefix", ()))

        def read(tokens: Array, segment: Array, position: Array, cache: Any, begins: bool) -> Any:
            return network.apply(params, tokens, segment, position, cache=cache, begins=begins)

        decoded = decoding.decode(
            read,
            lambda places: empty_cache(arch, len(prompt), prefix + places, network.dtypes["dtype"], apart),
            prompt,
            decoding.row_keys(key, len(prompt)),
            request,
            n=request.tokens,
            limit=None if unlimited else context,
            vocab=vocab,
            end=end,
            listen=listen,
        )
        return {"samples": decoded.tokens, "log_probs": decoded.log_probs, "prompt": prompt}

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
        protocol={name: {"tokens": "each given those before it"} for name in ("loss", "perplexity", "bits_per_byte")},
    )


def middle_last(batch: Batch, key: Key, rate: float, vocab: int, end: int | None) -> Batch:
    """The batch with the middle of a share of its rows moved to the end: [prefix] a [suffix] c [middle] b [end], cut at two
    places drawn uniformly. The first three words are tokens from `vocab` on, which never count; as many tokens of the row
    as there are words are lost. Bavarian et al. 2022, section 3 (PSM). "rearranged" [B] says which rows are so."""
    tokens, counted = batch["tokens"], batch["counted"]
    n = tokens.shape[1] - SENTINELS - 1

    def draw(key: Key) -> tuple[Array, Array]:
        choose_key, cut_key = jax.random.split(key)
        return jax.random.uniform(choose_key) < rate, jnp.sort(jax.random.randint(cut_key, (2,), 0, n + 1))

    chosen, cuts = axis.per_example(draw, key, batch["row"])
    a, b = cuts[:, :1], cuts[:, 1:]
    suffix, middle, last = a + 1, a + 2 + n - b, n + SENTINELS  # where the words go
    j = jnp.arange(n + SENTINELS + 1, dtype=jnp.int32)[None]
    source = jnp.where(j < suffix, j - 1, jnp.where(j < middle, j - suffix - 1 + b, j - middle - 1 + a))
    words = [(jnp.zeros_like(a), vocab), (suffix, vocab + 1), (middle, vocab + 2), (jnp.full_like(a, last), end)]
    take = lambda x: jnp.take_along_axis(x, jnp.clip(source, 0, n - 1), axis=1)
    moved, moved_counted = take(tokens), take(counted)
    for place, token in words:
        moved = jnp.where(j == place, token, moved)
        moved_counted = jnp.where(j == place, j == last, moved_counted)
    return batch | {
        "tokens": jnp.where(chosen[:, None], moved, tokens),
        "counted": jnp.where(chosen[:, None], moved_counted, counted),
        "rearranged": chosen,
    }
