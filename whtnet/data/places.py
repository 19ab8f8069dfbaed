"""Where data lies, and its splits as folders and tars there.

``root`` says where a local copy lies. Without it, ``$WHTNET_DATA/<name>`` is used if it exists, else ``$WHTNET_DATA``
if it holds the data, else ``./data/<name>``.
"""

import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whtnet.data.errors import DatasetError, DatasetNotFoundError
from whtnet.data.folders import OUTSIDE, Listing, list_images
from whtnet.data.splits import Files, Split
from whtnet.errors import few, warn_caller

ALL_VALIDATION = ("validation", "val", "valid", "eval")

# Files in $WHTNET_DATA itself that tell that it holds this data set.
MARKERS = {
    "cifar10": ("train.tar", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-python",),
    "fashion_mnist": ("FashionMNIST",),
    "timm": ("train", "train.tar"),
}


@dataclass(frozen=True)
class Place:
    """Where the data set called ``name`` is expected, and where else it was looked for."""

    name: str
    root: Path
    explicit: bool
    looked: tuple[Path, ...]

    @classmethod
    def find(cls, name: str, root: str | None) -> "Place":
        """Apply the rule at the top of this module.

        Raises:
            DatasetError: for a root that is no path, or that this data set, which has no files, doesn't take.
        """
        if root is not None:
            if name not in MARKERS:
                raise DatasetError(f"dataset.root={root} does not apply to {name}, which has no files; leave it out")
            try:
                path = Path(os.path.expanduser(root)).absolute()
            except TypeError as error:
                raise DatasetError(f"dataset.root={root!r} is no path") from error
            return cls(name, path, True, (path,))
        local = Path("data", name).absolute()
        if not (variable := os.environ.get("WHTNET_DATA")):
            return cls(name, local, False, (local,))
        base = Path(os.path.expanduser(variable)).absolute()
        found = local
        if (base / name).exists():
            found = base / name
        elif any((base / marker).exists() for marker in MARKERS.get(name, ())):
            found = base
        return cls(name, found, False, (base / name, base, local))

    def missing(self, reason: object, downloads: bool = True) -> DatasetNotFoundError:
        """The error to raise when the data isn't there, and could be downloaded or not."""
        looked = ", ".join(str(path) for path in self.looked)
        reason = " ".join(str(reason).split())  # torchvision's spans lines
        network = ", or dataset.download=true on a machine with a network" if downloads else ""
        return DatasetNotFoundError(
            f"the data set {self.name} was not found; looked in {looked} ({reason}). Set dataset.root=FOLDER, or "
            f"WHTNET_DATA in the environment, to a local copy{network}"
        )

    def splits(self, train: str, test: str) -> tuple[Path, Path]:
        """Folders or tars of both splits.

        Raises:
            DatasetNotFoundError: if one isn't there.
            DatasetError: for several that could be meant.
        """
        return self._split("train_split", train), self._split("test_split", test)

    def _split(self, option: str, wanted: str) -> Path:
        names = [wanted]
        paths = self._present(names)
        if not paths and wanted in ALL_VALIDATION:
            names = [wanted, *(name for name in ALL_VALIDATION if name != wanted)]
            paths = self._present(names) or self._present(["test"])
        if len(paths) > 1:
            raise DatasetError(f"{self.root} has {' and '.join(p.name for p in paths)}; set dataset.{option} to one")
        if not paths:
            there = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else []
            instead = f"there: {', '.join(there)}; dataset.{option} names another" if there else self._why_nothing()
            if packed := [name for name in there if name.endswith(_PACKED) and name.split(".")[0] in names]:
                instead = f"{packed[0]} is compressed: unpack it into a folder"
            raise self.missing(f"no {' or '.join(names)}, folder or .tar; {instead}", downloads=False)
        return paths[0]

    def _why_nothing(self) -> str:
        if self.root.is_dir():
            return "the folder is empty"
        return "it is a file" if self.root.exists() else "no such folder"

    def _present(self, names: Sequence[str]) -> list[Path]:
        """Of a folder and its tar, the folder."""
        either = [(self.root / name, self.root / f"{name}.tar") for name in names]
        found = [next((path for path in pair if path.exists()), None) for pair in either]
        return [path for path in found if path is not None]


_PACKED = (".zip", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def list_splits(paths: Sequence[Path], class_depth: int | None = None) -> tuple[Listing, Listing]:
    """The images of a training and a test split, which have the same classes.

    Raises:
        DatasetError: as :func:`whtnet.data.folders.list_images`, for a split without images or with all of them in one
            place, a training class without images, a test class that the training split lacks.
    """
    train, test = (list_images(path, class_depth) for path in paths)
    for what, listing in (("training", train), ("test", test)):
        if class_depth in (None, 1):
            _check_sorted(what, listing)
        if not listing.entries:
            skipped = f" (skipped: {_counts(listing)})" if listing.skipped else ""
            raise DatasetError(f"the {what} split, {listing.path}, has no images in class folders{skipped}")
    if train.empty:
        raise DatasetError(
            f"the training split, {train.path}, has no images of {few(train.empty, repr)}; "
            "add some, or remove the folder"
        )
    if extra := [name for name in test.classes if name not in set(train.classes)]:
        raise DatasetError(
            f"the test split, {test.path}, has classes that the training split lacks: {few(extra, ascii)}; "
            f"training classes without test images: {few(_untested(train, test), ascii) or 'none'}"
        )
    return train, test


def own_listings(
    place: Place,
    *,
    train_split: str = "train",
    test_split: str = "validation",
    class_depth: int | None = None,
    **others: Any,
) -> tuple[Listing, Listing]:
    """:func:`list_splits` of images of one's own, by the options of ``timm``; ``others`` are passed over."""
    return list_splits(place.splits(train_split, test_split), class_depth)


def _check_sorted(what: str, listing: Listing) -> None:
    """Images that lie all together, as those of ImageNet's and Tiny ImageNet's validation do, are of no class."""
    together = listing.path / listing.inner / ("images" if listing.classes == ("images",) else "")
    if listing.entries and listing.classes != ("images",):
        return
    if not listing.entries and OUTSIDE not in listing.skipped:
        return
    sort = "move each into a folder that is called as its class"
    if (annotations := listing.path / "val_annotations.txt").is_file():
        loop = f'while read -r f c _; do mkdir -p "$c" && mv "images/$f" "$c/"; done < {annotations.name}'
        sort = f"sort them: cd {shlex.quote(str(listing.path))} && {loop} && rmdir images"
    raise DatasetError(f"the images of the {what} split lie all in {together}, not in a folder for each class; {sort}")


def open_folders(
    listings: tuple[Listing, Listing], size: tuple[int, int]
) -> tuple[tuple[str, ...], list[Split[Files]]]:
    """Class names, and both splits as files that are brought to ``size``; warns of what was skipped or is odd."""
    train, test = listings
    for listing in listings:
        if listing.skipped:
            warn_caller(f"{listing.path}: skipped {_counts(listing)}")
    if len(train.classes) == 1:
        warn_caller(f"{train.path} has only one class, {train.classes[0]}")
    if untested := _untested(train, test):
        warn_caller(f"{test.path} has no images of {few(untested, repr)}")
    if train.digest == test.digest:
        same = "have the same images, by names and sizes: the test accuracy will be that of training"
        warn_caller(f"{train.path} and {test.path} {same}")
    if alike := [name for name, count in Counter(map(_composed, train.classes)).items() if count > 1]:
        warn_caller(
            f"{train.path} has several classes that look like {few(alike, repr)}, written with other characters"
        )
    number = {name: label for label, name in enumerate(train.classes)}
    splits = []
    for listing in listings:
        labels = torch.tensor([number[listing.classes[label]] for label in listing.labels])
        splits.append(Split(Files(listing, size), labels))
    return train.classes, splits


def _untested(train: Listing, test: Listing) -> list[str]:
    return [name for name in train.classes if name not in set(test.classes)]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _counts(listing: Listing) -> str:
    return few([f"{count:,} {what}" for what, count in sorted(listing.skipped.items())])
