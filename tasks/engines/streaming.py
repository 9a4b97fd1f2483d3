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
from typing import TypeVar

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
        answer: The results of one group. What it raises, or reading a group raises, is raised here.
    """
    out: queue.SimpleQueue[list[Found] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    places = asyncio.Semaphore(n_places)

    async def answer_one(session: aiohttp.ClientSession, group: list[Item]) -> None:
        out.put(await answer(session, group))

    async def answer_all() -> None:
        async with open_session() as session, asyncio.TaskGroup() as tasks:
            # In a thread, so that reading rows does not delay the handling of replies.
            while ahead := await asyncio.to_thread(lambda: list(islice(groups, 4))):
                for group in ahead:
                    await places.acquire()
                    tasks.create_task(answer_one(session, group))

    def run() -> None:
        try:
            loop.run_until_complete(answering)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # of every kind: the caller waits for it
            out.put(_first(error))
        # The thread that reads the rows must have ended before the caller closes what it reads from.
        loop.run_until_complete(loop.shutdown_default_executor())
        out.put(None)

    answering = loop.create_task(answer_all())
    thread = threading.Thread(target=run, name="engine-client", daemon=True)
    thread.start()
    try:
        while (found := out.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield from found
            loop.call_soon_threadsafe(places.release)
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(answering.cancel)
            thread.join()
        loop.close()


def _first(error: BaseException) -> BaseException:
    """The first single error of a group: the others have the same cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
