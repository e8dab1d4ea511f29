"""Check the tables of large maps on small ones: every row is measured, and the results are right."""

from __future__ import annotations

import pytest

from benchmarks.scale import SUBJECTS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_subject_prints_its_rows(subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    SUBJECTS[subject]((40,), 1)
    header, *rows = capsys.readouterr().out.splitlines()
    assert rows and len(header.split()) >= 4
    assert all(len(row) > 40 for row in rows)
