"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) of a batch's images, by timm, the same for a seed."""

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from whtnet import distributed
from whtnet.data.loaders import seeded
from whtnet.engine.config import TrainConfig
from whtnet.settings import ConfigError

_MIXING = 1  # sets its random numbers apart from those of a loader with the same seed and epoch


class Mixing:
    """Mixes every image with another one of its batch; where several processes share a batch, of its share.

    Args:
        config: with ``mixup`` and ``cutmix``, not both 0; with both, each batch gets one of them, with probability ½.
        batch_size: over all processes.

    Raises:
        ConfigError: for a share with an odd number of images.
    """

    def __init__(self, config: TrainConfig, batch_size: int) -> None:
        if batch_size % (2 * distributed.world_size()):
            several = f", here by {2 * distributed.world_size()}" if distributed.world_size() > 1 else ""
            raise ConfigError(
                f"trainer.mixup and trainer.cutmix mix pairs, but a batch has {batch_size} images; give a "
                f"trainer.batch_size that is divisible by 2{several}, and not above the number of training images"
            )
        self.alphas = {"mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix}

    def __call__(self, images: Tensor, *entropy: int) -> tuple[Tensor, Tensor]:
        """Mix ``images``, ``(N, C, H, W)``, in place.

        Args:
            images: of a batch.
            entropy: seed, epoch and step, which determine how.

        Returns:
            The images, and ``(N, N)``: the share that each of the given images (column) has in each mixed one (row).
        """
        # What timm takes for their classes are the images' numbers here, so that no number of classes is needed.
        numbers = torch.arange(len(images), device=images.device)
        with seeded(*entropy, _MIXING):
            return Mixup(**self.alphas, label_smoothing=0.0, num_classes=len(images))(images, numbers)
