# Everything a fresh clone needs: `make demo` and `make test` each do the whole set-up first.

VENV := .venv
BIN := $(VENV)/bin
# Real Spark sessions run in the tests: more processes than this starve each other on small machines.
TEST_PROCESSES ?= 2
# One file's tests stay in one process, so that they share one Spark session.
# One thread each: OpenMP's threads wait in busy loops, and several processes of them take each other's cores.
# What runs the GPU tests: whatever has a torch for CUDA.
PYTHON ?= python3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup java redis demo test test-slow chaos gpu fuzz lint format schema bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: java $(VENV)/.installed ## Make .venv and see that Java is there; the others call it

java:
	@scripts/check_java.sh

redis:
	@scripts/check_redis.sh

$(VENV)/.installed: pyproject.toml constraints.txt scripts/make_venv.sh
	@scripts/make_venv.sh
	@touch $@

demo: setup ## Train on handwritten digits with two Spark workers, about a minute
	$(BIN)/sparknet train configs/digits.toml --workers 2

test: setup redis ## Run every test but the slow and the chaotic ones
	$(PYTEST) -m "not slow and not chaos"

test-slow: setup redis ## Run the tests that take minutes
	$(PYTEST) -m slow

chaos: setup redis ## Kill, stop and restart workers and drivers; alone, since it times them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "chaos and not slow"

gpu: ## Tests and benchmark on a GPU: PYTHON=python3 with torch and pytest is enough, no set-up, no Spark, no network
	$(PYTHON) -m pytest -c tests/gpu/pytest.ini tests/gpu
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_loop.py

fuzz: setup ## A million damaged files for the parsers of Caffe's formats, about five minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_parsers.py --inputs 1000000 --seed $$(date +%Y%m%d)

lint: $(VENV)/.installed ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(VENV)/.installed ## Generate the Python module of Caffe's file formats from net_format.proto
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/sparknet/caffe/schema/net_format.proto

bench: setup ## Run the benchmarks; quiet machines give better numbers
	@for program in $(filter-out benchmarks/gpu_loop.py,$(wildcard benchmarks/*.py)); do echo "== $$program"; $(BIN)/python "$$program" || exit 1; done

clean: ## Remove caches and build products; runs, data and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache spark-warehouse
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
