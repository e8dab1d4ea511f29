"""The command line: `polarmap doctor`, `demo`, `plan` and the others. The only package that imports click.

Exit codes: 0 done; 1 a problem was found, polarmap refused, or whoever read the output has gone; 2 the
command line is wrong; 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import warnings

import click

from polarmap import __version__
from polarmap.cli import arrays, demo, doctor
from polarmap.cli.deploy import deploy_, undeploy_
from polarmap.cli.forecast import plan, simulate
from polarmap.cli.run_times import measure
from polarmap.cli.templates import config

INTERRUPTED = 130


@click.group(
    name="polarmap",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a problem was found or polarmap refused, 2 wrong usage, 130 interrupted. "
    "Commands take --json.",
)
@click.version_option(__version__, prog_name="polarmap")
def commands() -> None:
    """A map with error correction built in: exact results, without waiting for stragglers."""


of_arrays = (arrays.encode_, arrays.list_, arrays.check, arrays.repair, arrays.delete)
for command in (doctor.doctor, demo.demo, measure, plan, simulate, config, deploy_, undeploy_, *of_arrays):
    commands.add_command(command)


def main() -> int:
    """Run the command that the arguments of this process name; its exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"polarmap: warning: {message}\n"
    try:
        return int(commands.main(prog_name="polarmap", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("polarmap: interrupted; nothing was left running", err=True)
        return INTERRUPTED
