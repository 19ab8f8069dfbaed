"""Splits of data sets: images, decoded or in files, with their labels; holding some out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from whtnet.data.errors import DatasetError
from whtnet.data.pixels import open_rgb

Triple = tuple[float, float, float]

SPLIT_SEED = 0  # which images are held out must not depend on a run's seed


class Reader(Protocol):
    """Encoded images by number."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> BinaryIO:
        """The encoded image."""
        ...

    def filename(self, index: int) -> str:
        """Its name, for messages."""
        ...


@dataclass(frozen=True)
class Files:
    """Encoded images, decoded whenever they are asked for.

    Attributes:
        reader: of a folder, a tar or a Hugging Face data set.
        size: height and width that every image is brought to.
        crop_pct: side of the centre crop over the shorter side of the resized image, in evaluation.
        transform: further keywords of :func:`timm.data.create_transform` for training.
        indices: ``(N,)``, the reader's images that belong here; None for all.
    """

    reader: Reader
    size: tuple[int, int]
    crop_pct: float = 1.0
    transform: Mapping[str, Any] = field(default_factory=dict)
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def subset(self, indices: Tensor) -> "Files":
        """Those of these images."""
        return replace(self, indices=indices if self.indices is None else self.indices[indices])

    def open(self, index: int) -> Image.Image:
        """Decode one image to RGB.

        Raises:
            DatasetError: if it can't be read or decoded.
        """
        index = index if self.indices is None else int(self.indices[index])
        name = self.reader.filename(index)
        try:
            file = self.reader.open(index)
        except OSError as error:
            raise DatasetError(f"{name} can't be read: {error.strerror or error}") from error
        with file:
            return open_rgb(file, name)

    def eval_transform(self, **options: Any) -> Callable[[Image.Image], Tensor]:
        """:func:`eval_transform` to this size."""
        return eval_transform(self.size, crop_pct=self.crop_pct, **options)

    def decode(self) -> Tensor:
        """All images, resized and centre-cropped: ``(N, 3, H, W)``, uint8."""
        transform = self.eval_transform(use_prefetcher=True)  # timm's word for uint8
        images = torch.empty(len(self), 3, *self.size, dtype=torch.uint8)
        as_they_are = self.crop_pct == 1.0  # an image of the right size needs no transform
        for i in range(len(self)):
            image = self.open(i)
            if as_they_are and image.size == self.size[::-1]:
                images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            else:
                images[i] = torch.as_tensor(transform(image))
        return images


def eval_transform(size: tuple[int, int], **options: Any) -> Callable[[Image.Image], Tensor]:
    """Resize the shorter side, crop the centre, from an RGB image to ``(3, H, W)``: timm's transform for evaluation.

    Args:
        size: (H, W).
        options: of :func:`timm.data.create_transform`, such as ``crop_pct``, ``mean`` and ``std``.
    """
    transform = create_transform((3, *size), is_training=False, **options)
    transform.transforms.insert(0, _Middle(16 * -(-max(size) // min(size))))
    return transform


@dataclass(frozen=True)
class _Middle:
    """Cuts long images down to ``ratio`` times their shorter side, around their centre, which alone is kept later.

    Resized with the shorter side, an image of 1 × 100,000 pixels would fill gigabytes.
    """

    ratio: int

    def __call__(self, image: Image.Image) -> Image.Image:
        longest = self.ratio * min(image.size)
        if max(image.size) <= longest:
            return image
        width, height = (min(side, longest) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


Images = TypeVar("Images", Tensor, Files, covariant=True)


@dataclass(frozen=True)
class Split(Generic[Images]):
    """Images of a split, ``(N, 3, H, W)`` uint8 or files, and their labels, ``(N,)`` int64."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split[Images]":
        """The images of these indices."""
        images = self.images.subset(indices) if isinstance(self.images, Files) else self.images[indices]
        return Split(images, self.labels[indices])

    def decode(self: "Split[Files]") -> "Split[Tensor]":
        """The same split, in memory."""
        return Split(self.images.decode(), self.labels)

    def check(self, what: str, num_classes: int) -> None:
        """Raise a DatasetError, which calls the split ``what``, if it is empty or has a label that is no class."""
        if not len(self):
            raise DatasetError(f"{what} is empty")
        wrong = ((self.labels < 0) | (self.labels >= num_classes)).nonzero().flatten().tolist()
        if wrong:
            first = f"{self.labels[wrong[0]].item()}, of image {wrong[0]}"
            raise DatasetError(f"{what} has {len(wrong)} labels outside 0..{num_classes - 1}; the first is {first}")


def stratified_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split the indices of ``labels`` in two, ascending, with every class in proportion; always the same way.

    Raises:
        DatasetError: if a class, or the fraction, is too small for that.
    """
    from sklearn.model_selection import train_test_split  # slow to import, and needed here alone

    try:
        halves = train_test_split(
            torch.arange(len(labels)).numpy(), test_size=fraction, stratify=labels.numpy(), random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise DatasetError(f"can't split off {fraction:g} of {len(labels)} images by class: {error}") from error
    rest, held = (torch.from_numpy(half).sort().values for half in halves)
    return rest, held
