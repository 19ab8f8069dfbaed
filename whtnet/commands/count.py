"""Report what a policy does to a backbone: ``whtnet count``."""

import argparse
import json
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.commands.compose import compose_config
from whtnet.console import console, exit_on_user_error, print_report, print_warning
from whtnet.errors import UserError
from whtnet.extensions import trust_typed
from whtnet.policy import Policy, apply_policy_
from whtnet.settings import check_names


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Count and print."""
    trust_typed(arguments.overrides)
    config = compose_config(arguments.overrides, "count_params")
    check_names(config, ("backbone", "policy", "num_classes", "input_size", "trust"))
    input_size = _input_size(config["input_size"])
    model = build_backbone(**config["backbone"], num_classes=config["num_classes"])
    report = apply_policy_(model, Policy.from_dict(config["policy"]), input_size)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
        for notice in report.notices:
            print_warning(notice)
    else:
        print_report(report)
        console.print(f"Counted on {config['num_classes']} classes.", style="dim")


def _input_size(value: Any) -> tuple[int, int, int]:
    match value:
        case [int(channels), int(height), int(width)] if min(value) > 0:
            return channels, height, width
    raise UserError(f"input_size={value!r} is no size of an image; give channels, height and width: [3,32,32]")
