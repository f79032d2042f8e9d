"""Sequence to sequence (Sutskever et al. 2014; Vaswani et al. 2017): predicts a target text from a source text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError
from gen.families import learner
from gen.families.language import decoding, language, losses
from gen.families.language.language import LanguageModel, Tokens
from gen.families.language.lm import Request
from gen.networks.positions import PADDING, locate_tokens
from gen.networks.transformer import RULES, Cache, Transformer, empty_cache, unstack_layers


@dataclass(frozen=True)
class Seq2Seq(LanguageModel):
    """An encoder that reads the source, and a decoder that writes the target."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        model = self.model(spec, steps)
        names = ("loss", "perplexity", "bits_per_byte", "accuracy")
        return GenerativeModel(
            init=model.learner.init,
            update=model.update,
            evaluate=model.evaluate,
            summarize=language.summarize,
            generate=model.generate,
            request=Request,
            together=self.microbatches,
            rules=RULES,
            protocol={name: {"tokens": "of the targets"} for name in names},
        )

    def model(self, spec: Spec, steps: int) -> Seq2SeqModel:
        """Returns the functions that `build` is made of. Raises: UserError if the data don't fit this config."""
        tokens, source = language.tokens(spec), spec.get("source")
        if source is None:
            raise UserError("sequence to sequence needs pairs of source and target; the fix: --data.pairs separate")
        context, arch, dtypes = language.context(self.network, tokens.length), self.network, self.dtypes()
        encoder = Transformer(arch, tokens.vocab, source.shape[0], causal=False, dtypes=dtypes, readout=False)
        decoder = Transformer(arch, tokens.vocab, context, causal=True, dtypes=dtypes, cross=True)
        network = EncoderDecoder(encoder, decoder, tokens.end)
        own = learner.make_learner(self, steps, "transformer", network.init, weighted=True)
        return Seq2SeqModel(self, tokens, network, own)


class Memory(NamedTuple):
    """Sources as the decoder reads them."""

    output: Array
    """[B, S, D]. The encoder's output."""
    segment: Array
    """int32 [B, S]. PADDING where there is no token, otherwise 0."""


class Examples(NamedTuple):
    """A batch as the loss takes it. Each array has one entry per example, so that it can be split into microbatches."""

    source: Array
    """int32 [B, S]."""
    tokens: Array
    """int32 [B, T + 1]. The targets are tokens[:, 1:]."""
    weight: Array
    """[B, T]. Weight of each target."""
    dropout_keys: Array | None = None
    """[B]. None: no dropout."""


@dataclass(frozen=True)
class EncoderDecoder:
    """The two networks. params: {"encoder": ..., "decoder": ...}."""

    encoder: Transformer
    decoder: Transformer
    end: int | None
    """Token that ends a text."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        encoder_key, decoder_key = jax.random.split(key)
        source, target = jnp.zeros((1, self.encoder.context), jnp.int32), jnp.zeros((1, 1), jnp.int32)
        # Shapes alone decide the parameters, so the decoder is initialized with an empty memory.
        output = jnp.zeros((*source.shape, self.encoder.arch.width), self.encoder.dtypes["dtype"])
        memory = Memory(output, jnp.zeros(source.shape, jnp.int32))
        return {
            "encoder": self.encoder.init(encoder_key, source, *locate_tokens(source, None))["params"],
            "decoder": self.decoder.init(decoder_key, target, *locate_tokens(target, self.end), None, None, *memory)[
                "params"
            ],
        }

    def encode(self, params: dict[str, Params], source: Array, keys: Array | None) -> Memory:
        """Reads sources, int32 [B, S]. Tokens below 0, and all from the first `end` on, are padding."""
        # A source may be padded on the left (prompts, by PADDING) and on the right (training data, by `end`).
        padding = source < 0
        if self.end is not None:
            padding |= jnp.cumsum(source == self.end, axis=1) > 0
        segment = jnp.where(padding, PADDING, 0)
        # Positions count tokens only, so that padding on the left does not move a source.
        position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
        variables = {"params": params["encoder"]}
        output, _ = self.encoder.apply(variables, jnp.maximum(source, 0), segment, position, keys)
        return Memory(output, segment)

    def logits(self, params: dict[str, Params], source: Array, target: Array, keys: Array | None) -> Array:
        """Returns logits [B, T, V] of the token after each of target[:, :t]. source: int32 [B, S]; target: int32 [B, T]."""
        # A row is one target, then padding with `end`, which does not count: the whole row may be one segment.
        position = jnp.broadcast_to(jnp.arange(target.shape[1], dtype=jnp.int32)[None], target.shape)
        encoder_keys, decoder_keys = (None, None) if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
        memory = self.encode(params, source, encoder_keys)
        variables = {"params": params["decoder"]}
        logits, _ = self.decoder.apply(
            variables, target, jnp.zeros_like(position), position, decoder_keys, None, *memory
        )
        return logits


@dataclass(frozen=True)
class Seq2SeqModel:
    """p(target | source) = prod_t p(token_t | source, tokens before t)."""

    config: Seq2Seq
    tokens: Tokens
    network: EncoderDecoder
    learner: learner.Learner

    def predict(self, params: dict[str, Params], examples: Examples) -> tuple[Array, Array, Array]:
        """Returns -log p(token | source, tokens before it), log Z, and whether the most likely token is right, [B, T] each."""
        inputs, targets = examples.tokens[:, :-1], examples.tokens[:, 1:]
        logits = self.network.logits(params, examples.source, inputs, examples.dropout_keys)
        nats, log_z = losses.cross_entropy(logits, targets)
        return nats, log_z, (logits.argmax(-1) == targets).astype(self.config.loss_dtype())

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one step on the mean of nats + z_loss log(Z)^2 over the tokens of the targets."""
        keys = language.dropout_keys(self.config.network, key, batch["row"])
        weight = language.target_weights(batch, self.config.loss_dtype())
        count = language.count_tokens(weight)
        examples = Examples(batch["source"], batch["tokens"], language.normalize_weights(weight, count), keys)

        def loss(params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
            nats, log_z, _ = self.predict(params, examples)
            mean = language.token_mean(nats, examples.weight)
            return mean + self.config.z_loss * language.token_mean(jnp.square(log_z), examples.weight), mean

        state, value, gradient = self.learner.step(state, loss, examples, count)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns the sums of loss, bits per byte and accuracy."""
        weight = language.target_weights(batch, self.config.loss_dtype())
        examples = Examples(batch["source"], batch["tokens"], weight)
        nats, _, right = self.predict(self.learner.weights(state), examples)
        accuracy = {"accuracy": ((right * weight).sum(), weight.sum())}
        return axis.total(language.token_sums(nats, weight, batch) | accuracy)

    def generate(
        self,
        state: State,
        key: Key,
        given: Mapping[str, Array],
        request: Request,
        listen: decoding.Listener | None = None,
    ) -> dict[str, Array]:
        """Returns {"samples": int32 [B, N], "log_probs": float32 [B, N], "source": int32 [B, S]}, B = sources * request.n.

        given: "source" int32 [P, S], with PADDING on the left of shorter sources.

        Raises: UserError without a source, or for a source that is longer than the training sources.
        """
        if "source" not in given:
            raise UserError('the model writes a target for a source, and there is none; the fix: --source "..."')
        source, longest = given["source"], self.network.encoder.context
        if source.shape[1] > longest:
            raise UserError(f"a source has {source.shape[1]} tokens, and the model reads {longest}; shorten it")
        source = jnp.repeat(source, request.n, axis=0)
        # The source is encoded once. Each token reads the same memory.
        params, decoder = self.learner.weights(state), self.network.decoder
        memory = self.network.encode(params, source, None)
        # On a CPU each layer has its own arrays: see `unstack_layers`.
        unstacked = jax.default_backend() == "cpu"
        variables = {"params": unstack_layers(params["decoder"]) if unstacked else params["decoder"]}

        def read(tokens: Array, segment: Array, position: Array, cache: Cache, begins: bool) -> tuple[Array, Cache]:
            return decoder.apply(variables, tokens, segment, position, None, cache, *memory)  # pyright: ignore

        def empty(places: int) -> Cache:
            return empty_cache(decoder.arch, len(source), places, decoder.dtypes["dtype"], unstacked)

        decoded = decoding.decode(
            read,
            empty,
            jnp.full((len(source), 1), self.tokens.end or 0, jnp.int32),
            decoding.row_keys(key, len(source)),
            request,
            # A target never outgrows the decoder's context, so the cache is never refilled.
            n=min(request.tokens, decoder.context - 1),
            limit=decoder.context,
            vocab=self.tokens.vocab,
            end=self.tokens.end,
            listen=listen,
        )
        return {"samples": decoded.tokens, "log_probs": decoded.log_probs, "source": source}
