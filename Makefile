# Two commands do everything on a machine that has Python 3.11 or newer and make:
#
#   make lab    create .venv, install, render the embedded data set, open JupyterLab on the start notebook
#   make test   the same environment, then every test and every notebook, outputs compared
#
# Another Python:  make lab PYTHON=python3.12      (works with GNU make 3.81 and newer, on Linux and macOS)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Small networks run slower, and in another order of additions, on more threads: one thread is both faster and repeatable.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# The tests start many processes. What one has compiled is kept for the others, also where the environment asks
# Python to keep nothing.
KEEP_COMPILED := PYTHONDONTWRITEBYTECODE=

START := notebooks/00_start_here.ipynb
# JupyterLab refuses to run as root unless told to; containers usually are root. The server still listens on localhost only, with its token.
LAB_FLAGS ?= $(shell test "$$(id -u)" = 0 && echo --allow-root)
# Test files are shared out between this many processes; each takes about 2 GB with the kernel of its notebook.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder
TEST_FLAGS ?=

.PHONY: help lab test test-gpu test-old-cpu notebooks book results constraints clean

help:
	@echo "make lab         environment, embedded data set, JupyterLab on the start notebook"
	@echo "make test        environment, all tests, all notebooks under strict comparison (JOBS=2 processes)"
	@echo "make test-gpu    losses, gradients, runs and scores on an NVIDIA GPU against those of the CPU"
	@echo "make test-old-cpu  notebooks and numerical tests on an emulated processor without AVX"
	@echo "make notebooks   execute and clean every notebook in place"
	@echo "make book        the lessons as a web site in build/book, from the outputs that the notebooks store"
	@echo "make results     repeat the reference runs recorded in notebooks/results/ (long)"
	@echo "make constraints write the versions installed now into constraints.txt"
	@echo "make clean       remove .venv and everything built (rendered data and runs/ stay)"

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: '$(PYTHON)' not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) --version 2>&1) is too old; Python 3.11 or newer is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' >/dev/null 2>&1 || { \
	  echo "error: $(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv; or name another Python: make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book,data,export,lab,logs,pretrained,search,test]"
	@touch $(STAMP)

lab: $(STAMP)
	$(BIN)/python -m mmlib render
	$(BIN)/jupyter lab --ip=127.0.0.1 $(LAB_FLAGS) $(START)

test: $(STAMP)
	$(ONE_THREAD) $(KEEP_COMPILED) $(BIN)/python -m pytest --nbval $(PARALLEL) --durations=15 $(TEST_FLAGS)

# All other tests leave a GPU alone.
test-gpu: $(STAMP)
	MMLIB_TEST_GPU=1 $(ONE_THREAD) $(BIN)/python -m pytest tests/test_gpu.py $(TEST_FLAGS)

# What depends on the processor: the notebooks' printed numbers, and the tests of what computes them. (One test
# compares both kinds of processor itself, in a child process, and needs the newer one for that.)
OLD_CPU_TESTS := notebooks \
  $(addprefix tests/test_,theory.py world.py segmentation.py information.py correspondence.py clustering.py) \
  --deselect tests/test_world.py::test_labels_do_not_depend_on_simd

# On the code paths of a processor without AVX, with data rendered there: what a notebook prints must not depend
# on the machine.
test-old-cpu: $(STAMP)
	mkdir -p build
	$(ONE_THREAD) $(KEEP_COMPILED) ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	  NPY_DISABLE_CPU_FEATURES="$$($(BIN)/python tests/cpu_features.py)" MMLIB_DATA="$(CURDIR)/build/old-cpu-data" \
	  $(BIN)/python -m pytest --nbval $(PARALLEL) --durations=5 $(OLD_CPU_TESTS) $(TEST_FLAGS)

notebooks: $(STAMP)
	$(BIN)/python -m mmlib render
	$(ONE_THREAD) $(BIN)/python tests/refresh_notebooks.py

book: $(STAMP)
	$(BIN)/python notebooks/book build/book

# The reference runs whose records lie in notebooks/results/, in order, one command a line.
results: $(STAMP)
	$(ONE_THREAD) $(BIN)/python notebooks/results/reproduce.py --jobs 1

constraints: $(STAMP)
	{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | LC_ALL=C sort -f; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
