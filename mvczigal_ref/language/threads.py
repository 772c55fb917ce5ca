"""Several questions at a time: threads that wait for a server, and results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]


_In = TypeVar("_In")


_Out = TypeVar("_Out")


def in_order(
    function: Callable[[_In], _Out], items: Iterable[_In], *, workers: int
) -> Iterator[_Out]:
    """Apply a function in several threads, and give the results in the order of the items.

    Args:
        function: Takes one item; may wait for a server.
        items: Read a few ahead of the results given so far.
        workers: Threads; 1 uses none.

    Yields:
        The results.

    Raises:
        ValueError: If ``workers`` is below 1.

    Examples:
        >>> list(in_order(abs, [-1, -2, -3], workers=2))
        [1, 2, 3]
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1; got {workers}.")
    if workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[_Out]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Items in work are waited for; the others are dropped.
        pool.shutdown(wait=True, cancel_futures=True)
