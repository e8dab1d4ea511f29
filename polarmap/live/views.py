"""The view that `progress="live"` opens: one for each program, in its terminal or in its notebook.

Maps that run at the same time, and the maps of an operator or a fit, share the view. The view closes when the
last of them ends, and its final state remains visible.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from polarmap.live.activation import activate_until_exit, is_in_notebook
from polarmap.live.snapshots import ProgramSnapshot


class View(Protocol):
    """The interface of the views that show the maps of this program in a terminal or a notebook."""

    def start(self) -> None:
        """Start a thread that shows the current state of the program, and updates it repeatedly."""

    def close(self) -> None:
        """End the thread, and show the final state of the program."""


_lock = threading.Lock()
_view: View | None = None
_n_users = 0  # the number of maps and operators that share the view


def open_view(is_in_notebook: bool) -> None:
    """Open the live view of this program, which shows its maps in the terminal or in the notebook.

    If the view is open already, the caller shares it with the other callers. Each call must be followed by a
    call of `close_view`. The program also becomes visible to `polarmap top`.

    Parameters
    ----------
    is_in_notebook : bool
        Whether this process is the kernel of a notebook. Otherwise, the view is shown on standard error.

    Raises
    ------
    ImportError
        If a library is missing. The message says how to install it.
    """
    global _view, _n_users
    hub = activate_until_exit()
    with _lock:
        if _view is None:
            view: View
            if is_in_notebook:
                from polarmap.live.notebook import NotebookView

                view = NotebookView(hub.take_snapshot)
            else:
                from polarmap.live.terminal import TerminalView

                view = TerminalView(hub.take_snapshot)
            view.start()
            _view = view
        _n_users += 1


def display_in_notebook(
    shown_object: object,
    take_snapshot: Callable[[bool], ProgramSnapshot],
    has_ended: Callable[[], bool],
) -> None:
    """Display a live object, such as a pool, in the current cell of a notebook until it has ended.

    The output is updated in place. Outside of a notebook, print the `repr` of the object.

    Parameters
    ----------
    shown_object : object
        The object whose `repr` is printed outside of a notebook.
    take_snapshot : callable
        Called as `take_snapshot(is_final)` on the view's thread to get the snapshot to show.
    has_ended : callable
        Called without arguments. When it returns True, the view shows a last snapshot and ends.
    """
    if not is_in_notebook():
        print(repr(shown_object))
        return
    from polarmap.live.notebook import NotebookView

    view = NotebookView(
        lambda is_final=False: take_snapshot(is_final), shows_all=True, has_ended=lambda _: has_ended()
    )
    view.start()
    if has_ended():
        view.close()


def close_view() -> None:
    """Close the live view of this program, unless other callers of `open_view` still use it."""
    global _view, _n_users
    with _lock:
        _n_users -= 1
        if _n_users or _view is None:
            return
        view, _view = _view, None
        view.close()
