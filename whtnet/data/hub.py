"""Data sets of Hugging Face, through timm's reader and the package ``datasets``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from timm.data import create_dataset

from whtnet.data.errors import DatasetError
from whtnet.data.splits import Files, Split


@dataclass(frozen=True)
class HubImages:
    """Encoded images of one split."""

    reader: Any

    def __len__(self) -> int:
        return len(self.reader)

    def open(self, index: int) -> BinaryIO:
        """The encoded image."""
        return self.reader[index][0]

    def filename(self, index: int) -> str:
        """Its name, for messages."""
        return str(self.reader.filename(index))


def open_hub(
    source: str, splits: Sequence[str], size: tuple[int, int], cache: Path | None = None, **options: Any
) -> tuple[tuple[str, ...], list[Split[Files]]]:
    """Open a training and a test split: class names, and splits of files.

    Args:
        source: the data set, ``hfds/NAME``.
        splits: their names.
        size: height and width to bring the images to.
        cache: folder for Hugging Face's files; None for their own choice.
        options: of timm's reader.

    Raises:
        DatasetError: for a split that is empty, or has other classes than the training split.
        ImportError, OSError: if the data set can't be had.
    """
    classes: tuple[str, ...] = ()
    opened = []
    for what, split in zip(("training", "test"), splits, strict=True):
        try:
            reader = create_dataset(source, root=str(cache) if cache else None, split=split, **options).reader
        except (ValueError, RuntimeError, TypeError) as error:
            raise DatasetError(f"the {what} split, {source} {split}, can't be opened: {error}") from error
        given = (-1 if label is None else int(label) for label in reader.dataset[reader.label_key])
        labels = torch.tensor(list(given), dtype=torch.int64)
        names = tuple(sorted(reader.class_to_idx or {}, key=(reader.class_to_idx or {}).__getitem__))
        classes = classes or names or tuple(str(i) for i in range(max(labels.tolist(), default=-1) + 1))
        opened.append(Split(Files(HubImages(reader), size), labels))
        opened[-1].check(f"the {what} split, {source} {split},", len(classes))
        if names and names != classes:
            raise DatasetError(f"the {what} split, {source} {split}, has other classes than the training split")
    return classes, opened
