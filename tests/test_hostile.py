"""Fixed samples of the hostile inputs of tests/hostile_cases.py. `python -m tests.hostile` tries all of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import CONTROL, World, failure, make_world
from tests.hostile_cases import all_cases

# Orbax leaves the other reads of a checkpoint behind when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CASES = all_cases()
KINDS = list(dict.fromkeys(case.kind for case in CASES))
SLOW = re.compile("large|six|million|scored|model writes|1 GiB|bpe|gzip|config.json with|score")
"""Names of cases that take seconds."""
LARGE_SAMPLE = CASES[::5]
SAMPLE = [case for kind in KINDS for case in [c for c in CASES if c.kind == kind and not SLOW.search(c.name)][::9]]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: ascii(f"{case.kind}: {case.name}"))
def test_a_hostile_input_is_refused_or_handled(case, world, tmp_path):
    assert failure(case, world, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_hostile_inputs_are_refused_or_handled(kind, world, tmp_path):
    reasons = {}
    for number, case in enumerate(case for case in LARGE_SAMPLE if case.kind == kind):
        folder = tmp_path / str(number)
        folder.mkdir()
        reasons[case.name] = failure(case, world, folder)
    assert reasons
    assert not {name: reason for name, reason in reasons.items() if reason}


def test_nothing_but_gen_errors_prints():
    """So everything that is printed is escaped. The progress of gen.data.prepare has no names of strangers."""
    found = set()
    for path in sorted((Path(__file__).parent.parent / "gen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", None) if isinstance(node, ast.Call) else None
            if name == "print" and path.name != "errors.py":
                found.add(path.name)
            if isinstance(node, ast.Attribute) and node.attr == "write" and "stdout" in ast.dump(node.value):
                found.add(path.name)
    assert found == {"prepare.py"}


def test_a_name_in_an_error_is_no_line_of_its_own():
    from gen.errors import UserError

    error = UserError("no file a\nerror: b\u202e\x1b[2J", "choose another")
    assert str(error).split("\n") == ["no file a\\nerror: b\\u202e\\x1b[2J", "choose another"]
    assert str(UserError(str(UserError("a\nb")))) == "a\\nb"
    assert not CONTROL.search(str(error))


def test_each_line_of_an_error_is_an_argument():
    for path in sorted((Path(__file__).parent.parent / "gen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert not any(isinstance(text, str) and "\n" in text.strip("\n") for text in texts), (
                    f"{path}:{node.lineno}"
                )
