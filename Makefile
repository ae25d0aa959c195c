# The commands people type. Everything real is in CMake (CMakePresets.json) and scripts/.
MODEL ?= models/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: help build model demo test bench sanitize fuzz mutants install format clean
help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

build: ## the program, at build/release/pagedllm
	@scripts/bootstrap.sh build
	@cmake --preset release $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset release -j $$(nproc)

test: ## every test that needs no GPU
	@scripts/bootstrap.sh test
	@cmake --preset release $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset release -j $$(nproc)
	@ctest --test-dir build/release --output-on-failure

format: ## clang-format over the tree
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean: ## removes build/
	rm -rf build
