# Each target does all its own set-up: `make demo` or `make test` on a fresh clone is enough. A second call reuses it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed
TEST_READY := $(VENV)/.installed-test

.PHONY: demo test test-all test-gpu lint lock clean
demo: $(READY)
	$(VENV)/bin/fmwsss run configs/demo.yaml

# Every kind of test once: equations, a whole run, a cluster of three nodes, an S3 server.
test: $(TEST_READY)
	$(VENV)/bin/python -m pytest

# The rest: submitted jobs, processes killed in the middle, lost nodes, an autoscaler. About 40 minutes more.
test-all: $(TEST_READY)
	$(VENV)/bin/python -m pytest -m long

# The GPU path on the card of this machine; skipped where there is none. `make test` runs the same on a double of CUDA.
test-gpu: $(TEST_READY)
	$(VENV)/bin/python -m pytest -m gpu tests/gpu

lint: $(TEST_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# The same versions as constraints.txt, with the sha256 of every file that they are published as.
lock: $(READY)
	$(VENV)/bin/pip install --quiet "uv>=0.8"
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --constraint constraints.txt --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --extra segmenter --extra s3 pyproject.toml --output-file requirements.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else \
	  f"fmwsss needs Python 3.10 to 3.12; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[segmenter,s3]"
	@touch $(READY)

$(TEST_READY): $(READY)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $(TEST_READY)

clean:
	rm -rf $(VENV) runs build *.egg-info
