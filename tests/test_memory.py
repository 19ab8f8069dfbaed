"""Memory that is kept costs no page faults."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch, whtnet
kept = whtnet.keep_freed_memory() if sys.argv[1] == "keep" else None
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = torch.ones(1 << 24)
for _ in range(32):  # cuttings between blocks wait in a cache of seven a size before they merge with them
    x + 1
before = faults()
for _ in range(4):
    x + 1
print(kept, (faults() - before) * resource.getpagesize() >= 4 * x.nbytes // 2)
"""


def run(how, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | environment
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, env=env)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_kept():
    assert run("default") == ["None", "True"]
    assert run("keep") == ["True", "False"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_the_environment_goes_before():
    assert run("keep", MALLOC_ARENA_MAX="3")[0] == "False"
