"""Save the page of the dashboard, with the state of a map or a program, as a single HTML file.

The file contains its style sheet, its script and its data. A browser shows it without a server, and its
content security policy forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path

from polarmap.live.snapshots import MapSnapshot, ProgramSnapshot, encode_json, get_field_values

STYLE_LINK = '<link rel="stylesheet" href="dashboard.css">'
SCRIPT_LINK = '<script src="dashboard.js" defer></script>'
ICON_LINK = '<link rel="icon" href="icon.svg">'
# Escape these characters in JSON inside a `script` element. Otherwise, a string in the JSON that contains
# "</script>" would end the element.
JSON_ESCAPES = str.maketrans(
    {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
)


def save_html(path: str | PathLike[str], map_snapshot: MapSnapshot) -> None:
    """Write a map to an HTML file, which shows its tasks, its timeline and its failures.

    Parameters
    ----------
    path : str or path-like
        The file to write. An existing file is replaced.
    map_snapshot : MapSnapshot
        The map.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    program = ProgramSnapshot(
        pid=0,
        name="",
        host="",
        time=time.time(),
        n_finished_maps=int(not map_snapshot.is_running),
        results_per_second=map_snapshot.results_per_second,
        maps=(map_snapshot,),
    )
    Path(path).write_text(render_html(program), encoding="utf-8")


def render_html(snapshot: ProgramSnapshot) -> str:
    """Return an HTML file that shows the state of a program, and that needs no other file.

    Parameters
    ----------
    snapshot : ProgramSnapshot
        The program.

    Returns
    -------
    str
        The text of the file, to be written as UTF-8.
    """
    page, style, script = map(read_page_file, ("dashboard.html", "dashboard.css", "dashboard.js"))
    icon = base64.b64encode(read_page_file("icon.svg").encode()).decode()
    data = SnapshotEncoder().encode([snapshot]).translate(JSON_ESCAPES)
    style_source, script_source = _format_csp_hash(style), _format_csp_hash(script)
    policy = f"default-src 'none'; img-src data:; style-src {style_source}; script-src {script_source}"
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">'
    )
    scripts = (
        f'<script type="application/json" id="saved-snapshots">{data}</script>\n<script>{script}</script>\n'
    )
    replacements = {
        ICON_LINK: head,
        STYLE_LINK: f"<style>{style}</style>",
        SCRIPT_LINK + "\n": "",
        "</body>": scripts + "</body>",
    }
    # Make all replacements in one pass, so that nothing is replaced inside the inserted texts.
    pattern = "|".join(map(re.escape, replacements))
    return re.sub(pattern, lambda match: replacements[match[0]], page)


def _format_csp_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline style sheet or script.

    `text` is the style sheet or the script.
    """
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


# --- files and data of the page ----------------------------------------------------------------


def read_page_file(name: str) -> str:
    """Return the contents of a file of the dashboard page, such as "dashboard.css"."""
    return files("polarmap.live").joinpath("page", name).read_text(encoding="utf-8")


class SnapshotEncoder:
    """Encodes lists of snapshots as JSON.

    A finished map no longer changes, so it is encoded only once, and its JSON text is reused.
    """

    def __init__(self) -> None:
        # The JSON texts of the finished maps in the last list, by `id(snapshot)`. The snapshot is stored with
        # its text, so that Python cannot reuse the id for another object.
        self._texts_by_id: dict[int, tuple[MapSnapshot, str]] = {}

    def encode(self, snapshots: Sequence[ProgramSnapshot]) -> str:
        """Encode the snapshots as a JSON list in one line."""
        texts_by_id: dict[int, tuple[MapSnapshot, str]] = {}
        programs = []
        for snapshot in snapshots:
            values = get_field_values(snapshot)
            maps = []
            for map_snapshot in values.pop("maps"):
                entry = self._texts_by_id.get(id(map_snapshot))
                if entry is None:
                    entry = (map_snapshot, encode_json(map_snapshot))
                maps.append(entry[1])
                if not map_snapshot.is_running:
                    texts_by_id[id(map_snapshot)] = entry
            programs.append(f'{encode_json(values)[:-1]},"maps":[{",".join(maps)}]}}')
        self._texts_by_id = texts_by_id
        return f"[{','.join(programs)}]"
