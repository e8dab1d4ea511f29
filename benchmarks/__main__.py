"""All benchmarks, one table after another: `python -m benchmarks [--quick]`."""

from __future__ import annotations

import subprocess
import sys

SUBJECTS = (
    "encode",
    "decode",
    "arrivals",
    "accuracy",
    "overhead",
    "slots",
    "many_tasks",
    "terabyte",
    "memory",
    "coded_arrays",
    "encryption",
    "theory",
    "coldstart",
    "beyond",
    "estimates",
    "operators",
    "sparse",
    "kept_workers",
    "kept_jobs",
    "blackbox",
)


def main() -> None:
    for subject in SUBJECTS:  # each in a process of its own: none inherits another's threads or memory
        print(f"\n== {subject}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{subject}", *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
