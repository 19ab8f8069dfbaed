"""Policies as data: an ordered list of rules that say which sites of a network get which layer."""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from whtnet.errors import UserError, did_you_mean, warn_caller
from whtnet.files import FileError, read_yaml
from whtnet.shipped import ROOT

SITE_KINDS = ("conv1x1", "conv3x3", "depthwise3x3", "squeeze_excite", "before_gap")
PARTS = ("stem", "blocks", "between", "head")
KEEP = "keep"
FRACTION = "fraction"  # in a rule's ``blocks``: as the policy's ``fraction`` says
MOST_BLOCKS = 10_000  # of any network
_SHIPPED = ROOT / "configs" / "policy"
_POLICY_KEYS = ("name", "rules", "include", "architectures", "fraction", "options")
_WHERE_KEYS = ("name", "part", "blocks", "stages", "nth", "stride")


class PolicyError(UserError, ValueError):
    """A policy that is malformed, matches nothing, or asks for a site that can't be replaced."""


@dataclass(frozen=True)
class Rule:
    """What to replace by what.

    Attributes:
        match: kind of site, one of :data:`SITE_KINDS`.
        replace: the layer to put there (``BWHT1d``, ``FWHT2d``, ``SeparableFWHT2d``, ``HTPerceptron2d``,
            ``PreGAPFWHT2d``, ``PreNormFWHT2d``), a control (``Identity``: the site is left out; ``CropOrTile``: what is
            left of ``BWHT1d`` without its transform; ``DepthwiseConv2d``: a depthwise 3×3 convolution), or ``keep`` to
            exempt the sites from the rules that follow.
        where: conditions, all of which must hold:
            ``name``: regular expression found in the fully qualified name;
            ``part``: ``stem``, ``blocks``, ``between`` or ``head`` (before, in, between, after the residual blocks);
            ``blocks``: ``"last 1/3"``, ``"first 2"``, ``"13-17"`` or a list of numbers, from 1; in a policy with a
            fraction ``"fraction"``;
            ``stages``: list of numbers, from 1, or from the end, −1;
            ``nth``: place among the sites of its kind in its block, those that were replaced before too, from 1, or
            from the end, −1;
            ``stride``: the convolution's.
        options: keywords of the layer.
        shared: options of the policy that the rule was included from: of every layer that has them, unless the
            including policy or the rule says otherwise.
    """

    match: str
    replace: str
    where: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str) -> "Rule":
        """Check and read one rule; ``origin`` names it in errors."""
        _check_keys(data, ("match", "replace", "where", "options"), origin)
        for key in ("match", "replace"):
            if not isinstance(data.get(key), str):
                raise PolicyError(f"{origin}: needs a word for {key!r}")
        if data["match"] not in SITE_KINDS:
            raise PolicyError(
                f"{origin}: unknown kind of site {data['match']!r}; choose one of {', '.join(SITE_KINDS)}"
            )
        where = _mapping(data.get("where"), f"{origin}: where")
        _check_keys(where, _WHERE_KEYS, f"{origin}: where")
        if where.get("part", PARTS[0]) not in PARTS:
            raise PolicyError(f"{origin}: unknown part {where['part']!r}; choose one of {', '.join(PARTS)}")
        if "name" in where:
            _compile(where["name"], origin)
        if "blocks" in where:
            select_blocks(where["blocks"], MOST_BLOCKS, origin)
        for key in ("nth", "stride"):
            if not _is_int(where.get(key, 1)):
                raise PolicyError(f"{origin}: {key} must be a whole number, got {where[key]!r}")
        stages = where.get("stages", [])
        if not isinstance(stages, list) or not all(map(_is_int, stages)):
            raise PolicyError(f"{origin}: stages must be a list of numbers, got {stages!r}")
        return cls(data["match"], data["replace"], where, _mapping(data.get("options"), f"{origin}: options"))

    def __str__(self) -> str:
        conditions = ", ".join(f"{k}={v!r}" for k, v in self.where.items())
        return f"{self.match} → {self.replace}" + (f" where {conditions}" if conditions else "")


@dataclass(frozen=True)
class Policy:
    """An ordered list of rules; the first rule that matches a site takes it.

    Attributes:
        name: for reports and run names.
        rules: its own, then those of the policies that it includes.
        architectures: name of another policy by architecture (class name, or first word of timm's name, in lower case
            letters); :meth:`for_model` picks it.
        options: defaults for the keywords of every layer the rules put in, as far as the layer has them; a rule's own
            options win.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    architectures: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Policy":
        """Read a policy from plain data, as in ``configs/policy/*.yaml``.

        ``include`` is a list of other policies; ``fraction`` what the word ``fraction`` in the rules' ``blocks`` stands
        for, in included ones too: 1/3 for the last third of the blocks, null for everywhere.

        Raises:
            PolicyError: naming the key and the rule that is wrong.
        """
        if not isinstance(data, Mapping):
            raise PolicyError(f"a policy is a mapping with name and rules, got {data!r}")
        given = data.get("name", "unnamed")
        name = str(given) if isinstance(given, str | int) else ""
        if not re.fullmatch(r"[^./\0-\x1f][^/\0-\x1f]*(/[^./\0-\x1f][^/\0-\x1f]*)*", name):
            raise PolicyError(f"policy.name={repr(given)[:80]} can't name a run's folder; give a word (or A/B)")
        origin = f"policy {name!r}"
        if "families" in data:
            raise PolicyError(f"{origin}: there are no families any more; give each its file, and architectures: {{…}}")
        _check_keys(data, _POLICY_KEYS, origin)
        architectures = _mapping(data.get("architectures"), f"{origin}: architectures")
        if bool(architectures) == ("rules" in data or "include" in data):
            raise PolicyError(f"{origin}: needs rules, or include, or else architectures")
        rules = [_confine(rule, data, origin) for rule in _list(data.get("rules"), f"{origin}: rules")]
        fraction = {"fraction": data["fraction"]} if "fraction" in data else {}
        included = [_included(other, fraction) for other in _list(data.get("include"), f"{origin}: include")]
        options = _mapping(data.get("options"), f"{origin}: options")
        return cls(name, (*_read_rules(rules, origin), *(r for rs in included for r in rs)), architectures, options)

    def for_model(self, model: nn.Module) -> "Policy":
        """The policy itself, or the one that it names for the architecture of ``model``, with its own options.

        Raises:
            PolicyError: if it names policies by architecture, and none for the model's.
        """
        if not self.architectures:
            return self
        names = architecture_names(model)
        words = [name.lower().split("_")[0] for name in names]
        for word in words:
            if word in self.architectures:
                name = self.architectures[word]
                return Policy(name, _included(name, {}), options=self.options)
        there = ", ".join(self.architectures.values())
        raise PolicyError(f"policy {self.name!r} has none for {' / '.join(names)}; there are {there}")


def architecture_names(model: nn.Module) -> list[str]:
    """The class name of ``model`` and, for a timm model, timm's name of its architecture."""
    timm_name = (getattr(model, "default_cfg", None) or {}).get("architecture")
    return [type(model).__name__, *([timm_name] if timm_name else [])]


def _confine(rule: Any, policy: Mapping[str, Any], origin: str) -> Any:
    """The rule with the policy's fraction in the place of the word."""
    where = rule.get("where") if isinstance(rule, Mapping) else None
    if not isinstance(where, Mapping) or where.get("blocks") != FRACTION:
        return rule
    if "fraction" not in policy:
        raise PolicyError(f"{origin}: a rule is for a fraction of the blocks, but policy.fraction isn't given")
    rest = {key: value for key, value in where.items() if key != "blocks"}
    try:
        fraction = None if policy["fraction"] is None else Fraction(str(policy["fraction"]))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if fraction is not None and not 0 < fraction <= 1:
        raise PolicyError(f"{origin}: policy.fraction={policy['fraction']!r}; give 1/3, say, or null for everywhere")
    part = {} if fraction is None else {"blocks": f"last {fraction.numerator}/{fraction.denominator}"}
    return {**rule, "where": rest | part}


_INCLUDING: ContextVar[tuple[str, ...]] = ContextVar("_INCLUDING", default=())
"""Names of the policies that are being included, each by the one before it."""


def _included(name: str, fraction: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of another policy, with its options; ``fraction`` replaces its own where it has one."""
    if name in _INCLUDING.get():
        raise PolicyError(f"policy {name!r} includes itself")
    data = _policy_data(name)
    outer = _INCLUDING.set((*_INCLUDING.get(), name))
    try:
        policy = Policy.from_dict({**data, **fraction} if isinstance(data, Mapping) else data)
    finally:
        _INCLUDING.reset(outer)
    if policy.architectures:
        choices = ", ".join(policy.architectures.values())
        raise PolicyError(f"policy {name!r} can't be included, it depends on the model; take one of {choices}")
    return tuple(dataclasses.replace(rule, shared={**rule.shared, **policy.options}) for rule in policy.rules)


# What policies were called, and how the same is said now.
_RENAMED: dict[str | Path, str] = {
    "ht_perceptron": "ht2023/1path",
    "fwht2021_947k": "fwht2021/947k",
    "fwht2021_540k": "fwht2021/540k",
    "paper_gap": "paper/resnet20 +policy.include=[gap]",
    "paper_pre_norm": "paper/resnet20_pre_norm",
    "conv3x3_gap": "paper/resnet",
    "squeeze_excite_gap": "squeeze_excite +policy.include=[gap]",
    "squeeze_excite_conv1x1_third_gap": "paper/mobilenet_v3_large",
    "squeeze_excite_conv1x1_third": "squeeze_excite +policy.include=[conv1x1] +policy.fraction=1/3",
    "conv1x1_third_gap": "conv1x1 policy.fraction=1/3 +policy.include=[gap]",
    "conv1x1_all": "conv1x1",
    "conv1x1_all_gap": "conv1x1 +policy.include=[gap]",
    "conv1x1_all_fwht": "conv1x1 policy.options.block_size=null",
    "conv1x1_third": "conv1x1 policy.fraction=1/3",
    "conv1x1_half": "conv1x1 policy.fraction=1/2",
    "conv1x1_two_thirds": "conv1x1 policy.fraction=2/3",
    "conv1x1_third_fwht": "conv1x1 policy.fraction=1/3 policy.options.block_size=null",
    "conv1x1_half_fwht": "conv1x1 policy.fraction=1/2 policy.options.block_size=null",
    "conv1x1_two_thirds_fwht": "conv1x1 policy.fraction=2/3 policy.options.block_size=null",
}


def load_policy(name_or_path: str | Path) -> Policy:
    """Read a shipped policy by name (``"paper"``, ``"ht2023/1path"``), or any policy from a YAML file.

    A name that a policy had in 0.1 still serves, with a warning that says what it is called now.

    Raises:
        PolicyError: if there is no such policy, or its file is malformed.
    """
    return Policy.from_dict(_policy_data(name_or_path))


def _policy_data(name_or_path: str | Path) -> Any:
    if not isinstance(name_or_path, str | Path):
        raise PolicyError(f"{name_or_path!r} is no name of a policy; give one of {', '.join(shipped_policies())}")
    if (renamed := renamed_policy(name_or_path)) is not None:
        return renamed
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        raise PolicyError(_no_policy(str(name_or_path)))
    try:
        data = read_yaml(path)
    except FileError as error:
        raise PolicyError(str(error)) from error
    return {"name": path.stem, **data} if isinstance(data, Mapping) else data


def renamed_policy(name: str | Path) -> dict[str, Any] | None:
    """The data of the policy that had this name in 0.1, with a warning that says its name now; None for other names."""
    if name not in _RENAMED:
        return None
    warn_caller(f"policy {name!r} is policy={_RENAMED[name]} now", FutureWarning)
    base, *settings = _RENAMED[name].split()
    data = _policy_data(base)
    for setting in settings:
        path, value = setting.removeprefix("+").removeprefix("policy.").split("=")
        *groups, key = path.split(".")
        functools.reduce(dict.__getitem__, groups, data)[key] = yaml.safe_load(value)
    return data


def _no_policy(name: str) -> str:
    return f"no policy {name!r}; {did_you_mean(name, shipped_policies())} (or give the path of a .yaml file)"


def shipped_policies() -> list[str]:
    """Names of the policies that come with the package, in alphabetical order."""
    return sorted(path.relative_to(_SHIPPED).with_suffix("").as_posix() for path in _SHIPPED.rglob("*.yaml"))


def select_blocks(spec: Any, count: int, origin: str) -> Collection[int]:
    """Numbers of the blocks that ``spec`` names, out of ``count`` (see :class:`Rule`).

    A fraction is rounded down: the last 1/3 of MobileNet-V2's 17 bottlenecks are the last 5, 13–17.
    """
    numbers: Collection[int] | None = None
    if isinstance(spec, str):
        if match := re.fullmatch(r"(first|last) (\d+(?:/[1-9]\d*)?)", spec):
            amount = Fraction(match[2])
            n = min(count, int(amount * count) if "/" in match[2] else int(amount))
            return range(1, n + 1) if match[1] == "first" else range(count - n + 1, count + 1)
        if match := re.fullmatch(r"(\d+)-(\d+)", spec):
            numbers = range(int(match[1]), int(match[2]) + 1)
    elif isinstance(spec, Sequence) and all(map(_is_int, spec)):
        numbers = spec
    if numbers is None:
        raise PolicyError(
            f"{origin}: can't read blocks={spec!r}; write 'last 1/3', 'first 2', '13-17' or a list of numbers"
        )
    ends = [*numbers[:1], *numbers[-1:]] if isinstance(numbers, range) else numbers  # a range may be of any length
    if beyond := sorted({n for n in ends if not 1 <= n <= count}):
        there = f"the model has blocks 1 to {count}" if count < MOST_BLOCKS else f"give numbers from 1 to {MOST_BLOCKS}"
        raise PolicyError(f"{origin}: no blocks {beyond}; {there}")
    return numbers


def _read_rules(data: Any, origin: str) -> tuple[Rule, ...]:
    rules = enumerate(_list(data, f"{origin}: rules"), 1)
    return tuple(Rule.from_dict(rule, f"{origin}, rule {i}") for i, rule in rules)


def _mapping(data: Any, origin: str) -> dict[str, Any]:
    if data is not None and not (isinstance(data, Mapping) and all(isinstance(key, str) for key in data)):
        raise PolicyError(f"{origin}: expected a mapping, got {data!r}")
    return dict(data or {})


def _list(data: Any, origin: str) -> list[Any]:
    if data is not None and not isinstance(data, list | tuple):
        raise PolicyError(f"{origin}: expected a list, got {data!r}")
    return list(data or ())


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_keys(data: Any, allowed: Sequence[str], origin: str) -> None:
    if not isinstance(data, Mapping):
        raise PolicyError(f"{origin}: expected a mapping, got {data!r}")
    for key in data:
        if key not in allowed:
            raise PolicyError(f"{origin}: unknown key {key!r}; choose from {', '.join(allowed)}")


def _compile(pattern: str, origin: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise PolicyError(f"{origin}: {pattern!r} is no regular expression: {error}") from error
