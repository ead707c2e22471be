"""Runs a function beside the rest of the program, on the second core.

By forking: the copy has the arguments already, imports nothing, and a script that builds a report needs no
``if __name__ == "__main__"``. Only Linux forks safely (libraries of macOS do not survive it); elsewhere the function
simply runs first.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def aside(function: Callable[..., T], *arguments: Any) -> Iterator[Callable[[], T]]:
    """Start ``function(*arguments)``; what the block receives waits for it, and returns its result or raises its error.

    Leaving the block by an exception stops the function.
    """
    if sys.platform != "linux":
        outcome = function(*arguments)
        yield lambda: outcome
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        yield lambda: _outcome(receiver, function)
    except BaseException:
        process.terminate()
        process.join(5)
        process.kill()  # one that was just starting may have lost the first signal
        raise
    finally:
        process.join()
        receiver.close()


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the first one ends this one
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, error))


def _outcome(receiver: Connection, function: Callable[..., T]) -> T:
    try:
        result, error = receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process of {function.__name__} was killed, perhaps for want of memory") from None
    if error is not None:
        raise error
    found: T = result
    return found
