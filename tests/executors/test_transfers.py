"""Parallel transfers: a bounded number of threads, ordered results and errors, and no wait at exit."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import hanging_store
import pytest

from polarmap.executors import transfers
from polarmap.executors.transfers import ParallelTransfers, map_in_parallel

SECONDS = 30.0


class Item:
    """An object that supports weak references."""


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    last_first = [threading.Event() for _ in range(count)]

    def transfer(number: int) -> int:
        """Return the square. In each pair of numbers, the first waits until the second has returned."""
        if number % 2 == 0 and number + 1 < count:
            assert last_first[number + 1].wait(SECONDS)
        last_first[number].set()
        return number * number

    assert map_in_parallel(transfer, iter(range(count)), 4) == [number * number for number in range(count)]


def test_concurrency_is_limited_and_threads_are_daemons() -> None:
    lock, running, most, are_daemons = threading.Lock(), [0], [0], set[bool]()
    full = threading.Barrier(3)

    def transfer(number: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            are_daemons.add(threading.current_thread().daemon)
        full.wait(SECONDS)
        with lock:
            running[0] -= 1

    map_in_parallel(transfer, range(30), 3)
    assert (most[0], running[0], are_daemons) == (3, 0, {True})


def test_first_error_is_raised_and_stops_further_items() -> None:
    started, both = list[int](), threading.Barrier(2)

    def transfer(number: int) -> None:
        started.append(number)
        both.wait(SECONDS)
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"^0$"):
        map_in_parallel(transfer, range(10), 2)
    assert sorted(started) == [0, 1]


def test_error_is_raised_after_running_transfers_have_ended() -> None:
    # A caller may delete the stored objects after an error, so no transfer may store anything later.
    failed, stored = threading.Event(), list[int]()

    def transfer(number: int) -> None:
        if number:
            failed.set()
            raise ValueError(number)
        assert failed.wait(SECONDS)
        stored.append(number)

    with pytest.raises(ValueError, match="1"):
        map_in_parallel(transfer, [0, 1])
    assert stored == [0]


def test_error_is_raised_even_if_another_transfer_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "GRACE_SECONDS", 0.0)
    hangs, go_on = threading.Event(), threading.Event()

    def transfer(number: int) -> None:
        if not number:
            hangs.set()
            go_on.wait(SECONDS)
        else:
            assert hangs.wait(SECONDS)
            raise ValueError(number)

    try:
        with pytest.raises(ValueError, match="1"):
            map_in_parallel(transfer, [0, 1])
    finally:
        go_on.set()


def test_error_is_not_part_of_a_reference_cycle() -> None:
    item, failed = Item(), list[weakref.ref[Item]]()

    def transfer(item: Item) -> None:
        raise ValueError(item)

    failed.append(weakref.ref(item))
    gc.disable()
    try:
        with pytest.raises(ValueError, match="Item"):
            map_in_parallel(transfer, [item])
        del item
        assert failed[0]() is None
    finally:
        gc.enable()


def test_item_is_released_after_its_transfer() -> None:
    first, second_runs, go_on = Item(), threading.Event(), threading.Event()
    is_gone = weakref.ref(first)

    def transfer(item: Item | None) -> None:
        if item is None:
            second_runs.set()
            assert go_on.wait(SECONDS)

    running = ParallelTransfers(transfer, [first, None], 1)
    del first
    try:
        assert second_runs.wait(SECONDS)
        assert is_gone() is None
    finally:
        go_on.set()
    running.wait_for_results()


def test_stopped_transfers_start_no_further_items() -> None:
    runs, go_on, started = threading.Event(), threading.Event(), list[int]()

    def transfer(number: int) -> None:
        started.append(number)
        runs.set()
        assert go_on.wait(SECONDS)

    class WaitedFor(threading.Event):
        """An event that lets the running transfer end when the caller starts to wait for it."""

        def wait(self, timeout: float | None = None) -> bool:
            go_on.set()
            return super().wait(timeout)

    running = ParallelTransfers(transfer, range(5), 1)
    assert runs.wait(SECONDS)
    running._is_idle = WaitedFor()
    running.stop()
    assert started == [0]


@pytest.mark.parametrize("possible", [0, 2])
def test_transfers_run_without_threads_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, possible: int
) -> None:
    real, left = transfers.run_in_daemon_thread, [possible]

    def start(call: object) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        real(call)

    monkeypatch.setattr(transfers, "run_in_daemon_thread", start)
    if possible:
        assert map_in_parallel(str, range(5)) == ["0", "1", "2", "3", "4"]
    else:
        with pytest.raises(RuntimeError, match="can't start"):
            map_in_parallel(str, range(5))


# The expected text on stderr for each way in which a program ends.
ENDINGS = {"return": "", "raise": "my own", "interrupt": "KeyboardInterrupt", "fail": "the disk is full"}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("work", hanging_store.WORKS)
def test_program_exits_while_its_store_hangs(tmp_path: Path, work: str, ending: str) -> None:
    command = [sys.executable, hanging_store.__file__, str(tmp_path), work, ending]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ENDINGS[ending] in run.stderr
    assert (run.returncode == 0) == (ending == "return")


def test_program_exits_while_the_storage_of_its_workers_hangs() -> None:
    program = (
        "import threading\n"
        "from memory_storage import DictStorage\n"
        "from polarmap.executors.storage_channels import StorageChannelServer\n"
        "from polarmap.worker.storage_channel import StorageChannel\n"
        "from polarmap.worker.messages import MessageKind, Message\n"
        "hangs = threading.Event()\n"
        "class Hanging(DictStorage):\n"
        "    def get_object(self, *arguments):\n"
        "        hangs.set()\n"
        "        threading.Event().wait()\n"
        "storage = Hanging()\n"
        "links = StorageChannelServer(storage, 'pool', print)\n"
        "StorageChannel(storage, 'b', 'pool', 0).send(Message(MessageKind.HELLO, header=b'0'))\n"
        "assert hangs.wait(30)\n"
    )
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], timeout=100, check=True, cwd=tests)
