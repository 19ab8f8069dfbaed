import hashlib
import json
import multiprocessing
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from whtnet import records
from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.records import (
    RecordError,
    environment,
    layers_beside,
    put_record,
    read_layers,
    read_records,
    write_json,
)

ROOT = Path(__file__).parents[1]


LAYERS = [{"name": "a", "threshold": [[0.12345, -1.0]]}, {"name": "b", "threshold": None}]


def record(row, seed=0, **fields):
    identity = hashlib.sha256(f"{row}{seed}".encode()).hexdigest()
    return {"format": 2, "table": "t", "row": row, "recipe": "short", "seed": seed, "identity": identity, **fields}


# --- files ---


def test_every_record_has_a_file_of_its_own_named_by_what_it_is(tmp_path):
    first, second = record("a", history=[{"epoch": 1, "x": 0.5}]), record("b.c", seed=3, table="u")
    path = put_record(tmp_path, first, LAYERS)
    assert path == tmp_path / "t" / f"a-seed0-{first['identity'][:8]}.json"
    put_record(tmp_path, second)
    assert read_records(tmp_path) == [first, second]
    assert sorted(file.name.split("-")[0] for file in tmp_path.glob("*/*")) == ["a", "a", "b.c"]
    replaced = record("a", history=[])
    put_record(tmp_path, replaced)
    assert read_records(tmp_path) == [replaced, second]
    assert [file.name for file in (tmp_path / "t").iterdir()] == [path.name]  # its layers went with it


def test_layers_lie_beside_their_record_with_three_digits(tmp_path):
    path = put_record(tmp_path, record("a"), LAYERS)
    put_record(tmp_path, record("b"))
    assert path.with_suffix(".layers.json").is_file()
    assert read_layers(tmp_path, record("a")) == layers_beside(path)
    assert layers_beside(path) == [{"name": "a", "threshold": [[0.123, -1.0]]}, LAYERS[1]]
    assert read_layers(tmp_path, record("b")) == []


def test_a_record_is_text_that_can_be_reviewed(tmp_path):
    epochs = [{"epoch": n, "loss": 1 / n} for n in (1, 2, 3)]
    path = put_record(tmp_path, record("a", history=epochs, after={"x": [1]}))
    lines = path.read_text().splitlines()
    assert [line for line in lines if '"epoch"' in line] == [
        f"    {json.dumps(e)}{',' * (e != epochs[-1])}" for e in epochs
    ]
    assert json.loads(path.read_text()) == record("a", history=epochs, after={"x": [1]})
    assert '  "row": "a",' in lines


def test_no_folder_no_records(tmp_path):
    assert read_records(tmp_path / "missing") == []


def test_a_table_needs_its_labels(tmp_path):
    with pytest.raises(UserError, match="missing: recipe, seed, identity"):
        put_record(tmp_path, {"table": "t", "row": "a"})
    for name in ("../a", "", ".hidden", "a/b", "a b"):
        with pytest.raises(UserError, match="can't name a file"):
            put_record(tmp_path, record(name))
    assert list(tmp_path.iterdir()) == []


def test_json_is_strict_and_takes_the_scalars_of_torch_and_numpy(tmp_path):
    values = [
        float("nan"),
        float("inf"),
        np.float32("nan"),
        torch.tensor(2.5),
        np.int64(3),
        np.True_,
        (1, None),
        Path("a/b"),
    ]
    expected = [None, None, None, 2.5, 3, True, [1, None], "a/b"]
    path = put_record(tmp_path, record("a", values=values))
    write_json(tmp_path / "other.json", {"values": values})

    def refuse(constant):
        raise AssertionError(constant)

    for file in (path, tmp_path / "other.json"):
        assert json.loads(file.read_text(), parse_constant=refuse)["values"] == expected
    with pytest.raises(TypeError, match="cannot record"):
        put_record(tmp_path, record("a", values=object()))
    assert json.loads(path.read_text())["values"] == expected  # untouched


@pytest.mark.parametrize("content", ["", '{"table": "t", "ro', "[]", "3", "<<<<<<< HEAD\n{}", "\0\0"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = put_record(tmp_path, record("a"), LAYERS)
    beside = path.with_suffix(".layers.json")
    for file, act in ((beside, lambda: read_layers(tmp_path, record("a"))), (path, lambda: read_records(tmp_path))):
        file.write_text("{}" if file == beside and content == "[]" else content)
        with pytest.raises(RecordError, match=f"{file.name} can't be read as a record"):
            act()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "migrate_records"),
        ({"format": 3}, "take the version that wrote it"),
        ({"row": "../a"}, "name a file"),
    ],
)
def test_a_record_that_is_none_of_a_table_is_named(tmp_path, change, words):
    path = put_record(tmp_path, record("a"))
    path.write_text(json.dumps(record("a") | change))
    with pytest.raises(RecordError, match=rf"{path.name}.*{words}"):
        read_records(tmp_path)


def _put_many(folder, writer):
    for seed in range(10):
        put_record(folder, record(f"row{writer}", seed), LAYERS)
        put_record(folder, record("shared", seed, writer=writer), LAYERS)


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put_many, args=(tmp_path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        read_records(tmp_path)  # never half of one
    assert [writer.exitcode for writer in writers] == [0] * 4
    rows = ("row0", "row1", "row2", "row3", "shared")
    found = read_records(tmp_path)
    assert sorted((r["row"], r["seed"]) for r in found) == sorted((row, seed) for row in rows for seed in range(10))
    assert all(len(read_layers(tmp_path, r)) == 2 for r in found)
    assert len(list(tmp_path.glob("*/*"))) == 100


def test_atomic_write_keeps_the_old_content_when_it_fails_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    atomic_write(path, memoryview(b"old"))

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"^cannot write .*file: No space left on device; .*choose another path"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    for write in (lambda file: atomic_write(file, "x"), lambda file: put_record(file, record("a"))):
        with pytest.raises(UserError, match=r"^cannot write"):
            write(path / "below" / "a file")


def test_atomic_write_goes_through_a_link(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", "nëw")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text(encoding="utf-8") == "nëw"


def test_atomic_write_leaves_a_pipe_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


# --- environment ---


def test_environment_is_complete_and_names_no_machine():
    found = environment(torch.device("cpu"))
    assert list(found) == ["commit", "dirty", "versions", "platform", "device", "device_name", "processes", "threads"]
    assert set(found["versions"]) == {"whtnet", "python", "torch", "torchvision", "timm"}
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["device"] == "cpu"
    assert found["device_name"].endswith(f" ({torch.backends.cpu.get_cpu_capability()})")
    assert found["threads"] == torch.get_num_threads()
    text = json.dumps(found)
    assert not re.search(r'"[^"]*(/\w+/|[A-Z]:\\)', text)
    words = set(re.split(r"[^\w.-]+", text))
    assert not words & {platform.node(), Path.home().name}


def test_environment_tells_a_clean_checkout_from_a_dirty_one_and_from_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for file in ("pkg/records.py", "README.md", ".gitignore", ".venv/lib/tracking.py"):
        atomic_write(tmp_path / file, ".venv/\n")

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def state(file="pkg/records.py"):
        monkeypatch.setattr(records, "__file__", str(tmp_path / file))
        found = environment("cpu")
        return found["commit"], found["dirty"]

    assert state() == (None, None)
    git("init")
    git("add", ".")
    git("commit", "-m", "m")
    commit, dirty = state()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert dirty is False
    atomic_write(tmp_path / "results" / "runs" / "t" / "a.json", "{}\n")
    atomic_write(tmp_path / "README.md", "tables\n")
    assert state() == (commit, False)
    assert records.local_changes(tmp_path) == []
    atomic_write(tmp_path / "pkg" / "new.py", "")
    assert state() == (commit, True)
    atomic_write(tmp_path / "pkg" / "records.py", "")
    assert records.local_changes(tmp_path) == ["pkg/records.py", "pkg/new.py"]
    assert state(".venv/lib/tracking.py") == (None, None)
    assert records.local_changes(tmp_path.parent) == []
    monkeypatch.setenv("PATH", "")
    assert state() == (None, None)
    assert records.local_changes(tmp_path) == []
