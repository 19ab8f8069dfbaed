"""A trained classifier as files for other programs.

ONNX, ONNX with 8-bit convolutions, TFLite, AOTInductor, torch.export, safetensors. All take ``(N, C, H, W)`` float32
pixels in 0..1 (TFLite ``(N, H, W, C)``), for any N, and give ``(N, classes)`` logits. What is written is compared with
the model first, and not left behind if it disagrees, but for 8-bit convolutions, which do by design.
"""

from whtnet.export.checks import TOLERANCE, ExportError
from whtnet.export.compiled import export_aoti
from whtnet.export.onnx_file import export_onnx, onnx_session, quantize_onnx, run_onnx
from whtnet.export.programs import export_safetensors, export_torch
from whtnet.export.runtimes import RUNTIMES, Runtime
from whtnet.export.tflite import export_tflite

__all__ = [
    "RUNTIMES",
    "TOLERANCE",
    "ExportError",
    "Runtime",
    "export_aoti",
    "export_onnx",
    "export_safetensors",
    "export_tflite",
    "export_torch",
    "onnx_session",
    "quantize_onnx",
    "run_onnx",
]
