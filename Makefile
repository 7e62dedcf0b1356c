# make demo    real data through the five verbs, in separate processes and in one
# make test    every test: Rust, C, C++, Python, Ray, faults, fuzzing
# make soak    the long campaigns: thousands of faults, ten million inputs
# make bench   beside pylance, and beside lance-ray; writes benches/RESULTS.md
# make lint    formats, clippy, ruff, mypy, header drift
# make header  regenerate include/lance_tasks/lance_tasks.h and the JSON Schema
# make install PREFIX=/usr/local
#
# Each installs what it lacks, and says so: Debian packages, and a Python environment in .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
# Outside of the checkout, so that a clean clone does not build Lance again.
export CARGO_TARGET_DIR ?= $(CACHE)/lance-tasks/target
export LANCE_TASKS_LIB_DIR := $(CARGO_TARGET_DIR)/release
export LANCE_TASKS_LIBRARY := $(LANCE_TASKS_LIB_DIR)/liblance_tasks.so
export LANCE_TASKS_BIN := $(LANCE_TASKS_LIB_DIR)/lance-tasks
# Ray would ask for a token between processes of one machine.
export RAY_AUTH_MODE := disabled

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PREFIX ?= /usr/local

# Of the small crates beside this one, which do not link Lance.
SMALL := $(CARGO_TARGET_DIR)-small
NODE := $(VENV)/node

.PHONY: help build tools venv node demo test test-rust test-c test-cpp test-abi test-install \
	test-python test-ray test-faults test-fuzz test-loom soak soak-loom soak-races soak-fuzz soak-faults soak-ray \
	bench lint header check-header install clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# What a build needs beyond Rust and Python.
tools:
	@missing=(); \
	command -v protoc >/dev/null || missing+=(protobuf-compiler); \
	command -v gcc >/dev/null || missing+=(gcc); \
	command -v g++ >/dev/null || missing+=(g++); \
	command -v cmake >/dev/null || missing+=(cmake); \
	command -v pkg-config >/dev/null || missing+=(pkg-config); \
	command -v $(PYTHON) >/dev/null || missing+=(python3); \
	$(PYTHON) -c "import ensurepip" 2>/dev/null || missing+=(python3-venv); \
	command -v cargo >/dev/null || { echo "lance-tasks: install Rust 1.94 or later (https://rustup.rs)"; exit 1; }; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "lance-tasks: installing Debian packages: $${missing[*]}"; \
		SUDO=; [ "$$(id -u)" = 0 ] || SUDO=sudo; \
		$$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq "$${missing[@]}" >/dev/null; \
	fi

venv: tools $(VENV)/.stamp
$(VENV)/.stamp: tests/python/requirements.txt | tools
	@echo "lance-tasks: making the Python environment $(VENV) (pylance, pyarrow, pytest and others)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -r $<
	@touch $@

# Emulators of object stores, where there is npm; their tests say that they are skipped where not.
node: venv
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(NODE)/.stamp; \
	else echo "lance-tasks: no npm: the tests on Azurite and s3rver are skipped"; fi
$(NODE)/.stamp: tests/python/package.json tests/python/package-lock.json
	@echo "lance-tasks: installing Azurite and s3rver into $(NODE)"
	@mkdir -p $(NODE) && cp $^ $(NODE)/ && cd $(NODE) && npm ci --no-audit --no-fund --silent
	@touch $@

build: tools
	@test -d "$(CARGO_TARGET_DIR)/release" || echo "lance-tasks: first build into $(CARGO_TARGET_DIR): most of an hour on 2 cores"
	cargo build --release --locked

demo: build venv
	$(PY) examples/demo/demo.py

test: test-rust test-abi test-c test-cpp test-install test-loom test-fuzz test-python test-ray test-faults

test-rust: build
	cargo test --release --locked --lib --bins --tests

test-abi: build
	tests/abi/run.sh

test-c: build
	tests/c/run.sh
	tests/c/run.sh --sanitize

test-cpp: build
	tests/cpp/run.sh
	tests/cpp/run.sh --sanitize

test-install: build
	packaging/smoke.sh

test-python: build venv node
	$(PY) -m pytest tests/python -q -n 3 --dist loadfile

# Two simulated nodes on this machine.
test-ray: build venv
	$(PY) -m pytest tests/ray -q -n 2

test-faults: build venv
	$(PY) -m pytest tests/faults -q -n 2

test-fuzz: build
	cargo run --release --locked --target-dir $(SMALL) --manifest-path tests/fuzz/Cargo.toml -- --inputs 200000 --seed 1

test-loom: tools
	LOOM_MAX_PREEMPTIONS=3 cargo test --release --locked --target-dir $(SMALL) --manifest-path tests/loom/Cargo.toml --lib

soak: soak-loom soak-races soak-fuzz soak-faults soak-ray

soak-loom: tools
	LOOM_MAX_PREEMPTIONS=5 cargo test --release --locked --target-dir $(SMALL) --manifest-path tests/loom/Cargo.toml --lib

soak-races: build
	LANCE_TASKS_SECONDS=300 LANCE_TASKS_TEST_TIMEOUT=900 tests/c/run.sh

soak-fuzz: build
	cargo run --release --locked --target-dir $(SMALL) --manifest-path tests/fuzz/Cargo.toml -- --inputs 10000000

# Faults at other moments in each round.
soak-ray: build venv
	for round in $$(seq 10); do RAY_FAULTS_SEED=$$RANDOM $(PY) -m pytest tests/ray/test_faults.py -q || exit 1; done

# At least a thousand faults per operation, and how each ended.
soak-faults: build venv
	$(PY) tests/faults/soak.py

bench: build venv
	$(PY) benches/bench.py
	$(PY) benches/on_ray.py

# Empty where the build itself is clippy's (.ci/run).
CLIPPY := cargo clippy --release --locked --all-targets -- -D warnings

# What needs no build comes first.
lint: tools venv
	for crate in . tests/fuzz tests/loom; do \
		cargo fmt --check --manifest-path $$crate/Cargo.toml || exit 1; \
	done
	$(VENV)/bin/ruff check python tests examples benches hatch_build.py
	$(VENV)/bin/ruff format --check python tests examples benches hatch_build.py
	$(VENV)/bin/mypy
	$(MAKE) --no-print-directory check-header
	$(CLIPPY)
	for crate in tests/fuzz tests/loom; do \
		cargo clippy --release --locked --all-targets --target-dir $(SMALL) \
			--manifest-path $$crate/Cargo.toml -- -D warnings || exit 1; \
	done

header: build
	tests/abi/check_header.sh --write
	$(LANCE_TASKS_BIN) schema > include/lance_tasks/lance_tasks.schema.json

check-header: build
	tests/abi/check_header.sh
	@diff <($(LANCE_TASKS_BIN) schema) include/lance_tasks/lance_tasks.schema.json \
		|| { echo "include/lance_tasks/lance_tasks.schema.json is stale: make header"; exit 1; }

install: build
	packaging/install.sh "$(PREFIX)"

clean:
	rm -rf build dist python/lance_tasks/*.so
