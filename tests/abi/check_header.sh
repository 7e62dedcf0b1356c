#!/usr/bin/env bash
# Is the committed C header what src/ffi makes? build.rs generates it in every build.
#
#   tests/abi/check_header.sh [--write] [cargo build arguments; default --release]
#
# --write takes the generated header over the committed one. LANCE_TASKS_GENERATED_HEADER names a
# generated header, to be compared without running cargo.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
committed="$root/include/lance_tasks/lance_tasks.h"

write=false
if [[ ${1:-} == --write ]]; then
    write=true
    shift
fi
generated=${LANCE_TASKS_GENERATED_HEADER:-}
if [[ -z $generated ]]; then
    arguments=("$@")
    [[ $# -gt 0 ]] || arguments=(--release)
    messages=$(cd "$root" && cargo build --lib --message-format=json "${arguments[@]}")
    folder=$(grep '"reason":"build-script-executed"' <<<"$messages" |
        grep -oE '"out_dir":"[^"]*/build/lance-tasks-[^"]*"' | head -n 1 |
        sed 's/^"out_dir":"//; s/"$//')
    generated="$folder/lance_tasks.h"
fi
if [[ ! -f $generated ]]; then
    echo "FAILED the build made no header: $generated" >&2
    exit 1
fi
if $write; then
    mkdir -p "$(dirname "$committed")"
    cp "$generated" "$committed"
    echo "wrote $committed"
elif diff -u "$committed" "$generated"; then
    printf '%-6s %s\n' ok "the header is up to date"
    echo "1 passed, 0 failed"
else
    printf '%-6s %s\n' FAILED "the header has drifted; run tests/abi/check_header.sh --write"
    echo "0 passed, 1 failed"
    exit 1
fi
