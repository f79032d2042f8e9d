"""Loads config files: Python files that define `config = Config(...)`, and may load and change another config file."""

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
"""Folder of the configs that come with a checkout of gen."""

_folders: ContextVar[tuple[Path, ...]] = ContextVar(
    "folders", default=()
)  # folders that `load` searches when a config file calls it
_loading: ContextVar[tuple[Path, ...]] = ContextVar("loading", default=())  # config files that are running now
_modules: dict[str, ModuleType] = {}  # {name in sys.modules: module} of the config files that were loaded


def load(name: str, root: Path | None = None) -> Config:
    """Runs a config file, and returns its `config`.

    name: a path that ends with .py, or NAME for NAME.py in `root`. Default of `root`: configs/ in the current folder, then the
    configs of gen. If a config file calls `load`, its own folder is searched first, then the folders that were searched for it,
    then the configs of gen. While the file runs, it can import modules from its folder.

    Raises: UserError for an unknown name (with the nearest one), or a file without a `config`.
    """
    folders = (root,) if root else _folders.get() or (Path("configs"), CONFIGS)
    path = _find(name, folders)
    # A `load` inside the file searches the file's own folder first.
    with _search((path.parent, *folders, CONFIGS), path), _importable(path.parent):
        module = _run(path)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise UserError(f"{path} defines no `config = Config(...)`")
    return config


def _find(name: str, folders: Sequence[Path]) -> Path:
    """Returns the path of the config file `name` (see `load`). `folders` are searched in this order.

    Raises: UserError that names the file with the most similar name, if none is found.
    """
    file = name if name.endswith(".py") else f"{name}.py"
    paths = [folder / file for folder in folders]
    if name.endswith(".py"):
        # A path is relative to the current folder. Inside of a config file, the folders of `_search` come first.
        paths = [*(paths if _loading.get() else []), expand_user(name)]
    # A config file may load a file of the same name from another folder, so files that are running are left out.
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
    """Returns the name under which Python imports a file: "examples.flow" if it is below a folder of sys.path, otherwise its stem.

    config.json names the file's classes by this module name, and `--trust examples.flow` imports them.
    """
    for folder in sys.path:
        root = Path(folder or ".").resolve()
        if path.resolve().is_relative_to(root):
            parts = path.resolve().relative_to(root).with_suffix("").parts
            if all(part.isidentifier() for part in parts):
                return ".".join(parts)
    return path.stem


def _run(path: Path) -> ModuleType:
    """Runs a config file as a module, and returns the module. Puts it into sys.modules, so that its classes are found.

    If sys.modules has another module of this name that is not a config file, such as json, that module stays.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    if before is None or before is _modules.get(name):
        sys.modules[name] = _modules[name] = module
    elif Path(getattr(before, "__file__", None) or "").resolve() == path.resolve():
        return before  # another file has imported it; running it again would define its classes a second time
    spec.loader.exec_module(module)
    return module


@contextmanager
def _search(folders: tuple[Path, ...], path: Path) -> Iterator[None]:
    """Sets the folders that `load` searches while the config file at `path` runs."""
    searched = _folders.set(folders)
    loading = _loading.set((*_loading.get(), path.resolve()))
    try:
        yield
    finally:
        _folders.reset(searched)
        _loading.reset(loading)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Adds a folder to the end of sys.path inside the context. So its modules don't replace installed ones."""
    entry = str(folder.resolve())
    sys.path.append(entry)  # nested files may add the same folder again
    try:
        yield
    finally:
        # Removes the last occurrence: the folder may also have been on the path before.
        sys.path.reverse()
        sys.path.remove(entry)
        sys.path.reverse()
