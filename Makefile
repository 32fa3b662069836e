# Everything runs in .venv, which `make setup` builds. SCALE is smoke, small (the default) or paper.
SCALE ?= small
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.complete
export PATH := $(BIN):$(PATH)
export HF_HUB_OFFLINE ?= $(if $(filter paper,$(SCALE))$(filter verify-released,$(MAKECMDGOALS)),0,1)
export TOKENIZERS_PARALLELISM := false
# Keep freed memory instead of giving it back to the system and asking again at every step.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 268435456

FAMILY ?= qwen2_vl

BENCH ?=

GPU ?=
RELEASED ?=

VERIFY ?=

DOCTOR ?=

MUTATE ?=
MUTATION_WORKERS ?= 2

.PHONY: setup try lock doctor calibrate repro report verify-claims verify-released rehearsal bench bench-engines gpu fetch-smollm2 real-cell tune readme docs docs-serve test test-fast test-engines lock-engines weekly fuzz mutation determinism lint help

help:
	@echo "make try                              GRACE in five minutes: data, models, training, INT4, an answer"
	@echo "make doctor [SCALE=...]               what this machine lacks, and what every table costs"
	@echo "make repro [SCALE=smoke|small|paper] [TABLE=table4]  rebuild every table, or one"
	@echo "make calibrate [FAMILY=...]           train and judge the rows that are not GRACE alone"
	@echo "make report [SCALE=...]               the page of results, from the results that there are"
	@echo "make verify-claims [SCALE=...] [VERIFY='--long|--strict']  what was measured against what was reported"
	@echo "make rehearsal                        scale paper on tiny checkpoints and data"
	@echo "make verify-released [RELEASED='--models ...']  the authors' checkpoints against their tables"
	@echo "make bench [BENCH='--variants all']    speed and memory of LLaVA-1.5-7B, BF16 and INT4, and of the method"
	@echo "make bench-engines                    the same in llama.cpp, vLLM, torchao and bitsandbytes, an hour or more"
	@echo "make gpu [GPU=--rehearse]             kernels, losses and decoding on a CUDA device, ten minutes, no network"
	@echo "make fetch-smollm2                    a small published language model, 93 MB, for make real-cell"
	@echo "make real-cell                        the cell of the map with that model: text, about two hours"
	@echo "make tune [FAMILY=...] [SCALE=...]    the best of every method's candidates, on validation questions"
	@echo "make readme                           write the README's results from the result files"
	@echo "make lock                             renew requirements/lock.txt: the newest versions that fit"
	@echo "make docs                             build the documents and the API pages into site/"
	@echo "make docs-serve                       serve them at http://127.0.0.1:8000"
	@echo "make test                             the tests of what a change can break"
	@echo "make test-fast                        those that take less than half a second each"
	@echo "make test-engines                     the exports in vLLM, in an environment of its own: Linux, x86-64"
	@echo "make lock-engines                     renew requirements/engines.txt"
	@echo "make weekly                           the other tests: kills, fuzzing, engines, rehearsal, determinism, mutation"
	@echo "make fuzz                             give every loader thousands of bad inputs"
	@echo "make mutation [MUTATE='grace.int4.*'] is every change of the code noticed by a fast test?"
	@echo "make determinism                      the smoke replication twice: are all bytes the same?"
	@echo "make lint                             ruff, mypy and the order of imports"

setup: $(STAMP)

LOCK := requirements/lock.txt
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c $(LOCK)
EXTRAS := replication,test,docs
NO_DEPS := lmms-eval torchvision

$(STAMP): pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"error: $(LOCK) is for Python 3.11 to 3.13, and this is {v[0]}.{v[1]}; set PYTHON to one of them")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools
	$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	$(PIP) --no-deps $(NO_DEPS)
	@touch $@

# The newest release of everything, within the ranges of pyproject.toml.
lock: setup
	$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" -o $(LOCK)

try: setup
	$(BIN)/python recipes/five_minutes.py

doctor: setup
	$(BIN)/python -m replication.doctor "$(SCALE)" $(DOCTOR)

repro: setup
	$(BIN)/python -m replication.scale $(if $(filter undefined,$(origin TABLE)),,--table "$(TABLE)") "$(SCALE)" repro

report: setup
	$(BIN)/python -m replication.scale "$(SCALE)" repro --single-item report

verify-claims: setup
	$(BIN)/python -m replication.verify --scale "$(SCALE)" $(VERIFY)

rehearsal: setup
	$(BIN)/python -m replication.rehearsal
	$(BIN)/python -m replication.rehearsal repro --dry  # nothing is left to do

verify-released: setup
	$(BIN)/python -m replication.released $(RELEASED)

bench: setup
	$(BIN)/python -m replication.bench speed $(BENCH)
	$(BIN)/python -m replication.bench method

# On a machine whose Python has torch and transformers, and perhaps no network: nothing is installed.
gpu:
	$(PYTHON) -m replication.gpu $(GPU)

calibrate: setup
	$(BIN)/python -m replication.calibrate "$(SCALE)" $(if $(filter file,$(origin FAMILY)),,$(FAMILY))

# GGUF is the format of the file that it comes in.
fetch-smollm2: setup
	$(PIP) gguf
	$(BIN)/python -m replication.real_cell fetch

real-cell: setup
	$(BIN)/python -m replication.real_cell run

tune: setup
	$(BIN)/python -m replication.scale "$(SCALE)" repro tuning@$(FAMILY)

readme: setup
	$(BIN)/python -m replication.report.documents.readme

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# A file of tests stays in one process: its fixtures are made once.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10 --ignore tests/engines

# What a change can break; the rest runs weekly.
test: setup
	$(PYTEST) -m "not weekly"

test-fast: setup
	$(PYTEST) -m "not slow and not weekly"

weekly: setup
	$(PYTEST) -m weekly
	$(MAKE) fuzz
	$(MAKE) test-engines
	$(MAKE) rehearsal
	$(MAKE) determinism
	$(MAKE) mutation

# vLLM wants other versions than the rest, and the CPU build of torch, which comes from where
# PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL (UV_FIND_LINKS, UV_INDEX) say. Everything is installed as
# locked, and nothing else: torchaudio and torchcodec, which it names, do not load beside this torch
# and are not needed.
ENGINES := .venv-engines
ENGINES_LOCK := requirements/engines.txt
ENGINES_STAMP := $(ENGINES)/.complete
test-engines lock-engines $(ENGINES_STAMP): export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
test-engines lock-engines $(ENGINES_STAMP): export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
test-engines lock-engines $(ENGINES_STAMP): export UV_INDEX_STRATEGY ?= unsafe-best-match

$(ENGINES_STAMP): pyproject.toml $(ENGINES_LOCK) $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(ENGINES)
	$(BIN)/uv pip install -q --python $(ENGINES)/bin/python --no-deps -r $(ENGINES_LOCK)
	$(BIN)/uv pip install -q --python $(ENGINES)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

lock-engines: setup
	$(BIN)/uv pip compile -q requirements/engines.in pyproject.toml --upgrade \
		--python-platform x86_64-manylinux_2_28 --python-version 3.11 \
		--no-emit-package torchaudio --no-emit-package torchcodec \
		--no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command "make lock-engines" -o $(ENGINES_LOCK)

# ENGINES_STUDENTS=DIR keeps the students, ENGINES_KERNEL=plain leaves vLLM's own kernel out.
ifeq ($(shell uname -sm),Linux x86_64)
test-engines: $(ENGINES_STAMP)
	$(ENGINES)/bin/python -m pytest tests/engines --confcutdir tests/engines -rs --durations 10
else
test-engines:
	@echo "not run: $(ENGINES_LOCK) is for Linux on x86-64"
endif

# The decoders of two published models in every engine: one to two hours on two cores.
bench-engines: $(ENGINES_STAMP)
	$(BIN)/python -m replication.bench speed --models llava-1.5-7b,qwen2-vl-2b --no-image --words 640 \
		--variants bf16,float32,int4,int4_float32,int8,nf4,torchao,llama_cpp,openvino,vllm_bf16,vllm_int4 --batches 1,4,16,32 \
		--rounds 2 --repeats 1 --decode-repeats 2 --tokens 8 --out results/engines $(BENCH)

fuzz: setup
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz

mutation: setup
	$(if $(MUTATE),,rm -rf mutants)
	$(BIN)/mutmut run --max-children $(MUTATION_WORKERS) $(MUTATE)
	$(BIN)/python tests/mutation_score.py

determinism: setup
	$(BIN)/python tests/replication/twice.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
