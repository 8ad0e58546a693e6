# Two commands need nothing but Python and make: `make demo` and `make test`. Both call `make setup`,
# which fills .venv once and again only when the pins change.
PYTHON ?= python3
# Two processes of tests with as many threads each as there are cores wait for each other five times as long as they compute.
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m pytest -n 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test quick check format wheel docs bench-language bench-transport matrix campaign campaign-sample guards

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/gradfix demo --overwrite

test: setup
	$(TESTS) -m "not campaign"

# Without what runs whole commands: an answer while one waits.
quick: setup
	$(TESTS) -m "not slow and not campaign"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What people install: the package and the embedded pair, without studies and tests.
wheel: setup
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@du -h dist/*.whl

# The site of docs/: a link to nowhere or a docstring that names what is not there ends it.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# docs/language.md: half an hour to some hours, by how busy the machine is; what is made is kept between runs.
bench-language: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python benchmarks/language.py

bench-transport: setup
	$(BIN)/python benchmarks/transport.py

# docs/compatibility.md: families of models, ways of saving and commands against independent arithmetic; some ten minutes.
matrix: setup
	$(BIN)/python benchmarks/matrix.py --write docs/compatibility.md

# docs/reliability.md: broken, hostile and ill-timed, some 11,000 cases in half an hour on two cores.
campaign: setup
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.campaigns $(SEED)

# A small part of each campaign, drawn anew.
campaign-sample: setup
	$(TESTS) -m campaign

# Each guard of the rooms that files and numbers enter by is taken out once, and the quickest tests that reached it run again;
# those that no test misses are printed. FILES names others.
guards: setup
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m tests.campaigns.guards $(FILES)
