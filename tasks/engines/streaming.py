"""Many rows in flight at a time for a caller that only iterates over results: an event loop in a thread of its own.

Memory is that of the rows in flight, however slowly the caller reads.

Not covered: how a row is answered, and order: results come as they finish.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import islice
from typing import Generic, TypeVar

import aiohttp

Item = TypeVar("Item")
Found = TypeVar("Found")


def stream(
    groups: Iterator[list[Item]], n_places: int,
    open_session: Callable[[], AbstractAsyncContextManager[aiohttp.ClientSession]],
    answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
) -> Iterator[Found]:  # fmt: skip
    """Answer groups of rows concurrently, in a thread of its own; results as they finish.

    Args:
        groups: Read in that thread, as they are needed.
        n_places: Groups in flight at a time. A place is free again only when its results have been read, so that a
            slow reader does not fill the memory.
        open_session: Opens what `answer` sends requests with, for as long as the stream lasts.
        answer: The results of one group.
    """
    worker = _Worker(groups, n_places, open_session, answer)
    worker.start()
    try:
        yield from worker.results()
    finally:
        worker.stop()


class _Worker(Generic[Item, Found]):
    """The event loop of one stream."""

    def __init__(
        self, groups: Iterator[list[Item]], n_places: int,
        open_session: Callable[[], AbstractAsyncContextManager[aiohttp.ClientSession]],
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> None:  # fmt: skip
        self._groups = groups
        self._open_session = open_session
        self._answer = answer
        self._out: queue.SimpleQueue[list[Found] | BaseException | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(n_places)
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine-client", daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def results(self) -> Iterator[Found]:
        """The results as they finish; raises what reading or answering a group has raised."""
        while (item := self._out.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item
            self._loop.call_soon_threadsafe(self._places.release)

    def stop(self) -> None:
        """Cancel what is in flight, and wait for the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(lambda: self._main and self._main.cancel())
            self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._answer_all())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # of every kind: the caller waits for it in `results`
            self._out.put(_first(error))
        # The thread that reads the rows must have ended before the caller closes what it reads from.
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._out.put(None)

    async def _answer_all(self) -> None:
        async with self._open_session() as session, asyncio.TaskGroup() as tasks:
            # In a thread, so that reading rows does not delay the handling of replies.
            while ahead := await asyncio.to_thread(lambda: list(islice(self._groups, 4))):
                for group in ahead:
                    await self._places.acquire()
                    tasks.create_task(self._answer_one(session, group))

    async def _answer_one(self, session: aiohttp.ClientSession, group: list[Item]) -> None:
        self._out.put(await self._answer(session, group))


def _first(error: BaseException) -> BaseException:
    """The first single error of a group: the others have the same cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
