"""Run the checks of a release one after another, print their progress, and summarize their outcomes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

MAX_OUTPUT_LINES = 40  # lines of a failed command's output to print


class CheckError(Exception):
    """A check has found something wrong: one sentence, optionally followed by lines of output."""


class Outcome(NamedTuple):
    """The outcome of one check.

    Attributes
    ----------
    check : str
        What was checked, such as "extra glm".
    python : str
        The Python version, such as "3.11"; empty if the check does not depend on it.
    state : str
        "passed", "failed", "not checked" (something is missing on this machine) or "skipped" (on purpose).
    detail : str
        Why, in one sentence; may be empty if the check passed.
    seconds : float
        How long the check took.
    """

    check: str
    python: str
    state: str
    detail: str = ""
    seconds: float = 0.0


class Checklist:
    """Runs checks and collects their outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def run(self, check: str, function: Callable[[], str | None], python: str = "") -> bool:
        """Call `function`, record its outcome, and return whether it passed.

        The check fails if the function raises CheckError. Otherwise, the returned text is its detail.
        """
        print(f"{_label(check, python)} ...", flush=True)
        started = time.monotonic()
        try:
            state, detail, output = "passed", function() or "", ""
        except CheckError as failure:
            state, (detail, _, output) = "failed", str(failure).partition("\n")
        seconds = time.monotonic() - started
        print(f"    {state} in {seconds:.0f} s{': ' if detail else ''}{detail}", flush=True)
        for line in output.splitlines()[-MAX_OUTPUT_LINES:]:
            print(f"    | {line}", flush=True)
        self.outcomes.append(Outcome(check, python, state, detail, seconds))
        return state == "passed"

    def leave_out(self, check: str, state: str, detail: str, python: str = "") -> None:
        """Record a check that does not run, because its state is "not checked" or "skipped"."""
        print(f"{_label(check, python)}: {state}. {detail}", flush=True)
        self.outcomes.append(Outcome(check, python, state, detail))


def _label(check: str, python: str) -> str:
    return f"Python {python}, {check}" if python else check


def is_checked(outcomes: list[Outcome], python: str) -> bool:
    """Return whether the wheel has passed its check on a Python version."""
    return any(one.check == "wheel" and one.state == "passed" and one.python == python for one in outcomes)


def format_table(outcomes: list[Outcome]) -> str:
    """Return a table with one line per outcome."""
    rows = [("check", "Python", "result", "seconds", "")]
    rows += [
        (check, python, state, f"{seconds:.0f}" if state in ("passed", "failed") else "", detail)
        for check, python, state, detail, seconds in outcomes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 6), *lines[1:]])


def summarize(outcomes: list[Outcome]) -> str:
    """Return the number of checks in each state, as in "21 passed, 1 not checked"."""
    states = [outcome.state for outcome in outcomes]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def run_command(
    command: list[str | Path], folder: Path, environ: Mapping[str, str] | None = None, timeout: float = 1800
) -> str:
    """Run a command in `folder` and return its standard output.

    Raises
    ------
    CheckError
        If the command fails or takes longer than `timeout` seconds. The lines after the first sentence are
        the output of the command.
    """
    words = [str(word) for word in command]
    name = " ".join([Path(words[0]).name, *words[1:]])
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environ or os.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"`{name}` did not end within {timeout:g} seconds.") from None
    if done.returncode:
        raise CheckError(f"`{name}` ended with exit code {done.returncode}.\n{done.stdout}{done.stderr}")
    return done.stdout
