"""Sequence to sequence (Sutskever et al. 2014; Vaswani et al. 2017): a text given another, by an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError
from gen.families import learner
from gen.families.language import decoding, language, losses
from gen.families.language.language import LanguageModel
from gen.families.language.lm import Request
from gen.networks.positions import PADDING, places
from gen.networks.transformer import RULES, Transformer, empty_cache, unstack_layers


@dataclass(frozen=True)
class Seq2Seq(LanguageModel):
    """An encoder and a decoder."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


def build(config: Seq2Seq, spec: Spec, steps: int) -> GenerativeModel:
    arch, (length, vocab, end), source = config.network, language.tokens(spec), spec.get("source")
    if source is None:
        raise UserError("sequence to sequence needs pairs of source and target; the fix: --data.pairs separate")
    context = language.context(arch, length)
    real_dtype = jnp.promote_types(config.dtype, jnp.float32)
    dtypes = config.dtypes()
    encoder = Transformer(arch, vocab, source.shape[0], causal=False, dtypes=dtypes, readout=False)
    decoder = Transformer(arch, vocab, context, causal=True, dtypes=dtypes, cross=True)

    def begin(key: Key) -> dict[str, Params]:
        encoder_key, decoder_key = jax.random.split(key)
        read, said = jnp.zeros((1, source.shape[0]), jnp.int32), jnp.zeros((1, 1), jnp.int32)
        memory = jnp.zeros((1, source.shape[0], arch.width), dtypes["dtype"])
        segment = jnp.zeros(read.shape, jnp.int32)
        return {
            "encoder": encoder.init(encoder_key, read, *places(read, None))["params"],
            "decoder": decoder.init(decoder_key, said, *places(said, end), None, None, memory, segment)["params"],
        }

    learned = learner.make_learner(config, steps, "transformer", begin)

    def encode(params: Params, tokens: Array, keys: Array | None) -> tuple[Array, Array]:
        """(memory [B, S, D], its segments [B, S]) of sources [B, S]; from the first `end` on, and below 0, is padding."""
        padding = tokens < 0
        if end is not None:
            padding |= jnp.cumsum(tokens == end, axis=1) > 0
        segment = jnp.where(padding, PADDING, 0)
        position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
        memory, _ = encoder.apply({"params": params["encoder"]}, jnp.maximum(tokens, 0), segment, position, keys)
        return memory, segment

    def nats(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        """-log p(token | the source, those before) [B, T], log Z, and whether it is the likeliest."""
        x, keys = batch["tokens"], batch.get("keys")
        position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], x[:, 1:].shape)
        own, other = (None, None) if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
        memory = encode(params, batch["source"], own)
        variables = {"params": params["decoder"]}
        logits, _ = decoder.apply(variables, x[:, :-1], jnp.zeros_like(position), position, other, None, *memory)
        return *losses.cross_entropy(logits, x[:, 1:]), (logits.argmax(-1) == x[:, 1:]).astype(real_dtype)

    def weights(batch: Batch) -> Array:
        return language.counted(batch, real_dtype)[:, 1:]

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        batch = batch | language.dropout_keys(arch, key, batch) | {"share": language.shares(weights(batch))}

        def loss(params: Params, batch: Batch) -> tuple[Array, Array]:
            value, log_z, _ = nats(params, batch)
            return language.with_z_loss(config, value, log_z, batch["share"])

        state, value, gradient = learned.step(state, loss, batch)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        (value, _, right), weight = nats(learned.weights(state), batch), weights(batch)
        sums = language.token_sums(value, weight, batch)
        return axis.total(sums | {"accuracy": ((right * weight).sum(), weight.sum())})

    def generate(
        state: State,
        key: Key,
        given: Mapping[str, Array],
        request: Request,
        listen: decoding.Listener | None = None,
    ) -> dict[str, Array]:
        """given: "source", int32 [P, S], of which the first samples are made n times each."""
        if "source" not in given:
            raise UserError('a target is written for a source; the fix: --source "..."')
        asked = given["source"]
        if asked.shape[1] > source.shape[0]:
            raise UserError(f"a source has {asked.shape[1]} tokens, and the model reads {source.shape[0]}; shorten it")
        asked = jnp.repeat(asked, request.n, axis=0)
        params, apart = learned.weights(state), jax.default_backend() == "cpu"
        memory = encode(params, asked, None)
        variables = {"params": unstack_layers(params["decoder"]) if apart else params["decoder"]}

        def read(tokens: Array, segment: Array, position: Array, cache: Any, begins: bool) -> Any:
            return decoder.apply(variables, tokens, segment, position, None, cache, *memory)

        decoded = decoding.decode(
            read,
            lambda places: empty_cache(arch, len(asked), places, dtypes["dtype"], apart),
            jnp.full((len(asked), 1), end or 0, jnp.int32),
            decoding.row_keys(key, len(asked)),
            request,
            n=min(request.tokens, context - 1),
            limit=context,
            vocab=vocab,
            end=end,
            listen=listen,
        )
        return {"samples": decoded.tokens, "log_probs": decoded.log_probs, "source": asked}

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
        protocol={name: {"tokens": "of targets"} for name in ("loss", "perplexity", "bits_per_byte", "accuracy")},
    )
