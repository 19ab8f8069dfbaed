"""The command ``whtnet``: what can be done, each in a module of its own that is imported when it is asked for.

The command line is read before that (:mod:`whtnet.commands.arguments`), so that help and typing mistakes need not wait
for PyTorch.
"""

import importlib
import sys

from whtnet.errors import did_you_mean
from whtnet.streams import guarded_streams

COMMANDS = {
    "train": "train a network",
    "table": "reproduce tables, and compare them with the published ones",
    "count": "what a policy does to a backbone: sites, parameters, MACs",
    "evaluate": "accuracy, classes, calibration of a trained model",
    "predict": "say what is on images",
    "export": "write a trained model as ONNX, int8, TFLite, AOTInductor, torch.export or safetensors",
    "verify": "check what the project publishes, without training",
    "report": "build the page of all results",
}


def main(name: str | None = None) -> None:
    """Run a command on the words of the command line.

    Args:
        name: of the command; None for the first word.
    """
    with guarded_streams():
        _run(name)


def _run(name: str | None) -> None:
    if name is None:
        name = sys.argv[1] if len(sys.argv) > 1 else "--help"
        sys.argv = [f"whtnet {name}", *sys.argv[2:]]
    if name in ("-h", "--help"):
        lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
        print("usage: whtnet COMMAND …, whtnet COMMAND --help says more", "", *lines, sep="\n")
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}; {did_you_mean(name, COMMANDS)}")
    try:
        if name == "train":  # Hydra reads its command line
            importlib.import_module("whtnet.commands.train").main()
            return
        from whtnet.commands.arguments import read_arguments

        arguments = read_arguments(name)
        importlib.import_module(f"whtnet.commands.{name}").main(arguments)
    except KeyboardInterrupt:  # while libraries are imported; later on the commands say more
        sys.exit(130)
