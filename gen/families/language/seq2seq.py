"""Sequence to sequence (Sutskever et al. 2014; Vaswani et al. 2017): predicts a text from a source.

The source is a text, or a grid, such as a picture for which the model writes a caption (Xu et al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Family, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_positive
from gen.families import learner
from gen.families.language import decoding, language, losses
from gen.families.language.language import LanguageModel, Tokens
from gen.families.language.lm import Request
from gen.families.language.sources import Memory, Reader, make_reader
from gen.networks.positions import locate_tokens
from gen.networks.transformer import Cache, Transformer, begin_decoding


@dataclass(frozen=True)
class Seq2Seq(LanguageModel):
    """Hyper-parameters of a model of pairs: an encoder reads the source, and a decoder writes the target."""

    patch: tuple[int, ...] = (4,)
    """For sources that are pictures, log-mel frames or latents: sides of a patch, one for each axis, or one number for
    all axes. The encoder reads each patch as one position. An axis whose length is not a multiple of the side is padded
    with zeros."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"the smallest side of patch": min(self.patch, default=0)})

    def inherit(self, base: Family, spec: Spec) -> Seq2Seq:
        own = super().inherit(base, spec)
        assert isinstance(base, Seq2Seq)
        return replace(own, patch=base.patch)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        names, how = ("loss", "perplexity", "bits_per_byte", "accuracy"), "of the targets"
        return language.assemble(self.model(spec, steps), Request, {name: {"tokens": how} for name in names})

    def model(self, spec: Spec, steps: int) -> Seq2SeqModel:
        """Returns the networks and their optimizer, with the methods from which `build` makes a GenerativeModel.

        steps: number of updates of the whole run, which schedules read.

        Raises: UserError if the data have no texts or no separate sources, if targets are longer than the learned
            positions, or if `make_reader` can't read the sources.
        """
        tokens, source = language.tokens(spec), spec.get("source")
        if source is None:
            raise UserError("sequence to sequence needs pairs of source and target; the fix: --data.pairs separate")
        context, arch, dtypes = language.context(self.network, tokens.length), self.network, self.dtypes()
        reader = make_reader(arch, source, tokens.vocab, tokens.end, self.patch, dtypes)
        decoder = Transformer(arch, tokens.vocab, context, causal=True, dtypes=dtypes, cross=True)
        network = EncoderDecoder(reader, decoder, tokens.end)
        own = learner.make_learner(self, steps, "transformer", network.init, weighted=True)
        return Seq2SeqModel(self, tokens, network, own)


class Examples(NamedTuple):
    """The arrays that the loss reads. Each has one entry per example, so that it can be divided into microbatches."""

    source: Array
    """Texts int32 [B, S], or grids [B, ...]."""
    tokens: Array
    """int32 [B, T + 1]. The targets are tokens[:, 1:]."""
    weight: Array
    """[B, T]. Weight of each target. 0: the loss does not count it."""
    dropout_keys: Array | None = None
    """[B], one per example. None: no dropout."""


@dataclass(frozen=True)
class EncoderDecoder:
    """The encoder and the decoder. The argument `params` of the methods is {"encoder": ..., "decoder": ...}."""

    reader: Reader
    decoder: Transformer
    end: int | None
    """Token that ends a text."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns random initial parameters, {"encoder": ..., "decoder": ...}."""
        encoder_key, decoder_key = jax.random.split(key)
        target = jnp.zeros((1, 1), jnp.int32)
        # Shapes alone decide the parameters, so the decoder is initialized with an empty memory.
        output = jnp.zeros((1, 1, self.decoder.arch.width), self.decoder.dtypes["dtype"])
        memory = Memory(output, jnp.zeros((1, 1), jnp.int32))
        return {
            "encoder": self.reader.init(encoder_key),
            "decoder": self.decoder.init(decoder_key, target, *locate_tokens(target, self.end), None, None, *memory)[
                "params"
            ],
        }

    def encode(self, params: dict[str, Params], source: Array, keys: Array | None) -> Memory:
        """Runs the encoder on texts int32 [B, S] or grids [B, ...]. keys: dropout keys [B]. None: no dropout."""
        return self.reader.encode(params["encoder"], source, keys)

    def logits(self, params: dict[str, Params], source: Array, target: Array, keys: Array | None) -> Array:
        """Returns logits [B, T, V]. The logits at position t predict the token that follows target[:, : t + 1].

        source: texts int32 [B, S], or grids [B, ...]. target: int32 [B, T]. keys: dropout keys [B]. None: no dropout.
        """
        # A row is one target, then padding with `end`. The loss ignores the padding, and no token before it sees it, so
        # the whole row can be one segment.
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
    """The model of pairs: p(target | source) = prod_t p(token_t | source, tokens before t)."""

    config: Seq2Seq
    tokens: Tokens
    network: EncoderDecoder
    learner: learner.Learner

    def predict(self, params: dict[str, Params], examples: Examples) -> tuple[Array, Array, Array]:
        """Returns (nats, log Z, right) of each token of the targets, [B, T] each.

        nats: -log p(token | source, tokens before it). Z: normalizer of the softmax. right: 1 if the most likely token
        is the target, otherwise 0.
        """
        inputs, targets = examples.tokens[:, :-1], examples.tokens[:, 1:]
        logits = self.network.logits(params, examples.source, inputs, examples.dropout_keys)
        nats, log_z = losses.cross_entropy(logits, targets)
        return nats, log_z, (logits.argmax(-1) == targets).astype(self.config.real_dtype())

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        """Makes one optimizer step. Returns the next state and the metrics.

        The loss is the mean of -log p(token) + z_loss * log(Z)^2 over the tokens of the targets, where Z is the
        normalizer of the softmax. Metrics: "loss", the mean of -log p(token) alone, in nats; "gradient", the gradient's
        norm.
        """
        keys = language.dropout_keys(self.config.network, key, batch["row"])
        weight = language.target_weights(batch, self.config.real_dtype())
        count = language.count_tokens(weight)
        examples = Examples(batch["source"], batch["tokens"], language.normalize_weights(weight, count), keys)

        def loss(params: dict[str, Params], examples: Examples) -> tuple[Array, Array]:
            nats, log_z, _ = self.predict(params, examples)
            mean = language.token_mean(losses.with_z_loss(nats, log_z, self.config.z_loss), examples.weight)
            return mean, mean

        state, value, gradient = self.learner.step(state, loss, examples, count)
        return state, {"loss": axis.mean(value), "gradient": gradient}

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {metric: (total, weight)} of a held-out batch, summed over devices. `key` is not used.

        The metrics are "loss" (nats per token of the targets), "bits_per_byte" (bits per byte of text) and "accuracy".
        """
        weight = language.target_weights(batch, self.config.real_dtype())
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
        """Draws B = P * request.n targets: request.n targets for each of P sources, grouped by source.

        Returns "samples" int32 [B, N], the drawn tokens, with PADDING (-1) after the end of a sample. N is the smaller
        of request.tokens and the decoder's context - 1. "log_probs" float32 [B, N] are the log-probabilities of these
        tokens in nats, without temperature and filters. "source" [B, ...] is the source of each sample.

        given: "source", texts int32 [P, S] with PADDING on the left of shorter texts, or grids [P, ...].
        listen: called with the new tokens of all samples; may end samples. See `decoding.Listener`.

        Raises: UserError if `given` has no source, if a source text is longer than those in training, or if a source
            grid has another shape.
        """
        if "source" not in given:
            raise UserError('the model writes a target for a source, and there is none; the fix: --source "..."')
        self.network.reader.check(given["source"])
        source = jnp.repeat(given["source"], request.n, axis=0)
        # Each source is encoded once per sample, and every token of the sample attends to the result.
        weights, decoder = self.learner.weights(state), self.network.decoder
        memory = self.network.encode(weights, source, None)
        params, empty = begin_decoding(decoder, weights["decoder"], len(source))

        def read(tokens: Array, segment: Array, position: Array, cache: Cache, begins: bool) -> tuple[Array, Cache]:
            return decoder.apply({"params": params}, tokens, segment, position, None, cache, *memory)  # pyright: ignore

        decoded = decoding.decode(
            read,
            empty,
            jnp.full((len(source), 1), self.tokens.end or 0, jnp.int32),
            axis.example_keys(key, jnp.arange(len(source))),
            request,
            # A target never becomes longer than the decoder's context, so the cache is never refilled.
            n=min(request.tokens, decoder.context - 1),
            limit=decoder.context,
            vocab=self.tokens.vocab,
            end=self.tokens.end,
            listen=listen,
        )
        return {"samples": decoded.tokens, "log_probs": decoded.log_probs, "source": source}
