"""An experiment: everything that determines a run's result, typed, frozen, and identified by its content."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from whtnet.backbones import build_backbone, weights_identity, without_weights
from whtnet.data import data_identity, load_dataset, source_defaults
from whtnet.engine import TrainConfig
from whtnet.errors import UserError
from whtnet.extensions import is_extension
from whtnet.finetune import FineTuneConfig, start_identity
from whtnet.policy import Policy, canonical_policy, explicit_policy
from whtnet.records import LABELS, RecordError, record_file
from whtnet.settings import ConfigError, canonical, defaults_of, without_defaults

PLACES = ("root", "download")
"""Settings of a data set that say where it lies, not what it is; a record leaves them out.

They stay where a function of one's own makes the data: nobody else knows what it finds there.
"""

MEANS = ("channels_last", "compile", "cuda_graph", "workers", "dry_run")
"""Settings of a trainer that change how fast a result is there, not the result; identities leave them out."""


@dataclass(frozen=True)
class Choice:
    """A backbone or a data set: its name, and further keywords of the function that makes it."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, settings: Any, group: str) -> "Choice":
        """Read plain data.

        Raises:
            ConfigError: naming ``group``, for settings without a name, or that are no plain data.
        """
        if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
            raise ConfigError(f"{group} needs a name and may have further settings, got {settings!r}")
        canonical(settings)  # for its errors
        return cls(settings["name"], {key: value for key, value in settings.items() if key != "name"})

    def to_dict(self) -> dict[str, Any]:
        """The keywords, ``name`` among them."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class Experiment:
    """The settings of a run.

    Attributes:
        backbone: keywords of :func:`whtnet.backbones.build_backbone`.
        policy: which layers are replaced.
        dataset: keywords of :func:`whtnet.data.load_dataset`.
        trainer: how to train.
        finetune: from which network to go on, and how.
        seed: of weights, batches and augmentation.
        device: ``auto``, ``cpu``, ``cuda``, …; no part of the identity.
        known_inputs: what :attr:`inputs` is, where that is known; None finds it out.
        start: the experiment whose network ``finetune.start`` is, whatever stands there, and wherever it was trained;
            None for what ``finetune.start`` names.

    Raises:
        ConfigError: for a seed that is no whole number from 0, a backbone with a number of classes of its own, more
            stages than epochs, patience without a held-out part, or layers to fit to an untrained network.
    """

    backbone: Choice
    policy: Policy
    dataset: Choice
    trainer: TrainConfig = field(default_factory=TrainConfig)
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)
    seed: int = 0
    device: str = "auto"
    known_inputs: Mapping[str, Any] | None = None
    start: "Experiment | None" = None

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed={self.seed!r} is no seed; give a whole number from 0")
        if not isinstance(self.device, str):
            raise ConfigError(f"device={self.device!r} is no device; give auto, cpu, cuda, cuda:1, …")
        if self.policy.architectures:
            object.__setattr__(self, "policy", _policy_of(self.policy, self.backbone))
        if "num_classes" in self.backbone.options:
            raise ConfigError("backbone.num_classes is the data set's number of classes; leave it out")
        if self.trainer.patience and not self.dataset.options.get("holdout"):
            raise ConfigError("trainer.patience needs a held-out part: give dataset.holdout=0.1, say")
        if self.trainer.epochs < self.finetune.stages:
            raise ConfigError(
                f"finetune.stages={self.finetune.stages} need as many epochs, trainer.epochs is {self.trainer.epochs}"
            )
        if self.finetune.init == "fit" and not (self.finetune.start or _begins_trained(self.backbone)):
            raise ConfigError(
                "finetune.init=fit has nothing to fit to: the layers that are replaced are untrained; give "
                "finetune.start=MODEL, or backbone.pretrained=true or backbone.weights=FILE"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Experiment":
        """Read plain data, as a composed ``configs/config.yaml``; its other settings are none of an experiment's.

        Raises:
            UserError: naming the setting that can't be.
        """
        plain = {name: config[name] for name in ("seed", "device") if name in config}
        return cls(
            Choice.from_dict(config.get("backbone"), "backbone"),
            Policy.from_dict(config["policy"]),
            Choice.from_dict(config.get("dataset"), "dataset"),
            TrainConfig.from_dict(config.get("trainer", {})),
            FineTuneConfig.from_dict(config.get("finetune", {})),
            **plain,
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Experiment":
        """The experiment that a record of :mod:`whtnet.records` is of.

        Raises:
            RecordError: naming the record and the reason, if there is no such experiment any more, or another one.
        """
        name = record_file(record) if set(LABELS) <= set(record) else f"the record of {record.get('run', 'a run')}"
        try:
            experiment = cls.from_config(record["settings"])
            experiment = dataclasses.replace(experiment, known_inputs=record["inputs"])
            identity = experiment.identity
        except (UserError, KeyError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise RecordError(f"{name} can't be replayed: {reason}") from error
        if identity != record.get("identity"):
            raise RecordError(
                f"{name} can't be replayed: its settings are those of {identity[:8]} now, not of "
                f"{str(record.get('identity'))[:8]}; if a default has changed, scripts/migrate_records.py renames it"
            )
        return experiment

    def with_seed(self, seed: int) -> "Experiment":
        """The same experiment with another seed, which that of its start has too."""
        known = self.__dict__.get("_own_inputs", self.known_inputs)
        return dataclasses.replace(self, seed=seed, known_inputs=known, start=self.start and self.start.with_seed(seed))

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data for :meth:`from_config`: every value, defaults too, but for the device and where the data lies."""
        dataset = {"name": self.dataset.name, **_dataset_defaults(self.dataset.name), **self.dataset.options}
        return {
            "backbone": {"name": self.backbone.name, **_backbone_defaults(), **self.backbone.options},
            "policy": explicit_policy(self.policy),
            "dataset": _without(dataset, self._places),
            "trainer": dataclasses.asdict(self.trainer),
            "finetune": dataclasses.asdict(self.finetune),
            "seed": self.seed,
        }

    @property
    def inputs(self) -> dict[str, Any]:
        """What the files are that the settings only point to: the data set, and the network or weights to begin with.

        Raises:
            UserError: if the data or the weights aren't there.
        """
        return self._own_inputs if self.start is None else {**self._own_inputs, "start": self.start.identity}

    @functools.cached_property
    def _own_inputs(self) -> dict[str, Any]:
        """Those that don't come from :attr:`start`."""
        if self.known_inputs is not None:
            return dict(self.known_inputs)
        named = None if self.start else self.finetune.start
        start = None if named is None else start_identity(named)
        weights = self.backbone.options.get("weights")
        return _full(
            {
                "data": data_identity(**self.dataset.to_dict()),
                "start": start,
                "weights": None if weights is None else weights_identity(weights),
            }
        )

    @property
    def _places(self) -> tuple[str, ...]:
        return () if is_extension(self.dataset.name) else PLACES

    @property
    def content(self) -> dict[str, Any]:
        """What the identity is the hash of, in canonical form.

        Defaults are left out, so that a setting that is new to the package changes no identity.
        """
        trainer = _without(dataclasses.asdict(self.trainer), MEANS)
        finetune = _without(dataclasses.asdict(self.finetune), ("start",))
        dataset = _without(self.dataset.to_dict(), self._places)
        return _full(
            {
                "backbone": without_defaults(_without(self.backbone.to_dict(), ("weights",)), _backbone_defaults()),
                "policy": canonical_policy(self.policy),
                "dataset": without_defaults(dataset, _dataset_defaults(self.dataset.name)),
                "trainer": without_defaults(trainer, dataclasses.asdict(TrainConfig())),
                "finetune": without_defaults(finetune, dataclasses.asdict(FineTuneConfig())),
                "seed": self.seed,
                "inputs": canonical(self.inputs),
            }
        )

    @functools.cached_property
    def identity(self) -> str:
        """Hexadecimal digits that two experiments share if their results must be the same, up to rounding.

        Raises:
            UserError: if the data isn't there, or the policy names a layer or an option that there is not.
        """
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @property
    def backbone_name(self) -> str:
        """Name of the backbone without what can't stand in a path."""
        return _in_a_path(self.backbone.name)

    @property
    def name(self) -> str:
        """Name of the run, the same whenever the experiment is the same and its policy has the same name."""
        policy = self.policy.name.removesuffix(f"/{self.backbone_name}").replace("/", "-")  # paper, of paper/resnet20
        return f"{self.backbone_name}-{policy}-seed{self.seed}-{self.identity[:8]}"

    def folder(self, root: Path) -> Path:
        """The run's own folder under ``root``."""
        return root / _in_a_path(self.dataset.name) / self.name


def _policy_of(policy: Policy, backbone: Choice) -> Policy:
    """The one that ``policy`` names for the backbone's architecture."""
    with torch.device("meta"):
        return policy.for_model(build_backbone(**without_weights(backbone.to_dict())))


def _begins_trained(backbone: Choice) -> bool:
    """Whether it may have trained weights; a function of one's own may bring them."""
    given = backbone.options.get("pretrained") or backbone.options.get("weights")
    return bool(given) or is_extension(backbone.name)


def _backbone_defaults() -> dict[str, Any]:
    return _without(defaults_of(build_backbone), ("num_classes",))


def _dataset_defaults(name: str) -> dict[str, Any]:
    return {**defaults_of(load_dataset), **source_defaults(name)}


def _in_a_path(name: str) -> str:
    return re.sub("[/:]", "-", name)


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _full(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part not in (None, {}, [])}
