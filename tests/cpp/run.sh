#!/usr/bin/env bash
# Build the C++17 tests and run them.
#
#   LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> tests/cpp/run.sh [--sanitize]
#
# --sanitize: with AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer. CXX and CXXFLAGS are
# taken from the environment.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../c/lib.sh"

cxx=${CXX:-c++}
need_compiler "$cxx"
flags=(-std=c++17 -Wall -Wextra -Wpedantic -Werror -O1 -g -I "$root/include")
read -ra extra <<<"${CXXFLAGS:-}"
if [[ ${1:-} == --sanitize ]]; then
    flags+=(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
    export ASAN_OPTIONS="detect_leaks=1:exitcode=99${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
    export LSAN_OPTIONS="suppressions=$here/../c/lsan.supp:print_suppressions=0"
    export UBSAN_OPTIONS="print_stacktrace=1"
elif [[ $# -gt 0 ]]; then
    echo "unknown argument: $1" >&2
    exit 2
fi
export LANCE_TASKS_TEST_DIR="$work/data"
mkdir "$LANCE_TASKS_TEST_DIR"

for name in raii read; do
    check "compile $name" "$cxx" "${flags[@]}" "${extra[@]}" "$here/$name.cpp" -o "$work/$name" \
        -L "$work/lib" -llance_tasks -lpthread
done
if [[ $failed -eq 0 ]]; then
    for name in raii read; do program "$name" "$work/$name"; done
fi
finish
