"""A worker needs Lithops and numpy: an interpreter with those alone runs what a full client sends."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

import polarmap
from polarmap import Fault, FaultyExecutor
from polarmap.executors.lithops import pickled_by_value
from polarmap.worker import run_task

ABSENT = ("polarmap", "scipy", "numba", "boto3", "sklearn", "distributed", "matplotlib")


def needed_by(*names: str) -> set[str]:
    """These distributions and what they require, without extras."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            if "extra ==" not in line and is_here(project := re.split(r"[^\w.-]", line)[0]):
                todo.append(project)
    return found


def is_here(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter of the same version that sees Lithops, numpy and their requirements only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in needed_by("lithops", "numpy"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "/")}:
            if top != "__pycache__" and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder / "bin" / "python"


def test_the_worker_sees_nothing_else(bare: Path) -> None:
    code = f"import importlib.util, lithops; print([n for n in {ABSENT} if importlib.util.find_spec(n)])"
    run = subprocess.run([bare, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Lithops looks through this module's imports
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_with_lithops_and_numpy_only(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would show the worker what the client has
    config = tmp_path / "bare.yaml"
    config.write_text(
        "lithops: {backend: localhost, storage: localhost, monitoring_interval: 0.02}\n"
        f"localhost: {{version: 1, runtime: {bare}, worker_processes: 4}}\n"
    )
    A = np.random.default_rng(0).standard_normal((120, 40))
    X = np.random.default_rng(1).standard_normal((40, 30))

    def f(block: np.ndarray) -> np.ndarray:
        import importlib.util
        import sys as there

        seen = [name for name in absent if name in there.modules or importlib.util.find_spec(name)]
        assert not seen, f"this worker can import {seen}"
        return block @ X

    absent = ABSENT
    faults = {2: Fault("sleep", 600), 4: Fault("kill", attempts=9)}
    y = polarmap.coded_map(
        f, A, blocks=6, workers=8, executor=FaultyExecutor(config, faults), timeout=100, verify=False
    )
    np.testing.assert_allclose(y.concatenate(), A @ X, rtol=1e-10, atol=1e-10)
    assert {2, 4} <= set(y.report.recovered)


def test_what_travels_imports_numpy_at_most(bare: Path, tmp_path: Path) -> None:
    """The pickled task, loaded where polarmap is not: it brings its modules and imports numpy only."""
    with pickled_by_value():
        pickled = cloudpickle.dumps(run_task.make_task(lambda block: 2 * block))
    (tmp_path / "task").write_bytes(pickled)
    code = (
        "import json, pickle, sys\n"
        "import cloudpickle\n"
        "before = set(sys.modules)\n"
        f"task = pickle.load(open({str(tmp_path / 'task')!r}, 'rb'))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    run = subprocess.run([bare, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(run.stdout) if name not in sys.stdlib_module_names}
    assert loaded <= {"numpy"}
    assert len(pickled) < 100_000  # it travels once per map
