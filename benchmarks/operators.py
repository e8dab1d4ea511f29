"""CodedOperator per product against plain maps of the same products; coded_matmul against dask and cubed.

Medians of runs in turns, on the same data, without any environment variable: libraries take the threads
that they take by themselves. Every side has two slots. Products: "seconds" and the ratio to one numpy
product; "tasks" and "work" say how many tasks of which share were started, coding included.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lithops
import numpy as np

import polarmap
from benchmarks import interleaved, is_quick, show
from polarmap import CodedOperator, Fault, FaultyExecutor, coded_gram, coded_matmul

SLOTS = 2
K, N = 12, 16
SLEEP_SECONDS = 20.0
CONFIG = {
    "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.02},
    "localhost": {"version": 1, "runtime": sys.executable, "worker_processes": SLOTS},
}


class PlainLithops:
    """A x by Lithops' own map over blocks that are stored once."""

    def __init__(self, functions: Any, blocks: list[Any]) -> None:
        self.functions, self.blocks = functions, blocks
        self.bucket = functions.storage.bucket
        self.keys = [f"plain/{index}" for index in range(len(blocks))]
        for key, block in zip(self.keys, blocks):
            functions.storage.put_object(self.bucket, key, block.tobytes())

    def product(self, x: Any) -> Any:
        bucket, shape = self.bucket, self.blocks[0].shape

        def task(key: str, storage: Any) -> Any:
            return np.frombuffer(storage.get_object(bucket, key)).reshape(shape) @ x

        futures = self.functions.map(task, [{"key": key} for key in self.keys], chunksize=1)
        parts = self.functions.get_result(futures, show_progressbar=False, wait_dur_sec=0.02)
        self.functions.clean(clean_cloudobjects=False)
        return np.concatenate(parts)

    def close(self) -> None:
        self.functions.storage.delete_objects(self.bucket, self.keys)


def operators(rows: int, columns: int, repeats: int) -> None:
    A = np.random.default_rng(0).standard_normal((rows, columns))
    x = np.ones(columns)
    blocks = np.split(A, K)
    sizes = {"blocks": K, "workers": N}
    late = {3: Fault("sleep", SLEEP_SECONDS), 9: Fault("sleep", SLEEP_SECONDS)}
    with (
        ThreadPoolExecutor(SLOTS) as pool,
        ThreadPoolExecutor(SLOTS + len(late)) as wide,
        lithops.FunctionExecutor(config=CONFIG, log_level=None) as functions,
        CodedOperator(A, executor=pool, **sizes) as on_threads,
        CodedOperator(A, executor=FaultyExecutor(wide, late), **sizes) as on_late_threads,
        CodedOperator(A, executor=functions, **sizes) as on_lithops,
        CodedOperator(A, executor=None, **sizes) as on_localhost,
        CodedOperator(A, executor=FaultyExecutor(None, late), **sizes) as on_late_localhost,
    ):
        plain = PlainLithops(functions, blocks)
        named: dict[str, tuple[str, Callable[[], Any]]] = {
            "pool.map": ("", lambda: np.concatenate(list(pool.map(lambda block: block @ x, blocks)))),
            "coded, threads": ("pool.map", lambda: on_threads @ x),
            "  2 sleep": ("pool.map", lambda: on_late_threads @ x),
            "Lithops map": ("", lambda: plain.product(x)),
            "coded, same": ("Lithops map", lambda: on_lithops @ x),
            "coded, default": ("Lithops map", lambda: on_localhost @ x),
            "  2 sleep ": ("Lithops map", lambda: on_late_localhost @ x),
        }
        for name, (_, action) in named.items():
            assert np.allclose(action(), A @ x), name
        taken = dict(zip(named, interleaved([action for _, action in named.values()], repeats)))
        plain.close()
    print(f"A x, A {rows:,} x {columns:,}: {K} tasks, coded {N}; sleepers {SLEEP_SECONDS:g} s; per product")
    shown = [
        (name, taken[name], taken[name] / taken[base or name], base) for name, (base, _) in named.items()
    ]
    show(("", "seconds", "ratio", "to"), shown)


def products(side: int, repeats: int) -> None:
    stream = np.random.default_rng(0)
    A, B = stream.standard_normal((side, side)), stream.standard_normal((side, side))
    late = {3: Fault("sleep", SLEEP_SECONDS), 9: Fault("sleep", SLEEP_SECONDS)}
    with ThreadPoolExecutor(SLOTS) as pool, ThreadPoolExecutor(SLOTS + len(late)) as wide:
        unlucky = FaultyExecutor(wide, late)
        named: dict[str, tuple[str, float, Callable[[], Any]]] = {
            "numpy": ("1", 1.0, lambda: A @ B),
            "rows": ("32", 32 / 24, lambda: by_rows(A, B, pool)),
            "grid": ("36", 36 / 25, lambda: grid(A, B, pool)),
            "rows, 2 sleep": (
                "32",
                32 / 24,
                lambda: coded_matmul(A, B, method="rows", executor=unlucky).array,
            ),
            "grid, 2 sleep": ("36", 36 / 25, lambda: grid(A, B, unlucky)),
            "dask.array": ("25", 1.0, lambda: with_dask(A, B)),
        }
        if importlib.util.find_spec("cubed"):
            named["cubed"] = ("25", 1.0, lambda: with_cubed(A, B))
        for name, (_, _, action) in named.items():
            assert np.allclose(action(), A @ B), name
        taken = interleaved([action for _, _, action in named.values()], repeats)
        whole, triangle = interleaved(
            [
                lambda: coded_matmul(A.T, A, method="grid", blocks=(7, 7), workers=(8, 8), executor=pool),
                lambda: coded_gram(A, blocks=7, workers=8, executor=pool),
            ],
            repeats,
        )
    print(f"\nA B, both {side:,} x {side:,}")
    tasks = [(count, work) for count, work, _ in named.values()]
    shown = [(name, *tasks[i], taken[i], taken[i] / taken[0]) for i, name in enumerate(named)]
    show(("", "tasks", "work", "seconds", "to numpy"), shown)
    print(f"A' A: coded_gram {triangle:.3g} s, {triangle / whole:.2f} of coded_matmul(A.T, A, method='grid')")


def by_rows(A: Any, B: Any, executor: Any) -> Any:
    return coded_matmul(A, B, method="rows", blocks=24, workers=32, executor=executor).array


def grid(A: Any, B: Any, executor: Any) -> Any:
    return coded_matmul(A, B, method="grid", blocks=(5, 5), workers=(6, 6), executor=executor).array


def with_dask(A: Any, B: Any) -> Any:
    import dask
    import dask.array

    chunk = -(-len(A) // 5)
    left, right = (dask.array.from_array(one, chunks=(chunk, chunk)) for one in (A, B))
    with dask.config.set(scheduler="threads", num_workers=SLOTS):
        return (left @ right).compute()


def with_cubed(A: Any, B: Any) -> Any:
    import cubed
    import cubed.array_api

    chunk = -(-len(A) // 5)
    with tempfile.TemporaryDirectory() as folder:
        spec = cubed.Spec(folder, allowed_mem="1GB")
        left, right = (cubed.from_array(one, chunks=(chunk, chunk), spec=spec) for one in (A, B))
        executor = cubed.runtime.create.create_executor("threads", {"max_workers": SLOTS})
        return cubed.array_api.matmul(left, right).compute(executor=executor)


def main() -> None:
    quick = is_quick(__doc__)
    print(f"polarmap {polarmap.__version__}, {SLOTS} slots")
    operators(*(2_400, 400) if quick else (24_000, 1_200), repeats=2 if quick else 5)
    products(600 if quick else 2_400, repeats=2 if quick else 5)


if __name__ == "__main__":
    main()
