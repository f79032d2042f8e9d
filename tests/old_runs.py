"""Makes runs as older versions of gen wrote them, and runs whose files were changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gen.runs import checkpoint, manifest


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes the content of a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def reseal(path: Path, **facts: object) -> None:
    """Changes facts of a checkpoint, and seals it again. A fact that becomes None is removed."""
    edit(path / "meta" / "metadata", lambda found: found.update(facts))
    edit(path / "meta" / "metadata", lambda found: [found.pop(k) for k, v in facts.items() if v is None])
    manifest.seal(path)


def make_old(workdir: Path) -> None:
    """Removes what older versions of gen did not write, so that no file of the run is compared with its checkpoints."""
    edit(workdir / "config.json", lambda found: [found.pop(name) for name in ("sha256", "files")])
    for step in checkpoint.steps(workdir / "checkpoints"):
        reseal(workdir / "checkpoints" / str(step), metrics_sha256=None, step=None, owner=None)
