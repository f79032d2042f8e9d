"""GPT-2 (Radford et al. 2019) as Hugging Face's transformers keep it, out of a run and into one:

    python -m gen.interop export RUN DIR
    python -m gen.interop import DIR RUN

Both are the same function of the tokens of one document. Of several in a row, a run looks at the last alone, from position
0 on, and transformers at all of them.
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
from gen.interop.gpt2 import architecture, described, described_by, from_gpt2, to_gpt2
from gen.runs import checkpoint, directory, trained

PREFIX, HEAD = "transformer.", "lm_head.weight"
BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which older versions kept with the weights
READ = ("F32", "F16", "BF16")


def export_run(workdir: Path, folder: Path, step: int | None = None, trust: Sequence[str] = ()) -> int:
    """Write what a run samples from, its running average if it has one, as float32. The checkpoint's step.

    Raises: UserError with the fields in which the run is no GPT-2, or if there is something in `folder`.
    """
    config, model = trained.load_model(workdir, trust)
    arch = architecture(workdir, config)
    tokens = language.tokens(directory.read_spec(workdir))
    tokenizer = tokenizers.dump(tokenizers.of_run(workdir))
    step = trained.choose_step(workdir, config, step)
    with create_folder(folder) as aside:
        state = trained.restore_state(workdir, model, step)
        tensors = to_gpt2((state.ema or state.params)["transformer"])
        arrays = {PREFIX + name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
        files.write_bytes(aside / "model.safetensors", save(arrays, metadata={"format": "pt"}))
        files.write_bytes(aside / tokenizers.FILE, tokenizer)
        for name, content in described(arch, tokens).items():
            files.write_json(aside / name, content)
    return step


def import_run(folder: Path, workdir: Path) -> int:
    """Make a run of the GPT-2 in a folder, with one checkpoint at step 0. The number of its parameters.

    Raises: UserError with what is missing, damaged or no GPT-2, or if there is something in `workdir`.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; a model of the Hub comes by hf download NAME --local-dir DIR"
        )
    arch, vocab, context = described_by(_json(folder / "config.json"), folder / "config.json")
    if (there := sum(len(_names(file)) for file in weights(folder))) < arch.layers:
        raise UserError(f"{folder} has {there} tensors, too few for the {arch.layers} layers of its config.json")
    tokenizer = read_tokenizer(folder)
    if (size := tokenizers.size(tokenizer)) > vocab:
        raise UserError(f"{folder}: its tokenizer has {size} tokens, and its model {vocab}; they don't belong together")
    spec = {"tokens": Feature((context + 1,), "int32", vocab=vocab, end=tokenizers.end(tokenizer))}
    model, data = LM(network=arch), Text(name="text:", tokenizer=str(workdir), length=context)
    config = Config(model=model, data=data, steps=1)
    init = model.build(spec, config.steps).init
    none: Any = None  # it has no examples
    with create_folder(workdir) as aside:
        shapes = jax.eval_shape(lambda key: to_gpt2(init(key).params["transformer"]), jax.random.key(0))
        params = from_gpt2(reader(folder, shapes), arch.layers)
        content = tokenizers.dump(tokenizer)
        facts = Dataset(spec, {}, sha256(content).hexdigest(), none, none, none, files={tokenizers.FILE: content})
        directory.begin_run(aside, config, facts)
        directory.write_reference(aside, {"tokens": np.zeros((0, context + 1), np.int32)})
        state = State(step=jnp.zeros((), jnp.int32), params={"transformer": params}, opt_state={})
        with checkpoint.saver(aside / "checkpoints", config.save, 0) as keep:
            keep(state, {"metrics_bytes": 0, "validation": {}})
    return sum(x.size for x in jax.tree.leaves(params))


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
            assert all(Path(name).name == name not in ("", "..") for name in names)
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
        return files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} can't be read: No such file or directory") from None
