"""Which attempts have begun, by files that workers make."""

from __future__ import annotations

import time
from pathlib import Path

from polarmap.executors.attempt_locks import AttemptLocks


def test_what_has_begun_is_read_once_and_stays_known(tmp_path: Path) -> None:
    locks = AttemptLocks(tmp_path / "locks")
    keys = [(0, 0), (3, 1)]
    assert (len(locks), locks.begun(keys)) == (0, {})
    (locks.folder / "3-1").write_text("123")
    [(key, begun)] = locks.begun(keys).items()
    assert (key, begun.process, len(locks)) == ((3, 1), 123, 1)
    assert abs(begun.when - time.monotonic()) < 5.0
    locks.remove()
    assert locks.begun(keys) == {(3, 1): begun}
    assert locks.begun([(0, 0)]) == {}


def test_a_file_that_is_being_written_is_read_again(tmp_path: Path) -> None:
    locks = AttemptLocks(tmp_path / "locks")
    path = locks.folder / "0-0"
    path.touch()
    assert locks.begun([(0, 0)])[0, 0].process == 0
    path.write_text("123")
    assert locks.begun([(0, 0)])[0, 0].process == 123
