"""Cleans documents: drops control characters, short documents and exact duplicates, and counts them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from gen.data.text.documents import Document

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
# Control characters that separate lines (vertical tab, form feed, separators of files, groups and records, next line) or words
# (separator of units). Without them, the words on both sides would become one. U+2028 and U+2029 are spaces, and are kept.
LINE_SEPARATOR = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85]")
WORD_SEPARATOR = "\x1f"
DROPPED = ("duplicates", "short", "control characters")  # `clean` counts dropped documents under these keys


def clean(
    documents: Iterable[Document], body: str, separator: str | None, min_characters: int, counts: Counter[str]
) -> Iterator[Document]:
    """Yields documents whose fields are cleaned by `clean_text`, in order. Drops short documents and exact duplicates.

    body: the field that is measured and divided: "text" of a document, or the target of a pair.
    separator: a regular expression (re.MULTILINE). Its matches divide the body into several documents, and are left
    out. None: the body is not divided.
    min_characters: documents whose body has fewer characters are dropped. White space at the ends does not count.
    counts: is increased by the numbers of yielded "documents" and their "characters", and of dropped "duplicates"
    (exact copies of an earlier document in any split), "short" documents, and "control characters".
    """
    seen: set[bytes] = set()
    for document in documents:
        whole = {name: clean_text(value, counts) for name, value in document.fields.items()}
        # A document without a separator has one part, itself.
        for part in divide(whole[body], separator):
            fields = {**whole, body: part}
            if len(part.strip()) < min_characters:
                counts["short"] += 1
                continue
            # The set holds digests instead of texts: 32 bytes for each document.
            digest = hashlib.sha256("\0".join(fields.values()).encode()).digest()
            if digest in seen:
                counts["duplicates"] += 1
                continue
            seen.add(digest)
            counts["documents"] += 1
            counts["characters"] += sum(map(len, fields.values()))
            yield document._replace(fields=fields)


def clean_text(text: str, counts: Counter[str]) -> str:
    r"""Returns the text with \n for newlines, without a byte order mark, and without control characters except \n and \t.

    Control characters that separate lines, such as form feeds, become \n. The separator of units, U+001F, becomes a
    space. counts["control characters"] is increased by the number of removed characters.
    """
    text = LINE_SEPARATOR.sub("\n", text.removeprefix("\ufeff")).replace(WORD_SEPARATOR, " ")
    text, removed = CONTROL.subn("", text)
    counts["control characters"] += removed
    return text


def divide(text: str, separator: str | None) -> Iterator[str]:
    """Yields the parts of the text between the matches of the separator, a regular expression. None: the whole text.

    Empty parts are left out, except at the end of the text.
    """
    start = 0
    for match in re.finditer(separator, text, re.MULTILINE) if separator else ():
        if match.start() > start:
            yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def describe(name: str, counts: Counter[str], unit: str) -> str:
    """Returns a line for the user: the numbers of documents and characters, and how much was dropped.

    name: the --data.name. counts: as from `clean`. unit: word for the documents, such as "pairs".
    """
    return f"{name}: {counts['documents']:,} {unit}, {counts['characters']:,} characters; {describe_dropped(counts)}"


def describe_dropped(counts: Counter[str]) -> str:
    """Returns a phrase such as "dropped 3 duplicates, 0 short, 12 control characters". counts: as from `clean`."""
    return "dropped " + ", ".join(f"{counts[key]:,} {key}" for key in DROPPED)
