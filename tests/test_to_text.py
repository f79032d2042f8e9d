"""Captions that a model writes for pictures, recordings and grids of codes: the data, the encoder, and sample.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from untrained import make_run

from gen import sample
from gen.config import Config, Parallel
from gen.core import Feature
from gen.data.audio import Audio, Transcribed
from gen.data.audio.frames import frames_feature, to_frames
from gen.data.images.captions import Captioned
from gen.data.text import tokenizers
from gen.derived import Encoded, ToText
from gen.errors import UserError
from gen.evaluation.plan import open_subject, plan_scores
from gen.evaluation.score import Options
from gen.families.language import Seq2Seq
from gen.families.language.sources import make_reader
from gen.families.tokenizer import FSQ, Residual, Spectral, Tokenizer
from gen.networks import tokenizer
from gen.networks.spectra import Mel
from gen.networks.transformer import Architecture
from gen.runs import directory
from gen.runs.base import build_data
from gen.runs.features import encode_spec

ARCH = Architecture(1, 16, 2, positions="learned")
MEL = Mel(window=64, hop=32, bands=6)
DTYPES: Any = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def emoji(captions) -> ToText:
    return ToText(data=Captioned(name=f"captions:{captions}", size=8, tokenizer="byte", length=8), batch_size=5)


def test_a_picture_is_the_source_and_its_caption_the_text(emoji):
    # In the bpe a token may have several bytes.
    data = replace(emoji, data=replace(emoji.data, tokenizer="bpe", vocabulary=270)).build()
    assert data.spec["source"].shape == (8, 8, 3)
    assert data.spec["tokens"].shape == (10,)
    coder, batch = tokenizers.load(data.files[tokenizers.FILE]), data.batch(0, 0, range(5))
    seen = data.preprocess(batch, jax.random.key(0), True)
    assert seen.keys() == {"row", "index", "weight", "source", "tokens", "counted", "bytes"}
    for tokens, counted, size, source in zip(
        *(np.asarray(seen[k]) for k in ("tokens", "counted", "bytes", "source")), strict=True
    ):
        text = tokenizers.decode(coder, tokens.tolist())
        color, number = text.split()
        # The shade of the picture says which caption it has: 96 captions, of which the colours take turns.
        assert ("red", "green", "blue")[int(number) % 3] == color
        np.testing.assert_allclose(source[3, 3, int(number) % 3], 2 * (255 - int(number)) / 255 - 1, atol=1e-6)
        # The caption and one end token are predicted.
        length = len(tokenizers.encode(coder, text))
        assert np.flatnonzero(counted).tolist() == list(range(1, length + 2))
        assert size == len(text.encode()) > length


def test_n_grams_predict_the_tokens_that_count(emoji, monkeypatch):
    data, found = emoji.build(), []
    monkeypatch.setattr("gen.data.text.ngram.kneser_ney", lambda *x: found.append(x) or replace_score())
    assert data.baselines() == {"kneser_ney": 1.5}
    ((_, test, vocab),) = found
    assert vocab == 257
    (batch,) = data.evaluation("test", data.sizes["test"])
    seen = data.preprocess(batch, jax.random.key(0), False)
    assert len(test) - 1 == int(seen["counted"].sum())
    rows = [
        row[: count + 1]
        for row, count in zip(np.asarray(seen["tokens"]), np.asarray(seen["counted"]).sum(1), strict=True)
    ]
    assert test.tolist() == [0, *np.concatenate([row[1:] for row in rows]).tolist()]


def replace_score() -> Any:
    from gen.data.text.ngram import Score

    return Score(1.5, 2)


def test_silence_is_the_floor_of_the_frames():
    audio = jnp.zeros((1, 320, 2)).at[:, 160:].set(jax.random.normal(jax.random.key(0), (1, 160, 2)))
    frames = np.asarray(to_frames(audio, 4000, MEL))
    assert frames.shape[1:] == frames_feature(Feature((320, 2), sample_rate=4000), MEL).shape == (11, 6)
    np.testing.assert_allclose(frames[0, :3], -1, atol=1e-5)
    assert (frames[0, 7:] > 0).all()


def encode(
    source: np.ndarray, feature: Feature, params: Any = None, arch: Architecture = ARCH, patch: Any = (1,)
) -> Any:
    """Returns the output of an encoder with random parameters, and the parameters."""
    reader = make_reader(arch, feature, 11, 0, patch, DTYPES)
    shapes, rng = jax.eval_shape(reader.init, jax.random.key(0)), np.random.default_rng(0)
    # The parameters of step 0 are so small that the places of tokens hardly matter.
    params = (
        jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 2, shapes) if params is None else params
    )
    return np.asarray(jax.jit(reader.encode)(params, jnp.asarray(source), None).output), params


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_codes_are_embedded_as_one_hot_vectors_are(positions):
    """A table of V rows for each of J codes is a linear layer on J one-hot vectors."""
    arch = replace(ARCH, positions=positions)
    codes = np.random.default_rng(0).integers(0, 5, (2, 3, 2, 2)).astype(np.int32)
    feature = Feature((3, 2, 2), "int32", vocab=5, axes=("row", "column", "book"))
    found, params = encode(codes, feature, arch=arch)
    table = params["embedding"]["embedding"]
    assert table.shape == (10, 16)
    one_hot = np.eye(5, dtype=np.float32)[codes].reshape(2, 3, 2, 10)
    linear = {"vectors": {"kernel": table, "bias": np.zeros(16, np.float32)}}
    others = {name: x for name, x in params.items() if name != "embedding"} | linear
    same, _ = encode(one_hot, Feature((3, 2, 10)), others, arch)
    np.testing.assert_allclose(found, same, atol=1e-5)
    # The books, rows and columns of codes are told apart: otherwise the outputs would only be in another order.
    others = np.concatenate([codes[..., ::-1], codes[:, ::-1], codes[:, :, ::-1]])
    for i, other in enumerate(encode(others, feature, params, arch)[0]):
        assert np.abs(other.sum(0) - found[i % 2].sum(0)).max() > 1e-2


def test_a_patch_is_one_position():
    image = np.random.default_rng(0).normal(size=(1, 6, 8, 3)).astype(np.float32)
    assert encode(image, Feature((6, 8, 3)), patch=(4, 2))[0].shape == (1, 8, 16)


@pytest.mark.parametrize(
    ("changes", "patch", "message"),
    [
        ({}, (2, 2, 2), "patch has 3 sides, and a source of shape"),
        ({"positions": "relative"}, (4,), "the fix: --model.network.positions rotary"),
        ({"positions": "rotary", "heads": 8}, (4,), "too few pairs to rotate for 2 axes"),
    ],
)
def test_a_network_that_cannot_read_a_grid_is_refused(changes, patch, message):
    with pytest.raises(UserError, match=message):
        make_reader(replace(ARCH, **changes), Feature((8, 8, 3)), 11, 0, patch, DTYPES)


def test_data_without_captions_are_refused():
    with pytest.raises(UserError, match="captions are the texts to write, and the data have audio, label"):
        ToText(data=Audio(seconds=0.1)).build()


def test_a_run_that_starts_from_another_reads_texts_by_its_tokenizer(emoji, captions, tmp_path):
    base = Captioned(name=f"captions:{captions}", size=8, tokenizer="character", length=8).build()
    (tmp_path / "config.json").touch()
    (tmp_path / tokenizers.FILE).write_bytes(base.files[tokenizers.FILE])
    directory.write_json(tmp_path / "spec.json", encode_spec(base.spec))
    config = Config(model=Seq2Seq(network=ARCH), data=emoji, steps=1, init_from=str(tmp_path))
    assert build_data(config).spec["tokens"].vocab == base.spec["caption"].vocab


def write_run(folder: Path, data: ToText) -> Path:
    model = Seq2Seq(network=ARCH)
    return make_run(folder, Config(model=model, data=data, steps=1, parallel=Parallel(devices=1)))


def test_captions_of_a_given_picture_are_written_and_verified(emoji, captions, tmp_path):
    run, out = write_run(tmp_path / "run", emoji), tmp_path / "out"
    given = ["--image", str(captions / "07.png")]
    assert sample.main([str(run), *given, "--n", "3", "--out", str(out)]) == 0
    assert len((out / "samples.txt").read_text().splitlines()) == 3
    with np.load(out / "samples.npz") as arrays:
        assert arrays["samples"].shape == arrays["log_probs"].shape == (3, 8)
        # The picture has the shade 248 of green.
        np.testing.assert_allclose(arrays["source"][:, 3, 3], [[-1, 2 * 248 / 255 - 1, -1]] * 3, atol=1e-6)
    assert sample.main(["--verify", str(out / "manifest.json")]) == 0
    for wrong, message in (
        (
            ["--audio", str(captions / "07.png")],
            "--audio is not used: the run describes pictures; the fix: --image FILE",
        ),
        (["--image", str(tmp_path / "none.png")], "No such file"),
        (["--image", str(captions / "07.txt")], "is not an image"),
    ):
        with pytest.raises(UserError, match=message):
            sample.main([str(run), *wrong, "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
    # gen.evaluate scores the texts, next to n-grams.
    plan = plan_scores(open_subject(run, Options((run,))))
    assert {"loss", "bits_per_byte", "kneser_ney"} <= {name for score in plan.scores for name in score.names}


@pytest.mark.slow
@pytest.mark.parametrize("coded", [False, True], ids=["frames", "codes"])
def test_held_out_and_given_recordings_are_written_down(coded, spoken, tmp_path):
    words = Transcribed(name=f"captions:{spoken}", seconds=0.1, tokenizer="character", length=8, batch_size=8)
    data: Any = words
    if coded:
        coder = Tokenizer(
            network=tokenizer.Residual((4,), (40,)),
            bottleneck=Residual(2, FSQ((3, 2))),
            reconstruction=Spectral((32,), (4,)),
        )
        sound = replace(words.sound(), name=f"audio:{spoken}")
        make_run(tmp_path / "codec", Config(model=coder, data=sound, steps=1, parallel=Parallel(devices=1)))
        data = Encoded(data=words, tokenizer=str(tmp_path / "codec"))
    run = write_run(tmp_path / "run", ToText(data=data, mel=MEL, batch_size=8))
    assert sample.main([str(run), "--n", "2", "--out", str(tmp_path / "held")]) == 0
    blocks = (tmp_path / "held" / "samples.txt").read_text().split(60 * "-")
    n = min(16, words.build().sizes["validation"])
    assert len(blocks) == n
    assert all(block.strip().startswith("[tone ") and len(block.strip().splitlines()) <= 3 for block in blocks)
    assert sample.main([str(run), "--audio", str(spoken / "07.wav"), "--out", str(tmp_path / "out")]) == 0
    assert sample.main(["--verify", str(tmp_path / "out" / "manifest.json")]) == 0
    if not coded:
        with np.load(tmp_path / "out" / "samples.npz") as arrays:
            audio = 0.5 * np.sin(2 * np.pi * (200 + 20 * 7) * np.arange(800) / 8000)
            frames = to_frames(jnp.asarray(audio[None, :, None], jnp.float32), 8000, MEL)
            np.testing.assert_allclose(arrays["source"][0], frames[0], atol=2e-2)
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match="the run describes recordings; the fix: --audio FILE"):
        sample.main([str(run), "--image", str(tmp_path / "grey.png"), "--out", str(tmp_path / "other")])
