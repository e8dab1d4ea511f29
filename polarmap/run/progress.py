"""The progress bar of a map, and who else looks on."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np

from polarmap.errors import CodeError
from polarmap.report import Report
from polarmap.run.map_log import log_observers
from polarmap.run.running_map import Observer, Observers, RunningMap

NOTEBOOK_SECONDS = 0.3  # that a map takes before a widget is made for it: it costs more than a short map


class ProgressBar(Observer):
    """A line on standard error: "29/32 arrived, 24 needed". Those of several maps stand below each other."""

    tick = 0.25  # it says how long the map has taken

    def __init__(self) -> None:
        self._bar: Any = None
        self._blank: Report | None = None
        self._began = 0.0

    def began(self, running: RunningMap) -> None:
        """Show that none has arrived, as long as nobody says otherwise."""
        self._blank, self._began = running.blank, time.time()
        self.looked(0)

    def finished(self, end: Report | BaseException | None) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def counted(self, done: int, total: int) -> None:
        """Show how many of the stripes are done, and how long the rest will take."""
        if self._bar is None:
            text = "{bar} {n_fmt}/{total_fmt} stripes [{elapsed}<{remaining}]"
            self._bar = _bar(total=total, bar_format=text)
        self._bar.update(done - self._bar.n)

    def looked(self, arrived: int) -> None:
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


def observers_of(progress: Any) -> Observers:
    """Who looks on at a map, as its `progress=` says: None is a bar where something shows it."""
    if isinstance(progress, tuple) and all(isinstance(one, Observer) for one in progress):
        return progress  # those of a map that is part of another one
    if progress is None:
        progress = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if not isinstance(progress, (bool, int, np.bool_)):
        raise CodeError(f"progress must be True, False or None, not {progress!r:.100}")
    return (ProgressBar(),) * bool(progress) + log_observers()
