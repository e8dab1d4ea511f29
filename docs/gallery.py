"""Build the gallery of the site: scripts of examples/ are cut into cells and executed as notebooks."""

import asyncio
import base64
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbformat import NotebookNode, v4, writes
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
CARD = re.compile(r"^- \[(.+)\]\(\.\./examples/(\w+)\.py\)$", re.MULTILINE)
LOG = logging.getLogger("mkdocs.hooks.gallery")


def on_files(files: Any, config: Any) -> Any:
    """Add every notebook to the files of the site, with a page and its pictures."""
    from mkdocs.structure.files import File  # Imported here, since the tests of this file run without mkdocs.

    notebooks = {path.stem: notebook_of(text) for path, text in scripts().items()}
    LOG.info(f"Executing {len(notebooks)} notebooks")
    asyncio.run(execute(list(notebooks.values())))
    for name, notebook in notebooks.items():
        page, pictures = page_of(name, notebook)
        contents = {f"{name}.md": page, f"{name}.ipynb": writes(notebook), **pictures}
        for path, content in contents.items():
            files.append(File.generated(config, f"gallery/{path}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show the first picture of each notebook in the list of notebooks."""
    if page.file.src_uri != "gallery.md":
        return markdown
    page.meta["hide"] = ["toc"]  # The pictures need the place.
    return CARD.sub(r"- [![\1](gallery/\2-1.png)](gallery/\2.md)[\1](gallery/\2.md)", markdown)


def scripts() -> dict[Path, str]:
    """Return the paths and texts of the examples that are cut into cells."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("examples/*.py"))}
    return {path: text for path, text in texts.items() if CELL.match(text)}


def notebook_of(script: str) -> NotebookNode:
    """Return a script as a notebook: a cell begins with `# %%` and has code or, in comments, text."""
    cells: list[NotebookNode] = []
    _, *parts = CELL.split(script)
    for kind, text in zip(parts[::2], parts[1::2]):
        source = re.sub("^# ?", "", text.strip(), flags=re.MULTILINE) if kind else text.strip()
        new_cell = v4.new_markdown_cell if kind else v4.new_code_cell
        cells.append(new_cell(source, id=f"cell-{len(cells)}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


async def execute(notebooks: list[NotebookNode]) -> None:
    """Execute the notebooks and store their outputs; one notebook per core runs at a time."""
    at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def execute_one(notebook: NotebookNode) -> None:
        async with at_once:
            with tempfile.TemporaryDirectory() as folder:  # for the kernel's sockets
                kernel = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
                client = NotebookClient(notebook, config=kernel, timeout=120, coalesce_streams=True)
                await client.async_execute()

    await asyncio.gather(*map(execute_one, notebooks))


def page_of(name: str, notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as a Markdown page, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            if output.get("name") == "stdout":
                parts.append(f'```text title="Output"\n{output.text.rstrip()}\n```')
            elif "image/png" in output.get("data", {}):
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(output.data["image/png"])
                parts.append(f"![Output of the cell above]({file})")
    parts.insert(1, f"[Download this notebook]({name}.ipynb), or run the script `examples/{name}.py`.")
    return "\n\n".join(parts) + "\n", pictures
