PYTHON ?= python3
VENV ?= .venv
# A compiler warning in the core breaks the build; `make WERROR= build` for a compiler that knows more warnings.
WERROR ?= -Werror

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := build/built-in-$(notdir $(VENV))
PEERS := $(VENV)/.peers
MICRO := bench/micro --timeout=300
SAVED := $(MICRO) --benchmark-enable --benchmark-only --benchmark-storage=build/bench/micro
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build test test-asan test-tsan test-valgrind lint bench bench-quick bench-micro bench-compare soak docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(BUILT) ## compile the core and install the package, editable, in a virtual environment

test: build lint ## run the linters, then the tests
	$(BIN)/python -m pytest --numprocesses auto

# `make TESTS=tests/test_core.py test-asan` for a part of it. CPython frees little at its end, so leaks are valgrind's.
# Some tests fault on purpose, and count on the signal. libstdc++ must be there before a module that throws is loaded.
test-asan: build ## run the tests on a core with AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf build/asan
	CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
	    $(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	    PYTHONPATH=$(CURDIR)/build/asan/lib \
	    LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
	    $(BIN)/python -m pytest --numprocesses auto --timeout 300 $(TESTS)

# The threads of one process: workers are processes, and share nothing with the primary but the region, which the cases
# read and write from the main thread, as a worker would. ThreadSanitizer has no threads after a fork with threads.
test-tsan: build ## run the balancer's tests on a core with ThreadSanitizer
	rm -rf build/tsan
	CFLAGS="-g -fsanitize=thread -fno-omit-frame-pointer" \
	    $(BIN)/python setup.py -q build --build-base build/tsan --build-lib build/tsan/lib
	TSAN_OPTIONS="die_after_fork=0 suppressions=$(CURDIR)/tests/tsan.supp" PYTHONPATH=$(CURDIR)/build/tsan/lib \
	    LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" setarch -R $(BIN)/python -m pytest --timeout 300 \
	    tests/test_balancer.py -k "not replaced_one_by_one and not accepted_nothing"

# The interpreter's own leaks are none of ours: only what was allocated by the core counts.
test-valgrind: build ## look for memory that the core leaks
	PYTHONPATH=tests $(BIN)/python tests/leaks.py

lint: build ## ruff, mypy, cython-lint, and the stubs against the built core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	PATH="$(abspath $(BIN)):$$PATH" cython-lint src/_cluster.pyx src/_linux.pxd
	$(BIN)/stubtest --ignore-disjoint-bases pycluster._cluster

bench: build $(PEERS) ## compare round robin, the kernel's choice and peers; writes docs/bench and into README (about 22 minutes)
	$(BIN)/python bench/balance.py --full --json build/bench/results.json --docs docs/bench --readme README.md

bench-quick: build $(PEERS) ## the same in some 10 minutes, to see that all works; writes build/bench/quick
	$(BIN)/python bench/balance.py --full --quick --json build/bench/quick.json --docs build/bench/quick

# What starts a crowd of processes, or has a peer, states figures of its own: its wall-clock time is none to compare.
bench-micro: build ## measure small things: check what is claimed of them, and save what bench-compare compares with
	$(BIN)/python -m pytest $(SAVED) --benchmark-autosave
	$(BIN)/python -m pytest $(MICRO) --benchmark-skip
	$(BIN)/python bench/micro/fork_online.py
	$(BIN)/python bench/micro/messages.py

bench-compare: build ## measure what bench-micro has saved again, and compare
	$(BIN)/python -m pytest $(SAVED) --benchmark-compare --benchmark-compare-fail=median:25%

soak: build ## inject faults for minutes, and write what came of it to docs/soak.md
	PYTHONPATH=tests:bench $(BIN)/python tests/soak/run.py

docs: build ## write the API reference from the docstrings
	$(BIN)/python docs/make_reference.py

wheel: $(INSTALLED) ## build the source distribution and, from it, the wheel, in dist/
	$(BIN)/python -m build

clean: ## remove everything that was built, except the virtual environment
	rm -rf build dist src/*.egg-info src/_cluster.c src/pycluster/*.so
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests bench docs examples -name __pycache__ -prune -exec rm -rf {} +

# The dependencies only, without the package, so that the environment does not depend on whether the core compiles.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --upgrade -r $(VENV)/requirements.txt
	touch $@

# What the benchmarks compare with. They skip what is not there.
$(PEERS): pyproject.toml $(INSTALLED)
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	    print(*p["optional-dependencies"]["bench"], sep="\n")' > $(VENV)/peers.txt
	$(BIN)/pip install --quiet -r $(VENV)/peers.txt && touch $@ || echo "not all peers could be installed" >&2

# The flag goes into CPPFLAGS because setuptools appends those, while CFLAGS replace the interpreter's own.
# _cluster.c goes first because it would not notice a directive changed in setup.py.
$(BUILT): $(INSTALLED) setup.py src/_cluster.pyx src/_linux.pxd
	rm -f src/_cluster.c
	CPPFLAGS="$(CPPFLAGS) $(WERROR)" $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	mkdir -p $(@D)
	touch $@
