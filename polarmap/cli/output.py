"""Results of commands, printed as text or as one JSON document."""

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

# click types for the paths of input files and output files.
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)


class LithopsConfigType(click.Path):
    """A click type for a Lithops configuration: the path of an existing file, or the word "localhost"."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return "localhost" unchanged, and any other value as the path of an existing file."""
        return value if is_localhost_spec(value) else super().convert(value, parameter, context)


class CommandResult(NamedTuple):
    """The result of a command, as data for programs and as text for people.

    Attributes
    ----------
    data : mapping
        The result for programs, printed as JSON if the user passes --json.
    text : str
        The result for people, printed otherwise.
    ok : bool
        Whether the command found no problem. Its exit code is 0 in this case, and 1 otherwise.
    """

    data: Mapping[str, Any]
    text: str
    ok: bool = True


def result_command(command_name: str) -> Callable[[Callable[..., CommandResult]], click.Command]:
    """Return a decorator that turns a function into a click command with the option --json.

    The decorated function returns a CommandResult, which the command prints. Anything that the function
    itself prints goes to standard error.

    If the function raises an expected exception, the command prints its message on standard error. With
    --json, it also prints {"error": ...} on standard output.
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
    """Return the message of an exception as one line."""
    return " ".join(str(error).split())
