# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3

.PHONY: demo ui test check docs
demo: ## Run the smallest example in a real Airflow against the local sandbox
	$(PYTHON) scripts/dev.py demo
ui: ## Run Airflow's UI and the sandbox with the examples, to play with
	@$(PYTHON) scripts/dev.py ui
test: ## Run the tests
	$(PYTHON) scripts/dev.py test
docs: ## Build the documentation into build/docs
	$(PYTHON) scripts/dev.py docs
check: ## Lint, type-check, build and check the package
	$(PYTHON) scripts/dev.py check
