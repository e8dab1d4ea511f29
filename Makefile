# Every target installs its requirements into .venv and changes nothing else on the machine.
# Paths are relative, so a checkout may be anywhere, also below a folder whose name has spaces.

PYTHON  ?= python3
BACKEND ?= localhost
CONFIG  ?= config/$(BACKEND).yaml
MINUTES ?= 10
MAPS    ?= 1000
# One more than the number of cores, since many tests wait for processes.
JOBS    ?= $(shell expr `getconf _NPROCESSORS_ONLN` + 1)

python := .venv/bin/python
# PATH is set as in an activated environment, since Lithops looks for `python` on PATH.
run    := PATH="$(CURDIR)/.venv/bin:$$PATH" $(python)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-engines test-network test-site soak-engines cloud-test soak lint bench compare runtime smoke package release-check docs venv interpreter clean

help:  ## list the targets
	@sed -n 's/^\([a-z%-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/.base  ## multiply a matrix by coded map, with two stragglers
	@$(run) -m polarmap demo

test: .venv/.test  ## run the whole test suite, JOBS=... tests at a time
	@$(run) -m pytest $(if $(filter-out 1,$(JOBS)),--numprocesses $(JOBS) --dist worksteal)

test-%: .venv/.test  ## run tests/**/test_%.py only, as in make test-structure
	@files=$$(find tests -name 'test_$*.py'); \
	test -n "$$files" || { echo "make: no file is called test_$*.py below tests/." >&2; exit 2; }; \
	$(run) -m pytest $$files

test-engines: .venv/.engines-test  ## run the tests that start Ray clusters, which make test leaves out
	@$(run) -m pytest -m engines tests/executors tests/maps tests/test_docs.py

test-network: .venv/.test  ## run tests/testbed on machines made of Linux namespaces, as root
	@$(run) -m pytest -m network tests/testbed

build_site := NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

# The tests use Debian's Chromium, which root installs where it is missing.
has_chromium := test -x /usr/bin/chromium -a -x /usr/bin/chromedriver
# Files that are newer than the site, without those that Python writes.
site_sources := docs examples backends polarmap mkdocs.yml setup.cfg README.md CHANGELOG.md CONTRIBUTING.md
changed_since_site = find $(site_sources) -name __pycache__ -prune -o -type f -newer site/index.html -print -quit

test-site: .venv/.site-test  ## build the site if needed, and run tests/site in Chromium
	@$(has_chromium) || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || { apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver; } >&2 || true
	@$(has_chromium) || { echo "make: tests/site needs Chromium with its driver in /usr/bin;" \
	"install them (Debian: apt-get install chromium chromium-driver)." >&2; exit 2; }
	@if test ! -f site/index.html || test -n "$$($(changed_since_site))"; then \
	$(build_site); fi
	@$(run) -m pytest -m site --numprocesses 2 --dist worksteal tests/site

soak-engines: .venv/.test  ## run MAPS=1000 maps on ENGINE=dask or ray in such a network, with slow, cut and killed machines
	@PYTHONPATH=tests $(run) -m testbed.soak --maps $(MAPS) $(SEED:%=--seed %) $(ENGINE:%=--engine %)

soak: .venv/.test  ## compare random cases with numpy for MINUTES=10, starting at SEED=...; CASE=... runs one case
	@PYTHONPATH=tests $(run) -m soak --minutes $(MINUTES) $(SEED:%=--seed %) $(CASE:%=--case %) \
	$(KEEP_GOING:%=--keep-going)

cloud-test: .venv/.cloud-test  ## run tests/cloud: real servers and emulators, installed into .venv/cloud
	@$(run) -m pytest -m cloud tests/cloud

lint: .venv/.dev  ## check style (ruff) and types (mypy, pyright)
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy
	@$(python) -m basedpyright --level error tests/test_types.py

bench: .venv/.fast  ## measure speed and print the tables of ratios; python -m benchmarks --all has more
	@$(run) -m benchmarks

compare: .venv/.test  ## measure polarmap against its rivals, write docs/comparison*.md, real-jobs.md and README's table
	@$(run) -m benchmarks.compare
	@$(run) -m benchmarks.stragglers
	@$(run) -m benchmarks.iterations

runtime: .venv/.base  ## build and deploy the worker runtime of BACKEND=localhost as CONFIG=... says
	@$(run) -m polarmap deploy "$(BACKEND)" "$(CONFIG)"

smoke: .venv/.base  ## run small coded maps on BACKEND=localhost as CONFIG=... says
	@$(run) -m polarmap doctor --config "$(CONFIG)" --timeout 600

package: .venv/.test  ## build the sdist and the wheel into dist/ and check their metadata
	@rm -rf dist
	@$(python) -m build
	@$(python) -m twine check --strict dist/*

release-check: .venv/.release-check  ## check a release in fresh environments; PYTHONS=... and EXTRAS=... choose some
	@PYTHONPATH=tests $(run) -m release_check $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(EXTRAS),--extras $(EXTRAS))

docs: .venv/.dev  ## build the documentation site into site/
	@$(build_site)
	@echo "Open site/index.html."

venv: .venv/.base  ## set up .venv with polarmap and its dependencies

clean:  ## remove .venv, caches and build products
	@rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of dependencies. Each set includes the sets listed before it, so installing `dev` also
# stamps `test`, `fast` and `base`.
stamped_base := base
stamped_fast := base fast
stamped_test := base fast test
stamped_dev  := base fast test dev
stamped_engines-test := base fast test engines-test
stamped_cloud-test := base fast test cloud-test
stamped_site-test := base fast test site-test
stamped_release-check := base fast test release-check

.venv/.%: setup.cfg pyproject.toml | interpreter
	@echo "Installing polarmap ($*) into .venv ..."
	@$(python) -m pip install --quiet --disable-pip-version-check --editable '.$(if $(filter-out base,$*),[$*])'
	@touch $(stamped_$*:%=.venv/.%)

# .venv belongs to one Python version, so a PYTHON= with another version is refused.
is_old := import sys; sys.exit(sys.version_info >= (3, 11))
minor  := import sys; print(*sys.version_info[:2], sep=".")
chosen := $(if $(filter command environment%,$(origin PYTHON)),$(PYTHON))

interpreter: .venv/.made
	@$(python) -c '' 2>/dev/null || \
	{ echo "make: the Python of .venv no longer exists; create a new environment: make clean && make $(MAKECMDGOALS)" >&2; exit 2; }
	@! $(python) -c '$(is_old)' || \
	{ echo "make: polarmap needs Python 3.11 or later, but .venv has $$($(python) -c '$(minor)');" \
	"create a new environment: make clean && make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@has=$$($(python) -c '$(minor)'); wanted=$(if $(chosen),$$($(chosen) -c '$(minor)'),$$has); \
	test "$$has" = "$$wanted" || \
	{ echo "make: .venv has Python $$has, PYTHON=$(chosen) is $${wanted:-not a Python interpreter};" \
	"to replace .venv: make clean && make $(MAKECMDGOALS) PYTHON=$(chosen)" >&2; exit 2; }
	@$(python) -c 'import sys; print("Using Python", sys.version.split()[0], "at", sys.executable)'

.venv/.made:
	@command -v $(PYTHON) >/dev/null || \
	{ echo "make: '$(PYTHON)' was not found; install Python 3.11 or later, or name an interpreter with PYTHON=..." >&2; exit 2; }
	@! $(PYTHON) -c '$(is_old)' || \
	{ echo "make: polarmap needs Python 3.11 or later, but '$(PYTHON)' is older; name another interpreter with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	{ echo "make: '$(PYTHON)' lacks the venv module; install it (Debian, Ubuntu: the package python3-venv)." >&2; exit 2; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || \
	{ echo "Creating .venv with $$($(PYTHON) --version) ..."; $(PYTHON) -m venv --clear .venv; }
	@touch $@
