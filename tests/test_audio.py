"""Recordings as data: formats, resampling, windows, names of files, the cache, and files that are not sound."""

import io
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Feature
from gen.data import cache as caches
from gen.data.audio import Audio, sound
from gen.data.audio.naming import read_fields
from gen.errors import UserError
from tests.datasets import assert_same, check_contract, check_padding, read_split

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 1000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def sine(seconds: float, hertz: float = 50, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, x: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate, subtype)
    return path


@pytest.fixture
def words(tmp_path) -> Path:
    """Returns a folder of twelve recordings of 0.1 to 0.65 s: three words by two speakers, two takes each."""
    for i, name in enumerate(
        f"{word}_{speaker}_{take}" for word in ("go", "no", "yes") for speaker in "ab" for take in "01"
    ):
        write(tmp_path / "words" / f"{name}.wav", sine(0.1 + 0.05 * i, 20 + i))
    return tmp_path / "words"


def audio_of(path: Path, **options) -> Audio:
    defaults = {"name": f"audio:{path}", "rate": RATE, "seconds": 0.2, "batch_size": 5}
    return Audio(**defaults | options)


WORDS = {"pattern": "{label}_{speaker}_{take}.wav"}


def test_tones_have_the_frequencies_of_their_classes():
    data = Audio(seconds=0.5, batch_size=8).build()
    names = ("C", "D", "E", "G", "A", "C major", "D minor", "E minor", "F major", "G major")
    assert data.spec == {"audio": Feature((4000, 1), sample_rate=8000), "label": Feature((), "int32", classes=10)}
    assert data.spec["label"].names == names
    assert data.sizes == {"train": 500, "validation": 100, "test": 100}
    found = read_split(data, "test")
    a = found["audio"][found["label"] == 4, :, 0].astype(float)
    peaks = np.abs(np.fft.rfft(a, 8000)).argmax(1)  # in Hz: the transform has 8000 points
    np.testing.assert_allclose(peaks, 440, rtol=0.02)
    assert np.ptp(peaks) > 2  # each is out of tune in its own way
    seen = data.preprocess({"audio": jnp.asarray(found["audio"])}, jax.random.key(0), False)["audio"]
    assert seen.dtype == np.float32 and np.abs(seen).max((1, 2)).min() > 0.25 and np.abs(seen).max() <= 1


def test_files_of_all_formats_hold_the_same_sound(tmp_path):
    x = sine(0.5, 440, 8000)
    formats = {"a8.wav": "PCM_U8", "a16.wav": "PCM_16", "a24.wav": "PCM_24", "a32.wav": "FLOAT", "a64.wav": "DOUBLE"}
    formats |= {"a.flac": "PCM_16", "a.ogg": "VORBIS", "a.mp3": "MPEG_LAYER_III"}
    errors = {"a8.wav": 1 / 127, "a.ogg": 0.1, "a.mp3": 0.1}
    for name, subtype in formats.items():
        found = sound.decode(write(tmp_path / name, x, 8000, subtype), 8000, 1)[:, 0] / 2**15
        assert len(found) == len(x), name
        # Compressed sound is only the same on the whole.
        error = np.abs(found - x)
        assert (error.mean() if name.endswith(("ogg", "mp3")) else error.max()) <= errors.get(name, 3.1e-5), name
    both = np.stack([x, -x / 2], 1)
    stereo = write(tmp_path / "stereo.wav", both, 8000)
    np.testing.assert_allclose(sound.decode(stereo, 8000, 2) / 2**15, both, atol=3.1e-5)
    np.testing.assert_allclose(sound.decode(stereo, 8000, 1)[:, 0] / 2**15, x / 4, atol=4e-5)
    assert (
        sound.decode(tmp_path / "a16.wav", 8000, 2)[:, 1] == sound.decode(tmp_path / "a16.wav", 8000, 1)[:, 0]
    ).all()


def test_another_rate_is_resampled_and_said_once(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / "in" / f"{i}.wav", sine(0.5, 50, 4410), 4410)
    write(tmp_path / "in" / "3.wav", sine(0.5))
    data = audio_of(tmp_path / "in", seconds=0.5, train="train", validation="train", test="train").build()
    # 200 samples in the middle: filters ring at both ends.
    found = read_split(data, "train")["audio"][:, 150:350, 0] / 2**15
    np.testing.assert_allclose(found, np.broadcast_to(sine(0.5)[150:350], found.shape), atol=2e-3)
    said = capsys.readouterr().err
    assert said.count("resampled to 1,000 Hz: 3 recordings of 4,410 Hz") == 1
    assert "4 recordings of 0.5 to 0.5 s (2 s), no classes" in said


def test_long_recordings_are_cut_and_short_ones_end_with_silence(words, capsys):
    options = {"train": "train", "validation": "train", "test": "train", **WORDS}
    data = audio_of(words, **options).build()
    # 0.1 to 0.65 s in windows of 0.2 s; a rest of half a window is a window.
    counts = np.maximum(1, np.floor((0.1 + 0.05 * np.arange(12)) / 0.2 + 0.5 + 1e-9)).astype(int)
    assert data.sizes["train"] == counts.sum()
    assert "2 recordings are shorter and end with silence; 8 have several windows" in capsys.readouterr().err
    found = read_split(data, "train")["audio"][..., 0]
    whole = soundfile.read(words / "yes_b_1.wav", dtype="int16")[0]
    at = next(i for i, x in enumerate(found) if (x == whole[:200]).all())
    np.testing.assert_array_equal(found[at : at + 3].reshape(-1), whole[:600])
    short = np.pad(soundfile.read(words / "go_a_0.wav", dtype="int16")[0], (0, 100))
    assert (found == short).all(1).sum() == 1
    first = read_split(audio_of(words, long="start", **options).build(), "train")["audio"][..., 0]
    assert len(first) == 12 and (first == whole[:200]).all(1).any()
    # The same windows if they are read from the files each time.
    large = audio_of(words, in_memory=0, **options)
    assert_same(read_split(data, "train"), read_split(large.build(), "train"))
    check_contract(large.build, 5)
    check_padding(data, "test", 7)


def test_names_of_files_give_classes_and_splits(words):
    data = audio_of(words, long="start", test="take=1", validation="speaker=b", train="train", **WORDS)
    with pytest.raises(UserError, match=r"no field 'tape'; the fields of --data.pattern are label, speaker, take"):
        audio_of(words, test="tape=1", **WORDS).build()
    with pytest.raises(UserError, match="no speaker 'c'; it has a, b"):
        audio_of(words, test="speaker=a,c", **WORDS).build()
    with pytest.raises(UserError, match=r"there is no --data\.pattern"):
        audio_of(words, test="speaker=a").build()
    with pytest.raises(UserError, match=r"do not fit --data\.pattern"):
        audio_of(words, pattern="{label}-{speaker}.wav").build()
    built = data.build()
    assert built.spec["label"].names == ("go", "no", "yes")
    assert built.sizes == {"train": 3, "validation": 6, "test": 6}
    loudest = {path.name: soundfile.read(path, dtype="int16")[0][:100] for path in words.glob("*_a_0.wav")}
    train = read_split(built, "train")
    for name, x in loudest.items():
        at = (train["audio"][:, :100, 0] == x).all(1)
        assert train["label"][at].tolist() == [["go", "no", "yes"].index(name.partition("_")[0])]
    # A test set of one field alone: the other recordings are divided.
    config = audio_of(words, long="start", test="speaker=b", **WORDS).resolve()
    assert (config.train, config.validation) == ("train[:90%]", "train[90%:]")
    assert config.build().sizes == {"train": 5, "validation": 1, "test": 6}


def test_a_pattern_may_describe_the_whole_path():
    assert read_fields("{speaker}/*/{label}.wav", ["ann/x/go.wav"], "f") == [{"speaker": "ann", "label": "go"}]
    assert read_fields("{label}_*", ["deep/a.b_c_d.wav"], "f") == [{"label": "a.b"}]
    with pytest.raises(UserError, match="each once"):
        read_fields("{a}_{a}", ["b_c"], "f")


def write_bad(path: Path, how: str) -> None:
    match how:
        case "text":
            path.write_text("not a sound")
        case "empty":
            path.write_bytes(b"")
        case "no samples":
            write(path, np.zeros(0))
        case "silent":
            write(path, np.zeros(100))
        case "NaN":
            write(path, np.where(np.arange(100) == 9, np.nan, 0.1), subtype="FLOAT")
        case "normalize":
            write(path, 1000 * sine(0.1), subtype="FLOAT")
        case "cut off":
            write(path, sine(0.1))
            path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("how", ["text", "empty", "no samples", "silent", "NaN", "normalize", "cut off"])
def test_a_file_that_is_no_sound_is_named_or_skipped(words, how, caplog):
    path = words / "no_c_0.wav"
    write_bad(path, how)
    for in_memory in (2**31, 0):
        with pytest.raises(UserError) as error:
            list(
                audio_of(words, train="train", validation="train", test="train", in_memory=in_memory)
                .build()
                .evaluation("train", 4)
            )
        assert str(path) in str(error.value) and "--data.skip-bad" in str(error.value)
        assert how in ("text",) or how in str(error.value)
    with caplog.at_level(logging.WARNING):
        data = audio_of(words, long="start", train="train", validation="train", test="train", skip_bad=True).build()
    assert data.sizes["train"] == 12 and "skipped 1 of 13 recordings" in caplog.text


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.mp3"])
def test_a_file_that_is_shorter_than_its_header_says_is_no_sound(tmp_path, name):
    """Otherwise its last window would end with silence."""
    path = write(tmp_path / name, sine(2.0, 200, 8000), 8000)
    assert len(sound.decode(path, 8000, 1)) == 16_000
    # An odd chunk that comes before the samples, and a file that a pipe has made: its length is unknown.
    if name == "a.wav":
        whole = path.read_bytes()
        at = whole.index(b"data")
        odd, unknown = b"note\x03\0\0\0abc\0", b"data\xff\xff\xff\xff"
        assert len(sound.decode(whole[:at] + odd + unknown + whole[at + 8 :], 8000, 1)) == 16_000
        with pytest.raises(ValueError, match="cut off"):
            sound.decode(whole[:at] + odd + whole[at:-1], 8000, 1)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="lost sync" if name == "a.flac" else "is cut off: it has .* copy it again"):
        sound.decode(path, 8000, 1)


def test_the_length_of_an_mp3_without_counts_is_counted(tmp_path):
    """libsndfile estimates it by the number of bytes, which is not an error of the file."""
    path = write(tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.1, (1152, 2)), 16_000)
    content = path.read_bytes()
    # The first frame has the counts and no sound. Each frame begins with the same two bytes.
    content = content[content.index(content[:2], 4) :]
    n = len(sound.decode(content, 16_000, 2))
    assert n == sound.read_header(content).frames != soundfile.SoundFile(io.BytesIO(content)).frames
    # A title that has the name of the counts.
    tagged = b"ID3\x03\0\0\0\0\1\0" + b"Info".ljust(128) + content
    assert sound.read_header(tagged).frames == n


def test_the_second_build_reads_the_cache_and_heals_it(words, cache, monkeypatch, capsys):
    first = audio_of(words, **WORDS).build()
    with monkeypatch.context() as patch:
        patch.setattr(sound, "decode", lambda *_: pytest.fail("decoded again"))
        patch.setattr(sound, "read_header", lambda *_: pytest.fail("surveyed again"))
        assert audio_of(words, **WORDS).build().digest == first.digest
    (entry,) = [path.parent for path in cache.rglob("audio.npy")]
    content = bytearray((entry / "audio.npy").read_bytes())
    content[-1] ^= 1
    (entry / "audio.npy").write_bytes(content)
    again = audio_of(words, **WORDS).build()
    assert "the cache is damaged" in capsys.readouterr().err
    assert again.digest == first.digest
    assert_same(read_split(again, "train"), read_split(first, "train"))
    assert caches.load(entry) is not None
    write(words / "go_a_0.wav", sine(0.1, 99))
    assert audio_of(words, **WORDS).build().digest != first.digest
    assert audio_of(words, rate=500, **WORDS).build().digest != first.digest


def test_wrong_options_and_missing_packages_are_one_line(words, tmp_path, monkeypatch):
    for options, message in [
        ({"name": "audio:"}, "neither tones nor audio:PATH"),
        ({"name": f"audio:{tmp_path / 'no'}"}, "no such folder"),
        ({"rate": 0}, "--data.rate is 0"),
        ({"seconds": 1e9}, "change --data.seconds"),
        ({"name": "tones", "pattern": "{label}"}, "have no file names"),
    ]:
        with pytest.raises(UserError, match=message):
            audio_of(words, **options).build()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.m4a").write_text("")
    with pytest.raises(UserError, match=r"no sound files in it.*it has 1 .m4a"):
        audio_of(tmp_path / "other").build()
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "WAV"})
    (words / "go_a_9.mp3").write_bytes(b"0" * 1000)
    with pytest.raises(UserError, match="is MP3, which this libsndfile can't read: pip install -U soundfile"):
        audio_of(words).build()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"pip install 'gen\[audio\]'"):
        audio_of(words).build()
