"""Batches on the device before they are asked for."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Batches(Protocol):
    """What `posemamba_jax.data.pipeline.train_batches` gives."""

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> dict[str, Any]: ...


def read_ahead(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """Yields the same items, the next few taken in a thread while one is worked with."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as worker:
        coming = collections.deque(worker.submit(next, source, end) for _ in range(ahead))
        try:
            while (item := coming.popleft().result()) is not end:
                coming.append(worker.submit(next, source, end))
                yield item
        finally:
            worker.shutdown(wait=False, cancel_futures=True)


class DevicePrefetch:
    """Reads batches and places them on the device in a thread, a few ahead.

    While the loop waits for the device to fetch losses, or for a checkpoint to be copied, the next
    batches are read and sent. The position to save is that after the last batch that was handed
    out; what was read ahead is read again by a resumed run.

    Args:
      batches: an iterator with a position; nothing else may use it from now on.
      place: puts one batch on the device.
      ahead: batches to hold ready.

    Attributes:
      waited: seconds that `next` has waited for a batch in all.
    """

    def __init__(self, batches: Batches, place: Callable[[dict], Any], ahead: int = 2):
        self._batches, self._place, self._ahead = batches, place, ahead
        self._state = batches.get_state()
        self._coming: collections.deque[Future] = collections.deque()
        # One worker, so that batches keep their order.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self.waited = 0.0

    def __enter__(self) -> "DevicePrefetch":
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch, as `place` returned it; what reading or placing it raised is
        raised.
        """
        while len(self._coming) <= self._ahead:
            self._coming.append(self._worker.submit(self._read))
        start = time.perf_counter()
        batch, state = self._coming.popleft().result()
        self.waited += time.perf_counter() - start
        self._state = state
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch that was handed out."""
        return self._state

    def _read(self) -> tuple[Any, dict[str, Any]]:
        batch = next(self._batches)
        return self._place(batch), self._batches.get_state()
