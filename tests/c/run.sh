#!/usr/bin/env bash
# Build the C11 tests and run them.
#
#   LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> tests/c/run.sh [--sanitize]
#
# --sanitize: with AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer. CC and CFLAGS are
# taken from the environment.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

cc=${CC:-cc}
need_compiler "$cc"
flags=(-std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wpedantic -Werror -O1 -g -I "$root/include")
read -ra extra <<<"${CFLAGS:-}"
if [[ ${1:-} == --sanitize ]]; then
    flags+=(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
    # The library itself is not instrumented: its allocations are still seen, and its leaks.
    export ASAN_OPTIONS="detect_leaks=1:abort_on_error=0:exitcode=99${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
    export LSAN_OPTIONS="suppressions=$here/lsan.supp:print_suppressions=0"
    export UBSAN_OPTIONS="print_stacktrace=1"
elif [[ $# -gt 0 ]]; then
    echo "unknown argument: $1" >&2
    exit 2
fi

export LANCE_TASKS_TEST_DIR="$work/data"
mkdir "$LANCE_TASKS_TEST_DIR" "$work/bin"

programs=(contract_null contract_bytes contract_options contract_panic contract_threads
    contract_races open_write read files processes)
for name in support producer; do
    check "compile $name" "$cc" "${flags[@]}" "${extra[@]}" -c "$here/$name.c" -o "$work/$name.o"
done
for name in "${programs[@]}"; do
    check "compile $name" "$cc" "${flags[@]}" "${extra[@]}" "$here/$name.c" "$work/support.o" \
        "$work/producer.o" -o "$work/bin/$name" -L "$work/lib" -llance_tasks -lpthread
done
[[ $failed -eq 0 ]] || { finish; exit 1; }

for name in contract_null contract_bytes contract_options contract_threads contract_races \
    open_write read files; do
    program "$name" "$work/bin/$name"
done

# Panics: every fallible function of the header has a test, and each runs in a process of its own.
functions() {
    tr '\n' ' ' <"$root/include/lance_tasks/lance_tasks.h" |
        grep -oE 'LanceTasksStatus lance_tasks_[a-z_]+\([^;]*out_error\);' |
        grep -oE 'lance_tasks_[a-z_]+\(' | tr -d '(' | sort
}
check "contract_panic: covers every fallible function" \
    diff <(functions) <("$work/bin/contract_panic" list | sort)
for place in $("$work/bin/contract_panic" list) executor stream; do
    program "contract_panic $place" env "LANCE_TASKS_INJECT_PANIC=$place" \
        "$work/bin/contract_panic" "$place"
done

# One job over several processes: plan in one, execute in others, commit in others again.
step() { check "processes: $1" "$work/bin/processes" "${@:2}"; }

# job NAME SPEC ROWS: a whole job, every task attempted twice.
job() {
    local name=$1 dir="$work/$1" rows=$3 rounds=0 count
    mkdir "$dir"
    printf '%s' "$2" >"$dir/spec.json"
    step "$name: prepare and plan" begin "$dir/spec.json" "$dir"
    count=$(tail -n 1 "$work/log")
    while [[ $count != 0 && $rounds -lt 5 ]]; do
        step "$name: execute, attempt 1" execute "$dir" 1
        if [[ $rounds -eq 0 ]]; then step "$name: incomplete results are refused" incomplete "$dir"; fi
        step "$name: execute, attempt 2" execute "$dir" 2
        step "$name: plan with results" more "$dir"
        count=$(tail -n 1 "$work/log")
        rounds=$((rounds + 1))
    done
    check "$name: the plan comes to an end" test "$count" = 0
    step "$name: commit" commit "$dir" "$rows" first
    step "$name: commit again" commit "$dir" "$rows" again
    step "$name: abort keeps what is committed" abort "$dir" 0 1
    step "$name: abort again removes nothing" abort "$dir" none 1
    step "$name: commit after abort" commit "$dir" "$rows" again
}

"$work/bin/processes" source "$work/in.csv" 0 1000
data="$work/data.lance"
job write "{\"operation\": \"write\", \"uri\": \"$data\", \"sources\": [\"$work/in.csv\"],
    \"max_rows_per_file\": 100}" 1000
# A source of known rows is cut into tasks.
job append "{\"operation\": \"write\", \"mode\": \"append\", \"uri\": \"$data\",
    \"sources\": [{\"uri\": \"$data\", \"version\": 1}], \"max_rows_per_file\": 400}" 2000
job compact "{\"operation\": \"compact\", \"uri\": \"$data\", \"target_rows_per_fragment\": 500}" 2000
job index "{\"operation\": \"create_index\", \"uri\": \"$data\", \"column\": \"id\",
    \"index_type\": \"BTREE\"}" 2000
# In two stages: segments, then a merge; and several indexes at once.
job text "{\"operation\": \"create_index\", \"uri\": \"$data\", \"column\": \"name\",
    \"index_type\": \"INVERTED\", \"num_segments\": 2, \"merge\": true}" 2000
job optimize "{\"operation\": \"optimize_index\", \"uri\": \"$data\", \"retrain\": true,
    \"num_segments\": 2}" 2000

# A job given up: its files are gone, and the dataset is as it was.
mkdir "$work/abort" && printf '%s' "{\"operation\": \"write\", \"mode\": \"append\", \"uri\": \"$data\",
    \"sources\": [\"$work/in.csv\"], \"max_rows_per_file\": 100}" >"$work/abort/spec.json"
step "abort: prepare and plan" begin "$work/abort/spec.json" "$work/abort"
find "$data" -type f | sort >"$work/before"
step "abort: execute" execute "$work/abort" 1
find "$data" -type f | sort >"$work/during"
check "abort: execute wrote files" test "$(wc -l <"$work/during")" -gt "$(wc -l <"$work/before")"
step "abort: files are removed" abort "$work/abort" 1 0
find "$data" -type f | sort >"$work/after"
check "abort: the dataset's folder is as before" diff "$work/before" "$work/after"
step "abort: again removes nothing" abort "$work/abort" none 0

finish
