import inspect
import io
import os
import random
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torchvision import transforms

from whtnet.data import SOURCES, DatasetError, DatasetNotFoundError, load_dataset, sources
from whtnet.data.loaders import crop_and_flip, epoch_generator, seeded
from whtnet.data.places import MARKERS, Place
from whtnet.data.sources import Source
from whtnet.data.splits import Files, Split, stratified_split
from whtnet.errors import UserError

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs" / "dataset"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test finds data of the machine that it runs on."""
    monkeypatch.delenv("WHTNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def synthetic(**options):
    return load_dataset("synthetic", **{"train_size": 50, "test_size": 21, "size": 8} | options)


def loaders(dataset, **options):
    return dataset.loaders(**{"batch_size": 16, "device": CPU, "seed": 0, "workers": 0} | options)


def everything(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def at_epoch(loader, epoch):
    loader.set_epoch(epoch)
    return everything(loader)


def pixels(dataset, images):
    """Undo the normalisation."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


def picture(seed, size=(32, 32), mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def write_images(target, classes, per_class, first_seed=0, size=lambda i: (32, 32)):
    """PNGs in class folders: a tar where ``target`` ends so, else a folder. Returns the images, in class order."""
    images = []
    tar = tarfile.open(target, "w") if target.suffix == ".tar" else None  # noqa: SIM115
    for name in classes:
        for i in range(per_class):
            image = picture(first_seed + len(images), size(len(images)))
            images.append(image)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            if tar:
                info = tarfile.TarInfo(f"{name}/{i:03}.png")
                info.size = buffer.tell()
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
            else:
                (target / name).mkdir(parents=True, exist_ok=True)
                (target / name / f"{i:03}.png").write_bytes(buffer.getvalue())
    if tar:
        tar.close()
    return images


def as_tensor(images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


# --- loaders in memory -----------------------------------------------------------------------------------------------


def test_batches_have_the_promised_form():
    dataset = synthetic(num_classes=3, holdout=0.2)
    assert dataset.input_size == (3, 8, 8)
    assert dataset.num_classes == len(dataset.classes) == 3
    assert dataset.sizes == {"train": 40, "test": 21, "holdout": 10}
    parts = loaders(dataset, eval_batch_size=10)
    for loader, sizes in ((parts.train, [16, 16]), (parts.test, [10, 10, 1]), (parts.holdout, [10])):
        batches = list(loader)
        assert [len(labels) for _, labels in batches] == sizes
        assert len(loader) == len(sizes)
        assert loader.num_samples == sum(sizes)
        for images, labels in batches:
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert images.shape == (len(labels), 3, 8, 8)
            assert images.is_contiguous()
    assert parts.train.batch_size == 16
    assert parts.test.batch_size == 10
    assert loaders(synthetic()).holdout is None


def test_a_batch_larger_than_the_set_is_the_set():
    train = loaders(synthetic(), batch_size=64).train
    assert (len(train), train.batch_size, train.num_samples) == (1, 50, 50)
    assert sorted(everything(train)[1].tolist()) == sorted(torch.arange(50).remainder(4).tolist())


def test_evaluation_gives_all_images_in_order_and_exactly_as_torchvision_normalises():
    dataset = synthetic(holdout=0.2, crop_padding=2, flip=True, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    parts = loaders(dataset)
    to_tensor, normalize = transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)
    for loader, part in ((parts.test, dataset.test), (parts.holdout, dataset.holdout)):
        loader.set_epoch(3)
        images, labels = everything(loader)
        expected = [normalize(to_tensor(image.permute(1, 2, 0).numpy())) for image in part.images]
        assert torch.equal(images, torch.stack(expected))
        assert torch.equal(labels, part.labels)


def test_an_epoch_without_augmentation_visits_every_image_once_in_a_new_order():
    dataset = synthetic(train_size=64)
    train = loaders(dataset).train
    orders = []
    for epoch in range(2):
        images, labels = at_epoch(train, epoch)
        same = (pixels(dataset, images)[:, None] == dataset.train.images).flatten(2).all(2)
        orders.append(same.int().argmax(1).tolist())
        assert sorted(orders[-1]) == list(range(64))
        assert torch.equal(labels, dataset.train.labels[orders[-1]])
    assert orders[0] != orders[1]


def test_an_epoch_depends_on_seed_and_epoch_alone():
    dataset = synthetic(crop_padding=2, flip=True)
    train = loaders(dataset).train
    history = [at_epoch(train, epoch)[0] for epoch in range(3)]
    resumed = loaders(dataset).train
    torch.manual_seed(99)
    for epoch in (2, 2, 0):
        assert torch.equal(at_epoch(resumed, epoch)[0], history[epoch])
    assert not torch.equal(history[0], history[1])
    assert not torch.equal(history[0], at_epoch(loaders(dataset, seed=1).train, 0)[0])
    # seed + epoch would make these two alike
    assert not torch.equal(history[1], at_epoch(loaders(dataset, seed=1).train, 0)[0])
    images = history[0].contiguous(memory_format=torch.channels_last)
    assert torch.equal(at_epoch(loaders(dataset, channels_last=True).train, 0)[0], images)


def test_loading_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    everything(loaders(synthetic(crop_padding=1, flip=True)).train)
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_last():
    for loader in (
        loaders(synthetic(flip=True), channels_last=True).train,
        loaders(synthetic(), channels_last=True).test,
    ):
        images, _ = next(iter(loader))
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


def slow_crop_and_flip(image, row, column, mirror, padding):
    _, h, w = image.shape
    out = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            source_y, source_x = y + row - padding, (w - 1 - x if mirror else x) + column - padding
            if 0 <= source_y < h and 0 <= source_x < w:
                out[:, y, x] = image[:, source_y, source_x]
    return out


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_and_flip_is_that_of_the_slow_reference(padding):
    g = torch.Generator().manual_seed(padding)
    images = torch.randint(1, 256, (20, 3, 5, 7), generator=g, dtype=torch.uint8)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, 20), generator=g)
    mirrored = torch.randint(0, 2, (20,), generator=g).bool()
    plan = zip(images, rows.tolist(), columns.tolist(), mirrored.tolist(), strict=True)
    expected = torch.stack([slow_crop_and_flip(*item, padding) for item in plan])
    assert torch.equal(crop_and_flip(images, rows, columns, mirrored, padding), expected)


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_training_images_are_crops_of_the_padded_original(padding, flip):
    dataset = synthetic(crop_padding=padding, flip=flip, train_size=400)
    images, labels = at_epoch(loaders(dataset, batch_size=400).train, 0)
    order = torch.randperm(400, generator=epoch_generator(0, 0))
    assert torch.equal(labels, dataset.train.labels[order])
    seen = torch.zeros(2, 2 * padding + 1, 2 * padding + 1)
    for image, original in zip(pixels(dataset, images), dataset.train.images[order], strict=True):
        padded = F.pad(original, (padding,) * 4)
        variants = [padded.unfold(1, 8, 1).unfold(2, 8, 1)]  # (3, rows, columns, 8, 8)
        variants.append(variants[0].flip(4))
        matches = torch.stack([(v == image[:, None, None]).all(4).all(3).all(0) for v in variants])
        assert matches.sum() == 1
        seen += matches
    assert (seen.sum((1, 2)) > 100).tolist() == [True, flip]  # about 200 each, if flipped
    assert (seen[0] > 0).all()  # every window occurs


def test_synthetic_images_are_the_same_every_time_and_learnable():
    first, again = synthetic(), synthetic()
    sources._read.cache_clear()
    fresh = synthetic()
    assert first.train.images is again.train.images
    assert torch.equal(first.train.images, fresh.train.images)
    centres = torch.stack([first.train.images[first.train.labels == c].float().mean(0) for c in range(4)])
    guess = (first.test.images[:, None].float() - centres).flatten(2).norm(dim=2).argmin(1)
    assert (guess == first.test.labels).float().mean() > 0.9


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [24, 5])
def test_resized_images_are_those_of_pillow(side, channels_last):
    dataset = synthetic(resize=side)
    images, labels = everything(loaders(dataset, channels_last=channels_last).test)
    assert dataset.input_size == (3, side, side)
    assert images.shape == (21, 3, side, side)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(labels, dataset.test.labels)
    for found, original in zip(pixels(dataset, images), dataset.test.images, strict=True):
        picture = Image.fromarray(original.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert (found.int() - expected.int()).abs().max() <= 1  # Pillow rounds after each direction


def test_augmented_images_are_resized_after_it():
    options = {"crop_padding": 2, "flip": True}
    images, labels = at_epoch(loaders(synthetic(**options, resize=16)).train, 3)
    plain, same = at_epoch(loaders(synthetic(**options)).train, 3)
    assert torch.equal(labels, same)
    torch.testing.assert_close(images, F.interpolate(plain, 16, mode="bilinear", antialias=True))


# --- the held-out part -----------------------------------------------------------------------------------------------


def test_holdout_is_stratified_disjoint_and_fixed():
    labels = torch.tensor([0] * 100 + [1] * 40 + [2] * 20)[torch.randperm(160, generator=epoch_generator(0, 0))]
    rest, held = stratified_split(labels, 0.25)
    assert labels[held].bincount().tolist() == [25, 10, 5]
    assert sorted(rest.tolist() + held.tolist()) == list(range(160))
    assert rest.tolist() == sorted(rest.tolist())
    torch.manual_seed(7)
    np.random.seed(7)
    assert torch.equal(stratified_split(labels, 0.25)[1], held)


def test_holdout_and_training_part_share_no_image():
    whole, dataset = synthetic(), synthetic(holdout=0.2)
    originals, train, held = (
        {i.numpy().tobytes() for i in p.images} for p in (whole.train, dataset.train, dataset.holdout)
    )
    assert len(train) == 40
    assert len(held) == 10
    assert train | held == originals
    assert torch.equal(dataset.test.images, whole.test.images)
    shuffled = {i.numpy().tobytes() for i in pixels(dataset, everything(loaders(dataset, batch_size=1).train)[0])}
    assert shuffled == train


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 0.001])
def test_impossible_holdout(fraction):
    with pytest.raises(DatasetError, match=r"holdout|can't split off"):
        synthetic(holdout=fraction)


# --- the data sets ---------------------------------------------------------------------------------------------------


def test_digits():
    dataset = load_dataset("digits")
    assert dataset.input_size == (3, 32, 32)
    assert dataset.classes == list("0123456789")
    assert dataset.sizes == {"train": 1437, "test": 360}
    for part in (dataset.train, dataset.test):
        assert (part.images[:, 0] == part.images[:, 2]).all()
        counts = part.labels.bincount() / len(part)
        assert (counts - 0.1).abs().max() < 0.01
    # Linear interpolation, one axis after the other, between the centres of the 8×8 values.
    raw = load_digits()
    _, test = stratified_split(torch.from_numpy(raw.target).long(), 0.2)
    centres = (np.arange(32) + 0.5) / 4 - 0.5
    for image, small in zip(dataset.test.images[:20], raw.images[test[:20]], strict=True):
        rows = np.apply_along_axis(lambda line: np.interp(centres, np.arange(8), line), 1, small)
        expected = np.apply_along_axis(lambda line: np.interp(centres, np.arange(8), line), 0, rows) * 255 / 16
        assert np.abs(image[0].numpy() - expected).max() <= 0.51
    images, _ = everything(loaders(dataset, batch_size=1437).train)
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def fake_torchvision(monkeypatch, shape, classes):
    class Fake:
        def __init__(self, root, train, download):
            seed = int(train)
            self.data = np.random.default_rng(seed).integers(1, 256, (20 + 10 * train, *shape), dtype=np.uint8)
            self.targets = list(np.arange(len(self.data)) % len(classes))
            self.classes = classes

    for name in ("CIFAR10", "CIFAR100", "FashionMNIST"):
        monkeypatch.setattr(torchvision.datasets, name, Fake)
    return Fake(None, True, False).data


def test_cifar_from_torchvision(monkeypatch, tmp_path):
    data = fake_torchvision(monkeypatch, (32, 32, 3), CIFAR10)
    dataset = load_dataset("cifar10", root=str(tmp_path))
    assert torch.equal(dataset.train.images, torch.from_numpy(data).permute(0, 3, 1, 2))
    assert dataset.train.labels.tolist() == [i % 10 for i in range(30)]
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.classes == CIFAR10
    assert (dataset.mean, dataset.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert load_dataset("cifar100", root=str(tmp_path)).mean == (0.5071, 0.4867, 0.4408)


def test_fashion_mnist_is_padded_and_repeated(monkeypatch, tmp_path):
    data = fake_torchvision(monkeypatch, (28, 28), ["shirt", "shoe"])
    images = load_dataset("fashion_mnist", root=str(tmp_path)).train.images
    assert images.shape == (30, 3, 32, 32)
    for channel in range(3):
        assert torch.equal(images[:, channel, 2:30, 2:30], torch.from_numpy(data))
    assert images.bool().sum() == 30 * 3 * 28 * 28  # the border is black


@pytest.fixture
def cifar_tars(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    train = write_images(folder / "train.tar", CIFAR10, 3)
    test = write_images(folder / "test.tar", CIFAR10, 2, first_seed=100)
    return folder, as_tensor(train), as_tensor(test)


def test_cifar10_from_tars(cifar_tars):
    folder, train, test = cifar_tars
    dataset = load_dataset("cifar10", root=str(folder), download=False)
    assert dataset.classes == CIFAR10
    assert torch.equal(dataset.train.images, train)
    assert torch.equal(dataset.test.images, test)
    assert dataset.test.labels.tolist() == [i // 2 for i in range(20)]


def test_a_tar_with_other_classes_is_refused(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / f"{split}.tar", ["cat", "dog"], 1)
    with pytest.raises(DatasetError, match=r"train.tar has 2 classes, but cifar10 has 10"):
        load_dataset("cifar10", root=str(tmp_path))


def test_images_are_decoded_once_in_a_process(cifar_tars, monkeypatch):
    folder = str(cifar_tars[0])
    first = load_dataset("cifar10", root=folder)
    monkeypatch.setattr(Files, "open", None)
    again = load_dataset("cifar10", root=folder, crop_padding=4, flip=True, mean=[0, 0, 0])
    assert again.train.images is first.train.images


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of images that are decoded, one for each split; a new process at each load."""
    counts = []
    decode = Files.decode
    monkeypatch.setattr(Files, "decode", lambda files: counts.append(len(files)) or decode(files))

    def load(folder):
        counts.clear()
        sources._read.cache_clear()
        return load_dataset("cifar10", root=str(folder), download=False), list(counts)

    return load


def test_cifar_is_decoded_at_the_first_start_and_kept(cifar_tars, decoded, tmp_path, capsys):
    folder, train, test = cifar_tars
    first, counts = decoded(folder)
    assert counts == [30, 20]
    (file,) = (tmp_path / "cache" / "whtnet" / "data").glob("*.npz")
    assert f"kept in {file}" in capsys.readouterr().err
    assert file.stat().st_mode & 0o77 == 0
    again, counts = decoded(folder)
    assert counts == []
    assert capsys.readouterr().err == ""
    assert again.classes == first.classes == CIFAR10
    for split, images in (("train", train), ("test", test)):
        assert torch.equal(getattr(again, split).images, images)
        assert torch.equal(getattr(again, split).labels, getattr(first, split).labels)
    file.write_bytes(file.read_bytes()[:-1000])
    repaired, counts = decoded(folder)
    assert counts == [30, 20]
    assert torch.equal(repaired.train.images, train)
    changed = as_tensor(write_images(folder / "train.tar", CIFAR10, 3, first_seed=500))
    assert torch.equal(decoded(folder)[0].train.images, changed)
    assert len(list(file.parent.glob("*.npz"))) == 1  # the old one is of no use


def test_a_kept_file_is_never_unpickled(cifar_tars, decoded, tmp_path):
    decoded(cifar_tars[0])
    (file,) = (tmp_path / "cache" / "whtnet" / "data").glob("*.npz")
    np.savez(file, classes=np.array([print], dtype=object))
    assert decoded(cifar_tars[0])[1] == [30, 20]


@pytest.mark.parametrize("fault", ["a file in its place", "others can write"])
def test_without_a_private_folder_nothing_is_kept(cifar_tars, decoded, tmp_path, capsys, fault):
    place = tmp_path / "cache"
    if fault == "others can write":
        (place / "whtnet" / "data").mkdir(parents=True)
        (place / "whtnet" / "data").chmod(0o777)
    else:
        place.touch()
    for _ in range(2):
        dataset, counts = decoded(cifar_tars[0])
        assert counts == [30, 20]
        assert torch.equal(dataset.train.images, cifar_tars[1])
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.glob("cache/**/*.npz"))


def test_the_normalisation_applies_to_images_from_a_tar(cifar_tars):
    dataset = load_dataset("cifar10", root=str(cifar_tars[0]))
    images, _ = everything(loaders(dataset).test)
    assert images[3, 1, 5, 7].item() == pytest.approx(
        (cifar_tars[2][3, 1, 5, 7].item() / 255 - 0.4822) / 0.1994, abs=1e-6
    )


# --- where data is looked for ----------------------------------------------------------------------------------------


def test_an_explicit_root_beats_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WHTNET_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    assert Place.find("cifar10", str(tmp_path / "mine")).root == tmp_path / "mine"
    assert Place.find("cifar10", "mine").root == tmp_path / "cwd" / "mine"


def test_the_environment_points_to_a_parent_or_to_the_data_itself(tmp_path, monkeypatch):
    assert Place.find("cifar10", None).root == tmp_path / "cwd" / "data" / "cifar10"
    monkeypatch.setenv("WHTNET_DATA", str(tmp_path))
    assert Place.find("cifar10", None).root == tmp_path / "cwd" / "data" / "cifar10"
    (tmp_path / "train.tar").touch()
    assert Place.find("cifar10", None).root == tmp_path
    assert Place.find("cifar100", None).root == tmp_path / "cwd" / "data" / "cifar100"
    (tmp_path / "cifar10").mkdir()
    assert Place.find("cifar10", None).root == tmp_path / "cifar10"


def test_cifar10_through_the_environment(cifar_tars, monkeypatch):
    folder, train, _ = cifar_tars
    for value in (folder, folder.parent):
        monkeypatch.setenv("WHTNET_DATA", str(value))
        assert torch.equal(load_dataset("cifar10", download=False).train.images, train)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_missing_data_says_where_it_looked_and_what_to_do(name, tmp_path, monkeypatch):
    with pytest.raises(DatasetNotFoundError) as caught:
        load_dataset(name, root=str(tmp_path / "nowhere"), download=False)
    message = str(caught.value)
    for part in (name, str(tmp_path / "nowhere"), "dataset.root=", "WHTNET_DATA", "dataset.download=true"):
        assert part in message
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, UserError)
    monkeypatch.setenv("WHTNET_DATA", str(tmp_path / "env"))
    with pytest.raises(DatasetNotFoundError, match=str(tmp_path / "env" / name)):
        load_dataset(name, download=False)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_no_network_is_missing_data(name, tmp_path, monkeypatch):
    asked = []

    def offline(url, *args, **kwargs):
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(DatasetNotFoundError, match=rf"{name} was not found.*dataset\.root="):
        load_dataset(name, root=str(tmp_path / "new"))
    assert asked
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(DatasetNotFoundError):
        load_dataset(name, root=str(tmp_path / "there" / "new" / "newer"))
    assert list((tmp_path / "there").iterdir()) == []
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("must not download"))
    with pytest.raises(DatasetNotFoundError):
        load_dataset(name, root=str(tmp_path / "new"), download=False)


# --- timm's sources --------------------------------------------------------------------------------------------------

SIZES = [(32, 32), (40, 32), (32, 50), (20, 30)]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for split, first in (("train", 0), ("val", 100)):
        write_images(root / split, ["ant", "bee", "cow"], 4, first, lambda i: SIZES[i % 4])
    return root


def from_timm(root, **options):
    return load_dataset("timm", root=str(root), **{"input_size": 16} | options)


def resized(path, side=16):
    """Resize the shorter side, crop the centre to 16×16."""
    image = Image.open(path).convert("RGB")
    return transforms.CenterCrop(16)(transforms.Resize(side)(image))


def test_a_folder_of_images_of_any_size(folder):
    dataset = from_timm(folder)
    assert dataset.classes == ["ant", "bee", "cow"]
    assert dataset.sizes == {"train": 12, "test": 12}
    assert dataset.input_size == (3, 16, 16)
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    paths = sorted((folder / "train").rglob("*.png"))
    assert torch.equal(dataset.train.images, as_tensor([resized(p) for p in paths]))
    assert torch.equal(from_timm(folder, crop_pct=0.5).train.images, as_tensor([resized(p, 32) for p in paths]))
    assert from_timm(folder, input_size=[3, 8, 12]).input_size == (3, 8, 12)


def test_the_test_part_is_the_same_from_memory_and_through_workers(folder):
    mem, files = (from_timm(folder, in_memory=m, crop_pct=0.8) for m in (True, False))
    assert isinstance(mem.test.images, torch.Tensor)
    assert isinstance(files.test.images, Files)
    expected, labels = everything(loaders(mem).test)
    for workers in (0, 2):
        images, found = everything(loaders(files, batch_size=5, workers=workers).test)
        assert torch.equal(images, expected)
        assert torch.equal(found, labels)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_workers_and_batches_do_not_change_an_epoch(folder, tmp_path, kind):
    root = folder
    if kind == "tar":
        root = tmp_path / "tars"
        root.mkdir()
        for split in ("train", "val"):
            write_images(root / f"{split}.tar", ["ant", "bee", "cow"], 4, 0, lambda i: SIZES[i % 4])
    dataset = from_timm(root, in_memory=False, flip=True, transform={"auto_augment": "rand-m9-mstd0.5"})
    reference = loaders(dataset, batch_size=3).train
    first, second = at_epoch(reference, 0), at_epoch(reference, 1)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for batch_size, workers in ((3, 0), (4, 2)):  # without workers, this process has the tar open
        train = loaders(dataset, batch_size=batch_size, workers=workers).train
        images, labels = at_epoch(train, 1)
        assert torch.equal(images, second[0])
        assert torch.equal(labels, second[1])
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == sorted(dataset.train.labels.tolist())
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], at_epoch(loaders(dataset, seed=1, batch_size=3).train, 0)[0])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]


def test_the_file_loader_has_the_same_form_as_the_one_in_memory(folder):
    dataset = from_timm(folder, in_memory=False, holdout=0.25)
    assert dataset.sizes == {"train": 9, "test": 12, "holdout": 3}
    parts = loaders(dataset, batch_size=4, eval_batch_size=5, channels_last=True)
    assert (len(parts.train), parts.train.num_samples) == (2, 8)
    assert [len(labels) for _, labels in parts.test] == [5, 5, 2]
    for images, labels in parts.train:
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (4, 3, 16, 16)
        assert images.is_contiguous(memory_format=torch.channels_last)
    whole = from_timm(folder, in_memory=True, holdout=0.25)
    assert torch.equal(everything(parts.holdout)[0], everything(loaders(whole).holdout)[0])


def test_flip_and_transform_reach_timm(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, ["ant", "bee"], 20)
    whole = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "color_jitter": 0.0, "interpolation": "bilinear"}

    def images(flip):
        dataset = from_timm(tmp_path, in_memory=False, flip=flip, transform=whole)
        return at_epoch(loaders(dataset, batch_size=40).train, 0)[0]

    still, flipped = images(False), images(True)
    kept, mirrored = ((flipped == other).flatten(1).all(1) for other in (still, still.flip(3)))
    assert 10 < mirrored.sum() < 30
    assert (kept ^ mirrored).all()
    order = torch.randperm(40, generator=epoch_generator(0, 0))
    assert torch.equal(still, everything(loaders(from_timm(tmp_path)).test)[0][order])  # both splits hold the same
    with pytest.raises(DatasetError, match=r"dataset\.transform.*nonsense"):
        loaders(from_timm(tmp_path, in_memory=False, transform={"nonsense": 1}))


def test_what_is_kept_in_memory(folder, monkeypatch):
    def kept(**options):
        return isinstance(from_timm(folder, **options).train.images, torch.Tensor)

    assert kept()
    assert not kept(memory_limit_gib=1e-6)
    assert kept(memory_limit_gib=1e-6, in_memory=True)
    assert not kept(transform={"scale": [0.5, 1.0]})
    monkeypatch.setattr(sources, "SMALL_SET", 10)
    assert not kept(crop_pct=0.99)  # more images than that, of other sizes than the input's
    same = folder.parent / "same"
    for split in ("train", "val"):
        write_images(same / split, ["ant", "bee"], 10, size=lambda i: (16, 16))
    assert isinstance(from_timm(same).train.images, torch.Tensor)


def test_settings_that_exclude_each_other(folder):
    with pytest.raises(DatasetError, match=r"crop_padding=2.*in_memory=true"):
        from_timm(folder, in_memory=False, crop_padding=2)
    with pytest.raises(DatasetError, match=r"resize=64.*dataset\.input_size=64"):
        from_timm(folder, in_memory=False, resize=64)
    with pytest.raises(DatasetError, match=r"dataset\.transform.*in_memory=false"):
        from_timm(folder, in_memory=True, transform={"no_aug": True})
    with pytest.raises(DatasetError, match="auto, true or false"):
        from_timm(folder, in_memory="yes")


def test_a_class_without_test_images_does_not_shift_the_others(tmp_path):
    write_images(tmp_path / "train", ["ant", "bee", "cow"], 2)
    write_images(tmp_path / "val", ["ant", "cow"], 2)
    with pytest.warns(UserWarning, match="val has no images of 'bee'"):
        dataset = from_timm(tmp_path)
    assert dataset.num_classes == 3
    assert dataset.test.labels.tolist() == [0, 0, 2, 2]
    write_images(tmp_path / "odd", ["ant", "dog"], 1)
    with pytest.raises(DatasetError, match="lacks: 'dog'"):
        from_timm(tmp_path, test_split="odd")


def test_missing_and_empty_splits_are_named(folder):
    with pytest.raises(
        DatasetNotFoundError, match=r"timm.*no test, folder or \.tar; there: train, val; dataset\.test_split"
    ):
        from_timm(folder, test_split="test")
    with pytest.raises(DatasetNotFoundError, match="no train"):
        load_dataset("timm")
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"test split, .*empty, has no images"):
        from_timm(folder, test_split="empty")
    tarfile.open(folder / "bare.tar", "w").close()
    with pytest.raises(DatasetError, match=r"training split, .*bare\.tar, has no images"):
        from_timm(folder, train_split="bare")
    with pytest.raises(DatasetError, match="no random access"):
        from_timm(folder, source="wds/shards")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_broken_image_is_named(folder, in_memory):
    (folder / "val" / "bee" / "001.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"001\.png can't be decoded"):
        everything(loaders(from_timm(folder, in_memory=in_memory), workers=2).test)


def test_hugging_face_data_sets(folder):
    pytest.importorskip("datasets", reason="the optional package `datasets`")
    options = {"source": f"hfds/{folder}", "input_size": 16, "in_memory": False}
    dataset = load_dataset("timm", root=str(folder.parent / "cache"), **options)
    assert dataset.classes == ["ant", "bee", "cow"]
    expected, labels = everything(loaders(from_timm(folder)).test)
    images, found = everything(loaders(dataset).test)
    assert torch.equal(images[found.argsort(stable=True)], expected)
    assert sorted(found.tolist()) == labels.tolist()


def test_a_hugging_face_data_set_that_can_not_be_had(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("whtnet.data.hub.create_dataset", unreachable)
    with pytest.raises(DatasetNotFoundError, match=r"hfds/someone/thing can't be had: no route"):
        load_dataset("timm", source="hfds/someone/thing")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_list_the_choices():
    with pytest.raises(ValueError, match=r"'mnist'.*digits, cifar10, cifar100, fashion_mnist, timm, synthetic"):
        load_dataset("mnist")
    with pytest.raises(ValueError, match=r"dataset\.colour of synthetic; it takes num_classes, train_size"):
        load_dataset("synthetic", colour="red")
    with pytest.raises(ValueError, match=r"dataset\.size of digits; it takes none"):
        load_dataset("digits", size=3)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"crop_padding": -1}, "crop_padding"),
        ({"crop_padding": "2px"}, "crop_padding must be a whole number, got '2px'"),
        ({"resize": 0}, "resize must be at least 1, got 0"),
        ({"resize": [96, 96]}, r"resize must be a whole number.*, got \[96, 96\]"),
        ({"flip": "maybe"}, "flip must be true or false, got 'maybe'"),
        ({"holdout": None}, "holdout must be a finite number, got None"),
        ({"size": "big"}, "size must be a whole number, got 'big'"),
        ({"size": -1}, "size must be at least 1"),
        ({"num_classes": 0}, "num_classes.* must be at least 1"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"std": 0.5}, "std"),
        *[({"mean": [value, 0, 0]}, "mean must be three numbers from 0 to 1") for value in (float("nan"), 125, "a")],
        ({"train_size": -5}, "train_size must be at least 1, got -5"),
        ({"test_size": 0}, "test_size must be at least 1, got 0"),
    ],
)
def test_wrong_values_name_the_culprit(options, culprit):
    with pytest.raises(DatasetError, match=culprit):
        synthetic(**options)


def test_wrong_batch_size():
    with pytest.raises(DatasetError, match="batch size"):
        loaders(synthetic(), batch_size=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(monkeypatch, label):
    def broken(place, download, *, bad=2):
        images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
        good = Split(images, torch.tensor([0, 1, 2, 0, 1]))
        return Source(("a", "b", "c"), good, Split(images, torch.tensor([0, 1, bad, 0, 1])), (0.5,) * 3, (0.5,) * 3)

    monkeypatch.setitem(SOURCES, "broken", broken)
    load_dataset("broken", bad=2)
    with pytest.raises(
        ValueError, match=rf"test split of broken has 1 labels outside 0\.\.2; the first is {label}, of image 2"
    ):
        load_dataset("broken", bad=label)


def test_seeded_restores_what_it_found():
    torch.manual_seed(1)
    before = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1)
    with seeded(1, 2):
        inside = random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(torch.rand(1), before[0])
    with seeded(1, 2):
        assert (random.random(), np.random.rand(), torch.rand(1)) == inside


# --- the shipped configurations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOURCES))
def test_configs_hold_what_load_dataset_takes(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    assert config.pop("name") == name
    general = {n for n, p in inspect.signature(load_dataset).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert set(config) <= general | set(SOURCES[name].__kwdefaults__ or {})
    assert general - set(config) <= {"root", "download"}
    if name in ("digits", "synthetic"):
        assert load_dataset(name, **config).crop_padding == config["crop_padding"]


# --- the real thing --------------------------------------------------------------------------------------------------

_data = Path(os.environ.get("WHTNET_DATA", "") or "nowhere").absolute()
_cifar10 = next((p for p in (_data / "cifar10", _data) if any((p / m).exists() for m in MARKERS["cifar10"])), None)


@pytest.mark.slow
@pytest.mark.skipif(_cifar10 is None, reason="WHTNET_DATA does not hold cifar10")
def test_the_real_cifar10(monkeypatch):
    monkeypatch.setenv("WHTNET_DATA", str(_data))
    dataset = load_dataset("cifar10", download=False, crop_padding=4, flip=True)
    assert dataset.sizes == {"train": 50_000, "test": 10_000}
    assert dataset.classes == CIFAR10
    assert dataset.train.labels.bincount().tolist() == [5000] * 10
    values = dataset.train.images.double() / 255
    published = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    torch.testing.assert_close(values.mean((0, 2, 3)).float(), published[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std((0, 2, 3)).float(), published[1], atol=1e-4, rtol=0)
