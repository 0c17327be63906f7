"""Blocking context managers in an event loop: entered and left in threads, and left even if a call is cancelled."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")

InThread = Callable[..., Awaitable[Any]]
"""Calls a function with arguments in a thread, and returns what it returns."""


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Carry `work` out to its end and return its result, even if the caller is cancelled, which is raised then."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                break
            cancelled = True
        except Exception:
            break  # it is raised below
    if cancelled:
        task.exception()  # has been retrieved: it is not what ended the call
        raise asyncio.CancelledError
    return task.result()


@asynccontextmanager
async def entered(context: AbstractContextManager[T], in_thread: InThread) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager in threads. If a cancellation comes while it is entered, leave it.

    Its exit hears of no exception.
    """
    entering = asyncio.ensure_future(in_thread(context.__enter__))
    try:
        yield await asyncio.shield(entering)
    finally:
        await finished(_leave(context, entering, in_thread))


async def _leave(context: AbstractContextManager[T], entering: Awaitable[T], in_thread: InThread) -> None:
    try:
        await entering
    except Exception:
        return  # it was not entered; the caller has the error
    await in_thread(context.__exit__, None, None, None)
