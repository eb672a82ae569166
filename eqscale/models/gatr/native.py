"""The CPU kernels of ``kernels.cpp``: compiled once per machine with the C++ compiler at hand, loaded by
ctypes.

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

from eqscale.algebra import blades

_FLAGS = ("-O3", "-std=c++17", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_PRODUCTS = {
    "gp": blades.GEOMETRIC_PRODUCT,
    "gp_x": blades.left_adjoint(blades.GEOMETRIC_PRODUCT),
    "gp_y": blades.right_adjoint(blades.GEOMETRIC_PRODUCT),
    "join": blades.JOIN,
    "join_x": blades.left_adjoint(blades.JOIN),
    "join_y": blades.right_adjoint(blades.JOIN),
}


class AttentionTables(ctypes.Structure):
    """Mirror of the struct of the same name in ``kernels.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "inner", "distances", "values")),
        *((name, ctypes.c_void_p) for name in ("q_inner", "k_inner", "q_distance", "k_distance", "value", "out")),
        ("ones_row", ctypes.c_int64),
    )


def _straight_line(name: str) -> str:
    lines = [f"template <class V> static inline void {name}(const V* x, const V* y, V* o) {{"]
    for k, terms in enumerate(blades.by_output(_PRODUCTS[name])):
        total = "".join(f" {'-' if sign < 0 else '+'} x[{i}] * y[{j}]" for i, j, sign in terms)
        lines.append(f"    o[{k}] ={total.removeprefix(' +')};")
    return "\n".join([*lines, "}\n"])


def source() -> str:
    """Complete C++ source: generated products, then ``kernels.cpp``."""
    return "".join(map(_straight_line, _PRODUCTS)) + pathlib.Path(__file__).with_name("kernels.cpp").read_text()


def _compiler() -> str | None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def _cache_folder() -> pathlib.Path:
    base = os.environ.get("EQSCALE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "eqscale"
    )
    return pathlib.Path(base)


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
    """True if the kernels can take ``x``: on the CPU, float32 or float64, compiler at hand, not being
    traced."""
    return (
        not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype in _SUFFIX and _library() is not None
    )


# p pointer, l int64, i int32, d double; in the order of the C functions.
_SIGNATURES = {
    "bilinear": "ppplpiipiipi",
    "bilinear_gradient": "pppplpiipipi",
    "norm": "ppplpipiiiddi",
    "norm_gradient": "pppplpipiii",
    "gate": "pplpipiii",
    "gate_gradient": "ppplpipii",
    "attention": "pplppipdi",
    "attention_gradient": "pppplppipdi",
}
_CTYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32, "d": ctypes.c_double}


@functools.cache
def _function(name: str, dtype: torch.dtype):
    function = getattr(_library(), f"{name}_{_SUFFIX[dtype]}")
    function.argtypes = [_CTYPES[code] for code in _SIGNATURES[name]]
    function.restype = None
    return function


def call(name: str, dtype: torch.dtype, *arguments: Tensor | ctypes.Structure | int | float | None) -> None:
    """Run a kernel on ``torch.get_num_threads()`` threads; tensors, which must be contiguous, go as
    pointers."""
    _function(name, dtype)(
        *(
            a.data_ptr() if isinstance(a, Tensor) else ctypes.addressof(a) if isinstance(a, ctypes.Structure) else a
            for a in arguments
        ),
        torch.get_num_threads(),
    )
