"""Tokenizers: text to tokens and back."""

import json
import sys
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gen.data.text import tokenizers
from gen.errors import UserError

TEXT = "Zwölf Boxkämpfer — 日本語, 🎉!\n\n\tdon't  stop\u2028 <|endoftext|> e\u0301\n" * 3


def random_text(seed: int, n: int) -> str:
    """Returns random code points of all planes without surrogates, with spaces and newlines."""
    rng = np.random.default_rng(seed)
    points = np.concatenate(
        [rng.integers(0, 0x300, n), rng.integers(0, sys.maxunicode + 1, n), rng.choice([9, 10, 32], n)]
    )
    points = rng.permutation(points[(points < 0xD800) | (points > 0xDFFF)])
    return "".join(map(chr, points))


def make(kind: str, text: str) -> Tokenizer:
    if kind == "byte":
        return tokenizers.byte()
    if kind == "character":
        return tokenizers.character(text)
    return tokenizers.bpe(["low lower lowest\n" * 9, text], 300)


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
@pytest.mark.parametrize("text", ["", "a", TEXT, random_text(0, 2000)], ids=["empty", "letter", "mixed", "random"])
def test_decoding_gives_the_text_back(kind, text):
    tokenizer = make(kind, text)
    for each in (tokenizer, tokenizers.load(tokenizers.dump(tokenizer))):
        tokens = tokenizers.encode(each, text)
        assert tokenizers.decode(each, tokens) == text
        pieces = tokenizers.pieces(each)
        assert b"".join(pieces[token] for token in tokens) == text.encode()
        np.testing.assert_array_equal(tokenizers.widths(each), [len(piece) for piece in pieces])
        assert tokenizers.size(each) == len(pieces) == each.get_vocab_size()
        assert tokenizers.end(each) == 0
        # An end token that is spelled out is text.
        assert 0 not in tokens
        assert pieces[0] == b""


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_byte_level_tokenizers_encode_every_text(kind):
    tokenizer = make(kind, "nothing but ASCII")
    text = random_text(1, 3000)
    assert tokenizers.decode(tokenizer, tokenizers.encode(tokenizer, text)) == text


def test_byte_b_is_token_b_plus_1():
    text = random_text(2, 1000)
    assert tokenizers.encode(tokenizers.byte(), text) == [byte + 1 for byte in text.encode()]
    assert tokenizers.pieces(tokenizers.byte()) == [b"", *(bytes([byte]) for byte in range(256))]
    assert set(tokenizers.BYTES) == set(pre_tokenizers.ByteLevel.alphabet())


def test_characters_are_numbered_in_the_order_of_code_points():
    assert tokenizers.encode(tokenizers.character("cabbage"), "gecba") == [5, 4, 3, 2, 1]
    assert tokenizers.widths(tokenizers.character("aé日🎉")).tolist() == [0, 1, 2, 3, 4]


def test_pairs_are_merged_by_frequency():
    tokenizer = tokenizers.bpe(["xyxy", "xy", "ba", "ba"], 259)  # inside of words xy occurs 3 times and ba twice
    assert tokenizers.pieces(tokenizer)[257:] == [b"xy", b"ba"]
    assert tokenizers.pieces(tokenizer)[0] == b""
    assert len(tokenizers.encode(tokenizer, "xyba yx")) == 5


def test_training_on_text_without_spaces_is_not_quadratic():
    """A megabyte of one letter took minutes. Long words are only cut in training, and shorter ones never."""
    start = time.monotonic()
    tokenizer = tokenizers.bpe(["a" * 1_000_000], 300)
    assert time.monotonic() - start < 5
    assert max(map(len, tokenizers.pieces(tokenizer))) == tokenizers.MAX_WORD
    tokens = tokenizers.encode(tokenizer, "a" * 10_000)
    assert len(tokens) == -(-10_000 // tokenizers.MAX_WORD)

    def train(letters: int) -> list[bytes]:
        return tokenizers.pieces(tokenizers.bpe(["ab" * (letters // 2)], 266))

    assert b"ab" * 128 in train(tokenizers.MAX_WORD) and b"ab" * 128 in train(4 * tokenizers.MAX_WORD)


def test_training_is_deterministic():
    texts = [random_text(seed, 300) + "the cat the hat " * 5 for seed in range(5)]
    dumps = {tokenizers.dump(tokenizers.bpe(iter(texts), 400)) for _ in range(3)}
    assert len(dumps) == 1


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match="cannot write 'é'"):
        tokenizers.encode(tokenizers.character("cafe "), "a café")


def test_half_a_character_and_unknown_tokens_are_decoded():
    tokenizer = tokenizers.byte()
    tokens = tokenizers.encode(tokenizer, "aé")
    assert tokenizers.decode(tokenizer, tokens[:-1]) == "a\ufffd"
    assert tokenizers.decode(tokenizer, [0, *tokens, 0, 257, 300]) == "aé"


def test_a_tokenizer_is_read_from_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        tokenizers.load_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizers.dump(tokenizers.character("ab")))
    assert tokenizers.encode(tokenizers.load_folder(tmp_path), "ba") == [2, 1]


def test_a_tokenizer_may_have_its_end_token_last_as_gpt2_does():
    letters = dict.fromkeys([*pre_tokenizers.ByteLevel.alphabet()])
    vocabulary = {letter: i for i, letter in enumerate([*letters, "Ġa", "<|endoftext|>"])}
    theirs = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.enable_truncation(2)
    ours = tokenizers.load(theirs.to_str().encode())
    assert tokenizers.end(ours) == 257
    assert tokenizers.encode(ours, "b a<|endoftext|>")[:2] == [vocabulary["b"], vocabulary["Ġa"]]
    assert len(tokenizers.encode(ours, "b a<|endoftext|>")) == 2 + 13
    assert tokenizers.pieces(ours)[256:] == [b" a", b""]


@pytest.mark.parametrize("what", ["damaged", "without an end", "of words"])
def test_a_wrong_tokenizer_is_an_error(what):
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    words.add_special_tokens(["<|endoftext|>"])
    # A tokenizer.json from which the end token is removed.
    without = json.loads(tokenizers.dump(tokenizers.byte()))
    without["added_tokens"] = []
    del without["model"]["vocab"]["<|endoftext|>"]
    content, message = {
        "damaged": (b'{"model": 3}', "is not a tokenizer"),
        "without an end": (json.dumps(without).encode(), "has no token"),
        "of words": (words.to_str().encode(), "is neither over bytes"),
    }[what]
    with pytest.raises(UserError, match=rf"^x\.json {message}"):
        tokenizers.load(content, "x.json")
