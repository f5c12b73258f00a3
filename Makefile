# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
NOX = .venvs/nox/bin/nox

.DEFAULT_GOAL = help
.PHONY: help demo ui test distributed check docs

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
demo: $(NOX) ## Run the whole pipeline in a real Airflow, against the sandbox
	@$(NOX) -s demo
ui: $(NOX) ## Run Airflow's UI and the sandbox (other ports: PORT=8081 SANDBOX_PORT=8643)
	@$(NOX) -s ui -- $(if $(PORT),--port $(PORT)) $(if $(SANDBOX_PORT),--sandbox-port $(SANDBOX_PORT))
test: $(NOX) ## Run all tests on the newest Airflow
	@$(NOX) -s tests
distributed: $(NOX) ## Run 1,000 campaigns in an Airflow on several machines, and kill those (half an hour)
	@$(NOX) -s distributed
check: $(NOX) ## Lint, check types, build the package and install it
	@$(NOX) -s check
docs: $(NOX) ## Build the documentation into build/docs
	@$(NOX) -s docs

$(NOX):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Choose another with PYTHON=python3.12")'
	@$(PYTHON) -m venv .venvs/nox
	@.venvs/nox/bin/python -m pip install --quiet --disable-pip-version-check "nox[uv]"
