"""The run of a map on workers that stay: what it tells; what it does is tested with the pool."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
from plain import ends
from worker_sites import ThreadSite, called, pool_of

from polarmap.blocks.uneven import PartBlocks
from polarmap.executors.base import Payload
from polarmap.worker.stream import END, Message, frame

PATIENCE = 30.0


def test_an_attempt_of_which_a_worker_says_nonsense_and_more_ends_once() -> None:
    def liar(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            [call], _ = channel.receive(PATIENCE)
            both = [frame(Message(END, call.order, b"no pickle"), channel._seal) for _ in range(2)]
            channel._connection.sendall(b"".join(both))
            channel.receive(PATIENCE)

    with pool_of(ThreadSite({0: liar}), workers=1) as pool:
        blocks = PartBlocks([[np.ones(3)]], ("array",))
        with closing(pool.open(Payload(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            events: list[Any] = []
            while not ends(events):
                events += run.wait(PATIENCE)
            run.submit([(0, 1)])  # goes to another worker
            while not any(one.attempt for one in ends(events)):
                events += run.wait(PATIENCE)
    over = [(one.attempt, one.failure and one.failure.kind) for one in ends(events)]
    assert over == [(0, "lost"), (1, None)]
