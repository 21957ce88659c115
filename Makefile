# `make` alone says what there is. Everything happens in .venv and .run; nothing else on the machine is changed,
# except that on Debian, as root, missing Debian packages are installed, and that a cluster has network devices of its own.
PYTHON ?= python3
BIN := .venv/bin
NODE := .run/node
CHROMIUM := .run/chromium
# Most tests wait, for processes and services: more of them at a time than there are cores.
WORKERS ?= 4
# Where it is set, each of pytest's processes would rewrite all assertions again, and each program compile its modules.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help venv up down status demo hub-demo test test-stalled test-fast test-chaos test-hub test-rabbitmq test-rabbitmq-cluster test-compose test-cluster test-keda cluster-prepare cluster-up cluster-down lint release-check image sbom docs docs-reference docs-screenshots corpus fuzz chaos serve bench bench-compare bench-cluster clean

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 29

venv: $(BIN)/.complete  ## make the virtual environment

$(BIN)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed; PYTHON=... names another one."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh deploy/dev/need python3-venv
	@echo "  Installing Python packages into .venv ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[local,kubernetes,hub,test,dev,docs]'
	@touch $@

up: venv  ## start RabbitMQ, Docker, registry and git server where there are none; addresses in .run/env
	@$(BIN)/python -m deploy.dev up

down:  ## end what `make up` started
	@test ! -x $(BIN)/python || $(BIN)/python -m deploy.dev down

status: venv  ## say what `make up` started
	@$(BIN)/python -m deploy.dev status

demo: venv  ## build an image end to end and run it; REPO=https://... takes another repository
	@$(BIN)/python -m deploy.dev demo $(REPO)

hub-demo: venv $(NODE)/.complete  ## run a JupyterHub whose people build images, until Ctrl-C; ARGS=--check looks whether it works
	@$(BIN)/python -m deploy.dev hub-demo $(ARGS)

test: venv  ## run all tests against real services, in parallel; ARGS='-k cancel' chooses some, one after the other
	@$(BIN)/python -m deploy.dev run -- $(BIN)/pytest $(or $(ARGS),--numprocesses $(WORKERS))

test-stalled: venv  ## run them with event loops that stall at random, which shows what depends on the order of events
	@PYTHONPATH=$(CURDIR)/tests/stalls $(MAKE) --no-print-directory test

test-fast: venv  ## run the tests that need no service
	@$(BIN)/pytest tests/unit tests/contract $(ARGS)

test-cluster: venv  ## run the tests that need Kubernetes; KUBECONFIG chooses a cluster, without it one is made
	@$(BIN)/python -m tests.cluster.harness test -- $(ARGS)

test-keda: venv  ## run the chart's scaling by KEDA on such a cluster; compiles KEDA the first time
	@$(BIN)/python -m tests.cluster.harness run -- $(BIN)/pytest -m keda tests/cluster $(ARGS)

test-rabbitmq-cluster: venv  ## run the tests on a RabbitMQ of three nodes, which die during builds
	@$(BIN)/python -m deploy.dev run -- $(BIN)/pytest -m rabbitmq_cluster tests/rabbitmq_cluster $(ARGS)

test-compose: venv  ## run compose.yaml: up, builds over HTTP and AMQP, down
	@$(BIN)/python -m deploy.dev run -- $(BIN)/pytest -m compose tests/compose $(ARGS)

RABBITMQ ?= 4.3
test-rabbitmq: venv  ## run the tests that need RabbitMQ, one node and three, with version RABBITMQ=4.3
	@$(BIN)/python -m deploy.dev run --rabbitmq $(RABBITMQ) -- $(BIN)/pytest -m '(broker and not hub) or rabbitmq_cluster' $(or $(ARGS),--numprocesses $(WORKERS))

test-hub: venv $(NODE)/.complete $(CHROMIUM)/.complete  ## run the tests that need a JupyterHub, its proxy, BinderHub's client and Chromium
	@$(BIN)/python -m deploy.dev run -- $(BIN)/pytest --numprocesses 2 -m hub tests/hub $(ARGS)

$(NODE)/.complete:
	@command -v npm >/dev/null || sh deploy/dev/need npm
	@npm install --silent --no-audit --no-fund --prefix $(NODE) configurable-http-proxy@5.3.0 @jupyterhub/binderhub-client@0.5.0
	@touch $@

$(CHROMIUM)/.complete:
	@for name in "$${RABBIT2DOCKER_TEST_CHROMIUM:-chromium}" chromium-browser google-chrome google-chrome-stable; do \
		command -v "$$name" >/dev/null && exit 0; done; sh deploy/dev/need chromium fonts-dejavu-core
	@mkdir -p $(CHROMIUM) && touch $@

cluster-prepare: venv  ## compile, download and build everything that the cluster needs, and start nothing
	@$(BIN)/python -m tests.cluster.harness prepare

cluster-up: venv  ## start that cluster and keep it; addresses in .run/cluster/env
	@$(BIN)/python -m tests.cluster.harness up

cluster-down:  ## end what `make cluster-up` started
	@test ! -x $(BIN)/python || $(BIN)/python -m tests.cluster.harness down

lint: venv  ## style, types, import contracts, words, spelling, generated documents
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/python -m deploy.checks.words
	@$(BIN)/python -m rabbit2docker_schemas.documents --check
	@$(BIN)/python -m deploy.helm.schema --check
	@$(BIN)/python -m docs.generate --check

release-check: venv  ## look whether everything is ready for the release TAG=v0.1.0
	@$(BIN)/python -m deploy.release --tag $(TAG)

image: venv  ## build the image as IMAGE=registry.example.org/rabbit2docker, with its origin as labels
	@$(BIN)/python -m deploy.release --image $(IMAGE)

sbom: venv  ## write what IMAGE=registry.example.org/rabbit2docker:0.1.0 contains into .run/sbom.json, as CycloneDX
	@mkdir -p .run && $(BIN)/python -m deploy.sbom $(IMAGE) --output .run/sbom.json

docs: venv  ## build the documentation into .run/docs and check its links
	@$(BIN)/python -m docs .run/docs

docs-reference: venv  ## write the reference pages, schemas and chart schema from the code
	@$(BIN)/python -m docs.generate
	@$(BIN)/python -m rabbit2docker_schemas.documents
	@$(BIN)/python -m deploy.helm.schema

docs-screenshots: venv $(CHROMIUM)/.complete  ## take the screenshots of the pages anew
	@$(BIN)/python -m docs.screenshots docs/images

FAULTS ?= 1000
HOURS ?= 24
JOBS ?= 1
chaos: venv  ## kill, cut and fill at random, by SEED=… up to FAULTS=1000 or HOURS=24, and check that no promise was broken
	@$(BIN)/python -m deploy.dev run -- $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --faults $(FAULTS) --hours $(HOURS) --jobs $(JOBS)

test-chaos: venv  ## twenty of these faults, the same each time
	@$(MAKE) --no-print-directory chaos SEED=small FAULTS=20

INPUTS ?= 100000
fuzz: venv  ## try INPUTS=100000 hostile inputs at every door: messages, events, builder output, records, answers, HTTP
	@FUZZ_INPUTS=$(INPUTS) $(BIN)/pytest --numprocesses 2 --timeout 0 --dist worksteal tests/fuzz $(ARGS)

corpus: venv  ## record all failures of tests/corpus anew, which takes half an hour, and judge them
	@$(BIN)/python -m deploy.dev run -- $(BIN)/python -m tests.corpus.record --all
	@$(BIN)/pytest tests/unit/test_failure_corpus.py

serve: venv  ## run the consumer with the services up, until Ctrl-C
	@$(BIN)/python -m deploy.dev run -- $(BIN)/rabbit2docker run

bench: venv  ## measure; JSON goes to .run/benchmarks
	@$(BIN)/python -m deploy.dev run -- $(BIN)/python -m tests.benchmarks

bench-compare: venv  ## measure beside REFERENCE_URL=http://… and bare libraries, and compare with the last figures; ARGS=--help
	@$(BIN)/python -m deploy.dev run -- $(BIN)/python -m tests.benchmarks.compare $(ARGS)

bench-cluster: venv  ## measure builds in pods, on a cluster as `make test-cluster` has it
	@$(BIN)/python -m deploy.dev run -- $(BIN)/python -m tests.cluster.harness run -- $(BIN)/python -m tests.benchmarks kubernetes

clean: cluster-down down  ## remove .venv and .run
	@rm -rf .venv .run
