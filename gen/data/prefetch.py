"""Makes the next batches in a background thread while the device computes."""

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
    """Yields (step, batch(step), seconds spent waiting for the batch) for each of `steps`, in order.

    A background thread makes the batches, at most `depth` batches ahead of the consumer. The thread ends when the generator is exhausted or
    closed, or when the consumer raises.

    Raises: the exception that `batch` raised, when its step is reached.
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
            # The next batch is begun before this one is given away, so that the thread works while the consumer does.
            begin(1)
            yield step, made, waited
    finally:
        # Runs also when the consumer drops the generator. Batches that are not begun are cancelled.
        pool.shutdown(cancel_futures=True)
