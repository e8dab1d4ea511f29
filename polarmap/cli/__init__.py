"""The `polarmap` command. No other package imports click.

Exit codes: 0 for success; 1 if a problem was found, an error occurred, or the reader of the output has
closed the pipe; 2 if the command line is wrong; 130 if interrupted (Ctrl-C).
"""

from __future__ import annotations

import warnings

import click

from polarmap import __version__
from polarmap.cli import arrays, demo, doctor
from polarmap.cli.config import config_group
from polarmap.cli.deploy import deploy_command, undeploy_command
from polarmap.cli.forecast import plan_command, simulate_command
from polarmap.cli.measure import measure_command
from polarmap.cli.top import top_command

EXIT_INTERRUPTED = 130


@click.group(
    name="polarmap",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 a problem was found or an error occurred, 2 wrong usage, "
    "130 interrupted. Every command takes --json.",
)
@click.version_option(__version__, prog_name="polarmap")
def command_group() -> None:
    """Run parallel maps with built-in error correction: exact results, without waiting for slow workers."""


array_commands = (
    arrays.encode_array_command,
    arrays.list_arrays_command,
    arrays.check_array_command,
    arrays.repair_array_command,
    arrays.delete_array_command,
)
for command in (
    doctor.doctor_command,
    demo.demo_command,
    measure_command,
    top_command,
    plan_command,
    simulate_command,
    config_group,
    deploy_command,
    undeploy_command,
    *array_commands,
):
    command_group.add_command(command)


def main() -> int:
    """Run the command in `sys.argv` and return its exit code. This is the entry point of `polarmap`."""
    warnings.formatwarning = lambda message, *_, **__: f"polarmap: warning: {message}\n"
    try:
        return int(command_group.main(prog_name="polarmap", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("polarmap: interrupted; nothing was left running", err=True)
        return EXIT_INTERRUPTED
