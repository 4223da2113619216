"""One event loop on a thread of its own: async functions from sync code, also in a notebook."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Coroutine
from typing import Any


class LoopThread:
    """Starts with the first coroutine and ends with this object.

    A thread of its own, because a notebook's loop is already running on the main one, and one
    loop for all calls, because clients and locks made in one loop cannot be used in another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Schedule ``coroutine``; the future has its result, and cancelling it cancels that."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for ``coroutine`` and return its result; an interrupt cancels it."""
        future = self.start(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()  # no effect once it is done

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # In a forked process the thread is gone, and nothing would ever run.
            if self._running is None or not self._running[1].is_alive():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="rewards", daemon=True)
                thread.start()
                weakref.finalize(self, _stop, loop, thread)
                self._running = loop, thread
            return self._running[0]


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=1.0)
    if not loop.is_running():
        loop.close()
