"""Makes, loads and uses tokenizers, which convert texts to tokens and back.

A tokenizer is a Hugging Face `Tokenizer` that is stored as one file, tokenizer.json. It has the special token `END`,
which is placed before each document. Text is never encoded as this token: if a text spells it out, its letters are
encoded.
"""

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
MAX_FILE_BYTES = 2**28
MAX_VOCABULARY = 2**24
MAX_WORD = 256  # largest number of bytes of a word when a bpe is trained. Longer words are cut
TRAINED = ("byte", "character", "bpe")  # kinds that are made from the data; others are read from a file
# Other normalizers could make a text so long that it fills the memory. A tokenizer may come from a stranger.
NORMALIZERS = (type(None), normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)


def byte() -> Tokenizer:
    """Returns the tokenizer of the 256 bytes of UTF-8. `END` is token 0, and byte b is token b + 1."""
    # A BPE without merges: every byte stays a token of its own.
    letters = sorted(BYTES, key=BYTES.__getitem__)
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(letters), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_end(tokenizer)


def character(alphabet: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer with one token for each character of the alphabet, in the order of code points.

    The first character is token 1, because `END` is token 0.
    """
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(sorted(set(alphabet))), merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return _with_end(tokenizer)


def bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Trains a byte-level BPE as GPT-2 does: pairs of tokens inside of words are merged in the order of their frequency.

    It has `vocabulary` tokens, or fewer if the texts have no more pairs. The same texts give the same tokenizer. A token has at
    most MAX_WORD bytes.

    Source: Sennrich et al. 2016; Radford et al. 2019.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Training takes a time that grows with the square of the longest word, such as a genome on one line or base64.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(MAX_WORD)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=sorted(BYTES), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Encoding takes a word of any length in nearly linear time.
    tokenizer.pre_tokenizer = words
    return _with_end(tokenizer)


def load(content: bytes, name: str = FILE) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json. name: for errors.

    Raises: UserError if it is damaged, lacks the token `END`, has a normalizer that is not in NORMALIZERS, has more than MAX_VOCABULARY
    tokens, or has tokens that are made of neither bytes nor characters.
    """
    with _as_user_error(f"{name} is not a tokenizer of the Hugging Face tokenizers library"):
        tokenizer = Tokenizer.from_buffer(content)
    if tokenizer.token_to_id(END) is None:
        raise UserError(f"{name} has no token {END}, with which gen begins documents; choose a tokenizer that has it")
    if not isinstance(tokenizer.decoder, decoders.ByteLevel | decoders.Fuse):
        raise UserError(
            f"{name} is neither over bytes, such as GPT-2's, nor over characters; choose a tokenizer of one of these kinds"
        )
    if not isinstance(tokenizer.normalizer, NORMALIZERS):
        raise UserError(f"{name} changes texts before it reads them; choose a tokenizer without a normalizer")
    if size(tokenizer) > MAX_VOCABULARY:
        raise UserError(f"{name} has tokens up to {size(tokenizer) - 1:,}; they must be below {MAX_VOCABULARY:,}")
    with _as_user_error(f"{name} has a token that is not made of bytes"):
        pieces(tokenizer)
    # A saved tokenizer may truncate or pad every text, which would change it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _with_end(tokenizer)


def load_folder(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a run, or of any folder with a tokenizer.json. Raises: UserError if the file is missing."""
    return load(read(folder), str(folder / FILE))


def read(path: Path) -> bytes:
    """Returns the content of a tokenizer.json. path: the file or its folder. Raises: UserError if it is missing."""
    path = expand_user(path)
    path = path / FILE if path.is_dir() else path
    try:
        return files.read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} cannot be read as a tokenizer: there is no such file") from None


def dump(tokenizer: Tokenizer) -> bytes:
    """Returns the content of the tokenizer.json of a tokenizer: the inverse of `load`."""
    return tokenizer.to_str().encode()


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text, without `END`. Raises: UserError for a character that has no token."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of each text, without `END`. `decode` gives exactly the same text back.

    Raises: UserError for a character that has no token, or that the tokenizer changes.
    """
    with _as_user_error("the tokenizer cannot read a text"):
        found = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    # A token stream that cannot be decoded to its text would make bits per byte meaningless.
    for text, back in zip(texts, tokenizer.decode_batch(found, skip_special_tokens=False), strict=True):
        if text != back:
            at = _first_difference(text, back)
            raise UserError(
                f"the tokenizer cannot write {text[at : at + 1]!r} (in {text[max(at - 10, 0) : at + 10]!r}): leave it out,"
                " or use a tokenizer that keeps every character, such as byte or bpe"
            )
    return found


def _first_difference(a: str, b: str) -> int:
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Returns the text of tokens. Special tokens, such as `END`, and tokens outside of the vocabulary are left out.

    Bytes that are not UTF-8 become U+FFFD.
    """
    return tokenizer.decode(list(tokens))


def end(tokenizer: Tokenizer) -> int:
    """Returns the number of the token `END`."""
    token = tokenizer.token_to_id(END)
    assert token is not None  # `load` refuses other tokenizers
    return token


def size(tokenizer: Tokenizer) -> int:
    """Returns the size of the vocabulary, V: the largest number of a token + 1."""
    return 1 + max(tokenizer.get_vocab().values())


def pieces(tokenizer: Tokenizer) -> list[bytes]:
    """Returns the UTF-8 bytes that each of the V tokens represents, by the number of the token: b"" for special tokens.

    Joining the bytes of all tokens of a text gives the bytes of the text.
    """
    added = tokenizer.get_added_tokens_decoder()
    over_bytes = isinstance(tokenizer.decoder, decoders.ByteLevel)
    # Numbers that no token has keep b"".
    found = [b""] * size(tokenizer)
    for text, token in tokenizer.get_vocab().items():
        if token in added:
            found[token] = b"" if added[token].special else text.encode()
        else:
            found[token] = bytes(map(BYTES.__getitem__, text)) if over_bytes else text.encode()
    return found


def widths(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the number of bytes that each token represents, int32 [V]."""
    return np.array([len(piece) for piece in pieces(tokenizer)], np.int32)


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Converts any error inside of the block to a UserError with the message "WHAT: MESSAGE"."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The library has no error class of its own, and its panics are not even Exceptions.
        raise UserError(f"{what}: {error}") from None


def _byte_letters() -> dict[str, int]:
    """Returns {letter: byte}: the character by which byte-level tokenizers write each byte (Radford et al. 2019).

    A byte that is a visible character in Latin-1 is written as this character. The other bytes are written as the
    characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTES = _byte_letters()


def _vocabulary(letters: Sequence[str]) -> dict[str, int]:
    return {END: 0, **{letter: i for i, letter in enumerate(letters, 1)}}


def _with_end(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([END])
    # Without this, a text that spells out END would become the special token.
    tokenizer.encode_special_tokens = True
    return tokenizer
