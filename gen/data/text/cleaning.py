"""Documents made clean, in steps that are counted: newlines, control characters, parts, short ones, exact duplicates."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from gen.data.text.documents import Document

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def cleaned(
    documents: Iterable[Document], body: str, between: str | None, min_characters: int, counts: Counter[str]
) -> Iterator[Document]:
    """The documents that stay, as `plain` text, in their order.

    body: the field that matters, a document's text or a pair's target. It is divided on `between`, a regular expression
    (re.MULTILINE); what that matches is left out. A document is dropped where it has less than `min_characters` between
    the white space at its ends.
    counts: gets "documents" and "characters" of what stays, and what was dropped: "duplicates" (exact, of what came
    before in any split), "short", "control characters".
    """
    seen: set[bytes] = set()
    for document in documents:
        whole = {name: plain(value, counts) for name, value in document.fields.items()}
        for part in divided(whole[body], between):
            fields = {**whole, body: part}
            if len(part.strip()) < min_characters:
                counts["short"] += 1
                continue
            digest = hashlib.sha256("\0".join(fields.values()).encode()).digest()
            if digest in seen:
                counts["duplicates"] += 1
                continue
            seen.add(digest)
            counts["documents"] += 1
            counts["characters"] += sum(map(len, fields.values()))
            yield document._replace(fields=fields)


def plain(text: str, counts: Counter[str]) -> str:
    r"""The text without a byte order mark, its newlines as \n, without other control characters (Cc) than \n and \t."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text, removed = CONTROL.subn("", text)
    counts["control characters"] += removed
    return text


def divided(text: str, between: str | None) -> Iterator[str]:
    """What stands between the matches, but for nothing at the beginning."""
    start = 0
    for match in re.finditer(between, text, re.MULTILINE) if between else ():
        if match.start() > start:
            yield text[start : match.start()]
        start = match.end()
    yield text[start:]


def line(name: str, counts: Counter[str], what: str) -> str:
    """What was kept and dropped, for people."""
    return f"{name}: {counts['documents']:,} {what}, {counts['characters']:,} characters; {dropped(counts)}"


def dropped(counts: Counter[str]) -> str:
    return "dropped " + ", ".join(f"{counts[key]:,} {key}" for key in ("duplicates", "short", "control characters"))
