"""How the C++ kernel is compiled and where it is kept: on any machine, by any user, for several processes at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import whtnet
from whtnet import private_folders
from whtnet.kernels import build, cpu
from whtnet.kernels.lazy import KernelError

GXX = shutil.which("g++")
needs_compiler = pytest.mark.skipif(GXX is None, reason="no compiler")
root_only = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
not_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")

FIELDS = " ".join([*cpu._JOB_FIELDS, "|", *cpu._SIDE_FIELDS])

# In place of the kernel, something with its entry points: compiles at once.
FAKE = """#!/bin/sh
case "$*" in *--version*) echo fake 1.0; exit;; esac
echo x >> {log}
{before}
for last; do :; done
code='extern "C" {{ int whtnet_forward() {{ return 0; }} int whtnet_backward() {{ return 0; }}'
code="$code"' int whtnet_forward_and() {{ return 0; }}'
code="$code"' void whtnet_use_openmp() {{}} const char* whtnet_job_fields() {{ return "{fields}"; }} }}'
echo "$code" | {gxx} -shared -fPIC -x c++ - -o "$last"
"""


@pytest.fixture
def compiler(tmp_path):
    """A compiler in a folder of its own, and how often it was called."""

    class Compiler:
        path, log = tmp_path / "bin" / "fakexx", tmp_path / "log"

        def __init__(self, before=""):
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(FAKE.format(log=self.log, before=before, gxx=GXX, fields=FIELDS))
            self.path.chmod(0o755)

        @property
        def calls(self):
            return len(self.log.read_text().split()) if self.log.exists() else 0

    return Compiler


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The cache; no other folder is looked at."""
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "whtnet"


def load():
    """Load the kernel and return the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert build.load_library().whtnet_forward() == 0
    return " ".join(str(w.message) for w in caught)


@needs_compiler
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_it_is_compiled_once_and_kept_for_this_user_alone(place, compiler, monkeypatch, umask):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    before = os.umask(umask)
    try:
        assert (load(), load(), fake.calls) == ("", "", 1)
    finally:
        os.umask(before)
    (library,) = place.glob("*.so")
    assert place.stat().st_mode & 0o077 == library.stat().st_mode & 0o077 == 0
    assert {path.suffix for path in place.iterdir()} == {".so", ""}


@needs_compiler
def test_compilers_of_several_words(place, compiler, monkeypatch, tmp_path):
    fake = compiler()
    wrapper = fake.path.with_name("ccache")
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CXX", "ccache fakexx --option 'with space'")
    assert build._find_compiler() == [str(wrapper), "fakexx", "--option", "with space"]
    assert load() == ""
    assert fake.calls == 1
    monkeypatch.setenv("CXX", "ccache fakexx")  # another command, another library
    assert (load(), fake.calls) == ("", 2)


@pytest.mark.parametrize("name", ["CXX", "CXXFLAGS"])
def test_quotes_that_do_not_close_are_named(place, monkeypatch, name):
    monkeypatch.setenv(name, "g++ 'x")
    with pytest.raises(KernelError, match=f"{name}=.*No closing quotation"):
        build.load_library()


@needs_compiler
def test_a_compiler_that_is_not_there_is_named_and_another_one_serves(place, compiler, monkeypatch):
    fake = compiler()
    monkeypatch.setenv("PATH", f"{fake.path.parent}:{os.environ['PATH']}")
    fake.path.rename(fake.path.with_name("g++"))
    monkeypatch.setenv("CXX", "/my compilers/g++ -pipe")
    warning = load()
    assert "CXX='/my compilers/g++ -pipe' names '/my' (a path with spaces needs quotes)" in warning
    assert f"with {fake.path.parent}/g++" in warning
    assert fake.calls == 1


@needs_compiler
def test_a_damaged_library_is_built_again(place, compiler, monkeypatch):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    place.mkdir(parents=True)
    (place / f"spectral-{build._key([str(fake.path)])}.so").write_bytes(b"\x7fELF, in part")
    assert (load(), load(), fake.calls) == ("", "", 1)


# -- the folders of others --------------------------------------------------------------------------------------------


def world_writable(folder):
    folder.chmod(0o777)


def of_another_user(folder):
    os.chown(folder, 12345, -1)


@needs_compiler
@pytest.mark.parametrize("spoil", [world_writable, pytest.param(of_another_user, marks=root_only)])
@pytest.mark.parametrize("what", ["above", "folder", "library"])
def test_a_library_that_another_user_could_change_is_not_loaded(place, compiler, monkeypatch, spoil, what):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    load()
    (library,) = place.glob("*.so")
    spoilt = {"above": place.parent, "folder": place, "library": library}[what]
    library.unlink()  # this process has it in its memory, and would end with a bus error
    library.write_bytes(b"this would run")
    spoil(spoilt)
    warning = load()
    assert "for this process alone" in warning
    assert str(spoilt) in warning
    assert library.read_bytes() == b"this would run"  # left alone
    assert fake.calls == 2


def test_links_do_not_lead_astray(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(private_folders.PlaceError, match="open can be written"):
        private_folders.check_private(tmp_path / "link")


def test_a_group_of_one_may_write(tmp_path, monkeypatch):
    class Entry:
        pw_name, gr_name, gr_mem = "me", "me", ()

    monkeypatch.setattr(private_folders.pwd, "getpwuid", lambda _: Entry)
    monkeypatch.setattr(private_folders.grp, "getgrgid", lambda _: Entry)
    tmp_path.chmod(0o770)
    assert private_folders.check_private(tmp_path) == tmp_path.resolve()
    for name, members in [("users", ()), ("me", ("me", "you"))]:
        monkeypatch.setattr(Entry, "gr_name", name)
        monkeypatch.setattr(Entry, "gr_mem", members)
        with pytest.raises(private_folders.PlaceError, match="other users"):
            private_folders.check_private(tmp_path)


@needs_compiler
def test_the_next_folder_serves_where_the_first_cannot(place, compiler, monkeypatch, tmp_path):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    place.parent.write_text("a file where a folder should be")
    assert (load(), load(), fake.calls) == ("", "", 1)
    assert list((tmp_path / "run" / "whtnet").glob("*.so"))


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "HOME"])
def test_folders_that_would_be_others_in_every_working_folder_are_no_caches(place, monkeypatch, tmp_path, variable):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert private_folders.cache_folders() == [tmp_path / ".cache" / "whtnet"]
    monkeypatch.setenv(variable, "here")
    at_home = None if variable == "HOME" else tmp_path / ".cache"
    assert private_folders.cache_home() == at_home
    assert private_folders.cache_folders() == ([at_home / "whtnet"] if at_home else [])
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    assert any(folder.is_relative_to(tmp_path / "there") for folder in private_folders.cache_folders())


@needs_compiler
@pytest.mark.parametrize("home", [None, "/dev/null", "/proc"])
def test_without_a_home_the_process_has_a_library_of_its_own(place, compiler, monkeypatch, tmp_path, home):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    if home is None:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert "TORCH_EXTENSIONS_DIR" in load()
    assert not list((tmp_path / "tmp").iterdir())
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(KernelError, match="nowhere"):
        load()


@needs_compiler
def test_a_cache_that_nothing_can_be_loaded_from_costs_no_second_compilation(place, compiler, monkeypatch):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    cdll = build.ctypes.CDLL

    def refuse(path):  # as where a file system is mounted noexec
        if Path(path).is_relative_to(place):
            raise OSError(f"{path}: failed to map segment from shared object")
        return cdll(path)

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    assert "none can be loaded from there" in load()
    assert fake.calls == 1


@needs_compiler
@not_root
def test_a_cache_that_can_only_be_read(place, compiler, monkeypatch):
    fake = compiler()
    monkeypatch.setenv("CXX", str(fake.path))
    load()
    place.chmod(0o500)
    assert (load(), fake.calls) == ("", 1)  # what is there is used
    place.chmod(0o000)
    assert "can't be read" in load()
    place.chmod(0o700)


# -- several processes, and ones that are killed ----------------------------------------------------------------------


CODE = """
import torch, whtnet
x = torch.ones(2, 3, 4, 4)
print(whtnet.backend_for(x), whtnet.FWHT2d(4)(x).isfinite().all().item())
"""
BACKEND = "import torch, whtnet; print(whtnet.backend_for(torch.ones(2, 3, 4, 4)))"


def python(code, cache, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("WHTNET_BACKEND", "CXX", "CXXFLAGS")}
    env |= {"TORCH_EXTENSIONS_DIR": str(cache), "PYTHONPATH": str(Path(whtnet.__file__).parents[1]), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


@needs_compiler
def test_of_several_processes_one_compiles(tmp_path, compiler):
    fake = compiler(before="sleep 3")
    processes = [python(BACKEND, tmp_path / "cache", CXX=str(fake.path)) for _ in range(3)]
    assert [finish(process) for process in processes] == [("cpu", "")] * 3
    assert fake.calls == 1


@needs_compiler
def test_a_killed_build_holds_nobody_up(tmp_path, compiler):
    fake = compiler(before="sleep 30")
    killed = python(BACKEND, tmp_path / "cache", CXX=str(fake.path))
    deadline = time.monotonic() + 100
    while fake.calls == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(tmp_path.glob("cache/whtnet/*.so"))
    compiler()  # as before, but at once
    assert finish(python(BACKEND, tmp_path / "cache", CXX=str(fake.path))) == ("cpu", "")


# -- what serves without it -------------------------------------------------------------------------------------------


def test_the_environment_chooses(tmp_path):
    assert finish(python(CODE, tmp_path, WHTNET_BACKEND="reference"))[0] == "reference True"
    assert not list(tmp_path.iterdir())
    process = python(CODE, tmp_path, WHTNET_BACKEND="fast")
    assert "unknown backend 'fast'" in process.communicate(timeout=100)[1]


def test_nothing_is_built_at_import(tmp_path):
    finish(python("import whtnet.kernels, whtnet.layers", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "environment", [{"PATH": ""}, {"CXX": "false", "PATH": "/nowhere"}], ids=["no-compiler", "CXX-not-found"]
)
def test_without_a_compiler_the_reference_serves_and_says_so_once(tmp_path, environment):
    code = CODE + "whtnet.FWHT2d(4)(x); whtnet.BWHT1d(3, 3)(x)"
    out, err = finish(python(code, tmp_path, **environment))
    assert out == "reference True"
    assert err.count("UserWarning") == 1
    assert "no C++ compiler" in err
    assert ("CXX=" in err) == ("CXX" in environment)
    process = python(CODE, tmp_path, WHTNET_BACKEND="cpu", **environment)
    assert "backend 'cpu' is not available" in process.communicate(timeout=100)[1]


@pytest.mark.parametrize("script", ["#!/bin/sh\necho broken >&2\nexit 1\n", "no interpreter at all"])
def test_a_compiler_that_fails_leaves_the_reference(tmp_path, script):
    compiler = tmp_path / "c++"
    compiler.write_text(script)
    compiler.chmod(0o755)
    out, err = finish(python(CODE, tmp_path / "cache", CXX=str(compiler)))
    assert out == "reference True"
    assert ("broken" in err) or ("failed" in err)
    assert err.count("UserWarning") == 1
