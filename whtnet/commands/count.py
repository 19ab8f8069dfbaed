"""Report what a policy does to a backbone: every replaced site, parameters before and after, MACs.

whtnet count backbone=mobilenet_v2 policy=paper num_classes=10 input_size=[3,224,224] --json
"""

import argparse
import json

from whtnet.backbones import build_backbone
from whtnet.commands.compose import compose_config
from whtnet.console import console, exit_on_user_error, print_report
from whtnet.extensions import trust_typed
from whtnet.policy import Policy, apply_policy_


@exit_on_user_error
def main() -> None:
    """Parse the command line, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="backbone=… policy=… num_classes=… input_size=[C,H,W] …")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_intermixed_args()
    trust_typed(arguments.overrides)
    config = compose_config(arguments.overrides, "count_params")
    model = build_backbone(**config["backbone"], num_classes=config["num_classes"])
    report = apply_policy_(model, Policy.from_dict(config["policy"]), tuple(config["input_size"]))
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_report(report)
        console.print(f"Counted on {config['num_classes']} classes.", style="dim")
