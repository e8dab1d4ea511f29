"""The one build step: config/ and backends/ travel inside the package, where polarmap finds them.

Everything else about the package stands in setup.cfg. An editable install needs no copy: it finds
both folders beside the package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("config", "backends")


class BuildWithTemplates(build_py):
    """As setuptools builds, and polarmap/_templates/ with copies of both folders."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        templates = Path(self.build_lib, "polarmap", "_templates")
        shutil.rmtree(templates, ignore_errors=True)
        for folder in FOLDERS:
            shutil.copytree(folder, templates / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))


setup(cmdclass={"build_py": BuildWithTemplates})
