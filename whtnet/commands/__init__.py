"""The command ``whtnet``: what can be done, each in a module of its own that is imported when it is asked for."""

import importlib
import sys

COMMANDS = {
    "train": "train a network",
    "table": "reproduce tables, and compare them with the published ones",
    "count": "what a policy does to a backbone: sites, parameters, MACs",
    "evaluate": "accuracy, classes, calibration of a trained model",
    "predict": "say what is on images",
    "export": "write a trained model as ONNX, int8, torch.export or safetensors",
    "verify": "check what the project publishes, without training",
    "report": "build the page of all results",
}


def main() -> None:
    """Hand the command line on to the command that it names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
        print("usage: whtnet COMMAND …, whtnet COMMAND --help says more", "", *lines, sep="\n")
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no whtnet {name}; there are {', '.join(COMMANDS)}")
    sys.argv = [f"whtnet {name}", *sys.argv[2:]]
    importlib.import_module(f"whtnet.commands.{name}").main()
