# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv themselves.
#
#   PYTHON=python3.12   the interpreter to build on (3.11 to 3.13)
#   SYSTEM_TORCH=1      reuse the torch and torchvision that interpreter already has
#   DEVICES=0           what the demo runs on: a GPU, or as it is two cells side by side on the CPU
#   PY=python3          run on an interpreter that has everything already, and make no .venv
#   SPEED=--again       further options of python -m bench.speed for `make bench-gpu`
#   BASELINE=--write    store the ratios that `make bench` measures, in place of comparing them

PYTHON ?= python3
SYSTEM_TORCH ?=
DEVICES ?= cpu:2
VENV := .venv
PY := $(VENV)/bin/python
READY = $(if $(filter $(VENV)/%,$(PY)),$(VENV)/ready)
SPEED ?=
BASELINE ?=

.PHONY: demo test test-real bench bench-gpu clean

demo: $(VENV)/ready  ## four methods on generated images, three seeds each, the table and the report (minutes)
	$(PY) -m bench.run --matrix demo --devices $(DEVICES)
	$(PY) -m analysis.tables
	@echo
	@echo "Curves and runs: $(VENV)/bin/mlflow ui. A cell's files: results/cells/<id>/. Your data, one GPU: README.md."
	@echo
	$(PY) -m analysis.report

test: $(VENV)/ready  ## all tests; real images where BENCH_TEST_DATA names them
	$(PY) -m pytest

test-real: $(VENV)/ready  ## the tests on real images alone
	@test -n "$(BENCH_TEST_DATA)" || { echo "set BENCH_TEST_DATA to the folder of real samples"; exit 2; }
	$(PY) -m pytest -k real

bench: $(READY)  ## times of the parts on one core, and what got slower beside its reference (4 minutes)
	@mkdir -p .benchmarks
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/benchmarks -q --benchmark-enable --benchmark-only --benchmark-warmup=on \
	  --benchmark-timer=time.process_time --benchmark-max-time=0.5 --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=.benchmarks/run.json
	$(PY) -m bench.timing.ratios .benchmarks/run.json $(BASELINE)

bench-gpu: $(READY)  ## speed on the first GPU at the paper's size, beside its tables 14 and 3 (one go; not timed yet)
	$(PY) -m bench.speed --matrix speed_gpu --device cuda:0 --seconds 0.6 $(SPEED)

clean:  ## remove the environment; results stay
	rm -rf $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	  f"error: Python {v[0]}.{v[1]} is not supported (3.11 to 3.13); choose another: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "making $(VENV): a few minutes and about 6 GB the first time, most of it torch"
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	@# An installed torch brings versions of its own that the tested ones must not replace.
	@sed '$(if $(SYSTEM_TORCH),/^\(torch\|torchvision\|numpy\)=/d)' constraints.txt > $(VENV)/constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]' --constraint $(VENV)/constraints.txt
	@touch $@
