# The one interface to this repository: `make` prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES  := proto services/internal services/auth services/fanout services/edge hack
PROGRAMS := services/auth/cmd/auth services/fanout/cmd/fanout services/edge/cmd/edge hack/feedsim/cmd/feedsim hack/loadtest/cmd/loadtest hack/dev
IMAGES   := services/edge/cmd/edge services/fanout/cmd/fanout services/auth/cmd/auth hack/feedsim/cmd/feedsim
RELEASE  := github.com/cutemarkets/relay/services/internal/version.release
FUZZTIME ?= 1m
TAG      ?= dev
PLATFORM ?= linux/$(shell go env GOARCH)
ARGS     ?=
# Where a cluster finds the images, if it knows their registry by another name than this machine.
IMAGE_REGISTRY ?= $(KO_DOCKER_REPO)
# How the test of a cluster lets the API server stand still for a while, on the machine of that server.
API_PAUSE  ?= pkill -STOP -x kube-apiserver
API_RESUME ?= pkill -CONT -x kube-apiserver
KIND     := KUBECONFIG=$(CURDIR)/.kind/kubeconfig KO_DOCKER_REPO=localhost:5001 \
	API_PAUSE='docker exec relay-control-plane pkill -STOP -x kube-apiserver' API_RESUME='docker exec relay-control-plane pkill -CONT -x kube-apiserver'

.PHONY: help
help: ## Print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: up
up: build ## Run the whole relay on this machine (ARGS="--processes --edges 3 …"; ARGS=--help tells more)
	@bin/dev $(ARGS)

.PHONY: build
build: ## Build all programs into bin/
	@mkdir -p bin
	@echo "building $(notdir $(PROGRAMS)) into bin/ (a few minutes the first time)" >&2
	@go build -o bin/ $(addprefix ./,$(PROGRAMS))

.PHONY: images
images: ## Build the images and push them (KO_DOCKER_REPO=registry.example.com/relay TAG=dev PLATFORM=linux/amd64,linux/arm64)
	@command -v ko >/dev/null || { echo "images: ko is missing: go install github.com/google/ko@v0.19.1 (or see https://ko.build/install)" >&2; exit 1; }
	@[ -n "$(KO_DOCKER_REPO)" ] || { echo "images: where to? make images KO_DOCKER_REPO=registry.example.com/relay" >&2; exit 1; }
	@KO_DOCKER_REPO=$(KO_DOCKER_REPO) GOFLAGS="$(GOFLAGS) -ldflags=-X=$(RELEASE)=$(TAG)" ko build -B --platform=$(PLATFORM) -t $(TAG) $(addprefix ./,$(IMAGES))

.PHONY: deps
deps: ## Install what tests and lint need beside Go (redis-server, node, chromium, python3-websocket, shellcheck)
	@hack/scripts/deps

.PHONY: test
test: deps bin/helm3 ## Run all tests with the race detector
	@go test -race -timeout 10m $(shell go list work | grep -vE '/hack/(e2e|charttest)')
	@go test -count 1 ./hack/charttest -helm 3 # a cached result would not know that the chart has changed
	@go test -race -timeout 15m -parallel 3 ./hack/e2e

.PHONY: chart-test
chart-test: bin/helm3 bin/helm4 ## Render the chart with Helm 3 and Helm 4
	@go test -count 1 ./hack/charttest

.PHONY: bench
bench: ## Run every benchmark once
	@go test -run '^$$' -bench . -benchtime 1x work

.PHONY: bench-edge
bench-edge: build deps ## Measure an edge beside what the kernel itself costs, about half an hour (ARGS="--parts delivery --shapes S2b400 …"; ARGS=--help tells more)
	@go build -o bin/ ./hack/benchedge/cmd/benchedge
	@bin/benchedge $(ARGS)

.PHONY: bench-fanout
bench-fanout: build ## Measure fanout beside a bare reader of the vendor's socket, some ten minutes (ARGS="--rates 175000 --rounds 1 …"; ARGS=--help tells more)
	@go build -o bin/ ./hack/benchfanout/cmd/benchfanout
	@bin/benchfanout $(ARGS)

.PHONY: lint
lint: bin/golangci-lint ## Lint every module and shell script
	@hack/scripts/shellcheck
	@for m in $(MODULES); do echo "lint $$m" >&2; (cd $$m && $(CURDIR)/bin/golangci-lint run --allow-parallel-runners ./...); done

bin/golangci-lint: tools/lint/go.mod
	@mkdir -p bin
	@echo "building golangci-lint (a few minutes the first time)" >&2
	@cd tools/lint && GOWORK=off go build -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

bin/helm3 bin/helm4: bin/helm%: tools/helm/go.mod
	@mkdir -p bin
	@echo "building helm $* (a few minutes the first time)" >&2
	@cd tools/helm && GOWORK=off go build -o $(CURDIR)/$@ helm.sh/helm/v$*/cmd/helm
	@touch $@

.PHONY: generate
generate: ## Generate code from proto/ and tables from the flags
	@hack/scripts/generate

.PHONY: verify
verify: ## Check that what is generated is fresh and that each module stands alone
	@hack/scripts/verify $(MODULES)

.PHONY: tidy
tidy: ## Bring all modules to equal versions and tidy them
	@go work sync
	@for m in $(MODULES); do (cd $$m && GOWORK=off go mod tidy); done

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (1m)
	@hack/scripts/fuzz $(FUZZTIME) $(MODULES)

.PHONY: ci
ci: ## Run what CI runs
	@.ci/run

.PHONY: long
long: deps fuzz chart-test model ## Run what takes longer than CI may: fuzzing, Helm 4, the fault models, faults of real servers, a million checked events with ten outages, a client far away, soak, stop, hand-over, bench-edge, bench-fanout
	@hack/scripts/fuzz 5m services/edge/internal/frame
	@cd services/edge && go test -tags long -timeout 5m -run TestClientFarAway -v ./internal/engine
	@go test -timeout 20m -run 'TestPath|TestReplay' -v ./hack/e2e
	@go test -tags long -timeout 45m -run 'TestSoak|TestStop' -v ./hack/e2e
	@go test -tags long -timeout 30m -run 'TestLock|TestLongStorm|TestSilentStall' -v ./hack/e2e
	@go test -tags long -timeout 30m -run 'TestHandoverFaults|TestEdgeStream|TestStoppedEdge' -v ./hack/e2e
	@$(MAKE) bench-edge
	@$(MAKE) bench-fanout
	@echo "long: all passed" >&2

.PHONY: model
model: ## Run the fault models of lock, lease and hand-over with 10,000 runs of each class of faults, and with parts switched off
	@cd services/edge && go test -count 1 -timeout 30m -run TestModel -v ./internal/lock -args -seeds 10000
	@cd services/internal && go test -count 1 -timeout 30m -run TestModel -v ./lease -args -seeds 10000
	@cd services/fanout && go test -count 1 -timeout 30m -run TestModel -v ./internal/upstream -args -seeds 10000

.PHONY: deploy
deploy: cluster-given images ## Install the chart with a simulated vendor on any cluster (KUBECONFIG=… KO_DOCKER_REPO=…)
	@IMAGE_REGISTRY=$(IMAGE_REGISTRY) TAG=$(TAG) hack/scripts/deploy $(ARGS)

.PHONY: cluster-test
cluster-test: IMAGES += hack/watch/cmd/watch
cluster-test: cluster-given images ## Test the chart on any cluster, in a namespace of its own (KUBECONFIG=… KO_DOCKER_REPO=… KEEP=1)
	@IMAGE_REGISTRY=$(IMAGE_REGISTRY) TAG=$(TAG) API_PAUSE='$(API_PAUSE)' API_RESUME='$(API_RESUME)' go test -tags kubernetes -count 1 -timeout 30m -v ./hack/e2e/kubernetes

.PHONY: cluster-given
cluster-given:
	@[ -n "$${KUBECONFIG:-}" ] || { echo "which cluster? make $(MAKECMDGOALS) KUBECONFIG=FILE KO_DOCKER_REPO=registry.example.com/relay" >&2; exit 1; }
	@for t in kubectl helm ko; do command -v $$t >/dev/null || { echo "$$t is not on the PATH" >&2; exit 1; }; done

.PHONY: kind-up
kind-up: ## Make a cluster in Docker, with a registry
	@mkdir -p .kind
	@$(KIND) hack/kind/up

.PHONY: kind-deploy
kind-deploy: ## make deploy on that cluster
	@$(MAKE) deploy $(KIND)

.PHONY: kind-test
kind-test: ## make cluster-test on that cluster
	@$(MAKE) cluster-test $(KIND)

.PHONY: kind-down
kind-down: ## Remove that cluster and its registry
	@$(KIND) hack/kind/down

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin .bench .dev tools/buf/node_modules
