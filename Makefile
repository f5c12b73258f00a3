# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3

.PHONY: demo test check
demo: ## Run the smallest example in a real Airflow against the local sandbox
	$(PYTHON) scripts/dev.py demo
test: ## Run the tests
	$(PYTHON) scripts/dev.py test
check: ## Lint, type-check, build and check the package
	$(PYTHON) scripts/dev.py check
