"""python -m soak: run random cases for a number of minutes, or run one case again."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import count

from soak.cases import Named
from soak.watch import watch


def main() -> int:
    asked = _arguments()
    if asked.case is not None:
        named = Named(asked.case)
        print(f"case {asked.case}, a {named.kind} on {named.executor}\n{named.drawn()}")
        tally = watch([asked.case])
    else:
        began, first = (
            time.monotonic(),
            asked.seed if asked.seed is not None else time.time_ns() % 10**9 * 1000,
        )
        print(f"Cases from {first} on, for {asked.minutes:g} minutes.", flush=True)
        tally = watch(count(first), began + 60 * asked.minutes, asked.keep_going)
    print(f"{tally.table()}\n\n{tally.summary()}")
    for finding in tally.findings:
        print(f"\n{finding}\n{finding.traceback}")
    return 1 if tally.findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="minutes to run (10)")
    parser.add_argument("--seed", type=int, help="seed of the first case; later cases count up")
    parser.add_argument("--case", type=int, help="describe and run this case only")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first finding")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
