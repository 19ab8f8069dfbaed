"""Where images come from: every source gives a training split and a test split, decoded in memory or as files."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F

from whtnet.data.cache import keep_decoded
from whtnet.data.errors import DatasetError, DatasetNotFoundError
from whtnet.data.folders import Listing
from whtnet.data.hub import open_hub
from whtnet.data.places import Place, list_splits, open_folders, own_listings
from whtnet.data.splits import Files, Split, Triple, stratified_split
from whtnet.extensions import call_extension, is_extension
from whtnet.files import locked, removed_unless_used
from whtnet.settings import check_arguments, defaults_of

SMALL_SET = 10_000  # images; up to here images of any size are resized once and kept

# Class in torchvision, number of classes, mean and standard deviation. CIFAR-10's deviations are those of the authors'
# recipe (means over images of each image's own); the others are those of all pixels, of 28×28 images for Fashion-MNIST.
TORCHVISION: dict[str, tuple[str, int, Triple, Triple]] = {
    "cifar10": ("CIFAR10", 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ("CIFAR100", 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion_mnist": ("FashionMNIST", 10, (0.2860,) * 3, (0.3530,) * 3),
}


@dataclass(frozen=True)
class Source:
    """A data set as read: class names, both splits, and the normalisation it is published with (in 0..1 units).

    Its ``title`` is what a person calls it, such as the name of its folder; empty for the name of the source.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Triple
    std: Triple
    title: str = ""


def source_defaults(name: str) -> dict[str, Any]:
    """The options of the data set called ``name`` with their defaults; of one's own function they aren't known.

    Raises:
        DatasetError: for an unknown name.
    """
    if is_extension(name):
        return {}
    if name not in SOURCES:
        raise DatasetError(
            f"unknown data set {name!r}; choose one of {', '.join(SOURCES)}, or my_package.data:photos of your own"
        )
    return defaults_of(SOURCES[name])


def read_source(name: str, root: str | None = None, download: bool = True, **options: Any) -> Source:
    """Read the data set called ``name``; the same arguments give the same, already decoded, images within a process.

    Raises:
        DatasetError: for an unknown name or option, an empty split, labels out of range, images that can't be decoded.
        DatasetNotFoundError: if the data is neither here nor could be downloaded.
    """
    if is_extension(name):
        return _from_extension(name, root, options)
    known = source_defaults(name)
    if unknown := sorted(set(options) - set(known)):
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise DatasetError(f"unknown option dataset.{unknown[0]} of {name}; {takes}")
    check_arguments(SOURCES[name], options, "dataset", DatasetError)
    place = Place.find(name, root)
    listings = own_listings(place, **options) if name == "timm" and not options.get("source") else None
    return _read(place, download, json.dumps(options, sort_keys=True), listings)


@functools.lru_cache(maxsize=2)  # one for now, one to compare with
def _read(place: Place, download: bool, options: str, listings: tuple[Listing, Listing] | None) -> Source:
    """Read a set once; ``listings`` are other ones when folders or tars have changed."""
    return _checked(place.name, SOURCES[place.name](place, download, **json.loads(options)))


def _from_extension(name: str, root: str | None, options: Mapping[str, Any]) -> Source:
    source = call_extension(name, **({} if root is None else {"root": root}), **options)
    if not isinstance(source, Source):
        raise DatasetError(f"{name} must return a whtnet.data.Source, not {type(source).__name__}")
    return _checked(name, source)


def _checked(name: str, source: Source) -> Source:
    for split in ("train", "test"):
        getattr(source, split).check(f"the {split} split of {name}", len(source.classes))
    return source


def _digits(place: Place, download: bool) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 with 17 grey levels, upsampled to 32×32; 80 % are for training."""
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    data = load_digits()
    labels = torch.from_numpy(data.target).long()
    small = torch.from_numpy(data.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(small, size=32, mode="bilinear").round().to(torch.uint8).repeat(1, 3, 1, 1)
    train, test = (Split(images[i], labels[i]) for i in stratified_split(labels, 0.2))
    pixels = train.images[:, 0].double() / 255
    mean, std = pixels.mean().item(), pixels.std(correction=0).item()
    return Source(tuple("0123456789"), train, test, (mean,) * 3, (std,) * 3)


def _synthetic(
    place: Place, download: bool, *, num_classes: int = 4, train_size: int = 256, test_size: int = 64, size: int = 16
) -> Source:
    """Random images for tests, ``size`` × ``size``: each class is a random 4×4 pattern, scaled up, under noise."""
    given = {"num_classes": num_classes, "train_size": train_size, "test_size": test_size, "size": size}
    for name, value in given.items():
        if value < 1:
            raise DatasetError(f"dataset.{name} must be at least 1, got {value}")
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.rand(num_classes, 3, 4, 4, generator=generator) * 255, size=size)

    def split(count: int) -> Split:
        labels = torch.arange(count) % num_classes
        noise = torch.randn(count, *patterns.shape[1:], generator=generator) * 32
        return Split((patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    classes = tuple(f"class {i}" for i in range(num_classes))
    return Source(classes, split(train_size), split(test_size), (0.5,) * 3, (0.25,) * 3)


def _torchvision(place: Place, download: bool) -> Source:
    """A data set of torchvision; CIFAR also from ``train.tar`` and ``test.tar``: image files in a folder per class.

    There, class folders must sort in the official order of the labels.
    """
    class_name, num_classes, mean, std = TORCHVISION[place.name]
    tars = [place.root / "train.tar", place.root / "test.tar"]
    if place.name.startswith("cifar") and all(tar.exists() for tar in tars):
        arrays = keep_decoded(place.name, tars, lambda: _decode_tars(place.name, tars, num_classes))
        train, test = (Split(*(torch.from_numpy(arrays[f"{s}_{of}"]) for of in _SPLIT)) for s in ("train", "test"))
        return Source(tuple(map(str, arrays["classes"])), train, test, mean, std)

    def read(download: bool) -> list[Any]:
        dataset = getattr(torchvision.datasets, class_name)
        return [dataset(place.root, train=train, download=download) for train in (True, False)]

    try:
        try:
            sets = read(download=False)
        except (OSError, RuntimeError):
            if not download:
                raise
            sets = _download(place.root, read)
    except (OSError, RuntimeError) as error:  # not there or damaged; no network
        raise place.missing(error) from error
    train, test = (Split(_as_rgb32(torch.as_tensor(s.data)), torch.as_tensor(s.targets)) for s in sets)
    return Source(tuple(sets[0].classes), train, test, mean, std)


def _download(root: Path, read: Callable[..., list[Any]]) -> list[Any]:
    lock = root / ".download"
    with removed_unless_used(root), locked(lock):  # the runs of a sweep may all want it at once
        try:
            return read(download=True)
        finally:
            lock.unlink(missing_ok=True)


_SPLIT = ("images", "labels")


def _decode_tars(name: str, tars: Sequence[Path], num_classes: int) -> dict[str, np.ndarray]:
    classes, splits = open_folders(list_splits(tars), (32, 32))
    if len(classes) != num_classes:
        raise DatasetError(f"{tars[0]} has {len(classes)} classes, but {name} has {num_classes}")
    decoded = dict(zip(("train", "test"), (split.decode() for split in splits), strict=True))
    arrays = {f"{s}_{of}": getattr(split, of).numpy() for s, split in decoded.items() for of in _SPLIT}
    return {"classes": np.array(classes), **arrays}


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
    class_depth: int | None = None,
    input_size: int | Sequence[int] = 224,
    crop_pct: float = 1.0,
    in_memory: bool | str = "auto",
    memory_limit_gib: float = 4.0,
    transform: Mapping[str, Any] | None = None,
    reader: Mapping[str, Any] | None = None,
) -> Source:
    """Images of one's own: folders or tars in ``root``, one per split (:mod:`whtnet.data.folders`), or ``hfds/...``.

    Args:
        place: where the splits are, or the cache of Hugging Face data sets.
        download: unused; Hugging Face's own HF_HUB_OFFLINE forbids downloads.
        source: empty, or the name of a Hugging Face data set after ``hfds/``.
        train_split: folder or tar in ``root``, or name of a split.
        test_split: likewise; ``validation`` also finds ``val``, ``valid`` and ``eval``, else ``test``.
        class_depth: levels of folders that name a class; None for one, unless that is doubtful.
        input_size: side of the images, (H, W) or (C, H, W).
        crop_pct: side of the centre crop over the shorter side of the resized image.
        in_memory: decode everything once; ``auto`` does so if it takes at most ``memory_limit_gib`` and either all
            images have the right size (a sample is looked at) or there are few of them, and no ``transform`` is given.
        memory_limit_gib: for ``auto``, of the decoded images of both splits.
        transform: keywords of :func:`timm.data.create_transform` for training images that are not in memory.
        reader: keywords of timm's reader of Hugging Face data sets, such as ``{input_key: img}``.
    """
    if in_memory not in ("auto", True, False):
        raise DatasetError(f"dataset.in_memory must be auto, true or false, got {in_memory!r}")
    if not 0.01 <= crop_pct <= 1:
        raise DatasetError(f"dataset.crop_pct must be from 0.01 to 1, got {crop_pct}")
    if in_memory is True and transform:
        raise DatasetError("dataset.transform is for images that are not in memory; set dataset.in_memory=false")
    size = _height_and_width(input_size)
    if source:
        title, (classes, splits) = source, _hub(place, source, [train_split, test_split], size, reader or {})
    elif reader:
        raise DatasetError("dataset.reader is for dataset.source=hfds/NAME; folders and tars are read by one rule")
    else:
        listings = list_splits(place.splits(train_split, test_split), class_depth)
        title, (classes, splits) = place.root.name, open_folders(listings, size)
    files = [replace(s, images=replace(s.images, crop_pct=crop_pct, transform=transform or {})) for s in splits]
    decodes = in_memory is True or (in_memory == "auto" and not transform and _fits(files, memory_limit_gib))
    train, test = (split.decode() for split in files) if decodes else files
    return Source(classes, train, test, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, title)


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    match [size, size] if isinstance(size, int) else size:
        case [int(height), int(width)] | [3, int(height), int(width)] if min(height, width) > 0:
            return height, width
    raise DatasetError(f"dataset.input_size={size!r} is no size of images; give their side, or height and width: [H,W]")


def _hub(
    place: Place, source: str, splits: Sequence[str], size: tuple[int, int], reader: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[Split[Files]]]:
    if not source.lower().startswith("hfds/"):
        raise DatasetError(f"dataset.source={source!r} has no random access; use a folder, a tar or hfds/NAME")
    try:
        return open_hub(source, splits, size, place.root if place.explicit else None, **reader)
    except (ImportError, OSError) as error:  # the package `datasets` is missing, or no network
        reason = " ".join(str(error).split())
        raise DatasetNotFoundError(
            f"the data set {source} can't be had: {reason}; it needs a network, or its cache in dataset.root=FOLDER"
        ) from error


def _fits(splits: Sequence[Split[Files]], limit_gib: float) -> bool:
    count, (height, width) = sum(map(len, splits)), splits[0].images.size
    if count * 3 * height * width > limit_gib * 2**30:
        return False
    files = splits[0].images
    sample = range(0, len(files), max(1, len(files) // 64))
    return count <= SMALL_SET or all(files.open(i).size == (width, height) for i in sample)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": _digits,
    **dict.fromkeys(TORCHVISION, _torchvision),
    "timm": _timm,
    "synthetic": _synthetic,
}
"""Name → function of a Place, whether it may download, and keyword options."""
