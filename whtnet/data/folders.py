"""Which images a folder or a tar holds, and of which class: one rule for both.

The first level below the split names the class: ``train/cat/1.png`` and ``train/cat/images/1.png`` are both a ``cat``.
Classes and images are sorted bytewise, so ``B`` comes before ``a`` and ``10`` before ``2``. Files are images by their
ending, whatever its case, if Pillow reads such files. Hidden files and folders (``.…``, and those of systems, such as
``__MACOSX``), other files, and images outside the class folders are skipped and counted.
"""

import functools
import hashlib
import io
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from whtnet.data.errors import DatasetError
from whtnet.data.pixels import image_suffixes

OUTSIDE = "images outside the class folders"


class Entry(NamedTuple):
    """An image: its name below the split, where its bytes begin in the tar (0 in a folder), and how many there are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a split. Equal is only the same listing, which :func:`list_images` gives until something changes.

    Attributes:
        path: folder or tar.
        inner: folder in it that holds the class folders; mostly empty.
        classes: their names, sorted.
        entries: the images, sorted by class and name.
        labels: index in ``classes`` of each.
        empty: class folders without images.
        skipped: what was passed over, and how often.
        stamps: time of change and size of the tar, or of all folders.
    """

    path: Path
    inner: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    empty: tuple[str, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that tell names and sizes of the images; the same for a folder and its tar."""
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(os.fsencode(f"{entry.name}\0{entry.size}\n"))
        return digest.hexdigest()[:16]

    @property
    def is_current(self) -> bool:
        """Whether the tar, or every folder, is as it was; an image written over in its place isn't seen."""
        return all(_stamp(path) == stamp for path, stamp in self.stamps.items())

    def filename(self, index: int) -> str:
        """Path of an image, for messages."""
        return str(self.path / self.inner / self.entries[index].name)

    def open(self, index: int) -> BinaryIO:
        """The encoded image. Nothing stays open: processes must not share a position in a tar."""
        if self.path.is_dir():
            return open(self.filename(index), "rb")  # the caller closes it
        with self.path.open("rb") as tar:
            tar.seek(self.entries[index].offset)
            return io.BytesIO(tar.read(self.entries[index].size))


def list_images(path: Path, class_depth: int | None = None) -> Listing:
    """Find the images of a split, without opening them.

    Args:
        path: folder, or tar without compression; tars in it count as folders.
        class_depth: how many levels of folders name a class, as in ``c/cathedral/outdoor``; None for one, unless that
            is doubtful.

    Raises:
        DatasetError: for a damaged tar, an empty file, names that are no text, a depth below 1; and for a class with
            several folders that no other class has, which may be classes themselves, if ``class_depth`` is None.
    """
    if class_depth is not None and class_depth < 1:
        raise DatasetError(f"dataset.class_depth must be at least 1, got {class_depth}")
    known = _known.get((path, class_depth))
    if known is None or not known.is_current:
        known = _list_images(path, class_depth)
        while len(_known) >= _MOST_KNOWN:
            del _known[next(iter(_known))]
        _known[path, class_depth] = known
    return known


_known: dict[tuple[Path, int | None], Listing] = {}
_MOST_KNOWN = 8


def _list_images(path: Path, class_depth: int | None) -> Listing:
    stamps: dict[Path, tuple[int, int]] = {}
    images, folders, skipped = _sort_out(_walk_folder(path, stamps) if path.is_dir() else _read_tar(path, stamps))
    inner = _wrapper(images, path.stem if path.suffix == ".tar" else path.name)
    depth = 1 if class_depth is None else class_depth
    by_class: dict[str, list[Entry]] = defaultdict(list)
    for entry in images:
        entry = entry._replace(name=entry.name.removeprefix(f"{inner}/"))
        levels = entry.name.split("/")
        if len(levels) <= depth:
            skipped[OUTSIDE] += 1
            continue
        if entry.size == 0:
            raise DatasetError(f"{path / inner / entry.name} is an empty file; replace or remove it")
        by_class["/".join(levels[:depth])].append(entry)
    if class_depth is None:
        _check_depth(path, by_class)
    classes = tuple(sorted(by_class, key=os.fsencode))
    _check_text(path, classes)
    below = {folder.removeprefix(f"{inner}/") for folder in folders} - {inner}
    empty = tuple(sorted({name for name in below if name.count("/") == depth - 1} - set(classes), key=os.fsencode))
    entries, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(by_class[name], key=lambda entry: os.fsencode(entry.name))
        entries += members
        labels += [label] * len(members)
    return Listing(
        path=path,
        inner=inner,
        classes=classes,
        entries=tuple(entries),
        labels=tuple(labels),
        empty=empty,
        skipped=skipped,
        stamps=stamps,
    )


def _sort_out(found: "Iterable[_Found]") -> tuple[list[Entry], set[str], Counter[str]]:
    """Images, folders, and counts of what is neither."""
    images, folders, hidden, skipped = [], set(), set(), Counter[str]()
    suffixes = image_suffixes()
    for name, offset, size in found:
        levels = name.rstrip("/").split("/")
        dotted = next((i for i, level in enumerate(levels) if _is_hidden(level)), None)
        suffix = posixpath.splitext(levels[-1])[1].lower()
        if dotted is not None:
            hidden.add("/".join(levels[: dotted + 1]))
        elif name.endswith("/"):
            folders.add(name[:-1])
        elif size is None:
            skipped["broken links and special files"] += 1
        elif suffix not in suffixes:
            skipped[f"files {suffix}" if suffix else "files without an ending"] += 1
        else:
            images.append(Entry(name, offset, size))
    if hidden:
        skipped["hidden files and folders"] = len(hidden)
    return images, folders, skipped


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_THE_SYSTEM


_OF_THE_SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def _wrapper(images: list[Entry], split: str) -> str:
    """``train`` where all images of ``train`` lie in ``train/train/CLASS``, as archives are often packed."""
    wrapped = all(entry.name.startswith(f"{split}/") for entry in images)
    return split if wrapped and any(entry.name.count("/") > 1 for entry in images) else ""


def _check_depth(path: Path, by_class: dict[str, list[Entry]]) -> None:
    """``c/cathedral`` and ``c/castle`` look like classes, ``cat/2023`` beside ``dog/2023`` doesn't."""
    below = {
        name: {posixpath.dirname(entry.name).removeprefix(name).lstrip("/") for entry in entries} - {""}
        for name, entries in by_class.items()
    }
    owners = Counter(folder for folders in below.values() for folder in folders)
    for name, folders in below.items():
        if len(folders) > 1 and all(owners[folder] == 1 for folder in folders):
            first, second = sorted(f"{name}/{folder}" for folder in folders)[:2]
            deepest = max(folder.count("/") for folder in folders) + 2
            raise DatasetError(
                f"{path}: are {first} and {second} classes of their own? Set dataset.class_depth=1 if both are "
                f"images of {name}, dataset.class_depth={deepest} if all so many levels of folders name a class"
            )


def _check_text(path: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(f"{path}: the name of the folder {name!a} is no UTF-8; rename it") from error


_Found = tuple[str, int, int | None]  # name, a folder's with a slash at its end; offset; size, None for a special file


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # gone
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _walk_folder(root: Path, stamps: dict[Path, tuple[int, int]]) -> Iterator[_Found]:
    """Everything in a folder, through links; hidden folders are named but not entered."""
    # Each with what the names in it begin with, and its real path after those of the folders that it lies in.
    ahead: list[tuple[Path, str, tuple[str, ...]]] = [(root, "", (os.path.realpath(root),))]
    while ahead:
        folder, below, reals = ahead.pop()
        stamps[folder] = _stamp(folder)
        try:
            with os.scandir(folder) as items:
                for item in items:
                    name = f"{below}{item.name}"
                    target = Path(item.path) if item.is_symlink() else item  # a path also stands a link to itself
                    if target.is_dir():
                        yield f"{name}/", 0, 0
                        real = os.path.realpath(target) if item.is_symlink() else os.path.join(reals[-1], item.name)
                        if not _is_hidden(item.name) and real not in reals:  # else a link to a folder that it lies in
                            ahead.append((Path(item.path), f"{name}/", (*reals, real)))
                    else:
                        yield name, 0, target.stat().st_size if target.is_file() else None
        except OSError as error:
            raise DatasetError(f"{folder} can't be read: {error.strerror or error}; see to its rights") from error


def _read_tar(path: Path, stamps: dict[Path, tuple[int, int]]) -> Iterable[_Found]:
    """Everything in a tar."""
    stamps[path] = _stamp(path)
    try:
        with path.open("rb") as file:
            return {found[0]: found for found in _walk_tar(file)}.values()  # of two of one name the later counts
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"{path} can't be read as a tar without compression: {error}") from error
    except RecursionError as error:
        raise DatasetError(f"{path} has too many tars in one another; unpack them into folders") from error


def _walk_tar(file: IO[bytes], start: int = 0, below: str = "") -> Iterator[_Found]:
    """Everything in a tar that begins at ``start`` in the file that images are read from."""
    this, written = below.rstrip("/") or "it", dict[str, tarfile.TarInfo]()
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, closed below
    except tarfile.ReadError as error:
        raise _damaged(this, 0) from error
    with tar:
        for member in tar:
            inner = _normal(member.name)
            name = below + inner
            if member.islnk():  # a second name of content that the tar holds once
                member = written.get(_normal(member.linkname), member)
            written[inner] = member
            if member.isdir():
                if member.name.strip("./"):
                    yield f"{name}/", 0, 0
            elif not member.isreg() or member.issparse():
                yield name, 0, None
            elif name.endswith(".tar"):
                inside = cast("IO[bytes]", tar.extractfile(member))  # and no further, should its end be missing
                yield from _walk_tar(inside, start + member.offset_data, name.removesuffix(".tar") + "/")
            else:
                yield name, start + member.offset_data, member.size
    file.seek(tar.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):  # tarfile takes anything but a member for the end
        raise _damaged(this, len(written))
    if any(block.strip(b"\0") for block in iter(functools.partial(file.read, 1 << 20), b"")):
        remedy = "as tars one behind the other do; `tar --ignore-zeros -xf` unpacks all of it"
        raise tarfile.ReadError(f"{this} goes on after its end, {remedy}")


def _damaged(this: str, files: int) -> tarfile.ReadError:
    return tarfile.ReadError(f"{this} is cut off, damaged or compressed after {files} files")


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
