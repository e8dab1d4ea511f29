"""How many tasks to run at once on localhost: computing tasks, without and with sleeping ones."""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks import is_quick
from benchmarks.overhead import TASK_SECONDS, K, N, coded, work_for
from polarmap import Fault
from polarmap.executors import slots

SPARE = (0, 1, 2, 4, 8, N)


def main() -> None:
    runs = 1 if is_quick(__doc__) else 3
    blocks = list(np.random.default_rng(0).standard_normal((K, 64, 64)))
    f = work_for(TASK_SECONDS)
    cases = {0: {}, 2: {}, 6: {}}
    for sleepers, faults in cases.items():
        faults.update({3 * index: Fault("sleep", 20.0) for index in range(sleepers)})
    times = {(spare, sleepers): [] for spare in SPARE for sleepers in cases}
    chosen = slots.SPARE_SLOTS
    for _ in range(runs):
        for spare, sleepers in times:
            slots.SPARE_SLOTS = spare
            times[spare, sleepers].append(coded(f, blocks, cases[sleepers])[0])
    slots.SPARE_SLOTS = chosen
    base = statistics.median(times[chosen, 0])
    print(f"({N}, {K}), tasks of {TASK_SECONDS} s of computing; ratio to {chosen} spare slots, none asleep")
    print("spare slots  " + "  ".join(f"{sleepers} asleep" for sleepers in cases))
    for spare in SPARE:
        ratios = [statistics.median(times[spare, sleepers]) / base for sleepers in cases]
        print(f"{spare:11}  " + "  ".join(f"{ratio:8.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
