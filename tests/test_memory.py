"""Memory that is kept costs no page faults."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from whtnet import BWHT1d, backend_for, memory, recycle_results

CODE = """
import resource, sys, torch, whtnet
kept = whtnet.keep_freed_memory() if sys.argv[1] == "keep" else None
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
x = torch.ones(1 << 24)
for _ in range(8):  # a block may fit its successor only once it has merged with a neighbour
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


@pytest.fixture
def recycling():
    recycle_results(0)  # gives back what other tests left
    recycle_results(1 << 30)
    yield
    recycle_results(1 << 30)


@pytest.fixture
def layer():
    layer = BWHT1d(64, 64).requires_grad_(False)
    if backend_for(torch.ones(1)) != "cpu":
        pytest.skip("results are recycled on the CPU")
    return layer


X = torch.randn(2, 64, 32, 32)  # 512 KiB


def test_the_memory_of_a_freed_result_is_used_again(recycling, layer):
    first = layer(X)
    wanted, address = first.clone(), first.data_ptr()
    del first
    again = layer(X)
    assert again.data_ptr() == address
    torch.testing.assert_close(again, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y[1:, :, ::2],
        lambda y: y.detach(),
        lambda y: y.numpy(),
        lambda y: y.untyped_storage(),
        lambda y: torch.from_dlpack(y),
        lambda y: memoryview(y.numpy()),
    ],
    ids=["view", "detach", "numpy", "storage", "dlpack", "memoryview"],
)
def test_a_result_in_use_is_left_alone(recycling, layer, hold):
    y = layer(X)
    address, held = y.data_ptr(), hold(y)
    del y
    others = [layer(-X) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    del held
    assert layer(X).data_ptr() == address


def test_gradients_and_saved_results_are_left_alone(recycling):
    layers = torch.nn.Sequential(*(BWHT1d(64, 64) for _ in range(3)))
    x = X.clone().requires_grad_()
    gradients = []
    for limit in (0, 1 << 30, 1 << 30):
        recycle_results(limit)
        layers(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in layers.parameters())])
        x.grad = None
        layers.zero_grad()
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=0)


def test_memory_shared_with_another_process_is_left_alone(recycling, layer):
    y = layer(X)
    address = y.data_ptr()
    shared = y.share_memory_()  # moves it
    del y
    assert layer(X).data_ptr() == address
    torch.testing.assert_close(shared, layer(X), rtol=0, atol=0)


def test_no_more_than_the_limit_is_kept(recycling, layer):
    recycle_results(X.nbytes + 1000)
    results = [layer(X), layer(X)]
    del results
    assert memory._freed._size == X.nbytes
    recycle_results(X.nbytes - 1)
    assert memory._freed._size == 0
    assert layer(X).shape == X.shape
    assert memory._freed._size == 0


def test_results_of_many_threads_are_their_own(recycling, layer):
    inputs = [X + i for i in range(4)]
    wanted = [layer(x).clone() for x in inputs]

    def work(i):
        return all(torch.equal(layer(inputs[i]), wanted[i]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_the_default_device_does_not_matter(recycling, layer):
    with torch.device("meta"):
        assert layer(X).device.type == "cpu"


@pytest.mark.parametrize("limit", [-1, 1.5, "1"])
def test_a_limit_is_a_number_of_bytes(limit):
    with pytest.raises(memory.MemoryLimitError, match="number of bytes"):
        recycle_results(limit)


def test_the_limit_in_the_environment():
    code = "import whtnet.memory as m; print(m._freed.limit)"

    def limit(value):
        env = os.environ | {"WHTNET_RECYCLE": value}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)

    assert limit("3").stdout.split() == [str(3 << 20)]
    assert "WHTNET_RECYCLE='lots' is no number of MiB" in limit("lots").stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_keeping_freed_memory_leaves_it_to_the_c_library():
    code = "import whtnet, whtnet.memory as m; print(whtnet.keep_freed_memory(), m._freed.limit)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["True", "0"]
