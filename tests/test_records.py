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

from whtnet import files, records
from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.records import environment, put_record, read_records, write_json

ROOT = Path(__file__).parents[1]


def record(row, seed=0, **fields):
    return {"table": "t", "row": row, "recipe": "short", "seed": seed, **fields}


# --- files ---


def test_put_record_replaces_the_same_key_in_place_and_appends_others(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    for row, top1 in (("a", 1), ("b", 2), ("c", 3), ("b", 4)):
        put_record(path, record(row, top1=top1))
    put_record(path, record("b", seed=1, top1=5))
    assert [(r["row"], r["seed"], r["top1"]) for r in read_records(path)] == [
        ("a", 0, 1), ("b", 0, 4), ("c", 0, 3), ("b", 1, 5)
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["runs.jsonl"]


def test_put_record_needs_its_key(tmp_path):
    with pytest.raises(UserError, match="missing: recipe, seed"):
        put_record(tmp_path / "runs.jsonl", {"table": "t", "row": "a"})
    put_record(tmp_path / "runs.jsonl", {"id": 1}, key=("id",))
    assert read_records(tmp_path / "runs.jsonl") == [{"id": 1}]


def test_no_file_no_records(tmp_path):
    assert read_records(tmp_path / "missing.jsonl") == []


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
    put_record(tmp_path / "runs.jsonl", record("a", values=values))
    write_json(tmp_path / "record.json", {"values": values})

    def refuse(constant):
        raise AssertionError(constant)

    for name in ("runs.jsonl", "record.json"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=refuse)["values"] == expected
    with pytest.raises(TypeError, match="cannot record"):
        write_json(tmp_path / "record.json", {"a": object()})
    assert json.loads((tmp_path / "record.json").read_text())["values"] == expected  # untouched


@pytest.mark.parametrize("torn", [b'{"table": "t", "ro', b'{"a": "\xc3', b"\0\0\0"])
def test_a_torn_last_line_loses_nothing_else_and_goes_with_the_next_write(tmp_path, torn):
    path = tmp_path / "runs.jsonl"
    put_record(path, record("a"))
    with path.open("ab") as file:
        file.write(torn)
    with pytest.warns(RuntimeWarning, match="incomplete last line"):
        assert read_records(path) == [record("a")]
    with pytest.warns(RuntimeWarning, match="incomplete last line"):
        put_record(path, record("b"))
    assert read_records(path) == [record("a"), record("b")]


@pytest.mark.parametrize("content", ['{}\n{"a": \n{}\n', "{}\n3\n{}\n", "{}\n<<<<<<< HEAD\n"])
def test_a_corrupt_line_is_named_and_never_overwritten(tmp_path, content):
    path = tmp_path / "runs.jsonl"
    path.write_text(content)
    for act in (lambda: read_records(path), lambda: put_record(path, record("a"))):
        with pytest.raises(UserError, match=r"runs\.jsonl, line 2"):
            act()
    assert path.read_text() == content


def _put_many(path, writer):
    for seed in range(10):
        put_record(path, record(f"row{writer}", seed))
        put_record(path, record("shared", seed, writer=writer))


@pytest.mark.skipif(files.fcntl is None, reason="no fcntl here")
def test_several_processes_write_one_file(tmp_path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put_many, args=(path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    keys = [(r["row"], r["seed"]) for r in read_records(path)]
    rows = ("row0", "row1", "row2", "row3", "shared")
    assert sorted(keys) == sorted((row, seed) for row in rows for seed in range(10))
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]


def test_records_without_file_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    put_record(tmp_path / "runs.jsonl", record("a"))
    assert read_records(tmp_path / "runs.jsonl") == [record("a")]


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
    atomic_write(tmp_path / "results" / "runs.jsonl", "{}\n")
    atomic_write(tmp_path / "README.md", "tables\n")
    assert state() == (commit, False)
    atomic_write(tmp_path / "pkg" / "new.py", "")
    assert state() == (commit, True)
    assert state(".venv/lib/tracking.py") == (None, None)
    monkeypatch.setenv("PATH", "")
    assert state() == (None, None)
