"""Compiling the C++ kernel with the system's compiler, once per source, compiler and kind of CPU.

The source needs no headers but the standard library's and has a C interface, so that it compiles in seconds and works
with every version of PyTorch; ``CXX`` and ``CXXFLAGS`` choose the compiler and further flags. Nothing happens at
import. Safe for several processes at once and after a killed build: the library is compiled beside its place and
renamed into it.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from whtnet.kernels.lazy import KernelError

SOURCE = Path(__file__).parent / "csrc" / "spectral.cpp"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
_TUNE = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
_TIMEOUT = 600  # seconds


def load_library() -> ctypes.CDLL:
    """The compiled kernel, from the cache where it is there.

    Raises:
        KernelError: without a compiler, or if it fails.
    """
    compiler = _find_compiler()
    path = cache_folder() / f"spectral-{_key(compiler)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged: build it again
            pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent)
    except OSError:  # a home that cannot be written: this process alone has the library, and the folder goes at once
        folder = tempfile.TemporaryDirectory(prefix="whtnet-")
        path = None
    with folder:
        built = Path(folder.name) / "spectral.so"
        _compile(compiler, built)
        if path is not None:
            with built.open("rb+") as file:  # on the disk before it has its name
                os.fsync(file.fileno())
            os.replace(built, path)
            _remove_abandoned(path.parent)
            built = path
        try:
            return ctypes.CDLL(str(built))
        except OSError as error:
            raise KernelError(f"the compiled kernel cannot be loaded: {error}") from error


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$TORCH_EXTENSIONS_DIR``, else ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "whtnet"
    except RuntimeError:  # no home
        return Path(tempfile.gettempdir()) / "nowhere" / "whtnet"


def _find_compiler() -> str:
    if os.name != "posix":
        raise KernelError(f"there is no kernel for {sys.platform}")
    wanted = os.environ.get("CXX", "").split()
    for name in (*wanted[:1], "g++", "c++", "clang++"):
        if path := shutil.which(name):
            return path
    raise KernelError("no C++ compiler was found (g++, c++ or clang++; or name one in CXX)")


def _user_flags() -> list[str]:
    return shlex.split(os.environ.get("CXXFLAGS", ""))


def _key(compiler: str) -> str:
    # A home directory may be shared by machines with other CPUs and compilers.
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    sources = "".join(path.read_text() for path in sorted(SOURCE.parent.iterdir()))
    parts = [sources, str((FLAGS, _TUNE, _user_flags())), os.path.realpath(compiler), version, _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part", "isa")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.split(":")[0].strip() in wanted]
    except OSError:
        lines = [platform.processor(), platform.node()]
    return "\n".join([platform.machine(), *lines])


def _compile(compiler: str, target: Path) -> None:
    errors = []
    for tune in _TUNE:
        command = [compiler, *FLAGS, *tune, *_user_flags(), str(SOURCE), "-o", str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler} failed: {error}") from error
        if done.returncode == 0:
            return
        errors.append(done.stderr.strip()[-500:])
    raise KernelError(f"{compiler} failed: {errors[0]}")


def _remove_abandoned(folder: Path) -> None:
    for left in folder.glob(".build-*"):  # by builds that were killed
        try:
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass
