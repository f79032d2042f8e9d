"""Prefetching of batches in a background thread."""

import threading
import time

import pytest

from gen.data.prefetch import prefetch
from gen.errors import UserError


def prefetch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_yields_every_step_in_order():
    def square(step: int) -> int:
        return step**2

    found = list(prefetch(square, range(3, 11), depth=3))
    assert [(step, square) for step, square, _ in found] == [(step, step**2) for step in range(3, 11)]
    assert all(waited >= 0 for *_, waited in found)
    assert not prefetch_threads()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prefetch_is_lazy(depth):
    made = []
    batches = prefetch(made.append, range(100), depth)
    assert made == []
    for step in range(3):
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < step + 1 + depth and time.monotonic() < deadline:
            time.sleep(0.001)
        # Time for the thread to make more than it may.
        time.sleep(0.01)
        assert made == list(range(step + 1 + depth))
    batches.close()


def test_prefetch_works_while_the_consumer_works():
    ready = threading.Event()

    def batch(step: int) -> None:
        if step == 1:
            ready.set()

    batches = prefetch(batch, range(3))
    next(batches)
    assert ready.wait(5)
    batches.close()


def test_prefetch_measures_how_long_it_waited():
    def batch(step: int) -> None:
        time.sleep(0.05)

    (_, _, waited), *_ = prefetch(batch, range(1))
    assert 0.04 < waited < 1


def test_prefetch_raises_at_the_step_that_failed():
    def batch(step: int) -> int:
        if step == 2:
            raise UserError("step 2")
        return step

    batches = prefetch(batch, range(5))
    assert [next(batches)[0], next(batches)[0]] == [0, 1]
    with pytest.raises(UserError, match="step 2"):
        next(batches)
    assert not prefetch_threads()


def test_prefetch_ends_its_thread_when_closed():
    made = []

    def batch(step: int) -> None:
        made.append(step)
        time.sleep(0.02)

    batches = prefetch(batch, range(100), depth=10)
    next(batches)
    assert prefetch_threads()
    batches.close()
    assert not prefetch_threads()
    assert len(made) < 5


def test_prefetch_ends_its_thread_when_the_consumer_raises():
    def consume() -> None:
        for _ in prefetch(lambda step: step, range(100)):
            raise KeyError

    with pytest.raises(KeyError) as error:
        consume()
    # The traceback would keep the generator alive.
    del error
    assert not prefetch_threads()
