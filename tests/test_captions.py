"""Captioned images: their folder, their splits, models that read captions, and prompts."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from test_transformer import KEY, quickly, reference

from gen import sample
from gen.config import Config, Parallel
from gen.core import Feature
from gen.data.images.captions import Captioned
from gen.data.text import tokenizers
from gen.derived import Encoded
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation.score import Options
from gen.families.captions import GIVEN
from gen.families.conditions import Condition
from gen.families.flow import Flow, UNet
from gen.families.flow import Request as FlowRequest
from gen.families.grid import GridLM, GridMLM, lm, mlm
from gen.families.grid.grid import GridModel, GridRequest
from gen.families.grid.network import make_network
from gen.families.tokenizer import FSQ, Tokenizer
from gen.media.image import IMAGE, ImageOptions
from gen.metrics.captions import Recipe, load_scorer
from gen.networks.tokenizer import Residual
from gen.networks.transformer import Architecture
from gen.optim import Optimizer
from gen.runs.trained import open_run
from gen.train import train
from tests.untrained import make_run

SMALL = Architecture(layers=2, width=16, heads=4)
VOCAB, WORDS, LENGTH = 5, 7, 4
SPEC = {
    "tokens": Feature((2, 3), "int32", vocab=VOCAB, axes=("row", "column")),
    "caption": Feature((LENGTH,), "int32", vocab=WORDS, end=0),
}
MODEL = GridLM(network=SMALL, conditional=True, label_dropout=0.3)


def write(folder: Path, name: str, color: int = 0) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), color, np.uint8)).save(folder / name)


def texts_of(data: Any, batch: dict[str, np.ndarray]) -> list[str]:
    tokenizer = tokenizers.load(data.files[tokenizers.FILE])
    return [tokenizers.decode(tokenizer, row) for row in batch["caption"].tolist()]


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_each_picture_has_its_caption(captions, tokenizer):
    data = Captioned(name=f"captions:{captions}", tokenizer=tokenizer, length=12, batch_size=16).build()
    assert data.spec["image"] == Feature((8, 8, 3), levels=256) and data.spec["caption"].shape == (12,)
    assert sum(data.sizes.values()) == 96 and min(data.sizes.values()) > 0
    batches = [data.batch(0, 3, range(16)), *(batch for split in data.sizes for batch in data.evaluation(split, 96))]
    for batch in batches:
        for image, text in zip(batch["image"], texts_of(data, batch), strict=True):
            color, number = text.split()
            assert image[4, 4, ("red", "green", "blue").index(color)] == 255 - int(number)


def test_the_variants_of_a_group_are_in_one_split(tmp_path):
    lines = []
    for i in range(80):
        write(tmp_path, f"sub/{i}.png", i)
        lines.append({"image": f"sub/{i}.png", "text": f"Hand  {i}", "group": f"{i // 4}"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = Captioned(name=f"captions:{tmp_path}", held_out=0.2, tokenizer="character", batch_size=8).build()
    groups = {}
    for split, size in data.sizes.items():
        (batch,) = data.evaluation(split, size)
        texts = texts_of(data, batch)
        assert texts == [f"hand {color}" for color in batch["image"][:, 0, 0, 0]]
        groups[split] = [int(text.split()[1]) // 4 for text in texts]
        assert all(groups[split].count(group) == 4 for group in groups[split])
    assert sum(len(set(found)) for found in groups.values()) == 20


def with_jsonl(folder: Path, *lines: Mapping[str, object]) -> None:
    (folder / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "2.txt").unlink(), r"2.png has no caption; add 2.txt"),
        (lambda f: (f / "9.txt").write_text("nine"), r"9.txt has no picture of the same name"),
        (lambda f: (f / "2.txt").write_text(" \n"), "the caption of 2.png is empty"),
        (lambda f: write(f, "2.bmp"), "would share one caption"),
        (lambda f: with_jsonl(f, {"image": "7.png", "text": "x"}), r"a.jsonl:1: .* has no picture '7.png'"),
        (lambda f: with_jsonl(f, {"image": "1.png", "text": "x"}), r"\.png has no caption; add a line in a.jsonl"),
        (lambda f: with_jsonl(f, {"image": "1.png", "text": 1}), '"text" must be a text'),
        (lambda f: with_jsonl(f, *2 * [{"image": "1.png", "text": "x"}]), "has a caption already"),
        (lambda f: None, "groups is in"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_short_error(tmp_path, damage, message):
    for i in range(3):
        write(tmp_path, f"{i}.png", i)
        (tmp_path / f"{i}.txt").write_text("the same for all")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        Captioned(name=f"captions:{tmp_path}").build()


@cache
def parts_of(config: GridModel) -> tuple[Any, Any]:
    """Returns the functions of a model, and random parameters that are large enough for each of them to matter."""
    network = make_network(config, config.grid(SPEC), causal=isinstance(config, GridLM))
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype)

    params = jax.tree.map(draw, jax.eval_shape(network.init, KEY))
    return (lm.CausalGrids if isinstance(config, GridLM) else mlm.MaskedGrids)(config, network), params  # pyright: ignore


def test_a_grid_is_read_after_its_caption():
    """Against the transformer in numpy, which reads each caption without the places after its end."""
    parts, params = parts_of(MODEL)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (3, 2, 3))
    captions = np.array([[3, 1, 6, 2], [5, 4, 0, 0], [0, 0, 0, 0]], np.int32)
    nats, _ = quickly(parts.nats)(params, {"tokens": tokens}, Condition(caption=jnp.asarray(captions)))
    own = dict(params["transformer"])
    along, across = (own.pop(f"position_{i}")["embedding"] for i in range(2))
    for cells, caption, found in zip(tokens.reshape(3, 6), captions, nats[..., 0], strict=True):
        words = [int(word) for word in caption if word]
        # Words lie along the first axis, and the grid is LENGTH later on it.
        places = [(i, 0) for i in range(len(words))] + [(LENGTH, 0)]
        places += [(LENGTH + r + 1, c + 1) for r in range(2) for c in range(3)]
        own["position"] = {"embedding": np.array([along[r] + across[c] for r, c in places])}
        # No label, then the mask, then the words.
        read = [*(VOCAB + 2 + word for word in words), VOCAB, *cells[:-1]]
        logits = reference(own, SMALL, read)[len(words) :, :VOCAB]
        np.testing.assert_allclose(found, -log_softmax(logits, axis=-1)[range(6), cells], atol=1e-4)


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 2.5])
def test_cached_decoding_reads_prompts_in_turn(guidance):
    parts, params = parts_of(MODEL)
    request = GridRequest(n=3, temperature=0, guidance=guidance)
    given = {GIVEN: np.array([[3, 1, 0, 0], [5, 4, 6, 2]], np.int32)}
    make = quickly(lambda params, keys, given: parts.sample(params, keys, given, request))
    made = jax.device_get(make(params, jax.random.split(KEY, 3), given))
    np.testing.assert_array_equal(made["captions"], given[GIVEN][[0, 1, 0]])
    assert "labels" not in made

    @quickly
    def logits(samples: jax.Array, caption: jax.Array | None) -> jax.Array:
        cells = parts.network.grid.split(samples)
        front = parts.network.grid.front(3, Condition(caption=caption))
        read = jnp.concatenate([front, cells[:, :-1]], axis=1)
        output, _ = parts.network.read(params, read, parts.network.positions[:-1])
        return parts.network.logits(params, output[:, LENGTH:], cells)

    c, u = (np.asarray(logits(made["samples"], caption)) for caption in (made["captions"], None))
    assert np.abs(c - u).max() > 0.1
    guided = (u + guidance * (c - u)).argmax(-1)
    np.testing.assert_array_equal(made["samples"].reshape(guided.shape), guided)


def test_a_masked_model_reads_captions():
    parts, params = parts_of(GridMLM(network=SMALL, conditional=True))
    captions = np.array([[3, 1, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]], np.int32)
    batch = {"tokens": np.zeros((3, 2, 3), np.int32), "caption": captions}
    keys = jnp.broadcast_to(KEY, (3,))
    nats, metrics = quickly(parts.evaluate)(params, batch, keys)
    assert metrics["nll_bound"].shape == (3,)
    assert nats[0] == pytest.approx(nats[1]) and abs(nats[0] - nats[2]) > 1e-3


def test_captions_are_left_out_with_the_stated_probability():
    grid = MODEL.grid(SPEC)
    batch = {"caption": jnp.full((2000, LENGTH), 3, jnp.int32)}
    label, caption = MODEL.drop(grid, batch, jax.random.split(KEY, 2000))
    assert label is None and caption is not None
    empty = np.asarray(caption == 0)
    assert set(empty.sum(1).tolist()) == {0, LENGTH}
    assert empty[:, 0].mean() == pytest.approx(0.3, abs=0.04)


FLOW = Flow(network=UNet((4,)), conditional=True)
PICTURES = {"image": Feature((4, 4, 3), levels=256), "caption": SPEC["caption"]}


@pytest.fixture(scope="module")
def flow_params() -> Any:
    """Parameters of FLOW, away from their small initial values."""

    def init(key: jax.Array) -> Any:
        params = FLOW.flow_model(PICTURES).init(key)
        return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    return quickly(init)(KEY)


@pytest.mark.slow
def test_a_flow_reads_captions_and_is_guided_by_them(flow_params):
    flow, request = FLOW.flow_model(PICTURES), FlowRequest(guidance=3.0)
    captions = jnp.asarray([[3, 1, 6, 2], [5, 4, 0, 0], [0, 0, 0, 0]])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 3)), jnp.float32)

    @quickly
    def velocities(params: Any) -> list[jax.Array]:
        asked, none = Condition(caption=captions), Condition(caption=jnp.zeros_like(captions))
        t = jnp.float32(0.5)
        plain = [flow.velocity(params, each)(x, t, t) for each in (asked, none)]
        return [flow.velocity(params, asked, request)(x, t, t), *plain]

    guided, v, base = velocities(flow_params)
    changes = np.abs(v - base).max((1, 2, 3))
    assert changes[:2].min() > 1e-2 and changes[2] == 0
    np.testing.assert_allclose(guided, base + 3 * (v - base), atol=1e-5)


def test_a_flow_draws_the_prompts_in_turn(flow_params):
    flow = FLOW.flow_model(PICTURES)
    prompts = jnp.asarray([[3, 1, 0, 0], [5, 4, 6, 2]])
    keys = jnp.broadcast_to(KEY, (3,))
    make = quickly(lambda params: flow.sample(params, keys, {GIVEN: prompts}, FlowRequest(n=3, steps=1)))
    made = jax.device_get(make(flow_params))
    np.testing.assert_array_equal(made["captions"], prompts[jnp.asarray([0, 1, 0])])
    # All samples have the same noise.
    np.testing.assert_allclose(made["samples"][0], made["samples"][2], atol=1e-5)
    assert np.abs(made["samples"][0] - made["samples"][1]).max() > 1e-2 and "labels" not in made


def coded(captions: Path, folder: Path, model: GridModel, steps: int, make: Any, **tokenizer: Any) -> Path:
    """Makes a tokenizer's run and a run on its codes of captioned pictures. Returns the second."""
    data = Captioned(name=f"captions:{captions}", tokenizer="character", length=8, batch_size=16)
    alone = Parallel(devices=1)
    coder = Tokenizer(network=Residual((8, 16), (2, 2)), bottleneck=FSQ((8, 8, 8)), optim=Optimizer(lr=3e-3))
    config = Config(model=coder, data=data, steps=steps, parallel=alone)
    make(folder / "coder", config)
    codes = Encoded(data=data, tokenizer=str(folder / "coder"), batch_size=16)
    make(folder / "run", Config(model=model, data=codes, steps=steps, parallel=alone))
    return folder / "run"


@pytest.fixture(scope="module")
def run(captions, tmp_path_factory) -> Path:
    """A run without any training on the codes of captioned pictures."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return coded(captions, folder, replace(MODEL, label_dropout=0.0), 1, make_run)


@pytest.mark.slow
def test_codes_keep_the_captions_and_their_tokenizer(run, captions):
    view = open_run(run).view()
    tokenizer = tokenizers.load(view.read_file(tokenizers.FILE))
    texts = {tokenizers.decode(tokenizer, row) for row in view.reference()["caption"].tolist()}
    assert texts and texts < {path.read_text().strip().lower() for path in captions.glob("*.txt")}


@pytest.mark.slow
def test_prompts_are_encoded_by_the_tokenizer_of_the_run(run):
    view = open_run(run).view()
    given = IMAGE.give(ImageOptions(prompt=(" RED  7", "blue")), view).arrays[GIVEN]
    tokenizer = tokenizers.load(view.read_file(tokenizers.FILE))
    assert [tokenizers.decode(tokenizer, row) for row in given.tolist()] == ["red 7", "blue"]
    assert given.shape == (2, 8) and GIVEN not in IMAGE.give(ImageOptions(), view).arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "赤"], "cannot write '赤'"),
        (["--prompt", " "], "a prompt is empty"),
        (["--prompt", "red red red"], "has 11 tokens, and the model reads 8"),
        (["--prompt", "red", "--guidance", "3"], "trained without label dropout"),
    ],
)
def test_a_prompt_that_the_run_cannot_read_is_one_short_error(run, options, message):
    with pytest.raises(UserError, match=message):
        sample.main([str(run), "--n", "2", *options])


def test_a_prompt_for_a_model_that_reads_no_captions_is_one_short_error(captions, tmp_path):
    data = Captioned(name=f"captions:{captions}", tokenizer="character", length=8, batch_size=8)
    config = Config(model=Flow(network=UNet((4,))), data=data, steps=1, parallel=Parallel(devices=1))
    run = make_run(tmp_path / "run", config)
    with pytest.raises(UserError, match="trained without reading captions; leave --prompt out"):
        sample.main([str(run), "--n", "1", "--steps", "1", "--prompt", "red", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def train_flow(captions: Path, folder: Path) -> Path:
    """Trains a flow on captioned pictures. Returns its run."""
    data = Captioned(name=f"captions:{captions}", tokenizer="character", length=8, batch_size=16)
    model = Flow(network=UNet((16, 32)), conditional=True, optim=Optimizer(lr=3e-3))
    train(Config(model=model, data=data, steps=400, parallel=Parallel(devices=1)), folder / "run")
    return folder / "run"


def train_grid(captions: Path, folder: Path) -> Path:
    """Trains a tokenizer, and a model of its codes of captioned pictures. Returns the second run."""
    model = replace(MODEL, label_dropout=0.1, optim=Optimizer(lr=3e-3))
    return coded(captions, folder, model, 400, lambda workdir, config: train(config, workdir))


@pytest.mark.long
@pytest.mark.parametrize("train_run", [train_flow, train_grid])
def test_the_colour_follows_the_prompt(captions, tmp_path, monkeypatch, train_run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = train_run(captions, tmp_path)
    prompts = [part for color in ("red", "green", "blue") for part in ("--prompt", f"{color} 40")]
    assert sample.main([str(run), "--n", "12", "--guidance", "2", *prompts, "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        # A flow's samples are images; codes are decoded.
        images = arrays["images"] if "images" in arrays else arrays["samples"]
        middle = images[:, 3:5, 3:5].mean((1, 2))
    assert (middle.argmax(-1) == np.arange(12) % 3).mean() >= 0.9
    assert sample.main(["--verify", str(tmp_path / "out" / "manifest.json")]) == 0
    small = Recipe(convolutions=(4,), hidden=(32,), width=16, steps=150, batch_size=24, learning_rate=5e-3)
    monkeypatch.setattr("gen.evaluation.captions.load_scorer", partial(load_scorer, recipe=small))
    (numbers,) = scores(Options((run,), n=100, seed=1)).values()
    # A third of the captions has the colour of an image, and their numbers can't be seen.
    assert numbers["caption_choice"] > 0.7 and numbers["train_distance"] > 0
    assert {"kid", "caption_choice_real", "caption_choice_nearest", "train_distance_real"} <= numbers.keys()
