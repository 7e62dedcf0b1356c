#!/usr/bin/env bash
# Snapshots of the ABI: exported symbols, SONAME, struct layout, constants; and the headers alone and
# included twice.
#
#   LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> tests/abi/run.sh [--update]
#
# --update writes the snapshots anew. A line that is removed or changed is an incompatible change: raise
# LANCE_TASKS_ABI_VERSION and the SONAME.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../c/lib.sh"

update=false
if [[ ${1:-} == --update ]]; then update=true; fi
cc=${CC:-cc}
cxx=${CXX:-c++}
need_compiler "$cc"
need_compiler "$cxx"
header="$root/include/lance_tasks/lance_tasks.h"
strict=(-Wall -Wextra -Wpedantic -Werror -I "$root/include")

# snapshot NAME FILE: compare $work/now with the committed file.
snapshot() {
    if $update; then cp "$work/now" "$here/$2"; fi
    check "$1" diff -u "$here/$2" "$work/now"
}

# Symbols: what the library exports, what the header declares, what was released.
grep -oE '\blance_tasks_[a-z_]+\(' "$header" | tr -d '(' | sort -u >"$work/declared"
nm -D --defined-only "$work/lib/liblance_tasks.so" | awk '{print $3}' | sed 's/@.*//' | sort -u \
    >"$work/now"
check "exports exactly what the header declares" diff -u "$work/declared" "$work/now"
snapshot "exported symbols" symbols.txt

readelf -d "$work/lib/liblance_tasks.so" >"$work/dynamic"
check "SONAME" grep -q 'SONAME.*\[liblance_tasks\.so\.0\]' "$work/dynamic"

# Constants and layout (64-bit).
{
    grep -oE '^#define LANCE_TASKS_[A-Z_]+ [0-9]+' "$header"
    "$cc" -std=c11 "${strict[@]}" "$here/layout.c" -o "$work/layout"
    "$work/layout"
} >"$work/now"
snapshot "constants and struct layout" layout.txt
grep -oE '^typedef struct [A-Za-z]+ \{' "$header" | awk '{print $3}' | sort >"$work/structs"
grep -oE 'STRUCT\(LanceTasks[A-Za-z]+' "$here/layout.c" | sed 's/.*(//' | grep -v Status | sort \
    >"$work/now"
check "every struct is in the snapshot" diff -u "$work/structs" "$work/now"

# Headers: alone, twice, behind Arrow's own definitions, in C and in C++.
alone() { printf '#include <lance_tasks/%s>\n' "$1"; }
twice() { alone "$1"; alone "$1"; }
behind_arrow() {
    printf '#include <stdint.h>\n'
    sed -n '/^#ifndef ARROW_C_DATA_INTERFACE/,/^#endif .* ARROW_C_STREAM_INTERFACE/p' "$header"
    alone "$1"
}
compile_source() { # COMPILER STANDARD LANGUAGE FORM HEADER
    "$4" "$5" >"$work/source.$3"
    printf 'int main(void) { return 0; }\n' | sed "$([[ $3 == cpp ]] && echo 's/(void)/()/')" \
        >>"$work/source.$3"
    "$1" "-std=$2" "${strict[@]}" -c "$work/source.$3" -o "$work/source.o"
}
c_compilers=("$cc")
cxx_compilers=("$cxx")
if command -v clang >/dev/null && [[ $cc != *clang* ]]; then c_compilers+=(clang); fi
if command -v clang++ >/dev/null && [[ $cxx != *clang* ]]; then cxx_compilers+=(clang++); fi
for form in alone twice behind_arrow; do
    for compiler in "${c_compilers[@]}"; do
        check "lance_tasks.h $form, $compiler, C11" \
            compile_source "$compiler" c11 c "$form" lance_tasks.h
    done
    for compiler in "${cxx_compilers[@]}"; do
        check "lance_tasks.h $form, $compiler, C++17" \
            compile_source "$compiler" c++17 cpp "$form" lance_tasks.h
        check "lance_tasks.hpp $form, $compiler, C++17" \
            compile_source "$compiler" c++17 cpp "$form" lance_tasks.hpp
    done
done

finish
