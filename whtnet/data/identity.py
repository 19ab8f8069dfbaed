"""What tells one data set of one's own from another: not where it lies, but what is in it."""

from collections.abc import Mapping
from typing import Any

from whtnet.data.folders import Listing
from whtnet.data.places import Place, list_splits


def data_identity(
    name: str,
    *,
    root: str | None = None,
    source: str = "",
    train_split: str = "train",
    test_split: str = "validation",
    class_depth: int | None = None,
    reader: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The content behind the settings of a data set, without opening an image.

    Args:
        name: as :func:`whtnet.data.load_dataset` takes it.
        root: likewise, as are the other options that say which images there are.
        source: of ``timm``.
        train_split: of ``timm``.
        test_split: of ``timm``.
        class_depth: of ``timm``.
        reader: of ``timm``.
        others: settings that change nothing about the images on disk.

    Returns:
        Nothing for data sets that their name tells. For folders and tars, which give the same: the names of the
        ``classes``, and for ``train`` and ``test`` the number of ``images`` and a ``digest`` of names and
        sizes. For a Hugging Face data set its ``source`` and the ``reader``'s options.

    Raises:
        DatasetError: for images that no class can be told of.
        DatasetNotFoundError: if there is no such folder or tar.
    """
    if name != "timm":
        return {}
    if source:
        return {"source": source, "reader": dict(reader or {})}
    train, test = list_splits(Place.find(name, root).splits(train_split, test_split), class_depth)
    return {"classes": list(train.classes), "train": _content(train), "test": _content(test)}


def _content(listing: Listing) -> dict[str, Any]:
    return {"images": len(listing), "digest": listing.digest}
