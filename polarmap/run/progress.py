"""Whoever looks on while a map runs: nobody, a progress bar, a future."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, NamedTuple

import numpy as np

from polarmap.errors import CodeError
from polarmap.report import Report

NOTEBOOK_SECONDS = 0.3  # that a map takes before a widget is made for it: it costs more than a short map


class RunningMap(NamedTuple):
    """What is told of a map when it begins.

    blank : its report before anything has happened.
    wake : lets the map look up at once; any thread may call it.
    report : the report so far; any thread may ask for it.
    estimate : the results as they are estimated so far, None if nothing tells them; on its own thread.
    """

    blank: Report
    wake: Callable[[], None]
    report: Callable[[], Report]
    estimate: Callable[[], Any] = lambda: None


class Observer:
    """Is told how a map gets on, on the thread that runs it. This one takes no notice.

    Attributes
    ----------
    takes_blocks : bool
        Whether it is told of the results of blocks one by one.
    tick : float
        Seconds after which it wants to be shown how many have arrived, whether that has changed or not.
    """

    takes_blocks, tick = False, inf

    @contextmanager
    def watch(self, running: RunningMap) -> Iterator[None]:
        """A map runs as long as the context is open."""
        yield

    @contextmanager
    def count(self, total: int) -> Iterator[Callable[[int], None]]:
        """A function that is told how many of so many stripes are done."""
        yield lambda done: None

    def show(self, arrived: int) -> None:
        """So many results are here."""

    def block_arrived(self, index: int, result: Callable[[], Any]) -> None:
        """The result of a block is here, before those of the others."""


class ProgressBar(Observer):
    """A line on standard error: "29/32 arrived, 24 needed". Those of several maps stand below each other."""

    tick = 0.25  # it says how long the map has taken

    def __init__(self) -> None:
        self._bar: Any = None
        self._blank: Report | None = None
        self._began = 0.0

    @contextmanager
    def watch(self, running: RunningMap) -> Iterator[None]:
        """Shows that none has arrived, as long as nobody says otherwise."""
        self._blank, self._began = running.blank, time.time()
        self.show(0)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    @contextmanager
    def count(self, total: int) -> Iterator[Callable[[int], None]]:
        """A line that says how many of the stripes are done, and how long the rest will take."""
        text = "{bar} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]"
        with _bar(total=total, bar_format=text) as bar:
            yield lambda done: bar.update(done - bar.n)

    def show(self, arrived: int) -> None:
        """Show how many have arrived."""
        assert self._blank is not None
        if self._bar is None:
            if in_notebook() and time.time() < self._began + NOTEBOOK_SECONDS:
                return
            self._bar = _bar(total=self._blank.n, bar_format="{bar} {desc} [{elapsed}]", leave=False)
            self._bar.start_t = self._began
        self._bar.n = arrived
        text = f"{arrived}/{self._blank.n} arrived, {self._blank.needed} needed"
        self._bar.set_description_str(text)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which is no terminal and yet shows bars."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _bar(bar_format: str, **options: Any) -> Any:
    """A bar of tqdm: a widget in a notebook that has ipywidgets, else a line of text."""
    if in_notebook():
        with warnings.catch_warnings():  # of ipywidgets that is missing: then the bar is text
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

            return tqdm(bar_format=bar_format, **options)
    from tqdm import tqdm

    return tqdm(bar_format=bar_format.replace("{bar}", "{bar:20}"), **options)


def observer_of(progress: Any) -> Observer:
    """Who looks on as the `progress=` of a map says: None is a bar where something shows it."""
    if isinstance(progress, Observer):
        return progress
    if progress is None:
        progress = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if not isinstance(progress, (bool, int, np.bool_)):
        raise CodeError(f"progress must be True, False or None, not {progress!r:.100}")
    return ProgressBar() if progress else Observer()
