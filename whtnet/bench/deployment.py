"""Exported networks in their runtimes, and the paper's speed test in TFLite."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from whtnet.bench.contenders import LAYERS, Site
from whtnet.bench.timing import compare, peak_memory
from whtnet.classifier import Classifier
from whtnet.export import RUNTIMES
from whtnet.export.products import as_products
from whtnet.policy import explicit_policy, load_policy

INPUT_SIZE = (3, 32, 32)
_SITE = Site(10, 1024, 8)  # the paper's speed test, one image at a time


def export_network(network: dict, runtime: str, path: str, device: torch.device) -> dict[str, Any]:
    """Write a network's file for a runtime: its size in bytes, and the largest difference from the model's logits."""
    model = Classifier(
        backbone=network["backbone"],
        policy=explicit_policy(load_policy(network["policy"])),
        classes=[str(i) for i in range(10)],
        input_size=INPUT_SIZE,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    difference = RUNTIMES[runtime].export(model, Path(path))
    return {"bytes": Path(path).stat().st_size, "difference": difference}


def time_exports(
    runtime: str, paths: list[str], batches: list[int], seconds: float, device: torch.device
) -> dict[str, Any]:
    """Files of a runtime in turns: by batch size, the timing of each file."""
    calls = [RUNTIMES[runtime].load(Path(path), torch.get_num_threads()) for path in paths]
    return {str(batch): _compare(calls, torch.rand(batch, *INPUT_SIZE), seconds) for batch in batches}


def _compare(calls: list[Callable], images: torch.Tensor, seconds: float) -> list[dict[str, Any]]:
    with torch.inference_mode():
        timings = compare({i: partial(call, images) for i, call in enumerate(calls)}, seconds=seconds)
    return [timings[i].to_dict() for i in range(len(calls))]


def profile_export(runtime: str, path: str, batches: list[int], device: torch.device) -> dict[str, Any]:
    """By batch size, the seconds that a file spends with one thread by kind of operator; empty if that isn't told."""
    profile = RUNTIMES[runtime].profile
    return {str(batch): profile(Path(path), 1, torch.rand(batch, *INPUT_SIZE)) for batch in batches if profile}


def export_memory(runtime: str, path: str, batch: int, device: torch.device) -> dict[str, Any]:
    """Peak memory of loading a file and running it once with one thread, beyond the libraries and images, in bytes."""
    images, load = torch.rand(batch, *INPUT_SIZE), RUNTIMES[runtime].load
    with torch.inference_mode():
        return {"bytes": peak_memory(lambda: load(Path(path), 1)(images))}


def write_tflite_layer(layer: str, path: str, device: torch.device) -> dict[str, Any]:
    """Write a TFLite file of one layer of the paper's 2-D speed test: its size in bytes."""
    from whtnet.export.tflite.network import lower

    written = lower(as_products(torch.nn.Sequential(LAYERS[layer](_SITE))), _SITE.shape[1:])
    return {"bytes": Path(path).write_bytes(written)}


def time_tflite_layers(paths: list[str], seconds: float, device: torch.device) -> dict[str, Any]:
    """TFLite files of layers in turns: the timing of 10 inputs, one at a time, for each file."""
    calls = [_ten_at_a_time(path, torch.get_num_threads()) for path in paths]
    timings = compare(dict(enumerate(calls)), seconds=seconds)
    return {"timings": [timings[i].to_dict() for i in range(len(paths))]}


def tflite_layer_memory(path: str, device: torch.device) -> dict[str, Any]:
    """Peak memory of loading a layer's file and running it with one thread, beyond the libraries, in bytes."""
    return {"bytes": peak_memory(lambda: _ten_at_a_time(path, 1)())}


def _ten_at_a_time(path: str, threads: int) -> Callable[[], None]:
    _, channels, height, width = _SITE.shape
    call = RUNTIMES["tflite"].load(Path(path), threads)
    image = torch.rand(1, channels, height, width).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(_SITE.images):
            call(image)

    return run
