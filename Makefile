# make run          create the environment, then run the ePVS study on generated images (WORDS=… adds overrides)
# make test         create the development environment, then run the tests on all cores (ARGS=… is passed to pytest)
# make test-all     run the tests, also those that are marked as slow
# make cluster-test run `ray up`, Ray Jobs and Slurm on hosts that are namespaces of this machine (root, sshd, rsync, Slurm)
# make check        run ruff, mypy, hadolint on the Dockerfile, and the architecture test
# make fuzz         run the tests with random input, 10,000 cases each (about ten minutes)
# make audit        look up the locked dependencies in a database of vulnerabilities; needs the network
# make licences     rewrite THIRD_PARTY_LICENSES.md
# make constraints  rewrite constraints.txt
# make clean        remove the environment and everything derived from the sources; results are kept
#
# PYTHON=/path/to/python selects the interpreter. pip's settings are respected.

VENV := .venv
BIN := $(VENV)/bin
# setuptools warns about editable installations with mapped folders, such as tasks/ here.
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test test-all cluster-test check chaos fuzz audit licences constraints setup setup-dev clean
.DELETE_ON_ERROR:

run: setup
	$(BIN)/harness run task=epvs $(WORDS)

test: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all:
	$(MAKE) --no-print-directory test ARGS="-m 'slow or not slow' $(ARGS)"

cluster-test: setup-dev
	$(BIN)/python -m pytest tests/cluster -m 'slow or not slow' $(ARGS)

ROUNDS := 20
SEED := 0

chaos: setup-dev
	$(BIN)/python tests/chaos/chaos.py --rounds $(ROUNDS) --seed $(SEED)

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest tests/test_architecture.py

fuzz: setup-dev
	FUZZ_CASES=10000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_fuzz.py -n auto $(ARGS)

audit: setup-dev
	$(INSTALL) -e '.[audit]'
	$(BIN)/python tools/audit.py

licences: setup
	$(BIN)/python tools/licences.py

constraints: setup-dev
	$(BIN)/python tools/dependencies.py

setup: .setup-stamp
setup-dev: $(VENV)/.setup-dev-stamp

# With the stamps, `make` installs again only if pins or requirements have changed. pip is
# pinned too, because --build-constraint requires a recent version.
.setup-stamp: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo "installing harness and its dependencies into $(VENV); the first time takes a few minutes"
	@$(INSTALL) pip
	@$(INSTALL) --build-constraint constraints.txt -e .
	@touch $@

$(VENV)/.setup-dev-stamp: .setup-stamp
	@echo "installing the development dependencies"
	@$(INSTALL) --build-constraint constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/pyvenv.cfg:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then echo "creating $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); fi; \
	done; \
	echo "harness needs Python 3.11, 3.12 or 3.13 with its venv module, but none of python3.11, python3.12," >&2; \
	echo "python3.13, python3 is suitable. Install one, or set it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

clean:
	rm -rf $(VENV) .setup-stamp build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
