"""Data sets as batches of normalised images: where they come from (`sources`), how they are batched (`loaders`)."""

from whtnet.data.dataset import ImageDataset, load_dataset
from whtnet.data.errors import DatasetError, DatasetNotFoundError
from whtnet.data.identity import data_identity
from whtnet.data.loaders import Loader, Loaders
from whtnet.data.sources import SOURCES, Source, source_defaults
from whtnet.data.splits import Split

__all__ = [
    "SOURCES",
    "DatasetError",
    "DatasetNotFoundError",
    "ImageDataset",
    "Loader",
    "Loaders",
    "Source",
    "Split",
    "data_identity",
    "load_dataset",
    "source_defaults",
]
