"""What an experiment is: its settings, typed, and an identity that equal settings share however they are written."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from whtnet.data import DatasetNotFoundError
from whtnet.engine import TrainConfig
from whtnet.errors import UserError
from whtnet.experiment import Choice, Experiment
from whtnet.policy import load_policy, shipped_policies
from whtnet.records import RecordError
from whtnet.settings import ConfigError, canonical

ROOT = Path(__file__).parents[1]
RULE = {"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}}
SETTINGS = {
    "backbone": {"name": "resnet20", "form": "no_bias"},
    "policy": {"name": "mine", "rules": [RULE]},
    "dataset": {"name": "synthetic", "size": 8, "train_size": 64},
    "trainer": {"epochs": 3, "lr": 1.0, "milestones": [0.5, 1.0]},
    "finetune": {"stages": 2, "init": "fit", "start": "owner/name"},
    "seed": 3,
}


def experiment(**changes):
    return Experiment.from_config({**SETTINGS, **changes})


def identity(**changes):
    return experiment(**changes).identity


def with_rules(*rules, **options):
    return identity(policy={"name": "mine", "rules": list(rules), "options": options})


# --- The same experiment, written differently ---


def test_names_places_and_means_are_no_part_of_the_identity():
    trainer = SETTINGS["trainer"]
    for changes in (
        {"policy": {"name": "yours", "rules": [RULE]}},
        {"dataset": {**SETTINGS["dataset"], "root": "elsewhere", "download": False}},
        {"device": "cuda"},
        {"trainer": {**trainer, "workers": 7, "channels_last": False, "compile": True, "cuda_graph": False}},
    ):
        assert identity(**changes) == identity(), changes
    policy = dataclasses.replace(experiment().policy, name="a/b")
    assert dataclasses.replace(experiment(), policy=policy).name == f"resnet20-a-b-seed3-{identity()[:8]}"


def test_policies_that_do_the_same_are_the_same():
    plain = with_rules(RULE)
    soft = with_rules({**RULE, "options": {"threshold": "soft"}})
    assert soft == with_rules(RULE, threshold="soft")
    assert soft == with_rules({**RULE, "options": {"threshold": "soft"}}, threshold="smooth")
    assert soft == with_rules({**RULE, "options": {"threshold": "soft", "keep_dc": False}}, initial_threshold=0.1)
    assert plain == with_rules({**RULE, "options": {"initial_threshold": 0.1, "weight": True}})
    assert plain != soft


def test_the_sites_of_a_rule_may_be_written_in_several_ways():
    def where(**conditions):
        return with_rules({**RULE, "where": conditions})

    assert where(blocks="2-4") == where(blocks=[2, 3, 4]) == where(blocks=[4, 3, 2, 2]) != where(blocks=[2, 3])
    assert where(blocks="last 1/3") == where(blocks="last 2/6") != where(blocks="first 1/3")
    assert where(stages=[1, -1]) == where(stages=[-1, 1])


NUMBERS = st.integers(1, 50)


@given(NUMBERS, NUMBERS, st.lists(st.floats(0, 1, width=32, allow_subnormal=False), max_size=3), st.randoms())
def test_numbers_lists_and_order_do_not_matter(lr, padding, milestones, random):
    written = {"epochs": 4, "lr": lr, "milestones": milestones, "ema_decay": 0, "gamma": 1}
    names = list(written)
    random.shuffle(names)
    otherwise = {"lr": float(lr), "milestones": tuple(milestones), "gamma": [1.0] * len(milestones)}
    other = {name: written[name] for name in names} | otherwise
    written["opt_options"], other["opt_options"] = {}, None
    data = {"name": "synthetic", "crop_padding": padding, "mean": [0, 0, 1]}
    moved = {"mean": (0.0, 0.0, 1.0), "crop_padding": padding, "name": "synthetic", "flip": False}
    assert identity(trainer=written, dataset=data) == identity(trainer=other, dataset=moved)


@given(st.sets(st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)])))
def test_a_default_that_is_written_out_changes_nothing(names):
    defaults = {name: getattr(TrainConfig(), name) for name in names}
    trainer = {**defaults, **SETTINGS["trainer"]}
    assert identity(trainer=trainer) == identity()


VALUES = {
    "epochs": NUMBERS,
    "batch_size": NUMBERS,
    "lr": st.floats(0.001, 1),
    "warmup": st.floats(0, 0.875, width=32, allow_subnormal=False),
    "nesterov": st.booleans(),
    "schedule": st.sampled_from(["multistep", "onecycle"]),
}


@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries({}, optional=VALUES))
def test_what_differs_has_another_identity(a, b):
    def trained(trainer):
        return experiment(trainer=trainer, finetune={})

    assert (trained(a).trainer == trained(b).trainer) == (trained(a).identity == trained(b).identity)


def test_every_setting_that_changes_a_result_changes_the_identity():
    changed = [
        {"seed": 4},
        {"trainer": {**SETTINGS["trainer"], "lr": 0.2}},
        {"policy": {"name": "mine", "rules": []}},
        {"dataset": {**SETTINGS["dataset"], "size": 16}},
        {"backbone": {"name": "resnet20"}},
        {"backbone": {"name": "resnet20", "form": "no_bias", "pretrained": True}},
        {"finetune": {"stages": 3}},
    ]
    assert len({identity(), *(identity(**changes) for changes in changed)}) == 1 + len(changed)


def test_another_seed_is_all_that_changes():
    assert experiment().with_seed(9) == experiment(seed=9)
    assert experiment().with_seed(3).identity == identity()


def test_a_setting_that_is_new_orphans_nothing(monkeypatch):
    before = identity()
    fields = [("invented", float, dataclasses.field(default=0.5))]
    newer = dataclasses.make_dataclass("TrainConfig", fields, bases=(TrainConfig,), frozen=True)
    monkeypatch.setattr("whtnet.experiment.TrainConfig", newer)
    assert identity() == before
    assert identity(trainer={**SETTINGS["trainer"], "invented": 1.0}) != before


# --- What the data is ---


@pytest.fixture
def flowers(tmp_path):
    for split in ("train", "validation"):
        for name in ("rose", "tulip"):
            (tmp_path / "flowers" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "flowers" / split / name / "0.png")
    return tmp_path / "flowers"


def of_folder(root):
    return experiment(dataset={"name": "timm", "root": str(root), "input_size": 8})


def test_a_folder_of_images_is_known_by_what_is_in_it(flowers, tmp_path):
    first = of_folder(flowers)
    shutil.copytree(flowers, tmp_path / "copy")
    assert of_folder(tmp_path / "copy").identity == first.identity
    for split in ("train", "validation"):
        (tmp_path / "copy" / split / "rose").rename(tmp_path / "copy" / split / "lily")
    assert of_folder(tmp_path / "copy").identity != first.identity
    Image.new("RGB", (8, 8)).save(flowers / "train" / "rose" / "1.png")
    assert of_folder(flowers).identity != first.identity
    with pytest.raises(DatasetNotFoundError, match="nowhere"):
        of_folder(tmp_path / "nowhere").identity  # noqa: B018


def test_a_record_of_a_folder_replays_where_the_folder_is_not(flowers):
    e = of_folder(flowers)
    record = json.loads(json.dumps({"settings": e.settings, "inputs": e.inputs, "identity": e.identity}))
    shutil.rmtree(flowers)
    assert str(flowers) not in json.dumps(record)
    assert Experiment.from_record(record).identity == e.identity


# --- A network to begin with ---


def tuned(start=None, **changes):
    """An experiment that begins with what ``start`` trains."""
    finetune = {"start": "a name", "distill": 0.5}
    return dataclasses.replace(experiment(finetune=finetune, **changes), start=start or experiment(finetune={}))


def test_a_start_is_known_by_what_it_is_and_not_by_where_it_lies():
    start, e = experiment(finetune={}), tuned()
    assert e.inputs["start"] == start.identity
    elsewhere = dataclasses.replace(e, finetune=dataclasses.replace(e.finetune, start="runs/folder"))
    assert elsewhere.identity == e.identity != experiment(finetune={"distill": 0.5, "start": "a name"}).identity
    assert tuned(experiment(finetune={}, trainer={"epochs": 4})).identity != e.identity
    assert tuned(tuned()).identity != e.identity
    record = json.loads(json.dumps({"settings": e.settings, "inputs": e.inputs, "identity": e.identity}))
    assert Experiment.from_record(record).identity == e.identity


def test_another_seed_is_the_starts_seed_too():
    e = tuned()
    assert e.identity  # what is known by then is handed on
    for seed in (5, 3):
        assert e.with_seed(seed).inputs["start"] == experiment(finetune={}, seed=seed).identity
        assert e.with_seed(seed).identity == tuned(experiment(finetune={}, seed=seed), seed=seed).identity


# --- Records ---


@pytest.mark.parametrize("policy", shipped_policies())
def test_settings_make_the_experiment_again(policy):
    e = dataclasses.replace(experiment(), policy=load_policy(policy))
    again = Experiment.from_config(json.loads(json.dumps(e.settings)))
    assert again.identity == e.identity
    assert canonical(again.settings) == canonical(e.settings)


def test_a_record_that_can_not_be_replayed_says_why():
    e = experiment()
    record = {"run": e.name, "settings": e.settings, "inputs": e.inputs, "identity": e.identity}
    assert Experiment.from_record(record) == Experiment.from_record(record)
    for changes, words in [
        ({"identity": "0" * 64}, "not of 00000000"),
        ({"settings": {**e.settings, "trainer": {"epocs": 1}}}, r"did you mean trainer\.epochs"),
        (
            {"settings": {**e.settings, "policy": {"rules": [{**RULE, "replace": "Gone"}]}}},
            "conv3x3 can be",
        ),
    ]:
        with pytest.raises(RecordError, match=f"record of {e.name} can't be replayed: .*{words}"):
            Experiment.from_record(record | changes)
    labels = {"table": "t", "row": "a", "recipe": "short", "seed": 3, "identity": "f" * 64}
    with pytest.raises(RecordError, match=r"^t/a-seed3-ffffffff\.json can't be replayed"):
        Experiment.from_record(record | labels)
    with pytest.raises(RecordError, match="it lacks 'inputs'"):
        Experiment.from_record({k: v for k, v in record.items() if k != "inputs"})


# --- Settings that can't be ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({"seed": seed}, f"seed={seed!r}.*a whole number from 0") for seed in (-1, 1.5, "one", None, True)],
        ({"trainer": {"epocs": 1}}, r"did you mean trainer\.epochs"),
        ({"trainer": {"weight_decay": 1e300}}, r"trainer.weight_decay: no 32-bit float.* holds 1e\+300"),
        ({"trainer": {"cutmix": 1e-320}}, "trainer.cutmix: .* holds 1e-320"),
        ({"trainer": {"opt_options": {"eps": [2**70]}}}, f"trainer.opt_options: .* holds {2**70}"),
        ({"trainer": {"workers": 5000}}, "trainer.workers must be less than or equal to 1024"),
        ({"trainer": {"nesterov": True, "momentum": 0}}, "trainer.nesterov=true needs a momentum"),
        ({"finetune": {"stages": 4}}, r"finetune.stages=4 need as many epochs, trainer.epochs is 3"),
        ({"finetune": {"init": "fit"}}, r"init=fit has nothing to fit to.*finetune\.start=MODEL"),
        ({"trainer": {"patience": 2}}, r"trainer.patience needs .* dataset\.holdout"),
        ({"device": 0}, "device=0"),
        ({"backbone": {"form": "keras"}}, "backbone needs a name"),
        ({"backbone": {"name": "resnet20", "num_classes": 3}}, "backbone.num_classes is the data set's"),
        ({"backbone": None}, "backbone needs a name"),
        ({"dataset": "digits"}, "dataset needs a name"),
        ({"dataset": {"name": "synthetic", "size": object()}}, "no setting"),
    ],
)
def test_settings_that_can_not_be(changes, words):
    with pytest.raises(ConfigError, match=words):
        experiment(**changes)


def test_layers_are_fitted_to_what_is_trained():
    for backbone in ({"pretrained": True}, {"weights": "file.pth"}, {"name": "package.module:net"}):
        assert experiment(finetune={"init": "fit"}, backbone={"name": "resnet18"} | backbone).finetune.start is None


def test_an_experiment_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment().seed = 4
    with pytest.raises(UserError):
        Choice.from_dict({}, "backbone")
