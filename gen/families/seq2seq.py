"""Sequence to sequence (Sutskever et al. 2014; Vaswani et al. 2017): a text given another, by an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from gen import adapters, core, decoding, language, losses
from gen.core import Adapter, Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums, UserError
from gen.families.lm import Request
from gen.networks.transformer import PADDING, Architecture, Transformer, empty_cache, places
from gen.optim import OptimConfig


@dataclass(frozen=True)
class Config(core.FamilyConfig):
    """An encoder and a decoder."""

    network: Architecture = Architecture()
    """The transformer; both halves of it."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits from drifting (Chowdhery et al. 2022: 1e-4)."""
    ema: float = 0.0
    """Decay of the running average of the parameters, which is evaluated and sampled from; 0: none."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    adapter: Annotated[Adapter | None, tyro.conf.Suppress] = None
    """What is trained beside a base, see --finetune."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters."""

    def __post_init__(self):
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}; it is a decay in [0, 1)")
        if self.z_loss < 0:
            raise UserError(f"z_loss is {self.z_loss}; it must be at least 0")

    def tiny(self) -> Config:
        return replace(self, network=self.network.tiny())

    def inherit(self, base: core.FamilyConfig, spec: Spec) -> Config:
        super().inherit(base, spec)
        assert isinstance(base, Config)
        return replace(self, network=self.network.inherit(base.network, spec["tokens"].shape[0] - 1))

    def adapted(self, adapter: Adapter | None) -> Config:
        return replace(self, adapter=adapter)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        return build(self, spec, steps)


def build(config: Config, spec: Spec, steps: int) -> GenerativeModel:
    feature, source = language.tokens(spec), spec.get("source")
    if source is None or feature.vocab is None:
        raise UserError("sequence to sequence needs pairs of source and target; the fix: --data.pairs separate")
    arch, vocab, end = config.network, feature.vocab, feature.end
    length, context = feature.shape[0] - 1, language.context(arch, feature.shape[0] - 1)
    real_dtype = jnp.promote_types(config.dtype, jnp.float32)
    dtypes = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
    encoder = Transformer(arch, vocab, source.shape[0], causal=False, dtypes=dtypes, readout=False)
    decoder = Transformer(arch, vocab, context, causal=True, dtypes=dtypes, cross=True)
    tx = config.optim.build(steps)

    def init(key: Key, base: Params | None = None) -> State:
        encoder_key, decoder_key = jax.random.split(key)
        read, said = jnp.zeros((1, source.shape[0]), jnp.int32), jnp.zeros((1, 1), jnp.int32)
        memory = jnp.zeros((1, source.shape[0], arch.width), dtypes["dtype"])
        segment = jnp.zeros(read.shape, jnp.int32)
        params = {
            "encoder": encoder.init(encoder_key, read, *places(read, None))["params"],
            "decoder": decoder.init(decoder_key, said, *places(said, end), None, None, memory, segment)["params"],
        }
        trained, frozen = adapters.start(config.adapter, key, base or params)
        return State(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            opt_state={"transformer": tx.init(trained)},
            ema=trained if config.ema else {},
            frozen=frozen,
        )

    def weights(trained: Params, state: State) -> Params:
        return adapters.merge(config.adapter, trained, state.frozen)

    def encode(params: Params, tokens: Array, keys: Array | None) -> tuple[Array, Array]:
        """(memory [B, S, D], its segments [B, S]) of sources [B, S]; from the first `end` on, and below 0, is padding."""
        padding = tokens < 0
        if end is not None:
            padding |= jnp.cumsum(tokens == end, axis=1) > 0
        segment = jnp.where(padding, PADDING, 0)
        position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
        memory, _ = encoder.apply({"params": params["encoder"]}, jnp.maximum(tokens, 0), segment, position, keys)
        return memory, segment

    def nats(params: Params, batch: Batch, keys: Array | None) -> tuple[Array, Array, Array, Array]:
        """-log p(token | the source, those before) [B, T], log Z, whether it is the likeliest, and how much each counts."""
        x = batch["tokens"]
        position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], x[:, 1:].shape)
        own, other = (None, None) if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
        memory = encode(params, batch["source"], own)
        variables = {"params": params["decoder"]}
        logits, _ = decoder.apply(variables, x[:, :-1], jnp.zeros_like(position), position, other, None, *memory)
        value, log_z = losses.cross_entropy(logits, x[:, 1:])
        right = (logits.argmax(-1) == x[:, 1:]).astype(real_dtype)
        return value, log_z, right, language.counted(batch, real_dtype)[:, 1:]

    def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"]) if arch.dropout else None

        def loss(params: Params) -> tuple[Array, Array]:
            value, log_z, _, weight = nats(weights(params, state), batch, keys)
            cross_entropy = language.token_mean(value, weight)
            return cross_entropy + config.z_loss * language.token_mean(jnp.square(log_z), weight), cross_entropy

        opt_state = state.opt_state["transformer"]
        params, opt_state, _, value, grads = core.descend(loss, state.params, opt_state, tx)
        ema = core.average(state.ema, params, config.ema, state.step) if config.ema else {}
        state = replace(state, step=state.step + 1, params=params, opt_state={"transformer": opt_state}, ema=ema)
        return state, {"loss": core.mean(value), "gradient": optax.tree.norm(grads)}

    def evaluate(state: State, batch: Batch, key: Key) -> Sums:
        value, _, right, weight = nats(weights(state.ema or state.params, state), batch, None)
        sums = language.token_sums(value, weight, batch)
        return core.total(sums | {"accuracy": ((right * weight).sum(), weight.sum())})

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
        params = weights(state.ema or state.params, state)
        memory = encode(params, asked, None)

        def read(tokens: Array, segment: Array, position: Array, cache: Any, begins: bool) -> Any:
            variables = {"params": params["decoder"]}
            return decoder.apply(variables, tokens, segment, position, None, cache, *memory)

        decoded = decoding.decode(
            read,
            lambda places: empty_cache(arch, len(asked), places, dtypes["dtype"]),
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
        init=init,
        update=update,
        evaluate=evaluate,
        test=evaluate,
        summarize=language.summarize,
        generate=generate,
        request=Request,
        protocol={name: {"tokens": "of targets"} for name in ("loss", "perplexity", "bits_per_byte", "accuracy")},
    )
