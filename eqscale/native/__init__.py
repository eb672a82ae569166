"""CPU kernels of the networks: C++ compiled once per machine with its own compiler, loaded by ctypes.

Each kernel file has a Python file of the same name with its C interface. Compiling takes some seconds once; the
library is kept in the user's cache folder under the hash of everything that defines it. Where it can't be built or
trusted, one line on stderr says so and the same networks run on ATen operations. ``EQSCALE_NATIVE=0`` switches the
kernels off, ``CXX`` chooses the compiler, ``EQSCALE_CACHE`` the cache folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from eqscale.algebra.blades import BY_OUTPUT
from eqscale.native import frames, gatr, muon, slim, steps, transformer

_HERE = pathlib.Path(__file__).parent
_KERNEL_FILES = {
    "frames.cpp": frames.SIGNATURES,
    "gatr.cpp": gatr.SIGNATURES,
    "muon.cpp": muon.SIGNATURES,
    "slim.cpp": slim.SIGNATURES,
    "steps.cpp": steps.SIGNATURES,
    "transformer.cpp": transformer.SIGNATURES,
}
_FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")

_REALS = {torch.float32: ("f32", ctypes.c_float), torch.float64: ("f64", ctypes.c_double)}

# In signatures, in the order of the C functions' parameters: p pointer, l int64, i int32, t of the tensors' type.
_CTYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32}


def _straight_line(name: str) -> str:
    lines = [f"template <class V> static inline void {name}(const V* x, const V* y, V* o) {{"]
    for k, terms in enumerate(BY_OUTPUT[name]):
        total = "".join(f" {'-' if sign < 0 else '+'} x[{i}] * y[{j}]" for i, j, sign in terms)
        lines.append(f"    o[{k}] ={total.removeprefix(' +')};")
    return "\n".join([*lines, "}\n"])


def _sources() -> dict[str, str]:
    """Name -> content of every file that is compiled: the kernels, their shared headers, the generated products."""
    return {"products.h": "".join(map(_straight_line, BY_OUTPUT))} | {
        name: (_HERE / name).read_text(encoding="utf-8") for name in ("simd.h", "tiles.h", *_KERNEL_FILES)
    }


def _compiler() -> list[str]:
    """The command of a compiler; ``CXX`` is a path, or words as in ``ccache g++``; raises OSError if there is none."""
    given = os.environ.get("CXX")
    candidates = [given] if given else ["g++", "clang++", "c++"]
    for words in [[name] for name in candidates] + ([given.split()] if given else []):
        if words and (path := shutil.which(words[0])):
            return [path, *words[1:]]
    raise OSError(f"no C++ compiler: looked for {', '.join(candidates)}")


def _cache_folder() -> pathlib.Path:
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("EQSCALE_CACHE") or os.path.join(user, "eqscale"), "kernels")


def _cpu_identity() -> str:
    """Tells machines apart whose ``-march=native`` differs (the cache folder may be shared)."""
    try:
        with open("/proc/cpuinfo") as file:
            return "".join(sorted({line for line in file if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor()


def _check_own(path: pathlib.Path) -> None:
    """A library is code: nobody else may have put or changed it."""
    status = path.lstat()
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user: set EQSCALE_CACHE to a folder of your own")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or stat.S_ISLNK(status.st_mode):
        raise PermissionError(f"{path} can be changed by other users, or is a link: remove it or set EQSCALE_CACHE")


def _build() -> pathlib.Path:
    """Path of the compiled library; compiles it if the cache has none.

    Raises:
        OSError, SubprocessError: no compiler, it fails, or the cache folder can't be written or trusted.
    """
    compiler, sources = _compiler(), _sources()
    identity = [*sources.values(), *compiler, *_FLAGS, platform.machine(), _cpu_identity()]
    key = hashlib.sha256("\0".join(identity).encode())
    library = _cache_folder() / f"{key.hexdigest()[:16]}.so"
    library.parent.parent.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(mode=0o700, exist_ok=True)
    _check_own(library.parent)
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            for name, content in sources.items():
                pathlib.Path(folder, name).write_text(content, encoding="utf-8")
            built = pathlib.Path(folder, "built.so")
            command = [*compiler, *_FLAGS, *_KERNEL_FILES, "-o", built.name]
            # Without OpenMP (Apple's clang) the kernels run on one thread.
            with_openmp = subprocess.run([*command, "-fopenmp"], cwd=folder, capture_output=True)
            if with_openmp.returncode:
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
            built.chmod(0o700)
            os.replace(built, library)  # atomic: workers that build at the same time do not see half a file
    _check_own(library)
    return library


@functools.cache
def _library() -> dict[tuple[str, torch.dtype], Callable[..., None]] | None:
    """Every kernel by name and type; None if they are switched off or can't be had."""
    if os.environ.get("EQSCALE_NATIVE", "1") == "0":
        return None
    try:
        library = ctypes.CDLL(str(_build()))
        return {
            (name, dtype): ctypes.CFUNCTYPE(None, *(_CTYPES.get(code, real) for code in signature)).in_dll(
                library, f"{name}_{suffix}"
            )
            for signatures in _KERNEL_FILES.values()
            for name, signature in signatures.items()
            for dtype, (suffix, real) in _REALS.items()
        }
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").split("\n")
        reason = next((line for line in said if "error" in line), said[0]) or str(error)
        print(f"eqscale: networks run without the C++ kernels, several times slower: {reason}", file=sys.stderr)
        return None


def load() -> bool:
    """Whether the kernels are there, built if need be; for a driver, so that the line on stderr is seen."""
    return _library() is not None


_switched_off = False


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Inside, networks run on ATen operations."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def available(x: Tensor) -> bool:
    """True if the kernels can take ``x``: float32 or float64 on a CPU with a compiler, not being traced."""
    if _switched_off or torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" and x.dtype in _REALS and _library() is not None


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """An array of pointers to tensors, null for None; the tensors must outlive it."""
    return (ctypes.c_void_p * len(tensors))(*[None if x is None else x.data_ptr() for x in tensors])


def sizes(tensors: Sequence[Tensor]) -> ctypes.Array:
    """An array of the tensors' numbers of elements."""
    return (ctypes.c_int64 * len(tensors))(*[x.numel() for x in tensors])


def call(name: str, first: Tensor, *others: Tensor | ctypes.Structure | ctypes.Array | int | float | None) -> None:
    """Run a kernel, of the type of ``first``, on ``torch.get_num_threads()`` threads.

    Tensors, which must be contiguous, go as pointers.
    """
    library = _library()
    assert library is not None
    library[name, first.dtype](
        *(
            a.data_ptr()
            if isinstance(a, Tensor)
            else ctypes.addressof(a)
            if isinstance(a, (ctypes.Structure, ctypes.Array))
            else a
            for a in (first, *others)
        ),
        torch.get_num_threads(),
    )
