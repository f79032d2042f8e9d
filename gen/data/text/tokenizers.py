"""Text to tokens and back. A tokenizer is a Hugging Face `Tokenizer`, kept as one tokenizer.json, with one special token,
`END`, that each document begins with. Text itself never holds it: its letters are encoded as letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gen import files
from gen.errors import UserError
from gen.files import expand_user

END = "<|endoftext|>"
FILE = "tokenizer.json"
KEPT = (type(None), normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)  # others can grow a text
MOST = 2**24  # tokens
TRAINED = ("byte", "character", "bpe")  # from the data; others are read from a file


def byte() -> Tokenizer:
    """The 256 bytes of UTF-8: `END` is token 0, byte b is token b + 1."""
    letters = sorted(BYTES, key=BYTES.__getitem__)
    tokenizer = Tokenizer(models.BPE(vocab=_numbered(letters), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _ours(tokenizer)


def character(alphabet: Iterable[str]) -> Tokenizer:
    """A token for each character of the alphabet, in the order of code points from token 1 on."""
    tokenizer = Tokenizer(models.BPE(vocab=_numbered(sorted(set(alphabet))), merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return _ours(tokenizer)


def bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte pairs merged in the order of their frequency inside of words, over bytes, as GPT-2 does (Sennrich et al. 2016;
    Radford et al. 2019): `vocabulary` tokens, or fewer if the texts have no more pairs. The same texts give the same
    tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=sorted(BYTES), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _ours(tokenizer)


def load(content: bytes, name: str = FILE) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises: UserError if it is damaged, has no token `END`, or its
    tokens are neither made of bytes nor of characters."""
    with _short(f"{name} is no tokenizer of Hugging Face tokenizers"):
        tokenizer = Tokenizer.from_buffer(content)
    if tokenizer.token_to_id(END) is None:
        raise UserError(f"{name} has no token {END}, which gen begins documents with; choose a tokenizer that has it")
    if not isinstance(tokenizer.decoder, decoders.ByteLevel | decoders.Fuse):
        raise UserError(f"{name} is neither of bytes, as GPT-2's, nor of characters; choose such a tokenizer")
    if not isinstance(tokenizer.normalizer, KEPT):
        raise UserError(f"{name} changes texts before it reads them; choose a tokenizer without a normalizer")
    if size(tokenizer) > MOST:
        raise UserError(f"{name} numbers its tokens up to {size(tokenizer) - 1:,}; they must be below {MOST:,}")
    with _short(f"{name} has a token that is no bytes"):
        pieces(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _ours(tokenizer)


def of_run(folder: Path) -> Tokenizer:
    """The tokenizer of a run, or of any folder that holds a tokenizer.json. Raises: UserError if there is none."""
    return load(read(folder), str(folder / FILE))


def read(path: Path) -> bytes:
    """The content of a tokenizer.json, given itself or its folder. Raises: UserError if there is none."""
    path = expand_user(path)
    path = path / FILE if path.is_dir() else path
    try:
        return files.read_bytes(path, 2**28)
    except FileNotFoundError:
        raise UserError(f"{path} can't be read as a tokenizer: No such file or directory") from None


def dump(tokenizer: Tokenizer) -> bytes:
    """The tokenizer.json."""
    return tokenizer.to_str().encode()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text, without `END`. Raises: UserError for a character that has no token."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, from which `decode` makes exactly that text.

    Raises: UserError for a character that has no token, or that the tokenizer changes.
    """
    with _short("the tokenizer can't read a text"):
        found = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    for text, back in zip(texts, tokenizer.decode_batch(found, skip_special_tokens=False), strict=True):
        if text != back:
            at = next(
                (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
            )
            raise UserError(
                f"the tokenizer can't say {text[at : at + 1]!r} (of {text[max(at - 10, 0) : at + 10]!r}): leave it out,"
                " or use a tokenizer that keeps every character, such as byte or bpe"
            )
    return found


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens, without `END` and what is no token; U+FFFD where bytes are no UTF-8."""
    return tokenizer.decode(list(tokens))


def end(tokenizer: Tokenizer) -> int:
    token = tokenizer.token_to_id(END)
    assert token is not None  # `load` refuses others
    return token


def size(tokenizer: Tokenizer) -> int:
    """One more than the largest token."""
    return 1 + max(tokenizer.get_vocab().values())


def pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of UTF-8 that each token stands for; none for special tokens. A text is its tokens' pieces, joined."""
    added = tokenizer.get_added_tokens_decoder()
    over_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)
    found = [b""] * size(tokenizer)
    for text, token in tokenizer.get_vocab().items():
        if token in added:
            found[token] = b"" if added[token].special else text.encode()
        else:
            found[token] = bytes(map(BYTES.__getitem__, text)) if over_bytes else text.encode()
    return found


def widths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes that each token stands for, int32 [V]."""
    return np.array([len(piece) for piece in pieces(tokenizer)], np.int32)


@contextmanager
def _short(what: str) -> Iterator[None]:
    """The library's errors, of which none is more precise, and its panics, which are no Exception, as a UserError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {error}") from None


def _letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: itself if it can be seen in Latin-1, or else the next
    free one from U+0100 on (Radford et al. 2019)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(seen))
    return {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTES = _letters()


def _numbered(letters: Sequence[str]) -> dict[str, int]:
    return {END: 0, **{letter: i for i, letter in enumerate(letters, 1)}}


def _ours(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([END])
    tokenizer.encode_special_tokens = True
    return tokenizer
