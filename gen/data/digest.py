"""SHA-256 digests of strings and arrays."""

from __future__ import annotations

import hashlib

import numpy as np


def sha256(*parts: str | np.ndarray) -> str:
    """Hex digest of strings and arrays; their types, shapes and order count."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{len(part)}:{part}".encode(errors="surrogateescape"))  # a file's name may be no text
    return digest.hexdigest()
