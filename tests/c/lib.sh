# What the test scripts of C and C++ share; sourced after `set -euo pipefail`.
#
# Takes LANCE_TASKS_LIB_DIR, the folder with liblance_tasks.so. Gives $work (a folder of its own,
# removed at the end), $root (the checkout), and a library folder on the loader's path.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${LANCE_TASKS_LIB_DIR:?set it to the folder that holds liblance_tasks.so}"
if [[ ! -f "$LANCE_TASKS_LIB_DIR/liblance_tasks.so" ]]; then
    echo "FAILED $LANCE_TASKS_LIB_DIR holds no liblance_tasks.so" >&2
    exit 1
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/lance-tasks-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
passed=0
failed=0

# The loader looks for the SONAME, which a build folder does not have.
mkdir "$work/lib"
lib=$(cd "$LANCE_TASKS_LIB_DIR" && pwd)
ln -s "$lib/liblance_tasks.so" "$work/lib/liblance_tasks.so"
ln -s "$lib/liblance_tasks.so" "$work/lib/liblance_tasks.so.0"
export LD_LIBRARY_PATH="$work/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Expected panics print one line each, not a backtrace.
export RUST_BACKTRACE=0

need_compiler() {
    if ! command -v "$1" >/dev/null; then
        echo "FAILED no compiler: $1" >&2
        exit 1
    fi
}

# note ok|FAILED NAME
note() {
    printf '%-6s %s\n' "$1" "$2"
    if [[ $1 == ok ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

# check NAME COMMAND...: one test, which passes where the command succeeds. Output on failure only.
check() {
    local name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        note ok "$name"
    else
        note FAILED "$name"
        tail -n 60 "$work/log" | sed 's/^/       /' >&2
    fi
}

# program NAME COMMAND...: a program that prints its own tests, as `ok` and `FAILED` lines. A crash, or
# a failing exit without a failed test, is a failed test too, and so is one that does not end.
program() {
    local name=$1 code=0 lines
    shift
    timeout -k 5 "${LANCE_TASKS_TEST_TIMEOUT:-600}" "$@" >"$work/out" 2>"$work/log" || code=$?
    lines=$(grep -cE '^(ok|FAILED) ' "$work/out" || true)
    grep -E '^(ok|FAILED) ' "$work/out" || true
    local bad
    bad=$(grep -c '^FAILED ' "$work/out" || true)
    passed=$((passed + lines - bad))
    failed=$((failed + bad))
    if [[ $code -ne 0 && $bad -eq 0 ]] || [[ $lines -eq 0 ]]; then
        note FAILED "$name (exit $code after $lines tests)"
        bad=1
    fi
    if [[ $bad -ne 0 ]]; then tail -n 80 "$work/log" | sed 's/^/       /' >&2; fi
}

# The last line, and the script's exit code.
finish() {
    echo "$passed passed, $failed failed"
    [[ $failed -eq 0 ]]
}
