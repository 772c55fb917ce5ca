"""Second thread, in which slices are judged while the first samples others."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.system import System

__all__ = ["second_thread"]


@contextmanager
def second_thread(system: System) -> Iterator[Callable[..., Future[Any]]]:
    """Work in one other thread; after a failure nothing more begins there.

    Args:
        system: System whose scorers may be asked there.

    Yields:
        Asked with a function and its arguments, gives the promise of its value.
    """
    failed: list[BaseException] = []

    def guarded(work: Callable[..., Any], *given: Any) -> Any:  # noqa: ANN401
        if failed:
            raise failed[0]
        try:
            return work(*given)
        except BaseException as error:
            failed.append(error)
            raise

    pool = ThreadPoolExecutor(1)
    with ExitStack() as stack:
        for scorer in _scorers(system):
            # Signals reach the first thread alone: it ends the other's wait for a service.
            if hasattr(scorer, "waiting"):
                stack.enter_context(scorer.waiting.hearing())
        try:
            yield lambda work, *given: pool.submit(guarded, work, *given)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _scorers(system: System) -> Iterator[Any]:
    """Go over the scorers that are trained on."""
    for each in (system.per_view, system.joint):
        yield from each.scorers.values() if isinstance(each, Mixture) else (each,)
