"""One progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from polarmap.errors import CodeError


def is_wanted(progress: Any) -> bool:
    """Whether a caller's `progress` asks for a bar: None does where there is a terminal."""
    if progress is None:
        return sys.stderr is not None and sys.stderr.isatty()
    if not isinstance(progress, (bool, int, np.bool_)):
        raise CodeError(f"progress must be True, False or None, not {progress!r:.100}")
    return bool(progress)


@contextmanager
def open_bar(n: int, k: int, wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """A function (arrived, needed) that shows "29/32 arrived, 24 needed", or nothing.

    Before the first call it shows that none of n arrived and k are needed.
    """
    if not wanted:
        yield lambda arrived, needed: None
        return
    from tqdm import tqdm

    with tqdm(total=n, bar_format="{bar:20} {desc} [{elapsed}]", leave=False) as bar:

        def show(arrived: int, needed: int) -> None:
            bar.n = arrived
            bar.set_description_str(f"{arrived}/{n} arrived, {needed} needed")

        show(0, k)
        yield show


@contextmanager
def open_count(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A function (done) that shows how much of a total is done, or nothing."""
    if not wanted:
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, bar_format="{bar:20} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]") as bar:

        def show(done: int) -> None:
            bar.update(done - bar.n)

        yield show
