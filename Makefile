# Every target works alone on a fresh machine with Python 3.11+ and make. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/medssl-*))
PROJECTS := $(wildcard pyproject.toml plugins/*/pyproject.toml)

# Threads that wait for each other sleep: beside other jobs tests and demo are several times faster.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/installed ## create .venv with the core, every plugin and the test tools

$(VENV)/installed: $(PROJECTS) constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]' \
		$(foreach project,$(PLUGINS),--editable $(project))
	@touch $@

.PHONY: demo
demo: install ## archive to fine-tuned network on made-up DICOM, in minutes
	$(BIN)/medssl demo --out build/demo

.PHONY: lint
lint: install ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard plugins/medssl-*/medssl_*)

# A process for each core, each with one thread: the tests are many and small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: test
test: lint ## lint and every test that is not marked slow
	$(PYTEST)

.PHONY: test-all
test-all: lint ## lint and every test
	$(PYTEST) -m ''

.PHONY: test-lowest
test-lowest: install ## the story on the lowest versions that pyproject.toml allows
	$(BIN)/python -m pytest -m slow -k lowest tests/packaging/test_versions.py

.PHONY: test-newest
test-newest: install ## the story on the newest versions, on each of Python 3.11 to 3.13 in PATH
	$(BIN)/python -m pytest -m slow -k highest tests/packaging/test_versions.py

.PHONY: bench-training
bench-training: install ## training beside busy jobs and alone, the engine beside a plain loop; wants a quiet machine
	PYTHONPATH=tests $(BIN)/python -m benchmarks.training

.PHONY: bench-index
bench-index: install ## size and time of an index of ten million made-up images; takes 4 minutes and 4 GB of disk
	PYTHONPATH=tests $(BIN)/python -m benchmarks.index --instances 10000000

.PHONY: bench-volumes
bench-volumes: install ## crops, batches, writing, resampling and opening beside a copy in memory and beside peers
	PYTHONPATH=tests $(BIN)/python -m benchmarks.volumes

.PHONY: bench-tasks
bench-tasks: install ## what each task's question costs, beside a copy of the batch and beside peers; a loss beside MONAI's
	PYTHONPATH=tests $(BIN)/python -m benchmarks.tasks

.PHONY: bench-archive
bench-archive: install ## scanning, indexing and reading DICOM beside pydicom, MONAI's reader and the codecs alone
	PYTHONPATH=tests $(BIN)/python -m benchmarks.archive

.PHONY: staged-cases
staged-cases: install ## the table of docs/dicom.md: medssl beside MONAI's readers and dcm2niix; `pip install itk` first
	PYTHONPATH=tests $(BIN)/python -m staged docs/dicom.md

.PHONY: format
format: install ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: dist
dist: install ## wheels of the core and of each plugin in dist/
	@rm -rf dist
	@for project in . $(PLUGINS); do $(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist $$project || exit 1; done
	@ls dist

.PHONY: docs
docs: install ## write the generated parts of the docs again
	$(BIN)/python docs/generate.py

.PHONY: pictures
pictures: install ## draw the pictures in the READMEs of plugins again: each trains a small network, minutes
	$(BIN)/python docs/generate.py --pictures

.PHONY: clean
clean: ## remove everything that was made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
