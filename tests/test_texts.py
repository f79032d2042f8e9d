"""Prompts, stop strings and streams, tested with models whose texts are known in advance."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import sample
from gen.config import Config, Save
from gen.core import Dataset, Family, Feature, RunView, State
from gen.data.text import Text, tokenizers
from gen.data.text.tokenizers import Tokenizer
from gen.errors import UserError
from gen.families.language import LM, MLM, Seq2Seq
from gen.media import text as media_text
from gen.media.arrays import pack_arrays
from gen.media.stream import cut_at_stop
from gen.media.text import TextOptions
from gen.networks.positions import PADDING
from gen.networks.transformer import Architecture
from gen.runs import checkpoint, directory

ALPHABET = "abcdefgh é\n"
LETTERS = tokenizers.character(ALPHABET)
BYTES = tokenizers.byte()
VOCAB, CONTEXT, SOURCE = tokenizers.size(LETTERS), 12, 4
NETWORK = Architecture(layers=1, width=20, heads=2, positions="rotary", norm="rms", bias=False, tied=False)


def tokens_of(text: str, tokenizer: Tokenizer = LETTERS) -> list[int]:
    return tokenizers.encode(tokenizer, text)


def test_prompts_are_padded_on_the_left():
    found = media_text.encode_inputs(TextOptions(prompt=("abc", "é", "de")), LETTERS)
    _ = PADDING
    a, b, c, d, e, é = tokens_of("abcdeé")
    assert found.keys() == {"prompt"} and found["prompt"].dtype == np.int32
    assert found["prompt"].tolist() == [[a, b, c], [_, _, é], [_, d, e]]
    assert media_text.encode_inputs(TextOptions(prompt=("aé",)), BYTES)["prompt"].tolist() == [[98, 0xC3 + 1, 0xA9 + 1]]


def test_prompts_for_a_model_of_pairs_begin_with_end():
    found = media_text.encode_inputs(TextOptions(prompt=("abc", "d")), LETTERS, begins=True)
    a, b, c, d = tokens_of("abcd")
    end = tokenizers.end(LETTERS)
    assert found["prompt"].tolist() == [[end, a, b, c], [PADDING, PADDING, end, d]]


def test_sources_prefix_and_suffix_are_encoded_by_name():
    found = media_text.encode_inputs(TextOptions(source=("ab", "c")), LETTERS)
    assert {name: x.tolist() for name, x in found.items()} == {"source": [tokens_of("ab"), [PADDING, *tokens_of("c")]]}
    found = media_text.encode_inputs(TextOptions(prefix="ab", suffix=""), LETTERS)
    assert {name: x.tolist() for name, x in found.items()} == {"prefix": [tokens_of("ab")], "suffix": [[]]}
    assert found["suffix"].shape == (1, 0) and found["suffix"].dtype == np.int32
    assert media_text.encode_inputs(TextOptions(), LETTERS) == {}


def test_rows_are_aligned_to_the_right():
    assert media_text.align_right([[1], [], [2, 3]]).tolist() == [[PADDING, 1], [PADDING, PADDING], [2, 3]]
    assert media_text.align_right([[]]).shape == (1, 0)


def test_a_prompt_can_be_a_file_or_the_standard_input(tmp_path, monkeypatch):
    """A file keeps its last newline. Piped text loses it, since echo adds one."""
    path = tmp_path / "prompt.txt"
    path.write_bytes("é\na\r\n".encode())
    asked = media_text.read_prompt_file(TextOptions(prompt=("b",), prompt_file=path))
    assert asked == TextOptions(prompt=("b", "é\na\r\n"))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from a pipe\n")))
    assert media_text.read_prompt_file(TextOptions(prompt_file=Path("-"))).prompt == ("from a pipe",)
    assert media_text.read_prompt_file(asked) is asked


def from_file(content: bytes | None) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        if content is not None:
            (path / "file").write_bytes(content)
        return media_text.encode_inputs(media_text.read_prompt_file(TextOptions(prompt_file=path / "file")), LETTERS)

    return read


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: TextOptions(prefix="a"), "give both --prefix and --suffix"),
        (lambda _: TextOptions(suffix="a"), "give both --prefix and --suffix"),
        (lambda _: TextOptions(prefix="a", suffix="b", prompt=("c",)), "not both"),
        (lambda path: TextOptions(prefix="a", suffix="b", prompt_file=path), "not both"),
        (lambda _: TextOptions(source=("a",), prompt=("c",)), "needs a --source alone"),
        (lambda path: TextOptions(source=("a",), prompt_file=path), "needs a --source alone"),
        (lambda _: TextOptions(source=("a",), prefix="", suffix=""), "needs a --source alone"),
        (lambda _: TextOptions(stop=("a", "")), "--stop is empty"),
        (lambda _: media_text.encode_inputs(TextOptions(prompt=("a", "")), LETTERS), "a prompt is empty"),
        (lambda _: media_text.encode_inputs(TextOptions(source=("a", "")), LETTERS), "a source is empty"),
        (lambda _: media_text.encode_inputs(TextOptions(prompt=("abcx",)), LETTERS), "cannot write 'x'"),
        (lambda _: media_text.encode_inputs(TextOptions(prefix="a", suffix="x"), LETTERS), "cannot write 'x'"),
        (lambda _: media_text.encode_inputs(TextOptions(prompt=("a\udcff",)), BYTES), "not UTF-8"),
        (from_file(None), "file: No such file"),
        (from_file(b"abc\xff"), r"file: is not UTF-8 \(byte 0xff at offset 3\)"),
        (from_file("ab".encode("utf-16")), "file: is UTF-16 text, .*iconv -f utf-16 "),
        (from_file(b""), "a prompt is empty"),
    ],
)
def test_unusable_texts_are_refused(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_text_is_cut_at_the_first_stop():
    assert cut_at_stop("one two three", ["three", "two", "four"]) == "one "
    assert cut_at_stop("one two", ["three"]) == cut_at_stop("one two", []) == "one two"
    assert cut_at_stop("two", ["two"]) == ""


def written(*rows: str) -> dict[str, np.ndarray]:
    """Returns samples of these texts, with END and PADDING after the shorter ones."""
    ended = [[*tokens_of(row), 0] for row in rows]
    width = max(map(len, ended))
    return {"samples": np.array([row + [PADDING] * (width - len(row)) for row in ended])}


def test_samples_follow_their_prompts_or_lie_between_prefix_and_suffix():
    made = written("bc", "", "e", "fg h")
    assert media_text.join_texts(made, LETTERS) == ["bc", "", "e", "fg h"]
    assert media_text.join_texts(made, LETTERS, TextOptions(prompt=("a", "cd"))) == ["abc", "a", "cde", "cdfg h"]
    assert media_text.join_texts(made, LETTERS, TextOptions(prefix="a", suffix=" h", stop=("g",))) == [
        "abc h",
        "a h",
        "ae h",
        "af h",
    ]
    asked = TextOptions(prompt=("c",), stop=("c", "g "))
    assert media_text.join_texts(made, LETTERS, asked) == ["cb", "c", "ce", "cf"], "a stop in the prompt ends nothing"
    assert media_text.join_texts(made, LETTERS, TextOptions(source=("a", "b"))) == ["bc", "", "e", "fg h"]


def test_files_hold_the_texts_and_all_arrays():
    arrays = written("bc\n", "é") | {"log_probs": np.linspace(-1, 0, 8, dtype=np.float32).reshape(2, 4)}
    never: Any = None
    run = RunView(Text(), {}, lambda name: {tokenizers.FILE: tokenizers.dump(LETTERS)}[name], dict, never)
    found = media_text.TEXT.show(arrays, run, TextOptions(prompt=("a",)))
    assert found.files == {"samples.txt": ("abc\n" + media_text.RULE + "aé\n").encode()} and not found.arrays
    with np.load(io.BytesIO(pack_arrays(arrays))) as kept:
        assert kept.keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(kept[name], value)


def heard(options: TextOptions, tokenizer: Tokenizer, *rows: Sequence[int]) -> list[int]:
    """Gives rows to a listener token by token, until all have met a stop. Returns the number of tokens of each row."""
    listen = media_text.make_listener(options, tokenizer)
    assert listen is not None
    done, counts = np.zeros(len(rows), bool), [0] * len(rows)
    for column in np.array(rows, np.int32).T:
        told = np.where(done, PADDING, column)
        counts = [count + int(token != PADDING) for count, token in zip(counts, told, strict=True)]
        done |= listen(told) | (column == PADDING)
        if done.all():
            break
    listen(np.full(len(rows), PADDING))
    return counts


MERGED = tokenizers.bpe(["hello " * 99], 270)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("abcde", "d", "abc"),
        ("abcabd", "abd", "abc"),  # begun before
        ("aaab", "aab", "a"),
        ("ab\n\nc", "\n\n", "ab"),
        ("a\nb\n\n", "\n\n", "a\nb"),
        ("aébc", "éb", "a"),
        ("abc", "cd", "abc"),  # begun, and never met
        ("é" * 50 + "b" + "é" * 50 + "ab", "b" + "é" * 50, "é" * 50),  # longer than the tail
    ],
)
@pytest.mark.parametrize("tokenizer", [LETTERS, BYTES], ids=["characters", "bytes"])
def test_the_first_sample_is_streamed_up_to_its_stop(text, stop, shown, tokenizer, capsys):
    """No part of a stop string is ever printed, even if it has several tokens."""
    tokens = tokens_of(text, tokenizer)
    other = tokens_of("h" * len(tokens), tokenizer)
    counts = heard(TextOptions(stop=(stop, "never"), stream=True), tokenizer, tokens, other)
    assert capsys.readouterr().out == shown
    assert (
        media_text.join_texts({"samples": np.array([tokens, other])}, tokenizer, TextOptions(stop=(stop,)))[0] == shown
    )
    met = text.find(stop)
    assert counts == [len(tokens_of(text[: met + len(stop)] if met >= 0 else text, tokenizer)), len(other)]


def test_a_stop_inside_a_token_ends_a_sample(capsys):
    tokens = tokens_of("hello hello", MERGED)
    assert len(tokens) < 5
    assert heard(TextOptions(stop=("ell",), stream=True), MERGED, tokens) == [1]
    assert capsys.readouterr().out == "h"


def test_half_a_character_is_printed_only_when_it_is_complete(capsys):
    """Invalid bytes are printed as U+FFFD once they can no longer become a character."""
    listen: Any = media_text.make_listener(TextOptions(stream=True), BYTES)
    shown = []
    for byte in "aé€".encode() + b"\xff" + b"b\xc3":
        listen(np.array([byte + 1]))
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "é", "", "", "€", "", "\ufffdb", ""]
    listen(np.array([PADDING]))
    listen(np.array([PADDING]))
    assert capsys.readouterr().out == "\ufffd"


def test_there_is_no_listener_without_a_stop_or_a_stream():
    assert media_text.make_listener(TextOptions(prompt=("a",)), LETTERS) is None


def made(workdir: Path, model: Family, params: Callable[[Any], Any]) -> str:
    """Makes a run whose only checkpoint has the parameters params(shapes). Returns its directory."""
    letters = Feature((CONTEXT + 1,), "int32", vocab=VOCAB, end=0)
    spec = {"tokens": letters} | (
        {"source": replace(letters, shape=(SOURCE,))} if "seq2seq" in str(type(model)) else {}
    )
    none: Any = None
    data = Dataset(spec, {}, "0" * 64, none, none, none, files={tokenizers.FILE: tokenizers.dump(LETTERS)})
    directory.begin_run(workdir, Config(model=model, data=Text(length=CONTEXT), steps=1), data)
    directory.write_reference(workdir, {})
    shapes = jax.eval_shape(model.build(spec, 1).init, jax.random.key(0)).params
    with checkpoint.saver(workdir / "checkpoints", Save(), 0) as save:
        save(State(jnp.int32(0), params(shapes), {}))
    return str(workdir)


def spelling(shapes: Any) -> Any:
    """Returns parameters of a model that spells: each letter is followed by the next, and h by END.

    It begins with a, or with c if it fills in a middle.
    """
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)["transformer"]
    letters = tokens_of("abcdefgh")
    follows = dict(zip([0, *letters, VOCAB + 2], [*letters, 0, tokens_of("c")[0]], strict=True))
    head = params["head"]["kernel"]
    for token in range(head.shape[1]):
        params["embedding"]["embedding"][token, token] = 1
        head[token, follows.get(token, 0)] = 2
    return {"transformer": params | {"norm": {"scale": np.ones(NETWORK.width, np.float32)}}}


def random(shapes: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, model, params in (
        ("speller", LM(network=NETWORK), spelling),
        ("filler", LM(network=NETWORK, fill_in_the_middle=0.5), spelling),
        ("masked", MLM(network=NETWORK), random),
        ("pairs", Seq2Seq(network=NETWORK), random),
    ):
        (folder / name).mkdir()
        made(folder / name, model, params)
    return folder


@pytest.fixture
def here(runs, monkeypatch, tmp_path) -> Path:
    """Returns a copy of the runs, as the current folder."""
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    monkeypatch.chdir(folder)
    return folder


def asked(workdir: str, out: str, *arguments: str) -> list[str]:
    """Returns the texts that a run writes on the command line."""
    assert sample.main([workdir, "--out", out, *arguments]) == 0
    return Path(out, "samples.txt").read_text().removesuffix("\n").split(media_text.RULE)


GREEDY = ("--temperature", "0")


def test_each_prompt_has_its_samples_and_they_can_be_verified(here, capsys):
    """Even if the prompt file is gone: the manifest keeps its text."""
    Path("file").write_text("é\ne")
    prompts = ("--prompt", "a", "--prompt-file", "file", "--prompt", "h cd")
    found = asked("speller", "out", *prompts, "--n", "2", "--tokens", "4", "--files", *GREEDY)
    assert found == ["abcde", "abcde", "h cdefgh", "h cdefgh", "é\nefgh", "é\nefgh"]
    assert capsys.readouterr().out.startswith(media_text.RULE.join(found) + "\n")
    Path("file").unlink()
    kept = json.loads(Path("out/manifest.json").read_text())["medium"]
    assert kept["prompt"] == ["a", "h cd", "é\ne"] and kept["prompt_file"] is None and "stream" not in kept
    assert sample.main(["--verify", "out/manifest.json"]) == 0
    assert "verified: samples.txt, samples/ (6 files), samples.npz, byte for byte" in capsys.readouterr().out
    assert [path.read_text() for path in sorted(Path("out/samples").iterdir())] == found


def test_a_stop_string_ends_samples_and_their_stream(here, capsys):
    arguments = ("--prompt", "a", "--prompt", "f", "--stop", "ef", "--n", "1", "--tokens", "8", *GREEDY)
    assert asked("speller", "streamed", *arguments, "--stream") == ["abcd", "fgh"]
    assert capsys.readouterr().out == f"bcd{media_text.RULE}fgh\nstreamed: samples.txt, samples.npz, manifest.json\n"
    assert asked("speller", "whole", *arguments) == ["abcd", "fgh"]
    for name in ("samples.txt", "samples.npz"):
        assert Path("streamed", name).read_bytes() == Path("whole", name).read_bytes()
    with np.load("whole/samples.npz") as arrays:
        tail = [PADDING] * 3
        assert arrays["samples"].tolist() == [tokens_of("bcdef") + tail, [*tokens_of("gh"), 0, PADDING, PADDING, *tail]]
    assert sample.main(["--verify", "streamed/manifest.json"]) == 0


def test_a_sample_does_not_depend_on_their_number_or_on_streaming(here, capsys):
    arguments = ("--tokens", "9", "--temperature", "4", "--seed", "3")
    many = asked("speller", "many", *arguments, "--n", "4")
    capsys.readouterr()
    assert len(set(many)) > 1
    assert asked("speller", "one", *arguments, "--n", "1", "--stream") == many[:1]
    assert capsys.readouterr().out == many[0] + "\none: samples.txt, samples.npz, manifest.json\n"
    begun = ("--stop", "ef", "--stream", "--n", "1", "--tokens", "5", *GREEDY)
    assert asked("speller", "begun", *begun) == ["abcde"], "as a document does"
    assert capsys.readouterr().out == "abcde\nbegun: samples.txt, samples.npz, manifest.json\n"


def test_a_middle_is_filled_in(here, capsys):
    around = ("--prefix", "ab", "--suffix", "gh", "--n", "1", "--tokens", "4", *GREEDY)
    assert asked("filler", "out", *around) == ["abcdefgh"]
    assert sample.main(["--verify", "out/manifest.json"]) == 0


def test_a_target_is_written_for_each_source(here, capsys):
    arguments = ("--n", "2", "--tokens", "6")
    both = asked("pairs", "both", "--source", "ab", "--source", "c", *arguments, *GREEDY)
    with np.load("both/samples.npz") as arrays:
        assert arrays["source"].tolist() == 2 * [tokens_of("ab")] + 2 * [[PADDING, *tokens_of("c")]]
        assert both == [LETTERS.decode([max(t, 0) for t in row]) for row in arrays["samples"]]
    assert both[0] == both[1] != both[2] == both[3]
    assert sample.main(["pairs", "--source", "c", *arguments, *GREEDY]) == 0
    (folder,) = Path("pairs/generated").iterdir()
    assert (folder / "samples.txt").read_text() == media_text.RULE.join(both[2:]) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speller", "--prompt", "abc" * 4 + "d"], "a prompt has 13 tokens, and the model's context is 12"),
        (["speller", "--prompt", "abx"], "cannot write 'x'"),
        (["speller", "--prefix", "a", "--suffix", "c"], "not trained to fill in the middle"),
        (["speller", "--source", "a"], "was trained on texts, not on pairs; give it a --prompt"),
        (["filler", "--prefix", "abcdef", "--suffix", "gh ab"], "a prompt has 14 tokens"),
        (["masked", "--stop", "a"], "leave out --stream and --stop"),
        (["masked", "--stream"], "leave out --stream and --stop"),
        (["pairs"], "--source"),
        (["pairs", "--prompt", "a"], "--source"),
        (["pairs", "--source", "abcde"], "a source has 5 tokens, and the model reads 4"),
    ],
)
def test_inputs_that_a_model_lacks_are_refused_and_nothing_is_written(arguments, message, here):
    with pytest.raises(UserError, match=message):
        sample.main([*arguments, "--out", "out"])
    assert not Path("out").exists()
