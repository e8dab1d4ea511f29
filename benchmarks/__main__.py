"""Run the benchmarks of speed, or all, one after another: `python -m benchmarks [--all] [--quick]`."""

from __future__ import annotations

import argparse
import subprocess
import sys

SPEED_BENCHMARKS = ["steps", "memory"]
OTHER_BENCHMARKS = [
    *["accuracy", "many_tasks", "terabyte", "encryption", "beyond", "estimates"],
    *["sparse", "persistent_workers", "blackbox"],
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help=f"also run {', '.join(OTHER_BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions")
    arguments = parser.parse_args()
    # Each benchmark gets a new process: none inherits threads or memory.
    for benchmark in SPEED_BENCHMARKS + OTHER_BENCHMARKS * arguments.all:
        print(f"\n== {benchmark}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *["--quick"] * arguments.quick]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
