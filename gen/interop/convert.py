"""Converts runs to GPT-2 models (Radford et al. 2019) in the files of Hugging Face's transformers, and such models to runs:

    python -m gen.interop export RUN DIR
    python -m gen.interop import DIR RUN

For the tokens of one document, the run and the model in transformers compute the same logits up to rounding. They differ if a row
holds several documents: a run attends only to the current document, whose positions start at 0. transformers attends to all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gen import files
from gen.config import Config
from gen.core import Dataset, Feature, State
from gen.data.text import Text, tokenizers
from gen.errors import UserError
from gen.families.language import LM, language
from gen.files import create_folder
from gen.interop.gpt2 import architecture, describe, from_gpt2, parse_config, to_gpt2
from gen.runs import checkpoint, directory, trained
from gen.runtime import backend

PREFIX, HEAD = "transformer.", "lm_head.weight"
"""Prefix of the tensors' names, which some files have and others lack, and name of the matrix that gives the logits."""
BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which older versions saved with the weights
DTYPES = ("F32", "F16", "BF16")
"""Dtypes of tensors that can be imported, as safetensors names them."""
Read = Callable[[str], np.ndarray]
"""Name of a tensor -> its value, float32."""


def export_run(workdir: Path, folder: Path, step: int | None = None, trust: Sequence[str] = ()) -> int:
    """Writes a run to `folder` as a GPT-2 for transformers. Returns the step of the exported checkpoint.

    The files are the weights as float32, the config and the tokenizer. The weights are the moving averages of the
    parameters if the run has them, as for sampling. step: the checkpoint to export; None: the best. trust: modules
    outside gen that the run's config may name.

    Raises: UserError that names the fields in which the run differs from GPT-2, or if `folder` is not empty.
    """
    run = trained.open_run(workdir, trust)
    arch = architecture(workdir, run.config)
    tokens = language.tokens(run.spec)
    tokenizer = tokenizers.dump(tokenizers.load_folder(workdir))
    step = run.choose_step(step)
    # Everything that can be wrong with the run was checked before. The folder appears only after all files are written.
    with create_folder(folder) as aside:
        state = run.restore(step)
        tensors = to_gpt2((state.ema or state.params)["transformer"])
        arrays = {PREFIX + name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        files.write_bytes(aside / "model.safetensors", save(arrays, metadata={"format": "pt"}))
        files.write_bytes(aside / tokenizers.FILE, tokenizer)
        for name, content in describe(arch, tokens).items():
            files.write_json(aside / name, content)
    return step


def import_run(folder: Path, workdir: Path) -> int:
    """Makes a run directory `workdir` from the GPT-2 in `folder`, with one checkpoint at step 0.

    Returns the number of parameters.

    Raises: UserError that names what is missing, damaged, or not GPT-2, or if `workdir` is not empty.
    """
    backend.start_devices()
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; to get a model of the Hub: hf download NAME --local-dir DIR"
        )
    arch, vocab, context = parse_config(_json(folder / "config.json"), folder / "config.json")
    # A damaged config.json may name millions of layers, whose shapes alone would fill the memory. So the number is checked first.
    if (tensors := sum(len(_names(file)) for file in weights(folder))) < arch.layers:
        raise UserError(f"{folder} has {tensors} tensors, too few for the {arch.layers} layers of its config.json")
    tokenizer = read_tokenizer(folder)
    if (size := tokenizers.size(tokenizer)) > vocab:
        raise UserError(f"{folder}: its tokenizer has {size} tokens, but its model {vocab}; they don't belong together")
    spec = {"tokens": Feature((context + 1,), "int32", vocab=vocab, end=tokenizers.end(tokenizer))}
    model, data = LM(network=arch), Text(name="text:", tokenizer=str(workdir), length=context)
    config = Config(model=model, data=data, steps=1)
    init = model.build(spec, config.steps).init
    none: Any = None  # an imported run has no examples
    with create_folder(workdir) as aside:
        # The names of the tensors are checked against those of this model before any tensor is read.
        shapes = jax.eval_shape(lambda key: to_gpt2(init(key).params["transformer"]), jax.random.key(0))
        params = from_gpt2(reader(folder, shapes), arch.layers)
        content = tokenizers.dump(tokenizer)
        facts = Dataset(spec, {}, sha256(content).hexdigest(), none, none, none, files={tokenizers.FILE: content})
        directory.begin_run(aside, config, facts)
        directory.write_reference(aside, {"tokens": np.zeros((0, context + 1), np.int32)})
        # No optimizer state: a run that starts from this one begins with its own.
        state = State(step=jnp.zeros((), jnp.int32), params={"transformer": params}, opt_state={})
        with checkpoint.saver(aside / "checkpoints", config.save, 0) as keep:
            keep(state)
    return sum(x.size for x in jax.tree.leaves(params))


def reader(folder: Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Read:
    """Returns a function that reads a tensor of the safetensors files in `folder` as float32, by its name.

    The names that the function takes have no prefix "transformer.". In the files they may have it. shapes: {name
    without prefix: shape and dtype} of all tensors that this GPT-2 must have.

    Raises: UserError if a tensor is missing or unknown, or if lm_head.weight differs from the embedding. The returned
    function raises UserError if a tensor is damaged, or has another shape or an unknown dtype.
    """
    found = {name.removeprefix(PREFIX): (file, name) for file in weights(folder) for name in _names(file)}
    found = {name: place for name, place in found.items() if not BUFFER.fullmatch(name)}
    if missing := [name for name in shapes if name not in found]:
        raise UserError(f"{folder} has no tensor {missing[0]}, nor {PREFIX}{missing[0]}; a GPT-2 has one")
    if more := sorted(found.keys() - shapes.keys() - {HEAD}):
        raise UserError(f"{folder} has a tensor {more[0]}; GPT-2 as a causal language model has none")

    def read(name: str) -> np.ndarray:
        file, full = found[name]
        return _read_tensor(file, full, shapes["wte.weight" if name == HEAD else name].shape)

    # Files may hold the head although it is tied to the embedding: then both must be equal.
    if HEAD in found and not np.array_equal(read(HEAD), read("wte.weight")):
        raise UserError(f"{folder}: {HEAD} differs from wte.weight, but GPT-2 computes its logits with wte.weight")
    return read


def _read_tensor(file: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    with _open_safetensors(file) as tensors:
        # The header is checked before the numbers are read: a wrong file could hold far too many.
        kept = tensors.get_slice(name)
        if tuple(kept.get_shape()) != shape:
            raise UserError(f"{file}: {name} has shape {tuple(kept.get_shape())}, but by config.json {shape}")
        if (dtype := kept.get_dtype()) not in DTYPES:
            raise UserError(
                f"{file}: {name} has dtype {dtype}; it must be one of {', '.join(DTYPES)}: save it unquantized"
            )
        return tensors.get_tensor(name).astype(np.float32, copy=False)


def weights(folder: Path) -> list[Path]:
    """Returns the safetensors files of a model: the one file, or the files that an index names.

    Raises: UserError if there is neither, or if the index is damaged.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(files.read_json(index)["weight_map"].values()))
            # An index from elsewhere must not lead out of its folder.
            assert all(Path(name).name == name not in ("", "..") for name in names)
        except (AssertionError, AttributeError, KeyError, TypeError):
            raise UserError(f"{index} is damaged: it has no weight_map to files in its folder") from None
        return [folder / name for name in names]
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} has its weights only as {pickles[0]}, a pickle; reading a pickle runs the code in it. If you trust "
            "it: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER) writes safetensors"
        )
    raise UserError(f"{folder} has no weights: neither {single.name} nor {index.name}")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of tokenizer.json, or if there is no such file, of vocab.json and merges.txt.

    Raises: UserError if there is no tokenizer, or if gen cannot use it.
    """
    if (folder / tokenizers.FILE).exists():
        return tokenizers.load_folder(folder)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise UserError(f"{folder} has no tokenizer: neither {tokenizers.FILE}, nor {vocab.name} and {merges.name}")
    for path in (vocab, merges):
        files.check_regular(path)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{vocab} and {merges.name} are not a byte-pair encoding: {error}") from None
    # The two files do not hold these settings. GPT-2 encodes bytes, without a space before the first word.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizers.load(tokenizers.dump(tokenizer), str(vocab))


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    try:
        files.check_regular(file)
        with safe_open(file, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors: {error}") from None


def _names(file: Path) -> list[str]:
    with _open_safetensors(file) as tensors:
        return list(tensors.keys())


def _json(path: Path) -> object:
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} can't be read: No such file or directory") from None
