"""A user program that runs each kind of map on the default executor."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import numpy as np

import polarmap
from polarmap.executors.spawned_processes import ProcessSpawner

A = np.random.default_rng(0).standard_normal((2400, 400))
X, Y = np.ones(400), np.ones(2400)
ONCE = Path(sys.argv[1])


def product(block: np.ndarray) -> np.ndarray:
    return block @ X


def claim_name(name: str) -> bool:
    try:
        (ONCE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def sleep_or_exit(block: np.ndarray) -> np.ndarray:
    """Return `product` of a block, but sleep in the first two calls and exit the process in the third."""
    if claim_name("first") or claim_name("second"):
        time.sleep(600)
    if claim_name("third"):
        os._exit(9)
    return block @ X


def main() -> None:
    lacks = {"poll": select, "fork": os, "register_at_fork": os, "getuid": os, "killpg": os}
    print(*(name for name, module in lacks.items() if not hasattr(module, name)))
    for _ in range(3):
        y = polarmap.coded_map(product, A, blocks=6, tasks=8)
        np.testing.assert_allclose(y.concatenate(), A @ X)
    y = polarmap.coded_map(sleep_or_exit, A, blocks=6, tasks=10, verify=False)
    np.testing.assert_allclose(y.concatenate(), A @ X)
    with polarmap.CodedOperator(A, blocks=4, tasks=6) as operator:
        for _ in range(3):
            np.testing.assert_allclose(operator @ X, A @ X)
            np.testing.assert_allclose(operator.T @ Y, A.T @ Y)
    assert list(polarmap.hedged_map(len, ["a", "bc"])) == [1, 2]
    future = polarmap.submit(polarmap.coded_map, product, A, blocks=4)
    np.testing.assert_allclose(future.result(60.0).concatenate(), A @ X)
    total = polarmap.coded_sum(lambda block: block.T @ block, np.split(A, 4), tasks=4)
    np.testing.assert_allclose(total.value, A.T @ A)
    with polarmap.Executor() as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
    np.save(ONCE / "A.npy", A)
    mapped = np.load(ONCE / "A.npy", mmap_mode="r")
    coded = polarmap.encode(mapped, blocks=4, tasks=6, name="A", storage=ONCE / "arrays")
    np.testing.assert_allclose(polarmap.coded_map(product, coded).concatenate(), A @ X)
    workers = polarmap.executors.pool.default_executor._resources.worker_pool  # type: ignore[union-attr]
    server = workers._starter  # type: ignore[attr-defined]
    assert isinstance(server, ProcessSpawner)
    print(*(process.pid for process in server._processes.values()), sep="\n")


if __name__ == "__main__":
    main()
