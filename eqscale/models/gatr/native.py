"""The CPU kernels of ``kernels.cpp``: compiled once per machine with its C++ compiler, loaded by ctypes.

Compiling takes some seconds once; the library is kept in the user's cache folder under the hash of
everything that defines it. Without a compiler the same network runs on ATen operations. ``EQSCALE_NATIVE=0``
switches the kernels off, ``CXX`` chooses the compiler, ``EQSCALE_CACHE`` the cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import warnings

import torch
from torch import Tensor

from eqscale.algebra.blades import BY_OUTPUT

_FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
_REALS = {torch.float32: ("f32", ctypes.c_float), torch.float64: ("f64", ctypes.c_double)}


class AttentionTables(ctypes.Structure):
    """Mirror of the struct of the same name in ``kernels.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "inner", "distances", "values")),
        *((name, ctypes.c_void_p) for name in ("q_inner", "k_inner", "q_distance", "k_distance", "value", "out")),
        ("ones_row", ctypes.c_int64),
    )


def _straight_line(name: str) -> str:
    lines = [f"template <class V> static inline void {name}(const V* x, const V* y, V* o) {{"]
    for k, terms in enumerate(BY_OUTPUT[name]):
        total = "".join(f" {'-' if sign < 0 else '+'} x[{i}] * y[{j}]" for i, j, sign in terms)
        lines.append(f"    o[{k}] ={total.removeprefix(' +')};")
    return "\n".join([*lines, "}\n"])


def source() -> str:
    """Complete C++ source: generated products, then ``kernels.cpp``."""
    return "".join(map(_straight_line, BY_OUTPUT)) + pathlib.Path(__file__).with_name("kernels.cpp").read_text()


def _compiler() -> str | None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def _cache_folder() -> pathlib.Path:
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("EQSCALE_CACHE") or os.path.join(user, "eqscale"))


def _cpu_identity() -> str:
    """Tells machines apart whose ``-march=native`` differs (the cache folder may be shared)."""
    try:
        with open("/proc/cpuinfo") as file:
            return "".join(sorted({line for line in file if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor()


def _build(compiler: str) -> pathlib.Path:
    code = source()
    key = hashlib.sha256("\0".join([code, compiler, *_FLAGS, platform.machine(), _cpu_identity()]).encode())
    library = _cache_folder() / f"gatr-{key.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            cpp, built = pathlib.Path(folder, "gatr.cpp"), pathlib.Path(folder, "gatr.so")
            cpp.write_text(code)
            command = [compiler, *_FLAGS, str(cpp), "-o", str(built)]
            # Without OpenMP (Apple's clang) the kernels run on one thread.
            with_openmp = subprocess.run([*command, "-fopenmp"], capture_output=True, text=True)
            if with_openmp.returncode:
                subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(built, library)  # atomic: workers that build at the same time do not see half a file
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("EQSCALE_NATIVE", "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"GATr runs without its C++ kernels, which did not build: {detail[-500:]}", stacklevel=2)
        return None


def available(x: Tensor) -> bool:
    """True if the kernels can take ``x``: float32 or float64 on a CPU with a compiler, not being traced."""
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype in _REALS and _library() is not None


# p pointer, l int64, i int32, t of the tensors' type; in the order of the C functions' parameters.
_SIGNATURES = {
    "bilinear": "ppplpipiipi",
    "bilinear_gradient": "pppplpipipi",
    "norm": "ppplpipiiitti",
    "norm_gradient": "pppplpipiii",
    "gate": "pplpipiii",
    "gate_gradient": "ppplpipii",
    "attention": "pplppipti",
    "attention_gradient": "pppplppipti",
}
_CTYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32}


@functools.cache
def _function(name: str, dtype: torch.dtype):
    library, (suffix, real) = _library(), _REALS[dtype]
    assert library is not None
    prototype = ctypes.CFUNCTYPE(None, *(_CTYPES.get(code, real) for code in _SIGNATURES[name]))
    return prototype.in_dll(library, f"{name}_{suffix}")


def call(name: str, first: Tensor, *others: Tensor | ctypes.Structure | int | float | None) -> None:
    """Run a kernel, of the type of ``first``, on ``torch.get_num_threads()`` threads.

    Tensors, which must be contiguous, go as pointers.
    """
    _function(name, first.dtype)(
        *(
            a.data_ptr() if isinstance(a, Tensor) else ctypes.addressof(a) if isinstance(a, ctypes.Structure) else a
            for a in (first, *others)
        ),
        torch.get_num_threads(),
    )
