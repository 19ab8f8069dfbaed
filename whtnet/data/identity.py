"""What tells one data set of one's own from another: not where it lies, but what is in it."""

from typing import Any

from whtnet.data.folders import Listing
from whtnet.data.places import Place, own_listings


def data_identity(name: str, *, root: str | None = None, **options: Any) -> dict[str, Any]:
    """The content behind the settings of a data set, without opening an image.

    Args:
        name: as :func:`whtnet.data.load_dataset` takes it.
        root: likewise.
        options: likewise; those that change nothing about the images on disk are passed over.

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
    if source := options.get("source"):
        return {"source": source, "reader": dict(options.get("reader") or {})}
    train, test = own_listings(Place.find(name, root), **options)
    return {"classes": list(train.classes), "train": _content(train), "test": _content(test)}


def _content(listing: Listing) -> dict[str, Any]:
    return {"images": len(listing), "digest": listing.digest}
