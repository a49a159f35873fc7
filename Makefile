# kvstore. 'make' lists what there is to make; a fresh Debian needs only python3 and make for it.

PYTHON ?= python3
# Three times the cores: many tests wait for a second to pass, or for a server to start.
JOBS ?= $(shell echo $$((3 * $$(nproc))))
ARGS ?=

# The folder's mark names Python's version: choosing another one makes the environment anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv
READY := $(VENV)/ready-$(VERSION)
PEERS := $(VENV)/peers-$(VERSION)
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help run test quick check format torture mutations containers bench dist constraints clean
.DEFAULT_GOAL := help
# Images of containers often set it; then each of the thousands of processes compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@awk -F ': .*## ' '/^[a-z]+: .*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the Python (3.11 or newer); ARGS='...' goes to 'make run' and 'make test'."

run: $(READY) ## start the service on 127.0.0.1: HTTP on port 5000, ZeroMQ on 5555 and 5556
	@exec $(BIN)/kvstore serve $(ARGS)

test: $(READY) ## run all tests that take minutes, not hours
	@tools/needs cc libzmq3-dev chromium node npm curl bash-completion zsh fish shellcheck systemd-analyze nginx haproxy prometheus promtool faketime
	@$(PYTEST) $(ARGS)

quick: $(READY) ## run in some twenty seconds the tests that need no server
	@$(PYTEST) -n $$(($$(nproc) + 1)) -m quick --no-header -q $(ARGS)

check: $(READY) ## lint, format and strict types, as CI runs them
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(READY) ## format the code and write the generated part of the client anew
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/python tools/unasync.py

torture: $(READY) ## break the service in every way for as long as it takes; TORTURE=0.1: a tenth of it
	@TORTURE=$(or $(TORTURE),1) $(BIN)/python -m pytest -m torture --timeout 7200 -s $(ARGS)

mutations: $(READY) ## take away what each operation and route needs, and see that a test notices each
	@$(BIN)/python tools/needs_mutations.py $(ARGS)

containers: $(READY) ## build the image and try it and docker-compose.yaml; needs a container engine
	@$(BIN)/python -m pytest -s tests/containers $(ARGS)

bench: $(PEERS) ## measure beside etcd and Redis; QUICK=1: three minutes, ONLY=http_get,http_put: some rows
	@PYTHONPATH=benchmarks $(BIN)/python -m kvstore_bench \
		$(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(ARGS)

dist: $(READY) ## build the wheel and the sdist into dist, the same bytes every time
	@rm -rf dist
	@$(BIN)/python -m hatchling build -d dist

constraints: ## resolve the files of constraints anew from pyproject.toml
	@$(PYTHON) tools/constraints.py

clean: ## remove what was built here; stores are left alone
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name node_modules -prune -exec rm -rf {} +

$(PEERS): $(READY) benchmarks/constraints.txt tools/peers
	@tools/peers $(VENV)
	@touch $@

$(READY): pyproject.toml constraints.txt tools/environment
	@tools/environment "$(PYTHON)" $(VENV)
	@touch $@
