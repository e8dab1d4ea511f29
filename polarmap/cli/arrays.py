"""`polarmap encode, list, check, repair, delete`: manage coded arrays in storage."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from polarmap import encode, open_coded
from polarmap.arrays import CodedArray, list_coded
from polarmap.arrays.array import open_without_key
from polarmap.cli.output import CommandResult, format_error_message, result_command
from polarmap.errors import CodeError, PolarmapError
from polarmap.optional import require_extra

MIB = 1 << 20
DATASET_SEPARATOR = "::"  # separates the path of an HDF5 file from the name of a dataset

storage_option = click.option(
    "--storage",
    metavar="PLACE",
    help="A folder or a Lithops YAML file. The default is $POLARMAP_STORE, or else your data folder.",
)
key_option = click.option(
    "--key",
    metavar="WHERE",
    help="The key of an encrypted array: env:NAME or file:PATH, which holds 64 hexadecimal digits.",
)
executor_option = click.option(
    "--executor",
    metavar="WHERE",
    help="Where to run: localhost or a Lithops YAML file. By default this process does the work.",
)
name_argument = click.argument("name")


@result_command("encode")
@click.argument("source")
@name_argument
@storage_option
@click.option("--blocks", type=click.IntRange(1), help="Number of data blocks k; the default is 24.")
@click.option(
    "--tasks",
    type=click.IntRange(2),
    help="Number of data and parity blocks n; the default is a third more than k.",
)
@click.option("--code", type=click.Choice(["auto", "rotation", "arikan"]), default="auto", show_default=True)
@click.option("--memory", type=click.IntRange(1), default=256, show_default=True, help="Memory in MiB.")
@click.option("--overwrite", is_flag=True, help="Replace an existing array of this name.")
@key_option
def encode_array_command(source: str, name: str, memory: int, **options: Any) -> CommandResult:
    """Encode the array in SOURCE and store it as NAME.

    Encoding divides the array into data blocks and adds parity blocks, from which polarmap can rebuild lost
    or damaged blocks. SOURCE is a .npy file, a Zarr folder, or a dataset in an HDF5 file, written as
    file.h5::dataset.
    """
    with _open_source(source) as source_data:
        coded_array = encode(source_data, name=name, memory=memory * MIB, **options)
    return CommandResult({"array": _summarize_array(coded_array)}, repr(coded_array))


@result_command("list")
@storage_option
def list_arrays_command(storage: str | None) -> CommandResult:
    """List the coded arrays in storage.

    A coded array is an array that `polarmap encode` has stored.
    """
    summaries = [_summarize_array_or_error(name, storage) for name in list_coded(storage)]
    text = "\n".join(line for _, line in summaries) or "no coded arrays"
    return CommandResult(
        {"arrays": [summary for summary, _ in summaries]},
        text,
        all("error" not in item for item, _ in summaries),
    )


@result_command("check")
@name_argument
@storage_option
@key_option
@executor_option
def check_array_command(
    name: str, storage: str | None, key: str | None, executor: str | None
) -> CommandResult:
    """Check a coded array for missing and damaged data.

    Reads every stored byte range, and verifies its checksum.
    """
    audit = open_coded(name, storage, key=key).check(executor=executor)
    return CommandResult({"ok": audit.ok, "audit": audit}, repr(audit), audit.ok)


@result_command("repair")
@name_argument
@storage_option
@key_option
@executor_option
def repair_array_command(
    name: str, storage: str | None, key: str | None, executor: str | None
) -> CommandResult:
    """Rebuild missing and damaged data of a coded array.

    The data are computed from the intact blocks.
    """
    audit = open_coded(name, storage, key=key).repair(executor=executor)
    if audit.ok:
        return CommandResult({"repaired": 0, "audit": audit}, f"nothing to repair: {audit!r}")
    n_repaired = len(audit.damaged)
    text = f"repaired {n_repaired} part{'s' * (n_repaired > 1)} of {name!r}, in blocks {audit.damaged_blocks}"
    return CommandResult({"repaired": n_repaired, "audit": audit}, text)


@result_command("delete")
@name_argument
@storage_option
@click.option("--yes", is_flag=True, help="Delete without asking.")
def delete_array_command(name: str, storage: str | None, yes: bool) -> CommandResult:
    """Delete a coded array.

    Data that was already in storage before encoding is not deleted.
    """
    coded_array = open_without_key(name, storage)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "cannot ask for confirmation, as standard input is not a terminal: pass --yes"
            )
        click.confirm(f"delete {coded_array!r}?", abort=True, err=True)
    coded_array.delete()
    return CommandResult({"deleted": name}, f"deleted {name!r} from {coded_array.store.name}")


@contextlib.contextmanager
def _open_source(source: str) -> Iterator[Any]:
    """Open a .npy file, Zarr folder or HDF5 dataset, and yield it as an array-like object for `encode`.

    Raises CodeError if the source does not exist or is not an array.
    """
    path, separator, dataset = source.partition(DATASET_SEPARATOR)
    if separator:
        with require_extra(f"reading {source}", "h5py", "storage"):
            import h5py
        with h5py.File(path, "r") as file:
            if dataset not in file:
                raise CodeError(f"{path} has no dataset {dataset!r}; it holds {', '.join(file)}")
            yield file[dataset]
    elif Path(source).is_dir():
        with require_extra(f"reading {source}", "zarr", "storage"):
            import zarr
        try:
            array = zarr.open_array(source, mode="r")
        except (ValueError, LookupError) as error:
            raise CodeError(f"{source} is not a Zarr array: {error}") from error
        yield array
    elif Path(source).is_file():
        yield source
    else:
        raise CodeError(f"the file {source!r} does not exist")


def _summarize_array(coded_array: CodedArray) -> dict[str, Any]:
    return {
        "name": coded_array.name,
        "shape": list(coded_array.shape),
        "dtype": str(coded_array.dtype),
        "n": coded_array.n,
        "k": coded_array.k,
        "bytes": coded_array.nbytes,
        "stored_bytes": coded_array.stored_bytes,
        "storage": coded_array.store.name,
    }


def _summarize_array_or_error(name: str, storage: str | None) -> tuple[dict[str, Any], str]:
    """Return a summary of a stored array, both as a dict for JSON output and as a line of text.

    If the array cannot be opened, both contain the error message instead.
    """
    try:
        coded_array = open_without_key(name, storage)
    except PolarmapError as error:
        message = format_error_message(error)
        return {"name": name, "error": message}, f"{name} cannot be opened: {message}"
    return _summarize_array(coded_array), repr(coded_array)
