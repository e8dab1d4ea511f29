"""Short items that are sent in batches; some kill their worker once, a few times or every time."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polarmap
from polarmap.errors import WorkerLostError
from soak.draws import Draw
from soak.faults import Pools
from soak.oracle import Finding
from soak.unruly import TIMEOUT, hedged

BACKUPS = 2  # Backups that hedged_map and Executor start for a late item.
EVERY_TIME = 99
N_WARM_UP_ITEMS = 40  # Calls after which an Executor knows that the function is fast.


def tripled_or_deadly(folder: str, n_deaths: dict[int, int], how: str, item: int) -> int:
    """Return three times the item, or end the process the first `n_deaths[item]` times."""
    if item in n_deaths:
        with open(Path(folder) / str(item), "ab") as log:
            log.write(b".")
            log.flush()
            n_starts = os.fstat(log.fileno()).st_size
        if n_starts <= n_deaths[item]:
            os._exit(1) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)
    return 3 * item


@dataclass
class DeathCase:
    """A map of many short items.

    Attributes
    ----------
    n_deaths : dict[int, int]
        Item -> how often it kills its worker: at most `retries` times, or every time.
    """

    verb: str
    count: int
    retries: int
    n_deaths: dict[int, int]
    how: str

    def run(self, pools: Pools) -> str:
        with tempfile.TemporaryDirectory(prefix="soak-deaths-") as folder:
            f = partial(tripled_or_deadly, folder, self.n_deaths, self.how)
            results = dict(enumerate(self._found(f, pools.pool("pool"))))
            for item in range(self.count):
                self._check(item, results.get(item, "nothing"))
                if item not in results or isinstance(results[item], WorkerLostError):
                    break  # `Executor.map` ends with the first error.
            n_starts = {int(path.name): path.stat().st_size for path in Path(folder).iterdir()}
        limit = self.retries + 2 + BACKUPS
        if max(n_starts.values(), default=0) > limit:
            raise Finding("too many workers lost", f"starts of items: {n_starts}, at most {limit} each")
        return f"right ({self.verb})"

    def _found(self, f: Any, pool: Any) -> Iterable[Any]:
        """Return the result of each item; for `Executor.map`, only those up to the first error."""
        if self.verb == "hedged_map":
            return hedged(f, range(self.count), pool, retries=self.retries, return_exceptions=True)
        with polarmap.Executor(pool, retries=self.retries) as executor:
            list(executor.map(f, range(self.count, self.count + N_WARM_UP_ITEMS), timeout=TIMEOUT))
            if self.verb == "Executor.map":
                return list(_with_error(executor.map(f, range(self.count), timeout=TIMEOUT)))
            futures = [executor.submit(f, item) for item in range(self.count)]
            return [one.exception(TIMEOUT) or one.result() for one in futures]

    def _check(self, item: int, result: Any) -> None:
        if self.n_deaths.get(item) == EVERY_TIME:
            if not isinstance(result, WorkerLostError):
                raise Finding("no error", f"item {item} ends its worker every time, and gave {result!r:.100}")
        elif isinstance(result, BaseException):
            n_deaths = self.n_deaths.get(item, 0)
            text = f"item {item} ends {n_deaths} workers with {self.retries} retries: {result}"
            raise Finding("innocent failure", text)
        elif result != 3 * item:
            raise Finding("wrong number", f"result {item} is {result!r:.100}, not {3 * item}")


def _with_error(results: Iterator[Any]) -> Iterator[Any]:
    """Yield results as they arrive, then the WorkerLostError that ends them."""
    try:
        yield from results
    except WorkerLostError as error:
        yield error


def draw_deaths(draw: Draw, executor: str) -> DeathCase:
    verb = draw.pick({"hedged_map": 3, "Executor.map": 3, "Executor.submit": 1})
    count = draw.number(150, 400) if verb == "hedged_map" else draw.number(10, 200)
    retries, first = draw.number(1, 2), draw.number(0, count - 1)
    # These items are probably in one batch.
    near = [item for item in range(first, first + 12) if item < count]
    n_deaths = {item: draw.number(1, retries) for item in draw.some(near, draw.number(1, 4))}
    if draw.chance(0.4):
        n_deaths[draw.pick(near)] = EVERY_TIME
    return DeathCase(verb, count, retries, n_deaths, draw.pick(["exit", "kill"]))
