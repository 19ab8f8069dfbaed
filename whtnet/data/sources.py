"""Where images come from: every source gives a training part and a test part, decoded in memory or as files.

``root`` says where a local copy lies. Without it, ``$WHTNET_DATA/<name>`` is used if it exists, else ``$WHTNET_DATA``
if it holds the data, else ``./data/<name>``.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F

from whtnet.data.parts import DatasetError, DatasetNotFoundError, Part, Triple, open_parts, stratified_split
from whtnet.files import locked
from whtnet.settings import check_arguments

SMALL_SET = 10_000  # images; up to here images of any size are resized once and kept
ALL_VALIDATION = ("validation", "val", "valid", "eval")

# Files in $WHTNET_DATA itself that tell that it holds this data set.
MARKERS = {
    "cifar10": ("train.tar", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-python",),
    "fashion_mnist": ("FashionMNIST",),
    "timm": ("train", "train.tar"),
}

# Class in torchvision, number of classes, mean and standard deviation. CIFAR-10's deviations are those of the authors'
# recipe (means over images of each image's own); the others are those of all pixels, of 28×28 images for Fashion-MNIST.
TORCHVISION: dict[str, tuple[str, int, Triple, Triple]] = {
    "cifar10": ("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ("CIFAR100", 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion_mnist": ("FashionMNIST", 10, (0.2860,) * 3, (0.3530,) * 3),
}


@dataclass(frozen=True)
class Source:
    """A data set as read: class names, both parts, and the normalisation it is published with (in 0..1 units)."""

    classes: tuple[str, ...]
    train: Part
    test: Part
    mean: Triple
    std: Triple


@dataclass(frozen=True)
class Place:
    """Where the data set called ``name`` is expected, and where else it was looked for."""

    name: str
    root: Path
    explicit: bool
    looked: tuple[Path, ...]

    @classmethod
    def find(cls, name: str, root: str | None) -> "Place":
        """Apply the rule at the top of this module."""
        if root is not None:
            path = Path(root).expanduser().absolute()
            return cls(name, path, True, (path,))
        local = Path("data", name).absolute()
        if not (variable := os.environ.get("WHTNET_DATA")):
            return cls(name, local, False, (local,))
        base = Path(variable).expanduser().absolute()
        found = local
        if (base / name).exists():
            found = base / name
        elif any((base / marker).exists() for marker in MARKERS.get(name, ())):
            found = base
        return cls(name, found, False, (base / name, base, local))

    def missing(self, reason: object) -> DatasetNotFoundError:
        """The error to raise when the data isn't there."""
        looked = ", ".join(str(path) for path in self.looked)
        reason = " ".join(str(reason).split())  # torchvision's spans lines
        return DatasetNotFoundError(
            f"the data set {self.name} was not found; looked in {looked} ({reason}). Set dataset.root=FOLDER, or "
            "WHTNET_DATA in the environment, to a local copy, or dataset.download=true on a machine with a network"
        )


def read_source(name: str, root: str | None = None, download: bool = True, **options: Any) -> Source:
    """Read the data set called ``name``; the same arguments give the same, already decoded, images within a process.

    Raises:
        DatasetError: for an unknown name or option, an empty part, labels out of range, images that can't be decoded.
        DatasetNotFoundError: if the data is neither here nor could be downloaded.
    """
    if name not in SOURCES:
        raise DatasetError(f"unknown data set {name!r}; choose one of {', '.join(SOURCES)}")
    known = SOURCES[name].__kwdefaults__ or {}
    if unknown := sorted(set(options) - set(known)):
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise DatasetError(f"unknown option dataset.{unknown[0]} of {name}; {takes}")
    check_arguments(SOURCES[name], options, "dataset", DatasetError)
    return _read(Place.find(name, root), download, json.dumps(options, sort_keys=True))


@functools.lru_cache(maxsize=2)  # one for now, one to compare with
def _read(place: Place, download: bool, options: str) -> Source:
    source = SOURCES[place.name](place, download, **json.loads(options))
    for split in ("train", "test"):
        getattr(source, split).check(f"the {split} part of {place.name}", len(source.classes))
    return source


def _digits(place: Place, download: bool) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, upsampled to 32×32; 80 % are for training."""
    data = load_digits()
    labels = torch.from_numpy(data.target).long()
    small = torch.from_numpy(data.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(small, size=32, mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    train, test = (Part(images[i], labels[i]) for i in stratified_split(labels, 0.2))
    pixels = train.images[:, 0].double() / 255
    mean, std = pixels.mean().item(), pixels.std(correction=0).item()
    return Source(tuple("0123456789"), train, test, (mean,) * 3, (std,) * 3)


def _synthetic(
    place: Place, download: bool, *, num_classes: int = 4, train_size: int = 256, test_size: int = 64, size: int = 16
) -> Source:
    """Random images for tests, ``size`` × ``size``: each class is a random 4×4 pattern, scaled up, under noise."""
    if min(num_classes, size) < 1:
        raise DatasetError(f"dataset.num_classes and dataset.size must be at least 1, got {num_classes} and {size}")
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.rand(num_classes, 3, 4, 4, generator=generator) * 255, size=size)

    def part(count: int) -> Part:
        labels = torch.arange(count) % num_classes
        noise = torch.randn(count, *patterns.shape[1:], generator=generator) * 32
        return Part((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    classes = tuple(f"class {i}" for i in range(num_classes))
    return Source(classes, part(train_size), part(test_size), (0.5,) * 3, (0.25,) * 3)


def _torchvision(place: Place, download: bool) -> Source:
    """A data set of torchvision; CIFAR also from ``train.tar`` and ``test.tar``: image files in a folder per class.

    There, class folders must sort in the official order of the labels.
    """
    class_name, num_classes, mean, std = TORCHVISION[place.name]
    tars = [place.root / "train.tar", place.root / "test.tar"]
    if place.name.startswith("cifar") and all(tar.exists() for tar in tars):
        classes, parts = open_parts("", tars, (32, 32))
        if len(classes) != num_classes:
            raise DatasetError(f"{tars[0]} has {len(classes)} classes, but {place.name} has {num_classes}")
        return Source(classes, *(part.decode() for part in parts), mean, std)

    def read(download: bool) -> list[Any]:
        dataset = getattr(torchvision.datasets, class_name)
        return [dataset(place.root, train=train, download=download) for train in (True, False)]

    try:
        try:
            sets = read(download=False)
        except (OSError, RuntimeError):
            if not download:
                raise
            with locked(place.root / ".download"):  # the runs of a sweep may all want it at once
                sets = read(download=True)
    except (OSError, RuntimeError) as error:  # not there or damaged; no network
        raise place.missing(error) from error
    train, test = (Part(_as_rgb32(torch.as_tensor(s.data)), torch.as_tensor(s.targets)) for s in sets)
    return Source(tuple(sets[0].classes), train, test, mean, std)


def _as_rgb32(data: Tensor) -> Tensor:
    if data.dim() == 4:  # (N, 32, 32, 3)
        return data.permute(0, 3, 1, 2).contiguous()
    return F.pad(data, (2, 2, 2, 2)).unsqueeze(1).repeat(1, 3, 1, 1)  # (N, 28, 28)


def _timm(
    place: Place,
    download: bool,
    *,
    source: str = "",
    train_split: str = "train",
    test_split: str = "validation",
    input_size: int | Sequence[int] = 224,
    crop_pct: float = 1.0,
    in_memory: bool | str = "auto",
    memory_limit_gib: float = 4.0,
    transform: Mapping[str, Any] | None = None,
    reader: Mapping[str, Any] | None = None,
) -> Source:
    """Anything that timm reads by index: folders or tars in ``root``, one per split, or ``source=hfds/...``.

    Args:
        place: where the splits are, or the cache of Hugging Face data sets.
        download: unused; Hugging Face's own HF_HUB_OFFLINE forbids downloads.
        source: empty, or the name of a Hugging Face data set after ``hfds/``.
        train_split: folder or tar in ``root``, or name of a split.
        test_split: likewise; ``validation`` also finds ``val``, ``valid`` and ``eval``.
        input_size: side of the images, (H, W) or (C, H, W).
        crop_pct: side of the centre crop over the shorter side of the resized image.
        in_memory: decode everything once; ``auto`` does so if it takes at most ``memory_limit_gib`` and either all
            images have the right size (a sample is looked at) or there are few of them, and no ``transform`` is given.
        memory_limit_gib: for ``auto``, of the decoded images of both splits.
        transform: keywords of :func:`timm.data.create_transform` for training images that are not in memory.
        reader: keywords of timm's reader, such as ``{input_key: img, target_key: fine_label}``.
    """
    if in_memory not in ("auto", True, False):
        raise DatasetError(f"dataset.in_memory must be auto, true or false, got {in_memory!r}")
    if in_memory is True and transform:
        raise DatasetError("dataset.transform is for images that are not in memory; set dataset.in_memory=false")
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)[-2:]
    splits: list[Any] = [train_split, test_split]
    if not source:
        splits = [_split_path(place, split) for split in splits]
    elif not source.lower().startswith("hfds/"):
        raise DatasetError(f"dataset.source={source!r} has no random access; use a folder, a tar or hfds/NAME")
    try:
        classes, parts = open_parts(source, splits, size, place.root if place.explicit else None, **(reader or {}))
    except (ImportError, OSError) as error:  # the package `datasets` is missing, or no network
        raise place.missing(f"timm could not open {source or splits}: {error}") from error
    parts = [replace(p, images=replace(p.images, crop_pct=crop_pct, transform=transform or {})) for p in parts]
    if in_memory is True or (in_memory == "auto" and not transform and _fits(parts, memory_limit_gib)):
        parts = [part.decode() for part in parts]
    return Source(classes, *parts, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _split_path(place: Place, split: str) -> Path:
    names = dict.fromkeys([split, *(ALL_VALIDATION if split in ALL_VALIDATION else ())])
    paths = [place.root / f"{name}{suffix}" for name in names for suffix in ("", ".tar")]
    for path in paths:
        if path.exists():
            return path
    raise place.missing(f"no {' or '.join(path.name for path in paths)} there")


def _fits(parts: Sequence[Part], limit_gib: float) -> bool:
    count, (height, width) = sum(map(len, parts)), parts[0].images.size
    if count * 3 * height * width > limit_gib * 2**30:
        return False
    files = parts[0].images
    sample = range(0, len(files), max(1, len(files) // 64))
    return count <= SMALL_SET or all(files.open(i).size == (width, height) for i in sample)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": _digits,
    **dict.fromkeys(TORCHVISION, _torchvision),
    "timm": _timm,
    "synthetic": _synthetic,
}
"""Name → function of a Place, whether it may download, and keyword options."""
