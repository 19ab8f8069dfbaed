"""The command lines of all commands but ``train``, which is Hydra's. Needs no PyTorch."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from whtnet.errors import did_you_mean
from whtnet.files import FileError, check_writable
from whtnet.shipped import PLACE, ROOT

FORMATS = ("onnx", "int8", "tflite", "aoti", "torch", "safetensors")


class CommandParser(argparse.ArgumentParser):
    """One that says in a line what is wrong, and how an option is spelt."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        usage_error(self, message)


def usage_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End with status 2 and a line that has a hint."""
    known = [option for action in parser._actions for option in action.option_strings]
    hints = [did_you_mean(word, known) for word in re.findall(r"--[\w-]+", message) if word not in known]
    hint = next((hint for hint in hints if hint.startswith("did")), f"{parser.prog} --help says more")
    parser.exit(2, f"error: {message}; {hint}\n")


def read_arguments(name: str) -> argparse.Namespace:
    """The words of the command line, as the command ``name`` takes them; options and other words in any order."""
    parser = CommandParser(
        prog=f"whtnet {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _ADD[name](parser)
    return parser.parse_intermixed_args()


def _count(parser: CommandParser) -> None:
    parser.description = """Say what a policy does to a backbone: replaced sites, parameters before and after, MACs.

whtnet count backbone=mobilenet_v2 policy=paper num_classes=10 input_size=[3,224,224] --json"""
    parser.add_argument(
        "overrides", nargs="*", default=[], help="backbone=… policy=… num_classes=… input_size=[C,H,W] …"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _model(parser: CommandParser) -> None:
    parser.add_argument("model", help="folder of a run, checkpoint file, folder of a saved model, or OWNER/NAME")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="of yours, that the model names"
    )


def _evaluate(parser: CommandParser) -> None:
    parser.description = """Evaluate a trained model: top-1, top-5, per class, confusion matrix, calibration.

whtnet evaluate MODEL [dataset.root=FOLDER …]    MODEL: folder of a run, checkpoint, saved model, hub name"""
    _model(parser)
    parser.add_argument("overrides", nargs="*", default=[], help="dataset.root=… or other settings of the data set")
    parser.add_argument("--split", choices=("test", "holdout"), default="test")
    parser.add_argument("--batch-size", type=_positive, default=500, metavar="N", help="images a step (default 500)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    parser.add_argument(
        "--json", type=_output('{\n  "classes"'), metavar="FILE", help="write the figures there as well"
    )


def _predict(parser: CommandParser) -> None:
    parser.description = """Say what is on images, with a trained model.

whtnet predict MODEL IMAGE [IMAGE …]"""
    _model(parser)
    parser.add_argument("images", nargs="+", type=_image, metavar="IMAGE")
    parser.add_argument("--top", type=_positive, default=3, metavar="N", help="classes for each image (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _export(parser: CommandParser) -> None:
    parser.description = """Export a trained model and check what is written against it.

whtnet export MODEL --to onnx int8 tflite aoti torch safetensors --time

int8 takes images of the data set to choose its scales, and compares its accuracy with the ONNX file's."""
    _model(parser)
    parser.add_argument("overrides", nargs="*", default=[], help="dataset.root=… for int8")
    parser.add_argument("--to", nargs="+", type=_format, default=["onnx"], metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--output", type=_new_folder, metavar="FOLDER", help="default: exports/MODEL")
    parser.add_argument("--time", action="store_true", help="time the ONNX files beside the unreplaced model's")
    parser.add_argument("--seconds", type=_seconds, default=2.0, help="of timing for each file and batch size")


def _verify(parser: CommandParser) -> None:
    parser.description = """Check what the project publishes, without training.

Records replay, counts are those of the built models and of the tables' rows, results/ and README.md hold what the
records render to, committed weights give their records' accuracies, and HT-2023's released networks those of their
logs, where files and data are at hand. Exits with 1 if anything failed."""


def _report(parser: CommandParser) -> None:
    parser.description = "Build the page of all results."
    parser.add_argument("--results", type=_folder, default=ROOT / "results", help="folder of the measurements")
    parser.add_argument(
        "--output", type=_output("<!doctype html>"), help="the page; default: report.html beside the measurements"
    )


def _table(parser: CommandParser) -> None:
    parser.description = f"""Reproduce tables; without a name, the quick ones.

New runs, counts, timings and tables go to {(PLACE / "runs" / "results").as_posix()}/, laid out as results/, and are
compared with results/."""
    names = ", ".join(sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml")))
    parser.add_argument("tables", nargs="*", default=[], help=f"from {names}; default: the quick ones")
    parser.add_argument("--list", action="store_true", help="list the tables and stop")
    parser.add_argument(
        "--logger", default="wandb", help="where curves go besides the records: wandb, tensorboard, none"
    )
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="a Hydra override for all runs"
    )
    parser.add_argument("--seconds", type=_seconds, default=1.5, help="time for each contender of a speed table")
    parser.add_argument("--fresh", action="store_true", help="train again what is recorded or was begun")
    parser.add_argument(
        "--recipe", help="a trainer config, such as authors or short; default: authors on a GPU, else short"
    )
    parser.add_argument("--rows", type=_words, metavar="ID,…", help="train these rows only")
    parser.add_argument("--seeds", type=_numbers, metavar="N,…", help="train these seeds in place of the table's")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="runs at once; default: 1 on a CPU, many on a GPU")
    parser.add_argument(
        "--no-training", action="store_true", help="train and time nothing: count, and show what is recorded"
    )
    parser.add_argument(
        "--update", action="store_true", help="for maintainers: make results/ and the tables in README.md and docs/"
    )


_ADD: dict[str, Callable[[CommandParser], None]] = {
    "table": _table,
    "count": _count,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "verify": _verify,
    "report": _report,
}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 0,1,2")
    return [int(word) for word in text.split(",")]


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return float(text)


def _format(text: str) -> str:
    if text not in FORMATS and "=" not in text:
        raise argparse.ArgumentTypeError(f"there is no format {text!r}; {did_you_mean(text, FORMATS)}")
    return text


def _folder(text: str) -> Path:
    if not _there(text, Path.is_dir):
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def _output(begins: str) -> Callable[[str], Path]:
    """A file to write, in place of one at most that begins as those do, so that none is lost to a slip."""

    def check(text: str) -> Path:
        path = _file(text)
        if _there(text, Path.is_file):
            with path.open("rb") as file:
                start = file.read(100).strip()
            if start and not start.startswith(begins.encode()):
                raise argparse.ArgumentTypeError(f"{text!r} is there and holds something else; name a new file")
        return path

    return check


def _file(text: str) -> Path:
    if _there(text, Path.is_dir):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give the name of a file")
    if not _there(text, Path.exists):
        _check_place(Path(text).absolute().parent)
        _check_place(Path(text).absolute())  # for its name
    return Path(text)


def _new_folder(text: str) -> Path:
    _check_place(Path(text).absolute())
    return Path(text)


def _image(text: str) -> Path:
    if _there(text, Path.is_dir):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give images: {text.rstrip('/')}/*")
    if not _there(text, Path.exists):
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def _there(text: str, kind: Callable[[Path], bool]) -> bool:
    """Whether a path is there; one that is too long, or that may not be looked at, is not."""
    try:
        return kind(Path(text))
    except OSError:
        return False


def _check_place(folder: Path) -> None:
    try:
        check_writable(folder)
    except FileError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
