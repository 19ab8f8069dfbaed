import copy
import io
import re

import pytest
import torch
import torchvision
import yaml
from torch import nn

from whtnet import BWHT1d, FWHT2d, PreGAPFWHT2d, PreNormFWHT2d, apply_policy_, load_policy
from whtnet.backbones import build_backbone
from whtnet.policy import Policy, PolicyError, find_sites, shipped_policies
from whtnet.policy.rules import _RENAMED


def rules(*items, **policy):
    return {"name": "test", "rules": list(items), **policy}


def rule(match, replace, where=None, **options):
    return {"match": match, "replace": replace, "where": where or {}, "options": options}


# The numbers, as literals: (backbone, settings, policy, with batch-norm statistics?, count).
PUBLISHED = [
    ("mobilenet_v2", {}, "none", True, 2_270_794),
    ("mobilenet_v2", {}, "none", False, 2_236_682),
    ("mobilenet_v2", {}, "fwht2021/947k", True, 947_786),
    ("mobilenet_v2", {}, "fwht2021/540k", True, 540_234),
    ("resnet20", {"form": "no_bias"}, "none", False, 272_474),
    ("resnet20", {"form": "keras"}, "none", False, 273_066),
    ("resnet20", {"form": "keras"}, "paper", False, 133_082),
    ("resnet20", {"form": "no_bias"}, "ht2023/1path", False, 151_514),
    ("mobilenet_v3_large", {}, "none", False, 4_214_842),
    ("mobilenet_v3_large", {}, "none", True, 4_239_242),
]


@pytest.mark.parametrize(("backbone", "settings", "policy", "with_bn", "count"), PUBLISHED)
def test_published_parameter_counts(backbone, settings, policy, with_bn, count):
    model = build_backbone(backbone, **settings)
    report = apply_policy_(model, policy)
    assert (report.after.parameters_with_bn_statistics if with_bn else report.after.parameters) == count
    # The same again without our counter.
    ours = sum(p.numel() for p in model.parameters())
    if with_bn:
        ours += sum(b.numel() for name, b in model.named_buffers() if "running" in name)
    assert ours == count


def test_block_sizes_that_a_site_decides():
    model = build_backbone("resnet20")
    apply_policy_(model, rules(rule("conv1x1", "BWHT1d", block_size="in_channels")))
    assert [m.block_size for m in model.modules() if isinstance(m, BWHT1d)] == [16, 32]
    model = nn.Sequential(nn.Conv2d(24, 144, 1), nn.Conv2d(144, 32, 1), nn.Conv2d(32, 96, 1))
    apply_policy_(model, rules(rule("conv1x1", "BWHT1d", block_size="common")), (24, 8, 8))
    assert [m.block_size for m in model] == [8, 16, 32]


def test_controls_leave_the_second_convolution_out_or_make_it_depthwise():
    dense = sum(c * c * 9 + c for c in (16, 32, 64) for _ in range(3))
    depthwise = sum(c * 9 + c for c in (16, 32, 64) for _ in range(3))
    for policy, kept in (("identity", 0), ("depthwise", depthwise)):
        model = build_backbone("resnet20")
        report = apply_policy_(model, policy)
        assert [r.name for r in report.replacements] == [f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in range(3)]
        assert report.after.parameters == 273_066 - dense + kept
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("policy", ["fwht2021/947k", "fwht2021/540k", "paper"])
def test_torchvision_and_timm_agree(policy):
    counts = {
        source: apply_policy_(build_backbone("mobilenet_v2", source=source), policy, (3, 64, 64)).after
        for source in ("torchvision", "timm")
    }
    assert counts["torchvision"] == counts["timm"]


def test_fractions_of_blocks_round_down():
    model = build_backbone("mobilenet_v2")
    for fraction, first in [("1/3", 13), ("1/2", 10), ("2/3", 7)]:
        policy = {"include": ["conv1x1"], "fraction": fraction}
        names = [r.name for r in apply_policy_(copy.deepcopy(model), policy).replacements]
        # torchvision's features.1 … features.17 are the 17 bottlenecks
        assert {int(n.split(".")[1]) for n in names} == set(range(first, 18))


def test_paper_on_mobilenet_v3_replaces_all_of_its_parts():
    model = torchvision.models.mobilenet_v3_large(num_classes=10)
    report = apply_policy_(model, "paper", (3, 64, 64))
    kinds = [r.kind for r in report.replacements]
    assert kinds.count("squeeze_excite") == 8
    assert kinds.count("conv1x1") == 10  # both 1×1 convolutions of the last 5 of 15 blocks
    assert kinds.count("before_gap") == 1
    assert not any("SqueezeExcitation" in type(m).__name__ for m in model.modules())
    assert isinstance(model.avgpool[0], PreGAPFWHT2d)


def test_a_batch_norm_in_front_is_all_that_pre_norm_adds():
    model, plain = build_backbone("resnet20"), build_backbone("resnet20")
    report = apply_policy_(model, "paper/resnet20_pre_norm")
    assert report.after.parameters == apply_policy_(plain, "paper").after.parameters + 2 * 3 * (16 + 32 + 64)
    assert isinstance(model.layer2[1].conv2, PreNormFWHT2d)
    with pytest.raises(PolicyError, match="matches nothing"):  # what is inside the new layers is no site
        apply_policy_(model, rules(rule("conv3x3", "PreNormFWHT2d", {"nth": 2, "part": "blocks"})))
    with pytest.raises(PolicyError, match=r"squeeze_excite can be replaced by FWHT2d, Identity, keep"):
        apply_policy_(build_backbone("mobilenet_v3_large"), rules(rule("squeeze_excite", "PreNormFWHT2d")))


def test_paper_on_resnets_takes_the_stated_convolutions():
    for name, count in [("resnet18", 8), ("resnet34", 16), ("resnet50", 13)]:
        model = build_backbone(name)
        replaced = [r.name for r in apply_policy_(model, "paper", (3, 64, 64)).replacements if r.kind == "conv3x3"]
        assert len(replaced) == count
        assert all(n.endswith("conv2") for n in replaced)


def test_the_squeeze_excite_modules_of_hgnet_are_sites():
    with torch.device("meta"):
        found = find_sites(build_backbone("timm/hgnet_tiny"), (3, 64, 64))
    assert {site.name.rpartition(".")[2] for site in found.sites if site.kind == "squeeze_excite"} == {"1"}
    inside = [site.name for site in found.sites if site.kind == "conv1x1" and ".aggregation.1." in site.name]
    assert not inside


def test_what_is_computed_from_coordinates_is_no_site():
    with torch.device("meta"):
        model = build_backbone("torchvision/swin_v2_t")  # its position biases are a network's over (1, 15, 15, 2)
    names = {s.name for s in find_sites(model, (3, 64, 64)).sites if s.kind == "conv1x1"}
    assert not [name for name in names if "cpb_mlp" in name]
    assert {name for name in names if name.endswith(".reduction")} == {f"features.{i}.reduction" for i in (2, 4, 6)}


def test_what_an_image_is_written_into_is_computed_from_it():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            padded = x.new_zeros(x.shape[0], 3, 10, 10)
            padded[..., 1:9, 1:9] = x
            return self.conv(padded).mean((2, 3))

    assert [site.name for site in find_sites(Padded(), (3, 8, 8)).sites] == ["conv"]


def test_squeeze_excite_convolutions_are_no_1x1_sites():
    for source in ("torchvision", "timm"):
        model = build_backbone("mobilenet_v3_large", source=source)
        names = {s.name for s in find_sites(model, (3, 64, 64)).sites if s.kind == "conv1x1"}
        inside = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and (".fc" in n or ".se." in n)}
        assert len(inside) == 16
        assert not names & inside


def test_layer_before_functional_pooling_is_appended_without_renaming():
    model = torchvision.models.mobilenet_v2(num_classes=10)  # pools by a function in its own forward
    keys = set(model.state_dict())
    apply_policy_(model, "gap", (3, 64, 64))
    assert isinstance(model.features[19], PreGAPFWHT2d)
    assert keys < set(model.state_dict())
    assert all(key.startswith("features.19.") for key in set(model.state_dict()) - keys)


def test_an_appended_layer_takes_no_other_s_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential()
            self.features.add_module("1", nn.Conv2d(3, 4, 3, padding=1))
            self.features.add_module("2", nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, x):
            return self.features(x).mean((2, 3))

    model = Net()
    report = apply_policy_(model, "gap", (3, 8, 8))
    assert [type(module) for module in model.features] == [nn.Conv2d, nn.Conv2d, PreGAPFWHT2d]
    assert report.after.parameters == sum(p.numel() for p in model.parameters())


def test_layer_before_a_pooling_module_sees_what_was_pooled():
    model = build_backbone("resnet20")
    keys = set(model.state_dict())
    seen = []
    model.avgpool.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    apply_policy_(model, "gap")
    model(torch.randn(2, 3, 32, 32))
    assert seen == [torch.Size([2, 64, 8, 8])]
    assert isinstance(model.avgpool[0], PreGAPFWHT2d)
    assert keys < set(model.state_dict())


def test_order_matters_and_keep_exempts():
    model = build_backbone("resnet20")
    report = apply_policy_(
        model,
        rules(
            rule("conv3x3", "keep", {"name": r"^layer3\."}),
            rule("conv3x3", "FWHT2d", {"nth": 2, "part": "blocks"}),
        ),
    )
    assert [r.name for r in report.replacements] == [f"layer{s}.{b}.conv2" for s in (1, 2) for b in range(3)]
    assert isinstance(model.layer3[0].conv2, nn.Conv2d)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"blocks": "last 1/3"}, {"layer3.0", "layer3.1", "layer3.2"}),
        ({"blocks": "first 2"}, {"layer1.0", "layer1.1"}),
        ({"blocks": "4-5"}, {"layer2.0", "layer2.1"}),
        ({"blocks": [1, 9]}, {"layer1.0", "layer3.2"}),
        ({"stages": [1]}, {"layer1.0", "layer1.1", "layer1.2"}),
        ({"stages": [-1]}, {"layer3.0", "layer3.1", "layer3.2"}),
        ({"name": r"2\.conv"}, {"layer1.2", "layer2.2", "layer3.2"}),
    ],
)
def test_conditions(where, expected):
    report = apply_policy_(build_backbone("resnet20"), rules(rule("conv3x3", "FWHT2d", {**where, "nth": -1})))
    assert {r.name.removesuffix(".conv2") for r in report.replacements} == expected


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnetv2_18", 8),
        ("res2net50_14w_8s", 16),
        ("skresnet18", 8),
        ("dla34", 12),
        ("xception41", 13),
        ("inception_resnet_v2", 40),
    ],
)
def test_blocks_by_other_names(name, blocks):
    with torch.device("meta"):
        found = find_sites(build_backbone(f"timm/{name}"), (3, 96, 96))
    assert found.blocks == blocks
    assert {site.part for site in found.sites} >= {"blocks", "head"}


def test_blocks_that_take_lists_of_maps_have_stages():
    with torch.device("meta"):
        found = find_sites(build_backbone("torchvision/densenet121"), (3, 64, 64))
    assert found.stages == 4
    assert {site.stage for site in found.sites if site.part == "blocks"} == {1, 2, 3, 4}


@pytest.mark.parametrize("policy", ["conv3x3", "depthwise", "identity", "gap"])
def test_applied_again_a_policy_takes_no_further_places(policy):
    model = build_backbone("resnet20")
    count = len(apply_policy_(model, policy).replacements)
    before = str(model)
    with pytest.raises(PolicyError, match=rf"matches nothing in CifarResNet.*; {count} were replaced before"):
        apply_policy_(copy.deepcopy(model), policy)
    assert str(model) == before


def test_places_keep_their_numbers_and_a_later_policy_takes_what_is_left():
    model = build_backbone("resnet20")
    last = [r.name for r in apply_policy_(model, "conv3x3", share=0.5).replacements]
    first = [r.name for r in apply_policy_(model, "conv3x3").replacements]
    whole = [r.name for r in apply_policy_(build_backbone("resnet20"), "conv3x3").replacements]
    assert first + last == whole
    one = rules(rule("conv3x3", "FWHT2d", {"nth": -2, "stride": 1}))
    assert [r.name for r in apply_policy_(model, one).replacements][:2] == ["layer1.0.conv1", "layer1.1.conv1"]


def test_policy_options_are_defaults_and_rules_win():
    model = build_backbone("resnet20")
    policy = rules(
        rule("conv3x3", "FWHT2d", {"nth": 2, "stages": [1]}),
        rule("conv3x3", "FWHT2d", {"nth": 2, "stages": [2]}, threshold="smooth", weight=True),
        rule("conv1x1", "BWHT1d"),
        options={"threshold": "soft", "weight": False, "clamp": True},
    )
    apply_policy_(model, policy)
    first, second, shortcut = model.layer1[0].conv2, model.layer2[0].conv2, model.layer2[0].shortcut[0]
    assert (first.threshold_kind, first.weight, first.clamp) == ("soft", None, True)
    assert (second.threshold_kind, second.weight is not None, second.clamp) == ("smooth", True, True)
    assert isinstance(shortcut, BWHT1d)  # has no option `weight`; takes the others
    assert (shortcut.threshold_kind, shortcut.stride) == ("soft", 2)


def test_report_adds_up():
    model = build_backbone("resnet20")
    before = sum(p.numel() for p in model.parameters())
    report = apply_policy_(model, "paper")
    saved = sum(r.parameters_before - r.parameters_after for r in report.replacements)
    assert report.before.parameters == before
    assert before - saved == report.after.parameters == sum(p.numel() for p in model.parameters())
    assert report.after.macs < report.before.macs
    data = report.to_dict()
    assert data["after"]["parameters_with_bn_statistics"] == report.after.parameters_with_bn_statistics
    assert data["replacements"][0]["name"] == "layer1.0.conv2"


def test_new_layers_take_dtype_and_mode():
    model = build_backbone("resnet20").double().eval()
    apply_policy_(model, "paper")
    layer = model.layer1[0].conv2
    assert layer.threshold.dtype == torch.float64
    assert not layer.training
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_a_shared_module_is_replaced_under_all_its_names():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1)
            self.b = self.a

        def forward(self, x):
            return self.b(self.a(x)).mean((2, 3))

    model = Shared()
    apply_policy_(model, rules(rule("conv3x3", "FWHT2d")))
    assert isinstance(model.a, FWHT2d)
    assert model.a is model.b


# --- Errors: each names the culprit, and leaves the model alone ---


class Varying(nn.Module):
    """Runs one convolution on maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)[..., ::2, ::2]).mean((2, 3))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.grouped1x1 = nn.Conv2d(8, 8, 1, groups=2)
        self.grouped3x3 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.unpadded = nn.Conv2d(8, 8, 3)
        self.wider = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x):
        return self.wider(self.unpadded(self.grouped3x3(self.grouped1x1(self.one(x))))).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "policy", "words"),
    [
        (lambda: build_backbone("resnet20"), "squeeze_excite", ["matches nothing", "19 conv3x3"]),
        (
            lambda: build_backbone("resnet20"),
            rules(rule("conv3x3", "FWHT2d", {"stages": [2], "nth": 1})),
            ["layer2.0.conv1", "stride"],
        ),
        (
            lambda: build_backbone("resnet20"),
            rules(rule("conv3x3", "FWHT2d", {"part": "stem"})),
            ["conv1", "3 channels"],
        ),
        (Grouped, rules(rule("conv1x1", "BWHT1d", {"name": "grouped"})), ["grouped1x1", "groups=2"]),
        (Grouped, rules(rule("conv3x3", "FWHT2d", {"name": "grouped"})), ["grouped3x3", "groups=4"]),
        (Grouped, rules(rule("conv3x3", "FWHT2d", {"name": "unpadded"})), ["unpadded", "maps"]),
        (Grouped, rules(rule("conv3x3", "FWHT2d", {"name": "wider"})), ["wider", "16 out"]),
        (Grouped, rules(rule("conv3x3", "HTPerceptron2d", {"name": "grouped"})), ["grouped3x3", "groups=4"]),
        (Grouped, rules(rule("conv3x3", "FWHT2d", {"blocks": "last 1/3"})), ["matches nothing", "no blocks"]),
        (Varying, rules(rule("conv3x3", "FWHT2d")), ["conv", "size varies", "32×32", "16×16"]),
        (
            lambda: build_backbone("resnet20"),
            rules(rule("conv1x1", "keep"), rule("conv1x1", "BWHT1d")),
            ["rule 2", "earlier rules", "layer2.0.shortcut.0"],
        ),
        (lambda: build_backbone("resnet20"), rules(rule("conv1x1", "FWHT2d")), ["rule 1", "BWHT1d"]),
        (lambda: build_backbone("resnet20"), rules(rule("conv1x1", "BWHT1d", wieght=1)), ["wieght", "block_size"]),
        (
            lambda: build_backbone("resnet20"),
            rules(rule("conv1x1", "BWHT1d", block_size=3)),
            ["shortcut", "power of two"],
        ),
        (
            lambda: build_backbone("resnet20"),
            rules(rule("conv1x1", "BWHT1d"), options={"paths": 3}),
            ["paths", "none of its layers"],
        ),
        (lambda: build_backbone("resnet20"), rules(rule("conv3x3", "FWHT2d", {"blocks": "10-11"})), ["10", "1 to 9"]),
        (lambda: build_backbone("resnet20"), rules(rule("conv3x4", "FWHT2d")), ["conv3x4", "conv3x3"]),
        (lambda: build_backbone("resnet20"), rules(rule("conv3x3", "FWHT2d", {"nmae": "x"})), ["nmae", "name"]),
        (lambda: build_backbone("resnet20"), rules(rule("conv3x3", "FWHT2d", {"name": "("})), ["regular expression"]),
        (lambda: build_backbone("resnet20"), rules(rule("conv3x3", "FWHT2d", {"part": "tail"})), ["tail", "head"]),
        (lambda: build_backbone("resnet20"), {"name": "x"}, ["needs rules, or include"]),
        (lambda: build_backbone("resnet20"), {"name": None, "rules": []}, ["policy.name=None", "word"]),
        (lambda: build_backbone("resnet20"), {"name": "../x", "rules": []}, ["policy.name='../x'", "folder"]),
        (lambda: build_backbone("resnet20"), {"name": "x//y", "rules": []}, ["policy.name='x//y'", "folder"]),
        (lambda: build_backbone("resnet20"), "no_such_policy", ["no_such_policy", "there are conv1x1"]),
        (lambda: nn.Linear(4, 4), "paper", ["can't run"]),
    ],
)
def test_errors_name_the_culprit_and_change_nothing(make, policy, words):
    model = make()
    before = {n: type(m) for n, m in model.named_modules()}
    if policy == "paper":
        policy = "gap"
    with pytest.raises((PolicyError, RuntimeError)) as error:
        apply_policy_(model, policy)
    if isinstance(error.value, PolicyError):
        for word in words:
            assert word in str(error.value)
    assert {n: type(m) for n, m in model.named_modules()} == before


def test_policies_from_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"rules": [rule("conv1x1", "BWHT1d")]}))
    assert load_policy(path).name == "mine"
    assert len(apply_policy_(build_backbone("resnet20"), path).replacements) == 2
    path.write_text("rules: [")
    with pytest.raises(PolicyError, match=r"mine\.yaml.*YAML"):
        load_policy(path)
    path.write_text("- 1")
    with pytest.raises(PolicyError, match="mapping"):
        load_policy(path)


def test_shipped_policies_are_complete():
    shipped = shipped_policies()
    wanted = {"none", "paper", "conv3x3", "squeeze_excite", "gap", "fwht2021/947k", "fwht2021/540k", "conv1x1"}
    wanted |= {f"paper/{backbone}" for backbone in ("resnet20", "mobilenet_v2", "mobilenet_v3_large", "resnet")}
    assert wanted <= set(shipped)
    for name in shipped:
        policy = load_policy(name)
        assert policy.name == name
        assert isinstance(policy, Policy)


def test_included_rules_follow_with_their_options_unless_the_policy_says_otherwise():
    combined = {"name": "c", "include": ["conv3x3", "gap"], "options": {"threshold": "soft"}}
    own = {"match": "conv3x3", "where": {"stages": [1], "nth": 2}, "replace": "keep"}
    model = build_backbone("resnet20")
    report = apply_policy_(model, {**combined, "rules": [own]})
    assert [r.kind for r in report.replacements] == ["conv3x3"] * 6 + ["before_gap"]
    assert {m.threshold_kind for m in model.modules() if isinstance(m, FWHT2d)} == {"soft"}
    with pytest.raises(PolicyError, match="depends on the model; take one of paper/resnet20"):
        Policy.from_dict({"include": ["paper"]})


RULE = "match: conv3x3, replace: FWHT2d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name: J\xfcrgen", "mine.yaml: not valid YAML"),
        (b"[" * 2000, "mine.yaml: not valid YAML"),
        (b"rules:\n\t- {}", r"mine.yaml: not valid YAML.*'\\t'.*line 2"),
        (f"rules: [{{{RULE}, match: conv1x1}}]".encode(), "the key 'match' stands there twice .*line 1"),
        (b"include: [3]", "3 is no name of a policy; give one of "),
        (b"architectures: {cifarresnet: {}}", "{} is no name of a policy"),
        (b"rules: [{match: conv3x3, replace: [FWHT2d]}]", "rule 1: needs a word for 'replace'"),
        (f"rules: [{{{RULE}, where: blocks}}]".encode(), "where: expected a mapping, got 'blocks'"),
        (f"rules: [{{{RULE}, where: {{blocks: 1-99999999999}}}}]".encode(), r"no blocks \[99999999999\]; give numbers"),
        (f"rules: [{{{RULE}, where: {{blocks: [0]}}}}]".encode(), r"no blocks \[0\]; give numbers from 1 to 10000"),
        (b"name: [a, b]\nrules: []", r"policy.name=\['a', 'b'\] can't name"),
        (b'name: "a\\0b"\nrules: []', r"policy.name='a\\x00b' can't name"),
    ],
)
def test_files_that_are_no_policy_say_where(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(PolicyError, match=words) as error:
        load_policy(path).for_model(build_backbone("resnet20"))
    assert "\n" not in str(error.value)


def test_a_policy_that_includes_itself_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"include": [str(path)]}))
    with pytest.raises(PolicyError, match=r"mine\.yaml' includes itself"):
        load_policy(path)
    path.write_text(yaml.safe_dump({"include": [str(tmp_path / "other.yaml")]}))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"include": ["conv1x1", "conv1x1", str(path)]}))
    with pytest.raises(PolicyError, match=r"other\.yaml' includes itself"):
        load_policy(path)


@pytest.mark.parametrize(
    ("fraction", "blocks"), [("1/3", "last 1/3"), (1, "last 1/1"), (None, None), (0.5, "last 1/2")]
)
def test_fractions(fraction, blocks):
    data = {"fraction": fraction, "include": ["conv1x1"]}
    assert [r.where.get("blocks") for r in Policy.from_dict(data).rules] == [blocks]


@pytest.mark.parametrize("fraction", ["2", "0", "1/0", "half", -0.5])
def test_fractions_that_can_not_be(fraction):
    with pytest.raises(PolicyError, match="give 1/3, say"):
        Policy.from_dict({"fraction": fraction, "include": ["conv1x1"]})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("papr", "did you mean paper"),
        ("xyz", "there are conv1x1, "),
    ],
)
def test_a_name_that_there_is_not(name, words):
    with pytest.raises(PolicyError, match=words) as raised:
        load_policy(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", _RENAMED)
def test_old_names_serve_with_a_warning(name):
    with pytest.warns(FutureWarning, match=re.escape(f"policy {name!r} is policy={_RENAMED[name]} now")):
        policy = load_policy(name)
    assert policy.name == _RENAMED[name].split()[0]


@pytest.mark.parametrize(
    "use",
    [
        load_policy,
        lambda name: apply_policy_(build_backbone("resnet20"), name),
        lambda name: Policy.from_dict({"include": [name]}),
    ],
)
def test_an_old_name_is_told_to_the_code_that_uses_it(use):
    with pytest.warns(FutureWarning, match="is policy=conv1x1 policy.fraction=1/3 now") as told:
        use("conv1x1_third")
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.filterwarnings("ignore:policy .* now:FutureWarning")
def test_an_old_name_is_the_policy_with_its_settings():
    both = load_policy("squeeze_excite_conv1x1_third")
    assert [(rule.match, rule.where.get("blocks")) for rule in both.rules] == [
        ("squeeze_excite", None),
        ("conv1x1", "last 1/3"),
    ]
    assert load_policy("conv1x1_half_fwht").options["block_size"] is None


def test_the_paper_s_policy_is_picked_by_the_architecture():
    for model, name in [
        (build_backbone("resnet20"), "paper/resnet20"),
        (torchvision.models.mobilenet_v2(), "paper/mobilenet_v2"),
        (build_backbone("timm/mobilenetv2_100"), "paper/mobilenet_v2"),
        (build_backbone("mobilenet_v3_large", source="timm"), "paper/mobilenet_v3_large"),
        (build_backbone("timm/resnet18"), "paper/resnet"),
    ]:
        assert load_policy("paper").for_model(model).name == name
    with pytest.raises(PolicyError, match="none for VGG; there are paper/resnet20, paper/mobilenet_v2, "):
        apply_policy_(torchvision.models.vgg11(), "paper")


# --- Afterwards the model is a model like any other ---

MODELS = [
    ("resnet20", {}, "paper", 32),
    ("resnet20", {"form": "no_bias"}, "ht2023/1path", 32),
    ("mobilenet_v2", {}, "paper", 64),
    ("mobilenet_v3_large", {}, "paper", 64),
    ("mobilenet_v3_large", {"source": "timm"}, "paper", 64),
    ("resnet18", {"stem": "cifar"}, "paper", 32),
]


@pytest.fixture(params=MODELS, ids=lambda m: f"{m[0]}-{m[2]}{'-timm' if m[1].get('source') else ''}", scope="module")
def replaced(request):
    name, settings, policy, size = request.param
    torch.manual_seed(0)
    model = build_backbone(name, **settings)
    apply_policy_(model, policy, (3, size, size))
    return model, torch.randn(2, 3, size, size)


def test_trains(replaced):
    model, x = replaced
    model = copy.deepcopy(model).train()
    model(x).square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_saves_loads_and_copies(replaced):
    model, x = replaced
    model.eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        nn.init.zeros_(p)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(model(x), twin(x))


@pytest.mark.slow
def test_exports(replaced):
    model, x = replaced
    model.eval()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    bigger = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(program.module()(bigger), model(bigger), rtol=1e-4, atol=1e-4)


def test_runs_under_autocast_and_channels_last(replaced):
    model, x = replaced
    model.eval()
    with torch.no_grad():
        expected = model(x)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x)
    assert (low.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.05
