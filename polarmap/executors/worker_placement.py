"""Chooses machines for new workers, and workers for tasks, so that the load is balanced across machines."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polarmap.executors.worker_pool import WorkerHandle


def compute_max_per_machine(n_items: int, n_machines: int) -> int:
    """Return the largest number of items on any machine if items are spread evenly over machines.

    The items are workers or tasks. If there are no machines, return `n_items`.

    >>> compute_max_per_machine(32, 4), compute_max_per_machine(33, 4), compute_max_per_machine(5, 0)
    (8, 9, 5)
    """
    return -(-n_items // max(1, n_machines))


def choose_machines(
    n_new_workers: int, machines: Iterable[str], n_workers_by_machine: Mapping[str, int]
) -> list[str]:
    """Choose a machine for each new worker, so that machines have about the same number of workers.

    Each worker is placed on the machine that has the fewest workers so far.

    Parameters
    ----------
    n_new_workers : int
        The number of new workers.
    machines : iterable of str
        The machines that can run workers. The result is empty if there are no machines.
    n_workers_by_machine : mapping of str to int
        The number of existing workers on each machine; 0 for machines that are not in the mapping.

    Examples
    --------
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
    """Return the machines that need more workers, so that all machines have about the same number.

    A machine is listed once for each worker that it needs. It is assumed that `n_leaving` workers, on the
    machines with the most workers, will exit. The result is empty if workers are then spread evenly.

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
    """Return True if a machine has so many workers that one of them can be removed.

    This is the case if the machine has more than an equal share of the workers, or is not one of `machines`.

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
    """Choose one of the idle workers for the next task of a job. Return None if no worker is idle.

    These criteria decide, the most important one first:

    1. The machine of the worker has fewer than `max_tasks_per_machine` tasks.
    2. The worker has cached the block of a queued task.
    3. The worker is connected.
    4. The machine of the worker has few tasks.

    Parameters
    ----------
    idle_workers : collection of WorkerHandle
        The idle workers.
    task_keys : collection
        The keys of the queued tasks, which identify the tasks' blocks.
    n_tasks_by_machine : mapping of str to int
        The number of the job's tasks that were assigned to each machine.
    max_tasks_per_machine : int
        The number of tasks per machine if tasks are spread evenly.
    """

    def rank_worker(worker: WorkerHandle) -> tuple[bool, bool, bool, int]:
        load = n_tasks_by_machine.get(worker.machine, 0)
        has_block = not worker.cached_tasks.keys().isdisjoint(task_keys)
        return load < max_tasks_per_machine, has_block, worker.pid is not None, -load

    return max(idle_workers, key=rank_worker, default=None)
