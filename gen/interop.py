"""GPT-2 (Radford et al. 2019) as Hugging Face's transformers keep it, out of a run and into one:

    python -m gen.interop export RUN DIR
    python -m gen.interop import DIR RUN

Both are the same function of the tokens of one document. Of several in a row, a run looks at the last alone, from position
0 on, and transformers at all of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gen import checkpoint, language, run, sample
from gen.config import Config
from gen.core import Array, Dataset, Feature, Params, State, UserError, command
from gen.data import text, tokenizers
from gen.families import lm
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
"""What the architecture of a GPT-2 has, whatever its size."""
FIELDS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""What such a config.json says, in whichever of these words; the first if it says nothing."""
PREFIX, HEAD = "transformer.", "lm_head.weight"
WHOLE = {
    "wte.weight": "embedding/embedding",
    "wpe.weight": "position/embedding",
    "ln_f.weight": "norm/scale",
    "ln_f.bias": "norm/bias",
}
"""{tensor: parameter}"""
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
"""{tensor of each layer: parameters that are stacked over the layers, and side by side in the tensor's last axis}"""
BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which older versions kept with the weights
READ = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Export:
    """Write a run that is shaped like GPT-2 as a folder that transformers' from_pretrained loads."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    step: int | None = None
    """Checkpoint; None: the best."""
    trust: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A module outside gen that the run's config names and that may be imported."""


@dataclass(frozen=True)
class Import:
    """Make a run of a GPT-2 that transformers saved, to sample from or to start from."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The folder, with config.json, model.safetensors and a tokenizer."""
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory to make."""


def main() -> None:
    exporting, importing = tyro.conf.subcommand("export"), tyro.conf.subcommand("import")
    kind: Any = Annotated[Export, exporting] | Annotated[Import, importing]
    options = tyro.cli(kind, prog="python -m gen.interop")
    if isinstance(options, Export):
        step = export_run(options.run, options.folder, options.step, options.trust)
        print(f"{options.folder}: checkpoint {step} of {options.run}, for transformers' from_pretrained")
    else:
        count = import_run(options.folder, options.run)
        print(f"{options.run}: {count:,} parameters; next: python sample.py {options.run} --prompt ...")


# --- out ------------------------------------------------------------------------------------------------------------


def export_run(workdir: Path, folder: Path, step: int | None = None, trust: Sequence[str] = ()) -> int:
    """Write what a run samples from, its running average if it has one, as float32. The checkpoint's step.

    Raises: UserError with the fields in which the run is no GPT-2, or if there is something in `folder`.
    """
    config, model = sample.load(workdir, trust)
    arch = architecture(workdir, config)
    feature = language.tokens(run.read_spec(workdir))
    tokenizer = tokenizers.dump(tokenizers.of_run(workdir))
    step = sample.choose(workdir, config, step)
    with made(folder) as aside:
        state = sample.restored(workdir, model, step)
        tensors = to_gpt2((state.ema or state.params)["transformer"])
        arrays = {PREFIX + name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        run.write_bytes(aside / "model.safetensors", save(arrays, metadata={"format": "pt"}))
        run.write_bytes(aside / tokenizers.FILE, tokenizer)
        for name, content in described(arch, feature).items():
            run.write_json(aside / name, content)
    return step


def architecture(workdir: Path, config: Config) -> Architecture:
    """The architecture of a GPT-2. Raises: UserError with the fields in which the run is none."""
    model = config.model
    if config.finetune != "full":
        raise UserError(f"{workdir} is an adapter on another run; first: python -m gen.finetune merge {workdir} DIR")
    if type(model) is not lm.Config:
        kind = type(model).__module__
        raise UserError(f"{workdir} can't be exported: it is a run of {kind}, and GPT-2 is one of {lm.__name__}")
    arch = model.network
    fields = {f"network.{name}": (getattr(arch, name), value) for name, value in GPT2.items()}
    fields["network.kv_heads"] = (None if arch.kv_heads == arch.heads else arch.kv_heads, None)
    fields["fill_in_the_middle"] = (model.fill_in_the_middle, 0.0)
    differ = {name: values for name, values in fields.items() if values[0] != values[1]}
    if differ:
        ours, theirs = (", ".join(f"model.{name}={values[i]!r}" for name, values in differ.items()) for i in (0, 1))
        raise UserError(f"{workdir} can't be exported: GPT-2 has no {ours}; train it with {theirs}")
    return arch


def to_gpt2(params: Params) -> dict[str, Array]:
    """{tensor of GPT-2: its value}, by their names in Hugging Face's GPT2Model: matrices are [in, out] in both."""
    flat: Any = flatten_dict(params, sep="/")
    tensors = {name: flat[leaf] for name, leaf in WHOLE.items()}
    for i in range(len(flat["layers/attention_norm/scale"])):
        for name, leaves in LAYER.items():
            tensors[f"h.{i}.{name}"] = jnp.concatenate([flat[f"layers/{leaf}"][i] for leaf in leaves], axis=-1)
    return tensors


def described(arch: Architecture, feature: Feature) -> dict[str, dict[str, Any]]:
    """{file name: content}: what transformers want to know beside the weights."""
    context = language.context(arch, feature.shape[0] - 1)
    special = {"bos_token_id": feature.end, "eos_token_id": feature.end}
    end = {"bos_token": tokenizers.END, "eos_token": tokenizers.END}
    return {
        "config.json": {
            "architectures": ["GPT2LMHeadModel"],
            **{name: values[0] for name, values in FIELDS.items()},
            "vocab_size": feature.vocab,
            "n_positions": context,
            "n_embd": arch.width,
            "n_layer": arch.layers,
            "n_head": arch.heads,
            "n_inner": arch.hidden,
            "embd_pdrop": arch.dropout,
            "resid_pdrop": arch.dropout,
            "attn_pdrop": 0.0,
            "dtype": "float32",
            **special,
        },
        "generation_config.json": {**special, "pad_token_id": feature.end},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # as tokenizer.json has it, whatever the model is
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **end,
        },
    }


# --- in -------------------------------------------------------------------------------------------------------------


def import_run(folder: Path, workdir: Path) -> int:
    """Make a run of the GPT-2 in a folder, with one checkpoint at step 0. The number of its parameters.

    Raises: UserError with what is missing, damaged or no GPT-2, or if there is something in `workdir`.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; a model of the Hub comes by hf download NAME --local-dir DIR"
        )
    arch, vocab, context = described_by(_json(folder / "config.json"), folder / "config.json")
    tokenizer = read_tokenizer(folder)
    if (size := tokenizers.size(tokenizer)) > vocab:
        raise UserError(f"{folder}: its tokenizer has {size} tokens, and its model {vocab}; they don't belong together")
    spec = {"tokens": Feature((context + 1,), "int32", vocab=vocab, end=tokenizers.end(tokenizer))}
    model, data = lm.Config(network=arch), text.Config(name="text:", tokenizer=str(workdir), length=context)
    config = Config(model=model, data=data, steps=1)
    init = model.build(spec, config.steps).init
    none: Any = None  # it has no examples
    with made(workdir) as aside:
        shapes = jax.eval_shape(lambda key: to_gpt2(init(key).params["transformer"]), jax.random.key(0))
        params = from_gpt2(reader(folder, shapes), arch.layers)
        content = tokenizers.dump(tokenizer)
        facts = Dataset(spec, {}, sha256(content).hexdigest(), none, none, none, files={tokenizers.FILE: content})
        run.begin(aside, config, facts)
        run.write_reference(aside, {"tokens": np.zeros((0, context + 1), np.int32)})
        state = State(step=jnp.zeros((), jnp.int32), params={"transformer": params}, opt_state={})
        with checkpoint.saver(aside / "checkpoints", config.save, 0) as keep:
            keep(state, {"metrics_bytes": 0, "validation": {}})
    return sum(x.size for x in jax.tree.leaves(params))


def described_by(config: Any, path: Path) -> tuple[Architecture, int, int]:
    """The architecture, the vocabulary's size and the context that a config.json describes.

    Raises: UserError with the field that is missing, or that this is no GPT-2 by.
    """
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: it is no JSON object")
    for name, values in FIELDS.items():
        found = config.get(name, None if name == "model_type" else values[0])
        if found not in values:
            raise UserError(f"{path}: {name} is {found!r}, and a run's can be {' or '.join(map(repr, values))} only")

    def number(name: str) -> int:
        if type(value := config.get(name)) is not int or value < 1:
            raise UserError(f"{path}: {name} is {value!r}; it must be a number above 0")
        return value

    dropout = config.get("resid_pdrop", 0.1)
    if type(dropout) not in (int, float):
        raise UserError(f"{path}: resid_pdrop is {dropout!r}; it must be a number")
    arch = Architecture(
        layers=number("n_layer"),
        width=number("n_embd"),
        heads=number("n_head"),
        hidden=None if config.get("n_inner") is None else number("n_inner"),
        dropout=float(dropout),
        **GPT2,
    )
    return arch, number("vocab_size"), number("n_positions")


def from_gpt2(read: Callable[[str], np.ndarray], layers: int) -> Params:
    """The inverse of `to_gpt2`, tensor by tensor."""
    flat = {leaf: jnp.asarray(read(name)) for name, leaf in WHOLE.items()}
    for name, leaves in LAYER.items():
        stacked = np.stack([read(f"h.{i}.{name}") for i in range(layers)])
        parts = np.split(stacked, len(leaves), axis=-1)
        flat |= {f"layers/{leaf}": jnp.asarray(part) for leaf, part in zip(leaves, parts, strict=True)}
    return unflatten_dict(flat, sep="/")


def reader(folder: Path, shapes: Mapping[str, Any]) -> Callable[[str], np.ndarray]:
    """name -> float32 array, from the safetensors of a folder, with or without PREFIX before the names.

    Raises: UserError, at once if the tensors are not those in `shapes` or the head is untied, and on a file that is damaged.
    """
    found = {name.removeprefix(PREFIX): (file, name) for file in weights(folder) for name in _names(file)}
    found = {name: at for name, at in found.items() if not BUFFER.fullmatch(name)}
    if missing := [name for name in shapes if name not in found]:
        raise UserError(f"{folder} has no tensor {missing[0]}, nor {PREFIX}{missing[0]}; GPT-2 has one")
    if more := sorted(found.keys() - shapes.keys() - {HEAD}):
        raise UserError(f"{folder} has a tensor {more[0]}, and GPT-2 as a causal language model has none")

    def read(name: str) -> np.ndarray:
        file, full = found[name]
        shape = shapes["wte.weight" if name == HEAD else name].shape
        with _opened(file) as tensors:
            kept = tensors.get_slice(full)
            if tuple(kept.get_shape()) != shape:
                raise UserError(f"{file}: {full} has shape {tuple(kept.get_shape())}, by config.json it has {shape}")
            if (dtype := kept.get_dtype()) not in READ:
                raise UserError(
                    f"{file}: {full} is of {dtype}; it must be one of {', '.join(READ)}: save it unquantized"
                )
            return tensors.get_tensor(full).astype(np.float32, copy=False)

    if HEAD in found and not np.array_equal(read(HEAD), read("wte.weight")):
        raise UserError(f"{folder}: {HEAD} is not wte.weight, and GPT-2 reads its logits with that")
    return read


def weights(folder: Path) -> list[Path]:
    """The safetensors of a model, one file or those that an index names. Raises: UserError if there are none."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(_json(index)["weight_map"].values()))
            assert all(Path(name).name == name for name in names)
        except (AssertionError, AttributeError, KeyError, TypeError):
            raise UserError(f"{index} is damaged: it has no weight_map to files beside it") from None
        return [folder / name for name in names]
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} has its weights as {pickles[0]} only, a pickle, and to read one is to run what is in it; if you trust"
            " it: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER) writes safetensors"
        )
    raise UserError(f"{folder} has no weights: neither {single.name} nor {index.name}")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of tokenizer.json, or of vocab.json and merges.txt. Raises: UserError if there is none, or it is none
    that gen can use."""
    if (folder / tokenizers.FILE).exists():
        return tokenizers.of_run(folder)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise UserError(f"{folder} has no tokenizer: neither {tokenizers.FILE}, nor {vocab.name} and {merges.name}")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{vocab} and {merges.name} are no byte pairs: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizers.load(tokenizers.dump(tokenizer), str(vocab))


# --- files ----------------------------------------------------------------------------------------------------------


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder aside to write in, which becomes `folder` if nothing is raised. Raises: UserError if something is there."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another, or remove it")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made: {error.strerror}") from None
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors: {error}") from None


def _names(file: Path) -> list[str]:
    with _opened(file) as tensors:
        return list(tensors.keys())


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


if __name__ == "__main__":
    command(main)
