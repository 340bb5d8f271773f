# make demo   installs into .venv, then measures what the modality gap costs, offline
# make test   installs what the tests need, then runs them
# make test-lowest   the same with the lowest versions that pyproject.toml allows, in .venv-lowest
# make check  lint, format and types
# make docs   the documentation as a site, in site/
# make dist   wheel and sdist in dist/, and the demo from each in an environment of its own
#
# PyTorch's default package for Linux brings several GB of CUDA. On a machine without a GPU:
#   make demo TORCH_INDEX=<the index of CPU wheels that PyTorch's install page names>

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --constraint $(CURDIR)/constraints.txt
INSTALL := $(BIN)/python $(PIP_INSTALL)
TRY := fresh/bin/python $(PIP_INSTALL)
TORCH := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch

.PHONY: demo test test-lowest check docs dist clean

demo: $(VENV)/.installed
	$(BIN)/llama-gap demo

test: $(VENV)/.tools-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not server" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m server  # by themselves: a machine can run but one

# torch's oldest package for Linux brings 3 GB of CUDA. SMOKE=1, as .ci/run has it, runs a part of the tests only,
# and keeps the torch of constraints.txt.
LOWEST := .venv-lowest
SMOKED := tests/models/test_loading.py tests/embedding tests/store/test_milvus.py tests/index/test_search.py

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/llama-gap demo --articles 300 --queries 20 --folder $(LOWEST)/demo
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not server" --numprocesses 2 \
		--dist loadfile $(if $(SMOKE),$(SMOKED))

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) uv $(if $(SMOKE),$(TORCH))
	grep '^torch==' constraints.txt > $(LOWEST)/torch.txt
	UV_LINK_MODE=copy $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python $(if $(SMOKE),--override $(LOWEST)/torch.txt) \
		--resolution lowest-direct --editable '.[test]'
	touch $@

check: $(VENV)/.tools-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.tools-installed
	$(BIN)/python docs/make_site.py

# As whoever installs it has it: no checkout, no editable install
dist: $(VENV)/.tools-installed
	rm -rf dist
	$(BIN)/python -m build
	for made in $(CURDIR)/dist/*; do \
		(cd "$$(mktemp --directory)" && trap 'rm -rf "$$PWD"' EXIT && $(PYTHON) -m venv fresh && \
		$(TRY) $(TORCH) && $(TRY) $$made && fresh/bin/llama-gap demo --articles 300 --queries 20) \
		|| exit 1; \
	done

# torch first: whatever depends on it then keeps the build that is there
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): some minutes, 2 GB"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.tools-installed: $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) gap-demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
