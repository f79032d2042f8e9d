"""The next batches, made while the device computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def prefetch(batch: Callable[[S], T], steps: Iterable[S], depth: int = 2) -> Generator[tuple[S, T, float], None, None]:
    """(step, batch(step), seconds waited for it) for each of `steps`, in order.

    One background thread is at most `depth` batches ahead of the consumer. What `batch` raises is raised at its step.
    When the generator is exhausted, closed, or dropped by a consumer that raised, no further batch is begun and the
    thread ends.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    to_do = iter(steps)
    begun: deque[tuple[S, Future[T]]] = deque()

    def begin(count: int) -> None:
        begun.extend((step, pool.submit(batch, step)) for step in islice(to_do, count))

    try:
        begin(depth)
        while begun:
            step, future = begun.popleft()
            start = time.perf_counter()
            made = future.result()
            waited = time.perf_counter() - start
            begin(1)
            yield step, made, waited
    finally:
        pool.shutdown(cancel_futures=True)
