"""Musical scores in models and files: MIDI files, sheets and pages, the parts of a given score, and rules of four-part writing.

A run is tested from end to end.
"""

import base64
import io
import wave
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import make_run

import gen
from gen import sample
from gen.core import Feature, RunView
from gen.data.music import Music, midi
from gen.data.music.roll import AXES, HELD, REST, hold
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation.music import shuffle_voices
from gen.evaluation.score import Options
from gen.families.grid.grid import GridRequest
from gen.media import find_medium
from gen.media.arrays import ARRAYS
from gen.media.music import BORDER, COLORS, FRAME, PITCH, RATE, SCORES, ScoreOptions, play, render
from gen.metrics.scores import count_parallels, distance, doubled_leading, find_tonic, measure

pytest.importorskip("mido")

SPEC = {"tokens": Feature((16, 4), "int32", vocab=HELD, axes=AXES)}
CADENCE = np.array([[65, 60, 57, 53], [65, 62, 58, 50], [64, 60, 55, 48], [65, 60, 57, 53]]).repeat(4, 0)
"""Four chords of F major, each for a quarter note."""


def view(spec=SPEC, **options) -> RunView:
    return RunView(Music(**options), spec, None, dict, None)  # pyright: ignore[reportArgumentType]


def given(roll: np.ndarray, **options) -> ScoreOptions:
    """Returns the options of a roll of pitches, as sample.py reads them."""
    return ScoreOptions(content=base64.b64encode(midi.encode(hold(roll), 4)).decode(), **options)


def test_samples_become_midi_files_sound_a_sheet_and_a_page():
    assert find_medium(Music(), SPEC) is SCORES
    # Other tokens with these axes are no notes.
    assert find_medium(Music(), {"tokens": replace(SPEC["tokens"], vocab=1000)}) is ARRAYS
    made = np.stack([CADENCE, np.full((16, 4), REST)])
    shown = SCORES.show({"samples": made}, view(), ScoreOptions()).files
    assert sorted(shown) == sorted(
        [f"samples/0000{i}.{kind}" for i in range(2) for kind in ("mid", "wav")] + ["samples.html", "samples.png", "samples.wav"]
    )  # fmt: skip
    # Equal notes in a row are one note.
    np.testing.assert_array_equal(midi.decode(shown["samples/00000.mid"], 4, 4), hold(CADENCE))
    onsets = view({"tokens": replace(SPEC["tokens"], vocab=2 * HELD)})
    repeated = SCORES.show({"samples": made}, onsets, ScoreOptions()).files["samples/00000.mid"]
    np.testing.assert_array_equal(midi.decode(repeated, 4, 4), CADENCE)
    with wave.open(io.BytesIO(shown["samples/00000.wav"])) as file:
        assert file.getframerate() == RATE and abs(file.getnframes() / RATE - (4 * 0.6 + 0.05)) < 1e-3
    assert shown["samples.html"].count(b"<audio") == 2
    picture = np.asarray(Image.open(io.BytesIO(shown["samples.png"])))
    height = (65 - 48 + 1) * PITCH + BORDER
    assert picture.shape == (2 * height, 16 * FRAME, 3)
    # The soprano's first note is at the top, in the colour of the first voice, and ends a pixel before the next one.
    assert (picture[:PITCH, : 8 * FRAME - 1] == COLORS[0]).all() and (picture[0, 8 * FRAME - 1] != COLORS[0]).any()
    # Without options, as in training: no package is needed.
    assert SCORES.show({"samples": made}, view()).files.keys() == {"samples.png", "samples.wav"}


def test_a_note_sounds_at_its_pitch():
    x = play(69, 1.0)
    spectrum = np.abs(np.fft.rfft(x[:RATE]))
    peaks = np.argsort(spectrum)[-3:]
    assert spectrum.argmax() == 440 and {440, 880} <= set(peaks.tolist())
    # Overtones above half of the rate are left out.
    high = np.abs(np.fft.rfft(play(108, 1.0)[:RATE]))
    assert abs(high.argmax() - 440 * 2 ** (39 / 12)) < 1
    loud = render(np.full((8, 15), 60), 4)
    assert np.abs(loud).max() == 1 and (render(np.full((4, 1), REST), 4) == 0).all()


@pytest.mark.parametrize(
    ("mode", "options", "n", "written"),
    [
        ("continue", {}, 12, np.s_[12:, :]),
        ("harmonize", {}, 12, np.s_[:12, 1:]),
        ("harmonize", {"write": (1, 3)}, 16, np.s_[:, ::2]),
        ("inpaint", {"write": (4,)}, 12, np.s_[:12, 3]),
        ("inpaint", {"gap": "1:2.5"}, 16, np.s_[4:10, :]),
        ("inpaint", {"gap": ":1", "write": (2,)}, 16, np.s_[:4, 1]),
        ("inpaint", {"gap": "3:"}, 14, np.s_[12:14, :]),
    ],
)
def test_a_mode_keeps_the_rest_of_a_score(mode, options, n, written):
    request = GridRequest(mode=mode)
    asked = SCORES.complete(given(CADENCE[:n], **options), request, view())
    SCORES.check(asked, request, view())
    found = SCORES.give(asked, view()).arrays
    unknown = np.zeros((16, 4), bool)
    unknown[written] = True
    np.testing.assert_array_equal(~found["known"][0], unknown)
    np.testing.assert_array_equal(found["tokens"][0, :n], CADENCE[:n])
    assert (found["tokens"][0, n:] == REST).all()
    length = 16 if mode == "continue" else n
    shown = SCORES.show({"samples": CADENCE[None]}, view(), asked).files["samples/00000.wav"]
    assert len(shown) == 44 + 2 * len(render(CADENCE[:length], 4))


@pytest.mark.parametrize(
    ("mode", "options", "reason"),
    [
        ("generate", {"write": (1,)}, "need --mode continue, harmonize, inpaint"),
        ("continue", {"gap": "1:2"}, "keeps the whole score"),
        ("harmonize", {"gap": "1:2"}, "writes whole voices"),
        ("inpaint", {}, "needs the part to write"),
        ("inpaint", {"write": (5,)}, "the model has the voices 1 to 4"),
        ("continue", {}, "nothing is left to write"),
        ("inpaint", {"gap": "4:"}, "nothing is left to write"),
    ],
)
def test_parts_that_make_no_sense(mode, options, reason):
    request = GridRequest(mode=mode)

    def ask() -> None:
        asked = SCORES.complete(given(CADENCE, **options), request, view())
        SCORES.check(asked, request, view())
        SCORES.give(asked, view())

    with pytest.raises(UserError, match=reason):
        ask()


def test_scores_that_do_not_fit_the_run(tmp_path):
    request = GridRequest(mode="continue")
    (tmp_path / "empty.mid").touch()
    with pytest.raises(UserError, match=r"--midi .*empty\.mid is empty: it has no bytes"):
        SCORES.read_options(ScoreOptions(midi=tmp_path / "empty.mid"))
    with pytest.raises(UserError, match="needs a score"):
        SCORES.check(ScoreOptions(), request, view())
    with pytest.raises(UserError, match="has 20 frames, and the model's windows have 16"):
        SCORES.give(given(np.concatenate([CADENCE, CADENCE[:4]])), view())
    with pytest.raises(UserError, match=r"has 2 voices .*, more than 1: remove some, or train"):
        SCORES.give(given(CADENCE[:, :2]), view({"tokens": Feature((16, 1), "int32", vocab=HELD, axes=AXES)}))
    with pytest.raises(UserError, match="off the grid"):
        SCORES.give(given(CADENCE[3:5]), view(steps=2))
    for gap, reason in (("8", "is not FROM:TO"), ("8:4", "ends before it begins"), ("4:4", "ends before it begins")):
        with pytest.raises(UserError, match=f"--gap '{gap}' {reason}.* in quarter notes, such as 8:16"):
            ScoreOptions(gap=gap)
    with pytest.raises(UserError, match="No such file"):
        SCORES.read_options(ScoreOptions(midi=Path("missing.mid")))


def test_rules_of_four_part_writing():
    # Two voices a fifth apart move up by a step, then the upper one alone.
    assert count_parallels(np.array([[67, 60], [69, 62], [71, 62]])) == (1, 1)
    # The same step an octave apart; against each other; from a rest.
    assert count_parallels(np.array([[72, 60], [74, 62], [72, 64], [REST, 60]])) == (1, 2)
    assert find_tonic(CADENCE) == 5
    minor = np.array([[69, 64, 60, 57], [68, 64, 59, 52], [69, 64, 60, 57]]).repeat([4, 2, 6], 0)
    assert find_tonic(minor) == 9
    doubled = CADENCE.copy()
    doubled[8:12, 1] = 52  # a second e, the leading tone of F
    np.testing.assert_array_equal(doubled_leading(doubled), np.arange(16) // 4 == 2)
    found = measure([CADENCE, hold(CADENCE)])
    # Steps of F major's cadence, from each chord to the next: 3 x 4 voices, without those that stay.
    steps = [b - a for before, after in pairwise(CADENCE[::4]) for a, b in zip(before, after, strict=True) if a != b]
    np.testing.assert_allclose(found.steps, np.bincount(np.array(steps) + 12, minlength=25) / len(steps))
    np.testing.assert_allclose(found.tones[[5, 0, 9]], [20 / 64, 16 / 64, 8 / 64])
    assert found.doubled == 0 and distance(found.tones, found.tones) == 0
    assert distance(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    shuffled = shuffle_voices([np.full((3, 2), 1), np.full((5, 2), 2)])
    np.testing.assert_array_equal(shuffled[0], [[1, 2]] * 3)
    np.testing.assert_array_equal(shuffled[1], [[2, 1]] * 3)


@pytest.mark.slow
def test_a_run_is_sampled_verified_and_scored(tiny, tmp_path, capsys):
    config = tiny("chorales")
    run = make_run(tmp_path / "run", replace(config, data=replace(config.data, train="train[:8]", test="test[:4]")))
    (tmp_path / "melody.mid").write_bytes(midi.encode(CADENCE[:12, :1], 4))
    command = [str(run), "--mode", "harmonize", "--midi", str(tmp_path / "melody.mid"), "--n", "2"]
    assert sample.main([*command, "--out", str(tmp_path / "out")]) == 0
    for i in range(2):
        roll = midi.decode((tmp_path / f"out/samples/0000{i}.mid").read_bytes(), 4, 4)
        np.testing.assert_array_equal(roll[:12, 0] % HELD, CADENCE[:12, 0])
    assert sample.main(["--verify", str(tmp_path / "out" / "manifest.json")]) == 0
    # Python takes the name of a file as the command line does, and the same voices are written by default.
    opened, melody = gen.open(run), str(tmp_path / "melody.mid")
    made = opened.generate(n=2, mode="harmonize", midi=melody)
    np.testing.assert_array_equal(made["samples"], np.load(tmp_path / "out" / "samples.npz")["samples"])
    shown = opened.show(made, midi=melody, write=[2, 3, 4])
    assert shown["samples.wav"] == (tmp_path / "out" / "samples.wav").read_bytes()
    found = scores(Options((run,), n=2))[str(run)]
    # The weights of step 0 know nothing: nearly the logarithm of the vocabulary.
    assert abs(found["loss"] - np.log(HELD)) < 0.3
    np.testing.assert_allclose(found["nats_per_frame"], 4 * found["loss"], rtol=1e-4)
    np.testing.assert_allclose(found["counting_nats_per_frame"], 4 * found["counting_nats_per_token"], rtol=1e-6)
    assert found["counting_nats_given_first_voice"] < found["nats_given_first_voice"]
    assert 0 <= found["doubled_leading_harmonized"] <= 1
    assert 0 <= found["tone_distance_real"] <= 1 and 0 <= found["parallels"] <= 1
