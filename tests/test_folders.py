"""The rule of labels, for folders and tars alike, and what tells one data set from another."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from whtnet.data import DatasetError, DatasetNotFoundError, data_identity, load_dataset
from whtnet.data.folders import list_images

EVERY_KIND = ("folder", "tar")


def image_bytes(suffix=".png", size=(8, 8), colour=(10, 20, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue()


PNG = image_bytes()


def write(target, names, kind="folder"):
    """Files of these names (a folder's ends with a slash) in a folder or a tar; returns its path."""
    contents = names if isinstance(names, dict) else dict.fromkeys(names, PNG)
    if kind == "tar":
        target = target.with_name(f"{target.name}.tar")
        with tarfile.open(target, "w") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.size = 0 if name.endswith("/") else len(content)
                tar.addfile(info, io.BytesIO(content))
        return target
    for name, content in contents.items():
        if name.endswith("/"):
            (target / name).mkdir(parents=True, exist_ok=True)
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
    return target


def labelled(listing):
    return {entry.name: listing.classes[i] for entry, i in zip(listing.entries, listing.labels, strict=True)}


@pytest.fixture(params=EVERY_KIND)
def listed(request, tmp_path):
    def listed(names, **options):
        place = tmp_path / str(sum(1 for _ in tmp_path.iterdir()))
        place.mkdir()
        return list_images(write(place / "train", names, request.param), **options)

    return listed


def test_the_first_level_below_the_split_is_the_class(listed):
    listing = listed(["n02/images/a.png", "n01/images/b.png", "n01/c.png", "n03/x/y/d.png"])
    assert listing.classes == ("n01", "n02", "n03")
    assert labelled(listing) == {
        "n01/c.png": "n01", "n01/images/b.png": "n01", "n02/images/a.png": "n02", "n03/x/y/d.png": "n03"
    }  # fmt: skip


def test_order_is_that_of_the_bytes(listed):
    names = ["b", "A", "10", "2", "B", "a", "\u00e9", "e\u0301", "z ", "z"]
    listing = listed([f"{name}/0.png" for name in names])
    assert list(listing.classes) == sorted(names, key=str.encode)
    assert list(listing.classes)[:5] == ["10", "2", "A", "B", "a"]
    images = listed([f"{name}/{i}.png" for name in names for i in ("10", "9", "B", "a")])
    assert [entry.name for entry in images.entries][:4] == ["10/10.png", "10/9.png", "10/B.png", "10/a.png"]


def test_order_does_not_depend_on_the_hash_seed(tmp_path):
    folder = write(tmp_path / "train", [f"{name}/0.png" for name in "bBaAäÄ"])
    code = (
        f"from whtnet.data.folders import *; l = list_images(Path({str(folder)!r})); print(ascii(l.classes), l.digest)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)}
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["x.JPEG", "x.Png", "x.webp", "x.bmp", "x.tif", "x.TIFF", "x.gif", "x.ppm", "x.jp2"])
def test_what_pillow_reads_is_an_image(listed, name):
    listing = listed({f"cat/{name}": image_bytes(Path(name).suffix)})
    with listing.open(0) as file, Image.open(file) as image:
        assert image.size == (8, 8)


def test_what_is_skipped_is_counted(listed):
    clutter = [
        ".DS_Store", ".git/config.png", ".git/more.png", "cat/._1.png", "cat/.ipynb_checkpoints/1.png",
        "__MACOSX/cat/1.png", "lost+found/", "cat/@eaDir/1.png",
        "cat/Thumbs.db", "classes.txt", "cat/notes.txt", "cat/README", "stray.png", "cat/a.h5",
    ]  # fmt: skip
    listing = listed(["cat/1.png", "dog/1.png", *clutter])
    assert listing.classes == ("cat", "dog")
    assert len(listing) == 2
    assert listing.skipped == {
        "hidden files and folders": 7,
        "files .txt": 2,
        "files .db": 1,
        "files .h5": 1,
        "files without an ending": 1,
        "images outside the class folders": 1,
    }


def test_a_split_packed_once_more(listed):
    listing = listed(["train/cat/1.png", "train/dog/1.png", "train/", "train/dog/"])
    assert listing.classes == ("cat", "dog")
    assert [entry.name for entry in listing.entries] == ["cat/1.png", "dog/1.png"]
    assert listing.empty == ()
    with listing.open(1) as file:
        assert file.read() == PNG


def test_class_folders_without_images(listed):
    assert listed(["cat/1.png", "dog/", "cow/notes.txt", "cow/"]).empty == ("cow", "dog")


def test_several_folders_of_a_class_that_may_be_classes(listed):
    places = ["c/cathedral/outdoor/1.png", "c/cathedral/indoor/1.png", "m/market/outdoor/1.png"]
    with pytest.raises(DatasetError, match=r"c/cathedral/indoor and c/cathedral/outdoor classes.*class_depth=3"):
        listed(places)
    assert listed(places, class_depth=1).classes == ("c", "m")
    assert listed(places, class_depth=3).classes == ("c/cathedral/indoor", "c/cathedral/outdoor", "m/market/outdoor")
    by_year = ["cat/2023/1.png", "cat/2024/1.png", "dog/2023/1.png"]
    assert listed(by_year).classes == ("cat", "dog")


def test_an_empty_file_is_named(listed):
    with pytest.raises(DatasetError, match=r"cat/1\.png is an empty file"):
        listed({"cat/1.png": b"", "dog/1.png": PNG})


def test_a_folder_is_read_again_when_it_has_changed(tmp_path):
    root = splits(tmp_path / "pets", CATS, CATS)
    first = load(root)
    assert load(root).train.images is first.train.images
    write(root / "train", ["dog/2.png"])
    assert load(root).sizes["train"] == 3


def test_links(tmp_path):
    elsewhere = write(tmp_path / "elsewhere", ["1.png", "2.png"])
    train = write(tmp_path / "train", ["cat/1.png"])
    (train / "dog").symlink_to(elsewhere)
    (train / "cat" / "again.png").symlink_to(elsewhere / "1.png")
    (train / "cat" / "gone.png").symlink_to(elsewhere / "3.png")
    (train / "cat" / "loop").symlink_to(train)
    (train / "itself").symlink_to("itself")
    listing = list_images(train)
    assert [entry.name for entry in listing.entries] == ["cat/1.png", "cat/again.png", "dog/1.png", "dog/2.png"]
    assert listing.skipped == {"broken links and special files": 2}


def test_names_that_are_no_text(tmp_path):
    folder = os.fsencode(tmp_path / "train") + b"/caf\xe9"
    os.makedirs(folder)
    Path(os.fsdecode(folder), "1.png").write_bytes(PNG)
    with pytest.raises(DatasetError, match=r"'caf\\udce9' is no UTF-8"):
        list_images(tmp_path / "train")


def test_odd_tars(tmp_path):
    inner = {f"{name}.tar": write(tmp_path / name, [f"{name}_1.png"], "tar").read_bytes() for name in ("n02", "n01")}
    nested = list_images(write(tmp_path / "nested", inner, "tar"))  # as ImageNet's training images come
    assert labelled(nested) == {"n01/n01_1.png": "n01", "n02/n02_1.png": "n02"}
    for i in range(2):
        with nested.open(i) as file:
            assert file.read() == PNG
    dotted = list_images(write(tmp_path / "dotted", ["./", "./cat/", "./cat/1.png", "/dog/1.png"], "tar"))
    assert dotted.classes == ("cat", "dog")
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as tar:
        for content in (PNG, image_bytes(colour=(9, 9, 9))):
            info = tarfile.TarInfo("cat/1.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with list_images(twice).open(0) as file:  # unpacked, the later one would be there
        assert Image.open(file).getpixel((0, 0)) == (9, 9, 9)
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        links = {"./cat/1.png": "", "cat/2.png": "cat/1.png", "dog/1.png": "./cat/2.png", "cat/3.png": "gone.png"}
        for name, link in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.LNKTYPE, link) if link else (tarfile.REGTYPE, "")
            info.size = 0 if link else len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    linked = list_images(tmp_path / "linked.tar")
    assert [entry.name for entry in linked.entries] == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert linked.open(1).read() == linked.open(2).read() == PNG
    assert linked.skipped == {"broken links and special files": 1}
    for name, content in {"cut.tar": twice.read_bytes()[:700], "text.tar": b"no tar" * 200}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=rf"{name} can't be read as a tar"):
            list_images(tmp_path / name)


def test_a_tar_that_is_cut_or_damaged_between_its_files_is_refused(tmp_path):
    whole = write(tmp_path / "whole", ["cat/1.png", "cat/2.png", "dog/3.png"], "tar").read_bytes()
    second = 512 + -(-len(PNG) // 512) * 512  # where the second file's header begins
    damaged = whole[:second] + b"\xff" + whole[second + 1 :]
    zipped = write(tmp_path / "zipped", {"cat.tar": gzip.compress(whole), "dog/1.png": PNG}, "tar").read_bytes()
    faults = {"cut": whole[:second], "in_a_header": whole[: second + 200], "damaged": damaged, "zipped": zipped}
    for name, content in faults.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        files, which = (0, "cat") if name == "zipped" else (1, "it")
        with pytest.raises(
            DatasetError, match=rf"{name}\.tar .*: {which} is cut off, damaged or .* after {files} files"
        ):
            list_images(path)


def test_a_tar_in_a_tar_ends_where_its_own_content_does(tmp_path):
    inner = write(tmp_path / "inner", ["1.png"], "tar").read_bytes()
    endless = inner[: 512 + -(-len(PNG) // 512) * 512]  # what follows it in the other tar looks like more of it
    path = write(tmp_path / "outer", {"cat.tar": endless, "dog/1.png": PNG}, "tar")
    with pytest.raises(DatasetError, match="cat is cut off, damaged or compressed after 1 files"):
        list_images(path)


def test_tars_one_behind_the_other_are_refused(tmp_path):
    first, second = (write(tmp_path / name, [f"{name}/1.png"], "tar").read_bytes() for name in ("cat", "dog"))
    (tmp_path / "both.tar").write_bytes(first + second)
    inside = write(tmp_path / "inside", {"pets.tar": first + second}, "tar")
    for path, which in ((tmp_path / "both.tar", "it"), (inside, "pets")):
        with pytest.raises(DatasetError, match=rf"{path}.*: {which} goes on after its end, .*tar --ignore-zeros -xf"):
            list_images(path)
    (tmp_path / "padded.tar").write_bytes(first + bytes(100_000))
    assert labelled(list_images(tmp_path / "padded.tar")) == {"cat/1.png": "cat"}


@pytest.fixture
def recursion_limit():
    """Python's usual one: libraries of other tests have raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield 1000
    sys.setrecursionlimit(before)


def test_depth_has_no_limit_but_that_of_tars_in_one_another(recursion_limit, tmp_path):
    folders = [Path(f"{tmp_path}/train{'/d' * depth}") for depth in range(recursion_limit + 200)]
    image = folders[-1] / "1.png"
    try:
        for folder in folders:
            folder.mkdir()
        image.write_bytes(PNG)
        (entry,) = list_images(tmp_path / "train").entries
        assert (entry.name.count("/"), entry.size) == (len(folders) - 1, len(PNG))
    finally:  # pytest can't remove what is so deep
        image.unlink(missing_ok=True)
        for folder in reversed(folders):
            if folder.exists():
                folder.rmdir()
    content = PNG
    for _ in range(recursion_limit):
        info = tarfile.TarInfo("a.tar")
        info.size = len(content)
        content = info.tobuf() + content + bytes(-len(content) % 512 + 1024)
    (tmp_path / "deep.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"deep\.tar has too many tars in one another"):
        list_images(tmp_path / "deep.tar")


def test_depths_that_cannot_be(tmp_path):
    for depth in (0, -1):
        with pytest.raises(DatasetError, match=rf"class_depth must be at least 1, got {depth}"):
            list_images(write(tmp_path / "train", ["cat/1.png"]), depth)


def splits(root, train, test, kind="folder"):
    root.mkdir(parents=True, exist_ok=True)
    write(root / "train", train, kind)
    write(root / "val", test, kind)
    return root


def load(root, **options):
    return load_dataset("timm", root=str(root), input_size=8, **options)


CATS = ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_both_splits_have_the_same_classes(tmp_path, kind):
    with pytest.raises(DatasetError, match=r"lacks: 'cow'; training classes without test images: 'dog'"):
        load(splits(tmp_path / "a", CATS, ["cat/1.png", "cow/1.png"], kind))
    with pytest.raises(DatasetError, match=r"training split, .* has no images of 'cow'"):
        load(splits(tmp_path / "b", [*CATS, "cow/"], CATS, kind))
    with pytest.raises(DatasetError, match=r"lacks: 'caf\\xe9'"):  # composed; in training, e and an accent
        load(splits(tmp_path / "c", ["cafe\u0301/1.png"], ["caf\u00e9/1.png"], kind))
    with pytest.raises(DatasetError, match=r"test split, .*no images in class folders \(skipped: 1 files \.txt\)"):
        load(splits(tmp_path / "d", CATS, ["cat/a.txt"], kind))


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize(("place", "below"), [("val/1.JPEG", ""), ("val/images/1.JPEG", "/images")])
def test_images_that_are_not_sorted_by_class(tmp_path, kind, place, below):
    suffix = ".tar" if kind == "tar" else ""
    names = [place.removeprefix("val/")]
    for split, folder, images in (("training", "train", names), ("test", "val", CATS)):
        root = splits(tmp_path / split, images, names, kind)
        where = rf"{root}/{folder}{suffix}{below}"
        with pytest.raises(DatasetError, match=rf"images of the {split} split lie all in {where}, not in a folder"):
            load(root)


def test_the_remedy_for_tiny_imagenet(tmp_path):
    images = {"images/0.JPEG": PNG, "images/1.JPEG": PNG, "val_annotations.txt": b"0.JPEG\tdog\t0\n1.JPEG\tcat\t0\n"}
    root = splits(tmp_path / "tiny images", CATS, images)
    with pytest.raises(DatasetError, match="; sort them: cd ") as told:
        load(root)
    subprocess.run(["sh", "-c", str(told.value).partition("sort them: ")[2]], check=True)
    assert labelled(list_images(root / "val")) == {"dog/0.JPEG": "dog", "cat/1.JPEG": "cat"}
    assert load(root).classes == ["cat", "dog"]


def test_what_is_odd_is_said_once(tmp_path):
    root = splits(tmp_path / "pets", [*CATS, "cat/notes.txt", ".DS_Store"], ["dog/1.png"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        data_identity("timm", root=str(root))
        dataset = load(root)
        load(root, flip=True)
    assert sorted(str(warning.message) for warning in said) == [
        f"{root}/train: skipped 1 files .txt, 1 hidden files and folders",
        f"{root}/val has no images of 'cat'",
    ]
    assert dataset.summary == "pets: 2 classes (cat, dog), 2 training and 1 test images"
    with pytest.warns(UserWarning, match="only one class, cat"):
        load(splits(tmp_path / "cats", ["cat/1.png"], ["cat/1.png"]))
    with pytest.warns(UserWarning, match="have the same images, by names"):
        load(root, test_split="train")
    with pytest.warns(UserWarning, match="have the same images, by names"):
        load(splits(tmp_path / "copied", CATS, CATS))
    with pytest.warns(UserWarning, match="several classes that look like 'caf\u00e9'"):
        load(splits(tmp_path / "twins", ["cafe\u0301/1.png", "caf\u00e9/1.png"], ["caf\u00e9/1.png"]))


def test_which_folder_is_meant(tmp_path, monkeypatch):
    root = splits(tmp_path / "pets", CATS, CATS)
    monkeypatch.chdir(tmp_path)
    assert load("pets").classes == ["cat", "dog"]
    write(root / "valid", CATS)
    with pytest.raises(DatasetError, match=r"has val and valid; set dataset\.test_split"):
        load(root)
    assert load(root, test_split="valid").sizes["test"] == 2
    with pytest.raises(DatasetError, match=r"dataset\.root=1\.5 is no path"):
        load_dataset("timm", root=1.5)
    with pytest.raises(DatasetError, match="does not apply to digits, which has no files"):
        load_dataset("digits", root=str(root))
    with pytest.raises(DatasetError, match=r"dataset\.reader is for"):
        load(root, test_split="val", reader={"input_key": "img"})


def test_a_wrong_folder_suggests_no_download(tmp_path):
    for call in (load_dataset, data_identity):
        with pytest.raises(DatasetNotFoundError, match=r"no such folder\)\. Set dataset\.root=FOLDER") as caught:
            call("timm", root=str(tmp_path / "nowhere"))
        assert "download" not in str(caught.value)
        assert "network" not in str(caught.value)


def test_identity_is_that_of_the_content(tmp_path):
    def identity(root, **options):
        return data_identity("timm", root=str(root), **options)

    first = identity(splits(tmp_path / "a", CATS, CATS))
    assert first["classes"] == ["cat", "dog"]
    assert first["train"]["images"] == first["test"]["images"] == 2
    assert identity(splits(tmp_path / "b", CATS[::-1], CATS), flip=True, holdout=0.5) == first
    assert identity(splits(tmp_path / "c", CATS, CATS, "tar")) == first
    others = [
        splits(tmp_path / "renamed", ["cat/2.png", "dog/1.png"], CATS),
        splits(tmp_path / "resized", dict.fromkeys(CATS, PNG + b" "), CATS),
        splits(tmp_path / "more", [*CATS, "dog/2.png"], CATS),
        splits(tmp_path / "class", ["cat/1.png", "owl/1.png"], ["cat/1.png", "owl/1.png"]),
        splits(tmp_path / "test", CATS, ["cat/1.png", "dog/9.png"]),
    ]
    seen = [first, *map(identity, others)]
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i])
    write(tmp_path / "c" / "train", [*CATS, "dog/2.png"], "tar")  # in place of the one that was indexed
    assert identity(tmp_path / "c") == identity(tmp_path / "more")


def test_identity_of_what_is_named():
    for name in ("digits", "cifar10", "synthetic"):
        assert data_identity(name, root=None, holdout=0.1) == {}
    options = {"input_key": "img"}
    assert data_identity("timm", source="hfds/a/b", reader=options) == {"source": "hfds/a/b", "reader": options}
