#!/usr/bin/env bash
# Install into a folder of its own, build the examples against it by CMake and by pkg-config, run them.
#
#   LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> packaging/smoke.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../tests/c/lib.sh"
unset LD_LIBRARY_PATH # what is installed must be found by itself

cc=${CC:-cc}
cxx=${CXX:-c++}
for tool in "$cc" "$cxx" cmake pkg-config; do need_compiler "$tool"; done

prefix="$work/prefix"
check "install" "$here/install.sh" "$prefix"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)

# The versioned library and its links.
check "lib/liblance_tasks.so.$version is a file" test -f "$prefix/lib/liblance_tasks.so.$version" \
    -a ! -L "$prefix/lib/liblance_tasks.so.$version"
for link in liblance_tasks.so.0 liblance_tasks.so; do
    check "lib/$link leads to it" test "$(readlink -f "$prefix/lib/$link")" = \
        "$(readlink -f "$prefix/lib/liblance_tasks.so.$version")"
done
headers() { (cd "$1" && find lance_tasks -name '*.h' -o -name '*.hpp' | sort); }
check "every header" diff <(headers "$root/include") <(headers "$prefix/include")
if [[ -f "$root/include/lance_tasks/lance_tasks.schema.json" ]]; then
    check "the JSON Schema" test -s "$prefix/share/lance_tasks/lance_tasks.schema.json"
fi
if [[ -x "$LANCE_TASKS_LIB_DIR/lance-tasks" ]]; then
    check "the command line runs" "$prefix/bin/lance-tasks" --version
fi
check "install over an installation" "$here/install.sh" "$prefix"
check "no path of the machine in the packages" bash -c \
    "! grep -rn '$work' '$prefix/lib/pkgconfig' '$prefix/lib/cmake'"

# Moved as a whole, it still works.
mv "$prefix" "$work/moved"
prefix="$work/moved"

mkdir "$work/data"
printf 'id,name\n1,one\n2,\n3,three\n' >"$work/data/in.csv"
run_examples() { # NAME FOLDER
    check "$1: write_csv" "$2/write_csv" "$work/data/in.csv" "$work/data/$1-csv.lance"
    check "$1: open_write" "$2/open_write" "$work/data/$1-open.lance"
    check "$1: maintain" "$2/maintain" "$work/data/in.csv" "$work/data/$1-maintain.lance"
}

# CMake.
by_cmake() { # LANGUAGE
    cmake -S "$root/examples/$1" -B "$work/cmake-$1" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" &&
        cmake --build "$work/cmake-$1" --verbose
}
check "CMake: examples/c" by_cmake c
check "CMake: examples/cpp" by_cmake cpp
mkdir "$work/cmake"
find "$work"/cmake-c "$work"/cmake-cpp -maxdepth 1 -type f -executable -exec cp {} "$work/cmake/" \;
run_examples cmake "$work/cmake"

wants_version() { # VERSION [CMAKE_ARGUMENT...]
    mkdir -p "$work/version"
    printf 'cmake_minimum_required(VERSION 3.16)\nproject(version C)\n%s\n' \
        "find_package(lance_tasks $1 CONFIG REQUIRED)" >"$work/version/CMakeLists.txt"
    rm -rf "$work/version/build"
    cmake -S "$work/version" -B "$work/version/build" -DCMAKE_PREFIX_PATH="$prefix" "${@:2}"
}
check "CMake: find_package of this version" wants_version "$version"
check "CMake: find_package refuses a newer one" bash -c "! $(declare -f wants_version);
    work='$work' prefix='$prefix'; ! wants_version 99.0"

# pkg-config.
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
check "pkg-config: the version" test "$(pkg-config --modversion lance_tasks)" = "$version"
mkdir "$work/pc"
by_pkg_config() { # COMPILER STANDARD SOURCE
    local name
    name=$(basename "${3%.*}")
    # shellcheck disable=SC2046
    "$1" "-std=$2" -Wall -Wextra -Wpedantic -Werror "$3" -o "$work/pc/$name" \
        $(pkg-config --cflags --libs lance_tasks) "-Wl,-rpath,$prefix/lib"
}
for source in "$root"/examples/c/*.c; do
    check "pkg-config: ${source#"$root"/}" by_pkg_config "$cc" c11 "$source"
done
for source in "$root"/examples/cpp/*.cpp; do
    check "pkg-config: ${source#"$root"/}" by_pkg_config "$cxx" c++17 "$source"
done
run_examples pkg-config "$work/pc"

# DESTDIR, and a library folder of another depth.
staged() {
    DESTDIR="$work/stage" LIBDIR=lib/any-linux-gnu "$here/install.sh" /usr &&
        ! grep -rn "$work" "$work/stage/usr/lib/any-linux-gnu/pkgconfig" &&
        wants_version "$version" \
            "-Dlance_tasks_DIR=$work/stage/usr/lib/any-linux-gnu/cmake/lance_tasks" &&
        PKG_CONFIG_PATH="$work/stage/usr/lib/any-linux-gnu/pkgconfig" \
            by_pkg_config "$cc" c11 "$root/examples/c/write_csv.c"
}
check "DESTDIR and LIBDIR" staged

finish
