# Paddock: virtual machines on Kubernetes. `make help` lists what there is.

SHELL := /bin/bash
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Two hosts, a control plane and the quickstart's machines, running on this computer (KUBECONFIG=FILE: on that cluster)
	@e2e/demo.sh up

.PHONY: demo-down
demo-down: ## Remove what `make demo` started, without a trace
	@e2e/demo.sh down

.PHONY: build
build: ## Build every program (debug)
	@cargo build --workspace --all-targets

.PHONY: test
test: ## Unit, integration and end-to-end tests, ending in a line of counts (needs root or sudo)
	@e2e/test.sh all

.PHONY: test-unit
test-unit: ## Only the tests that need no root, network, KVM or control plane
	@e2e/test.sh unit

.PHONY: test-e2e
test-e2e: ## Only the end-to-end tests (NAME=part of a test's name)
	@e2e/test.sh e2e $(NAME)

.PHONY: test-long
test-long: ## As test, with 100,000 crashes, two million steps of the model and ten minutes of each fuzz target
	@PADDOCK_CRASH_POINTS=100000 PADDOCK_MODEL_STEPS=2000000 PADDOCK_FUZZ_SECONDS=600 e2e/test.sh all

.PHONY: fuzz
fuzz: ## Run every fuzz target (SECONDS=20 each)
	@e2e/fuzz.sh $(or $(SECONDS),20)

.PHONY: bench
bench: ## Figures of apply, steady state and guests: JSON under target/bench and a table
	@e2e/bench.sh

.PHONY: bench-vhd
bench-vhd: ## Figures of the vhd command beside QEMU: target/bench/vhd.json and a table (BENCH=--quick: to see that it works)
	@e2e/bench-vhd.sh $(BENCH)

.PHONY: lint
lint: ## Formatting, clippy, licences and sources, generated files
	@e2e/lint.sh

.PHONY: fmt
fmt: ## Format the sources
	@cargo fmt --all
	@$$(command -v gofmt || echo .tools/go/go/bin/gofmt) -w e2e/control-plane/*.go

.PHONY: generate
generate: ## Write the files that are made from the API's types
	@cargo run --quiet --package paddock-crds --bin crdgen

.PHONY: prepare
prepare: ## Install the Debian packages that the above need
	@e2e/prepare.sh

.PHONY: clean
clean: ## Remove build results of this checkout (not the cache shared by checkouts)
	@cargo clean
