"""Records of format 1 as format 2: what was left open then is written out, and every record replays."""

import copy
import json
import sys
from pathlib import Path

import pytest

from whtnet.backbones import build_backbone
from whtnet.experiment import Experiment
from whtnet.policy import apply_policy_
from whtnet.records import RecordError, put_record, read_layers, read_records

ROOT = Path(__file__).parents[1]
RULES = [
    {"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}},
    {"match": "conv1x1", "replace": "BWHT1d", "options": {"block_size": None}},
]
OLD = {
    "table": "mine",
    "row": "a",
    "recipe": "short",
    "run": "resnet20-paper-seed0-01234567",
    "seed": 0,
    "precision": "bfloat16",
    "settings": {
        "backbone": {"name": "resnet20", "form": "keras"},
        "policy": {
            "name": "paper",
            "options": {"threshold": "soft", "weight": True},
            "families": [
                {"architecture": "(?i)^mobilenet", "rules": [{"match": "conv1x1", "replace": "BWHT1d"}]},
                {"architecture": "^CifarResNet$", "rules": RULES},
            ],
        },
        "dataset": {"name": "digits", "holdout": 0.0},
        "trainer": {"epochs": 3, "channels_last": None},
        "seed": 0,
    },
    "environment": {"commit": "0123", "dirty": False, "device": "cpu"},
    "history": [{"epoch": 1, "test_top1": 50.0}],
    "layers": [{"name": "x", "threshold": [0.5]}],
}


@pytest.fixture
def script(scripts):
    return scripts("migrate_records")


def old(policy=None, **changes):
    record = copy.deepcopy(OLD) | changes
    if policy is not None:
        record["settings"]["policy"] = policy
    return record


def rules_of(record):
    return record["settings"]["policy"]["rules"]


def test_the_rules_are_those_of_the_backbone_with_every_option_as_it_was(script):
    record, layers = script.migrate(old(), Path(), {})
    first, second = rules_of(record)
    assert (first["where"], first["options"]["threshold"], first["options"]["weight"]) == ({"nth": 2}, "soft", True)
    assert (second["replace"], second["options"]["block_size"], second["options"]["norm"]) == ("BWHT1d", None, "ortho")
    assert layers == OLD["layers"]
    assert {key: record[key] for key in ("table", "row", "recipe", "seed", "history")} == {
        key: OLD[key] for key in ("table", "row", "recipe", "seed", "history")
    }
    assert Experiment.from_record(record).identity == record["identity"]


def test_a_layer_is_what_it_was_though_its_defaults_changed(script):
    """The number of parameters tells the forms apart."""
    policy = {"name": "x", "options": {"paths": 3}, "rules": [{"match": "conv3x3", "replace": "HTPerceptron2d"}]}
    policy["rules"][0]["where"] = {"nth": 2}
    (rule,) = rules_of(script.migrate(old(policy), Path(), {})[0])
    assert rule["options"]["norm"] == "ortho"
    assert rule["options"]["paths"] == 3
    record = script.migrate(old(), Path(), {})[0]
    replaced = apply_policy_(build_backbone("resnet20"), record["settings"]["policy"])
    assert replaced.after.parameters == 133_082


@pytest.mark.parametrize("layer", ["Identity", "DepthwiseConv2d"])
def test_controls_have_no_options(script, layer):
    rules = [{"match": "conv3x3", "replace": layer, "where": {"part": "blocks", "nth": -1, "stride": 1}}]
    record = script.migrate(old({"name": "control", "rules": rules}), Path(), {})[0]
    assert rules_of(record) == rules


def test_a_layer_that_there_was_not_is_named(script):
    with pytest.raises(RecordError, match="no layer 'Magic'; it had BWHT1d"):
        script.migrate(old({"name": "x", "rules": [{"match": "conv3x3", "replace": "Magic"}]}), Path(), {})


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cpu", "bfloat16", True), ("cpu", "float32", False), ("cuda", "float32", True)],
)
def test_channels_last_was_chosen_where_it_helped(script, device, precision, expected):
    record = old(precision=precision, environment={"dirty": False, "device": device})
    assert script.migrate(record, Path(), {})[0]["settings"]["trainer"]["channels_last"] is expected
    record = old()
    record["settings"]["trainer"]["channels_last"] = False
    assert script.migrate(record, Path(), {})[0]["settings"]["trainer"]["channels_last"] is False


def test_a_setting_with_another_name_now_keeps_its_value(script):
    record = old()
    record["settings"]["trainer"]["spectral_lr"] = 0.1
    assert script.migrate(record, Path(), {})[0]["settings"]["trainer"]["spectral_lr_scale"] == 0.1


def test_the_command_writes_what_replays_and_drops_what_can_not_be_traced(script, tmp_path, monkeypatch, capsys):
    lines = [old(), old(row="b"), old(row="c", environment={"dirty": True, "device": "cpu"})]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = {key: value for key, value in old(seed=5).items() if key not in ("table", "row", "recipe")}
    run["settings"]["seed"] = 5
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps(run))
    into = tmp_path / "results"
    for arguments in (["runs.jsonl"], ["run", "--table", "mine", "--row", "d", "--recipe", "long"]):
        source, *labels = arguments
        monkeypatch.setattr(sys, "argv", ["migrate_records.py", str(tmp_path / source), "--into", str(into), *labels])
        script.main()
    found = read_records(into)
    assert [(r["row"], r["seed"], r["recipe"]) for r in found] == [
        ("a", 0, "short"),
        ("b", 0, "short"),
        ("d", 5, "long"),
    ]
    assert all(Experiment.from_record(record) for record in found)
    assert "2 records written" in capsys.readouterr().out
    assert read_layers(into, found[0]) == OLD["layers"]


def test_after_the_change_of_a_default_records_get_the_identity_of_their_settings(script, tmp_path, monkeypatch):
    record, layers = script.migrate(old(), Path(), {})
    kept = put_record(tmp_path, record, layers)
    moved = put_record(tmp_path, {**record, "row": "b", "identity": "0" * 64}, layers)
    monkeypatch.setattr(sys, "argv", ["migrate_records.py", str(tmp_path), "--into", str(tmp_path)])
    script.main()
    assert read_records(tmp_path) == [record, {**record, "row": "b"}]
    assert kept.exists()
    assert not moved.exists()
    assert read_layers(tmp_path, {**record, "row": "b"}) == layers
    assert len(list(tmp_path.rglob("*.json"))) == 4


def test_a_start_that_gets_another_identity_keeps_what_began_with_it(script, tmp_path, monkeypatch):
    record, _ = script.migrate(old(), Path(), {})
    tuned = {**record, "row": "b", "inputs": {**record["inputs"], "start": "0" * 64}, "identity": "1" * 64}
    last = {**tuned, "row": "a", "inputs": {**tuned["inputs"], "start": "1" * 64}, "identity": "2" * 64}
    for one in ({**record, "row": "c", "identity": "0" * 64}, tuned, last):
        put_record(tmp_path, one)
    monkeypatch.setattr(sys, "argv", ["migrate_records.py", str(tmp_path), "--into", str(tmp_path)])
    script.main()
    third, second, first = read_records(tmp_path)
    assert (first["identity"], second["inputs"]["start"]) == (record["identity"], record["identity"])
    assert third["inputs"]["start"] == second["identity"] != "1" * 64
    assert all(Experiment.from_record(one) for one in (first, second, third))


def test_what_is_no_record_is_named(script, tmp_path, monkeypatch, capsys):
    with pytest.raises(RecordError, match=r"here has a record of format 3"):
        script.migrate(old() | {"format": 3}, Path("here"), {})
    (tmp_path / "runs.jsonl").write_text('{"a": ')
    monkeypatch.setattr(sys, "argv", ["migrate_records.py", str(tmp_path / "runs.jsonl"), "--into", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "runs.jsonl can't be read" in capsys.readouterr().err.replace("\n", "")


# --- The project's own ---

RECORDS = read_records(ROOT / "results" / "runs")


def test_there_are_records():
    assert len(RECORDS) >= 41


@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda record: f"{record['row']}-{record['seed']}-{record['identity'][:8]}"
)
def test_every_record_replays(record):
    experiment = Experiment.from_record(record)
    assert experiment.identity == record["identity"]
    assert record["environment"]["dirty"] is False
    assert len(record["history"]) == record["epochs"] == experiment.trainer.epochs
    model = build_backbone(**experiment.backbone.to_dict()).to("meta")
    report = apply_policy_(model, experiment.policy)
    assert report.after.parameters == record["cost"]["parameters"]
