"""Opens the documents that --data.name and --data.split name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gen.data.text import documents, jsonl, tfds
from gen.data.text.documents import Source
from gen.errors import UserError


def open_source(
    name: str, data_dir: str | None, slices: Sequence[str] | None, keys: Sequence[str] = (), whole: bool = False
) -> Source:
    """Returns the documents of a --data.name: pydoc, text:PATH, jsonl:PATH or the name of a prepared TFDS set.

    data_dir: directory of prepared TFDS sets. None: ~/tensorflow_datasets.
    slices: for a TFDS set: its training, validation and test documents, such as train[:90%]. None: no slices.
    keys: for JSON lines: FIELD=KEY for fields with other keys, see `jsonl.jsonl`.
    whole: compare every byte of the files with the hashes from their first reading, not only a random sample.

    Raises: UserError if nothing has this name, or if slices or keys are given for documents that have none.
    """
    # A TFDS name may have a colon too, before its version.
    kind, colon, path = name.partition(":")
    local = name == "pydoc" or (colon and kind in ("text", "jsonl"))
    if local and slices:
        raise UserError(
            f"--data.split {','.join(slices)!r}: {name} has no splits to slice; --data.split hash:0.1 holds out a tenth of"
            " the documents, and tail:0.1 the last tenth of the text"
        )
    if keys and kind != "jsonl":
        raise UserError(f"--data.keys {' '.join(keys)}: {name} has no keys; they are for --data.name jsonl:PATH")
    if name == "pydoc":
        return documents.pydoc()
    if local:
        if not path:
            raise UserError(f"--data.name {name} has no path; the fix: --data.name {kind}:PATH")
        return documents.text(Path(path), whole) if kind == "text" else jsonl.jsonl(Path(path), keys, whole)
    return tfds.open_texts(name, data_dir, slices, whole)
