# The commands people type. Everything real is in CMake (CMakePresets.json) and scripts/.
#   MODEL=path          another model for `make demo` and `make bench`
#   SIM_SEEDS=n         how many seeds `make sim` tries
#   STORM=, SEED=       options and seed of `make storm`
#   PREFIX=, DESTDIR=   where `make install` puts things
#   CMAKE_ARGS=         passed to cmake, as in CMAKE_ARGS=-DPLLM_WERROR=ON
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
FUZZ_SECONDS ?= 10
SIM_SEEDS ?= 10000
export MODEL

.PHONY: help build model demo test bench sanitize fuzz sim storm mutants install portable gpu tarball format check clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

build: ## the program, at build/release/pagedllm
	@scripts/bootstrap.sh build
	@scripts/build.sh release -DPLLM_TESTS=OFF -DPLLM_BENCH=OFF $(CMAKE_ARGS)
	@echo "pagedllm: the program is build/release/pagedllm" >&2

model: ## models/SmolLM2-135M-Instruct.Q4_1.gguf, the model of the demo and the tests
	@scripts/model.sh

demo: ## a real model answers twice, unlimited and with a tenth of the memory: the same bits
	@scripts/bootstrap.sh demo
	@scripts/model.sh >/dev/null
	@scripts/build.sh release -DPLLM_TESTS=OFF -DPLLM_BENCH=OFF $(CMAKE_ARGS)
	@scripts/demo.py

test: ## every test that needs no GPU
	@scripts/bootstrap.sh test
	@MODEL= scripts/model.sh >/dev/null
	@scripts/build.sh release $(CMAKE_ARGS)
	@ctest --test-dir build/release --output-on-failure --no-tests=error -j $(JOBS)

bench: ## the whole benchmarks, into bench/results/ (many minutes)
	@scripts/bootstrap.sh test
	@scripts/model.sh >/dev/null
	@scripts/build.sh release $(CMAKE_ARGS)
	@scripts/bench.sh

sanitize: ## the tests under address, undefined-behaviour and thread sanitizers
	@scripts/bootstrap.sh test
	@scripts/sanitize.sh asan
	@scripts/sanitize.sh tsan

fuzz: ## a bounded run of every fuzz target (FUZZ_SECONDS=n for each)
	@scripts/bootstrap.sh check
	@scripts/fuzz.sh $(FUZZ_SECONDS)

sim: ## the simulations with many seeds (SIM_SEEDS=n); a failing seed is printed
	@scripts/bootstrap.sh test
	@scripts/build.sh release $(CMAKE_ARGS)
	@for sim in build/release/tests/sim_*; do PLLM_SIM_SEEDS=$(SIM_SEEDS) $$sim || exit 1; done

storm: ## 16 processes, 100,000 operations on the tensor store, killed at random, with its daemon and Redis
	@scripts/bootstrap.sh test
	@scripts/build.sh release $(CMAKE_ARGS)
	@build/release/tests/storm/storm_store --clients 16 --operations 100000 --rounds 20 --seed $(or $(SEED),1) $(STORM)

mutants: ## breaks the code in known ways; each must be caught by its named test
	@scripts/bootstrap.sh test
	@scripts/mutants.sh

install: ## the program, library, headers and pkg-config file under PREFIX (and DESTDIR)
	@scripts/bootstrap.sh build
	@scripts/build.sh release -DPLLM_TESTS=OFF -DPLLM_BENCH=OFF -DCMAKE_INSTALL_PREFIX="$(PREFIX)" $(CMAKE_ARGS)
	@DESTDIR="$(DESTDIR)" cmake --install build/release

portable: ## build/portable/pagedllm, its tests and benches: they need glibc 2.36 and nothing else
	@scripts/bootstrap.sh portable
	@scripts/build.sh portable -DPLLM_TESTS=ON -DPLLM_BENCH=ON $(CMAKE_ARGS)
	@python3 -B scripts/check/portable.py . build/portable/pagedllm build/portable/libpagedllm.so \
	    $$(find build/portable/tests build/portable/bench -maxdepth 1 -type f -executable)

gpu: portable ## on a machine with a GPU: every suite and benchmark that needs one
	@scripts/gpu/run.sh

tarball: ## build/pagedllm-VERSION-x86_64-linux.tar.gz, for any Linux with glibc 2.36 or later
	@scripts/bootstrap.sh portable
	@scripts/tarball.sh $(CMAKE_ARGS)

format: ## clang-format over the tree
	@scripts/check/format.sh --fix

check: ## format, layers, exported symbols, headers, READMEs, file sizes
	@scripts/bootstrap.sh check
	@scripts/build.sh release $(CMAKE_ARGS)
	@scripts/check/format.sh
	@ctest --test-dir build/release -L check --output-on-failure --no-tests=error

clean: ## removes build/
	rm -rf build
