# Every command of the project. `make` alone lists them.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

CARGO ?= cargo
NEOC := target/debug/neoc

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

.PHONY: setup
setup: ## Install what the build needs (Debian packages; uses sudo when not root)
	./setup.sh

.PHONY: guest
guest: setup ## Build the guest: Luau compiled to WebAssembly
	./guest/build.sh

.PHONY: guests
guests: setup ## Build the guest, and the one that runs Luau's own tests
	./guest/build.sh conformance

.PHONY: build
build: guest ## Build neoc
	$(CARGO) build

.PHONY: release
release: guest ## Build target/release/neoc, to be deployed (a quarter of an hour)
	$(CARGO) build --release

.PHONY: demo
demo: build ## Serve policies/demo.toml
	$(NEOC) host --policy policies/demo.toml

.PHONY: test
test: guests ## Run all tests
	$(CARGO) test --workspace
	cd guest && CARGO_TARGET_DIR=build/native $(CARGO) test

.PHONY: bench
bench: release ## Measure neoc beside its peers, half an hour (installs them, see bench/README.md)
	bench/install.sh
	python3 bench/run.py

.PHONY: format
format: ## Format the code
	$(CARGO) fmt --all
	cd guest && $(CARGO) fmt
	cd fuzz && $(CARGO) fmt

.PHONY: lint
lint: guests ## Check format and lints, warnings denied
	$(CARGO) fmt --all --check
	cd guest && $(CARGO) fmt --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cd guest && CARGO_TARGET_DIR=build/native $(CARGO) clippy --workspace --all-targets -- -D warnings

.PHONY: fuzz
fuzz: setup ## Fuzz the policy parser and the check of URLs, a minute each (installs cargo-fuzz)
	fuzz/run.sh 60

.PHONY: ci
ci: lint test fuzz ## What must pass before a change lands

.PHONY: clean
clean: ## Remove all that was built
	$(CARGO) clean
	rm -rf guest/build fuzz/target
