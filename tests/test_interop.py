"""Import and export of GPT-2, compared with its file layout, with its formula in numpy, with a round trip, and with transformers."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gen import files as gen_files
from gen import sample
from gen.config import Config
from gen.core import Dataset, Family, Feature, State
from gen.data.text import Text, tokenizers
from gen.errors import UserError
from gen.families.language import LM, MLM, lm
from gen.interop import __main__
from gen.interop.convert import export_run, import_run
from gen.networks.positions import PADDING, locate_tokens
from gen.networks.transformer import Architecture, Transformer
from gen.runs import checkpoint, directory, trained

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom; naïve, 1859.\n"
GPT2 = Architecture(layers=3, width=32, heads=4, hidden=48, dropout=0.2)
CONTEXT, STEP = 64, 7


def tokenizer_of(kind: str) -> tokenizers.Tokenizer:
    return tokenizers.bpe([TEXT], 280) if kind == "bpe" else tokenizers.character(TEXT)


def weights(shapes: Any, seed: int) -> Any:
    """Draws noise of these shapes, around 1 for scales, so that no two arrays are equal and none is 0.

    Positions get more noise, so that generated text keeps changing.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        noise = (1 if "position" in name else 0.2) * rng.standard_normal(x.shape)
        return jnp.asarray(noise + ("scale" in name), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_run(workdir: Path, model: Family, kind: str = "bpe", saved: bool = True, **fields: Any) -> State | None:
    """Makes a run directory with a checkpoint of random weights. Returns the state."""
    workdir.mkdir(parents=True)
    tokenizer = tokenizer_of(kind)
    vocab, end = tokenizers.size(tokenizer), tokenizers.end(tokenizer)
    spec = {"tokens": Feature((CONTEXT + 1,), "int32", vocab=vocab, end=end)}
    never: Any = None
    files = {"tokenizer.json": tokenizers.dump(tokenizer)}
    config = Config(model=model, data=Text(length=CONTEXT), steps=10, **fields)
    directory.begin_run(workdir, config, Dataset(spec, {}, "digest", never, never, never, files=files))
    if not saved:
        return None
    shapes = jax.eval_shape(model.build(spec, 10).init, jax.random.key(0))
    state = State(jnp.int32(STEP), weights(shapes.params, 1), {}, ema=weights(shapes.ema, 2))
    with checkpoint.saver(workdir / "checkpoints", config.save, 0) as save:
        save(state)
    return state


def opened(workdir: Path) -> tuple[Config, Any, State]:
    """Returns the config, model and state of a run, as sampling loads them."""
    run = trained.open_run(workdir)
    return run.config, run.model, run.restore(run.choose_step())


def logits(workdir: Path, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits of the run's network, float32 [B, T, V]."""
    config, _, state = opened(workdir)
    assert isinstance(config.model, LM)
    feature = directory.read_spec(workdir)["tokens"]
    assert feature.vocab is not None
    network = Transformer(
        config.model.network, feature.vocab, feature.shape[0] - 1, True, {"dtype": "float32", "param_dtype": "float32"}
    )
    params = {"params": (state.ema or state.params)["transformer"]}
    read = jax.jit(lambda params, x: network.apply(params, x, *locate_tokens(x, feature.end))[0])  # pyright: ignore
    return np.asarray(read(params, jnp.asarray(tokens)))


def document(workdir: Path, rows: int = 2, places: int = CONTEXT, seed: int = 0) -> np.ndarray:
    """Draws one document of random tokens per row: int32 [rows, places]."""
    feature = directory.read_spec(workdir)["tokens"]
    assert feature.vocab is not None and feature.end is not None
    tokens = np.random.default_rng(seed).integers(0, feature.vocab - 1, (rows, places))
    tokens += tokens >= feature.end
    tokens[:, 0] = feature.end
    return tokens.astype(np.int32)


def by_formula(tensors: dict[str, np.ndarray], heads: int, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits of GPT-2 in float64, from tensors by their documented names. Radford et al. 2019; tanh form of GELU."""
    p = {name.removeprefix("transformer."): value.astype(np.float64) for name, value in tensors.items()}
    linear = lambda x, name: x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        batch, length, width = x.shape
        split = lambda y: y.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)
        q, k, v = map(split, np.split(linear(x, f"{name}.c_attn"), 3, axis=-1))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(width // heads)
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return linear(y.transpose(0, 2, 1, 3).reshape(batch, length, width), f"{name}.c_proj")

    def feed_forward(x: np.ndarray, name: str) -> np.ndarray:
        x = linear(x, f"{name}.c_fc")
        return linear(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), f"{name}.c_proj")

    x = p["wte.weight"][tokens] + p["wpe.weight"][None, : tokens.shape[1]]
    for i in range(sum(name.endswith("ln_1.weight") for name in p)):
        x = x + attention(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn")
        x = x + feed_forward(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp")
    return norm(x, "ln_f") @ p["wte.weight"].T


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    workdir = tmp_path_factory.mktemp("interop") / "run"
    state = write_run(workdir, LM(network=GPT2))
    assert state is not None
    return workdir, state


@pytest.fixture(scope="module")
def exported(ours: tuple[Path, State]) -> Path:
    folder = ours[0].parent / "exported"
    assert export_run(ours[0], folder) == STEP
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "folder"))


def resaved(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Applies `change` to the folder's tensors, by their names without prefix, and saves the result."""
    path = folder / "model.safetensors"
    save_file(change({name.removeprefix("transformer."): x for name, x in load_file(path).items()}), path)


def described(folder: Path, **changes: Any) -> None:
    """Changes the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tensors_have_the_names_and_shapes_of_gpt2(exported, ours):
    d, f, vocab = 32, 48, directory.read_spec(ours[0])["tokens"].vocab
    layer = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.c_attn.weight": (d, 3 * d),
        "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, f),
        "mlp.c_fc.bias": (f,),
        "mlp.c_proj.weight": (f, d),
        "mlp.c_proj.bias": (d,),
    }
    whole = {"wte.weight": (vocab, d), "wpe.weight": (CONTEXT, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    whole |= {f"h.{i}.{name}": shape for i in range(3) for name, shape in layer.items()}
    tensors = load_file(exported / "model.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == {f"transformer.{name}": s for name, s in whole.items()}
    assert {x.dtype.name for x in tensors.values()} == {"float32"}
    with safe_open(exported / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in exported.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_an_export_computes_the_formula_of_gpt2(exported, ours):
    tokens = document(ours[0])
    expected = by_formula(load_file(exported / "model.safetensors"), 4, tokens)
    assert expected.std() > 1
    np.testing.assert_allclose(logits(ours[0], tokens), expected, rtol=0, atol=1e-4)


def test_the_exported_config_describes_the_model(exported, ours):
    config = json.loads((exported / "config.json").read_text())
    end = directory.read_spec(ours[0])["tokens"].end
    expected = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 32,
        "n_inner": 48,
        "n_positions": CONTEXT,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "resid_pdrop": 0.2,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    assert {name: config[name] for name in expected} == expected
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == end


def test_the_moving_average_is_exported_if_there_is_one(tmp_path):
    state = write_run(tmp_path / "run", LM(network=GPT2, ema=0.9))
    assert state is not None
    export_run(tmp_path / "run", tmp_path / "out", step=STEP)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    average, parameter = (x["transformer"]["norm"]["scale"] for x in (state.ema, state.params))
    np.testing.assert_array_equal(tensors["transformer.ln_f.weight"], average)
    assert not np.array_equal(average, parameter)


def test_bfloat16_parameters_are_exported_as_float32(tmp_path):
    state = write_run(tmp_path / "run", LM(network=GPT2, param_dtype="bfloat16"))
    assert state is not None
    export_run(tmp_path / "run", tmp_path / "out")
    kept = load_file(tmp_path / "out" / "model.safetensors")["transformer.wpe.weight"]
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, state.params["transformer"]["position"]["embedding"].astype(jnp.float32))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"positions": "rotary"}, ["network.positions='rotary'", "network.positions='learned'"]),
        ({"positions": "relative"}, ["network.positions='relative'"]),
        ({"norm": "rms"}, ["network.norm='rms'"]),
        ({"activation": "swiglu"}, ["network.activation='swiglu'"]),
        ({"kv_heads": 2}, ["network.kv_heads=2", "network.kv_heads=None"]),
        ({"bias": False}, ["network.bias=False"]),
        ({"tied": False}, ["network.tied=False"]),
        ({"qk_norm": True}, ["network.qk_norm=True"]),
        ({"logit_cap": 30.0}, ["network.logit_cap=30.0"]),
        ({"window": 16}, ["network.window=16"]),
        ({"norm": "rms", "window": 16}, ["network.norm='rms', model.network.window=16"]),
    ],
)
def test_the_fields_that_gpt2_does_not_have_are_named(changes, named, tmp_path):
    write_run(tmp_path / "run", LM(network=replace(GPT2, **changes)), saved=False)
    with pytest.raises(UserError, match="GPT-2 has no model") as error:
        export_run(tmp_path / "run", tmp_path / "out")
    assert all(f"model.{name}" in str(error.value) for name in named)
    assert str(error.value).count("network.") == 2 * len(changes)
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(tmp_path):
    write_run(tmp_path / "fim", LM(network=GPT2, fill_in_the_middle=0.5), saved=False)
    with pytest.raises(UserError, match=r"GPT-2 has no model\.fill_in_the_middle=0\.5"):
        export_run(tmp_path / "fim", tmp_path / "out")
    write_run(tmp_path / "masked", MLM(network=GPT2), saved=False)
    with pytest.raises(
        UserError,
        match=r"is a run of gen\.families\.language\.mlm, but GPT-2 is a model of gen\.families\.language\.lm",
    ):
        export_run(tmp_path / "masked", tmp_path / "out")
    write_run(tmp_path / "lora", LM(network=GPT2), saved=False, init_from="base", finetune="lora")
    with pytest.raises(UserError, match=r"is an adapter of another run; merge it first: python -m gen\.runs\.merge"):
        export_run(tmp_path / "lora", tmp_path / "out")


def test_one_kv_head_per_head_is_gpt2(tmp_path):
    write_run(tmp_path / "run", LM(network=replace(GPT2, kv_heads=4)))
    export_run(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_nothing_is_overwritten(ours, folder, tmp_path):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="exists already; choose another"):
        export_run(ours[0], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UserError, match="exists already"):
        import_run(folder, ours[0])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_run(ours[0], tmp_path / "file")
    with pytest.raises(UserError, match="can't be made"):
        export_run(ours[0], tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    export_run(ours[0], tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_step_that_is_not_there_is_refused(ours, tmp_path):
    with pytest.raises(UserError, match=r"there is no such checkpoint; existing checkpoints: 7"):
        export_run(ours[0], tmp_path / "out", step=3)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(ours, exported, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gen_files, "write_json", full)
    monkeypatch.setattr("gen.runs.directory.write_json", full)
    for work in (
        lambda: export_run(ours[0], tmp_path / "out"),
        lambda: import_run(exported, tmp_path / "out"),
    ):
        with pytest.raises(OSError, match="No space left"):
            work()
        assert not list(tmp_path.iterdir())


def test_export_and_import_give_the_same_run(exported, ours, tmp_path):
    count = import_run(exported, tmp_path / "again")
    config, _, state = opened(tmp_path / "again")
    before = ours[1].params["transformer"]
    assert jax.tree.structure(state.params["transformer"]) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, state.params["transformer"], before)
    assert count == sum(x.size for x in jax.tree.leaves(before))
    assert isinstance(config.model, LM)
    assert config.model.network == GPT2
    assert directory.read_spec(tmp_path / "again") == directory.read_spec(ours[0])
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (ours[0] / "tokenizer.json").read_bytes()
    tokens = document(ours[0])
    np.testing.assert_array_equal(logits(tmp_path / "again", tokens), logits(ours[0], tokens))


def test_the_commands_import_sample_and_export(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["interop", "import", str(exported), str(tmp_path / "again")])
    __main__.main()
    assert "next: python sample.py" in capsys.readouterr().out
    arguments = [
        str(tmp_path / "again"),
        "--prompt",
        "It was",
        "--n",
        "2",
        "--tokens",
        "5",
        "--out",
        str(tmp_path / "out"),
    ]
    assert sample.main(arguments) == 0
    assert (tmp_path / "out" / "samples.txt").read_text().startswith("It was")
    monkeypatch.setattr(
        "sys.argv", ["interop", "export", str(tmp_path / "again"), str(tmp_path / "back"), "--step", "0"]
    )
    __main__.main()
    assert "checkpoint 0" in capsys.readouterr().out
    first, last = (load_file(path / "model.safetensors") for path in (exported, tmp_path / "back"))
    jax.tree.map(np.testing.assert_array_equal, first, last)


def with_head(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"transformer.{name}": x for name, x in tensors.items()} | {"lm_head.weight": tensors["wte.weight"]}


def with_buffers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mask = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.uint8))
    buffers = {f"h.{i}.attn.bias": mask for i in range(3)}
    return tensors | buffers | {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(3)}


@pytest.mark.parametrize("change", [dict, with_head, with_buffers])
def test_prefix_head_and_buffers_do_not_matter(change, folder, ours, tmp_path):
    resaved(folder, change)
    import_run(folder, tmp_path / "run")
    _, _, state = opened(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state.params, ours[1].params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(dtype, folder, ours, tmp_path):
    resaved(folder, lambda tensors: {name: x.astype(jnp.dtype(dtype)) for name, x in tensors.items()})
    import_run(folder, tmp_path / "run")
    _, _, state = opened(tmp_path / "run")

    def check(found: Any, before: Any) -> None:
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, before.astype(dtype).astype(np.float32))

    jax.tree.map(check, state.params, ours[1].params)


def sharded(folder: Path) -> list[str]:
    """Divides the folder's tensors into two files and an index. Returns the names in the second file."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names[1::2]


def test_shards_are_read_by_their_index(folder, ours, tmp_path):
    sharded(folder)
    import_run(folder, tmp_path / "run")
    _, _, state = opened(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state.params, ours[1].params)


def old_tokenizer(folder: Path) -> None:
    """Replaces tokenizer.json by vocab.json and merges.txt."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer.json").unlink()


def test_a_tokenizer_in_two_files_is_the_same(folder, ours, tmp_path):
    old_tokenizer(folder)
    import_run(folder, tmp_path / "run")
    before, after = tokenizers.load_folder(ours[0]), tokenizers.load_folder(tmp_path / "run")
    found = tokenizers.encode(after, TEXT)
    assert found == tokenizers.encode(before, TEXT)
    assert len(found) < len(TEXT)
    assert tokenizers.decode(after, found) == TEXT
    assert directory.read_spec(tmp_path / "run") == directory.read_spec(ours[0])


def test_a_vocabulary_may_be_padded(folder, ours, tmp_path):
    vocab = directory.read_spec(ours[0])["tokens"].vocab
    assert vocab is not None
    described(folder, vocab_size=vocab + 9)
    resaved(folder, lambda x: x | {"wte.weight": np.pad(x["wte.weight"], ((0, 9), (0, 0)))})
    import_run(folder, tmp_path / "run")
    assert directory.read_spec(tmp_path / "run")["tokens"].vocab == vocab + 9


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: resaved(folder, lambda tensors: {k: x for k, x in tensors.items() if k != name})


def put(name: str, make: Callable[[np.ndarray], np.ndarray], source: str | None = None) -> Callable[[Path], None]:
    return lambda folder: resaved(folder, lambda tensors: tensors | {name: make(tensors[source or name])})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def outside(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": "../x.safetensors"}}))


def zero_byte(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys("abc", "x\0y")}))


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizers.dump(tokenizers.bpe([TEXT * 3, "hello " * 9], 320)))


def no_end(folder: Path) -> None:
    old_tokenizer(folder)
    path = folder / "vocab.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|other|>"))


def no_merges(folder: Path) -> None:
    old_tokenizer(folder)
    (folder / "merges.txt").write_text("nonsense\n")


def field(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: described(folder, **changes)


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (field(model_type="llama"), r"model_type is 'llama', but .* only 'gpt2'"),
        (field(activation_function="relu"), r"activation_function is 'relu', but .* 'gelu_new' or 'gelu_pytorch_tanh'"),
        (field(activation_function="gelu"), r"activation_function is 'gelu'"),
        (field(layer_norm_epsilon=1e-6), r"layer_norm_epsilon is 1e-06"),
        (field(scale_attn_weights=False), r"scale_attn_weights is False"),
        (field(scale_attn_by_inverse_layer_idx=True), r"scale_attn_by_inverse_layer_idx is True"),
        (field(add_cross_attention=True), r"add_cross_attention is True"),
        (field(tie_word_embeddings=False), r"tie_word_embeddings is False"),
        (field(n_layer=None), r"n_layer is None; it must be an integer above 0"),
        (field(n_positions="64"), r"n_positions is '64'"),
        (field(n_inner=-1), r"n_inner is -1"),
        (field(resid_pdrop="none"), r"resid_pdrop is 'none'"),
        (field(n_head=5), r"width 32 can't be shared by 5 heads"),
        (field(n_layer=4), r"has no tensor h\.3\.\w+\.\w+"),
        (field(n_layer=2), r"has a tensor h\.2\.attn\.c_attn\.bias"),
        (field(n_positions=32), r"transformer\.wpe\.weight has shape \(64, 32\), but by config\.json \(32, 32\)"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json is damaged: it is not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (unlink("config.json"), r"config\.json can't be read: No such file"),
        (drop("h.1.mlp.c_fc.weight"), r"has no tensor h\.1\.mlp\.c_fc\.weight, nor transformer\.h\.1\.mlp"),
        (put("h.1.mlp.c_fc.weight", np.transpose), r"h\.1\.mlp\.c_fc\.weight has shape \(48, 32\), .* \(32, 48\)"),
        (
            put("h.0.ln_1.bias", lambda x: x.astype(np.int8)),
            r"h\.0\.ln_1\.bias has dtype I8; it must be one of F32, F16, BF16",
        ),
        (put("score.weight", np.copy, "ln_f.bias"), r"has a tensor score\.weight; GPT-2 .* has none"),
        (put("lm_head.weight", lambda x: x + 1, "wte.weight"), r"lm_head\.weight differs from wte\.weight"),
        (put("lm_head.weight", np.copy, "wpe.weight"), r"lm_head\.weight has shape"),
        (cut_off, r"model\.safetensors can't be read as safetensors"),
        (unlink("model.safetensors"), r"has no weights: neither model\.safetensors nor"),
        (pickled, r"weights only as pytorch_model\.bin, a pickle; .*save_pretrained\(OTHER\) writes safetensors"),
        (without_a_shard, r"model-00002-of-00002\.safetensors can't be read"),
        (outside, r"index\.json is damaged: it has no weight_map to files in its folder"),
        (zero_byte, r"can't be read: embedded null byte"),
        (unlink("tokenizer.json"), r"has no tokenizer: neither tokenizer\.json, nor vocab\.json and merges\.txt"),
        (another_tokenizer, r"its tokenizer has \d+ tokens, but its model \d+"),
        (no_end, r"vocab\.json has no token <\|endoftext\|>"),
        (no_merges, r"vocab\.json and merges\.txt are not a byte-pair encoding"),
    ],
)
def test_a_folder_that_is_not_gpt2_is_refused_with_the_reason(damage, message, folder, tmp_path):
    damage(folder)
    with pytest.raises(UserError) as error:
        import_run(folder, tmp_path / "run")
    assert re.search(message, str(error.value))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="none: there is no such folder"):
        import_run(tmp_path / "none", tmp_path / "run")


def greedy(workdir: Path, prompt: np.ndarray, n: int) -> list[int]:
    _, model, state = opened(workdir)
    request = lm.Request(n=1, tokens=n, temperature=0)
    made = jax.jit(lambda state: model.generate(state, jax.random.key(0), {"prompt": prompt}, request))(state)
    return [token for token in made["samples"][0].tolist() if token != PADDING]


def compared(workdir: Path, theirs: Any) -> None:
    """Compares the logits over a whole window, and the text after a prompt."""
    torch: Any = pytest.importorskip("torch")
    tokens = document(workdir, rows=3)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    assert expected.shape[1] == CONTEXT
    assert expected.std() > 0.5
    found = logits(workdir, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    prompt = document(workdir, rows=1, places=20, seed=1)
    written = theirs.generate(torch.tensor(prompt).long(), max_new_tokens=40, do_sample=False)[0, 20:].tolist()
    assert len(written) == 40
    assert len(set(written)) > 5
    assert greedy(workdir, prompt, 40) == written


@pytest.mark.filterwarnings("ignore")
def test_a_gpt2_of_transformers_computes_the_same_here(tmp_path):
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer = tokenizer_of("bpe")
    end = tokenizers.end(tokenizer)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=CONTEXT, n_embd=32, n_layer=3, n_head=4, bos_token_id=end, eos_token_id=end
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in theirs.named_parameters():
        parameter.data += (1 if "wpe" in name else 0.2) * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "tokenizer.json").write_bytes(tokenizers.dump(tokenizer))
    import_run(tmp_path / "folder", tmp_path / "run")
    compared(tmp_path / "run", theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bpe", "character"])
def test_an_exported_run_computes_the_same_in_transformers(kind, tmp_path):
    pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    write_run(tmp_path / "run", LM(network=GPT2), kind)
    export_run(tmp_path / "run", tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    compared(tmp_path / "run", theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    found = tokenizer(TEXT)["input_ids"]
    assert found == tokenizers.encode(tokenizer_of(kind), TEXT)
    assert tokenizer.decode(found) == TEXT
    assert tokenizer.eos_token_id == tokenizers.end(tokenizer_of(kind))
