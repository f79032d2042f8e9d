"""The shape of the code in gen/: short functions, little nesting, short files, comments that say why, few lambdas and few Any."""

import ast
from pathlib import Path

import pytest

GEN = Path(__file__).parent.parent / "gen"
FILES = sorted(GEN.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_DEPTH, MAX_FILE_LINES = 60, 3, 300
MIN_COMMENTS = 0.03  # of all lines
MAX_ANY, MAX_LAMBDAS = 0.010, 0.008  # per line
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def depth(node: ast.AST, level: int = 0) -> int:
    """The deepest block inside a function; functions inside of it count for themselves, and an elif is not deeper than its if."""
    deepest = level
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef | ast.Lambda):
                chained = (
                    isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If) and len(value) == 1
                )
                deepest = max(deepest, depth(child, level + (isinstance(child, BLOCKS) and not chained)))
    return deepest


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(GEN)) for file in FILES])
def test_a_file_is_read_at_one_sitting(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"
            assert depth(node) <= MAX_DEPTH, f"{node.name} is nested {depth(node)} deep"


def test_the_code_says_why_and_has_few_escapes():
    lines = comments = anys = lambdas = 0
    for file in FILES:
        text = file.read_text()
        nodes = list(ast.walk(ast.parse(text)))
        lines += len(text.splitlines())
        comments += sum(line.strip().startswith("#") for line in text.splitlines())
        anys += sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
        lambdas += sum(isinstance(node, ast.Lambda) for node in nodes)
    assert comments >= MIN_COMMENTS * lines
    assert anys <= MAX_ANY * lines
    assert lambdas <= MAX_LAMBDAS * lines
