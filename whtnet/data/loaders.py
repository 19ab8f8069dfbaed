"""Batches of normalised images: from memory, augmented whole batches at a time, or through worker processes.

Whatever is random in epoch e is drawn from (seed, e) alone, so a run that is resumed sees the same batches as one that
was never interrupted, on any device and with any number of workers. Where several processes train one model, each gets
its share of every batch; all of it together are the same images, augmented in the same way, as one process gets.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils import data

from whtnet import distributed
from whtnet.data.errors import DatasetError
from whtnet.data.splits import Files, Split, Triple
from whtnet.seeding import mix_seeds, random_states

Batch = tuple[Tensor, Tensor]


class Loader:
    """Iterates over batches: images ``(N, C, H, W)`` float32, normalised, and labels ``(N,)`` int64, on a device.

    ``len()`` is the number of batches. A training loader leaves out the last, incomplete batch of an epoch.
    Where several processes train one model, each iterates over its shares of the batches, and an evaluation passes over
    those that are empty.

    Args:
        split: images and labels.
        batch_size: images a batch, over all processes; cut down to as many as there are.
        device: of the batches.
        channels_last: memory format of the images.
        seed: of order and augmentation; None for evaluation: all images, in order, unchanged.

    Attributes:
        batch_size: images a batch, over all processes.
        num_samples: images an epoch, likewise.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device,
        channels_last: bool = False,
        seed: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise DatasetError(f"the batch size must be at least 1, got {batch_size}")
        self.split, self.device, self.seed = split, device, seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.batch_size = min(batch_size, len(split))
        self.num_samples = len(split) if seed is None else len(split) // self.batch_size * self.batch_size
        if seed is not None and self.batch_size < distributed.world_size():
            raise DatasetError(
                f"a batch of {self.batch_size} images can't be shared by {distributed.world_size()} processes; "
                "raise trainer.batch_size, or start fewer"
            )
        self.epoch = self.first_batch = 0

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the batch in it, both counted from 0, with which the next iteration begins."""
        self.epoch, self.first_batch = epoch, first_batch

    def first_images(self, count: int) -> list[Tensor]:
        """The images of the first batches of epoch 0, as many batches as it takes for ``count`` images."""
        self.set_epoch(0)
        batches: list[Tensor] = []
        for images, _ in self:
            batches.append(images)
            if sum(map(len, batches)) >= count:
                break
        return batches

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.seed is None:
            return torch.arange(self.num_samples)
        return torch.randperm(len(self.split), generator=generator)[: self.num_samples]

    def _shares(self, plan: Tensor) -> list[Tensor]:
        """This process's part of every batch of ``plan``, ``(..., images)``."""
        batches = plan.split(self.batch_size, dim=-1)[self.first_batch :]
        shares = [batch[..., distributed.share(batch.shape[-1])] for batch in batches]
        return [share for share in shares if share.numel()]


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run; ``holdout``, a part of the training set that isn't trained on, may be None."""

    train: Loader
    test: Loader
    holdout: Loader | None = None


class MemoryLoader(Loader):
    """Batches from decoded images, which stay on the device if it is a GPU, else in main memory.

    Args:
        split: the decoded images and labels.
        mean: of each channel, in 0..1 units.
        std: of each channel, likewise.
        crop_padding: width of the black border in which training images are shifted at random (:func:`crop_and_flip`).
        flip: mirror training images with probability ½.
        size: height and width of the batches' images; others are resized, after their augmentation. None for their own.
        options: of :class:`Loader`.
    """

    def __init__(
        self,
        split: Split[Tensor],
        mean: Triple,
        std: Triple,
        *,
        crop_padding: int = 0,
        flip: bool = False,
        size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(split, **options)
        self.store = self.device if self.device.type == "cuda" else torch.device("cpu")
        self.images, self.labels = split.images.to(self.store), split.labels.to(self.store)
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (mean, std))
        self.crop_padding, self.flip = crop_padding, flip
        self.resize = size if size and size != tuple(split.images.shape[-2:]) else None
        self.augments = self.seed is not None and (crop_padding > 0 or flip)

    def __iter__(self) -> Iterator[Batch]:
        # An epoch's random numbers are drawn at once, on the CPU: the same on every device, and without waiting for it.
        generator = epoch_generator(self.seed or 0, self.epoch)
        order = self._order(generator)
        shifts = torch.randint(0, 2 * self.crop_padding + 1, (2, len(order)), generator=generator)
        mirrored = torch.randint(0, 2, order.shape, generator=generator) * int(self.flip)
        plan = torch.stack([order, *shifts, mirrored]).to(self.store)
        for chosen, rows, columns, mirror in self._shares(plan):
            images = self.images.index_select(0, chosen)
            if self.augments:
                images = crop_and_flip(images, rows, columns, mirror.bool(), self.crop_padding)
            yield self._normalise(images.to(self.device)), self.labels[chosen].to(self.device)

    def _normalise(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self.memory_format).float()
        if self.resize:  # antialiased, as Pillow does it
            resized = F.interpolate(images, self.resize, mode="bilinear", antialias=True)
            images = resized.contiguous(memory_format=self.memory_format)
        # The order of operations of torchvision's ToTensor and Normalize, so that both paths give the same numbers.
        return images.div_(255).sub_(self.mean).div_(self.std)


class FileLoader(Loader):
    """Batches of images that are decoded, transformed and normalised in worker processes.

    Args:
        split: the files and labels.
        transform: from an image to a normalised tensor ``(C, H, W)``.
        workers: processes; 0 for none.
        options: of :class:`Loader`.
    """

    def __init__(
        self, split: Split[Files], transform: Callable[[Image.Image], Tensor], *, workers: int = 2, **options: Any
    ) -> None:
        super().__init__(split, **options)
        self.transform, self.workers = transform, workers

    def __iter__(self) -> Iterator[Batch]:
        generator = epoch_generator(self.seed or 0, self.epoch)
        batches = data.DataLoader(
            _Transformed(self.split, self.transform, None if self.seed is None else (self.seed, self.epoch)),
            batch_sampler=[share.tolist() for share in self._shares(self._order(generator))],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=generator,  # otherwise each pass would draw from, and so change, the global generator
        )
        for images, labels in _telling(batches):
            images = images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)
            yield images, labels.to(self.device, non_blocking=True)


def _telling(batches: data.DataLoader) -> Iterator[Any]:
    """The batches; of a DatasetError in a worker the message alone, without the worker's traceback before it."""
    try:
        yield from batches
    except DatasetError as error:
        raise DatasetError(
            str(error).splitlines()[-1].removeprefix(f"{DatasetError.__module__}.DatasetError: ")
        ) from None


class _Transformed(data.Dataset):
    def __init__(
        self, split: Split[Files], transform: Callable[[Image.Image], Tensor], entropy: tuple[int, int] | None
    ) -> None:
        self.split, self.transform, self.entropy = split, transform, entropy

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.split.images.open(index), self.split.labels[index]
        with seeded(*self.entropy, index) if self.entropy else contextlib.nullcontext():
            return self.transform(image), label


def crop_and_flip(images: Tensor, rows: Tensor, columns: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Surround images with ``padding`` black pixels, cut a window of the old size out of each, mirror some.

    Args:
        images: ``(N, C, H, W)``; black is 0, so these are pixels before normalisation.
        rows: ``(N,)`` int64 in 0..2·padding, upper edge of each window in the padded image.
        columns: ``(N,)``, likewise the left edge.
        mirrored: ``(N,)`` bool, whether to mirror the window left to right.
        padding: pixels on each side.

    Returns:
        ``(N, C, H, W)``, as :class:`torchvision.transforms.RandomCrop`, then ``RandomHorizontalFlip``.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    x = torch.arange(w, device=images.device)
    x = torch.where(mirrored[:, None], x.flip(0), x) + columns[:, None]
    y = torch.arange(h, device=images.device) + rows[:, None]
    # One gather does both, for a third of the time of a strided window and a flip.
    pixels = y[:, :, None] * padded.shape[3] + x[:, None, :]
    return padded.flatten(2).gather(2, pixels.view(n, 1, h * w).expand(-1, c, -1)).view(images.shape)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator on the CPU for one epoch of a run; neighbouring seeds and epochs have nothing in common."""
    return torch.Generator().manual_seed(mix_seeds(seed, epoch))


@contextlib.contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the global generators that timm's transforms draw from (Python, NumPy, PyTorch on the CPU), then restore."""
    restore = random_states()
    seed = mix_seeds(*entropy)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
    try:
        yield
    finally:
        restore()
