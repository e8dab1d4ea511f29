"""Which machine gets the next worker or the next task: arithmetic on numbers of workers and tasks."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarmap.executors.worker_pool import WorkerHandle


def compute_max_per_machine(n_items: int, n_machines: int) -> int:
    """Return how many of `n_items` workers or tasks the fullest machine has if they are spread evenly.

    >>> compute_max_per_machine(32, 4), compute_max_per_machine(33, 4), compute_max_per_machine(5, 0)
    (8, 9, 5)
    """
    return -(-n_items // max(1, n_machines))


def choose_machines(
    n_new_workers: int, machines: Iterable[str], n_workers_by_machine: Mapping[str, int]
) -> list[str]:
    """Return a machine for each of `n_new_workers` new workers: the one that has the fewest workers by then.

    machines : that can take workers; the result is empty if there are none.
    n_workers_by_machine : the number of workers that each machine has already, 0 if it is left out.

    >>> choose_machines(3, ["a", "b"], {"a": 2})
    ['b', 'b', 'a']
    """
    loads = {machine: n_workers_by_machine.get(machine, 0) for machine in machines}
    chosen = []
    for _ in range(n_new_workers if loads else 0):
        emptiest_machine = min(loads, key=loads.__getitem__)
        loads[emptiest_machine] += 1
        chosen.append(emptiest_machine)
    return chosen


def find_underfull_machines(
    machines: Sequence[str], n_workers_by_machine: Mapping[str, int], n_leaving: int = 0
) -> list[str]:
    """Return where to start workers in place of those that machines have beyond an even share.

    A machine is listed once for each worker that it is to get. The result is empty if the workers are spread
    evenly already, or will be once the surplus workers have ended.

    n_leaving : the number of workers that will end, those on the fullest machines first.

    >>> find_underfull_machines(["a", "b", "c"], {"a": 4, "b": 2})
    ['c', 'c']
    >>> find_underfull_machines(["a", "b"], {"a": 2, "b": 1})
    []
    """
    n_remaining = sum(n_workers_by_machine.get(machine, 0) for machine in machines) - n_leaving
    max_per_machine = compute_max_per_machine(n_remaining, len(machines))
    n_kept = {machine: min(n_workers_by_machine.get(machine, 0), max_per_machine) for machine in machines}
    return choose_machines(n_remaining - sum(n_kept.values()), machines, n_kept)


def can_spare_worker(machine: str, machines: Sequence[str], n_workers_by_machine: Mapping[str, int]) -> bool:
    """Return whether a machine has a worker that the others do not lack.

    >>> [can_spare_worker(one, ["a", "b", "c"], {"a": 4, "b": 3}) for one in "abc"]
    [True, True, False]
    """
    n_total = sum(n_workers_by_machine.get(each_machine, 0) for each_machine in machines)
    return machine not in machines or n_workers_by_machine.get(machine, 0) > (n_total - 1) // len(machines)


def choose_worker_for_task(
    idle_workers: Collection[WorkerHandle],
    task_keys: Collection[Hashable],
    n_tasks_by_machine: Mapping[str, int],
    max_tasks_per_machine: int,
) -> WorkerHandle | None:
    """Return the free worker that gets the next task of a map, or None if no worker is free.

    Workers on machines that have had fewer than `max_tasks_per_machine` tasks come first. Among these,
    workers that have the block of a waiting task cached come first, then workers that are up, then those on
    the machine with the fewest tasks.

    task_keys : of the tasks that wait.
    n_tasks_by_machine : the number of tasks of the map that each machine has been given.
    """

    def rank_worker(worker: WorkerHandle) -> tuple[bool, bool, bool, int]:
        load = n_tasks_by_machine.get(worker.machine, 0)
        has_block = not worker.cached_tasks.keys().isdisjoint(task_keys)
        return load < max_tasks_per_machine, has_block, worker.pid is not None, -load

    return max(idle_workers, key=rank_worker, default=None)
