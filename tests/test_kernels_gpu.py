"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whtnet.kernels import Options, gpu

pytest.importorskip("triton")
HERE = Path(__file__).parent

if torch.cuda.is_available():
    from gpu_cases import *  # noqa: F403
else:

    @pytest.mark.slow
    def test_kernels_in_the_interpreter():
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "WHTNET_BACKEND": "gpu"}
        tests = [str(HERE / "gpu_cases.py"), f"{HERE / 'test_layers.py'}::test_the_authors_released_layers"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]


def compile_for(capability, name, arguments, dtype, **constants):
    """Compile a kernel for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from whtnet.kernels import gpu_kernel

    kernel = getattr(gpu_kernel, name)
    values = arguments | constants
    warps = values.pop("num_warps")
    assert set(values) <= set(kernel.arg_names)
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    signature, constant, attributes = {}, {}, {}

    def describe(value, path):
        if value == 1:
            constant[path] = 1
            return "constexpr"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32"

    for i, argument in enumerate(kernel.arg_names):
        if argument in fixed:
            signature[argument], constant[i,] = "constexpr", values[argument]
        elif argument in ("forth", "back"):
            signature[argument] = "fp32"
        elif argument.startswith("side"):
            signature[argument] = tuple(describe(v, (i, k)) for k, v in enumerate(values[argument]))
        elif argument in values:
            signature[argument] = describe(values[argument], (i,))
        else:
            signature[argument] = f"*{dtype if argument in ('x', 'y', 'gy', 'gx') else 'fp32'}"
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constant, attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


SHAPE = torch.Size((64, 64, 8, 8))
JOBS = {
    "2d-nchw": gpu._job_2d(SHAPE, torch.contiguous_format, (8, 8), Options()),
    "2d-channels_last": gpu._job_2d(SHAPE, torch.channels_last, (8, 8), Options()),
    "1d-channels_last": gpu._job_1d(SHAPE, torch.channels_last, (1, 64), 64, 1, Options()),
    "1d-expansion": gpu._job_1d(SHAPE, torch.channels_last, (8, 32), 256, 1, Options()),
    "1d-nchw": gpu._job_1d(SHAPE, torch.contiguous_format, (1, 64), 64, 1, Options()),
    "1d-windows": gpu._job_1d(SHAPE, torch.channels_last, (32,), 256, 1, Options()),
    "1d-windows-nchw": gpu._job_1d(SHAPE, torch.contiguous_format, (32,), 256, 1, Options()),
    "1d-means": gpu._job_1d(SHAPE, torch.channels_last, (32,), 20, 1, Options()),
    "1d-means-nchw": gpu._job_1d(SHAPE, torch.contiguous_format, (32,), 20, 1, Options()),
}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("job", JOBS)
def test_kernels_compile_for_gpus(job, capability):
    # Overlapping windows begin at any channel: only what is written for them is aligned.
    vectors = r"st\.global\.v4\.b32" if job == "1d-windows" else r"ld\.global\.v4\.b32"
    job, dtype = JOBS[job], "bf16" if capability == 90 else "fp32"
    has_v = job.blocks == 1 and job.side_in is job.side_out
    forward = compile_for(capability, "forward", job.forward_arguments(), dtype, HAS_V=has_v)
    flags = {"HAS_V": has_v, "HAS_GX": True, "steps": 4 if job.paired else 1}
    backward = compile_for(capability, "backward", job.backward_arguments(), dtype, **flags)
    for compiled in (forward, backward):
        # The activation goes through registers alone, in whole vectors; shared memory has room for a parameter at most.
        assert re.search(vectors, compiled.asm["ptx"])
        assert compiled.metadata.shared <= 4 * job.points * 2
    shuffles = len(re.findall(r"shfl\.sync", forward.asm["ptx"]))
    numbers = job.tile_items * job.points / (32 * forward.metadata.num_warps)
    assert shuffles <= numbers * 2 * (job.points.bit_length() - 1)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("job", [name for name in JOBS if "windows" in name or "means" in name])
def test_sums_of_windows_and_means_compile_for_gpus(job, capability):
    job = JOBS[job]
    sides = (job.side_gx, job.side_in) if job.side_out is job.side_y else (job.side_y, job.side_out)
    compiled = compile_for(capability, "fold", job.fold_arguments(*sides), "bf16" if capability == 90 else "fp32")
    assert not re.search(r"\batom\b|\bred\.", compiled.asm["ptx"])
    assert compiled.metadata.shared <= 4 * job.points * job.tile_items
