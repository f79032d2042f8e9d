"""Shows and clears the cache of decoded images, tokens and compiled programs: `python -m gen.cache [--clear] [--limit 50GB]`."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated

import tyro

from gen.data import limit
from gen.data.limit import Item
from gen.errors import UserError, run_command, say
from gen.files import cache_folder, write_json

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?", re.IGNORECASE)
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
"""{prefix of a unit: power of 1000}."""


@dataclass(frozen=True)
class Options:
    """Show the cache: the folder $XDG_CACHE_HOME/gen, or ~/.cache/gen. It is safe to delete: everything in it can be computed again."""

    clear: bool = False
    """Remove all files that gen has written there, except those that a running process uses."""
    limit: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Set the largest size of the cache, such as 50GB, also for later runs. If the cache is larger, the entries that were unused
    for the longest time are removed."""


def main() -> None:
    """Runs `python -m gen.cache` with the options of the command line."""
    run(tyro.cli(Options, prog="python -m gen.cache"))


def run(options: Options) -> None:
    """Applies --limit and --clear to the cache, then prints its content. Raises: UserError for a wrong size."""
    cache = cache_folder()
    if options.limit is not None:
        size = parse_size(options.limit)
        cache.mkdir(parents=True, exist_ok=True)
        write_json(cache / limit.LIMIT, size)
        report("removed", limit.trim(cache))
    if options.clear:
        removed, used = limit.clear(cache)
        report("removed", removed)
        if used:
            report("kept, because they are in use or can't be removed:", used)
    show(cache.exists())


def show(exists: bool) -> None:
    """Prints the size of the cache, and a line for each entry. All compiled programs share one line.

    exists: whether the cache folder exists.
    """
    cache = cache_folder()
    items = limit.list_items(cache) if exists else []
    bound = f" of at most {write_size(limit.read_limit(cache))} (--limit SIZE)" if exists else ""
    say(f"{cache}: {write_size(sum(item.size for item in items))}{bound}")
    groups = defaultdict[str, list[Item]](list)
    # A run compiles dozens of programs, which would hide the other entries.
    for item in items:
        is_program = item.what == "a compiled program"
        groups["compiled programs" if is_program else str(item.path)].append(item)
    for members in sorted(groups.values(), key=lambda members: -members[0].used):
        first, size = members[0], sum(item.size for item in members)
        what = first.what if len(members) == 1 else f"{len(members)} compiled programs"
        say(f"{write_size(size):>9}  {write_age(first.used):>12}  {what}")


def report(verb: str, items: list[Item]) -> None:
    """Prints the number and the total size of items, such as "removed 3 entries, 1.2 GB". verb: the first words."""
    say(f"{verb} {len(items)} entries, {write_size(sum(item.size for item in items))}")


def parse_size(text: str) -> int:
    """Returns a size such as "50GB", "1.5TB" or "0" in bytes; 1 kB is 1000 bytes, and so is 1 KiB. Raises: UserError for another text."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise UserError(f"--limit {text!r} is not a size; give one such as 50GB")
    return round(float(match[1]) * 1000 ** POWERS[match[2].upper()])


def write_size(size: float) -> str:
    """Returns a number of bytes as text, such as "1.5 GB"."""
    unit = next((unit for unit in ("B", "kB", "MB", "GB") if size < 1000 ** (POWERS[unit[:-1].upper()] + 1)), "TB")
    value = size / 1000 ** POWERS[unit[:-1].upper()]
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def write_age(used: float) -> str:
    """Returns how long ago a time was, such as "3 days ago". used: in seconds since 1970. 0: unknown, which gives "-"."""
    hours = (time.time() - used) / 3600
    if used <= 0:
        return "-"
    return f"{hours / 24:.0f} days ago" if hours >= 48 else f"{max(hours, 0):.0f} hours ago"


if __name__ == "__main__":
    run_command(main)
