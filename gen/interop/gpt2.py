"""GPT-2 (Radford et al. 2019) in the format of Hugging Face's transformers: its config.json and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gen.config import Config
from gen.core import Array, Params
from gen.data.text import tokenizers
from gen.errors import UserError
from gen.families.language import LM, language, lm
from gen.networks.transformer import Architecture

GPT2: dict[str, Any] = {
    "positions": "learned",
    "norm": "layer",
    "activation": "gelu",
    "bias": True,
    "tied": True,
    "qk_norm": False,
    "logit_cap": None,
    "window": None,
}
"""Fields of the architecture that have the same value in every GPT-2, whatever its size."""
FIELDS: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""{field of config.json: values that describe a GPT-2}. Only model_type is required; the default is the first value."""
WHOLE = {
    "wte.weight": "embedding/embedding",
    "wpe.weight": "position/embedding",
    "ln_f.weight": "norm/scale",
    "ln_f.bias": "norm/bias",
}
"""{name of a tensor of GPT-2 outside the layers: path of the same parameter in a run}."""
LAYER = {
    "ln_1.weight": ("attention_norm/scale",),
    "ln_1.bias": ("attention_norm/bias",),
    "attn.c_attn.weight": ("attention/query/kernel", "attention/key/kernel", "attention/value/kernel"),
    "attn.c_attn.bias": ("attention/query/bias", "attention/key/bias", "attention/value/bias"),
    "attn.c_proj.weight": ("attention/out/kernel",),
    "attn.c_proj.bias": ("attention/out/bias",),
    "ln_2.weight": ("feed_forward_norm/scale",),
    "ln_2.bias": ("feed_forward_norm/bias",),
    "mlp.c_fc.weight": ("feed_forward/up/kernel",),
    "mlp.c_fc.bias": ("feed_forward/up/bias",),
    "mlp.c_proj.weight": ("feed_forward/down/kernel",),
    "mlp.c_proj.bias": ("feed_forward/down/bias",),
}
"""{name of a tensor in each layer of GPT-2: paths of the same parameters in a run, below "layers/"}. GPT-2 concatenates
several parameters along the last axis. A run stacks each parameter over the layers, on axis 0."""


def architecture(workdir: Path, config: Config) -> Architecture:
    """Returns the architecture of a run (the field `network` of its model) if it is the architecture of GPT-2.

    Raises: UserError that names the fields in which it differs, or if the run is an adapter or no language model.
    """
    model = config.model
    if config.finetune == "prompt":
        raise UserError(f"{workdir} is a learned prompt, which GPT-2's format can't hold; export its base")
    if config.finetune != "full":
        raise UserError(
            f"{workdir} is an adapter of another run; merge it first: python -m gen.runs.merge {workdir} DIR"
        )
    if type(model) is not LM:
        kind = type(model).__module__
        raise UserError(f"{workdir} can't be exported: it is a run of {kind}, but GPT-2 is a model of {lm.__name__}")
    arch = model.network
    # {field: (its value in this run, its value in GPT-2)}
    fields = {f"network.{name}": (getattr(arch, name), value) for name, value in GPT2.items()}
    # kv_heads equal to heads means the same as None.
    fields["network.kv_heads"] = (None if arch.kv_heads == arch.heads else arch.kv_heads, None)
    fields["fill_in_the_middle"] = (model.fill_in_the_middle, 0.0)
    differ = {name: values for name, values in fields.items() if values[0] != values[1]}
    if differ:
        ours, theirs = (", ".join(f"model.{name}={values[i]!r}" for name, values in differ.items()) for i in (0, 1))
        raise UserError(f"{workdir} can't be exported: GPT-2 has no {ours}; train it with {theirs}")
    return arch


def parse_config(config: object, path: Path) -> tuple[Architecture, int, int]:
    """Returns the architecture, the size of the vocabulary, and the length of the context in tokens.

    config: the content of a config.json. path: its file, for messages.

    Raises: UserError that names a field that is missing, or whose value no GPT-2 has.
    """
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    for name, values in FIELDS.items():
        # Only model_type must be given: transformers leaves out fields that have their default.
        found = config.get(name, None if name == "model_type" else values[0])
        if found not in values:
            raise UserError(f"{path}: {name} is {found!r}, but a run supports only {' or '.join(map(repr, values))}")

    def number(name: str) -> int:
        if type(value := config.get(name)) is not int or not 0 < value < 2**26:
            raise UserError(f"{path}: {name} is {value!r}; it must be an integer above 0 and below 2**26")
        return value

    dropout = config.get("resid_pdrop", 0.1)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UserError(f"{path}: resid_pdrop is {dropout!r}; it must be a number in [0, 1)")
    arch = Architecture(
        layers=number("n_layer"),
        width=number("n_embd"),
        heads=number("n_head"),
        hidden=None if config.get("n_inner") is None else number("n_inner"),
        dropout=float(dropout),
        **GPT2,
    )
    return arch, number("vocab_size"), number("n_positions")


def to_gpt2(params: Params) -> dict[str, Array]:
    """Returns {name in Hugging Face's GPT2Model: tensor}. params: a run's parameters. Matrices are [in, out] in both."""
    flat = cast(dict[str, Array], flatten_dict(params, sep="/"))
    tensors = {name: flat[leaf] for name, leaf in WHOLE.items()}
    for i in range(len(flat["layers/attention_norm/scale"])):
        for name, leaves in LAYER.items():
            tensors[f"h.{i}.{name}"] = jnp.concatenate([flat[f"layers/{leaf}"][i] for leaf in leaves], axis=-1)
    return tensors


def describe(arch: Architecture, tokens: language.Tokens) -> dict[str, dict[str, object]]:
    """Returns {file name: content} of the JSON files that transformers needs with the weights.

    tokens: vocabulary size, window length and end token of the run's data.
    """
    context = language.context(arch, tokens.length)
    special = {"bos_token_id": tokens.end, "eos_token_id": tokens.end}
    end = {"bos_token": tokenizers.END, "eos_token": tokenizers.END}
    return {
        "config.json": {
            "architectures": ["GPT2LMHeadModel"],
            **{name: values[0] for name, values in FIELDS.items()},
            "vocab_size": tokens.vocab,
            "n_positions": context,
            "n_embd": arch.width,
            "n_layer": arch.layers,
            "n_head": arch.heads,
            "n_inner": arch.hidden,
            "embd_pdrop": arch.dropout,
            "resid_pdrop": arch.dropout,
            # A run has no dropout of attention weights.
            "attn_pdrop": 0.0,
            "dtype": "float32",
            **special,
        },
        "generation_config.json": {**special, "pad_token_id": tokens.end},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json, whatever the model
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **end,
        },
    }


def from_gpt2(read: Callable[[str], np.ndarray], layers: int) -> Params:
    """Returns a run's parameters: the inverse of `to_gpt2`.

    read: name in Hugging Face's GPT2Model -> tensor. layers: number of layers.
    """
    flat = {leaf: jnp.asarray(read(name)) for name, leaf in WHOLE.items()}
    # A run stacks its layers, and has separate parameters for query, key and value.
    for name, leaves in LAYER.items():
        stacked = np.stack([read(f"h.{i}.{name}") for i in range(layers)])
        parts = np.split(stacked, len(leaves), axis=-1)
        flat |= {f"layers/{leaf}": jnp.asarray(part) for leaf, part in zip(leaves, parts, strict=True)}
    return unflatten_dict(flat, sep="/")
