"""Maps on a pool whose files are removed or truncated, or whose disk is full."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import descendants, folders, leave_out_others, until

import polarmap
from polarmap import CodedOperator, Pool
from polarmap.errors import ExecutorError

A = np.random.default_rng(0).standard_normal((2400, 400))  # blocks large enough to be memory-mapped
X = np.arange(400.0)
PATIENCE = 60.0


@pytest.fixture
def pool() -> Iterator[Pool]:
    leave_out_others()
    with Pool() as pool:
        yield pool


@pytest.fixture
def product(pool: Pool) -> Iterator[CodedOperator]:
    with CodedOperator(A, executor=pool) as operator:
        check(operator)
        yield operator


def check(product: CodedOperator) -> None:
    np.testing.assert_allclose(product @ X, A @ X)


def files(place: str = "blocks-*/*") -> list[Path]:
    """Return the files that match `place` in the folders of this process's pools."""
    return [path for folder in folders() for path in folder.glob(place)]


def remove_folders() -> None:
    for folder in folders():
        shutil.rmtree(folder)


def test_removed_block_files_are_written_again(product: CodedOperator) -> None:
    names = {folder.name for folder in folders()}
    for _ in range(2):
        remove_folders()
        check(product)
        assert {folder.name for folder in folders()} <= names
        assert files()
        assert {oct(folder.stat().st_mode & 0o777) for folder in folders()} == {"0o700"}


def test_map_whose_files_are_removed_ends_and_later_maps_work(
    pool: Pool, product: CodedOperator, tmp_path: Path
) -> None:
    names, mark, x, rmtree = [str(folder) for folder in folders()], tmp_path / "removed", X, shutil.rmtree

    def remove_once(block: Any) -> Any:
        if not mark.exists():
            mark.touch()
            for name in names:
                rmtree(name, ignore_errors=True)
        return block @ x

    with suppress(ExecutorError):  # the map may report that its files cannot be stored
        result = polarmap.coded_map(remove_once, A, blocks=6, tasks=8, executor=pool, timeout=PATIENCE)
        np.testing.assert_allclose(result.concatenate(), A @ X)
    assert mark.exists()
    check(product)


def link(place: Path, tmp_path: Path) -> None:
    place.symlink_to(tmp_path)


def foreign_folder(place: Path, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can make what belongs to somebody else")
    place.mkdir()
    place.chmod(0o777)
    os.chown(place, 12345, 12345)


def use_blocks(product: CodedOperator, pool: Pool) -> None:
    check(product)


def use_large_function(product: CodedOperator, pool: Pool) -> None:
    large = np.ones(1 << 16)
    assert list(polarmap.hedged_map(lambda x: x * large[0], [1.0, 2.0], executor=pool)) == [1.0, 2.0]


def use_large_results(product: CodedOperator, pool: Pool) -> None:
    for result in polarmap.hedged_map(lambda x: np.full(1 << 16, x), [3.0, 3.0], executor=pool):
        np.testing.assert_array_equal(result, np.full(1 << 16, 3.0))


@pytest.mark.parametrize(
    ("put", "use"),
    [
        (link, use_blocks),
        (link, use_large_function),
        (link, use_large_results),
        (foreign_folder, use_blocks),
    ],
)
def test_folder_of_another_user_is_not_used(
    put: Callable[[Path, Path], None], use: Callable[[Any, Pool], None], pool: Pool, tmp_path: Path
) -> None:
    # Files go to the remaining folder. If both folders are replaced, only results can be sent without a file.
    with CodedOperator(A, executor=pool) as product:
        check(product)
        first, second = mine = folders()
        for blocks in ([first], [second], mine):
            remove_folders()
            for place in blocks:
                put(place, tmp_path)
            fails = len(blocks) > 1 and use is not use_large_results
            message = "is not a folder that belongs to this user"
            with pytest.raises(ExecutorError, match=message) if fails else nullcontext():
                use(product, pool)
            for place in blocks:
                assert os.listdir(place) == []
                (Path.unlink if place.is_symlink() else Path.rmdir)(place)
            use(product, pool)
            assert set(folders()) <= set(mine)


def test_truncated_blocks_are_written_again(product: CodedOperator) -> None:
    for count in (1, len(files())):
        for path in files()[:count]:
            os.truncate(path, 100)
        check(product)
        check(product)


def test_blocks_are_stored_on_disk_if_memory_is_full(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def no_room_in_memory(unfinished: Any, path: Any) -> None:
        if str(path).startswith("/dev/shm/"):
            os.truncate(unfinished, 100)
            no_room(unfinished, path)
        replace(unfinished, path)

    monkeypatch.setattr(os, "replace", no_room_in_memory)
    with CodedOperator(A, executor=pool) as product:
        check(product)
        assert files()
        assert not [path for path in files() if path.is_relative_to("/dev/shm")]


def no_room(unfinished: Any, path: Any) -> None:
    raise OSError(28, "No space left on device")


def test_full_disk_raises_one_clear_error(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, CodedOperator(A, executor=pool) as product:
        patched.setattr(os, "replace", no_room)
        with pytest.raises(ExecutorError, match=r"the (block|function) cannot be stored for the workers: "):
            product @ X
    assert not files("*/*")
    with CodedOperator(A, executor=pool) as product:
        check(product)


def test_pool_is_not_idle_during_maps_after_a_failed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.ones(1 << 16)  # makes f large enough to be stored in a file

    def nap(block: Any) -> Any:
        time.sleep(1.0)
        return block.sum() * large[0]

    with Pool(idle_timeout=0.2) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", no_room)
            with pytest.raises(ExecutorError, match="cannot be stored for the workers"):
                polarmap.coded_map(nap, A, blocks=2, tasks=3, executor=pool)
        polarmap.coded_map(nap, A, blocks=2, tasks=3, executor=pool, timeout=PATIENCE)


def test_workers_unmap_released_blocks(pool: Pool) -> None:
    def mapped() -> list[str]:
        return [
            line
            for process in descendants()
            for line in Path(f"/proc/{process}/maps").read_text().splitlines()
            if "/blocks-" in line
        ]

    with CodedOperator(A, executor=pool) as product:
        check(product)
        assert mapped()
    del product
    assert until(lambda: not mapped())
    assert not files()
