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
FRAMEWORKS := $(VENV)/contrib/ready-$(VERSION)
RENDERER := $(VENV)/docs/ready-$(VERSION)
BIN := $(VENV)/bin
# The same environment, with the compiled wheel in the place of the editable install.
COMPILED := $(VENV)/compiled
COMPILED_READY := $(COMPILED)/ready-$(VERSION)
# What 'make test' installs where it is not there.
PROGRAMS := cc libzmq3-dev chromium-headless-shell node npm curl jq bash-completion zsh fish mandoc shellcheck systemd-analyze nginx haproxy \
	prometheus promtool faketime etcd etcdctl
# Asserts are rewritten when a test is loaded for the first time. Workers that begin together would each do that
# for all tests; here two processes do half of it each.
LOADED := [ -d tests/engine/__pycache__ ] || { $(BIN)/python -m pytest --collect-only -qq tests/[!a-d]*/ & \
	$(BIN)/python -m pytest --collect-only -qq tests/[a-d]*/; wait; } >/dev/null
# The limit is for a test that hangs. The default of a minute is for one that is run by itself; here all cores
# are busy, and a slow disk under them must not decide which test passes.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --timeout 180

.PHONY: help run test test-etcd test-compiled compiled quick check format docs js vendor screenshots torture torture-cluster mutations containers installs bench dist constraints clean
.DEFAULT_GOAL := help
# Images of containers often set it; then each of the thousands of processes compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+: .*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the Python (3.11 or newer); ARGS='...' goes to 'make run' and 'make test'."

run: $(READY) ## start the service on 127.0.0.1: HTTP on port 5000, ZeroMQ on 5555 and 5556
	@exec $(BIN)/kvstore serve $(ARGS)

test: $(READY) $(FRAMEWORKS) ## run all tests that take minutes, not hours
	@tools/needs $(PROGRAMS)
	@$(LOADED)
	@$(PYTEST) $(ARGS)

test-etcd: $(READY) ## run the suites of the service with all stores in etcd
	@tools/needs $(PROGRAMS)
	@$(PYTEST) --engine etcd $(addprefix tests/,engine daemon http_core http cli client access service etcd) $(ARGS)

test-compiled: $(COMPILED_READY) ## run on the compiled wheel the suites of what is compiled, and of what stands on it
	@tools/needs $(PROGRAMS)
	@$(COMPILED)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		$(addprefix tests/,engine daemon client access http http_core service \
		project/test_compiled.py project/test_package.py) $(ARGS)

compiled: $(COMPILED_READY) ## compile core, client and daemon, and install them in .venv/compiled

quick: $(READY) ## run in some twenty seconds the tests that need no server
	@$(PYTEST) -n $$(($$(nproc) + 1)) -m quick --no-header -q $(ARGS)

check: $(READY) ## lint, format and strict types, as CI runs them
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(READY) ## format the code and write anew what is generated: part of the client, the man pages
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format
	@$(BIN)/python tools/unasync.py
	@$(BIN)/python tools/man_pages.py

screenshots: $(READY) ## take the pictures of the page in docs/images anew, from a real service
	@KVSTORE_SCREENSHOTS=1 $(BIN)/python -m pytest -q tests/http/test_http_ui_screenshots.py

docs: $(READY) $(RENDERER) ## build the site into site/, and check its links; needs npm
	@PYTHONPATH=tools $(BIN)/python -m docs_site.pages build/docs
	@PYTHONPATH=tools $(BIN)/python -m docs_site.typedoc build/docs/reference/javascript.md
	@PYTHONPATH=core:tools NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict
	@PYTHONPATH=tools $(BIN)/python -m docs_site.check site
	@echo "kvstore: the documentation is in site/index.html"

js: ## build kvstore.js from js/src, type-checked, and put it where the facade serves it; needs npm
	@cd js && npm ci --ignore-scripts --no-audit --no-fund && npm run build
	@cp js/dist/kvstore.js http/kvstore_http/ui/kvstore.js

vendor: ## bundle the libraries of the page from the versions in js/vendor, with their licences; needs npm
	@cd js/vendor && npm ci --ignore-scripts --no-audit --no-fund && npm run build

torture: $(READY) ## break the service in every way for as long as it takes; TORTURE=0.1: a tenth of it
	@TORTURE=$(or $(TORTURE),1) $(BIN)/python -m pytest -m torture --timeout 7200 -s $(ARGS)

torture-cluster: $(READY) ## kill and stop the members of an etcd, and the daemons over it; TORTURE=0.3: a third of it
	@TORTURE=$(or $(TORTURE),1) $(BIN)/python -m pytest -m torture --timeout 7200 -s $(ARGS) tests/etcd

mutations: $(READY) ## take away what each operation and route needs, and see that a test notices each
	@$(BIN)/python tools/needs_mutations.py $(ARGS)

containers: $(READY) ## build the image and try it and docker-compose.yaml; needs a container engine
	@$(BIN)/python -m pytest -s tests/containers $(ARGS)

installs: $(READY) dist ## install what 'make dist' builds with every Python that is here, and try it; PYTHONS='...' names others
	@tools/needs etcd
	@$(BIN)/python -m pytest tests/installs $(ARGS)

# FORM=compiled BEFORE=. measures the compiled form beside the pure one
bench: $(PEERS) $(if $(FORM),$(COMPILED_READY)) ## measure beside etcd and Redis; QUICK=1: three minutes, ONLY=http_get,http_put: some rows, BEFORE=CHECKOUT: that one, too, FORM=compiled
	@PYTHONPATH=benchmarks $(if $(FORM),$(COMPILED)/bin,$(BIN))/python -m kvstore_bench \
		$(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(BEFORE),--before $(BEFORE)) $(ARGS)

dist: $(READY) ## build the wheel and the sdist into dist, the same bytes every time
	@rm -rf dist
	@$(BIN)/python -m hatchling build -d dist

constraints: ## resolve the files of constraints anew from pyproject.toml
	@$(PYTHON) tools/constraints.py

clean: ## remove what was built here; stores are left alone
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name node_modules -prune -exec rm -rf {} +

$(COMPILED_READY): $(READY) tools/compiled tools/compile_wheel.py $(shell find core client daemon http cli -name '*.py')
	@tools/compiled $(VENV)
	@touch $@

$(FRAMEWORKS): $(READY) contrib/constraints.txt tools/frameworks
	@tools/frameworks "$(PYTHON)" $(VENV)/contrib
	@touch $@

$(RENDERER): $(READY) docs/constraints.txt tools/docs_environment
	@tools/docs_environment "$(PYTHON)" $(VENV)/docs
	@touch $@

$(PEERS): $(READY) benchmarks/constraints.txt tools/peers
	@tools/peers $(VENV)
	@touch $@

$(READY): pyproject.toml constraints.txt tools/environment
	@tools/environment "$(PYTHON)" $(VENV)
	@touch $@
