"""Runs that are killed at fixed places of the code. `python -m tests.chaos --kills 1000 --seed 0` tests random places."""

import os
import random
import subprocess
import sys

import pytest

from tests import chaos, places, same
from tests.chaos import Plan, Start
from tests.places import PLACES, Counts, Kill
from tests.processes import ROOT, inherited
from tests.starts import ENGINES, SCENARIOS, End


@pytest.mark.parametrize("target", [target for targets in PLACES.values() for target in targets])
def test_a_place_is_a_function_of_the_code(target):
    owner, name = places.find(target)
    assert callable(getattr(owner, name))


@pytest.fixture
def census(tmp_path) -> Counts:
    counts = Counts(tmp_path / "counts")
    for place in PLACES:
        for _ in range(5):
            counts.add(place)
    return counts


def test_a_plan_is_a_text_that_can_be_repeated(census):
    draw = random.Random(0)
    for scenario in SCENARIOS:
        for _ in range(20):
            plan = chaos.draw_plan(draw, scenario, census)
            assert Plan.parse(str(plan)) == plan
            assert plan.starts[-1].kill is None
            assert {start.engine for start in plan.starts} <= set(SCENARIOS[scenario].engines) <= ENGINES.keys()
    with pytest.raises(ValueError, match="SIGNAL"):
        Kill.parse("KILL:before:nowhere:1")


def test_random_plans_come_to_every_place_and_signal(census):
    draw = random.Random(0)
    kills = [chaos.draw_start(draw, "pmap1", census).kill for _ in range(5000)]
    assert {kill.place for kill in kills if kill} == set(PLACES)
    assert {kill.signal.split("+")[0] for kill in kills if kill} == set(places.SIGNALS)


@pytest.mark.parametrize(
    ("kill", "status", "output", "problem"),
    [
        ("KILL:before:seal:1", -9, "", None),
        ("TERM:after:step:2", 75, "", None),
        ("TERM:after:step:2", 1, "", "status 1"),
        ("TERM:after:step:2", 75, "Traceback (most recent call last)", "a traceback"),
        ("INT:after:lock:1", 130, "", None),
        ("TERM:before:import:9", -15, "", None),
        ("TERM:before:import:90", -15, "", "status -15"),
        ("TERM:before:import:90", 75, "", None),
        ("TERM+3:before:save:1", -9, "", None),
    ],
)
def test_an_end_is_judged_by_its_signal(kill, status, output, problem):
    assert chaos.judge(Start("pmap1", Kill.parse(kill)), End([status], output), fired=True) == problem


@pytest.mark.parametrize(("other", "problem"), [(130, None), (75, None), (2, "status [2] of the other host")])
def test_the_other_host_ends_for_the_same_reason(other, problem):
    begun = Start("hosts2", Kill.parse("INT:before:open log:1"))
    assert chaos.judge(begun, End([130, other], ""), fired=True) == problem


def test_a_start_that_does_not_go_on_is_a_failure():
    assert chaos.judge(Start("pmap1"), End([2], "error: no undamaged checkpoint"), fired=False)
    assert chaos.judge(Start("pmap1"), End([0], ""), fired=False) is None


def test_a_difference_of_one_bit_is_found(tmp_path):
    for run in ("whole", "hurt"):
        array = tmp_path / run / "checkpoints" / "4" / "params" / "w" / "0"
        array.parent.mkdir(parents=True)
        array.write_bytes(b"\0" if run == "whole" else b"\1")
    with pytest.raises(AssertionError, match="params/w/0 differ"):
        same.compare_bits(tmp_path / "whole", tmp_path / "hurt", 4)


@pytest.mark.slow
def test_killed_runs_end_like_runs_left_alone():
    """A process of its own, because forks need one that has never used JAX."""
    command = [sys.executable, "-m", "tests.chaos", "--sample"]
    done = subprocess.run(command, cwd=ROOT, env=inherited(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_host_whose_partner_is_killed_ends_without_a_traceback():
    """During a save it asks for a restart. When the run is done, the loss makes no difference."""
    plan = "hosts, hosts2:1:KILL:before:finish save:1, hosts2:1:KILL:before:close log:1, hosts2"
    command = [sys.executable, "-m", "tests.chaos", "--replay", plan]
    done = subprocess.run(command, cwd=ROOT, env=inherited(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "2 kills, 0 failures" in done.stdout
