"""ONNX files, and copies of them whose convolutions compute with 8-bit integers."""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.export.checks import check, example_images, quietly, require
from whtnet.export.products import ChannelProducts, as_products
from whtnet.files import atomic_write

PACKAGES = "onnx onnxscript onnxruntime"
_EXACT = "float32_"  # begins the names of convolutions that stand for transforms and batch norms


def export_onnx(model: Classifier, path: Path) -> float:
    """Write an ONNX file; returns the largest difference from the model's logits, in ONNX Runtime.

    Raises:
        ExportError: if ONNX or ONNX Runtime is missing, or the difference is above 1e-4.
    """
    require(PACKAGES)
    with quietly():
        program: Any = torch.onnx.export(
            as_products(model),
            (example_images(model, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        _slim(program.model)
        written = program.model_proto.SerializeToString()
    session = onnx_session(written)
    difference = check(model, lambda x: torch.from_numpy(run_onnx(session, x.numpy())), "ONNX Runtime")
    atomic_write(path, written)
    return difference


def _slim(model: Any) -> None:
    """Keep what computes: no traces of PyTorch's source, equal constants once, batch norms as convolutions."""
    from onnx_ir.passes import common

    for node in model.graph:
        if node.op_type == "Conv" and ChannelProducts.__name__ in str(node.metadata_props):
            node.name = f"{_EXACT}{node.name}"
        if node.op_type == "BatchNormalization" and len(node.inputs[0].shape) == 4:
            _norm_to_convolution(model, node)
    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass(size_limit=1 << 30)(model)
    common.ClearMetadataAndDocStringPass()(model)


def _norm_to_convolution(model: Any, node: Any) -> None:
    # A depthwise 1×1 convolution does the same. ONNX Runtime fuses it with the sum of a residual and the ReLU that
    # follow, and it works in the blocked layout that the next convolution wants; a batch norm does neither.
    import onnx_ir as ir

    weight, bias, mean, variance = (value.const_value.numpy() for value in node.inputs[1:])
    scale = weight / np.sqrt(variance + node.attributes["epsilon"].value)
    name = node.outputs[0].name
    constants = []
    for role, array in (("kernel", scale.reshape(-1, 1, 1, 1)), ("bias", bias - mean * scale)):
        tensor = ir.tensor(array.astype(np.float32), name=f"{name}_{role}")
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        constants.append(ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor))
        model.graph.initializers[tensor.name] = constants[-1]
    group = ir.AttrInt64("group", len(scale))
    convolution = ir.Node("", "Conv", [node.inputs[0], *constants], [group], name=f"{_EXACT}{name}")
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [convolution], node.outputs[:1], convolution.outputs
    )


def quantize_onnx(source: Path, path: Path, images: Tensor) -> None:
    """Write a copy of an ONNX file whose convolutions compute with 8-bit integers; all else stays float32.

    Transforms and thresholds keep their precision: they cut off small coefficients. The 1×1 convolutions inside
    HT-perceptrons are convolutions as any.

    Args:
        source: a file of :func:`export_onnx`.
        path: the file to write.
        images: ``(N, C, H, W)`` in 0..1, whose activations set the scales; a few hundred of the training set.

    Raises:
        ExportError: if ONNX Runtime is missing.
    """
    require(PACKAGES)
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared, quantized = (path.with_name(f".{path.name}.{step}") for step in ("prepared", "quantized"))
    try:
        with quietly():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if node.name.startswith(_EXACT)],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        atomic_write(path, quantized.read_bytes())
    finally:
        for file in (prepared, quantized):
            file.unlink(missing_ok=True)


def onnx_session(model: bytes | Path, threads: int | None = None, profile: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU; with ``profile``, the beginning of a path, it notes its times in a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a session for ``(N, C, H, W)`` float32 in 0..1."""
    return session.run(None, {"images": images})[0]


def profile_onnx(path: Path, threads: int, images: np.ndarray, calls: int = 20) -> dict[str, float]:
    """Where ONNX Runtime's time goes.

    Args:
        path: a file of :func:`export_onnx`.
        threads: that compute.
        images: ``(N, C, H, W)`` float32 in 0..1.
        calls: how often the file is run; a node's time is the median.

    Returns:
        Seconds of a call by kind of operator, as ONNX Runtime has fused them.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(path, threads, Path(folder, "profile"))
        for _ in range(calls):
            run_onnx(session, images)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] * 1e-6)
    spent: dict[str, float] = defaultdict(float)
    for (operator, _), durations in times.items():
        spent[operator] += statistics.median(durations)
    return dict(spent)
