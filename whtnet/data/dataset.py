"""A data set by its name: read, checked, perhaps with images held out, ready to be batched."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from whtnet.data.errors import DatasetError
from whtnet.data.loaders import FileLoader, Loader, Loaders, MemoryLoader
from whtnet.data.sources import read_source
from whtnet.data.splits import Files, Split, Triple, stratified_split
from whtnet.errors import few
from whtnet.settings import check_arguments


@dataclass(frozen=True)
class ImageDataset:
    """Images of known classes, with a training and a test split.

    Attributes:
        name: of the data set.
        title: what a person calls it, such as the name of its folder.
        classes: their names, in the order of the labels.
        input_size: (C, H, W) of the batches' images; those in memory may have another size.
        mean: of each channel, subtracted from pixels in 0..1.
        std: of each channel, divided by.
        train: what is trained on.
        test: the official test set.
        holdout: images of the official training set that aren't trained on, or None.
        crop_padding: black pixels around a training image before a random crop back to its size; 0 for no crop.
        flip: mirror training images at random.
    """

    name: str
    title: str
    classes: list[str]
    input_size: tuple[int, int, int]
    mean: Triple
    std: Triple
    train: Split = field(repr=False)
    test: Split = field(repr=False)
    holdout: Split | None = field(default=None, repr=False)
    crop_padding: int = 0
    flip: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split there is."""
        splits = {"train": self.train, "test": self.test, "holdout": self.holdout}
        return {name: len(split) for name, split in splits.items() if split is not None}

    @property
    def summary(self) -> str:
        """One line for a person, such as ``flowers: 2 classes (rose, tulip), 8 training and 8 test images``."""
        held = f", {len(self.holdout):,} held out" if self.holdout else ""
        classes = "1 class" if self.num_classes == 1 else f"{self.num_classes:,} classes"
        counts = f"{len(self.train):,} training{held} and {len(self.test):,} test images"
        return f"{self.title}: {classes} ({few(self.classes)}), {counts}"

    def loaders(
        self,
        *,
        batch_size: int,
        device: torch.device,
        seed: int,
        eval_batch_size: int | None = None,
        channels_last: bool = False,
        workers: int = 2,
    ) -> Loaders:
        """Loaders of all splits.

        Args:
            batch_size: images a training step; a larger one than the training split is cut down to it.
            device: of the batches; a GPU also keeps the images of a data set that is in memory.
            seed: of order and augmentation, at least 0.
            eval_batch_size: images a step in evaluation; None for ``batch_size``.
            channels_last: memory format of the images.
            workers: processes that decode a data set that isn't in memory.

        Raises:
            DatasetError: for a batch size below 1, or augmentation that can't be.
        """

        def loader(split: Split, size: int, seed: int | None = None) -> Loader:
            common: dict[str, Any] = {"channels_last": channels_last, "seed": seed}
            common |= {"batch_size": size, "device": device}
            if isinstance(split.images, Files):
                return FileLoader(split, self._transform(split.images, seed is not None), workers=workers, **common)
            augmentation: dict[str, Any] = {"crop_padding": self.crop_padding, "flip": self.flip}
            return MemoryLoader(split, self.mean, self.std, size=self.input_size[1:], **augmentation, **common)

        eval_size = batch_size if eval_batch_size is None else eval_batch_size
        holdout = None if self.holdout is None else loader(self.holdout, eval_size)
        return Loaders(loader(self.train, batch_size, seed), loader(self.test, eval_size), holdout)

    def _transform(self, files: Files, training: bool) -> Any:
        options: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if not training:
            return files.eval_transform(**options)
        options |= {"hflip": 0.5 if self.flip else 0.0, **files.transform}
        try:
            return create_transform(self.input_size, is_training=True, **options)
        except Exception as error:  # of any kind: timm looks at little
            raise DatasetError(f"dataset.transform={files.transform} does not suit timm: {error}") from error


def load_dataset(
    name: str,
    *,
    root: str | None = None,
    download: bool = True,
    holdout: float = 0.0,
    crop_padding: int = 0,
    flip: bool = False,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> ImageDataset:
    """Load a data set.

    Images that fit stay decoded in memory, and a second call with the same arguments finds them there; sets too large
    for that (source ``timm``) are decoded by worker processes, with timm's transforms.

    Args:
        name: ``digits``, ``cifar10``, ``cifar100``, ``fashion_mnist``, ``timm`` or ``synthetic``;
            ``my_package.data:photos`` for a function of one's own that returns a :class:`Source`, see
            :mod:`whtnet.extensions`.
        root: folder of a local copy, see :mod:`whtnet.data.places`.
        download: download what is missing, where torchvision can.
        holdout: fraction of the training split to hold out for choices such as the best epoch; drawn by class, always
            the same images.
        crop_padding: crop training images at random after surrounding them with so many black pixels; in memory only:
            otherwise timm crops and resizes at random.
        flip: mirror training images at random.
        resize: height and width that images are brought to, batch by batch, after their augmentation; in memory only.
            None for the size that they have.
        mean: of each channel, in 0..1 units; None for the data set's own.
        std: of each channel, likewise.
        options: of the data set: see the ``timm`` and ``synthetic`` sources.

    Raises:
        DatasetError: a ValueError, for an unknown name or option, a value that can't be, an empty split, labels out of
            range.
        DatasetNotFoundError: a RuntimeError, if the data is neither here nor could be downloaded.
    """
    given = {"download": download, "holdout": holdout, "crop_padding": crop_padding, "flip": flip, "resize": resize}
    check_arguments(load_dataset, given, "dataset", DatasetError)
    if not 0 <= holdout < 1:
        raise DatasetError(f"dataset.holdout must be in [0, 1), got {holdout}")
    if crop_padding < 0:
        raise DatasetError(f"dataset.crop_padding must not be negative, got {crop_padding}")
    if resize is not None and resize < 1:
        raise DatasetError(f"dataset.resize must be at least 1, got {resize}")
    source = read_source(name, root, download, **options)
    images, train, held = source.train.images, source.train, None
    if crop_padding and isinstance(images, Files):
        raise DatasetError(
            f"dataset.crop_padding={crop_padding} is for data in memory, but {name} is decoded by workers, where timm "
            "crops and resizes at random; set dataset.crop_padding=0, or dataset.in_memory=true"
        )
    if resize and isinstance(images, Files):
        raise DatasetError(
            f"dataset.resize={resize} is for data in memory, but {name} is decoded by workers; set "
            f"dataset.input_size={resize} in its place"
        )
    if holdout:
        rest, chosen = stratified_split(train.labels, holdout)
        train, held = train.subset(rest), train.subset(chosen)
    return ImageDataset(
        name=name,
        title=source.title or name,
        classes=list(source.classes),
        input_size=(3, resize, resize) if resize else (3, *_size(images)),
        mean=_three("mean", source.mean if mean is None else mean),
        std=_three("std", source.std if std is None else std),
        train=train,
        test=source.test,
        holdout=held,
        crop_padding=crop_padding,
        flip=flip,
    )


def _size(images: Tensor | Files) -> tuple[int, int]:
    height, width = images.size if isinstance(images, Files) else images.shape[-2:]
    return height, width


def _three(name: str, values: Sequence[float]) -> Triple:
    lowest = 1e-9 if name == "std" else 0
    three = isinstance(values, Sequence) and len(values) == 3
    if not three or not all(isinstance(value, int | float) and lowest <= value <= 1 for value in values):
        raise DatasetError(f"dataset.{name} must be three numbers {'above' if lowest else 'from'} 0 to 1, got {values}")
    first, second, third = map(float, values)
    return first, second, third
