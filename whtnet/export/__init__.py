"""A trained classifier as files for other programs: ONNX, ONNX with 8-bit convolutions, torch.export, safetensors.

All of them take ``(N, C, H, W)`` float32 pixels in 0..1, for any N, and give ``(N, classes)`` logits. What is written
is compared with the model first; a program that disagrees is not left behind.
"""

from whtnet.export.checks import TOLERANCE, ExportError
from whtnet.export.onnx_file import export_onnx, onnx_session, quantize_onnx, run_onnx
from whtnet.export.programs import export_safetensors, export_torch

__all__ = [
    "TOLERANCE",
    "ExportError",
    "export_onnx",
    "export_safetensors",
    "export_torch",
    "onnx_session",
    "quantize_onnx",
    "run_onnx",
]
