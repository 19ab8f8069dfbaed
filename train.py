"""Train one model: ``python train.py backbone=resnet20 policy=paper dataset=cifar10 trainer.epochs=30 seed=3``.

``torchrun --nproc-per-node 4 train.py …`` trains it in four processes; docs/many-machines.md says more.
"""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from whtnet.cli import only_the_first_speaks, train
from whtnet.extensions import trust_typed
from whtnet.searchpath import register_backbones


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> float | None:
    """Compose the config, run it, and return the test error in percent."""
    trust_typed(HydraConfig.get().overrides.task)
    return train(OmegaConf.to_container(config, resolve=True))


if __name__ == "__main__":
    register_backbones()
    only_the_first_speaks()
    main()
