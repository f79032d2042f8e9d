"""The layers of gen/ (rooms): a module only imports lower layers, and no modules import each other in a circle."""

import ast
import re
from pathlib import Path

GEN = Path(__file__).parent.parent / "gen"
FLOORS = [  # from the ground up; a room imports from itself and from lower floors
    ("system",),
    ("errors",),
    ("core",),
    ("files", "axis", "memory"),
    ("networks",),
    ("optim",),
    ("data",),
    ("config",),
    ("families",),
    ("metrics",),
    ("media",),
    ("runtime",),
    ("runs",),
    ("derived",),
    ("evaluation",),
    ("plan", "interop"),
    ("train", "sample", "evaluate", "cache"),
    ("__init__",),
]


def modules() -> dict[str, Path]:
    files = sorted(GEN.rglob("*.py"))
    return {
        ".".join(file.relative_to(GEN.parent).with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of gen that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_a_floor_and_imports_point_downwards():
    known, floor = modules(), {name: i for i, names in enumerate(FLOORS) for name in names}
    assert {room(name) for name in known} == floor.keys()
    upwards = [
        f"{module} imports {other}"
        for module, file in known.items()
        for other in sorted(imports(file, known))
        if room(module) != room(other) and floor[room(module)] <= floor[room(other)]
    ]
    assert not upwards, "\n".join(upwards)


def test_the_list_for_contributors_has_the_same_floors():
    listed = re.findall(r"^    gen/(\S+(?: \S+)*)  ", (GEN.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    floors = [{name.removesuffix(".py") for name in names.split()} for names in listed]
    assert floors[::-1] == [set(names) for names in FLOORS]


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    # A package's __init__ re-exports its modules, so it stands for none of them.
    graph = {name: {x for x in imports(file, known) if known[x].name != "__init__.py"} for name, file in known.items()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())
