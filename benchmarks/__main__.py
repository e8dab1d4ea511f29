"""Benchmarks of speed, one table after another, or all: `python -m benchmarks [--all] [--quick]`."""

from __future__ import annotations

import subprocess
import sys

SPEED = ("coding", "memory", "overhead")
OTHERS = (
    "accuracy",
    "many_tasks",
    "terabyte",
    "encryption",
    "beyond",
    "estimates",
    "sparse",
    "kept_workers",
    "kept_jobs",
    "blackbox",
)


def main() -> None:
    options = [option for option in sys.argv[1:] if option != "--all"]
    others = OTHERS if "--all" in sys.argv else ()
    for subject in SPEED + others:  # each in a process of its own: none inherits another's threads or memory
        print(f"\n== {subject}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{subject}", *options], check=True)


if __name__ == "__main__":
    main()
