"""The project's own results, read as its scripts read them."""

import sys
from pathlib import Path

from whtnet.tables import Identities, Results

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"

sys.path.insert(0, str(ROOT / "scripts"))
try:
    from _compose import backbone_settings, compose_config
finally:
    sys.path.pop(0)

SHIPPED = Results(EXPERIMENTS, ROOT / "results", Identities(compose_config))

__all__ = ["EXPERIMENTS", "ROOT", "SHIPPED", "backbone_settings", "compose_config"]
