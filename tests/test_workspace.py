"""The workspace for a wandb server, as far as it can be seen without one."""

import importlib
import sys
from pathlib import Path

import pytest

from whtnet.experiment import Experiment
from whtnet.runs import run
from whtnet.tracking import NullSink

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # the library's own
pytest.importorskip("wandb_workspaces")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("workspace")


@pytest.fixture
def server(monkeypatch):
    """What the library would send."""
    from wandb_workspaces.workspaces import interface, internal

    sent = []
    monkeypatch.setattr(interface.wandb, "Api", lambda: None)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://a.server")

    def upsert(view):
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr(internal, "upsert_view2", upsert)
    return sent


def test_the_workspace_charts_what_runs_log(script, tmp_path):
    logged = set()

    class Listener(NullSink):
        def log(self, epoch, metrics):
            logged.update(metrics)

        def finish(self, summary, *, status=0):
            for name, value in summary.items():
                inner = [f".{key}" for key in value] if isinstance(value, dict) else [""]
                logged.update(f"summary:{name}{key}" for key in inner)

    dataset = {"name": "synthetic", "size": 8, "train_size": 32, "test_size": 16}
    trainer = {"epochs": 1, "batch_size": 16, "precision": "fp32"}
    experiment = Experiment.from_config(
        {
            "backbone": {"name": "resnet20"},
            "policy": {"name": "none", "rules": []},
            "dataset": dataset,
            "trainer": trainer,
            "device": "cpu",
        }
    )
    run(experiment, sink=Listener(), root=tmp_path)
    sections = script.build_workspace("team", "project")._to_model().spec.section.panel_bank_config.sections
    configs = [panel.config for section in sections for panel in section.panels]
    lines = [name for config in configs if getattr(config, "x_axis", "") == "epoch" for name in config.metrics]
    axes = [axis for config in configs if getattr(config, "y_axis", None) for axis in (config.x_axis, config.y_axis)]
    assert len(lines) == 4
    assert len(axes) == 4
    assert set(lines) | set(axes) <= logged


def test_the_command_saves_it(script, server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["workspace.py", "--entity", "team"])
    script.main()
    (view,) = server
    assert (view.entity, view.project) == ("team", "whtnet")
    assert "https://a.server/team/whtnet" in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_no_traceback(script, monkeypatch, capsys):
    from wandb_workspaces.workspaces import internal

    def fail(view):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(internal, "upsert_view2", fail)
    monkeypatch.setattr(sys, "argv", ["workspace.py", "--entity", "team"])
    with pytest.raises(SystemExit):
        script.main()
    assert "wandb login" in capsys.readouterr().err


def test_without_the_library_it_says_what_to_install(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(script.UserError, match="pip install wandb-workspaces"):
        script.build_workspace("team", "project")
