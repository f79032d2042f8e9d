"""Config files: Python files that define `config = Config(...)`, perhaps derived from another config file."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from gen.config.experiment import Config
from gen.errors import UserError
from gen.files import expand_user

CONFIGS = Path(__file__).parent.parent.parent / "configs"
"""The configs that come with a checkout of gen."""

_folders: ContextVar[tuple[Path, ...]] = ContextVar(
    "folders", default=()
)  # searched by a config file that is being loaded
_loading: ContextVar[tuple[Path, ...]] = ContextVar("loading", default=())  # config files that are being loaded
_modules: dict[str, ModuleType] = {}  # config files that were loaded, by their name in sys.modules


def load(name: str, root: Path | None = None) -> Config:
    """Returns the `config` of a config file. The file is a program, and is run.

    name: a path that ends with .py, or NAME for NAME.py in `root` (default: configs/ in the current folder, or else the
    configs of gen). A config file may itself call `load`: its own folder is searched first, then the folder in which it was
    found, then the configs of gen. Modules in its folder can be imported while it runs.

    Raises: UserError for an unknown name (with the nearest one), or a file without a `config`.
    """
    folders = (root,) if root else _folders.get() or (Path("configs"), CONFIGS)
    path = _find(name, folders)
    # Names in the file are looked up in its own folder first.
    with _search((path.parent, *folders, CONFIGS), path), _importable(path.parent):
        module = _run(path)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise UserError(f"{path} defines no `config = Config(...)`")
    return config


def _find(name: str, folders: Sequence[Path]) -> Path:
    file = name if name.endswith(".py") else f"{name}.py"
    paths = [folder / file for folder in folders]
    if name.endswith(".py"):
        # A path is relative to the current folder; in a config file, to the file's folder first.
        paths = [*(paths if _loading.get() else []), expand_user(name)]
    # A derived config may have the name of its base, in another folder.
    found = [path for path in paths if path.is_file() and path.resolve() not in _loading.get()]
    if found:
        return found[0]
    path = paths[0]
    known = sorted(p.stem for p in path.parent.glob("*.py"))
    near = difflib.get_close_matches(path.stem, known, 1)
    ending = ".py" if name.endswith(".py") else ""
    hint = f"did you mean {near[0]}{ending}?" if near else f"{path.parent}/ has {', '.join(known) or 'none'}"
    raise UserError(f"there is no config file {path}; {hint}")


def module_name(path: Path) -> str:
    """Returns the name under which Python imports a file: "examples.flow" below a folder of sys.path, otherwise its stem.

    A run names the classes of the file by it, and `--trust examples.flow` imports them.
    """
    for folder in sys.path:
        root = Path(folder or ".").resolve()
        if path.resolve().is_relative_to(root):
            parts = path.resolve().relative_to(root).with_suffix("").parts
            if all(part.isidentifier() for part in parts):
                return ".".join(parts)
    return path.stem


def _run(path: Path) -> ModuleType:
    """Runs a config file as a module. It is registered under its name, as an import would do: its classes are found by it.

    If a module of the same name is not a config file, such as json, it is not replaced.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    if before is None or before is _modules.get(name):
        sys.modules[name] = _modules[name] = module
    elif Path(getattr(before, "__file__", None) or "").resolve() == path.resolve():
        return before  # imported by another file: running it again would make second classes of the same names
    spec.loader.exec_module(module)
    return module


@contextmanager
def _search(folders: tuple[Path, ...], path: Path) -> Iterator[None]:
    """Sets what a nested `load` searches, while the file at `path` runs."""
    searched = _folders.set(folders)
    loading = _loading.set((*_loading.get(), path.resolve()))
    try:
        yield
    finally:
        _folders.reset(searched)
        _loading.reset(loading)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules of a folder importable. The folder comes last, so it cannot replace an installed module."""
    entry = str(folder.resolve())
    sys.path.append(entry)  # nested files may add the same folder again
    try:
        yield
    finally:
        # Removes the last occurrence: the folder may also have been on the path before.
        sys.path.reverse()
        sys.path.remove(entry)
        sys.path.reverse()
