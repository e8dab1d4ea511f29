"""What a fresh worker process spends before f: interpreter, numpy, polarmap's own part, Lithops."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cloudpickle

from benchmarks import interleaved, is_quick, show
from polarmap.executors.pickling import pickled_by_value
from polarmap.worker.io_lithops import make_task


def main() -> None:
    repeats = 5 if is_quick(__doc__) else 15
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        with pickled_by_value():
            task.write_bytes(cloudpickle.dumps(make_task(lambda block: 2 * block)))
        load = f"import pickle; pickle.load(open({str(task)!r}, 'rb'))"
        steps = {
            "interpreter": "pass",
            "+ numpy": "import numpy",
            "+ task": f"import numpy; {load}",
            "Lithops' own": "import lithops.worker.handler",
        }
        seconds = interleaved([runner(code) for code in steps.values()], repeats)
    bare = seconds[0]
    ours = seconds[2] - seconds[1]
    rows = [(name, 1e3 * spent, 1e3 * (spent - bare)) for name, spent in zip(steps, seconds)]
    show(("a fresh process", "ms", "above bare"), rows)
    print(f"polarmap's part: {1e3 * ours:.0f} ms, {ours / (seconds[1] - bare):.2f} of importing numpy")


def runner(code: str) -> Callable[[], object]:
    """Run code in a fresh interpreter."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
