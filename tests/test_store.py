"""Stages: whole or not at all, through kills, a second process, a full disk, damage and changed configs."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from aircraft_sae import store
from aircraft_sae.config import HangarConfig
from aircraft_sae.store import make_stage

Recorder = namedtuple("Recorder", "said made")

CHILD = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from aircraft_sae import store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def make(work):
    (work / "first").write_text("1")
    {body}
    (work / "second").write_text("2")

{before}
stage = store.make_stage(Path(sys.argv[1]), {{"a": 1}}, {{}}, make, say=lambda line: print(line, flush=True))
print("made" if stage.made else "loaded", flush=True)
"""


def child(folder, body="pass", before=""):
    code = CHILD.format(body=body, before=before)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def write_one(work):
    (work / "first").write_text("1")


@pytest.fixture
def recorder():
    """Makes the same two files as the child, and remembers what it was told and what it found."""
    said, made = [], []

    def make(work):
        made.append(sorted(path.name for path in work.iterdir() if store.PROGRESS not in path.name))
        (work / "first").write_text("1")
        (work / "second").write_text("2")

    return Recorder(said, made), make


def test_made_once_then_loaded_and_made_again_for_another_config_or_input(tmp_path, recorder):
    record, make = recorder
    first = make_stage(tmp_path / "s", HangarConfig(), {"x": "1"}, make, say=record.said.append)
    again = make_stage(tmp_path / "s", HangarConfig(), {"x": "1"}, make, say=record.said.append)
    assert (first.made, again.made, len(record.made)) == (True, False, 1)
    assert again.meta == first.meta and first.meta["config"]["size"] == 224
    assert first.meta["files"]["second"]["bytes"] == 1 and set(first.meta["files"]) == {"first", "second"}
    assert first.meta["peak_memory_bytes"] > 10e6
    make_stage(tmp_path / "s", HangarConfig(seed=1), {"x": "1"}, make, say=record.said.append)
    last = make_stage(tmp_path / "s", HangarConfig(seed=1), {"x": "2"}, make, say=record.said.append)
    assert len(record.made) == 3 and last.fingerprint != first.fingerprint
    assert "s: its config or what it is made from changed" in record.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]


def test_old_stage_stays_until_the_new_one_is_whole(tmp_path):
    make_stage(tmp_path / "s", 1, {}, write_one, say=lambda _: None)

    def fail(work):
        assert (tmp_path / "s" / "first").read_text() == "1"
        raise KeyError("no")

    with pytest.raises(KeyError):
        make_stage(tmp_path / "s", 2, {}, fail, say=lambda _: None)
    assert not make_stage(tmp_path / "s", 1, {}, fail).made


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_text("longer"), lambda path: path.unlink(), lambda path: path.write_text("x")],
    ids=["longer", "missing", "other"],
)
def test_damaged_artifact_is_made_again_with_a_line(tmp_path, recorder, damage):
    record, make = recorder
    make_stage(tmp_path / "s", 1, {}, make, say=record.said.append)
    damage(tmp_path / "s" / "second")
    assert make_stage(tmp_path / "s", 1, {}, make, say=record.said.append).made
    assert "second is damaged" in " ".join(record.said)
    assert (tmp_path / "s" / "second").read_text() == "2"


@pytest.mark.parametrize("text", ["", "[]", '{"files"', '{"fingerprint": "0"}'])
def test_damaged_meta_is_made_again(tmp_path, recorder, text):
    record, make = recorder
    make_stage(tmp_path / "s", 1, {}, make, say=record.said.append)
    (tmp_path / "s" / store.META).write_text(text)
    assert make_stage(tmp_path / "s", 1, {}, make, say=record.said.append).made


def test_kill_in_the_middle_is_resumed_with_its_seconds(tmp_path, recorder):
    record, make = recorder
    killed = child(tmp_path / "s", "time.sleep(1); die()", "store.HEARTBEAT = 0.1")
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "s").exists()
    (tmp_path / "s.partial" / ".first.99.tmp").write_text("of a killed atomic write")
    stage = make_stage(tmp_path / "s", {"a": 1}, {}, make, say=record.said.append)
    assert record.made == [[".first.99.tmp", "first"]] and "s: resuming" in record.said
    assert 0.5 < stage.meta["seconds"] < 60 and set(stage.meta["files"]) == {"first", "second"}


def test_half_made_work_of_another_config_is_not_resumed(tmp_path, recorder):
    record, make = recorder
    child(tmp_path / "s", "die()").wait()
    make_stage(tmp_path / "s", {"a": 2}, {}, make, say=record.said.append)
    assert record.made == [[]]


@pytest.mark.parametrize("n_replaced", range(4))
def test_kill_at_any_rename_leaves_a_whole_stage_to_load(tmp_path, recorder, n_replaced):
    """The renames are: meta.json in place, the old stage aside, the new one in its place; the last kill is after it."""
    record, make = recorder
    make_stage(tmp_path / "s", {"a": 0}, {}, write_one, say=lambda _: None)
    before = f"""
real, names = os.replace, []
def replace(source, target):
    if not str(source).endswith(".tmp") or ".meta.json" in str(source):
        names.append(source)
        len(names) > {n_replaced} and die()
    real(source, target)
    len(names) == 3 and die()
os.replace = replace
"""
    assert child(tmp_path / "s", before=before).wait() == -signal.SIGKILL
    stage = make_stage(tmp_path / "s", {"a": 1}, {}, make, say=record.said.append)
    assert stage.made == (n_replaced == 0) and (stage.folder / "second").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]
    assert store.META in os.listdir(stage.folder) and store.PROGRESS not in os.listdir(stage.folder)


def test_second_process_says_so_and_waits_then_loads(tmp_path):
    body = f"while not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.05)"
    first = child(tmp_path / "s", body)
    assert first.stdout.readline() == "s: making\n"
    limit = threading.Timer(20, (tmp_path / "go").touch)
    limit.start()  # or a process that never speaks would block the test
    second = child(tmp_path / "s", "raise SystemExit('made twice')")
    assert second.stdout.readline() == f"s: waiting for process {first.pid}\n" and first.poll() is None
    (tmp_path / "go").touch()
    limit.cancel()
    assert second.communicate()[0].splitlines() == ["loaded"]
    assert first.communicate()[0].splitlines()[-1] == "made"


def test_workers_that_outlive_a_killed_process_do_not_hold_its_lock(tmp_path, recorder):
    record, make = recorder
    pid = tmp_path / "pid"
    fork = f"""worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,)); worker.start()
    Path({str(pid)!r}).write_text(str(worker.pid)); die()"""
    child(tmp_path / "s", fork).wait()
    began = time.monotonic()
    try:
        make_stage(tmp_path / "s", {"a": 1}, {}, make, say=record.said.append)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert time.monotonic() - began < 10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_named_and_the_work_kept(tmp_path):
    def fill(work):
        (work / "first").write_text("1")
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(OSError, match=r"disk full while making .*AIRCRAFT_SAE_DATA_DIR") as caught:
        make_stage(tmp_path / "s", 1, {}, fill, say=lambda _: None)
    assert caught.value.errno == errno.ENOSPC and (tmp_path / "s.partial" / "first").exists()


def test_full_quota_is_named_too(tmp_path):
    def fail(work):
        raise OSError(errno.EDQUOT, "quota")

    with pytest.raises(OSError, match="disk full"):
        make_stage(tmp_path / "s", 1, {}, fail, say=lambda _: None)


def test_full_disk_is_recognised_through_a_library_s_own_error(tmp_path, monkeypatch):
    def fail(work):
        raise RuntimeError("writing failed")

    with pytest.raises(RuntimeError):
        make_stage(tmp_path / "s", 1, {}, fail, say=lambda _: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(0))
    with pytest.raises(OSError, match="disk full"):
        make_stage(tmp_path / "s", 1, {}, fail, say=lambda _: None)


def test_fingerprint_depends_on_values_only():
    assert store.fingerprint({"a": 1, "b": (1, 2)}) == store.fingerprint({"b": [1, 2], "a": 1})
    assert store.fingerprint(HangarConfig()) != store.fingerprint(HangarConfig(seed=1))
    assert store.fingerprint(1, 2) != store.fingerprint([1, 2])
    with pytest.raises(ValueError, match="plain JSON"):
        store.fingerprint(np.zeros(2))
    with pytest.raises(ValueError):
        store.fingerprint(float("nan"))


def test_folder_digest_depends_on_names_and_content_not_on_the_place(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "f" / "deep").mkdir(parents=True)
        (tmp_path / name / "f" / "deep" / "x").write_text("1")
    digest = store.folder_digest([tmp_path / "a" / "f"])
    assert digest == store.folder_digest([tmp_path / "b" / "f"])
    (tmp_path / "b" / "f" / "deep" / "x").write_text("2")
    assert digest != store.folder_digest([tmp_path / "b" / "f"])
    (tmp_path / "a" / "f" / "deep" / "x").rename(tmp_path / "a" / "f" / "y")
    assert digest != store.folder_digest([tmp_path / "a" / "f"])
    with pytest.raises(FileNotFoundError):
        store.folder_digest([tmp_path / "none"])


def test_atomic_writes_keep_the_old_file_when_they_fail(tmp_path, monkeypatch):
    path = tmp_path / "new" / "table.parquet"
    store.write_parquet(pd.DataFrame({"a": [1, 2]}), path)
    with pytest.raises(Exception, match=r"(?i)object"):
        store.write_parquet(pd.DataFrame({"a": [object()]}), path)
    assert pd.read_parquet(path)["a"].tolist() == [1, 2]
    with pytest.raises(ValueError):
        store.write_json(path.with_name("x.json"), {"a": float("nan")})
    monkeypatch.setattr(os, "replace", lambda *_: {}["fails"])
    with pytest.raises(KeyError):
        store.write_text(path, "new")
    assert os.listdir(path.parent) == ["table.parquet"] and pd.read_parquet(path)["a"].tolist() == [1, 2]


def test_data_dir_comes_from_the_environment_or_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(tmp_path))
    assert store.default_data_dir() == tmp_path
    monkeypatch.delenv("AIRCRAFT_SAE_DATA_DIR")
    data = store.default_data_dir()
    assert data.name == "data" and (data.parent / "pyproject.toml").is_file()
