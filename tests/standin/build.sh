#!/usr/bin/env bash
# build.sh OUT_DIR: the four libraries under their sonames, the plain names as links to them, and the headers that
# libnvrtc looks for beside itself. Nothing is done where all of it is newer than its sources.
set -euo pipefail

[ $# = 1 ] || { echo "usage: build.sh OUT_DIR" >&2; exit 2; }
source_dir=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$source_dir"

# One build at a time: tests may be started side by side.
exec 9>"$out/.lock"
flock 9

newest=$(ls -t ./*.cpp ./*.h build.sh | head -n 1)
[ "$out/.done" -nt "$newest" ] && exit 0
rm -f "$out/.done"

compiler=${CXX:-g++}
flags=(-std=c++17 -O1 -fPIC -pthread -Wall -Wextra)

# LORA_TOOL_BLAS_DIR names folders to look in, as for the project's own build.
search=()
IFS=: read -r -a named <<<"${LORA_TOOL_BLAS_DIR:-}"
for folder in ${named[@]+"${named[@]}"} "/usr/lib/$(uname -m)-linux-gnu/openblas-pthread"; do
    [ -d "$folder" ] && search+=("-L$folder")
done

link() { # library soname objects...
    local library=$1 soname=$2
    shift 2
    # A library that is in use keeps its old file.
    "$compiler" -shared -pthread -Wl,-soname,"$soname" -Wl,-rpath,'$ORIGIN' -Wl,-z,defs -o "$out/$soname.new" "$@"
    mv -f "$out/$soname.new" "$out/$soname"
    ln -sf "$soname" "$out/lib$library.so"
}

# The linker takes the shared OpenBLAS, or else the archive; that one may want more of the Fortran runtime.
blas_library() { # library soname object
    local with=("$out/libcuda.so.1" ${search[@]+"${search[@]}"} -Wl,--exclude-libs,ALL -lopenblas -lm)
    link "$@" "${with[@]}" 2>/dev/null || link "$@" "${with[@]}" -lgfortran
}

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
pids=()
for unit in driver grid nvrtc cublas cusolver; do
    "$compiler" "${flags[@]}" -c -o "$objects/$unit.o" "$unit.cpp" &
    pids+=($!)
    if [ ${#pids[@]} = 2 ]; then
        for pid in "${pids[@]}"; do wait "$pid"; done
        pids=()
    fi
done
for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid"; done

link cuda libcuda.so.1 "$objects/driver.o" "$objects/grid.o" -ldl
link nvrtc libnvrtc.so.13 "$objects/nvrtc.o" "$out/libcuda.so.1" -ldl
blas_library cublas libcublas.so.13 "$objects/cublas.o"
blas_library cusolver libcusolver.so.12 "$objects/cusolver.o"
cp kernel.h abi.h "$out/"
touch "$out/.done"
