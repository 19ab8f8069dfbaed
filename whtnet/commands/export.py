"""Export a trained model and check what is written against it: ``whtnet export``."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from whtnet.bench import compare
from whtnet.classifier import Classifier
from whtnet.commands.arguments import FORMATS
from whtnet.commands.data import load_data
from whtnet.console import console, exit_on_user_error
from whtnet.data import Loaders
from whtnet.engine.checkpoint import CHECKPOINT
from whtnet.errors import UserError
from whtnet.evaluation import collect, measure_logits
from whtnet.export import RUNTIMES, export_onnx, export_safetensors, export_torch, onnx_session, quantize_onnx, run_onnx
from whtnet.extensions import trust
from whtnet.tables import Cell, Column, Table, to_rich

CALIBRATION_IMAGES = 256
TIMED_BATCHES = (1, 64)


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Export, check, time."""
    trust(arguments.trust)
    arguments.overrides += [word for word in arguments.to if "=" in word]  # --to takes all words that follow
    arguments.to = [word for word in arguments.to if "=" not in word] or ["onnx"]
    _check(arguments)
    model = Classifier.load(arguments.model)
    # Before anything is written: data may not be there.
    data = load_data(model, arguments.overrides, 64, torch.device("cpu")) if "int8" in arguments.to else None
    output: Path = arguments.output or Path("exports") / _place(arguments.model)
    files = {}
    if {"onnx", "int8"} & {*arguments.to}:
        files["ONNX"] = output / "model.onnx"
        _report(files["ONNX"], export_onnx(model, files["ONNX"]))
    for name in [name for name in ("tflite", "aoti") if name in arguments.to]:
        path = output / RUNTIMES[name].file
        _report(path, RUNTIMES[name].export(model, path))
    if "torch" in arguments.to:
        _report(output / "model.pt2", export_torch(model, output / "model.pt2"))
    if "safetensors" in arguments.to:
        _report(output / "safetensors", export_safetensors(model, output / "safetensors"))
    if data is not None:
        files["ONNX, int8 convolutions"] = output / "model_int8.onnx"
        quantize_onnx(files["ONNX"], files["ONNX, int8 convolutions"], _calibration_images(model, data))
        console.print(f"Written: {files['ONNX, int8 convolutions']}")
        console.print(to_rich(_accuracies(model, data, files)))
    if arguments.time and files:
        console.print(to_rich(_timings(model, files, arguments.seconds)))


def _check(arguments: argparse.Namespace) -> None:
    """Find what would be passed over."""
    if arguments.overrides and "int8" not in arguments.to:
        known = set(FORMATS) & {*arguments.overrides}
        remedy = f"give --to {' '.join(sorted(known))}" if known else "only --to int8 reads images"
        raise UserError(f"{arguments.overrides[0]!r} has no effect on this export; {remedy}")
    if arguments.time and not {"onnx", "int8"} & {*arguments.to}:
        raise UserError("--time compares files of ONNX Runtime; add onnx or int8 to --to")


def _place(model: str) -> Path:
    """Where the model lies, seen from the working folder or the root, so that no two models have one place."""
    path = Path(model)
    if not path.exists():  # on a hub, or one of the project's
        return path
    path = path.resolve()
    path = path.parent if path.name == CHECKPOINT else path
    return path.relative_to(Path.cwd() if path.is_relative_to(Path.cwd()) else path.anchor)


def _report(path: Path, difference: float) -> None:
    console.print(f"Written: {path} (logits differ by at most {difference:.1e})")


def _pixels(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    return images * model.std + model.mean


def _calibration_images(model: Classifier, data: Loaders) -> torch.Tensor:
    return _pixels(model, torch.cat(data.train.first_images(CALIBRATION_IMAGES)))


def _accuracies(model: Classifier, data: Loaders, files: dict[str, Path]) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, path in files.items():
        session = onnx_session(path)

        def predict(images: torch.Tensor, session: Any = session) -> torch.Tensor:
            return torch.from_numpy(run_onnx(session, _pixels(model, images).numpy()))

        accuracy = measure_logits(*collect(predict, data.test)).top1
        rows.append({"file": name, "bytes": path.stat().st_size, "test_top1": accuracy})
    columns = [Column("file"), Column("bytes", "kB", ",.0f", 1e-3), Column("test_top1", "test top-1 (%)", ".2f")]
    return Table("Accuracy", columns, rows)


def _timings(model: Classifier, files: dict[str, Path], seconds: float) -> Table:
    """Milliseconds a batch in ONNX Runtime, in turns in this process."""
    baseline = Classifier(
        model.backbone,
        policy={"name": "none", "rules": []},
        classes=model.classes,
        input_size=model.input_size,
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "baseline.onnx")
        export_onnx(baseline, plain)
        sessions = {"ONNX without the policy": onnx_session(plain, torch.get_num_threads())}
    sessions |= {name: onnx_session(path, torch.get_num_threads()) for name, path in files.items()}
    rows: dict[str, dict[str, Any]] = {name: {"file": name} for name in sessions}
    for batch in TIMED_BATCHES:
        images = torch.rand(batch, *model.input_size).numpy()
        calls = {n: lambda s=s, images=images: run_onnx(s, images) for n, s in sessions.items()}
        for name, timing in compare(calls, seconds=seconds).items():
            rows[name][f"batch {batch}"] = timing.median
    title = f"Milliseconds a batch, ONNX Runtime, {torch.get_num_threads()} threads, medians"
    columns = [Column("file"), *(Column(f"batch {n}", form=".2f", scale=1e3) for n in TIMED_BATCHES)]
    return Table(title, columns, list(rows.values()))
