"""Build the project's workspace on a wandb server: ``python scripts/workspace.py [--entity TEAM]``.

A view with a section of accuracy against cost, one of training curves, and one of the tables and their figures.
"""

import argparse
from typing import Any

from whtnet.commands.compose import compose_config
from whtnet.console import console, exit_on_user_error
from whtnet.errors import UserError
from whtnet.shipped import ROOT
from whtnet.tables import load_spec, table_names

EXPERIMENTS = ROOT / "experiments"
NAME = "whtnet: accuracy against cost"


@exit_on_user_error
def main() -> None:
    """Parse the command line, build the workspace, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team; default: logger.entity of the config, else the account's")
    parser.add_argument("--project", help="default: logger.project of the config")
    arguments = parser.parse_intermixed_args()
    logger = compose_config(["logger=wandb"])["logger"]
    workspace = build_workspace(
        arguments.entity or logger["entity"] or _default_entity(), arguments.project or logger["project"]
    )
    try:
        workspace.save()
    except Exception as error:  # whatever the library's network layer raises
        raise UserError(f"wandb did not take the workspace: {error}; check `wandb login` and the network") from error
    console.print(f"Written: {workspace.url}", soft_wrap=True)


def build_workspace(entity: str, project: str) -> Any:
    """The workspace, not yet saved."""
    workspaces, panels = _library()
    accuracy, parameters, macs = (panels.SummaryMetric(name) for name in ("test_top1.last", "parameters", "macs"))
    tables = [load_spec(EXPERIMENTS, name) for name in table_names(EXPERIMENTS)]
    trained = [spec for spec in tables if spec.kind == "training"]
    sections = [
        workspaces.Section(
            name="Accuracy against cost",
            is_open=True,
            panels=[
                panels.ScatterPlot(title="parameters", x=parameters, y=accuracy, log_x=True),
                panels.ScatterPlot(title="MACs", x=macs, y=accuracy, log_x=True),
                panels.BarPlot(title="test top-1 (%)", metrics=["test_top1"]),
            ],
        ),
        workspaces.Section(
            name="Training curves",
            is_open=True,
            panels=[
                panels.LinePlot(title=title, x="epoch", y=[metric])
                for title, metric in (
                    ("test top-1 (%)", "test_top1"),
                    ("training loss", "train_loss"),
                    ("test loss", "test_loss"),
                    ("images a second", "images_per_s"),
                )
            ],
        ),
        workspaces.Section(
            name="Tables",
            panels=[
                *(panels.WeavePanelSummaryTable(table_name=spec.title) for spec in trained),
                panels.MediaBrowser(title="figures", media_keys=["pareto", "curves"]),
            ],
        ),
    ]
    groups = workspaces.RunsetSettings(groupby=[workspaces.Metric("Group"), workspaces.Config("policy.name")])
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=groups)


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("wandb-workspaces is not installed: `pip install wandb-workspaces`") from error
    return workspaces, panels


def _default_entity() -> str:
    _library()
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:  # no key, no network
        raise UserError(
            f"no wandb account to build the workspace in: {error}; run `wandb login`, or give --entity"
        ) from error
    if not entity:
        raise UserError("the wandb account has no default entity; give --entity")
    return entity


if __name__ == "__main__":
    main()
