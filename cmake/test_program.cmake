# pllm_test_program(NAME SOURCE...): a program of tests/, whatever the preset: the one place that says
# what such a program finds and is linked with. Every program of every kind gets the same, so that
# what compiles in one preset compiles in all (scripts/check/tests.py holds tests/ to calling this).
#
#   includes     tests/support, beside what pagedllm_static brings (src, include)
#   definitions  PLLM_SOURCE_DIR, PLLM_BINARY_DIR: of the tree and of the build, as strings
#   libraries    pagedllm_static, test_support, cmocka
#   beside it    libfake_cuda.so, which a test opens at run time
function(pllm_test_program name)
  add_executable(${name} ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/support)
  target_compile_definitions(${name} PRIVATE PLLM_SOURCE_DIR="${PLLM_TEST_SOURCE_DIR}"
    PLLM_BINARY_DIR="${PLLM_TEST_BINARY_DIR}")
  pllm_test_libraries(${name})
  add_dependencies(${name} fake_cuda)
endfunction()

# The libraries alone, for a program made of test programs' objects (cmake/all_cuda.cmake).
function(pllm_test_libraries name)
  target_link_libraries(${name} PRIVATE pagedllm_static test_support PkgConfig::CMOCKA)
endfunction()
