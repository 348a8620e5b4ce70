#!/usr/bin/env python3
"""Builds what stands in for CUDA, for the torch of the Python that runs this.

    python .ci/stand_in_gpu/build.py FOLDER

Needs a C++ compiler and torch with CUDA. Writes libcudart, libcublas, libcublasLt and libcuda to
the folder, under the names that torch asks for, and prints the paths as ``LD_PRELOAD`` takes them.
Whatever else the real libraries offer is there, too, and says that it is not supported.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = Path(str(distribution("torch").locate_file("")))
"""Where torch and NVIDIA's libraries lie."""

CUBLAS = """
#include <cstdlib>
extern "C" int stand_in_work(void* stream, void* works_in, size_t size, const char* what);
struct Handle { void* stream; void* works_in; size_t size; int math; int pointers; };
extern "C" {
int stand_in_product(Handle* it, const char* what) {
  return stand_in_work(it->stream, it->works_in, it->size, what) < 0 ? 13 : 0;
}
int cublasCreate_v2(Handle** it) { return *it = new Handle{}, 0; }
int cublasDestroy_v2(Handle* it) { return delete it, 0; }
int cublasSetStream_v2(Handle* it, void* stream) {
  it->stream = stream, it->works_in = nullptr, it->size = 0;
  return 0;
}
int cublasSetWorkspace_v2(Handle* it, void* works_in, size_t size) {
  it->works_in = works_in, it->size = size;
  return 0;
}
int cublasSetMathMode(Handle* it, int mode) { return it->math = mode, 0; }
int cublasGetMathMode(Handle* it, int* mode) { return *mode = it->math, 0; }
int cublasSetPointerMode_v2(Handle* it, int mode) { return it->pointers = mode, 0; }
int cublasGetPointerMode_v2(Handle* it, int* mode) { return *mode = it->pointers, 0; }
}
"""
"""What else cuBLAS has is a product."""

CUBLAS_LT = """
#include <cstdlib>
#include <cstring>
extern "C" int stand_in_work(void* stream, void* works_in, size_t size, const char* what);
extern "C" {
int cublasLtCreate(void** it) { return *it = calloc(1, 64), 0; }
int cublasLtMatmulDescCreate(void** it) { return *it = calloc(1, 256), 0; }
int cublasLtMatmulPreferenceCreate(void** it) { return *it = calloc(1, 256), 0; }
int cublasLtMatrixLayoutCreate(void** it) { return *it = calloc(1, 256), 0; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int,
                                   void* found, int* count) {
  memset(found, 0, 96);
  return *count = 1, 0;
}
int cublasLtMatmul(void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*,
                   void*, void*, void* works_in, size_t size, void* stream) {
  return stand_in_work(stream, works_in, size, __func__) < 0 ? 13 : 0;
}
}
"""

PRODUCT = """
extern "C" int stand_in_product(void* it, const char* what);
extern "C" int {0}(void* it) {{ return stand_in_product(it, "{0}"); }}
"""
NOTHING = 'extern "C" int {0}() {{ return 0; }}'
NOT_SUPPORTED = 'extern "C" int {0}() {{ return 801; }}'
"""How a function is made that is not made by hand."""


def main(folder: Path) -> None:
    """Build all of them."""
    (runtime,) = (PACKAGES / "nvidia").glob("*/lib/libcudart.so.*")
    include = runtime.parent.parent / "include"
    # The compiler's own headers come with Triton alone.
    headers = [f"-I{include}", "-idirafter", str(PACKAGES / "triton/backends/nvidia/include")]
    by_itself = Builder(folder, headers)
    built = [by_itself.library(runtime, (HERE / "runtime.cpp").read_text(), NOT_SUPPORTED)]
    builder = Builder(folder, headers, *built)
    (cublas,) = (PACKAGES / "nvidia").glob("*/lib/libcublas.so.*")
    (cublas_lt,) = (PACKAGES / "nvidia").glob("*/lib/libcublasLt.so.*")
    built.append(builder.library(cublas, CUBLAS, PRODUCT))
    built.append(builder.library(cublas_lt, CUBLAS_LT, NOTHING))
    built.append(builder.whole("libcuda.so.1", (HERE / "driver.cpp").read_text()))
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    print(":".join(map(str, built)))


class Builder:
    """A compiler, and where its work goes."""

    def __init__(self, folder: Path, headers: list[str], *libraries: Path) -> None:
        self._folder = folder
        self._headers = headers
        self._libraries = libraries

    def library(self, real: Path, by_hand: str, otherwise: str) -> Path:
        """What stands in for a library.

        Args:
            real: the library.
            by_hand: what is made by hand.
            otherwise: how each other function of the library is made.
        """
        made = self._object(real.name, by_hand)
        rest = sorted(functions(real, "--dynamic") - functions(made))
        others = self._object(f"{real.name}.rest", "\n".join(map(otherwise.format, rest)))
        # Torch asks for its functions by this version.
        versions = self._folder / f"{real.name}.versions"
        versions.write_text(f"{real.name} {{ global: *; }};\n")
        return self._linked(real.name, made, others, f"-Wl,--version-script={versions}")

    def whole(self, name: str, source: str) -> Path:
        """What stands in for a library, without what is not made by hand."""
        return self._linked(name, self._object(name, source))

    def _object(self, name: str, source: str) -> Path:
        written, made = self._folder / f"{name}.cpp", self._folder / f"{name}.o"
        written.write_text(source)
        run(
            "g++",
            "-std=c++17",
            "-O1",
            "-g",
            "-fPIC",
            "-w",
            *self._headers,
            "-c",
            written,
            "-o",
            made,
        )
        return made

    def _linked(self, name: str, *parts: object) -> Path:
        made = self._folder / name
        soname = f"-Wl,-soname,{name}"
        run("g++", "-shared", soname, *parts, *self._libraries, "-o", made, "-ldl", "-lpthread")
        return made


def functions(library: Path, *options: str) -> set[str]:
    """Those that a library or an object defines."""
    found = run("nm", *options, "--defined-only", library)
    return set(re.findall(r" [TW] (\w+)", found))


def run(*command: object) -> str:
    """What a command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
