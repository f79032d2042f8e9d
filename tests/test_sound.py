"""Sound in models and files: WAV files, sheets and pages, the loss and the quality of a codec by hand, and a run from end to end."""

import io
import wave
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from untrained import make_run

from gen import sample
from gen.core import Feature, Request, RunView
from gen.data.audio.frames import stretch
from gen.derived import Encoded
from gen.derived.code_sounds import CODE_SOUNDS, SoundOptions, find_kept
from gen.derived.codec import open_codec
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options
from gen.evaluation.sound import SoundReconstructions, spectrogram_mel
from gen.families.flow import sampling as flow
from gen.families.grid.grid import GridRequest
from gen.families.tokenizer import FSQ, KL, L2, Adversary, Fixed, Residual, Spectral, Tokenizer
from gen.families.tokenizer.quality import measure_quality
from gen.families.tokenizer.spectral import mel_distance, si_sdr
from gen.families.vae import sampling as vae
from gen.media.arrays import ARRAYS
from gen.media.audio import BORDER, MEL_HEIGHT, SOUND, WAVE_HEIGHT, WIDTH, encode_wav
from gen.networks import tokenizer
from gen.networks.spectra import Mel, log_mels
from gen.networks.vocoder import SpectralCodec, Vocoder
from gen.runs.trained import open_run

RNG = np.random.default_rng(0)
RATE, T = 1000, 400
SPEC = {"audio": Feature((T, 1), sample_rate=RATE), "label": Feature((), "int32", classes=2, names=("a<b", "c"))}
T_CODES = 100


def sounds(n: int, channels: int = 1) -> np.ndarray:
    """Sines of 50 Hz with noise, float32 [n, T, channels]."""
    x = 0.4 * np.sin(2 * np.pi * 50 * np.arange(T) / RATE)[None, :, None]
    return (x + RNG.normal(0, 0.05, (n, T, channels))).astype(np.float32)


def mel_difference(x, y, mel: Mel):
    return jnp.abs(log_mels(x[..., 0], RATE, mel) - log_mels(y[..., 0], RATE, mel)).mean((1, 2))


def view(spec) -> RunView:
    return RunView(None, spec, None, None, None)  # pyright: ignore[reportArgumentType]


def read_wav(content: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getsampwidth()) == (RATE, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())


def test_a_wav_file_holds_the_samples():
    x = sounds(1, channels=2)[0]
    np.testing.assert_allclose(read_wav(encode_wav(x, RATE)) / 2**15, x, atol=0.5 / 2**15 + 1e-7)
    assert read_wav(encode_wav(np.array([[2.0], [-2.0]]), RATE)).ravel().tolist() == [2**15 - 1, -(2**15)]


def test_samples_become_wav_files_a_sheet_and_a_page():
    made = {"samples": sounds(3), "labels": np.array([0, 1, 0])}
    made["samples"][2] = np.nan  # a diverged model is shown too
    shown = SOUND.show(made, view(SPEC), SOUND.options())
    stems = ["00000_label0_a-b", "00001_label1_c", "00002_label0_a-b"]
    assert set(shown.files) == {
        "samples.png",
        "samples.wav",
        "samples.html",
        *(f"samples/{stem}.wav" for stem in stems),
    }
    np.testing.assert_allclose(
        read_wav(shown.files["samples/00001_label1_c.wav"]) / 2**15, made["samples"][1], atol=2e-5
    )
    assert not read_wav(shown.files[f"samples/{stems[2]}.wav"]).any()
    page = shown.files["samples.html"].decode()
    assert all(f'src="samples/{stem}.wav"' in page for stem in stems)
    sheet = np.asarray(Image.open(io.BytesIO(shown.files["samples.png"])))
    height = WAVE_HEIGHT + MEL_HEIGHT + BORDER
    assert sheet.shape == (height + BORDER, 3 * (WIDTH + BORDER) + BORDER)
    # 50 Hz are near the bottom of the spectrogram, which goes up to 500 Hz.
    rows = sheet[BORDER + WAVE_HEIGHT : height, BORDER : BORDER + WIDTH].mean(1)
    assert rows.argmin() > 0.8 * MEL_HEIGHT
    # In training: one picture and one sound, which begins with the first sample.
    few = SOUND.show(made, view(SPEC))
    assert set(few.files) == {"samples.png", "samples.wav"}
    np.testing.assert_allclose(read_wav(few.files["samples.wav"])[:T] / 2**15, made["samples"][0], atol=2e-5)


def test_rows_of_samples_stay_rows():
    pairs = np.stack([sounds(2), sounds(2)])
    sheet = Image.open(io.BytesIO(SOUND.show({"samples": pairs}, view(SPEC)).files["samples.png"]))
    assert sheet.size == (2 * (WIDTH + BORDER) + BORDER, 2 * (WAVE_HEIGHT + MEL_HEIGHT + BORDER) + BORDER)


def test_si_sdr_is_the_ratio_of_the_part_along_the_target():
    x = sounds(2)
    noise = RNG.normal(size=x.shape)
    noise -= x * (x * noise).sum((1, 2), keepdims=True) / np.square(x).sum((1, 2), keepdims=True)
    for scale in (1.0, 0.3):
        found = si_sdr(jnp.asarray(x), jnp.asarray(scale * (x + 0.1 * noise)))
        expected = 10 * np.log10(np.square(x).sum((1, 2)) / np.square(0.1 * noise).sum((1, 2)))
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_twice_as_loud_is_a_mel_distance_of_log_two():
    x, loss = jnp.asarray(RNG.normal(size=(2, T, 2)), jnp.float32), Spectral((32, 128), (4, 8), rate=RATE)
    np.testing.assert_allclose(mel_distance(x, 2 * x, RATE), np.log(2), rtol=1e-4)
    found = loss.loss(2 * x, x)
    np.testing.assert_allclose(found, 2 * np.log(2) + np.abs(x).mean((1, 2)), rtol=1e-4)


def test_bits_per_second_count_all_books():
    codes = Feature((20, 3), "int32", vocab=64, axes=("time", "book"))
    found = measure_quality(jnp.asarray(sounds(2)), jnp.asarray(sounds(2)), SPEC["audio"], codes)
    np.testing.assert_allclose(found["bits_per_second"], 20 * 3 * 6 / 0.4, rtol=1e-6)


CODEC = Tokenizer(
    network=tokenizer.Residual((4,), (4,)), bottleneck=Residual(2, FSQ((3, 2))), reconstruction=Spectral((32,), (4,))
)


def test_a_codec_has_codes_of_time_and_book_and_takes_the_rate_from_the_data():
    coder = CODEC.coder(SPEC)
    assert coder.codes == Feature((T_CODES, 2), "int32", vocab=6, axes=("time", "book"))
    assert isinstance(coder.reconstruction, Spectral) and coder.reconstruction.rate == RATE
    assert "bits_per_second" in CODEC.build(SPEC, 1).protocol
    with pytest.raises(UserError, match="compare images"):
        replace(CODEC, adversary=Adversary()).coder(SPEC)
    with pytest.raises(UserError, match="the data have none"):
        CODEC.coder({"image": Feature((8, 8, 1))})
    with pytest.raises(UserError, match="one of each for a scale"):
        Spectral((32,), (4, 4))


@pytest.fixture(scope="module")
def codec(tiny, tmp_path_factory):
    """Returns an untrained run of a small codec of tones, 0.1 s long, with a code for each 80 samples."""
    config = tiny("codec_tones")
    network = tokenizer.Residual((4, 4, 4), (4, 4, 5))
    return make_run(
        tmp_path_factory.mktemp("runs") / "codec", replace(config, model=replace(config.model, network=network))
    )


def test_frames_are_resampled_along_time_or_bands():
    x = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(stretch(x, jnp.float32(1), 0), x)
    half = [[0, 1, 2], [1.5, 2.5, 3.5], [3, 4, 5], [4.5, 5.5, 6.5]]
    np.testing.assert_allclose(stretch(x, jnp.float32(0.5), 0), half)
    np.testing.assert_allclose(stretch(x, jnp.float32(2), 0), [[0, 1, 2], [6, 7, 8], [-1] * 3, [-1] * 3])
    np.testing.assert_allclose(stretch(x, jnp.float32(2), 1), [[0, 2, -1], [3, 5, -1], [6, 8, -1], [9, 11, -1]])


def test_a_vocoder_inverts_log_mels_by_frames():
    mel = Mel(window=32, hop=8, bands=6)
    config = Tokenizer(
        network=Vocoder(mel, width=4, blocks=1), bottleneck=Fixed(6), reconstruction=Spectral((32,), (4,))
    )
    coder, x = config.coder(SPEC), jnp.asarray(sounds(2))
    assert coder.codes == Feature((T // 8 + 1, 6), axes=("time", "channel"))

    @jax.jit
    def reconstruct(x):
        params = coder.init(jax.random.key(0))
        assert params.keys() == {"decoder"}  # the front end is fixed
        return coder.reconstruct(params, {}, x)

    made, codes = reconstruct(x)
    np.testing.assert_allclose(codes, log_mels(x[..., 0], RATE, mel) - np.log(1e-5) / 2, atol=1e-4)
    assert made.shape == x.shape and np.isfinite(made).all()
    # Corrections alone, without any training, bring it near.
    plain = replace(config, network=Vocoder(mel, width=4, blocks=1, corrections=0)).coder(SPEC)
    first, _ = jax.jit(lambda x: plain.reconstruct(plain.init(jax.random.key(0)), {}, x))(x)
    assert (mel_difference(made, x, mel) < 0.5 * mel_difference(first, x, mel)).all()
    with pytest.raises(UserError, match=r"Fixed\(6\)"):
        replace(config, bottleneck=Fixed(5)).coder(SPEC)
    with pytest.raises(UserError, match="mono"):
        config.coder({"audio": Feature((T, 2), sample_rate=RATE)})
    with pytest.raises(UserError, match="a vocoder makes sound"):
        replace(config, reconstruction=L2()).coder({"image": Feature((8, 8, 1))})


def test_a_spectral_codec_encodes_frames_of_log_mels():
    mel = Mel(window=32, hop=8, bands=6)
    config = Tokenizer(
        network=SpectralCodec(mel, width=8, blocks=1),
        bottleneck=Residual(2, FSQ((3, 3))),
        reconstruction=Spectral((32,), (4,), samples=0.0),
    )
    coder, x = config.coder(SPEC), jnp.asarray(sounds(2))
    assert coder.codes == Feature((T // 8 + 1, 2), "int32", vocab=9, axes=("time", "book"))
    params = jax.jit(coder.init)(jax.random.key(0))
    assert params.keys() == {"encoder", "decoder"}
    made, codes = jax.jit(lambda params, x: coder.reconstruct(params, {}, x))(params, x)
    assert made.shape == x.shape and np.isfinite(made).all()
    # The encoder reads magnitudes alone, so a recording and its negative have the same codes.
    np.testing.assert_array_equal(jax.jit(lambda x: coder.reconstruct(params, {}, x)[1])(-x), codes)
    with pytest.raises(UserError, match="mono"):
        config.coder({"audio": Feature((T, 2), sample_rate=RATE)})


def test_a_spectral_codec_learns_to_reconstruct():
    mel = Mel(window=32, hop=8, bands=6)
    config = Tokenizer(
        network=SpectralCodec(mel, width=8, blocks=1),
        bottleneck=KL(weight=0.0, size=6),
        reconstruction=Spectral((32,), (4,), samples=0.0),
    )
    # Sines of different frequencies, so that no output that ignores the codes fits all of them.
    hertz = np.array([50, 120, 250, 400])[:, None, None]
    coder, x = config.coder(SPEC), jnp.asarray(0.4 * np.sin(2 * np.pi * hertz * np.arange(T)[None, :, None] / RATE))
    optimizer = optax.adam(1e-2)

    def loss(params):
        made, _ = coder.reconstruct(params, {}, x)
        return coder.reconstruction.loss(made, x).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(coder.init)(jax.random.key(0))
    state = optimizer.init(params)
    values = []
    for _ in range(100):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]


@pytest.mark.slow
def test_spectrograms_are_scored_as_images(codec, monkeypatch):
    monkeypatch.setattr("gen.evaluation.reconstructions.GENERATE_CHUNK", 8)
    subject = open_subject(codec, Options((codec,), n=12, features="pixels"))
    assert isinstance(subject, SoundReconstructions)
    audio, image = subject.data.spec["audio"], subject.data.spec["image"]
    assert (audio.shape, image.shape) == ((800, 1), (26, 8, 1))
    # 26 frames of 8 bands: bytes of the log of the mels, computed anew.
    batch = subject.data.batch(0, 0, range(12))
    sound = batch["audio"][..., 0].astype(np.float32) / 2**15
    logs = np.asarray(log_mels(jnp.asarray(sound), 8000, spectrogram_mel(audio)))
    expected = ((logs + 9) / 12).clip(0, 1) * 255
    np.testing.assert_allclose(subject.training.image[..., 0], expected, atol=0.51)
    np.testing.assert_array_equal(subject.training.label, batch["label"])
    # The codec is not trained, so that the last chunk, which is filled up, is the only thing to see.
    assert subject.generated.image.shape == (12, 26, 8, 1)
    assert subject.generated_protocol["spectrograms"] == {**asdict(spectrogram_mel(audio)), "black": -9.0, "white": 3.0}
    found = scores(Options((codec,), metrics=("kid",), n=12, features="pixels"))[str(codec)]
    assert found["kid"] > 0


@pytest.mark.slow
def test_a_run_is_sampled_and_verified(codec, capsys):
    workdir = codec
    assert sample.main([str(workdir), "--n", "4"]) == 0
    (folder,) = (workdir / "generated").iterdir()
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wavs = {f"samples/{i:05d}.wav" for i in range(8)}
    assert names == {"samples.png", "samples.wav", "samples.html", "samples.npz", "manifest.json", *wavs}
    run = open_run(workdir, ())
    reference = run.reference()["audio"][:4]
    # The first row holds the recordings, and the second one what the codec makes of them.
    made = np.load(folder / "samples.npz")["samples"]
    np.testing.assert_array_equal(made[0], reference)
    assert sample.main(["--verify", str(folder / "manifest.json")]) == 0
    assert "byte for byte" in capsys.readouterr().out


@pytest.mark.slow
def test_codes_of_sound_are_data_and_are_shown_as_sound(codec, tmp_path):
    audio = open_run(codec, ()).config.data
    encoded = Encoded(data=audio, tokenizer=str(codec), batch_size=4)
    data, recordings = encoded.build(), audio.build()
    batch, whole = (each.batch(0, 0, range(4)) for each in (data, recordings))
    assert data.spec["tokens"].axes == ("time", "book")
    np.testing.assert_array_equal(batch["label"], whole["label"])
    assert encoded.medium() is CODE_SOUNDS
    view = RunView(encoded, data.spec, lambda name: data.files[name], dict, lambda *_: data)
    shown = CODE_SOUNDS.show({"samples": batch["tokens"]}, view, CODE_SOUNDS.options())
    opened = open_codec(codec)
    sound = recordings.preprocess(jax.device_put(whole), jax.random.key(0), False)["audio"]
    made = np.asarray(jax.jit(lambda x: opened.show(opened.encode(x)))(sound))
    assert shown.arrays["images"].shape == made.shape
    np.testing.assert_allclose(shown.arrays["images"], made, atol=1e-5)
    assert "samples/00003.wav" in shown.files
    # A recording that is given becomes the codes of its beginning, and its end is left to write.
    path = tmp_path / "given.wav"
    path.write_bytes(encode_wav(np.asarray(sound[0, :500]), 8000))
    options = CODE_SOUNDS.read_options(SoundOptions(path, "0.02:0.03"))
    assert options.audio is None
    given = CODE_SOUNDS.give(options, view).arrays
    padded = jnp.zeros((1, 800, 1)).at[0, :500].set(sound[0, :500])
    np.testing.assert_array_equal(given["tokens"], opened.encode(padded))
    # A code stands for 80 samples. The gap is from sample 160 to 240, and 500 samples have six whole codes.
    assert given["known"].shape == (1, 10, 2)
    assert given["known"][0, :, 0].tolist() == [True] * 2 + [False] + [True] * 3 + [False] * 4
    path.write_bytes(encode_wav(np.asarray(sound[:2, :, 0]).reshape(-1, 1), 8000))
    with pytest.raises(UserError, match=r"the file has 0\.2 s, and the model's windows have 0\.1 s"):
        CODE_SOUNDS.give(CODE_SOUNDS.read_options(SoundOptions(path)), view)
    path.write_text("no sound")
    with pytest.raises(UserError, match="can't be read as sound"):
        CODE_SOUNDS.give(CODE_SOUNDS.read_options(SoundOptions(path)), view)
    with pytest.raises(UserError, match="sound of 8000 Hz, and the data have 4400 Hz"):
        Encoded(data=replace(audio, rate=4400, seconds=800 / 4400), tokenizer=str(codec)).build()


def test_the_parts_of_a_recording_that_are_kept():
    audio = Feature((100, 1), sample_rate=100)
    assert find_kept(50, audio, 10, None).tolist() == [True] * 5 + [False] * 5
    assert find_kept(100, audio, 10, ":0.25").tolist() == [False] * 3 + [True] * 7
    assert find_kept(100, audio, 10, "0.75:").tolist() == [True] * 7 + [False] * 3
    with pytest.raises(UserError, match="nothing is left to write"):
        find_kept(100, audio, 10, None)
    assert find_kept(10, audio, 10, None).sum() == 1
    with pytest.raises(UserError, match=r"the file has 0\.09 s, and a code has 0\.1 s; give a longer one"):
        find_kept(9, audio, 10, None)
    for file, gap in ((None, "0:1"), *((Path("f"), gap) for gap in ("x", ":", ".:", "0.6:0.3", "0.3:0.3"))):
        with pytest.raises(UserError, match="--gap"):
            SoundOptions(file, gap)


def test_an_empty_recording_is_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UserError, match=r"--audio .*empty\.wav is empty: it has no bytes"):
        CODE_SOUNDS.read_options(SoundOptions(tmp_path / "empty.wav"))


@pytest.mark.parametrize("medium", [SOUND, CODE_SOUNDS, ARRAYS], ids=lambda medium: type(medium).__name__)
def test_a_mode_of_pictures_or_scores_is_refused_where_there_are_none(medium):
    for request in (GridRequest(mode="harmonize"), GridRequest(mode="inpaint"), flow.Request(mode="edit")):
        with pytest.raises(UserError, match=f"mode {request.mode} changes a picture or a score"):
            medium.check(medium.options(), request, view(SPEC))
    for request in (GridRequest(), flow.Request(), vae.Request(mode="interpolate"), Request()):
        medium.check(medium.options(), request, view(SPEC))
