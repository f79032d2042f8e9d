"""Protocols that metrics of all kinds of runs share, except runs of images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gen.evaluation.score import Options, Subject
from gen.families.flow import Request


def test_a_protocol_has_what_its_numbers_depend_on():
    def subject(base: object = None, **options: Any) -> Subject:
        run: Any = SimpleNamespace(facts=SimpleNamespace(base=base), model=SimpleNamespace(request=Request), spec={})
        data: Any = SimpleNamespace(sizes={"test": 7, "validation": 5}, digest="d", protocol={"seconds": 1})
        return Subject(run, 3, data, Options((Path("run"),), **options))

    split = {"split": "test", "n": 7, "data": "d", "seconds": 1}
    assert subject(seed=2).split_protocol == split
    assert subject(split="validation").split_protocol == split | {"split": "validation", "n": 5}
    assert subject(seed=2).run_protocol == split | {"checkpoint": 3}
    adapter = subject(SimpleNamespace(sha256="b"))
    assert adapter.run_protocol == split | {"checkpoint": 3, "base": "b"}
    assert subject(seed=2).sampled_protocol == split | {"checkpoint": 3, "seed": 2}
    steps = subject(request=("steps=5",)).sampled_protocol
    assert steps == split | {"checkpoint": 3, "seed": 0, "request": {"steps": 5}}
