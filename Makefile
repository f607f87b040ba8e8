# make run       environment, then the ePVS study on generated images: from nothing to a leaderboard
# make test      environment with what the tests need, then the tests on all cores (ARGS=… goes to pytest)
# make check     ruff, mypy and the architecture test
# make licences  rewrite THIRD_PARTY_LICENSES.md; make constraints rewrites constraints.txt
# make clean     remove the environment and everything derived from the sources; results stay
#
# PYTHON=/path/to/python chooses an interpreter. pip's own settings are respected.

VENV := .venv
BIN := $(VENV)/bin
# setuptools warns of every editable installation whose folders are mapped, as tasks/ is here.
INSTALL = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test check licences constraints setup setup-dev clean
.DELETE_ON_ERROR:

run: setup
	$(BIN)/harness run task=epvs $(WORDS)

test: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

licences: setup
	$(BIN)/python tools/licences.py

constraints: setup-dev
	$(BIN)/python tools/dependencies.py

setup: .setup-stamp
setup-dev: $(VENV)/.setup-dev-stamp

# The stamps keep a second `make` from installing anything until the pins or the
# requirements change. pip itself is pinned too: --build-constraint is recent.
.setup-stamp: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo "installing harness and what it needs into $(VENV); the first time takes some minutes"
	@$(INSTALL) pip
	@$(INSTALL) --build-constraint constraints.txt -e .
	@touch $@

$(VENV)/.setup-dev-stamp: .setup-stamp
	@echo "installing what the tests need"
	@$(INSTALL) --build-constraint constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/pyvenv.cfg:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); fi; \
	done; \
	echo "harness needs Python 3.11, 3.12 or 3.13 with its venv module, and none of python3.11, python3.12," >&2; \
	echo "python3.13, python3 is one. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1

clean:
	rm -rf $(VENV) .setup-stamp build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
