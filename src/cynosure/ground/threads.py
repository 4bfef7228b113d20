"""Share work among threads with a result that does not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["share"]

T = TypeVar("T")
R = TypeVar("R")


def share(work: Callable[[T], R], pieces: Iterable[T], threads: int = 1) -> list[R]:
    """Apply `work` to each piece and return the results in the order of the pieces.

    The pieces do not depend on the number of threads, so neither does the result. Threads help only
    where the work releases the interpreter's lock: compiled kernels and NumPy.
    """
    pieces = list(pieces)
    if threads <= 1 or len(pieces) <= 1:
        return [work(piece) for piece in pieces]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
        return list(pool.map(work, pieces))
