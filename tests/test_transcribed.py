"""Recordings with texts: their folder, their splits, and models that speak a text."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gen import sample
from gen.config import Config, Parallel
from gen.data.audio import Audio, Augmentation, Transcribed
from gen.data.text import tokenizers
from gen.derived import Encoded
from gen.errors import UserError
from gen.evaluation import words
from gen.evaluation.plan import open_subject, plan_scores
from gen.evaluation.score import Options
from gen.evaluation.sound import CaptionedSound
from gen.families.captions import GIVEN
from gen.families.grid import GridLM
from gen.families.tokenizer import FSQ, Residual, Spectral, Tokenizer
from gen.metrics.recognizer import Recipe, load_recognizer
from gen.networks import tokenizer
from gen.networks.spectra import Mel
from gen.networks.transformer import Architecture
from tests.untrained import make_run

soundfile = pytest.importorskip("soundfile")

RATE = 4000
WORDS = ("one", "two", "three")


def write(folder: Path, name: str, level: float, seconds: float = 0.1) -> None:
    """Writes a recording whose loudness tells which text it belongs to."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    square = np.where(np.arange(round(RATE * seconds)) // 20 % 2, level, -level)
    soundfile.write(folder / name, square, RATE, "PCM_16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 recordings of 30 texts, each by two voices, and one that is too long."""
    folder = tmp_path_factory.mktemp("spoken")
    for i in range(30):
        for voice in ("a", "b"):
            write(folder, f"{voice}/{i}.wav", (i + 1) / 64)
            (folder / voice / f"{i}.txt").write_text(f"{WORDS[i % 3].upper()}  {i}\n")
    write(folder, "a/long.wav", 0.9, seconds=0.3)
    (folder / "a/long.txt").write_text("a long one")
    return folder


def options(folder: Path, **more: Any) -> Transcribed:
    return Transcribed(
        name=f"captions:{folder}", rate=RATE, seconds=0.1, tokenizer="character", length=10, batch_size=8, **more
    )


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def test_each_recording_has_its_text_and_one_text_is_in_one_split(folder, capsys):
    data = options(folder, held_out=0.2).build()
    assert data.spec["audio"].shape == (400, 1) and data.spec["audio"].sample_rate == RATE
    assert sum(data.sizes.values()) == 60
    coder, seen = tokenizers.load(data.files[tokenizers.FILE]), []
    for split, size in data.sizes.items():
        (batch,) = data.evaluation(split, size)
        texts = [tokenizers.decode(coder, row) for row in batch["caption"].tolist()]
        # The loudness says which text was read.
        numbers = np.rint(np.abs(batch["audio"][:, 0, 0]) / 2**15 * 64 - 1).astype(int).tolist()
        assert texts == [f"{WORDS[i % 3]} {i}" for i in numbers]
        assert all(numbers.count(i) == 2 for i in numbers)
        seen += sorted(set(numbers))
    assert sorted(seen) == list(range(30))
    assert "1 recordings are longer than 0.1 s and left out" in capsys.readouterr().err


def test_training_recordings_are_augmented(folder):
    data = options(folder, augment=Augmentation(gain=6.0)).build()
    batch = jax.device_put(data.batch(0, 0, range(4)))
    plain, changed = (
        np.asarray(data.preprocess(batch, jax.random.key(0), training)["audio"]) for training in (False, True)
    )
    ratios = changed[:, 30, 0] / plain[:, 30, 0]
    assert len(set(ratios.round(3))) == 4 and (abs(20 * np.log10(ratios)) < 6.001).all()


def test_lines_of_a_file_name_recordings_and_groups(tmp_path):
    lines = [{"audio": f"{i}.wav", "text": f"take {i}", "group": str(i // 4)} for i in range(60)]
    for i in range(60):
        write(tmp_path, f"{i}.wav", 0.5)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = options(tmp_path, held_out=0.3).build()
    for split, size in data.sizes.items():
        (batch,) = data.evaluation(split, size)
        assert all(batch["group"].tolist().count(group) == 4 for group in batch["group"].tolist())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "2.txt").unlink(), "2.wav has no caption; add 2.txt, or remove the recording"),
        (lambda f: (f / "9.txt").write_text("nine"), "9.txt has no recording of the same name"),
        (lambda f: [write(f, f"{i}.wav", 0.5, 0.52) for i in range(3)], "longer than 0.1 s; the fix: --data.seconds 0.6"),
        (lambda f: [path.unlink() for path in f.glob("*.wav")], "there are no sound files in it"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_one_short_error(tmp_path, damage, message):
    for i in range(3):
        write(tmp_path, f"{i}.wav", 0.5)
        (tmp_path / f"{i}.txt").write_text(f"take {i}")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        options(tmp_path).build()


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """A run without any training that speaks texts."""
    runs, data = tmp_path_factory.mktemp("runs"), options(folder, held_out=0.2)
    coder = Tokenizer(
        network=tokenizer.Residual((4,), (40,)),
        bottleneck=Residual(2, FSQ((3, 2))),
        reconstruction=Spectral((32,), (4,)),
    )
    alone = Parallel(devices=1)
    sound = Audio(name=f"audio:{folder}", rate=RATE, seconds=0.1, long="start", batch_size=8)
    make_run(runs / "codec", Config(model=coder, data=sound, steps=1, parallel=alone))
    model = GridLM(network=Architecture(1, 16, 2), inner_layers=1, conditional=True, label_dropout=0.1)
    codes = Encoded(data=data, tokenizer=str(runs / "codec"), batch_size=8)
    make_run(runs / "run", Config(model=model, data=codes, steps=1, parallel=alone))
    return runs / "run"


def test_prompts_are_spoken_in_turn_and_samples_are_verified(run, tmp_path):
    prompts = ("--prompt", "One 1", "--prompt", "two 2")
    assert sample.main([str(run), "--n", "3", "--guidance", "2", *prompts, "--out", str(tmp_path / "out")]) == 0
    assert soundfile.read(tmp_path / "out" / "samples" / "00002.wav")[0].shape == (400,)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays["captions"].shape == (3, 10)
        np.testing.assert_array_equal(arrays["captions"][0], arrays["captions"][2])
        assert not np.array_equal(arrays["captions"][0], arrays["captions"][1])
    assert sample.main(["--verify", str(tmp_path / "out" / "manifest.json")]) == 0
    with pytest.raises(UserError, match="cannot write 'x'"):
        sample.main([str(run), "--prompt", "x y", "--out", str(tmp_path / "other")])


def test_held_out_texts_are_spoken_for_scores(run):
    subject = open_subject(run, Options((run,), n=20))
    assert isinstance(subject, CaptionedSound)
    given = subject.conditions(20)[GIVEN]
    held_out = subject.held_out.caption
    assert held_out is not None
    assert {tuple(row) for row in given.tolist()} == {tuple(row) for row in held_out.tolist()}
    assert subject.data.spec["image"].shape[-1] == 1


@pytest.mark.slow
def test_the_word_error_of_speech_is_planned_and_measured(run, monkeypatch):
    # The recordings are so short that only short frames have room for their texts.
    monkeypatch.setattr("gen.metrics.recognizer.choose_mel", lambda audio: Mel(window=32, hop=8, bands=4))
    recipe = Recipe(width=8, dilations=(1,), steps=2, warmup=1)
    monkeypatch.setattr("gen.evaluation.sound.load_recognizer", partial(load_recognizer, recipe=recipe))
    subject = open_subject(run, Options((run,), metrics=("words",)))
    assert isinstance(subject, CaptionedSound)
    made, real = plan_scores(subject).scores
    assert all(error >= 0 for score in (made, real) for error in score.compute())
    assert dict(made.protocol)["recognizer"] == asdict(recipe)
    # The same weights come from the cache.
    assert load_recognizer(subject.data, recipe=recipe).protocol["weights"] == made.protocol["weights"]
    # Of a large split, only the first recordings are read and spoken, and the protocol says how many.
    assert made.protocol["n_fake"] == subject.n_held_out > 3
    for module in ("gen.metrics.recognizer", "gen.evaluation.words"):
        monkeypatch.setattr(f"{module}.MAX_RECORDINGS", 3)
    made, _ = plan_scores(subject).scores
    assert made.protocol["n_fake"] == len(words.speak(subject)) == 3
    assert all(error >= 0 for error in made.compute())
