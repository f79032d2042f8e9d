"""Musical scores as data: rolls and MIDI files, windows that count each token once, transposition, and the counting baseline."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen.data.music import Music, counting, midi
from gen.data.music.roll import HELD, REST, hold, pitches_of
from gen.errors import UserError
from tests.datasets import check_contract, check_padding, read_split

mido = pytest.importorskip("mido")

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def write_rolls(path: Path, **splits: list) -> str:
    path.write_text(json.dumps(splits))
    return f"rolls:{path}"


def piece(n: int, low: int = 60) -> list[list[int]]:
    """Returns a piece of n frames of two voices, whose notes tell the frame."""
    return [[low + i % 12, -1 if i % 3 == 0 else low - 12 + i % 5] for i in range(n)]


def notes_file(*tracks: list[tuple[int, int, int, int]], beat: int = 480, **options) -> bytes:
    """Returns a MIDI file with a track for each list of (start, end, pitch, channel), in ticks."""
    file = mido.MidiFile(type=options.get("type", 1), ticks_per_beat=beat)
    for notes in tracks:
        events = [(start, 1, pitch, channel) for start, _, pitch, channel in notes]
        events += [(end, 0, pitch, channel) for _, end, pitch, channel in notes]
        track, now = mido.MidiTrack([mido.Message("program_change", program=7)]), 0
        for tick, on, pitch, channel in sorted(events):
            kind = "note_on" if on else "note_off"
            track.append(mido.Message(kind, channel=channel, note=pitch, velocity=64 * on, time=tick - now))
            now = tick
        file.tracks.append(track)
    content = io.BytesIO()
    file.save(file=content)
    return content.getvalue()


def test_each_token_of_a_split_counts_once(tmp_path):
    pieces = {"train": [piece(9)], "valid": [piece(8), piece(20)], "test": [piece(3), piece(17), piece(16)]}
    data = Music(name=write_rolls(tmp_path / "a.json", **pieces), voices=2, frames=8, batch_size=4).build()
    assert data.spec["tokens"].shape == (8, 2) and data.spec["tokens"].axes == ("time", "voice")
    assert data.sizes == {"train": 2, "validation": 4, "test": 6}
    for split, name in {"validation": "valid", "test": "test"}.items():
        found = read_split(data, split)
        seen = data.preprocess(jax.device_put(found), KEY, False)
        counted = np.asarray(seen["counted"]) > 0
        asked = np.concatenate([np.array(each) for each in pieces[name]])
        # Windows follow each other, so the tokens that count are those of all pieces in order.
        np.testing.assert_array_equal(
            np.asarray(seen["tokens"])[counted].reshape(-1, 2), np.where(asked < 0, REST, asked)
        )
        assert (np.asarray(seen["tokens"])[~counted] == REST).all()
    check_padding(data, "test", 4)


def test_canons_are_a_data_set_like_others():
    check_contract(Music(batch_size=8, transpose=3).build, 8)
    music = Music(onsets=True, frames=128)
    tokens = read_split(music.build(), "train")["tokens"]
    # Each voice repeats the one before it a bar later: the rhythm is the same, and the notes fit another chord.
    np.testing.assert_array_equal(tokens[:, 16:64, 1] < REST, tokens[:, :48, 0] < REST)
    assert (tokens[:, :16, 1:] == REST).all()


def test_training_moves_excerpts_inside_of_the_range(tmp_path):
    notes = [piece(40), piece(24, 63), piece(8, 70)]
    data = Music(
        name=write_rolls(tmp_path / "a.json", train=notes, valid=notes[:1], test=[piece(8, 30)]),
        voices=2, frames=64, excerpt=16, transpose=12, batch_size=64,
    ).build()  # fmt: skip
    batch = data.batch(0, 0, range(64))
    train = jax.jit(lambda batch: data.preprocess(batch, KEY, True))
    seen = jax.device_get(train(batch))
    # Noise belongs to the row, wherever it is in a batch.
    turned = jax.device_get(train({name: x[::-1] for name, x in batch.items()}))
    np.testing.assert_array_equal(turned["tokens"][::-1], seen["tokens"])
    assert seen["tokens"].shape == seen["counted"].shape == (64, 16, 2)
    everything = np.concatenate(notes)
    for row, index in enumerate(batch["index"].tolist()):
        tokens, counted = seen["tokens"][row], seen["counted"][row, :, 0] > 0
        assert counted.sum() == min(16, len(notes[index]))
        sounding = tokens[counted] != REST
        for voice in range(2):
            known = everything[:, voice][everything[:, voice] >= 0]
            heard = tokens[counted][:, voice][sounding[:, voice]]
            assert known.min() <= heard.min() and heard.max() <= known.max()
        # An excerpt from a bar on, with one number of semitones added to all notes.
        original = np.array(notes[index])
        moved = {(start, int(tokens[1, 0] - original[start + 1, 0])) for start in range(0, len(original) - 1, 16)}
        assert any(
            (np.where(part < 0, REST, part + shift) == tokens[: len(part)]).all()
            for start, shift in moved
            if len(part := original[start : start + 16])
        )
    shifts = {tuple(x) for x in batch["limits"].tolist()}
    assert shifts == {(0, 6), (-3, 3), (-10, 0)}
    # Held-out pieces are read as they are, also outside of the range.
    test = data.preprocess(jax.device_put(next(data.evaluation("test", 1))), KEY, False)
    assert int(np.asarray(test["tokens"])[0, 1, 0]) == 31


@settings(max_examples=30, deadline=None)
@given(
    voices=st.integers(1, 15),
    frames=st.integers(1, 40),
    steps=st.sampled_from([1, 4, 12, 96]),
    seed=st.integers(0, 2**32 - 1),
    silent=st.sampled_from([0.1, 0.9, 1]),
)
def test_a_roll_comes_back_from_its_file(voices, frames, steps, seed, silent):
    rng = np.random.default_rng(seed)
    drawn = np.where(rng.random((frames, voices)) < silent, REST, rng.integers(0, 128, (frames, voices)))
    # Two of three frames go on with the one before.
    roll = np.full((frames, voices), REST)
    for t, goes_on in enumerate(rng.random((frames, voices)) < 2 / 3):
        before = roll[t - 1] if t else roll[t]
        held = np.where(before < REST, before + HELD, before)
        roll[t] = np.where(goes_on, held, drawn[t])
    sounding = np.flatnonzero((roll != REST).any(1))
    content = midi.encode(roll, steps)
    if not sounding.size:
        with pytest.raises(ValueError, match="has no notes"):
            midi.decode(content, steps, voices)
        return
    again = midi.decode(content, steps, voices)
    np.testing.assert_array_equal(again, roll[: sounding[-1] + 1])
    assert midi.encode(again, steps) == midi.encode(roll[: sounding[-1] + 1], steps)
    # Without tokens for held notes, equal ones in a row are one note.
    merged = pitches_of(again)
    np.testing.assert_array_equal(pitches_of(midi.decode(midi.encode(hold(merged), steps), steps, voices)), merged)


def test_notes_of_tracks_and_channels_are_voices():
    content = notes_file([], [(0, 480, 72, 3), (480, 960, 72, 3), (240, 360, 50, 1)], [(0, 960, 40, 0)])
    roll = midi.decode(content, 4, 5)
    assert roll.shape == (8, 5)
    # In the order of tracks, and of channels in a track.
    np.testing.assert_array_equal(roll[:, 0], [REST, REST, 50, REST, REST, REST, REST, REST])
    np.testing.assert_array_equal(roll[:, 1], [72, *3 * [HELD + 72], 72, *3 * [HELD + 72]])
    np.testing.assert_array_equal(pitches_of(roll[:, 2]), [40] * 8)
    assert (roll[:, 3:] == REST).all()


BAD = {
    "no file": (b"RIFF....", "can't be read as MIDI"),
    "empty": (b"", "has no bytes"),
    "no notes": (notes_file([]), "has no notes"),
    "off the grid": (notes_file([(0, 100, 60, 0)]), "off the grid: voice 1 has a note from 0 to 0.83"),
    "no length": (notes_file([(0, 0, 60, 0), (0, 480, 64, 0)]), "does not end|off the grid"),
    "a chord": (notes_file([(0, 480, 60, 0), (240, 480, 64, 0)]), "sound at once in voice 1, in frame 2"),
    "many voices": (notes_file(*[[(0, 480, 60, i)] for i in range(5)]), "has 5 voices .* train with --data.voices 5"),
    "patterns": (notes_file([(0, 480, 60, 0)], type=2), "MIDI type 2"),
    "too long": (notes_file([(0, 2**27, 60, 0)], beat=24), "lasts 22,369,621 frames"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_fit_are_refused_with_the_reason(name):
    content, reason = BAD[name]
    with pytest.raises(ValueError, match=reason):
        midi.decode(content, 4, 4)


def test_a_folder_of_files(tmp_path, capsys, caplog):
    for i in range(12):
        path = tmp_path / "in" / f"kind{i % 2}" / f"{i}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(notes_file([(120 * i, 120 * i + 480, 60 + i, 0), (2400, 2880, 60, 0)]))
    options = {"name": f"midi:{tmp_path / 'in'}", "voices": 1, "frames": 32, "onsets": True, "batch_size": 4}
    data = Music(**options).build()
    assert data.spec["label"].names == ("kind0", "kind1") and data.spec["tokens"].vocab == 257
    assert sum(data.sizes.values()) == 12
    found = read_split(data, "train")
    onset = (found["tokens"][:, :, 0] < REST).argmax(1)
    np.testing.assert_array_equal(onset % 2, found["label"])
    assert "12 pieces of 24 to 24 frames, 2 classes" in capsys.readouterr().err
    # The files are read once: the second time they come from the cache.
    assert Music(**options).build().digest == data.digest
    for name, (content, _) in BAD.items():
        (tmp_path / "in" / "kind0" / f"{name}.mid").write_bytes(content)
    with pytest.raises(UserError, match=r"kind0/.*\.mid (.|\n)*--data.skip-bad"):
        Music(**options).build()
    skipped = Music(**options, skip_bad=True).build()
    assert sum(skipped.sizes.values()) == 12
    assert "skipped 9 of 21 MIDI files" in caplog.text
    assert "1 can't be read as MIDI" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"train": [[[60, 55]]], "test": [[[60]]]}', r"piece 0 of test: frame 0 has 1 notes, and the data have 2 voices"),
        ('{"train": [[[60, 128]]]}', "frame 0 has 128; notes are MIDI numbers from 0 to 127, or -1"),
        ('{"train": [[[60, 60.5]]]}', r"has 60\.5"),
        ('{"train": [[]]}', "piece 0 of train has no frames"),
        ('{"train": [[[-1, -1]]]}', "piece 0 of train has no notes"),
        ("[1]", "has no splits of pieces"),
        ('{"train": [', "is damaged"),
    ],
)  # fmt: skip
def test_rolls_that_are_wrong_are_named(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        Music(name=f"rolls:{tmp_path / 'a.json'}", voices=2).build()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "chorales"}, "none of canons, rolls:FILE, midi:PATH"),
        ({"name": "rolls:missing.json"}, "there is no such file"),
        ({"name": "midi:missing"}, "there is no such folder"),
        ({"voices": 16}, "at most 15"),
        ({"frames": 2**21}, "at most 1,048,576 and 96"),
        ({"name": "rolls:a.json", "onsets": True}, "don't tell held notes"),
    ],
)
def test_options_that_are_wrong(options, reason):
    with pytest.raises(UserError, match=reason):
        Music(**options).build()


def test_counting_is_a_distribution_and_learns_in_every_key():
    rng = np.random.default_rng(0)
    train = [rng.integers(60, 64, (12, 2)) for _ in range(3)]
    test = rng.integers(58, 66, (6, 2))
    vocab, keys = 80, (0, 1)

    def nats(window: np.ndarray) -> np.ndarray:
        return counting.count_nats(train, [window], vocab, keys)

    # The probabilities of all tokens in one place, given the same tokens before it, add up to one.
    for place in (0, 5, 11):
        windows = np.repeat(test.reshape(1, -1), vocab, 0)
        windows[:, place] = np.arange(vocab)
        found = counting.count_nats(train, list(windows.reshape(vocab, -1, 2)), vocab, keys).reshape(vocab, -1)
        np.testing.assert_allclose(np.exp(-found[:, place]).sum(), 1, rtol=1e-9)
    # What comes later does not matter.
    later = test.copy()
    later[4:] = 70
    np.testing.assert_allclose(nats(later)[:8], nats(test)[:8], rtol=1e-12)
    scale = [np.repeat(60 + np.arange(8)[:, None], 2, 1)]
    moved = [scale[0] + 5]
    assert counting.count_nats(scale, moved, 129).mean() < 0.7 < counting.count_nats(scale, moved, 129, (0,)).mean()
    data = Music(frames=64, train="train[:8]").build()
    assert 0 < data.baselines()["counting_nats_per_token"] < 1
