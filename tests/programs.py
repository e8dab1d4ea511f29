"""Run the programs of pages and examples in forks of one interpreter, which has done their imports.

Such a program spends most of its time on imports: scikit-learn alone takes two seconds.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from polarmap.worker.blas_threads import get_thread_limit_variables

# Packages to import before a fork: they start no thread, and read nothing that a program sets.
KEPT = ("numpy", "scipy", "sklearn", "pandas", "matplotlib", "xarray", "zarr", "polarmap")


class Interpreter:
    """A process that runs programs one after the other, with warnings as errors."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | get_thread_limit_variables(1)
            # No windows are opened.
            | {"PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg", "DISPLAY": ""},
        )

    def run(
        self, program: Path, arguments: Iterable[str], folder: Path, seconds: int, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, a file or a folder, in a working folder; kill it after `seconds` seconds."""
        with tempfile.TemporaryDirectory() as place:
            written = [f"{place}/stdout", f"{place}/stderr"]
            words = [str(program), *arguments]
            print(json.dumps([words, str(folder), environment, written, seconds]), file=self._process.stdin)
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(words, code, *(Path(one).read_text() for one in written))

    def close(self) -> None:
        self._process.communicate()


def run_programs() -> None:
    """Run each program named by a line of standard input in a fork."""
    for line in sys.stdin:
        words, folder, environment, written, seconds = json.loads(line)
        import_for(Path(words[0]))
        gc.freeze()  # Without this, the first collection of each fork would visit all imported objects.
        child = os.fork()
        if not child:
            run_program(words, folder, environment, written, seconds)
            end()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def import_for(program: Path) -> None:
    """Import the modules that a program imports anywhere; import errors are left to the program."""
    for path in program.glob("*.py") if program.is_dir() else [program]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.partition(".")[0] in KEPT:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(name)


def run_program(
    words: list[str], folder: str, environment: Mapping[str, str], written: list[str], seconds: int
) -> None:
    """Run a program in this process, like `python PROGRAM ARGUMENTS`."""
    signal.alarm(seconds)
    for descriptor, path in enumerate([os.devnull, *written]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    os.environ |= environment
    os.chdir(folder)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def end() -> None:
    """Do what an interpreter does at its end, without freeing imported modules."""
    gc.collect()  # Makes resources that the program left open warn.
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    run_programs()
