"""Check README.md, docs/ and the backends' READMEs: code runs, commands exist, links resolve.

Every ```python block of a page runs by itself, without the names of earlier blocks, in an initially empty
folder that the blocks of a page share. A block that needs an account or a server states the reason after the
fence, ```python notest="needs an AWS account", and is only compiled. With notest="starts a cluster of Ray"
(or of Dask), `make test-engines` runs it.

A block ```text title="Output" has the output of the Python block before it. The output is compared word by
word: numbers with a point or an exponent and times of day may differ, and ... stands for any text. Decisions
of live workers, such as which task was late, differ from run to run: of ```text title="Output of one run",
only the first line is compared, with any numbers.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import page_needs
import pytest
import ray_clusters
import yaml
from programs import Interpreter

import polarmap
from benchmarks import iterations
from benchmarks.compare import figures
from benchmarks.pages import parse_tables
from polarmap import cli, planning
from polarmap.codes import error_detection
from polarmap.linalg.sketch import SketchEstimate

ROOT = Path(__file__).parents[1]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *SITE, *sorted((ROOT / "backends").glob("*/README.md"))]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.name != "__pycache__")
SHELLS = {"", "sh", "bash", "shell", "console"}
LANGUAGES = SHELLS | {"python", "text", "yaml", "json", "toml", "ini", "dockerfile", "mermaid", "diff"}
SECONDS = 110  # Seconds that a page may take on a busy machine; on an idle one it takes a few.

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w.+-]*)(?P<rest>[^\n`]*)$")
NOTEST = re.compile(r'^ notest="[^"]{5,}"$')
OUTPUT, ONE_RUN = ' title="Output"', ' title="Output of one run"'
NOT_COMMANDS = {"task", "encryption"}  # Words after `polarmap` in the names of Dask tasks and of a format.
END = "\N{END OF TRANSMISSION}"  # Printed after each block, with the line it ends on.
FORGET = "[globals().pop(name) for name in [*globals()] if name[:2] != '__']"
MEASURED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+|\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+")
LINK = re.compile(r"(?<!\\)\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\]\(<?(?P<to>[^)\s>]+)>?(?: \"[^\"]*\")?\)")
INLINE_CODE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block: the line its text starts on (from 0), the words after the fence, and its lines."""

    start: int
    language: str
    rest: str
    lines: list[str]


def blocks(page: Path) -> Iterator[Block]:
    fence = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        if fence is None:
            fence, start, text = FENCE.match(line), number + 1, list[str]()
        elif line.strip() == "```":
            yield Block(start, fence["language"], fence["rest"], text)
            fence = None
        else:
            text.append(line.removeprefix(fence["indent"]))
    assert fence is None, f"{page.name}: the block of line {start} does not end"


def script(page: Path, *, notest: str = "nothing") -> str:
    """Return the Python blocks as a program with the same line numbers, so that tracebacks point to the page.

    Each block forgets its names at its end.

    Parameters
    ----------
    notest : str
        A part of the reason for which further blocks are included.
    """
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python" and (notest in block.rest or not block.rest):
            lines += [""] * (block.start - len(lines)) + block.lines
            end = END + str(end_of(block)) + END
            lines.append(f"__import__('builtins').print({end!r}, flush=True); {FORGET}")
    return "\n".join(lines) + "\n"


def end_of(block: Block) -> int:
    """Return the line of the fence that ends a block, from 0."""
    return block.start + len(block.lines)


def prose(page: Path) -> str:
    """Return the page without its blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        lines[block.start : block.start + len(block.lines)] = [""] * len(block.lines)
    return "\n".join(lines)


def test_files_of_the_package_that_a_page_names_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = page[page.index("## One map, step by step") : page.index("## Add a code")]
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", steps)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "polarmap" / name).is_file()] == []


@pages
def test_comments_do_not_end_lists(page: Path) -> None:
    # A comment at the beginning of a line with more words after it ends the list that it is in.
    broken = [line for line in prose(page).splitlines() if re.match(r" +<!--.*-->\S", line)]
    assert broken == [], "let another word begin the line"


# --- Python --------------------------------------------------------------------------------------


@pages
def test_fences_have_known_languages_and_titles(page: Path) -> None:
    odd = [
        f"line {block.start}: ```{block.language}{block.rest}"
        for block in blocks(page)
        if block.language not in LANGUAGES
        or (block.language == "python" and block.rest and not NOTEST.match(block.rest))
        or (block.language == "text" and block.rest not in ("", OUTPUT, ONE_RUN))
    ]
    assert odd == [], 'expected ```python, ```python notest="the reason", ```text or ```text title="Output"'


@pages
def test_python_blocks_run(page: Path, tmp_path: Path, interpreter: Interpreter) -> None:
    compile(script(page, notest=""), page.name, "exec")
    text = script(page)
    if not text.strip():
        return
    folder = tmp_path / "work"
    folder.mkdir()
    program = tmp_path / f"{page.stem.replace('-', '_').lower()}_md.py"
    program.write_text(text, encoding="utf-8")
    done = interpreter.run(program, [], folder, SECONDS, POLARMAP_STORE=str(tmp_path / "store"))
    assert done.returncode == 0, f"{page.name} (same line numbers): {done.stderr}"
    assert done.stderr == ""
    assert wrong_outputs(page, done.stdout) == []


@pytest.mark.engines
def test_code_blocks_that_start_a_cluster_run(tmp_path: Path) -> None:
    page, program = ROOT / "docs" / "cluster.md", tmp_path / "cluster_md.py"
    program.write_text(script(page, notest="starts a cluster"), encoding="utf-8")
    with ray_clusters.ends_with_it(importlib.import_module("ray")):
        done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{page.name} (same line numbers): {done.stderr}"
    assert wrong_outputs(page, done.stdout) == []
    assert done.stdout.count("persistent workers on") == 1


@pytest.mark.parametrize(
    "text",
    [
        "assert False",
        'print(1)\n```\n\n```text title="Output"\n2',
        "left = open(__file__)",
        "exit(2)",
        "import os\n```\n\n```python\nos.getpid()",
    ],
)
def test_failing_leaking_or_dependent_code_blocks_are_detected(
    text: str, tmp_path: Path, interpreter: Interpreter
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```python\n{text}\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        test_python_blocks_run(page, tmp_path, interpreter)


def test_a_program_that_never_ends_is_killed(tmp_path: Path, interpreter: Interpreter) -> None:
    program = tmp_path / "endless.py"
    program.write_text("import signal\nsignal.pause()\n", encoding="utf-8")
    assert interpreter.run(program, [], tmp_path, 1).returncode == -signal.SIGALRM


def wrong_outputs(page: Path, printed: str) -> list[str]:
    """Return the outputs on a page that differ from the printed ones."""
    texts = iter(printed.split(END))
    outputs = {int(line): text for text, line in zip(texts, texts)}
    wrong, latest = [], 0
    for block in blocks(page):
        if block.language == "python":
            latest = end_of(block)
        elif block.rest in (OUTPUT, ONE_RUN) and latest in outputs:
            shown = "\n".join(block.lines)
            if not is_output(shown, outputs[latest], exact=block.rest == OUTPUT):
                wrong.append(f"line {block.start}: shown {shown!r}, printed {outputs[latest]!r}")
    return wrong


def is_output(shown: str, printed: str, exact: bool) -> bool:
    """Return whether the output matches what was printed, except for parts that may differ."""
    if not exact:
        shown, printed = (re.sub(r"\d+", "0", text.strip().partition("\n")[0]) for text in (shown, printed))
    shown, printed = (MEASURED.sub("#", " ".join(text.split())) for text in (shown, printed))
    pattern = re.escape(shown).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, printed) is not None


@pytest.mark.parametrize(
    ("shown", "printed", "exact", "same"),
    [
        ("8 of 8", "7 of 8", True, False),
        ("in '...', bound 3e-13", "in 'there', bound 1e-9", True, True),
        ("21 of 27, 0.29 s\nlate: 3", "22 of 27, 1.5 s\nlate: 4, 5", False, True),
        ("21 of 27 arrived", "21 of 27 came", False, False),
    ],
)
def test_outputs_may_differ_in_measured_values(shown: str, printed: str, exact: bool, same: bool) -> None:
    assert is_output(shown, printed, exact) is same


# --- commands ------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command line in a shell block or in `code`."""
    spans = [match["code"] for match in INLINE_CODE.finditer(prose(page))]
    shells = [line for block in blocks(page) if block.language in SHELLS for line in block.lines]
    for line in spans + shells:
        words = line.removeprefix("$ ").partition("#")[0].split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if len(words) > 1:
            yield words


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


@pages
def test_make_commands_name_targets(page: Path) -> None:
    named = [word for first, *rest in commands(page) if first == "make" for word in rest if "=" not in word]
    files = {path.stem.replace("test_", "test-", 1) for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(named) - make_targets() - files == set()


@pages
def test_python_commands_name_files_and_modules(page: Path) -> None:
    missing = []
    for first, *rest in commands(page):
        if first not in ("python", "python3"):
            continue
        scripts = [word for word in rest[:1] if word.endswith(".py")]
        if rest[0] == "-m" and len(rest) > 1 and rest[1].split(".")[0] in ("benchmarks", "polarmap"):
            name = rest[1].replace(".", "/")
            scripts = [f"{name}.py" if (ROOT / f"{name}.py").is_file() else f"{name}/__main__.py"]
        missing += [word for word in scripts if not (ROOT / word).is_file()]
    assert missing == []


@pages
def test_install_commands_name_extras(page: Path) -> None:
    named = re.findall(r"(?:polarmap|'\.|\s\.)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= page_needs.extras()


@pages
def test_pages_name_the_extras_that_their_python_blocks_need(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page_needs.needed_by_code(script(page)) - page_needs.installed_by(text) == set()


@pages
def test_pages_name_the_extras_that_their_commands_need(page: Path) -> None:
    installed = page_needs.installed_by(page.read_text(encoding="utf-8"))
    missing = {}
    for first, *rest in commands(page):
        if first in ("python", "python3") and rest[0] == "-m" and rest[1].startswith("benchmarks"):
            missing[rest[1]] = page_needs.needed_by_benchmark(rest[1]) - installed
        elif first in ("python", "python3") and rest[0].startswith("examples/"):
            missing[rest[0]] = page_needs.needed_by_example(ROOT / rest[0]) - installed
    assert {name: modules for name, modules in missing.items() if modules} == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_name_the_extras_that_they_need(example: Path) -> None:
    main = example / "__main__.py" if example.is_dir() else example
    text = main.read_text(encoding="utf-8")
    if text.startswith("# %%"):
        text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert page_needs.needed_by_example(example) - page_needs.installed_by(text) == set()


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("import scipy", {"scipy"}),
        ("import sklearn.datasets", {"sklearn"}),
        ("from polarmap import CodedOperator", {"scipy"}),
        ("import polarmap\nwith polarmap.CodedOperator(SAMPLE_MATRIX) as operator: pass", {"scipy"}),
        ("from polarmap.glm import Ridge", {"scipy", "sklearn"}),
        ("import polarmap\npolarmap.xr.apply", {"xarray"}),
        ("import os, numpy, polarmap\npolarmap.coded_map\nSAMPLE_VECTOR.glm", set()),
        ("def f():\n    import scipy\ntry:\n    import numba\nexcept ImportError:\n    pass", set()),
    ],
)
def test_packages_needed_by_code_are_detected(text: str, missing: set[str]) -> None:
    assert page_needs.needed_by_code(text) - page_needs.installed_by("") == missing


def test_packages_installed_by_a_text_are_detected() -> None:
    base = page_needs.installed_by("")
    assert base >= {"numpy", "lithops", "click"} and "scipy" not in base
    assert page_needs.installed_by("`pip install '.[glm,plot]'`") - base == {
        *("scipy", "sklearn", "joblib", "matplotlib")
    }
    assert page_needs.installed_by("with the extras\n`xarray`, `dask` and `plot`") - base == {
        *("xarray", "pandas", "distributed", "dask", "matplotlib")
    }
    assert page_needs.installed_by("pip install pandas polars") - base == {"pandas", "polars"}


def polarmap_commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `polarmap` command line of a page that has no placeholders."""
    for words in commands(page):
        is_module = words[1:3] == ["-m", "polarmap"]
        if words[0] == "polarmap" or is_module:
            ends = [index for index, word in enumerate(words) if word in ("&&", "|", ">", "\\")]
            arguments = words[3 if is_module else 1 : min(ends, default=len(words))]
            if not any(word in NOT_COMMANDS or word.isupper() or "..." in word for word in arguments):
                yield arguments


@pages
def test_command_lines_of_polarmap_can_be_parsed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {}
    # The changelog also names earlier options.
    for words in polarmap_commands(page) if page.name != "CHANGELOG.md" else ():
        for name in words:
            if re.search(r"\.(yaml|json|npy)$", name):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).touch()
        try:
            parse(words)
        except click.UsageError as error:
            wrong[" ".join(words)] = error.format_message()
    assert wrong == {}


def parse(words: list[str]) -> None:
    """Parse a command line of polarmap without running it. Raise click.UsageError if it is wrong."""
    command: click.Command = cli.command_group
    name = "polarmap"
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        if not words or words[0].startswith("-"):  # An option of the group, such as --help.
            command.make_context(name, words or ["--help"], resilient_parsing=True)
            return
        found_name, inner, words = command.resolve_command(context, list(words))
        assert inner is not None
        name, command = str(found_name), inner
    if words:  # Otherwise the page only names the command.
        command.make_context(name, words)


@pytest.mark.parametrize(
    "words", ["nothing", "doctor --config there.yaml", "plan --k 2 --times", "list --all", "config shows"]
)
def test_wrong_command_lines_are_detected(words: str) -> None:
    with pytest.raises(click.UsageError):
        parse(words.split())


# --- numbers of README ---------------------------------------------------------------------------


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_shows_the_report_of_its_map() -> None:
    def without_times(text: str) -> str:
        text = re.sub(r"\((?:processes here|replay),|: its worker .*", "", text)
        text = re.sub(r"[\d.]+ m?s\b", "TIME", text)
        # On a virtual clock all tasks start immediately; real workers may not have started some of them.
        unneeded = re.compile(r"^(?:abandoned tasks, no|tasks cancelled before they) .*: (.*)\n", re.M)
        tasks = sorted(int(task) for numbers in unneeded.findall(text) for task in numbers.split(", "))
        return unneeded.sub("", text) + f"unneeded: {tasks}"

    printed = next(block for block in blocks(ROOT / "README.md") if block.rest == ONE_RUN)
    never = dict.fromkeys((3, 5, 24, 25, 26), math.inf)
    unlucky = polarmap.testing.FaultyExecutor(
        polarmap.testing.ReplayExecutor(never), {11: polarmap.testing.Fault("kill")}
    )
    A, x = np.random.default_rng(0).standard_normal((2_000, 480)), np.ones(480)
    y = polarmap.coded_map(lambda block: block @ x, A, blocks=20, tasks=27, executor=unlucky, retries=0)
    assert without_times("\n".join(printed.lines)) == without_times(str(y.report))


def test_readme_repeats_the_table_of_the_iterations_page() -> None:
    assert iterations.update_readme_table(readme()) == readme(), f"run {iterations.COMMAND}"
    for text in (readme(), (ROOT / "docs" / iterations.PAGE).read_text(encoding="utf-8")):
        assert f"`{iterations.COMMAND}`" in text
    with pytest.raises(ValueError, match="no <!-- from docs/"):
        iterations.update_readme_table("# polarmap\n")


def test_readme_repeats_the_pattern_shares_of_the_reliability_page() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    header, *rows = next(iter(parse_tables(page[page.index("benchmarks.accuracy") :]).values()))
    share = {name: float(cells[header.index("(32, 24)") - 1]) for name, *cells in rows}
    shares_match = re.search(
        r"24 blocks and 32 tasks, this happens for one in ([\d,]+) combinations with float64, "
        r"([\d.]+) % with float32 and ([\d.]+) % with float16",
        " ".join(readme().split()),
    )
    assert shares_match is not None
    assert 100 / float(shares_match[1].replace(",", "")) == pytest.approx(share["float64"])
    assert (float(shares_match[2]), float(shares_match[3])) == (share["float32"], share["float16"])


def test_reliability_page_states_the_tolerance_of_the_parity_check() -> None:
    page = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
    deviations_match = re.search(
        r"about (\S+) of the largest value that .*?, plus (\S+) of the largest number", page
    )
    assert deviations_match is not None
    double = np.dtype(np.float64)
    assert float(deviations_match[1]) == pytest.approx(
        error_detection.compute_parity_check_tolerance(double), rel=0.05
    )
    assert float(deviations_match[2]) == pytest.approx(
        error_detection.estimate_relative_rounding_error(double), rel=0.05
    )


def words_of(name: str) -> str:
    """Return a page of docs/ as one line."""
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def test_theory_page_states_the_bound_of_a_plain_recursion() -> None:
    # Probability of being later than 1.1 times the median of 1 + Exp(1).
    shares = np.array([np.exp(1 - 1.1 * (1 + np.log(2)))])
    for _ in range(14):
        shares = np.concatenate([shares**2, 2 * shares - shares**2])
    bound = np.sort(shares)[: len(shares) // 2].sum()
    assert f"n = 2^14, k = n / 2: late with probability {bound:.3g} at most" in words_of("theory.md")


def test_the_sketching_page_names_fields_of_estimates() -> None:
    page = words_of("sketching.md")
    named = re.findall(r"`(\w+)`", page[page.index("Each `SketchEstimate`") : page.index("Late workers get")])
    assert set(named[1:]) == set(SketchEstimate.__dataclass_fields__)


def test_rule_of_thumb_for_workers_agrees_with_plan() -> None:
    rule_match = re.search(
        r"adds (\d+) to (\d+) tasks to 24 blocks and (\d+) to (\d+)", words_of("how-many-workers.md")
    )
    assert rule_match is not None
    runtimes = planning.with_stragglers(planning.ShiftedExponential(2.0, 0.3), fraction=0.02, factor=5.0)
    plans = [polarmap.plan(k, runtimes, objective) for k in (24, 768) for objective in ("cost", "p99")]
    assert [plan.n - plan.k for plan in plans] == list(map(int, rule_match.groups()))


def test_the_figures_of_the_plan_page_are_drawn_from_its_data() -> None:
    source = inspect.getsource(figures.sample_example_run_times)
    lines = [line.strip() for line in source.splitlines() if re.match(r"    (rng|seconds) = ", line)]
    assert len(lines) == 2 and words_of("how-many-workers.md").count(" ".join(lines)) == 2


# --- the site ------------------------------------------------------------------------------------


def nav_pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav_pages(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    existing = [str(page.relative_to(ROOT / "docs")) for page in SITE]
    existing += [f"backends/{page.parent.name}.md" for page in ROOT.glob("backends/*/README.md")]
    existing += ["index.md", "changelog.md", "contributing.md"]
    named = [page for page in nav_pages(site["nav"]) if not page.startswith("gallery/")]
    assert sorted(named) == sorted(existing)
    titles = re.findall(r"^ +- ([^:]+): \S+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert len(titles) == len(set(titles)) > 40


def test_reference_shows_types_as_written_and_merges_entries_with_one_description(tmp_path: Path) -> None:
    griffe = pytest.importorskip("griffe", reason="comes with the extra dev")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "__init__.py").write_text(
        "MEMORY = 256 << 20\n\n\n"
        "def f(A, memory: int = MEMORY, retries: int = 1, timeout: float | None = None):\n"
        '    """F.\n\n    Parameters\n    ----------\n'
        "    A : array-like (M, N)\n        Of numbers.\n"
        "    memory : int\n        Bytes.\n"
        '    retries, timeout\n        As for g.\n    """\n',
        encoding="utf-8",
    )
    extensions = griffe.load_extensions("dataclasses", str(ROOT / "docs" / "reference_values.py"))
    package = griffe.load("some", search_paths=[tmp_path], extensions=extensions, docstring_parser="numpy")
    shown = [(one.name, str(one.annotation), one.value) for one in package["f"].docstring.parsed[1].value]
    assert shown[0] == ("A", "array-like (M, N)", None)
    assert shown[1][:2] == ("memory", "int") and str(shown[1][2]) == "256 << 20"
    assert shown[2] == ("retries, timeout", "None", None) and len(shown) == 3


def described() -> set[str]:
    """Return the names that pages of the reference document, including their modules."""
    texts = [page.read_text(encoding="utf-8") for page in SITE if page.parent.name == "reference"]
    return set(re.findall(r"^::: ([\w.]+)$", "\n".join(texts), re.MULTILINE))


@pytest.mark.parametrize(
    "module",
    [
        "polarmap",
        *[f"polarmap.{name}" for name in ("arrays", "codes", "convex", "convexnn", "glm", "linalg")],
        *[f"polarmap.{name}" for name in ("planning", "testing", "types")],
    ],
)
def test_the_reference_has_every_public_name(module: str) -> None:
    # documented name by name, and in a sentence
    elsewhere = {"polarmap.planning", "polarmap.planning.SCHEMES"}
    public = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    shown = {name.replace("polarmap.", "polarmap.planning.", 1) for name in described()} | described()
    assert public - shown - elsewhere == set(), "add `::: NAME` to a page of docs/reference"


def test_the_reference_lists_the_fields_of_records() -> None:
    plain = []
    for name in described():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last, None)
        prose = re.split(r"\n\w+\n---", inspect.getdoc(value) or "")[0] if inspect.isclass(value) else ""
        plain += [f"{name}: {line}" for line in prose.splitlines() if re.match(r"\w+(, \w+)* : ", line)]
    assert plain == [], "give fields a section of their own: Attributes"


def test_reference_has_examples_in_a_separate_section() -> None:
    bare = []
    for name in described():
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last, None)
        methods = vars(value).values() if inspect.isclass(value) else []
        for one in [value, *(getattr(method, "fget", method) for method in methods)]:
            one = getattr(one, "__func__", one)
            own = inspect.isroutine(one) or inspect.isclass(one)
            if own and ">>>" in (inspect.getdoc(one) or "").partition("\nExamples\n---")[0]:
                bare.append(f"{name}: {getattr(one, '__name__', '')}")
    assert bare == [], "put `Examples` and a line of dashes before the first `>>>`"


# --- links ---------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site generate them."""
    heads = re.findall(r"^#+ +(.+?)(?: *\{#[\w-]+\})?$", prose(page), re.MULTILINE)
    given = re.findall(r"\{#([\w-]+)\}", prose(page))
    bare = [re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).strip() for head in heads]
    return {re.sub(r"[ -]+" if "docs" in page.parts else " ", "-", head) for head in bare} | {*given}


@pages
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for match in LINK.finditer(INLINE_CODE.sub("", prose(page))):
        to, _, anchor = match["to"].partition("#")
        if re.match(r"[a-z]+:", to):
            continue
        target = page.parent / to if to else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in slugs(target)):
            broken.append(match["to"])
    assert broken == []


# --- the page of errors --------------------------------------------------------------------------


def test_the_faq_has_a_heading_for_every_error() -> None:
    public = {
        name
        for name, value in vars(polarmap.errors).items()
        if inspect.isclass(value) and issubclass(value, polarmap.errors.PolarmapError)
    }
    headings = re.findall(r"^### (\w+)$", prose(ROOT / "docs" / "faq.md"), re.MULTILINE)
    assert len(public) > 10
    assert public - set(headings) == set(), "add a section to docs/faq.md"
    assert len(headings) == len(set(headings))
