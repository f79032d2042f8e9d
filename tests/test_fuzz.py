"""Files and options with arbitrary content: each is used, or refused with a short error and status 2.

By default a few fixed examples of each kind are tried. GEN_FUZZ=2000 tries 2000 new random examples of each kind.
"""

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from gen import config as configs
from gen import sample
from gen.config import Config, Parallel, Save
from gen.core import Feature
from gen.data.images import Images
from gen.data.text import Text, tokenizers
from gen.errors import run_command
from gen.families.language import LM, language
from gen.interop.convert import import_run
from gen.interop.gpt2 import GPT2, describe, to_gpt2
from gen.networks.transformer import Architecture
from gen.runs import directory
from gen.train import train

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # a temperature of 1e308
ASKED = os.environ.get("GEN_FUZZ")
MAX_SECONDS = 60
"""Bound on the time of one example."""


def fuzz(examples: int) -> Any:
    """Returns settings for this number of examples, unless GEN_FUZZ says otherwise."""
    return settings(
        max_examples=int(ASKED or examples),
        derandomize=ASKED is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def ends(call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns [result] of a call, or [] if it ends with status 2, as a user's mistake does. Any other end fails, or a long wait."""
    found, status, begun = [], 0, time.monotonic()
    try:
        run_command(lambda: found.append(call(*arguments)))
    except SystemExit as exit:
        status = exit.code
    assert status == 2 * (not found), status
    assert time.monotonic() - begun < MAX_SECONDS
    return found


ODD = [
    "",
    "\0",
    "..",
    "../..",
    "/",
    "~nobody/x",
    "a" * 300,
    "\ud800",
    "\x1b[2J",
    "None",
    "os.system",
    "gen.families.vae.family",
]
ODD += [
    "gen.families.vae.family.VAE",
    "gen.core.Family",
    "gen.config.Config",
    "gen.families.gan.family.GAN",
    "nan",
    "-1",
]
NUMBERS = [0, -1, 1, 2, 3, 255, 2**31, 2**32, 2**63, 10**30, 10**400, -(10**30), 1e308, -0.0, 1e-320, 0.5]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(NUMBERS)
    | st.sampled_from(ODD)
    | st.text(st.characters(exclude_categories=()), max_size=20)
)
JUNK = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4), max_leaves=8
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """Returns a copy with `change` applied to the value at a path. If `change` returns None, the value is dropped."""
    if not path:
        return (change(value) or [None])[0]
    copy, key = value.copy(), path[0]
    if len(path) > 1:
        copy[key] = changed(value[key], path[1:], change)
    elif new := change(value[key]):
        copy[key] = new[0]
    else:
        del copy[key]
    return copy


KINDS = ["like", "like", "like", "replace", "drop", "insert", "other", "wrap"]


def like(value: Any) -> Any:
    """Returns a strategy for values of a similar type."""
    if isinstance(value, str):
        return st.sampled_from(ODD)
    if type(value) in (int, float):
        return st.sampled_from([type(value)(x) for x in NUMBERS if abs(x) < 1e300 or isinstance(x, type(value))])
    if isinstance(value, list):
        return st.sampled_from([[], value * 2, value[1:], value[::-1], *([x] * 3 for x in value[:1])])
    return st.booleans()


@st.composite
def mutated(draw: Any, value: Any) -> Any:
    """Draws the JSON value with one to three changes at any depth: replaced, dropped, added, repeated or wrapped values."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        there = value
        for key in path:
            there = there[key]
        near = draw(like(there))
        junk, kind = draw(JUNK), draw(st.sampled_from(KINDS))
        other = draw(st.sampled_from(list(places(value))))

        def change(
            old: Any, kind: str = kind, junk: Any = junk, other: Any = other, whole: Any = value, near: Any = near
        ) -> Any:
            if kind == "insert" and isinstance(old, dict):
                return [{**old, str(junk)[:20]: junk}]
            if kind == "insert" and isinstance(old, list):
                return [[*old, junk]]
            if kind == "like":
                return [near]
            if kind == "other":
                for key in other:
                    whole = whole[key]
                return [whole]
            return {"drop": None, "wrap": [[old]]}.get(kind, [junk])

        value = changed(value, path, change)
    return value


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Draws the bytes cut off, with some bytes changed, or other bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "other", "flip"]))
    if kind == "other" or not content:
        return draw(st.binary(max_size=200))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    for at in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    return content


PICTURES = {"image": Feature((8, 8, 1), levels=17), "label": Feature((), "int32", classes=10)}
TOKENS = {"tokens": Feature((17,), "int32", vocab=257, end=0), "source": Feature((6,), "int32", vocab=257, end=0)}
NAMES = ["vae_digits", "gan_digits", "lm_pydoc", "mlm_pydoc", "seq2seq_docstring"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def some(tiny) -> dict[str, Config]:
    return {name: tiny(name) for name in NAMES}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run with samples and their manifest in generated/."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(
        replace(
            tiny("vae_digits"),
            steps=2,
            evaluate_every=0,
            save=Save(every=2),
            parallel=Parallel(devices=1),
        ),
        workdir,
    )
    assert sample.main([str(workdir), "--n", "4", "--out", str(workdir / "generated")]) == 0
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


SPECS = {Images: PICTURES, Text: TOKENS}


def built(model: Any, spec: Any) -> None:
    """Traces the init of a model."""
    jax.eval_shape(model.build(spec, 10).init, jax.random.key(0))


@fuzz(25)
@given(data=st.data())
@pytest.mark.slow
def test_any_config_json(data, some, folder):
    config = some[data.draw(st.sampled_from(NAMES))]
    facts = {"format": 1, "identity": "0", "data": "0", "config": configs.encode(config)}
    content = dumped(data.draw(mutated(facts)))
    (folder / "config.json").write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    for found, _ in ends(directory.read_config, folder):
        assert configs.decode(Config, configs.encode(found)) == found
        ends(built, found.model, SPECS[type(found.data)])


def options(x: Any, path: str = "-") -> list[str]:
    """Returns the options of a config below its model and its data: `--model.latents`, `--model.network`, ..."""
    if not is_dataclass(x):
        return [path]
    dash = "-" if path == "-" else "."
    inner = [f"{path}{dash}{f.name.replace('_', '-')}" for f in fields(x)]
    found = [option for f, name in zip(fields(x), inner, strict=True) for option in options(getattr(x, f.name), name)]
    return [path, *found] if "." in path else found


VALUES = [
    "0",
    "1",
    "2",
    "-1",
    "3.5",
    "1e400",
    "nan",
    "inf",
    "1e-3",
    str(10**30),
    "None",
    "True",
    "adam",
    "full",
    "hash:0.1",
]
VALUES += [
    "Warmup(1.0, 5)",
    "Cosine(1e400, 5)",
    "Piecewise((), ())",
    "Piecewise((5, 1), (1, 2, 3))",
    "WarmupCosine(-1, 10**30)",
]
VALUES += [
    "digits",
    "train",
    "train[:0]",
    "train[5%:3%]",
    "folder:~nobody",
    "mnist/..",
    "mnist:1.0.0",
    "text:/nowhere",
    "(a",
    "*",
]
VALUES += ["Residual", "Residual(blocks=2)", "Perceptron((4,), 'relu')", "VampPrior(10**30)", "os:system", "Residual(("]


@fuzz(25)
@given(data=st.data())
def test_any_options(data, some, folder):
    config = some[data.draw(st.sampled_from(NAMES))]
    known = st.sampled_from(options(config)) | st.text(max_size=8).map("--".__add__)
    value = st.sampled_from(VALUES) | st.sampled_from(VALUES) | st.text(max_size=10)
    pair = st.tuples(known, value) | st.tuples(known, value, value) | st.tuples(known)
    arguments = [x for each in data.draw(st.lists(pair, min_size=1, max_size=3)) for x in each]
    for launch in ends(configs.override, config, arguments, "train.py"):
        found = launch.config
        ends(built, found.model, SPECS[type(found.data)])
        ends(found.data.build)


@fuzz(15)
@given(data=st.data())
@pytest.mark.slow
def test_any_manifest(data, trained):
    manifest = json.loads((trained / "generated" / "manifest.json").read_text())
    content = dumped(data.draw(mutated(manifest)))
    path = trained / "generated" / "other.json"
    path.write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    for status in ends(sample.verify, sample.Verify(path)):
        assert status in (0, 1)


@fuzz(30)
@given(data=st.data())
def test_any_spec_json(data, some, folder):
    config = some[data.draw(st.sampled_from(NAMES))]
    spec = {name: {**vars(x), "shape": list(x.shape)} for name, x in (PICTURES | TOKENS).items()}
    content = dumped(data.draw(mutated(spec)))
    (folder / "spec.json").write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    for spec in ends(directory.read_spec, folder):
        ends(built, config.model, spec)


@fuzz(30)
@given(data=st.data())
def test_any_evaluation_json(data, trained, folder):
    evaluation = json.loads((trained / "evaluation.json").read_text())
    content = dumped(data.draw(mutated(evaluation)))
    (folder / "evaluation.json").write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    for found in ends(directory.read_evaluation, folder):
        assert found is None or all(f"{number:.4g}" for number in found.metrics.values())


@fuzz(30)
@given(data=st.data())
def test_any_reference_npz(data, trained, folder):
    shutil.copy(trained / "spec.json", folder)
    content = (trained / "reference.npz").read_bytes()
    if data.draw(st.booleans()):
        packed, shape = io.BytesIO(), data.draw(st.lists(st.integers(0, 3), max_size=4))
        dtype = data.draw(st.sampled_from(["f4", "i1", "?", "U3", "c8", "M8[s]", "V5"]))
        np.savez_compressed(packed, image=np.zeros(shape, dtype))
        content = packed.getvalue()
    (folder / "reference.npz").write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    for found in ends(directory.read_reference, folder):
        assert all(array.shape[1:] == (8, 8, 1) for name, array in found.items() if name == "image")


VOCABULARY = {tokenizers.END: 0, "a": 1, "b": 2, "ab": 3}
PARTS: list[dict[str, Any]] = [
    {},
    {"pre_tokenizer": {"type": "FixedLength", "length": 3}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}},
    {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}},
    {"model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "a"}},
    {"model": {"type": "Unigram", "vocab": [[word, -1.0] for word in VOCABULARY], "unk_id": 0}},
    {"model": {"type": "BPE", "vocab": VOCABULARY, "merges": [["a", "b"]], "byte_fallback": True, "unk_token": "a"}},
]


@fuzz(30)
@given(data=st.data())
def test_any_tokenizer_json(data):
    tokenizer = data.draw(
        st.sampled_from([tokenizers.byte(), tokenizers.character("abc"), tokenizers.bpe(["a b"], 260)])
    )
    facts = json.loads(tokenizers.dump(tokenizer)) | data.draw(st.sampled_from(PARTS))
    content = dumped(data.draw(mutated(facts)))
    content = data.draw(st.just(content) | damaged(content))
    for found in ends(tokenizers.load, content):
        ends(tokenizers.encode, found, "abc <|endoftext|>")
        ends(tokenizers.decode, found, [0, 1, 2**20])
        ends(tokenizers.widths, found)


@st.composite
def pictures(draw: Any) -> bytes:
    """Draws the content of an image file, perhaps damaged."""
    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"]))
    image = Image.new(mode, (draw(st.integers(1, 4)), draw(st.integers(1, 4))))
    content = io.BytesIO()
    for form in draw(st.permutations(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])):
        try:
            image.save(content, form)
            break
        except (OSError, ValueError):
            continue
    return draw(st.just(content.getvalue()) | damaged(content.getvalue()))


FILE_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=12) | st.just(
    "\udc80"
)
ENDS = st.sampled_from([".png", ".PNG", ".jpg", ".tiff", ".webp", ".gif", ".txt", ""])


@fuzz(25)
@given(
    files=st.lists(st.tuples(st.sampled_from(["", "a", "b/c"]) | FILE_NAMES, FILE_NAMES, ENDS, pictures()), max_size=6),
    size=st.sampled_from([None, 1, 3]),
    skip_bad=st.booleans(),
    colors=st.sampled_from([None, 1, 3]),
)
@example(files=[("", "\udc80", ".png", b"")], size=None, skip_bad=False, colors=None)
def test_any_folder_of_images(files, size, skip_bad, colors, folder, cache):
    # Each save lists the whole cache, so thousands of entries would make the examples slow.
    emptied(cache)
    root = emptied(folder / "images")
    for below, name, ending, content in files:
        path = root / below / f"{name}{ending}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a folder has that name
            continue
    config = Images(
        name=f"folder:{root}",
        **dict.fromkeys(("train", "validation", "test"), "train"),
        size=size,
        skip_bad=skip_bad,
        colors=colors,
        batch_size=4,
    )
    for data in ends(config.build):
        ends(data.batch, 0, 0, range(4))
        ends(next, data.evaluation("validation", 4))


LINE = {"source": "one two", "target": "three", "n": 4}
LINES = mutated(LINE).map(dumped) | mutated({"text": "a long enough text"}).map(dumped) | st.binary(max_size=20)
LINES |= st.sampled_from([b"[" * 100_000, b'{"text": ' * 50_000, dumped(LINE), dumped({"text": 10**30}), b"\xff\xfe{}"])


@fuzz(25)
@given(
    lines=st.lists(LINES | st.just(dumped(LINE)), max_size=6),
    split=st.sampled_from(["tail:0.3", "hash:0.3"]),
    tokenizer=st.sampled_from(tokenizers.TRAINED),
)
@example(lines=[b'{"text": ' + b"1" * 5000 + b"}"], split="tail:0.3", tokenizer="byte")
def test_any_lines_of_json(lines, split, tokenizer, folder):
    path = folder / "lines.jsonl"
    path.write_bytes(b"\n".join(lines))
    config = Text(name=f"jsonl:{path}", split=split, tokenizer=tokenizer, vocabulary=260, length=8, batch_size=4)
    for data in ends(config.build):
        ends(data.batch, 0, 0, range(4))
        ends(next, data.evaluation("validation", 4))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> dict[str, bytes]:
    """The files of a GPT-2 in the format of transformers."""
    arch = Architecture(layers=2, width=8, heads=2, dropout=0.1, **GPT2)
    spec = {"tokens": Feature((17,), "int32", vocab=257, end=0)}
    state = jax.eval_shape(LM(network=arch).build(spec, 1).init, jax.random.key(0))
    shapes = jax.eval_shape(to_gpt2, state.params["transformer"])
    tensors = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
    facts = describe(arch, language.tokens(spec))["config.json"]
    tokenizer = tokenizers.dump(tokenizers.byte())
    return {"config.json": dumped(facts), "model.safetensors": save(tensors), "tokenizer.json": tokenizer}


@fuzz(15)
@given(data=st.data())
def test_any_import(data, gpt2, folder):
    source = emptied(folder / "gpt2")
    for name, content in gpt2.items():
        (source / name).write_bytes(content)
    name = data.draw(st.sampled_from([*gpt2, "model.safetensors.index.json", "config.json"]))
    if name == "config.json":
        content = dumped(data.draw(mutated(json.loads(gpt2[name]))))
    elif name == "model.safetensors":
        size = int.from_bytes(gpt2[name][:8], "little")
        header = dumped(data.draw(mutated(json.loads(gpt2[name][8 : 8 + size]))))
        content = len(header).to_bytes(8, "little") + header + gpt2[name][8 + size :]
    elif name == "tokenizer.json":
        content = gpt2[name]
    else:
        (source / "model.safetensors").rename(source / "a.safetensors")
        content = dumped(data.draw(mutated({"metadata": {}, "weight_map": dict.fromkeys("abc", "a.safetensors")})))
    (source / name).write_bytes(data.draw(st.just(content) | st.just(content) | damaged(content)))
    shutil.rmtree(folder / "imported", ignore_errors=True)
    ends(import_run, source, folder / "imported")


@fuzz(10)
@given(data=st.data())
def test_any_file_of_a_run(data, trained, folder):
    workdir = folder / "whole"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("generated"))
    files = sorted(path for path in workdir.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        content = path.read_bytes()
        if path.suffix == ".json" or content[:1] == b"{":
            content = dumped(
                data.draw(mutated(json.loads(content.splitlines()[0] if path.suffix == ".jsonl" else content)))
            )
        path.write_bytes(data.draw(st.just(content) | damaged(content)))
    mode = data.draw(st.sampled_from(["generate", "reconstruct", "interpolate", "traverse"]))
    ends(sample.main, [str(workdir), "--n", "8", "--mode", mode])
