"""python -m release_check: check a release in fresh environments, and print a table of what was checked."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from release_check.archives import (
    ROOT,
    Archives,
    build_archives,
    check_licences,
    check_metadata,
)
from release_check.environments import (
    CURRENT_PYTHON,
    Workshop,
    list_extras,
    list_supported_pythons,
    read_setup,
)
from release_check.outcomes import Checklist, format_table, is_checked, run_command, summarize

# These extras install tools for work on polarmap. Other commands use them: make test, lint, docs and so on.
DEVELOPMENT_EXTRAS = ("test", "engines-test", "cloud-test", "site-test", "docs", "dev", "release-check")
# The tests that compare files of this checkout with each other.
AGREEMENTS = {
    "conda recipe and setup.cfg": "test_packaging.py::test_the_conda_recipe_agrees_with_setup_cfg",
    "version in all files": "test_packaging.py::test_the_version_is_the_same_in_all_files",
    "API snapshot and code": "test_public_api.py::test_public_api_equals_the_snapshot",
    "CHANGELOG and API snapshot": "test_public_api.py::test_new_names_in_the_changelog_are_public",
}


def main() -> int:
    options = _parse_arguments()
    checklist = Checklist()
    with tempfile.TemporaryDirectory(prefix="polarmap-release-", ignore_cleanup_errors=True) as folder:
        check_release(checklist, Path(folder), options.pythons, options.extras)
    print(f"\n{format_table(checklist.outcomes)}\n\n{summarize(checklist.outcomes)}")
    for open_point in list_open_points():
        print(f"Still to do: {open_point}")
    if not is_checked(checklist.outcomes, CURRENT_PYTHON):
        print(f"Python {CURRENT_PYTHON}, which runs this check, was not checked successfully.")
        return 1
    return 1 if any(outcome.state == "failed" for outcome in checklist.outcomes) else 0


def check_release(checklist: Checklist, folder: Path, pythons: list[str], extras: list[str]) -> None:
    """Run all checks, with `folder` for all files that they write."""
    for check, test in AGREEMENTS.items():
        checklist.run(check, partial(run_test, test))
    archives: list[Archives] = []
    if not checklist.run("sdist and wheel", lambda: archives.append(build_archives(folder))):
        return
    checklist.run("metadata", partial(check_metadata, *archives))
    checklist.run("licences", partial(check_licences, *archives))
    workshop, wheel = Workshop(folder), archives[0].wheel
    found = {version: python for version in pythons if (python := workshop.find_python(version))}
    for version in pythons:
        if version in found:
            checklist.run("wheel", partial(check_wheel, workshop, wheel, found[version]), version)
        else:
            reason = f"Python {version} is not installed on this machine, and uv could not download it."
            checklist.leave_out("wheel", "not checked", reason, version)
    version = next(iter(found), "")
    for extra in extras:
        if extra in DEVELOPMENT_EXTRAS:
            checklist.leave_out(f"extra {extra}", "skipped", "It is for work on polarmap itself.")
        elif not found:
            checklist.leave_out(f"extra {extra}", "not checked", "No Python was found for it.")
        else:
            check = partial(check_extra, workshop, wheel, found[version], extra)
            checklist.run(f"extra {extra}", check, version)


def run_test(test: str) -> None:
    """Run one of the tests in tests/."""
    run_command([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{test}"], ROOT)


def check_wheel(workshop: Workshop, wheel: Path, python: Path) -> str:
    """Install the wheel alone, and use it."""
    with workshop.create_environment(python) as environment:
        environment.install(wheel)
        environment.run(["polarmap", "--version"])
        environment.run_example()
        environment.run(["polarmap", "doctor"])
        environment.run(["polarmap", "demo"])
        environment.run_smoke_test("base")
    return "install, README's first example, doctor, demo, smoke test"


def check_extra(workshop: Workshop, wheel: Path, python: Path, extra: str) -> str:
    """Install the wheel with an extra, and use what the extra is for."""
    with workshop.create_environment(python) as environment:
        environment.install(wheel, extra)
        environment.run_smoke_test(extra)
    return "install, smoke test"


def list_open_points() -> list[str]:
    """Return what is still to do before the release, as one sentence for each point."""
    open_points = []
    heading = re.search(r"^## \[.*", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if heading is None or "unreleased" in heading[0].lower():
        open_points.append("Set the date of this version in CHANGELOG.md.")
    if "Source" not in read_setup()["metadata"]["project_urls"]:
        open_points.append("Add the address of the repository to project_urls in setup.cfg.")
    if n_changed := count_uncommitted_files():
        open_points.append(f"Commit or remove {n_changed} changed files, which the check has used.")
    return open_points


def count_uncommitted_files() -> int:
    """Return how many files of this checkout git would show as changed or new; 0 without git."""
    if shutil.which("git") is None:
        return 0
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    return len(status.stdout.splitlines())


def _parse_arguments() -> argparse.Namespace:
    pythons, extras = list_supported_pythons(), list_extras()
    parser = argparse.ArgumentParser(prog="python -m release_check", description=__doc__)
    parser.add_argument(
        "--pythons", nargs="+", default=pythons, choices=pythons, metavar="VERSION",
        help="the versions to check the wheel on (all that setup.cfg names); extras use the first one",
    )  # fmt: skip
    parser.add_argument(
        "--extras", nargs="*", default=extras, choices=extras, metavar="EXTRA",
        help="the extras to check (all)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
