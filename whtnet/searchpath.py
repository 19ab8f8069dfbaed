"""What Hydra is taught: every model of torchvision and timm is a choice of the group ``backbone``, and about policies.

``backbone=timm/regnetx_002`` and ``backbone=torchvision/vgg11_bn`` need no file, and neither do
``backbone=my_package.models:net`` and ``dataset=my_package.data:photos`` of one's own (:mod:`whtnet.extensions`); the
command lines call :func:`register_name_source` before they compose. ``policy=mine.yaml`` is a file of the working
folder; one that has no file is what had this name in 0.1, or includes itself by name, so that the package says which
there are.
"""

import re
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from whtnet.files import read_yaml

LIBRARIES = ("torchvision", "timm")  # whtnet.backbones.SOURCES, without the wait for PyTorch

_PATH = re.compile(rf"backbone/((?:{'|'.join(LIBRARIES)})/[^/]+?)(?:\.yaml)?")
_OWN = re.compile(r"(backbone|dataset)/([^/:]+:[^/:]+?)(?:\.yaml)?")
_OWN_SETTINGS: dict[str, dict[str, object]] = {
    "backbone": {"weights": None},
    "dataset": {
        "root": None,
        "holdout": 0.0,
        "crop_padding": 0,
        "flip": False,
        "resize": None,
        "mean": None,
        "std": None,
    },
}
_POLICY = re.compile(r"policy/(.+?)(?:\.yaml)?")


class NameSource(ConfigSource):
    """Configs that are made of their own name; ``hydra.searchpath: [whtnet://backbones]`` asks here last."""

    @staticmethod
    def scheme() -> str:
        """The scheme of the search path's entry."""
        return "whtnet"

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether there are configs below."""
        return config_path in ("", *_OWN_SETTINGS, *(f"backbone/{source}" for source in LIBRARIES))

    def is_config(self, config_path: str) -> bool:
        """Whether this is the path of a backbone, a policy, or code of one's own; they need not exist."""
        return any(path.fullmatch(config_path) for path in (_PATH, _OWN, _POLICY))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing: there are more than a thousand models."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """The settings of the backbone, data set or policy that the path names."""
        if own := _OWN.fullmatch(config_path):
            settings = {"name": own[2], **_OWN_SETTINGS[own[1]]}
            return ConfigResult(self.provider, self.path, OmegaConf.create(settings), header={"package": None})
        if policy := _POLICY.fullmatch(config_path):
            file = Path(f"{policy[1]}.yaml")
            if file.is_file():
                data = read_yaml(file)
                data = {"name": file.stem, "options": {}, **data} if isinstance(data, dict) else data
            else:
                from whtnet.policy.rules import renamed_policy  # loads PyTorch, which tab completion does without

                data = renamed_policy(policy[1])
                data = data or {"name": policy[1], "include": [policy[1]], "fraction": None, "options": {}}
            return ConfigResult(self.provider, self.path, OmegaConf.create(data), header={"package": "policy"})
        match = _PATH.fullmatch(config_path)
        if match is None:
            raise ConfigLoadError(f"no config {config_path}")
        settings = {"name": match[1], "stem": "imagenet", "pretrained": False, "weights": None}
        return ConfigResult(self.provider, self.path, OmegaConf.create(settings), header={"package": None})


def register_name_source() -> None:
    """Let Hydra find what needs no file; may be called more than once."""
    Plugins.instance().register(NameSource)
