"""The notebook's cells run, one after another, in a checkout."""

import json
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["report"].replacements
    assert names["record"]["epochs"] == 1
    assert "What reproduces" in capsys.readouterr().out
