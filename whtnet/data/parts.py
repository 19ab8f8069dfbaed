"""Parts of data sets: images, decoded or in files, with their labels; opening files through timm; splitting."""

import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from timm.data import create_dataset, create_transform
from torch import Tensor

from whtnet.errors import UserError

Triple = tuple[float, float, float]

SPLIT_SEED = 0  # which images are held out must not depend on a run's seed


class DatasetError(UserError, ValueError):
    """A data set, or a setting of it, that can't be."""


class DatasetNotFoundError(UserError, RuntimeError):
    """Data that is neither here nor could be downloaded; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class Files:
    """Encoded images behind one of timm's readers, decoded whenever they are asked for.

    Attributes:
        reader: timm's reader of a folder, a tar or a Hugging Face data set.
        size: height and width that every image is brought to.
        crop_pct: side of the centre crop over the shorter side of the resized image, in evaluation.
        transform: further keywords of :func:`timm.data.create_transform` for training.
        indices: ``(N,)``, the reader's images that belong here; None for all.
    """

    reader: Any
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
            DatasetError: if it can't be decoded. (timm itself would give the next image in its place.)
        """
        index = index if self.indices is None else int(self.indices[index])
        try:
            with self.reader[index][0] as file, Image.open(file) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, tarfile.TarError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{self.reader.filename(index)} can't be decoded as an image: {error}") from error

    def close(self) -> None:
        """Close tar files, which are opened again on demand: processes must not share a position in one."""
        if (state := getattr(self.reader, "tar_state", None)) is not None:
            for tar in (state, *state.children.values()):
                tar.reset()

    def eval_transform(self, **options: Any) -> Callable[[Image.Image], Tensor]:
        """Resize the shorter side, crop the centre; timm's transform for evaluation, with further options of it."""
        return create_transform((3, *self.size), is_training=False, crop_pct=self.crop_pct, **options)

    def decode(self) -> Tensor:
        """All images, resized and centre-cropped: ``(N, 3, H, W)``, uint8."""
        transform = self.eval_transform(use_prefetcher=True)  # timm's word for uint8
        images = torch.empty(len(self), 3, *self.size, dtype=torch.uint8)
        for i in range(len(self)):
            images[i] = torch.as_tensor(transform(self.open(i)))
        self.close()
        return images


@dataclass(frozen=True)
class Part:
    """Images of a split, ``(N, 3, H, W)`` uint8 or files, and their labels, ``(N,)`` int64."""

    images: Tensor | Files
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Part":
        """The images of these indices."""
        images = self.images.subset(indices) if isinstance(self.images, Files) else self.images[indices]
        return Part(images, self.labels[indices])

    def decode(self) -> "Part":
        """The same part, in memory."""
        return Part(self.images.decode(), self.labels)

    def check(self, what: str, num_classes: int) -> None:
        """Raise a DatasetError, which calls the part ``what``, if it is empty or has a label that is no class."""
        if not len(self):
            raise DatasetError(f"{what} is empty")
        wrong = ((self.labels < 0) | (self.labels >= num_classes)).nonzero().flatten().tolist()
        if wrong:
            first = f"{self.labels[wrong[0]].item()}, of image {wrong[0]}"
            raise DatasetError(f"{what} has {len(wrong)} labels outside 0..{num_classes - 1}; the first is {first}")


def open_parts(
    source: str, splits: Sequence[Any], size: tuple[int, int], cache: Path | None = None, **options: Any
) -> tuple[tuple[str, ...], list[Part]]:
    """Open a training and a test split through timm: class names, and parts of files.

    Args:
        source: a Hugging Face data set, ``hfds/...``, or empty for folders and tars.
        splits: names of splits, or paths of folders and tars.
        size: height and width to bring the images to.
        cache: folder for Hugging Face's files; None for their own choice.
        options: of timm's reader.

    Raises:
        DatasetError: for a split that is empty or damaged, or has labels or classes that the training split lacks.
        ImportError, OSError: if a Hugging Face data set can't be had.
    """
    classes: tuple[str, ...] = ()
    parts = []
    for what, split in zip(("the training part", "the test part"), splits, strict=True):
        where = {"root": cache, "split": split} if source else {"root": split, "search_split": False}
        try:
            reader = create_dataset(source, **where, **options).reader
        except (ValueError, RuntimeError, tarfile.TarError) as error:  # as timm meets a set without images
            raise DatasetError(f"{what}, {split}, has no images that timm can read: {error}") from error
        labels, names = _labels(reader), _class_names(reader)
        classes = classes or names or tuple(str(i) for i in range(max(labels.tolist(), default=-1) + 1))
        part = Part(Files(reader, size), labels)
        part.check(f"{what}, {split},", len(names or classes))
        if names and names != classes:  # a split without images of some class numbers the others differently
            if unknown := sorted(set(names) - set(classes)):
                raise DatasetError(f"{what}, {split}, has classes that the training part lacks: {', '.join(unknown)}")
            part = replace(part, labels=torch.tensor([classes.index(name) for name in names])[labels])
        parts.append(part)
    return classes, parts


def _labels(reader: Any) -> Tensor:
    if hasattr(reader, "targets"):  # tar
        labels = reader.targets
    elif hasattr(reader, "samples"):  # folder
        labels = [target for _, target in reader.samples]
    else:  # Hugging Face
        labels = reader.dataset[reader.label_key]
    return torch.tensor([-1 if label is None else int(label) for label in labels], dtype=torch.int64)


def _class_names(reader: Any) -> tuple[str, ...]:
    index = getattr(reader, "class_name_to_idx", None) or getattr(reader, "class_to_idx", None) or {}
    return tuple(sorted(index, key=index.__getitem__))


def stratified_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split the indices of ``labels`` in two, ascending, with every class in proportion; always the same way.

    Raises:
        DatasetError: if a class, or the fraction, is too small for that.
    """
    try:
        parts = train_test_split(
            torch.arange(len(labels)).numpy(), test_size=fraction, stratify=labels.numpy(), random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise DatasetError(f"can't split off {fraction:g} of {len(labels)} images by class: {error}") from error
    rest, held = (torch.from_numpy(part).sort().values for part in parts)
    return rest, held
