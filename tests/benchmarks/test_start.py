"""Check that every benchmark starts from a checkout, without the paths that pytest adds."""

from __future__ import annotations

from pathlib import Path

from programs import Interpreter

import benchmarks
from benchmarks.__main__ import OTHER_BENCHMARKS, SPEED_BENCHMARKS

FOLDER = Path(benchmarks.__file__).parent


def test_every_benchmark_is_found_and_loads(interpreter: Interpreter, tmp_path: Path) -> None:
    modules = [path.relative_to(FOLDER.parent).with_suffix("") for path in sorted(FOLDER.rglob("*.py"))]
    names = [".".join(module.parts) for module in modules if module.name != "__init__"]
    assert {f"benchmarks.{subject}" for subject in SPEED_BENCHMARKS + OTHER_BENCHMARKS} < set(names)
    program = tmp_path / "program.py"
    program.write_text(f"import {', '.join(names)}")
    done = interpreter.run(program, [], FOLDER.parent, 100)
    assert done.returncode == 0, done.stderr
