"""Find Python interpreters, and install the wheel into fresh environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

from release_check.archives import ROOT
from release_check.outcomes import CheckError, run_command

CURRENT_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PRINT_VERSION = "import sys; print('{}.{}'.format(*sys.version_info))"
# Variables with which a checkout, an environment or a make around the check would change its programs.
REMOVED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "POLARMAP_LIVE", "POLARMAP_STORE")


def read_setup() -> ConfigParser:
    """Return setup.cfg of this checkout."""
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def list_supported_pythons() -> list[str]:
    """Return the versions that the classifiers in setup.cfg name, such as "3.11"."""
    return re.findall(r"Python :: (3\.\d+)", read_setup()["metadata"]["classifiers"])


def list_extras() -> list[str]:
    """Return the names of all extras in setup.cfg."""
    return list(read_setup()["options.extras_require"])


def read_first_example() -> str:
    """Return the first Python example of README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if example is None:
        raise CheckError("README.md has no example that starts with ```python.")
    return example[1]


class Workshop:
    """A temporary folder with uv, in which environments are created.

    Parameters
    ----------
    folder : Path
        The folder for all files: environments, packages that uv downloads, and what programs write.
    """

    def __init__(self, folder: Path) -> None:
        import uv  # lazy import: only the extra release-check installs it

        self.folder = folder
        self.uv = uv.find_uv_bin()
        kept = {name: value for name, value in os.environ.items() if name not in REMOVED}
        self.environ = {
            **kept,
            "UV_CACHE_DIR": str(folder / "uv"),
            "UV_PYTHON_INSTALL_DIR": str(folder / "pythons"),
            "UV_NO_PROGRESS": "1",
            "UV_NO_CONFIG": "1",
            # A short path, since Ray creates sockets below it, whose paths may have about 100 characters.
            "TMPDIR": str(folder / "t"),
            "HOME": str(folder / "home"),
        }
        for name in ("t", "home"):
            (folder / name).mkdir()

    def find_python(self, version: str) -> Path | None:
        """Return an interpreter of a version on this machine or from uv's downloads, or None."""
        pyenv_root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        on_path = [Path(folder, f"python{version}") for folder in os.get_exec_path()]
        candidates = [Path(sys.executable), *on_path, *pyenv_root.glob(f"versions/{version}.*/bin/python")]
        for path in candidates:
            if path.is_file() and is_version(path, version):
                return path
        return self._download_python(version)

    def _download_python(self, version: str) -> Path | None:
        """Download an interpreter into the temporary folder, or return None if that is not possible."""
        folder = self.folder / "pythons"
        command = [self.uv, "python", "install", "--no-bin", "--no-registry", version]
        subprocess.run(command, env=self.environ, capture_output=True)
        return next(folder.glob(f"cpython-{version}.*/bin/python{version}"), None)

    @contextmanager
    def create_environment(self, python: Path) -> Iterator[Environment]:
        """Create an empty environment that uses the given interpreter, and remove it at the end."""
        folder = self.folder / "environment"
        try:
            yield Environment(self, folder, python)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_version(python: Path, version: str) -> bool:
    """Return whether an interpreter runs and is of a version such as "3.11"."""
    done = subprocess.run([python, "-c", PRINT_VERSION], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


class Environment:
    """A fresh environment. Its programs run in a folder of their own, without access to the checkout."""

    def __init__(self, workshop: Workshop, folder: Path, python: Path) -> None:
        self._workshop = workshop
        self._work, self._scripts = folder / "work", folder / "env" / "bin"
        self._work.mkdir(parents=True)
        # Lithops looks for `python` on PATH.
        path = os.pathsep.join([str(self._scripts), os.environ["PATH"]])
        self._environ = {**workshop.environ, "PATH": path}
        self._run_uv("venv", "--quiet", "--no-project", "--python", python, folder / "env")

    def install(self, wheel: Path, extra: str = "") -> None:
        """Install the wheel, with an extra if one is given, and check that all versions fit together."""
        requirement = f"polarmap{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}"
        self._run_uv("pip", "install", "--quiet", "--python", self._scripts / "python", requirement)
        self._run_uv("pip", "check", "--python", self._scripts / "python")

    def run(self, command: list[str]) -> str:
        """Run one of the environment's programs and return its output."""
        return run_command([self._scripts / command[0], *command[1:]], self._work, self._environ, 600)

    def run_example(self) -> None:
        """Run README's first example."""
        (self._work / "example.py").write_text(read_first_example(), encoding="utf-8")
        self.run(["python", "example.py"])

    def run_smoke_test(self, name: str) -> None:
        """Run the program of an extra in smoke.py, or "base"."""
        shutil.copy(Path(__file__).with_name("smoke.py"), self._work)
        self.run(["python", "smoke.py", name])

    def _run_uv(self, *arguments: str | Path) -> None:
        run_command([self._workshop.uv, *arguments], self._work, self._workshop.environ)
