"""Which machine gets the next worker or the next task: arithmetic on numbers of workers and tasks."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarmap.executors.worker_table import KeptWorker


def largest_share(count: int, n_machines: int) -> int:
    """Return how many of `count` workers or tasks the fullest machine has if they are spread evenly.

    >>> largest_share(32, 4), largest_share(33, 4), largest_share(5, 0)
    (8, 9, 5)
    """
    return -(-count // max(1, n_machines))


def choose_machines(count: int, machines: Iterable[str], n_workers: Mapping[str, int]) -> list[str]:
    """Return a machine for each of `count` new workers: the one that has the fewest workers by then.

    machines : that can take workers; the result is empty if there are none.
    n_workers : the number of workers that each machine has already, 0 if it is left out.

    >>> choose_machines(3, ["a", "b"], {"a": 2})
    ['b', 'b', 'a']
    """
    loads = {machine: n_workers.get(machine, 0) for machine in machines}
    chosen = []
    for _ in range(count if loads else 0):
        emptiest = min(loads, key=loads.__getitem__)
        loads[emptiest] += 1
        chosen.append(emptiest)
    return chosen


def underfull_machines(machines: Sequence[str], n_workers: Mapping[str, int], surplus: int = 0) -> list[str]:
    """Return where to start workers in place of those that machines have beyond an even share.

    A machine is listed once for each worker that it is to get. The result is empty if the workers are spread
    evenly already, or will be once the surplus workers have ended.

    surplus : the number of workers that will end, those on the fullest machines first.

    >>> underfull_machines(["a", "b", "c"], {"a": 4, "b": 2})
    ['c', 'c']
    >>> underfull_machines(["a", "b"], {"a": 2, "b": 1})
    []
    """
    total = sum(n_workers.get(one, 0) for one in machines) - surplus
    share = largest_share(total, len(machines))
    kept = {one: min(n_workers.get(one, 0), share) for one in machines}
    return choose_machines(total - sum(kept.values()), machines, kept)


def may_lose_worker(machine: str, machines: Sequence[str], n_workers: Mapping[str, int]) -> bool:
    """Return whether a machine has a worker that the others do not lack.

    >>> [may_lose_worker(one, ["a", "b", "c"], {"a": 4, "b": 3}) for one in "abc"]
    [True, True, False]
    """
    total = sum(n_workers.get(one, 0) for one in machines)
    return machine not in machines or n_workers.get(machine, 0) > (total - 1) // len(machines)


def best_worker(
    free: Collection[KeptWorker], names: Collection[Hashable], n_tasks: Mapping[str, int], share: int
) -> KeptWorker | None:
    """Return the free worker that gets the next task of a map, or None if no worker is free.

    Workers on machines that have had fewer than `share` tasks come first. Among these, workers that have
    the block of a waiting task cached come first, then workers that are up, then those on the machine with
    the fewest tasks.

    names : of the tasks that wait.
    n_tasks : the number of tasks of the map that each machine has been given.
    """

    def fitness(worker: KeptWorker) -> tuple[bool, bool, bool, int]:
        load = n_tasks.get(worker.machine, 0)
        has_block = not worker.done.keys().isdisjoint(names)
        return load < share, has_block, worker.process is not None, -load

    return max(free, key=fitness, default=None)
