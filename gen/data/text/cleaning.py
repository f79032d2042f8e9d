"""Cleans documents and counts what it drops: control characters, short documents, exact duplicates."""

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
DROPPED = ("duplicates", "short", "control characters")  # keys of the counts


def clean(
    documents: Iterable[Document], body: str, separator: str | None, min_characters: int, counts: Counter[str]
) -> Iterator[Document]:
    """Yields the documents that are kept, in order, with texts cleaned by `clean_text`.

    body: the field that is measured and divided: the text of a document, or the target of a pair.
    separator: a regular expression (re.MULTILINE) on which the body is divided into documents. Its matches are left out.
    min_characters: documents with fewer characters are dropped. White space at the ends does not count.
    counts: is increased by the numbers of kept "documents" and "characters", and of dropped "duplicates" (exact copies of an earlier
    document in any split), "short" documents, and "control characters".
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

    Control characters that separate lines, such as form feeds, become \n. One that separates words becomes a space.
    """
    text = LINE_SEPARATOR.sub("\n", text.removeprefix("\ufeff")).replace(WORD_SEPARATOR, " ")
    text, removed = CONTROL.subn("", text)
    counts["control characters"] += removed
    return text


def divide(text: str, separator: str | None) -> Iterator[str]:
    """Yields the parts of the text between the matches of the separator. An empty part at the beginning is left out."""
    start = 0
    for match in re.finditer(separator, text, re.MULTILINE) if separator else ():
        if match.start() > start:
            yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def describe(name: str, counts: Counter[str], unit: str) -> str:
    """Returns a line with the numbers of kept and dropped documents. unit: word for the documents, such as "pairs"."""
    return f"{name}: {counts['documents']:,} {unit}, {counts['characters']:,} characters; {describe_dropped(counts)}"


def describe_dropped(counts: Counter[str]) -> str:
    """Returns a phrase that says how much was dropped, and why."""
    return "dropped " + ", ".join(f"{counts[key]:,} {key}" for key in DROPPED)
