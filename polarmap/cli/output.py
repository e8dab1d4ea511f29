"""What a command answers, and how it is printed: as text, or as one JSON document."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from polarmap.errors import PolarmapError
from polarmap.executors.executor_specs import is_localhost_spec
from polarmap.report import to_json_value

# an argument or option that names one
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)  # one that is written


class LithopsConfigType(click.Path):
    """A click type for a Lithops configuration: an existing file, or "localhost" as for `executor=`."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return "localhost" as it is, and the path of any other file, which must exist."""
        return value if is_localhost_spec(value) else super().convert(value, parameter, context)


class CommandResult(NamedTuple):
    """What a command found, for programs and for people, and whether all is well (exit code 0 or 1)."""

    data: Mapping[str, Any]
    text: str
    ok: bool = True


def result_command(command_name: str) -> Callable[[Callable[..., CommandResult]], click.Command]:
    """Make a click command of a function that gives a CommandResult; adds --json.

    What the function raises on purpose becomes one line on standard error, and with --json also
    {"error": ...}. Whatever else it prints goes to standard error.
    """

    def decorate(command_function: Callable[..., CommandResult]) -> click.Command:
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
        @functools.wraps(command_function)
        def run_command(as_json: bool, **options: Any) -> None:
            with contextlib.redirect_stdout(sys.stderr):
                command_result = _call_command(command_function, options)
            text = (
                json.dumps(to_json_value(command_result.data), indent=2) if as_json else command_result.text
            )
            if text:
                click.echo(text)
            click.get_current_context().exit(0 if command_result.ok else 1)

        return click.command(command_name)(run_command)

    return decorate


def _call_command(
    command_function: Callable[..., CommandResult], options: Mapping[str, Any]
) -> CommandResult:
    try:
        return command_function(**options)
    except (PolarmapError, OSError, ImportError) as error:
        message = format_error_message(error)
        click.echo(f"polarmap: {message}", err=True)
        return CommandResult({"error": {"type": type(error).__name__, "message": message}}, "", ok=False)


def format_error_message(error: Exception) -> str:
    """The message of an error without its breaks."""
    return " ".join(str(error).split())
