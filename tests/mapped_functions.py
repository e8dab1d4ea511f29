"""Functions for maps, in a module that imports only numpy, so that new workers load it quickly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


def touch(folder: Path, name: str) -> None:
    (folder / name).touch()


def linger(folder: Path, name: str) -> str:
    """Report the start, then block until a file allows this call to end."""
    touch(folder, f"{name} began")
    while not (folder / f"{name} may end").exists():
        time.sleep(0.005)
    return name


def looks_up(block: Any) -> Any:
    return there(block)


def there(block: Any) -> Any:
    raise KeyError("column")


class Summary(NamedTuple):
    rows: Any
    total: Any


def double(block: Any) -> Any:
    return 2 * block + 1


def writes(block: np.ndarray) -> np.ndarray:
    block *= 2
    return block + 1


def summary(block: Any) -> Any:
    return {"summary": Summary(block @ np.ones(5), float(block.sum())), "pair": [block.T, block[0, 0]]}


def both(block: dict[str, Any]) -> Any:
    return block["x"] * 2, block["pair"].total + block["pair"].rows.sum()


def wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.01)


def waits_at(gate: Path, corners: tuple[float, ...], block: Any) -> Any:
    """Return double(block), after waiting for the gate if the block has one of these corners."""
    if block[0, 0] in corners:
        wait_for(gate)
    return double(block)


def blas_threads(_: Any = None) -> int:
    """Return the number of BLAS threads of this process, after a product that loads BLAS."""
    import threadpoolctl

    np.ones((2, 2)) @ np.ones(2)
    libraries = threadpoolctl.threadpool_info()
    return max(int(library["num_threads"]) for library in libraries if library["user_api"] == "blas")


def tells_threads(gate: Path, corners: tuple[float, ...], block: Any) -> Any:
    """Return waits_at(...) with all numbers replaced by the number of BLAS threads."""
    threads = blas_threads()
    return np.full_like(waits_at(gate, corners, block), threads)


def twin(item: Any) -> Any:
    return item, None
