"""What becomes of a command whose output can't be written, or is read by nobody."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, threading
from rich.console import Console
from whtnet.streams import guarded_streams
console = Console()
with guarded_streams():
    {before}
    for _ in range({lines}):
        {call}("µ ± σ")
    print("went on", file=sys.stderr)
    {after}
"""

calls = pytest.mark.parametrize("call", ["print", "console.print"])
unbuffered = pytest.mark.parametrize("unbuffered", ["", "1"])


def start(stdout, call="print", lines=4000, before="pass", after="pass", **environment):
    script = SCRIPT.format(call=call, lines=lines, before=before, after=after)
    env = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, "-c", script], env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding(encoding):
    with start(subprocess.PIPE, lines=1, PYTHONIOENCODING=encoding) as process:
        assert process.stdout.buffer.read().rstrip() == "µ ± σ".encode(encoding, errors="replace")
    assert process.returncode == 0


@calls
@unbuffered
def test_a_reader_that_has_gone_ends_the_command(call, unbuffered):
    with start(subprocess.PIPE, call, PYTHONUNBUFFERED=unbuffered) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_so_it_does_where_a_thread_finds_out_first():
    thread = "threading.Thread(target=lambda: [print(_, flush=True) for _ in range(40000)])"
    with start(subprocess.PIPE, lines=1, before=f"other = {thread}; other.start(); other.join()") as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@calls
@unbuffered
@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "sys.exit(3)"])
def test_a_full_disk_is_told_once_and_the_work_is_done(call, unbuffered, end):
    with open("/dev/full", "w") as full, start(full, call, 3, after=end, PYTHONUNBUFFERED=unbuffered) as process:
        lines = process.stderr.read().splitlines()
    assert sorted(lines) == ["error: standard output can't be written: No space left on device", "went on"]
    assert process.returncode == (3 if "3" in end else 1)


def test_a_pipe_that_is_not_blocking():
    read, write = os.pipe()
    os.set_blocking(write, False)
    with start(write) as process, open(read) as lines:
        os.close(write)
        time.sleep(0.3)  # until it is full
        assert sum(1 for _ in lines) == 4000
    assert process.returncode == 0
