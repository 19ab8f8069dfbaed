"""Measuring in fresh processes: ``measure(task)`` here runs ``python -m whtnet.bench TASK`` there.

A task is a dictionary with the name of one of the functions below, ``do``, and its arguments; what it measured comes
back as JSON.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from whtnet.bench.contenders import (
    MEMORY_FORMATS,
    NetworkSpec,
    ReferenceBWHT1d,
    ReferenceFWHT2d,
    Site,
    inference_call,
    layer_call,
    training_call,
)
from whtnet.bench.deployment import (
    export_memory,
    export_network,
    profile_export,
    tflite_layer_memory,
    time_exports,
    time_tflite_layers,
    write_tflite_layer,
)
from whtnet.bench.timing import compare, peak_memory
from whtnet.errors import UserError
from whtnet.kernels import backend_for
from whtnet.layers import BWHT1d, FWHT2d
from whtnet.memory import keep_freed_memory

MEMORY = {
    "default": lambda: None,
    "kept": keep_freed_memory,
}
"""Where the memory of results on the CPU comes from; see :mod:`whtnet.memory`."""


_PINNED = {"OMP_PROC_BIND": "spread", "OMP_PLACES": "threads"}


class BenchError(UserError, RuntimeError):
    """A measurement that failed in its process."""


def measure(task: Mapping[str, Any], *, pinned: bool = False) -> dict[str, Any]:
    """Run a task in a fresh process.

    Args:
        task: ``do``: the name of a function of this module; ``threads`` and ``device``: where it runs; ``memory``:
            one of :data:`MEMORY`; the other entries are its arguments.
        pinned: bind each of OpenMP's threads to a processor, where PyTorch's own threads are the only ones.

    Raises:
        BenchError: with the end of what the process printed, if it failed.
    """
    command = [sys.executable, "-m", "whtnet.bench", json.dumps(task)]
    environment = os.environ | (_PINNED if pinned else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise BenchError(f"measuring {dict(task)} failed: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_layers(
    site: dict[str, int], names: list[str], mode: str, seconds: float, device: torch.device
) -> dict[str, Any]:
    """Layers of a site in one process, each in its own best memory format.

    Returns:
        By name: median and quartiles of its time, the number of calls, the format, and ``times_as_fast`` as each of the
        others, median and quartiles.
    """
    where = Site(**site)
    calls = {
        (name, layout): layer_call(where, name, layout, mode, device)[1]()
        for name in names
        for layout in MEMORY_FORMATS
    }
    trial = compare(calls, seconds=seconds / 10, calls=3, device=device)
    best = {name: min(MEMORY_FORMATS, key=lambda layout: trial[name, layout].median) for name in names}
    timings = compare({name: calls[name, best[name]] for name in names}, seconds=seconds, device=device)
    return {
        name: {
            **timings[name].to_dict(),
            "memory_format": best[name],
            "times_as_fast": {o: timings[name].times_as_fast(timings[o])._asdict() for o in names if o != name},
        }
        for name in names
    }


def layer_memory(site: dict[str, int], name: str, memory_format: str, device: torch.device) -> dict[str, Any]:
    """Peak memory of building a layer and calling it once, beyond the libraries and the input, in bytes."""
    _first_use(device)
    _, build = layer_call(Site(**site), name, memory_format, "forward", device)
    return {"bytes": peak_memory(lambda: build()(), device)}


def time_sizes(sizes: list[int], points: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """A 1-D layer over n channels, a 1×1 convolution n → n and a copy, on ``points`` numbers: seconds for n numbers."""
    results: dict[str, Any] = {"bwht1d": {}, "conv1x1": {}, "copy": {}}
    for n in sizes:
        x = torch.randn(1, n, 1, points // n, device=device).contiguous(memory_format=torch.channels_last)
        layer, conv = BWHT1d(n, n).to(device), nn.Conv2d(n, n, 1, bias=False).to(device)
        conv = conv.to(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], object]] = {
            "bwht1d": functools.partial(layer, x),
            "conv1x1": functools.partial(conv, x),
            "copy": x.clone,
        }
        with torch.inference_mode():
            for name, timing in compare(calls, seconds=seconds, device=device).items():
                results[name][str(n)] = timing.median / (points // n)
    return results


def time_networks(networks: list[dict], mode: str, batch: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """Networks in one process: inference or training steps; by position, timing and cost.

    A timing's ``times_as_fast`` compares with the same backbone without a policy, which must be among the networks.
    """
    make = {"inference": inference_call, "training": training_call}[mode]
    calls, costs = {}, []
    for index, network in enumerate(networks):
        spec = NetworkSpec(**network)
        model, cost = spec.build(device)
        calls[index] = make(model, spec.input_size, batch, device)
        costs.append(cost)
    timings = compare(calls, seconds=seconds, device=device)
    ratios = [timing.times_as_fast(timings[_unreplaced(networks, index)]) for index, timing in timings.items()]
    return {
        "timings": [
            {**timing.to_dict(), "times_as_fast": ratio._asdict()}
            for timing, ratio in zip(timings.values(), ratios, strict=True)
        ],
        "costs": costs,
    }


def _unreplaced(networks: list[dict], index: int) -> int:
    """Where the network stands that this one is without its policy."""
    wanted = networks[index]["backbone"]
    return next(i for i, other in enumerate(networks) if other["backbone"] == wanted and other["policy"] == "none")


def network_memory(network: dict, batch: int, device: torch.device) -> dict[str, Any]:
    """Peak memory of training steps, beyond the libraries, the weights and the images, in bytes."""
    spec = NetworkSpec(**network)
    model, _ = spec.build(device)
    _first_use(device)
    step = training_call(model, spec.input_size, batch, device)
    return {"bytes": peak_memory(lambda: (step(), step()), device)}


def _first_use(device: torch.device) -> None:
    # What the libraries load and allocate when they are first used is not the layer's: a small one of each kind.
    x = torch.randn(1, 16, 8, 8, device=device)
    small = (nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1), SqueezeExcitation(16, 4), BWHT1d(16, 16), FWHT2d(8))
    for layer in (*small, ReferenceBWHT1d(16, 16), ReferenceFWHT2d(8)):
        layer.to(device)(x).sum().backward()


def conditions(device: torch.device) -> dict[str, Any]:
    """What the figures depend on beside the machine."""
    prefixes = ("OMP_", "GOMP_", "KMP_BLOCKTIME", "KMP_AFFINITY", "MALLOC_")  # scikit-learn sets other KMP_ variables
    variables = {k: v for k, v in os.environ.items() if k.startswith(prefixes)}
    backend = backend_for(torch.ones(1, 1, 2, 2, device=device))
    return {"backend": backend, "variables": variables, "load": os.getloadavg()[0]}


_TASKS = (
    *(time_layers, layer_memory, time_sizes, time_networks, network_memory, conditions),
    *(
        export_network,
        time_exports,
        profile_export,
        export_memory,
        write_tflite_layer,
        time_tflite_layers,
        tflite_layer_memory,
    ),
)


def main() -> None:
    """Run the task given as JSON on the command line and print its result as the last line."""
    task = json.loads(sys.argv[1])
    functions = {f.__name__: f for f in _TASKS}
    device = torch.device(task.pop("device", "cpu"))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    MEMORY[task.pop("memory", "default")]()
    torch.manual_seed(0)
    torch.set_num_threads(task.pop("threads", torch.get_num_threads()))
    print(json.dumps(functions[task.pop("do")](**task, device=device)))
