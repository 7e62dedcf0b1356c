#!/usr/bin/env bash
# Install the library, its headers, the command line, and the CMake and pkg-config packages.
#
#   LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> packaging/install.sh PREFIX
#
# From the environment: DESTDIR is put before PREFIX and leaves no trace in the files; LIBDIR is the
# library folder below PREFIX, default `lib`. What is installed can be moved as a whole.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ $# -ne 1 || -z $1 ]]; then
    echo "usage: LANCE_TASKS_LIB_DIR=<folder with liblance_tasks.so> $0 PREFIX" >&2
    exit 2
fi
built=${LANCE_TASKS_LIB_DIR:?set it to the folder that holds liblance_tasks.so}
if [[ ! -f "$built/liblance_tasks.so" ]]; then
    echo "$built holds no liblance_tasks.so; build it first" >&2
    exit 1
fi

prefix="${DESTDIR:-}$1"
libdir=${LIBDIR:-lib}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
soname=$(readelf -d "$built/liblance_tasks.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
soversion=${soname#liblance_tasks.so.}
if [[ -z $version || -z $soname || $soversion == "$soname" ]]; then
    echo "no version ($version) or SONAME ($soname) was found" >&2
    exit 1
fi

# From a folder `depth` below the library folder up to the prefix.
up() { sed -E 's,[^/]+,..,g' <<<"$libdir/$1"; }
fill() { # TEMPLATE FILE UP
    sed -e "s,@VERSION@,$version,g" -e "s,@SOVERSION@,$soversion,g" -e "s,@LIBDIR@,$libdir,g" \
        -e "s,@UP@,$3,g" "$1" >"$2.new"
    install -m 644 "$2.new" "$2"
    rm "$2.new"
}

lib="$prefix/$libdir"
install -d "$prefix/include/lance_tasks/detail" "$lib/pkgconfig" "$lib/cmake/lance_tasks"

# A new file, then a rename: programs that run with the old library keep it.
install -m 755 "$built/liblance_tasks.so" "$lib/.liblance_tasks.so.new"
mv -f "$lib/.liblance_tasks.so.new" "$lib/liblance_tasks.so.$version"
ln -sfn "liblance_tasks.so.$version" "$lib/$soname"
ln -sfn "$soname" "$lib/liblance_tasks.so"

install -m 644 "$root"/include/lance_tasks/*.h "$root"/include/lance_tasks/*.hpp \
    "$prefix/include/lance_tasks/"
install -m 644 "$root"/include/lance_tasks/detail/*.hpp "$prefix/include/lance_tasks/detail/"
schema="$root/include/lance_tasks/lance_tasks.schema.json"
if [[ -f $schema ]]; then
    install -d "$prefix/share/lance_tasks"
    install -m 644 "$schema" "$prefix/share/lance_tasks/"
fi
if [[ -f "$root/LICENSE" ]]; then
    install -d "$prefix/share/doc/lance_tasks"
    install -m 644 "$root/LICENSE" "$prefix/share/doc/lance_tasks/"
fi

fill "$root/packaging/lance_tasks.pc.in" "$lib/pkgconfig/lance_tasks.pc" "$(up pkgconfig)"
for name in lance_tasksConfig lance_tasksConfigVersion; do
    fill "$root/cmake/$name.cmake.in" "$lib/cmake/lance_tasks/$name.cmake" \
        "$(up cmake/lance_tasks)"
done

if [[ -x "$built/lance-tasks" ]]; then
    install -d "$prefix/bin"
    install -m 755 "$built/lance-tasks" "$prefix/bin/.lance-tasks.new"
    mv -f "$prefix/bin/.lance-tasks.new" "$prefix/bin/lance-tasks"
fi
echo "installed lance-tasks $version in $prefix"
