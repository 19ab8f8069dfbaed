"""Compiling the C++ kernel with the system's compiler, once per source, compiler and kind of CPU.

The source needs no headers but the standard library's and has a C interface, so that it compiles in seconds and works
with every version of PyTorch; ``CXX`` (``g++``, ``ccache g++``) and ``CXXFLAGS`` choose the compiler and further flags.
Nothing happens at import. Of several processes one compiles and the others wait for it; a library gets its name when it
is whole, so a killed build leaves none.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from whtnet.errors import UserError, warn_caller
from whtnet.files import atomic_write, locked
from whtnet.kernels.lazy import KernelError
from whtnet.private_folders import PlaceError, cache_folders, check_private, make_private

SOURCE = Path(__file__).parent / "csrc" / "spectral.cpp"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
_TUNE = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler accepts
_TIMEOUT = 600  # seconds


def load_library() -> ctypes.CDLL:
    """The compiled kernel, from a cache where it is there (:func:`~whtnet.private_folders.cache_folders`).

    Where no cache can be used, the kernel is compiled for this process alone, and a warning says why.

    Raises:
        KernelError: without a compiler, or if it fails.
    """
    compiler = _find_compiler()
    name = f"spectral-{_key(compiler)}.so"
    compiled = functools.cache(lambda: _compile(compiler))  # once, wherever it can be loaded from
    refusals = []
    for folder in cache_folders():
        try:
            return _load(folder / name) or _build(folder / name, compiled)
        except PlaceError as error:
            refusals.append(str(error))
    reason = refusals[0] if refusals else "there is no home"
    warn_caller(
        f"whtnet compiles its kernel for this process alone, because {reason}; "
        "TORCH_EXTENSIONS_DIR=FOLDER keeps it in a folder of yours"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="whtnet-") as scratch:  # for this user alone
            library = Path(scratch, name)
            library.write_bytes(compiled())
            return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelError(f"the compiled kernel cannot be loaded: {error}") from error


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(check_private(path))) if path.exists() else None
    except PlaceError:
        raise
    except PermissionError as error:  # of a folder above
        raise PlaceError(f"{path.parent} can't be read ({error.strerror})") from error
    except OSError:  # damaged: it is built again
        return None


def _build(path: Path, compiled: Callable[[], bytes]) -> ctypes.CDLL:
    make_private(path.parent)
    check_private(path.parent)
    try:
        with locked(path.parent / "lock"):  # ends with the process that holds it
            if library := _load(path):  # built while we waited
                return library
            atomic_write(path, compiled(), mode=0o600)
    except (UserError, OSError) as error:  # no right to write, a full disk
        raise PlaceError(str(error)) from error
    library = _load(path)
    if library is None:
        raise PlaceError(f"{path.parent} holds libraries, but none can be loaded from there")
    return library


def _find_compiler() -> list[str]:
    if os.name != "posix":
        raise KernelError(f"there is no kernel for {sys.platform}")
    try:
        wanted = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise KernelError(f"CXX={os.environ['CXX']!r} can't be read: {error}") from error
    for command in (wanted, ["g++"], ["c++"], ["clang++"]):
        if command and (path := shutil.which(command[0])):
            if wanted and command is not wanted:
                warn_caller(f"{_no_program(wanted)}, and whtnet compiles its kernel with {path}")
            return [path, *command[1:]]
    reason = f"{_no_program(wanted)}; " if wanted else ""
    raise KernelError(f"{reason}no C++ compiler was found (g++, c++ or clang++; or name one in CXX)")


def _no_program(wanted: list[str]) -> str:
    return f"CXX={os.environ['CXX']!r} names {wanted[0]!r} (a path with spaces needs quotes), which is no program here"


def _user_flags() -> list[str]:
    try:
        return shlex.split(os.environ.get("CXXFLAGS", ""))
    except ValueError as error:
        raise KernelError(f"CXXFLAGS={os.environ['CXXFLAGS']!r} can't be read: {error}") from error


def _key(compiler: list[str]) -> str:
    # A home directory may be shared by machines with other CPUs and compilers.
    version = _run([*compiler, "--version"]).stdout
    sources = "".join(path.read_text() for path in sorted(SOURCE.parent.iterdir()))
    words = [os.path.realpath(compiler[0]), *compiler[1:]]
    parts = [sources, str((FLAGS, _TUNE, _user_flags(), words)), version, _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part", "isa")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        lines = [line for line in first.splitlines() if line.split(":")[0].strip() in wanted]
    except OSError:
        lines = [platform.processor(), platform.node()]
    return "\n".join([platform.machine(), *lines])


def _compile(compiler: list[str]) -> bytes:
    errors = []
    with tempfile.TemporaryDirectory(prefix="whtnet-") as folder:
        target = Path(folder, "spectral.so")
        for tune in _TUNE:
            done = _run([*compiler, *FLAGS, *tune, *_user_flags(), str(SOURCE), "-o", str(target)])
            if done.returncode == 0:
                return target.read_bytes()
            errors.append(done.stderr.strip()[-500:])
    raise KernelError(f"{shlex.join(compiler)} failed: {errors[0]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{command[0]} failed: {error}") from error
