"""SHA-256 digests of strings and arrays."""

from __future__ import annotations

import hashlib

import numpy as np


def sha256(*parts: str | np.ndarray) -> str:
    """Returns one SHA-256 of all parts, in hexadecimal. It depends on their order, and on the dtypes and shapes of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            # Without dtype and shape, arrays of equal bytes but different meaning would have one digest.
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            # The length separates a string from the next part. File names may hold bytes that are not UTF-8, which Python keeps as surrogates.
            digest.update(f"{len(part)}:{part}".encode(errors="surrogateescape"))
    return digest.hexdigest()
