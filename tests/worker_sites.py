"""A provider of persistent workers that are threads of this process, with behaviour chosen by a test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from memory_storage import DictStorage

from polarmap import Pool
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import BlockStore, DriverBlockStore, PublishedBlocks
from polarmap.executors.interface import JobSpec, Session
from polarmap.executors.lithops import BucketBlockStore
from polarmap.executors.persistent_executor import WorkerHost
from polarmap.executors.remote_workers import WorkerProvider
from polarmap.executors.storage_channels import OnConnected, StorageChannelServer
from polarmap.worker.block_cache import BlockCache
from polarmap.worker.handshake import connect_to_driver
from polarmap.worker.persistent_worker import PersistentWorker
from polarmap.worker.socket_channel import SocketChannel
from polarmap.worker.worker_entry import DriverAddress, open_channel, serve_driver_on_thread

Life = Callable[[DriverAddress, int, float], None]


def honest(address: DriverAddress, number: int, seconds: float) -> None:
    """Serve the driver like a worker of Dask."""
    serve_driver_on_thread(tuple(address), number, seconds)


def called(address: DriverAddress, number: int) -> SocketChannel:
    """Return a connection to the driver that was made with the right key."""
    channel = connect_to_driver(address.endpoints, address.key, number)
    assert channel is not None
    return channel


def serving_by_storage(storage: Any) -> Life:
    """Return the life of a worker that communicates through a storage if no socket is available."""

    def life(address: DriverAddress, number: int, seconds: float) -> None:
        with closing(open_channel(address, number, storage)) as channel:
            cache = BlockCache(address.cache_bytes)
            PersistentWorker(channel, storage, cache, fetch_timeout=address.fetch_timeout).serve()

    return life


class HostOf(WorkerHost):
    """An executor whose persistent workers come from a given provider."""

    name = ""

    def __init__(self, site: WorkerProvider) -> None:
        self.name, self._site = site.name, site

    def open(self, job_spec: JobSpec) -> Session:
        raise NotImplementedError

    def make_worker_provider(self) -> WorkerProvider:
        return self._site


@contextmanager
def pool_of(site: WorkerProvider, **options: Any) -> Iterator[Pool]:
    """Yield a pool whose workers come from a given provider."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polarmap.executors.recognition.recognize_executor", lambda spec: HostOf(site))
        pool = Pool(Path("threads.yaml"), **options)
    with pool:
        yield pool


def sent_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the keys of the parts that a driver sends to its workers from now on."""
    sent, part = list[str](), PublishedBlocks.read_component
    monkeypatch.setattr(
        PublishedBlocks,
        "read_component",
        lambda self, coded, key: (sent.append(key), part(self, coded, key))[1],
    )
    return sent


class ThreadSite(WorkerProvider):
    """A provider whose workers are threads.

    Parameters
    ----------
    lives : Mapping[int, Life] | None
        Worker number -> behaviour of that worker; other workers behave like `default`.
    worker_spec, max_worker_seconds, max_workers, storage
        As in other providers.
    """

    name = "threads"
    key_prefix = "polarmap/pool-1"
    listing_interval = 1e-3
    is_closed = False

    def __init__(self, lives: Mapping[int, Life] | None = None, default: Life = honest) -> None:
        self.lives, self.default = dict(lives or {}), default
        self.max_worker_seconds, self.max_workers = 1e6, None
        self.storage: DictStorage | None = None
        self.threads: dict[int, threading.Thread] = {}
        self.told: dict[int, str] = {}
        self.launches: list[list[int]] = []
        self.refusal: ExecutorError | None = None

    def open_storage_channels(self, on_connected: OnConnected) -> StorageChannelServer | None:
        return (
            None
            if self.storage is None
            else StorageChannelServer(self.storage, self.key_prefix, on_connected)
        )

    def make_block_store(self) -> BlockStore:
        return (
            DriverBlockStore(self.key_prefix)
            if self.storage is None
            else BucketBlockStore(self.storage, self.key_prefix)
        )

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str],
    ) -> None:
        self.launches.append(list(lifetimes))
        if self.refusal is not None:
            raise self.refusal
        for number, seconds in lifetimes.items():
            life = self.lives.get(number, self.default)
            thread = threading.Thread(
                target=self.live, args=(life, driver_address, number, seconds), daemon=True
            )
            self.threads[number] = thread
            thread.start()

    def live(self, life: Life, address: DriverAddress, number: int, seconds: float) -> None:
        try:
            life(address, number, seconds)
            self.told[number] = "finished"
        except Exception as error:
            self.told[number] = f"{type(error).__name__}: {error}"

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        exited, self.told = self.told, {}
        return exited

    def close(self) -> None:
        self.is_closed = True
        for thread in self.threads.values():
            thread.join(10.0)


class MachineSite(ThreadSite):
    """A provider whose threads claim to run on machines.

    Attributes
    ----------
    known
        Names of all machines.
    reachable
        Machines on which workers start; on other machines, launched workers never start.
    withdrawn
        Workers whose launch was cancelled.
    """

    placement_timeout = 0.2

    def __init__(self, *machines: str) -> None:
        super().__init__()
        self.known, self.reachable = list(machines), set(machines)
        self.withdrawn: list[int] = []
        self.placed: dict[int, str] = {}
        self.placements: list[list[str]] = []
        self.links: dict[int, SocketChannel] = {}

    def list_machines(self) -> list[str]:
        return self.known

    def cancel_launch(self, worker_ids: Collection[int]) -> None:
        self.withdrawn += worker_ids

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str],
    ) -> None:
        self.placed |= machine_by_worker
        self.placements.append(list(machine_by_worker.values()))
        able = {
            one: end
            for one, end in lifetimes.items()
            if machine_by_worker.get(one, "") in {"", *self.reachable}
        }
        super().launch_workers(driver_address, able, machine_by_worker)

    def live(self, life: Life, address: DriverAddress, number: int, seconds: float) -> None:
        machine = self.placed.get(number, "")
        super().live(lambda *of: self.serve(*of, machine), address, number, seconds)

    def serve(self, address: DriverAddress, number: int, seconds: float, machine: str) -> None:
        """Serve like a worker of Dask, on a connection that `lose` cuts."""
        with closing(called(address, number)) as channel:
            self.links[number] = channel
            PersistentWorker(channel, None, BlockCache(0), contextlib.nullcontext, "place", machine).serve()

    def lose(self, machine: str) -> None:
        """Cut a machine off: its workers disconnect, and no worker starts there any more."""
        self.reachable.discard(machine)
        for number, where in self.placed.items():
            if where == machine and number in self.links:
                self.links[number].disconnect()
