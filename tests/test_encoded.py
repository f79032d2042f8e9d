"""Data through a tokenizer's run: codes and their cache, the copy of the tokenizer in a new run, decoded samples, and scores."""

import importlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen
from gen import core
from gen.config import Config, Parallel
from gen.core import Feature, GenerativeModel, Spec
from gen.data.images import Images
from gen.derived import Encoded, codec, encoded
from gen.derived.code_images import CODE_IMAGES
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation import image_subject, images
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options
from gen.families import labels, learner
from gen.families.flow import DiT, Flow
from gen.families.tokenizer import FSQ, KL, VQ, Residual, Tokenizer
from gen.media.image import ImageOptions
from gen.metrics.classifier import Recipe, classifier_features
from gen.metrics.images import read_split
from gen.networks import tokenizer
from gen.runs import base, directory
from gen.runs.merge import merge
from gen.runs.run import Run
from gen.train import build, train
from tests.untrained import make_run

DIGITS = Images(name="digits", train="train[:300]", validation="train[300:400]", test="test[:150]", batch_size=8)
TINY = Tokenizer(network=tokenizer.Residual((4,), (2,)), bottleneck=Residual(2, FSQ((3, 2))))
PERCEPTRON = Recipe((), (16,), steps=20, batch_size=64, learning_rate=3e-3, weight_decay=0.1)


@dataclass(frozen=True)
class Independent(learner.LearnedFamily):
    """Codes that are independent given the label. It is the smallest model of a grid."""

    def tiny(self) -> "Independent":
        return self

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        shape, vocab, classes = spec["tokens"].shape, spec["tokens"].vocab or 0, labels.num_classes(spec)

        def init(key):
            return {"logits": jax.random.normal(key, (classes, *shape, vocab))}

        def loss(params, batch, keys):
            log_p = jax.nn.log_softmax(params["logits"][batch["label"]])
            return -jnp.take_along_axis(log_p, batch["tokens"][..., None], -1).sum(range(1, log_p.ndim))

        def sample(params, keys, given, request):
            label = labels.labels_to_generate(request.n, request.label, classes, given)
            drawn = jax.vmap(jax.random.categorical)(keys, params["logits"][label])
            return {"samples": drawn.astype(jnp.int32), "labels": label}

        return learner.family(self, steps, init=init, loss=loss, sample=sample, request=labels.LabelRequest)


def tokenizer_run(workdir: Path, model: Tokenizer = TINY, step: int | None = None) -> Path:
    return make_run(workdir, Config(model=model, data=DIGITS, steps=5, parallel=Parallel(devices=1)), step)


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """Gives these tests a cache folder, and small classifiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(images, "PERCEPTRON", PERCEPTRON)
        features = partial(classifier_features, recipe=replace(PERCEPTRON, convolutions=(4,)))
        patch.setattr(image_subject, "classifier_features", features)
        yield


@pytest.fixture(scope="module")
def coded(small, tmp_path_factory) -> Path:
    """A tokenizer's run."""
    return tokenizer_run(tmp_path_factory.mktemp("runs") / "coded")


@pytest.fixture(scope="module")
def generator(coded, tmp_path_factory) -> Path:
    """A run on the tokenizer's codes."""
    data = Encoded(data=DIGITS, tokenizer=str(coded), batch_size=8)
    config = Config(model=Independent(), data=data, steps=5, parallel=Parallel(devices=1))
    return make_run(tmp_path_factory.mktemp("runs") / "generator", config)


@pytest.fixture(scope="module")
def autoencoder(small, tmp_path_factory) -> Path:
    """The run of a tokenizer with continuous latents."""
    return tokenizer_run(tmp_path_factory.mktemp("runs") / "kl", replace(TINY, bottleneck=KL(3)))


def codes_of(run: Path, x: jax.Array) -> np.ndarray:
    """Returns the codes of images by the tokenizer of a run, without gen.derived.codec."""
    trained = gen.open(run).trained
    state = trained.restore(5)
    coder = trained.config.model.coder(trained.spec)  # pyright: ignore
    encode = jax.jit(coder.encode)
    return np.asarray(encode({**state.params, **state.ema}, state.stats.get("bottleneck", {}), x).codes)


def test_codes_are_those_of_the_images_and_keep_their_labels(coded):
    data, pictures = Encoded(data=DIGITS, tokenizer=str(coded), batch_size=8).build(), DIGITS.build()
    assert data.spec["tokens"] == Feature((4, 4, 2), "int32", vocab=6, axes=("row", "column", "book"))
    assert data.spec["label"] == pictures.spec["label"]
    assert data.sizes == pictures.sizes
    for codes, whole in (
        (data.batch(3, 50, range(2, 6)), pictures.batch(3, 50, range(2, 6))),
        (next(data.evaluation("test", 8)), next(pictures.evaluation("test", 8))),
    ):
        assert codes["tokens"].dtype == np.uint16
        seen = pictures.preprocess(jax.device_put(whole), jax.random.key(0), False)["image"]
        np.testing.assert_array_equal(codes["tokens"], codes_of(coded, seen))
        for name in ("label", "row", "index", "weight"):
            np.testing.assert_array_equal(codes[name], whole[name])
    assert data.preprocess(jax.device_put(codes), jax.random.key(0), True)["tokens"].dtype == np.int32


def test_a_tokenizer_that_was_trained_on_other_splits_is_named(coded, generator, monkeypatch, capsys):
    """Test examples of the codes may be training examples of the tokenizer."""
    # No data are encoded here.
    monkeypatch.setattr(encoded, "load_or_make", lambda *_: {"scale": np.float32(1)})
    said: list[bool] = []
    for run, data in ((coded, DIGITS), (coded, replace(DIGITS, test="train[:150]")), (generator, DIGITS)):
        Encoded(data=data, tokenizer=str(run)).build()
        said.append(f"{run} was trained on other data or other splits" in capsys.readouterr().err)
    assert said == [False, True, False]


def test_images_are_encoded_once(coded, monkeypatch):
    config = Encoded(data=DIGITS, tokenizer=str(coded), batch_size=8)
    first = config.build()
    monkeypatch.setattr(encoded, "encode_all", lambda *_: pytest.fail("the images are encoded again"))
    again = replace(config, batch_size=4).build()
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.batch(0, 0, range(4))["tokens"], first.batch(0, 0, range(4))["tokens"])


def test_each_epoch_takes_the_next_form_of_every_image(coded):
    flipped = replace(DIGITS, train="train[:10]", flip=True)
    data = Encoded(data=flipped, tokenizer=str(coded), variants=3, batch_size=10).build()
    assert data.sizes["train"] == 10
    forms: dict[int, set[bytes]] = {}
    for step in range(6):
        batch = data.batch(0, step, range(10))
        assert sorted(batch["index"] % 10) == list(range(10))
        assert set(batch["index"] // 10) == {step % 3}
        for index, tokens, label in zip(batch["index"], batch["tokens"], batch["label"], strict=True):
            forms.setdefault(int(index) % 10, set()).add(tokens.tobytes())
            assert label == data.evaluation("train", 10).__next__()["label"][index % 10]
    assert {len(found) for found in forms.values()} <= {1, 2}, "an image and its mirror image"
    assert max(len(found) for found in forms.values()) == 2


def test_images_are_encoded_again_if_they_are_seen_in_another_way(coded, monkeypatch):
    """Their bytes are the same, so only the config says that they have noise."""
    config = Encoded(data=DIGITS, tokenizer=str(coded), batch_size=8)
    config.build()

    class EncodedAgainError(Exception):
        pass

    def encode_again(*_):
        raise EncodedAgainError

    monkeypatch.setattr(encoded, "encode_all", encode_again)
    for changed in ({"dequantize": True}, {"flip": True}):
        with pytest.raises(EncodedAgainError):
            replace(config, data=replace(DIGITS, **changed)).build()
    # Settings of a launch change no code.
    replace(config, data=replace(DIGITS, check="all", batch_size=4)).build()


@pytest.mark.slow
def test_latents_have_a_deviation_of_one_and_are_decoded_as_they_were(autoencoder):
    run = autoencoder
    data = Encoded(data=DIGITS, tokenizer=str(run), batch_size=8).build()
    assert data.spec["latent"] == Feature((4, 4, 3), axes=("row", "column", "channel"))
    batch = next(data.evaluation("train", 300))
    assert batch["latent"].dtype == np.float16
    latent = data.preprocess(jax.device_put(batch), jax.random.key(0), False)["latent"]
    assert float(latent.std()) == pytest.approx(1, abs=1e-3)
    copy = codec.read_codec(data.files[codec.FILE], data.files[codec.WEIGHTS], "a run")
    pictures = next(DIGITS.build().evaluation("train", 300))
    x = DIGITS.build().preprocess(jax.device_put(pictures), jax.random.key(0), False)["image"]
    whole = codec.open_codec(run)
    np.testing.assert_allclose(copy.show(latent), whole.show(whole.encode(x)), atol=5e-3)


# --- a tokenizer that starts from another one ---


def begin(config: Config, workdir: Path) -> core.State:
    """Returns the state of step 0 of a run that starts from another one."""
    config = base.resolve_config(config)
    run = Run(config, workdir, *build(config), base.choose_base(config, workdir))
    return run.state_at(0)


@pytest.fixture(scope="module")
def vector_quantized(tmp_path_factory) -> Path:
    return tokenizer_run(tmp_path_factory.mktemp("runs") / "vq", replace(TINY, bottleneck=VQ(8, 2)))


def test_a_tokenizer_begins_with_the_codebook_of_its_base(vector_quantized, tmp_path):
    """Without it, the decoder of the base reads vectors that mean nothing."""
    config = Config(model=TINY, data=DIGITS, steps=5, seed=1, parallel=Parallel(devices=1))
    known = gen.open(vector_quantized).trained.restore(5).stats["bottleneck"]
    assert jnp.abs(known["codebook"]).max() > 0.1
    for name in ("full", "lora"):
        found = begin(replace(config, init_from=str(vector_quantized), finetune=name), tmp_path / name)
        np.testing.assert_array_equal(found.stats["bottleneck"]["codebook"], known["codebook"])


@pytest.mark.slow
def test_a_merged_tokenizer_keeps_its_codebook(vector_quantized, tmp_path):
    config = Config(model=TINY, data=DIGITS, steps=2, parallel=Parallel(devices=1))
    train(replace(config, init_from=str(vector_quantized), finetune="lora"), tmp_path / "lora")
    merge(tmp_path / "lora", tmp_path / "merged")
    lora, merged = (gen.open(tmp_path / name) for name in ("lora", "merged"))
    codebooks = [run.trained.restore(2).stats["bottleneck"]["codebook"] for run in (lora, merged)]
    np.testing.assert_array_equal(*codebooks)
    for found, expected in zip(*(run.generate(n=2).values() for run in (merged, lora)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert codec.open_codec(tmp_path / "merged").arrays["stats/codebook"].shape == (8, 2)


# --- a run on codes ---


def test_a_run_needs_nothing_but_its_folder(generator, coded, tmp_path):
    run, gone = Path(shutil.copytree(generator, tmp_path / "copy")), tmp_path / "gone"
    config = json.loads((run / "config.json").read_text())
    assert {codec.FILE, codec.WEIGHTS} <= config["files"].keys()
    coded.rename(gone)
    try:
        opened = gen.open(run)
        samples = opened.generate(n=6, label=2)
        assert samples["samples"].shape == (6, 4, 4, 2)
        assert opened.show(samples)["samples.png"].startswith(b"\x89PNG")
        # The data are built by the copy, too.
        assert opened.trained.build_data().digest == opened.trained.facts.data
    finally:
        gone.rename(coded)


def test_samples_are_decoded_by_the_tokenizer(generator, coded):
    run = gen.open(generator)
    samples = run.generate(n=3)
    shown = CODE_IMAGES.show(samples, run.trained.view())
    codes = jnp.asarray(samples["samples"])
    np.testing.assert_allclose(shown.arrays["images"], codec.open_codec(coded).show(codes), atol=1e-6)
    assert shown.arrays["images"].shape == (3, 8, 8, 1)
    made = run.trained.to_images({"samples": codes})
    np.testing.assert_allclose(made["samples"], shown.arrays["images"], atol=1e-6)
    np.testing.assert_array_equal(made["codes"], samples["samples"])


@pytest.mark.parametrize("name", [codec.FILE, codec.WEIGHTS])
def test_a_changed_copy_is_refused(generator, tmp_path, name):
    run = Path(shutil.copytree(generator, tmp_path / "copy"))
    content = bytearray((run / name).read_bytes())
    content[-9] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} has changed since checkpoint 5 was saved"):
        gen.open(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        gen.open(run)


def test_weights_that_do_not_fit_are_refused(coded):
    files = codec.open_codec(coded).files()
    other = codec.open_codec(coded)
    fewer = {name: x for name, x in other.arrays.items() if "encoder" not in name}
    wrong = replace(other, arrays=fewer).files()[codec.WEIGHTS]
    with pytest.raises(UserError, match="does not fit"):
        codec.read_codec(files[codec.FILE], wrong, "x")
    scales = replace(other, arrays={**other.arrays, codec.SCALE: np.ones(2, np.float32)}).files()[codec.WEIGHTS]
    with pytest.raises(UserError, match=r"does not fit codec.json: scale is \(2,\)"):
        codec.read_codec(files[codec.FILE], scales, "x")
    with pytest.raises(UserError, match="not part of gen"):
        codec.read_codec(files[codec.FILE].replace(b"gen.families.tokenizer.family.Tok", b"stranger.Tok"), wrong, "x")


@pytest.mark.slow
def test_samples_of_a_latent_flow_are_images(autoencoder, tmp_path, monkeypatch):
    """They are decoded by the sealed copy, a few at a time, in the units of the tokenizer."""
    data = Encoded(data=DIGITS, tokenizer=str(autoencoder), batch_size=8)
    flow = Flow(network=DiT(layers=1, width=8, heads=2, patch=(2,)), likelihood_steps=2)
    path = make_run(tmp_path / "flow", Config(model=flow, data=data, steps=5, parallel=Parallel(devices=1)))
    # A density of latents would depend on their units.
    model = gen.open(path).trained.model
    assert model.test is None and "units" in str(model.protocol["bits_per_dim"]["refused"])
    whole, scale = codec.open_codec(autoencoder), codec.open_codec(path).scale
    assert scale not in (0, 1)
    monkeypatch.setattr(codec, "CHUNK_NUMBERS", 2 * 8 * 8)
    run = gen.open(path)
    samples = run.generate(n=5, steps=2)
    assert samples["samples"].shape == (5, 4, 4, 3)
    expected = whole.coder.show(*whole.weights, jnp.asarray(samples["samples"]) * scale)
    shown = CODE_IMAGES.show(samples, run.trained.view()).arrays["images"]
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    monkeypatch.setattr(image_subject, "GENERATE_CHUNK", 8)
    subject = open_subject(path, Options((path,), n=3, request=("steps=2",)))
    assert isinstance(subject, image_subject.ImageSubject)
    assert (subject.generated.image.shape, subject.generated.image.dtype) == ((3, 8, 8, 1), np.uint8)
    # Other images are encoded in the units of the flow, if its copy is the tokenizer, and are then other data.
    fewer = replace(DIGITS, train="train[:40]")
    own, kept = (Encoded(data=fewer, tokenizer=str(each), batch_size=8).build() for each in (autoencoder, path))
    scales = [codec.read_codec(x.files[codec.FILE], x.files[codec.WEIGHTS], "a run").scale for x in (own, kept)]
    assert scales[0] != scales[1] == scale and own.digest != kept.digest
    assert replace(data, tokenizer=str(path)).build().digest == run.trained.facts.data


# --- scores ---


def test_samples_of_codes_are_scored_as_images(generator):
    subject = open_subject(generator, Options((generator,), n=40))
    assert isinstance(subject, image_subject.ImageSubject)
    assert subject.generated.image.shape == (40, 8, 8, 1)
    assert subject.generated.image.dtype == np.uint8
    found = scores(Options((generator,), metrics=("tstr", "kid"), n=40))[str(generator)]
    assert {"tstr", "kid", "tstr_gaussian"} <= found.keys()


@pytest.mark.slow
def test_the_ceiling_of_a_tokenizer_is_the_score_of_its_reconstructions(coded):
    subject = open_subject(coded, Options((coded,), n=40))
    training = subject.training  # pyright: ignore
    made = subject.generated  # pyright: ignore
    np.testing.assert_array_equal(made.label, training.label)
    x = (2 * jnp.asarray(training.image, jnp.float32) - 255) / 255
    whole = codec.open_codec(coded)
    shown = np.asarray(whole.show(whole.encode(x)))
    np.testing.assert_allclose(made.image, (np.clip(shown, -1, 1) + 1) * 127.5, atol=1)
    found = scores(Options((coded,), metrics=("tstr", "kid"), n=40))[str(coded)]
    assert {"tstr", "kid"} <= found.keys()
    kept = directory.read_evaluation(coded)
    assert kept is not None and kept.protocol["tstr"]["reconstructions"] == "train"
    assert len(read_split(DIGITS.build(), "test").image) == 150
    with pytest.raises(UserError, match="leave them out"):
        scores(Options((coded,), labels="uniform"))


# --- classes from outside of gen ---


def test_a_tokenizer_of_an_outside_class_is_read_with_trust(tmp_path, monkeypatch):
    (tmp_path / "outside_levels.py").write_text(
        "from dataclasses import dataclass\nfrom gen.families.tokenizer import FSQ\n\n"
        "@dataclass(frozen=True)\nclass Levels(FSQ):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("outside_levels")
    coded = tokenizer_run(tmp_path / "coded", replace(TINY, bottleneck=own.Levels((3, 2))))
    data = Encoded(data=DIGITS, tokenizer=str(coded), batch_size=8)
    workdir = make_run(
        tmp_path / "codes", Config(model=Independent(), data=data, steps=5, parallel=Parallel(devices=1))
    )

    monkeypatch.delitem(sys.modules, "outside_levels")
    codec.read_codec.cache_clear()
    run = gen.open(workdir)
    samples = run.generate(n=2)
    with pytest.raises(
        UserError, match=r"names 'outside_levels.Levels', which is not part of gen.*--trust outside_levels"
    ):
        run.show(samples)
    run = gen.open(workdir, trust=["outside_levels"])
    assert "samples.png" in run.show(run.generate(n=2))
    with pytest.raises(UserError, match="--trust outside_level: No module named"):
        gen.open(workdir, trust=["outside_level"])


# --- errors ---


def test_wrong_tokenizers_are_short_errors(coded, generator, tmp_path):
    def refuse(path: Path, message: str, data: core.Data = DIGITS) -> None:
        with pytest.raises(UserError, match=message):
            Encoded(data=data, tokenizer=str(path)).build()

    refuse(tmp_path / "nowhere", "is not a run directory")
    refuse(tokenizer_run(tmp_path / "begun", step=4), "is not finished: 4 of 5 steps")
    refuse(coded, "encodes images of 8x8x1, and the data have images of 16x16x1", replace(DIGITS, size=16))
    refuse(coded, "encodes grey or coloured pixels, and the data have binary ones", replace(DIGITS, binarize="static"))
    refuse(coded, "encodes image, and the data have tokens", Encoded(data=DIGITS, tokenizer=str(coded)))
    changed = Path(shutil.copytree(coded, tmp_path / "changed"))
    weights = max(changed.glob("checkpoints/5/params/**/0.0*"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    refuse(changed, "damaged|changed|no checkpoint")
    other = Path(shutil.copytree(generator, tmp_path / "other"))
    (other / codec.FILE).unlink()
    refuse(other, "codec.json is missing|is a run of Independent")
    with pytest.raises(UserError, match="variants is 0"):
        Encoded(data=DIGITS, tokenizer="x", variants=0)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (np.nan, "latents that are not finite.* of 300 examples of the train split"),
        (1e9, "latents that are not finite, or over 65,504"),
        (0.0, "makes the same latents"),
    ],
)
def test_latents_that_no_model_can_learn_are_refused(autoencoder, monkeypatch, factor, message):
    good = codec.open_codec(autoencoder)
    # The last layer of the encoder, and the latents with it.
    arrays = {name: x * (factor if "encoder/Conv_1/" in name else 1) for name, x in good.arrays.items()}
    monkeypatch.setattr(encoded, "open_codec", lambda _: replace(good, arrays=arrays))
    with pytest.raises(UserError, match=message):
        Encoded(data=DIGITS, tokenizer=str(autoencoder)).build()


def test_pictures_for_codes_are_checked_as_those_for_images(generator):
    view = gen.open(generator).trained.view()
    with pytest.raises(UserError, match="mode"):
        CODE_IMAGES.check(ImageOptions(image="a.png"), labels.LabelRequest(n=1), view)
