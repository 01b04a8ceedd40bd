# Each target does all its own set-up: `make demo` or `make test` on a fresh clone is enough. A second call reuses it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed

.PHONY: demo test test-long lint clean
demo: $(READY)
	$(VENV)/bin/fmwsss run configs/demo.yaml

test: $(READY)
	$(VENV)/bin/python -m pytest

# What takes minutes each: whole clusters, processes killed in the middle. On a quiet machine.
test-long: $(READY)
	$(VENV)/bin/python -m pytest -m long

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else \
	  f"fmwsss needs Python 3.10 to 3.12; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info
