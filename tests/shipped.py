"""The project's own results, read as its commands read them."""

from pathlib import Path

from whtnet.commands.compose import backbone_settings, compose_config
from whtnet.tables import Identities, Results

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"

SHIPPED = Results(EXPERIMENTS, ROOT / "results", Identities(compose_config))

__all__ = ["EXPERIMENTS", "ROOT", "SHIPPED", "backbone_settings", "compose_config"]
