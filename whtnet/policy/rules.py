"""Policies as data: an ordered list of rules that say which sites of a network get which layer."""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from whtnet.errors import UserError

SITE_KINDS = ("conv1x1", "conv3x3", "depthwise3x3", "squeeze_excite", "before_gap")
PARTS = ("stem", "blocks", "between", "head")
KEEP = "keep"
_WHERE_KEYS = ("name", "part", "blocks", "stages", "nth", "stride")


class PolicyError(UserError, ValueError):
    """A policy that is malformed, matches nothing, or asks for a site that can't be replaced."""


@dataclass(frozen=True)
class Rule:
    """What to replace by what.

    Attributes:
        match: kind of site, one of :data:`SITE_KINDS`.
        replace: the layer to put there (``BWHT1d``, ``FWHT2d``, ``HTPerceptron2d``, ``PreGAPFWHT2d``,
            ``PreNormFWHT2d``), a control (``Identity``: the site is left out; ``DepthwiseConv2d``: a depthwise 3×3
            convolution), or ``keep`` to exempt the sites from the rules that follow.
        where: conditions, all of which must hold:
            ``name``: regular expression found in the fully qualified name;
            ``part``: ``stem``, ``blocks``, ``between`` or ``head`` (before, in, between, after the residual blocks);
            ``blocks``: ``"last 1/3"``, ``"first 2"``, ``"13-17"`` or a list of numbers, from 1;
            ``stages``: list of numbers, from 1, or from the end, −1;
            ``nth``: place among the sites of its kind in its block, from 1, or from the end, −1;
            ``stride``: the convolution's.
        options: keywords of the layer.
    """

    match: str
    replace: str
    where: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str) -> "Rule":
        """Check and read one rule; ``origin`` names it in errors."""
        _check_keys(data, ("match", "replace", "where", "options"), origin)
        for key in ("match", "replace"):
            if key not in data:
                raise PolicyError(f"{origin}: needs a value for {key!r}")
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
            select_blocks(where["blocks"], sys.maxsize, origin)
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
        rules: the rules, for any architecture.
        families: pairs of a regular expression and rules; used in place of ``rules``, the first whose expression
            matches the model's architecture (class name, or timm's name for it).
        options: defaults for the keywords of every layer the rules put in, as far as the layer has them; a rule's own
            options win.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    families: tuple[tuple[str, tuple[Rule, ...]], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Policy":
        """Read a policy from plain data, as in ``configs/policy/*.yaml``.

        Raises:
            PolicyError: naming the key and the rule that is wrong.
        """
        if not isinstance(data, Mapping):
            raise PolicyError(f"a policy is a mapping with name and rules, got {data!r}")
        name = str(data.get("name", "unnamed"))
        if data.get("name", name) is None or not re.fullmatch(r"[^./][^/]*(/[^./][^/]*)*", name):
            raise PolicyError(f"policy.name={data['name']!r} can't name a run's folder; give a word (or A/B)")
        _check_keys(data, ("name", "rules", "families", "options"), f"policy {name!r}")
        if ("rules" in data) == ("families" in data):
            raise PolicyError(f"policy {name!r}: needs either rules or families")
        families = []
        for i, family in enumerate(_list(data.get("families"), f"policy {name!r}: families"), 1):
            origin = f"policy {name!r}, family {i}"
            _check_keys(family, ("architecture", "rules"), origin)
            _compile(family.get("architecture", ""), origin)
            families.append((family.get("architecture", ""), _read_rules(family.get("rules"), origin)))
        rules = _read_rules(data.get("rules"), f"policy {name!r}")
        return cls(name, rules, tuple(families), _mapping(data.get("options"), f"policy {name!r}: options"))

    def rules_for(self, model: nn.Module) -> tuple[Rule, ...]:
        """The rules that apply to ``model``.

        Raises:
            PolicyError: if the policy has families and none of them is the model's.
        """
        if not self.families:
            return self.rules
        names = architecture_names(model)
        for pattern, rules in self.families:
            if any(re.search(pattern, name) for name in names):
                return rules
        known = ", ".join(pattern for pattern, _ in self.families)
        raise PolicyError(
            f"policy {self.name!r} has no rules for {' / '.join(names)} (it knows {known}); "
            "add a family to it or choose a policy with rules for any architecture"
        )


def architecture_names(model: nn.Module) -> list[str]:
    """The class name of ``model`` and, for a timm model, timm's name of its architecture."""
    timm_name = (getattr(model, "default_cfg", None) or {}).get("architecture")
    return [type(model).__name__, *([timm_name] if timm_name else [])]


def load_policy(name_or_path: str | Path) -> Policy:
    """Read a shipped policy by name (``"paper"``, ``"ht2023/1path"``), or any policy from a YAML file.

    Raises:
        PolicyError: if there is no such policy, or its file is malformed.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _shipped_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise PolicyError(
            f"no policy {str(name_or_path)!r}; shipped ones: {', '.join(shipped_policies())}; "
            "or give the path of a .yaml file"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: not valid YAML: {error}") from error
    if isinstance(data, Mapping):
        data = {"name": path.stem, **data}
    return Policy.from_dict(data)


def shipped_policies() -> list[str]:
    """Names of the policies that come with the package, in alphabetical order."""
    folder = _shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


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
    if beyond := sorted(n for n in numbers if not 1 <= n <= count):
        raise PolicyError(f"{origin}: no blocks {beyond}; the model has blocks 1 to {count}")
    return numbers


def _shipped_folder() -> Path:
    # In a checkout the configurations are at the top level; a wheel carries them inside the package.
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return (inside if inside.is_dir() else package.parent / "configs") / "policy"


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
