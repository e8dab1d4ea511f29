"""Functions that workers import, and with them numpy alone: a test's own module takes each new one longer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


def touch(folder: Path, name: str) -> None:
    (folder / name).touch()


def linger(folder: Path, name: str) -> str:
    """Begin, and wait for the file that lets it end."""
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
    """double, but blocks with these corners wait for the gate."""
    if block[0, 0] in corners:
        wait_for(gate)
    return double(block)


def blas_threads(_: Any = None) -> int:
    """Return the number of BLAS threads of this process, after a product that loads BLAS."""
    import threadpoolctl

    np.ones((2, 2)) @ np.ones(2)
    found = threadpoolctl.threadpool_info()
    return max(int(one["num_threads"]) for one in found if one["user_api"] == "blas")


def tells_threads(gate: Path, corners: tuple[float, ...], block: Any) -> Any:
    """waits_at, with the threads of BLAS as all numbers of the result."""
    threads = blas_threads()
    return np.full_like(waits_at(gate, corners, block), threads)


def twin(item: Any) -> Any:
    return item, None
