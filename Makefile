# make setup   builds .venv from hash-pinned requirements, Detectron2 included
# make demo    generates the built-in data, trains and evaluates SSL on it, leaves output/demo/
# make lint    checks style and types (ruff, mypy)
# make test    runs the tests
# make lock    renews the hash-pinned requirements (needs uv)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo lint test lock clean

setup: $(STAMP)

$(STAMP): requirements/build.txt requirements/test.txt requirements/detectron2.txt requirements/trackers.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 11) <= v[:2] <= (3, 13); \
	sys.exit(0 if ok else f"Python {v[0]}.{v[1]} found, expected 3.11, 3.12 or 3.13: make PYTHON=python3.12 setup")'
	@echo "Building $(VENV): about 5 GB are installed, which takes some minutes."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation -r requirements/test.txt
	$(PIP) --require-hashes --no-deps --only-binary=:all: --python-version 3.10 --implementation cp \
		--target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		-r requirements/detectron2.txt
	$(PIP) --require-hashes --no-deps -r requirements/trackers.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python tools/demo.py

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

UV := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --allow-unsafe \
	--no-emit-index-url --quiet

lock:
	$(UV) requirements/build.in --output-file requirements/build.txt
	$(UV) requirements/test.in --output-file requirements/test.txt
	$(UV) requirements/runtime.in --constraints requirements/test.txt --output-file requirements/runtime.txt

clean:
	rm -rf $(VENV) output build
