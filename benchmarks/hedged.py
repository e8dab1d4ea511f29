"""hedged_map against cubed's rule for backup tasks: real jobs whose tasks sleep for drawn run times.

python -m benchmarks.hedged [--quick]

Each scheme runs the same jobs on the same threads, enough for every task and its backups, in turns; a
task and its backups take the same times in each. Whatever still runs when its task has returned is taken
to be stopped then, as a cloud would stop it. The 99 % quantile of 50 jobs is what the worst of them drew, so
there are five sets of 50, beside each other in processes of their own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from functools import partial
from threading import Event, Lock

import numpy as np

from benchmarks import is_quick, show
from polarmap import hedged_map
from polarmap.planning import ShiftedExponential, completion_time, stragglers
from polarmap.planning.backups import CUBED

TASKS = 24
ATTEMPTS = 3  # of a task, at most
UNIT = 0.5  # seconds to the unit of the distribution
RUNTIMES = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
POLL = 0.002  # seconds between looks for what is late, by cubed's rule


class Job:
    """The tasks of one job: f sleeps as long as the table says of its task and attempt, and notes when.

    seconds : array (attempts, tasks)
    """

    def __init__(self, seconds: np.ndarray) -> None:
        self._seconds, self._lock = seconds, Lock()
        self._attempts: Counter[int] = Counter()
        self.over = Event()  # ends the attempts that still sleep
        self.began: list[tuple[int, float]] = []  # attempts: of which task, and when
        self.returned: dict[int, float] = {}

    def f(self, task: int) -> int:
        """Sleep, at most until the job is over; what is returned does not matter."""
        with self._lock:
            seconds = float(self._seconds[self._attempts[task], task])
            self._attempts[task] += 1
            self.began.append((task, time.monotonic()))
        self.over.wait(seconds)
        with self._lock:
            self.returned.setdefault(task, time.monotonic())
        return task

    @property
    def worker_seconds(self) -> float:
        """What attempts took until their task returned."""
        return sum(max(0.0, self.returned[task] - when) for task, when in self.began)


def uncoded(pool: ThreadPoolExecutor, job: Job) -> list[int]:
    """A map that waits for all."""
    return list(pool.map(job.f, range(TASKS)))


def backed_up_by_cubed(pool: ThreadPoolExecutor, job: Job) -> list[int]:
    """Each task that takes three times as long as half of all took is started once more."""
    began, half = time.monotonic(), np.inf
    copies = {task: [pool.submit(job.f, task)] for task in range(TASKS)}
    while late := [task for task in copies if not any(one.done() for one in copies[task])]:
        now = time.monotonic() - began
        if TASKS - len(late) >= CUBED.awaited(TASKS):
            half = min(half, now)
        for task in late:
            if now > CUBED.slow * half and len(copies[task]) == 1:
                copies[task].append(pool.submit(job.f, task))
        wait([one for task in late for one in copies[task]], POLL, FIRST_COMPLETED)
    return [next(one.result() for one in copies[task] if one.done()) for task in copies]


def hedged(pool: ThreadPoolExecutor, job: Job) -> list[int]:
    """`hedged_map` as it is."""
    return list(hedged_map(job.f, range(TASKS), executor=pool, progress=False))


Scheme = Callable[[ThreadPoolExecutor, Job], list[int]]
# Name -> how it runs, and as what the planner knows it.
SCHEMES: dict[str, tuple[Scheme, str]] = {
    "uncoded": (uncoded, "uncoded"),
    "cubed's rule": (backed_up_by_cubed, "backup-cubed"),
    "hedged_map": (hedged, "backup"),
}


def measured(seed: int, jobs: int, unit: float = UNIT) -> dict[str, np.ndarray]:
    """Scheme -> seconds and worker-seconds of each job, (jobs, 2), in units."""
    rng = np.random.default_rng(seed)
    found = {name: np.empty((jobs, 2)) for name in SCHEMES}
    with ThreadPoolExecutor(ATTEMPTS * TASKS) as pool:
        uncoded(pool, Job(np.full((1, TASKS), unit)))  # starts threads
        for number in range(jobs):
            seconds = unit * RUNTIMES.sample(rng, (ATTEMPTS, TASKS))
            for name, (run, _) in SCHEMES.items():
                job, began = Job(seconds), time.monotonic()
                results = run(pool, job)
                found[name][number] = (time.monotonic() - began) / unit, job.worker_seconds / unit
                assert results == list(range(TASKS))
                job.over.set()  # no attempt of this job runs beside the next one
    return found


def p99(found: dict[str, np.ndarray], name: str) -> float:
    """Of the seconds of jobs."""
    return float(np.quantile(found[name][:, 0], 0.99))


def rows(found: dict[str, np.ndarray]) -> Iterator[list[object]]:
    """Of the table, for all jobs."""
    plain = found["uncoded"][:, 1].sum()
    for name, (_, scheme) in SCHEMES.items():
        times, paid = found[name].T
        simulated = completion_time(TASKS, TASKS, scheme, RUNTIMES, trials=20_000).p99
        yield [name, float(np.median(times)), p99(found, name), simulated, float(paid.sum() / plain)]


def main() -> None:
    """Print the table, and how far it is from what is aimed at."""
    seeds, jobs = (range(2), 3) if is_quick(__doc__) else (range(5), 50)
    with ProcessPoolExecutor(len(seeds)) as processes:
        sets = list(processes.map(partial(measured, jobs=jobs), seeds))
    found = {name: np.concatenate([one[name] for one in sets]) for name in SCHEMES}
    show(["", "median", "p99", "p99 simulated", "worker-seconds"], rows(found))
    ratios = [p99(one, "hedged_map") / p99(one, "cubed's rule") for one in (found, *sets)]
    print(
        f"p99 of hedged_map / cubed's rule: {ratios[0]:.2f}; of each {jobs} jobs "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios[1:])} (to reach: 0.65)"
    )
    paid = [found[name][:, 1].sum() for name in ("hedged_map", "uncoded")]
    print(f"worker-seconds of hedged_map / uncoded: {paid[0] / paid[1]:.3f} (to reach: 1.05)")


if __name__ == "__main__":
    main()
