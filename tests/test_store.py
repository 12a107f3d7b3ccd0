"""Stages through kills, a second process, a full disk, damage and changed configs; digests; atomic writes."""

import ast
import copy
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from aircraft_sae import store
from aircraft_sae.config import HangarConfig
from aircraft_sae.store import make_stage

CHILD = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from aircraft_sae import store
from aircraft_sae.store import stages

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def make(work):
    (work / "first").write_text("1")
    {body}
    (work / "second").write_text("2")

{before}
stages.say = lambda line: print(line, flush=True)
stage = store.make_stage(Path(sys.argv[1]), {{"a": 1}}, {{}}, make)
print("made" if stage.made else "loaded", flush=True)
"""


def child(folder, body="pass", before=""):
    code = CHILD.format(body=body, before=before)
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)


def write_one(work):
    (work / "first").write_text("1")


class Recorder:
    """Makes the same two files as the child; remembers what was said and what it found."""

    def __init__(self, folder):
        self.folder, self.said, self.found = folder / "s", [], []

    def make(self, work):
        self.found.append(sorted(path.name for path in work.iterdir() if store.PROGRESS not in path.name))
        (work / "first").write_text("1")
        (work / "second").write_text("2")

    def stage(self, config=1, inputs=()):
        return make_stage(self.folder, config, dict(inputs), self.make)


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    made = Recorder(tmp_path)
    monkeypatch.setattr(store.stages, "say", made.said.append)
    return made


def make_first(folder, config=1, make=write_one):
    return make_stage(folder, config, {}, make)


def test_a_stage_is_made_once_and_again_for_another_config_or_input(tmp_path, recorder, monkeypatch):
    first = recorder.stage(HangarConfig(), {"x": "1"})
    again = recorder.stage(HangarConfig(), {"x": "1"})
    assert (first.made, again.made, len(recorder.found)) == (True, False, 1)
    assert again.meta == first.meta and first.meta["config"]["size"] == 224
    assert first.meta["files"]["second"]["bytes"] == 1 and set(first.meta["files"]) == {"first", "second"}
    assert first.meta["peak_memory_bytes"] > 10e6
    recorder.stage(HangarConfig(seed=1), {"x": "1"})
    last = recorder.stage(HangarConfig(seed=1), {"x": "2"})
    assert len(recorder.found) == 3 and last.meta["fingerprint"] != first.meta["fingerprint"]
    assert "s: its config or its inputs have changed" in recorder.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]
    monkeypatch.setattr(store.stages, "FileLock", None)  # loading writes nothing, as from a folder that is read-only
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    assert not recorder.stage(HangarConfig(seed=1), {"x": "2"}).made
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before


def test_the_old_stage_stays_until_the_new_one_is_complete(tmp_path):
    make_first(tmp_path / "s")

    def fail(work):
        assert (tmp_path / "s" / "first").read_text() == "1"
        raise KeyError("no")

    with pytest.raises(KeyError):
        make_first(tmp_path / "s", 2, fail)
    assert not make_first(tmp_path / "s", 1, fail).made


@pytest.mark.parametrize("content", ["longer", "x", None, "", "[]", '{"files"', '{"fingerprint": "0"}'])
@pytest.mark.parametrize("name", ["second", store.META])
def test_a_damaged_file_makes_the_stage_again(tmp_path, recorder, name, content):
    recorder.stage(1)
    (tmp_path / "s" / name).unlink() if content is None else (tmp_path / "s" / name).write_text(content)
    assert recorder.stage(1).made
    assert f"{name} is damaged" in " ".join(recorder.said) or (content is None and name == store.META)
    assert (tmp_path / "s" / "second").read_text() == "2"


def test_a_killed_make_is_resumed_and_its_seconds_count_but_not_for_another_config(tmp_path, recorder):
    killed = child(tmp_path / "s", "time.sleep(1); die()", "stages.HEARTBEAT = 0.1")
    assert killed.wait() == -signal.SIGKILL and not (tmp_path / "s").exists()
    (tmp_path / "s.partial" / ".first.99.tmp").write_text("from a killed atomic write")
    stage = recorder.stage({"a": 1})
    assert recorder.found == [[".first.99.tmp", "first"]] and "s: resuming" in recorder.said
    assert 0.5 < stage.meta["seconds"] < 60 and set(stage.meta["files"]) == {"first", "second"}
    shutil.rmtree(tmp_path / "s")
    child(tmp_path / "s", "die()").wait()
    recorder.stage({"a": 2})
    assert recorder.found[1] == []


@pytest.mark.parametrize("n_replaced", range(4))
def test_a_kill_at_any_rename_leaves_a_complete_stage(tmp_path, recorder, n_replaced):
    """Renamed are meta.json, the old stage and the new one; the last kill comes after all three."""
    make_first(tmp_path / "s", {"a": 0})
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
    stage = recorder.stage({"a": 1})
    assert stage.made == (n_replaced == 0) and (stage.folder / "second").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]
    assert store.META in os.listdir(stage.folder) and store.PROGRESS not in os.listdir(stage.folder)


def test_a_second_process_waits_then_loads(tmp_path):
    waits = f"not Path({str(tmp_path / 'go')!r}).exists() and time.time() < {time.time() + 20}"
    first = child(tmp_path / "s", f"while {waits}: time.sleep(0.05)")
    assert first.stdout.readline() == "s: making\n"
    second = child(tmp_path / "s", "raise SystemExit('made twice')")
    assert second.stdout.readline() == "s: waiting for another process that is making it\n" and first.poll() is None
    (tmp_path / "go").touch()
    assert second.communicate()[0].splitlines() == ["loaded"]
    assert first.communicate()[0].splitlines()[-1] == "made"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "quota"), RuntimeError("?")])
def test_a_full_disk_is_named_whatever_error_a_library_raises(tmp_path, monkeypatch, error):
    def fail(work):
        (work / "first").write_text("1")
        raise error

    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError):
            make_first(tmp_path / "s", 1, fail)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"disk full while making .*AIRCRAFT_SAE_DATA_DIR") as caught:
        make_first(tmp_path / "s", 1, fail)
    assert caught.value.errno == errno.ENOSPC and (tmp_path / "s.partial" / "first").exists()


@dataclass
class Settings:
    k: int = 1
    inner: object = None


TABLE = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [0.5, float("nan")]})
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
CATEGORIES = pd.DataFrame({"a": pd.Categorical(["x", "y"], ["x", "y"])})
DIFFERENT = {
    "same bytes, other dtype": (ARRAY, ARRAY.view(np.int32)),
    "shape": (ARRAY, ARRAY.reshape(3, 2)),
    "objects": (np.array(["a", None]), np.array(["b", None])),
    "texts": (np.array(["a", "b"]), np.array(["a", "c"])),
    "records": (np.zeros(2, [("a", "f4")]), np.zeros(2, [("b", "f4")])),
    "empty": (np.zeros((0, 3)), np.zeros((3, 0))),
    "tensor": (torch.arange(3), torch.arange(3) + 1),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.float16)),
    "columns in another order": (TABLE, TABLE[["b", "a", "c"]]),
    "columns' dtypes": (TABLE, TABLE.astype({"a": np.int32})),
    "a cell": (TABLE, TABLE.assign(b=["x", "y"])),
    "index": (TABLE, TABLE.set_axis([1, 2])),
    "index's name": (TABLE, TABLE.rename_axis("row")),
    "categories": (CATEGORIES, CATEGORIES.assign(a=CATEGORIES["a"].cat.reorder_categories(["y", "x"]))),
    "missing text": (TABLE, TABLE.fillna({"b": "None"})),
    "objects in a column": (TABLE.astype({"a": object}), TABLE.assign(a=["1", "2"]).astype({"a": object})),
    "objects in the index": [TABLE.set_axis(pd.Index(index, dtype=object)) for index in ([1, "x"], ["1", "x"])],
    "series": (TABLE["a"], TABLE["a"] + 1),
    "fingerprint": [SimpleNamespace(fingerprint=known, anything=object()) for known in "12"],
    "nested": ({"a": [Settings(inner=ARRAY)]}, {"a": [Settings(inner=ARRAY + 1)]}),
    "field": (Settings(1), Settings(2)),
    "pydantic": (HangarConfig(), HangarConfig(seed=1)),
    "keys": ({1: "a"}, {"1": "a"}),
    "type": (1, True),
    "missing": (TABLE.astype({"a": "Int64"}), TABLE.assign(a=pd.array([1, None], "Int64"))),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_digests_differ_with_content(one, other):
    assert store.digest(one) == store.digest(copy.deepcopy(one)) != store.digest(other)


def test_equal_values_have_equal_digests():
    assert store.digest({"a": 1, "b": (1, 2)}) == store.digest({"b": [1, 2], "a": 1})
    assert store.digest([np.int64(3), np.bool_(True), np.float64(1), np.str_("a")]) == store.digest([3, True, 1.0, "a"])
    assert store.digest(ARRAY.T) == store.digest(np.ascontiguousarray(ARRAY.T))
    assert store.digest(torch.arange(6).reshape(2, 3).T) == store.digest(torch.arange(6).reshape(2, 3).T.contiguous())
    assert store.digest(torch.nn.Parameter(torch.ones(2))) == store.digest(torch.ones(2))
    assert store.digest(float("nan")) == store.digest(np.float64("nan"))
    # a new digest for old content would make every finished stage again
    mixed = {"a": [1, 2.5, "x", None], "b": ARRAY, "c": TABLE, "d": torch.ones(2), "e": Settings(inner=CATEGORIES)}
    assert store.digest(mixed) == "f2a64899d86e8c25"


def test_a_path_is_identified_by_content_and_a_stage_by_its_fingerprint(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_text("1")
    digest = store.digest(tmp_path / "a")
    assert digest == store.digest(tmp_path / "b")
    (tmp_path / "b" / "deep" / "x").write_text("2")
    assert digest != store.digest(tmp_path / "b") and digest != store.digest(tmp_path / "b" / "deep" / "x")
    (tmp_path / "a" / "deep" / "x").rename(tmp_path / "a" / "y")
    assert digest != store.digest(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        store.digest(tmp_path / "none")
    one, other = (make_first(tmp_path / name) for name in ("s", "t"))
    assert store.digest(one.folder) == store.digest(other.folder)


@pytest.mark.parametrize("value", [len, Settings, {1, 2}, np.ma.array([1]), pd.DataFrame({"a": [object()]})], ids=type)
def test_a_value_without_a_digest_is_named(value):
    with pytest.raises(ValueError, match=r".* has no digest: pass plain values, arrays"):
        store.digest({"scenes": [1, value]})


SOURCE = '''
import functools

N = 1  # how many
"""About something."""

def make(folder, n=N):
    """Make it."""
    (lambda: n)()
    return inner(n)

def inner(n):
    return n + 1

@functools.wraps(make)
def wrapped(folder):
    return lambda: 1

anonymous = lambda folder: 1
'''


def test_a_source_digest_ignores_comments_docstrings_layout_and_failures_to_parse(write_module, monkeypatch):
    digest = store.source_digest(write_module(SOURCE).make)
    for old, new in (
        ("# how many", "# so many"), ("Make it.", "Make this."), ("About something.", "About nothing."),
        ("n + 1", "(n  +  1)"), ("return inner", "\n    # now\n    return inner"),
    ):  # fmt: skip
        assert store.source_digest(write_module(SOURCE.replace(old, new)).make) == digest, new
    for old, new in (("n + 1", "n + 2"), ("N = 1", "N = 2"), ("n=N", "n=1")):
        assert store.source_digest(write_module(SOURCE.replace(old, new)).make) != digest, new
    loaded, parse, failures = write_module(SOURCE), ast.parse, iter([SystemError("recursion depth mismatch")] * 3)

    def failing(source, *more):
        if problem := next(failures, None):
            raise problem
        return parse(source, *more)

    store.files._without_words.cache_clear()
    monkeypatch.setattr(store.files.ast, "parse", failing)
    assert store.source_digest(loaded.wrapped) == digest and next(failures, None) is None


def test_a_source_digest_is_of_a_whole_room(tmp_path, monkeypatch):
    """All modules below the first two names, or one file where these name a module."""
    monkeypatch.syspath_prepend(tmp_path)
    room = tmp_path / "house_of_a_test" / "room"
    (room / "deeper").mkdir(parents=True)
    for file in (room / "a.py", room / "deeper" / "b.py", room.parent / "alone.py"):
        file.write_text(SOURCE)
    modules = [importlib.import_module(f"house_of_a_test.{name}") for name in ("room.a", "room.deeper.b", "alone")]

    def digests():
        return [store.source_digest(importlib.reload(module).make) for module in modules]

    store.source_digest(modules[0].make)
    (room / "deeper" / "b.py").write_text(f"{SOURCE}\nM = 0")
    with pytest.raises(ValueError, match="restart the kernel"):  # it was loaded when the first one was asked for
        store.source_digest(modules[1].make)
    (room / "deeper" / "b.py").write_text(SOURCE)
    before = digests()
    assert before[0] == before[1] != before[2]
    (room / "._a.py").write_bytes(b"hidden")
    assert digests() == before
    for file in (room / "deeper" / "new.py", room / "deeper" / "b.py", room / "a.py"):
        file.write_text(f"{SOURCE}\nM = {file.name!r}")
        after = digests()
        assert before[0] != after[0] == after[1] and after[2] == before[2]
        before = after
    (room.parent / "alone.py").write_text(f"{SOURCE}\nM = 1")
    assert digests()[:2] == before[:2] and digests()[2] != before[2]
    for name in [name for name in sys.modules if name.startswith("house_of_a_test")]:
        del sys.modules[name]


def test_functions_outside_a_module_and_modules_that_changed_after_loading_are_refused(write_module, tmp_path):
    make, path = write_module(SOURCE).make, tmp_path / "experiments_of_a_test.py"
    path.write_text("# a comment\n" + SOURCE)
    store.source_digest(make)
    path.write_text(SOURCE.replace("n + 1", "n + 2"))
    with pytest.raises(ValueError, match="was changed after it was loaded: restart the kernel"):
        store.source_digest(make)
    scope = {"__name__": "__main__"}
    exec("def of_a_notebook(folder): pass", scope)
    loaded = write_module(SOURCE)
    for function in (loaded.anonymous, partial(loaded.make), scope["of_a_notebook"], Settings, [].append, len, 3):
        with pytest.raises(ValueError, match="make must be a function of the package"):
            store.source_digest(function)


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


def test_the_data_folder_is_the_checkouts_unless_another_is_named(monkeypatch):
    monkeypatch.delenv("AIRCRAFT_SAE_DATA_DIR")
    data = store.data_folder()
    assert data.name == "data" and (data.parent / "pyproject.toml").is_file()


def test_what_a_stage_says_stays_out_of_the_notebooks_outputs(capsys):
    store.say("sae/main: making")
    assert capsys.readouterr() == ("", "sae/main: making\n")
