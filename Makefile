# Shortcuts for developers; users need only scripts/.
.PHONY: check test format

check: ## what the continuous integration runs
	bash .ci/run

test: ## the tests alone
	bash scripts/test.sh

format: ## put imports and layout right
	bash -c 'source scripts/environment.sh && use_environment dev && "$$PYTHON" -m ruff check --fix . && "$$PYTHON" -m ruff format .'
