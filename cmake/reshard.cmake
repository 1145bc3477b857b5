# Compiler settings and the four functions that every source folder uses. Source lists are written by hand.
option(RESHARD_WERROR "Warnings are errors" OFF)
option(RESHARD_STATIC "Link the program fully statically" OFF)
option(RESHARD_TESTS "Build the tests" ON)
option(RESHARD_BENCH "Build the micro-benchmarks" OFF)
option(RESHARD_FUZZ "Build the fuzz targets with libFuzzer (Clang) instead of the corpus replay" OFF)
set(RESHARD_SANITIZE "" CACHE STRING "A value of -fsanitize=, for everything")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)

add_library(reshard_settings INTERFACE)
target_include_directories(reshard_settings INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
target_compile_options(reshard_settings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers
                       $<$<BOOL:${RESHARD_WERROR}>:-Werror>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")  # GCC 12 sees overlaps in std::string's operator+ that are not there (bug 105329)
  # and uninitialised members of optional aggregates that are never read.
  target_compile_options(reshard_settings INTERFACE -Wno-restrict -Wno-maybe-uninitialized)
endif()
target_link_libraries(reshard_settings INTERFACE fmt::fmt-header-only nlohmann_json::nlohmann_json Threads::Threads)
if(RESHARD_SANITIZE)
  target_compile_options(reshard_settings INTERFACE -fsanitize=${RESHARD_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all)
  target_link_options(reshard_settings INTERFACE -fsanitize=${RESHARD_SANITIZE})
endif()
if(RESHARD_FUZZ)
  target_compile_options(reshard_settings INTERFACE -fsanitize=fuzzer-no-link)
endif()

# reshard_library(NAME SOURCES a.cc ... DEPENDS reshard_x ...)
function(reshard_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC reshard_settings ${ARG_DEPENDS})
endfunction()

enable_testing()
if(RESHARD_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()

# reshard_test(NAME SOURCES x_test.cc ... DEPENDS reshard_x ...): one binary, one ctest entry a TEST.
function(reshard_test name)
  if(NOT RESHARD_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_compile_definitions(${name} PRIVATE RESHARD_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60)
endfunction()

file(WRITE ${PROJECT_BINARY_DIR}/fuzz-targets.txt "")

# reshard_fuzz(NAME SOURCE x_fuzz.cc CORPUS folder DEPENDS ...): libFuzzer under the fuzz preset; elsewhere a program that
# replays the corpus, as a test.
function(reshard_fuzz name)
  cmake_parse_arguments(ARG "" "SOURCE;CORPUS" "DEPENDS" ${ARGN})
  if(RESHARD_FUZZ)
    add_executable(${name} ${ARG_SOURCE})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    # What fuzz/run runs: the program, and the inputs to start from.
    file(APPEND ${PROJECT_BINARY_DIR}/fuzz-targets.txt
      "${CMAKE_CURRENT_BINARY_DIR}/${name} ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_CORPUS}\n")
  elseif(RESHARD_TESTS)
    add_executable(${name} ${ARG_SOURCE} ${PROJECT_SOURCE_DIR}/fuzz/replay_main.cc)
    add_test(NAME ${name}_replay COMMAND ${name} ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_CORPUS})
  else()
    return()
  endif()
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})  # what tests share: tests/memory_file.h, ...
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS})
endfunction()

# reshard_bench(NAME SOURCES x_bench.cc DEPENDS ...)
function(reshard_bench name)
  if(NOT RESHARD_BENCH)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  find_package(benchmark REQUIRED)
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} benchmark::benchmark_main)
endfunction()
