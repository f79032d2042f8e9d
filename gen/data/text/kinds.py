"""Recognizes the kind of files that are not UTF-8 by their first bytes, for error messages."""

from __future__ import annotations

import re
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of file that is not a text in UTF-8."""

    name: str
    """The kind, with its article, such as "a gzip file"."""
    fix: str
    """How a user can make a text in UTF-8 of the file, for error messages."""


def _encoded(name: str, encoding: str) -> Kind:
    return Kind(f"{name} text", f"convert it with iconv -f {encoding} -t utf-8 OLD > NEW")


_UNPACK = "unpack it with {} first"
_PICTURE = "remove it, or train on pictures with --data.name folder:PATH"
_OFFICE = "save it as plain text in UTF-8"

# UTF-32 comes before UTF-16, because the byte order mark of UTF-32 begins with the mark of UTF-16.
MAGIC = (
    (b"\xff\xfe\0\0", _encoded("UTF-32", "utf-32")),
    (b"\0\0\xfe\xff", _encoded("UTF-32", "utf-32")),
    (b"\xff\xfe", _encoded("UTF-16", "utf-16")),
    (b"\xfe\xff", _encoded("UTF-16", "utf-16")),
    (b"\x1f\x8b", Kind("a gzip file", _UNPACK.format("gunzip"))),
    (b"BZh", Kind("a bzip2 file", _UNPACK.format("bunzip2"))),
    (b"\xfd7zXZ\0", Kind("an xz file", _UNPACK.format("unxz"))),
    (b"\x28\xb5\x2f\xfd", Kind("a Zstandard file", _UNPACK.format("unzstd"))),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK.format("7z x"))),
    (b"PK\x03\x04", Kind("a zip archive, or a document such as .docx", _UNPACK.format("unzip") + ", or " + _OFFICE)),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG picture", _PICTURE)),
    (b"\xff\xd8\xff", Kind("a JPEG picture", _PICTURE)),
    (b"GIF87a", Kind("a GIF picture", _PICTURE)),
    (b"GIF89a", Kind("a GIF picture", _PICTURE)),
    (b"%PDF-", Kind("a PDF document", "extract its text, for instance with pdftotext")),
    (b"{\\rtf", Kind("an RTF document", _OFFICE)),
    (b"\xd0\xcf\x11\xe0", Kind("an old Office document", _OFFICE)),
    (b"PAR1", Kind("a Parquet file", "write its texts as JSON lines first")),
    (b"ARROW1", Kind("an Arrow file", "write its texts as JSON lines first")),
    (b"SQLite format 3\0", Kind("an SQLite database", "write its texts as JSON lines first")),
)

# Kinds whose first bytes are plain ASCII. If a content begins with plain ASCII, no other kind is recognized: it may be a text.
TEXTUAL = (b"%PDF-", b"{\\rtf")
PLAIN = re.compile(rb"[\t\n\r -~]{0,64}")

# Number of bytes in which zeros are counted. If at least this fraction is zero, the content is UTF-16 or UTF-32.
SEARCHED = 4096
MIN_ZEROS = 0.2


def recognize(content: bytes) -> Kind | None:
    """Returns the kind of a file by its first bytes. None: the file may be a text in UTF-8.

    UTF-16 and UTF-32 without a byte order mark are recognized too, if many of the characters are ASCII.

    content: the whole file, or at least its first bytes. SEARCHED bytes are enough.
    """
    plain = PLAIN.fullmatch(content[:64])
    for magic, kind in MAGIC:
        if content.startswith(magic) and (magic in TEXTUAL or not plain):
            return kind
    # ASCII in UTF-16 has a zero byte in each pair, and in UTF-32 three zeros in each group of four.
    start = content[: min(SEARCHED, len(content) // 4 * 4)]
    zeros = [start[i::4].count(0) * 4 / len(start) >= MIN_ZEROS for i in range(4)] if start else []
    wide: dict[tuple[bool, ...], Kind] = {
        (False, True, False, True): _encoded("UTF-16", "utf-16le"),
        (True, False, True, False): _encoded("UTF-16", "utf-16be"),
        (False, True, True, True): _encoded("UTF-32", "utf-32le"),
        (True, True, True, False): _encoded("UTF-32", "utf-32be"),
    }
    return wide.get(tuple(zeros))
