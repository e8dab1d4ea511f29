"""Show the maps of a program in a notebook, as static SVG that is replaced a few times a second.

An update needs no JavaScript and no widget, so a saved or exported notebook shows the final state. A frontend
that shows only text displays one line.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

from polarmap.live.descriptions import format_program_line
from polarmap.live.refreshing import Refresher, SnapshotSource, ViewScope
from polarmap.live.snapshots import ProgramSnapshot
from polarmap.live.svg import render_program_svg


class NotebookView:
    """Shows the maps of a program as an output of the current cell, until it is closed.

    The output appears as soon as there is a map, a fit or a call to show. If `shows_all` is true, it appears
    immediately. After `close`, the final state remains visible.

    Parameters
    ----------
    take_snapshot : SnapshotSource
        Returns the state of the program. Called on the view's thread, and in `start` and `close`.
    shows_all : bool
        Whether to show maps that had finished before the view started, too.
    has_ended : callable, optional
        Called with each snapshot. When it returns True, the view shows a last snapshot and ends.

    Examples
    --------
    >>> from polarmap.live.hub import LiveHub
    >>> view = NotebookView(LiveHub().take_snapshot)
    >>> view.start()
    >>> view.close()
    """

    def __init__(
        self,
        take_snapshot: SnapshotSource,
        shows_all: bool = False,
        has_ended: Callable[[ProgramSnapshot], bool] | None = None,
    ) -> None:
        self._take_snapshot, self._shows_all, self._has_ended = take_snapshot, shows_all, has_ended
        self._scope: ViewScope | None = None
        self._display_handle: Any = None
        self._displayed: dict[str, str] | None = None
        # Jupyter finds the cell of an output in context variables, which the view's thread does not inherit.
        self._cell_context = contextvars.copy_context()
        self._refresher = Refresher(self._refresh)

    def start(self) -> None:
        """Start to show the program, below the current cell."""
        snapshot = self._take_snapshot(is_final=True)
        self._scope = ViewScope(None if self._shows_all else snapshot)
        self._show(self._scope.select(snapshot))
        self._refresher.start()

    def close(self) -> None:
        """Show the final state and end the thread."""
        scope, self._scope = self._scope, None
        if scope is not None and self._refresher.close():
            with contextlib.suppress(Exception):  # A map must not fail because the notebook was closed.
                self._show(scope.select(self._take_snapshot(is_final=True)))

    def _refresh(self) -> bool:
        scope = self._scope
        if scope is None:
            return False
        snapshot = scope.select(self._take_snapshot())
        self._show(snapshot)
        if self._has_ended is None or not self._has_ended(snapshot):
            return True
        self._show(scope.select(self._take_snapshot(is_final=True)))
        return False

    def _show(self, snapshot: ProgramSnapshot) -> None:
        """Display a snapshot, or replace the displayed snapshot if it looks different."""
        if not (self._shows_all or snapshot.maps or snapshot.iterations or snapshot.executors):
            return
        data = make_mime_bundle(snapshot)
        if data == self._displayed:
            return
        self._displayed = data
        if self._display_handle is None:
            from IPython.display import display

            show: Any = display  # `display` has no type annotations.
            self._display_handle = self._cell_context.run(show, data, raw=True, display_id=True)
        else:
            # Do not update in the context of the original cell. Some programs that run notebooks ignore
            # updates from a cell that has ended. Without the context, the update belongs to the cell that is
            # running now.
            self._display_handle.update(data, raw=True)


def make_mime_bundle(snapshot: ProgramSnapshot) -> dict[str, str]:
    """Return the output of a notebook cell that shows a program, in two formats: an SVG and a line of text.

    The keys are MIME types. A notebook frontend, such as JupyterLab, shows one of the formats.
    """
    return {"image/svg+xml": render_program_svg(snapshot), "text/plain": format_program_line(snapshot)}
