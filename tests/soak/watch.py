"""Run cases in processes; a hang is reported with its stacks, and a new process continues."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from soak.cases import Named

LIMIT = {"replay": 20.0, "threads": 90.0, "pool": 250.0, "processes": 150.0, "localhost": 200.0}
BATCH = 400  # Cases per process.
TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Found:
    """A finding: a violated expectation and the case that shows it."""

    seed: int
    kind: str
    text: str
    traceback: str = ""

    def __str__(self) -> str:
        named = Named(self.seed)
        return (
            f"FINDING: {self.kind}\n  {self.text}\n  case {self.seed}, a {named.kind} on {named.executor}\n"
            f"  again: make soak CASE={self.seed}"
        )


@dataclass
class Tally:
    """The outcomes of the cases so far."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: list[Found] = field(default_factory=list)

    def table(self) -> str:
        """Return the counts by kind, executor and verdict."""
        rows = [("kind", "executor", "verdict", "cases")]
        rows += [(*key, str(count)) for key, count in sorted(self.counts.items())]
        rows.append(("all", "", "", str(sum(self.counts.values()))))
        return _aligned(rows, names=3)

    def summary(self) -> str:
        """Return the numbers of cases and findings of each kind."""
        cases, findings = Counter[str](), Counter(Named(finding.seed).kind for finding in self.findings)
        for (kind, _, _), count in self.counts.items():
            cases[kind] += count
        rows = [("kind", "cases", "findings")]
        rows += [(kind, f"{count:,}", f"{findings[kind]:,}") for kind, count in sorted(cases.items())]
        rows.append(("all", f"{cases.total():,}", f"{findings.total():,}"))
        return _aligned(rows, names=1)


def _aligned(rows: list[tuple[str, ...]], names: int) -> str:
    """Return a table whose first `names` columns are left-aligned and the rest right-aligned."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    cells = [
        [
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in cells)


class Worker:
    """A process with a separate temporary folder and home folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        for name in ("tmp", "home"):
            (self.folder / name).mkdir()
        self._stderr = open(self.folder / "stderr", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environment(),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"TMPDIR": str(self.folder / "tmp"), "HOME": str(self.folder / "home")}
        return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def ask(self, seed: int, seconds: float) -> dict[str, Any] | None:
        """Return the answer to a case, or None if the process ends, as it does after `seconds` seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed} {seconds}\n".encode())
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> list[str]:
        """Close the worker's input, wait for its end, and return what it left behind."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self._answer()
        left: list[str] = (
            [f"the process did not end\n{self.read_stderr()}"] if answer is None else answer["left"]
        )
        if self._process.wait() and answer is not None:
            left.append("the interpreter did not exit")
        left += [
            str(path) for path in (self.folder / "tmp").glob("*") if not path.name.startswith("lithops-")
        ]
        self.kill()
        return left

    def read_stderr(self) -> str:
        """Return the end of the worker's standard error."""
        return (self.folder / "stderr").read_text(errors="replace")[-8000:]

    def kill(self) -> None:
        """Kill the worker and its child processes, and remove its folders."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer


def watch(seeds: Iterable[int], deadline: float = float("inf"), keep_going: bool = False) -> Tally:
    """Run cases until the seeds or the time run out, or until the first finding."""
    tally, source = Tally(), iter(seeds)
    while (keep_going or not tally.findings) and (first := next(source, None)) is not None:
        _watch_process(chain([first], islice(source, BATCH - 1)), deadline, keep_going, tally)
        if time.monotonic() >= deadline:
            break
    return tally


def _watch_process(seeds: Iterable[int], deadline: float, keep_going: bool, tally: Tally) -> None:
    """Run cases in one process, and in a new one after a hang or death."""
    worker, asked = Worker(), []
    for seed in seeds:
        asked.append(seed)
        finding = _run(worker, seed, tally)
        if finding is not None:
            tally.findings.append(finding)
            if finding.kind in ("hang", "death"):
                worker.kill()
                worker = Worker()
            if not keep_going:
                worker.kill()
                return
        if time.monotonic() >= deadline:
            break
    if left := worker.end():
        text = f"after cases {asked[0]}..{asked[-1]}: {'; '.join(left)}"
        tally.findings.append(Found(asked[-1], "leftovers", text))


def _run(worker: Worker, seed: int, tally: Tally) -> Found | None:
    """Run a case, count its verdict, and return a finding or None."""
    named = Named(seed)
    limit = LIMIT[named.executor]
    answer = worker.ask(seed, limit)
    if answer is None:
        output = worker.read_stderr()
        is_late = "Timeout (" in output  # faulthandler prints this word.
        kind, text = ("hang", f"no answer within {limit:g} s") if is_late else ("death", "the process died")
        answer = {"finding": kind, "text": text, "traceback": output}
    verdict = answer.get("verdict") or f"FINDING: {answer['finding']}"
    tally.counts[named.kind, named.executor, verdict] += 1
    if "finding" not in answer:
        return None
    return Found(seed, answer["finding"], answer["text"], answer["traceback"])
