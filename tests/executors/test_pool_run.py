"""The run of a map on workers that stay: what it tells; what it does is tested with the pool."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_sites import ThreadSite, called

from polarmap import Pool
from polarmap.blocks.uneven import PartBlocks
from polarmap.executors.base import Outcome, Payload
from polarmap.worker.frames import END, SUBTASK, Message, frame

PATIENCE = 30.0


@pytest.mark.parametrize("first", [SUBTASK, END])
def test_an_attempt_of_which_a_worker_says_nonsense_and_more_ends_once(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def liar(address: Any, number: int, seconds: float) -> None:
        with closing(called(address, number)) as channel:
            _, fields = channel.receive(PATIENCE)
            order = fields[0], *fields[2][:2]
            seal = channel._seals.to_driver  # type: ignore[union-attr]
            both = [frame(Message(kind, order, b"no pickle"), seal) for kind in (first, END)]
            channel._connection.sendall(b"".join(both))
            channel.receive(PATIENCE)

    site = ThreadSite({0: liar})
    monkeypatch.setattr("polarmap.executors.pool._site", lambda choice: site)
    monkeypatch.setattr("polarmap.executors.pool._place", lambda choice: ("threads", None))
    with Pool(Path("threads.yaml"), workers=1) as pool:
        blocks = PartBlocks([[np.ones(3)]], ("array",))
        with closing(pool.open(Payload(np.negative, blocks))) as run:
            run.submit([(0, 0)])
            events: list[Any] = []
            while not any(isinstance(one, Outcome) for one in events):
                events += run.wait(PATIENCE)
            run.submit([(0, 1)])  # goes to another worker
            while not any(isinstance(one, Outcome) and one.attempt for one in events):
                events += run.wait(PATIENCE)
    ends = [one for one in events if isinstance(one, Outcome) and one.over]
    assert [(one.attempt, one.failure and one.failure.kind) for one in ends] == [(0, "lost"), (1, None)]
