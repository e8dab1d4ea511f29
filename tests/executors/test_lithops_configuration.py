"""FunctionExecutors of a configuration file, and what is said of one that cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_configuration import open_functions, read_configuration
from polarmap.executors.lithops_internals import end
from polarmap.executors.private_folder import named_for_lithops

HERE = "lithops: {backend: localhost, storage: localhost}\nlocalhost: {version: 1}\n"


def test_a_configuration_is_completed_with_this_interpreter(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    config = read_configuration(file)
    assert config["localhost"]["runtime"] == named_for_lithops()
    file.write_text(HERE.replace("version: 1", "version: 1, runtime: mine"))
    assert read_configuration(file)["localhost"]["runtime"] == "mine"


def test_an_executor_of_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    functions = open_functions(file)
    assert functions.backend == "localhost"
    assert functions.config["lithops"]["data_limit"] == 0  # tickets may name any number of parts
    end(functions)
    file.write_text(HERE.replace("storage:", "data_limit: 3, storage:"))
    functions = open_functions(file)
    assert functions.config["lithops"]["data_limit"] == 3
    end(functions)


@pytest.mark.parametrize("use", [read_configuration, open_functions])
def test_what_lithops_says_names_the_file(tmp_path: Path, use: object) -> None:
    assert callable(use)
    file = tmp_path / "odd.yaml"
    file.write_text("lithops: {backend: nowhere, storage: localhost}\n")
    with pytest.raises(ExecutorError, match=r"Lithops cannot use '.*odd\.yaml': "):
        use(file)
