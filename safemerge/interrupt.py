"""SIGTERM as an interrupt, like Ctrl-C: schedulers and clusters end work that way.

What catches `KeyboardInterrupt` to keep finished work, and to say how to resume, does so here too.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM; little time is left, at times a few seconds."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM comes, for the length of a block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for a block that must be whole, and takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def kept_sigterm() -> Iterator[None]:
    """Put back the handler of SIGTERM that a library replaces in a block, if there was one.

    Ray's exits with a dump of the native stack, and its end takes away whatever handler there is.
    """
    handler: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and callable(handler):
            signal.signal(signal.SIGTERM, handler)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
