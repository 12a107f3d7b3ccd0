"""Every stage of the smoke preset through kills, a second process, damage and changed configs.

`benchmarks/faults.py` does the work. KILLS=30 kills each stage 30 times.
"""

import errno
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from benchmarks import faults

from aircraft_sae import store
from aircraft_sae.view.browser import Labels

KILLS = int(os.environ.get("KILLS", 3))
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return faults.Unbroken(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("stage", faults.STAGES)
def test_a_killed_stage_ends_like_an_unbroken_one(unbroken, stage):
    rng, kills = random.Random(stage), []
    while sum(kill["killed"] for kill in kills) < KILLS:
        trial = faults.kill_trial(unbroken, stage, 3, rng)
        assert not trial["wrong"], trial
        kills += trial["kills"]
        assert len(kills) < 7 * KILLS, f"too few kills hit: {kills}"


def test_no_announced_label_is_lost(tmp_path):
    killed = []
    for seed in range(3):
        folder, rng = tmp_path / str(seed), random.Random(seed)
        other = Labels(folder / "runs" / "smoke", "another")
        other.set(3, label="kept")
        trap = rng.choice(["event", "rename"]), rng.randrange(30)
        child = faults.alone(faults.write_labels, folder, target="labels", trap=trap)
        n = sum(line.startswith("set ") for line in child.said)
        announced, found = {i % 20: f"word {i}" for i in range(n)}, Labels(folder / "runs" / "smoke", "own").all()
        found = {feature: row["label"] for feature, row in found.items()}
        assert found in (announced, announced | {n % 20: f"word {n}"}), "the next one may be on disk too"
        assert other.all() == {3: {"label": "kept", "note": "", "rating": 0}}
        killed.append(child.killed)
    assert any(killed)


@pytest.mark.parametrize(
    ("stage", "how"), [("networks/trained", "flip"), ("features/main", "flip"), ("sae/main", "cut")]
)
def test_damage_is_reported_and_only_that_stage_made_again(unbroken, stage, how):
    runs, rng = unbroken.copy(), random.Random(stage)
    others = [other for other in faults.STAGES if other != stage]
    before = faults.exact(runs, others)
    names = (path.name for path in (runs / stage).iterdir() if path.is_file() and path.name != store.META)
    name = rng.choice(sorted(names))
    faults.damage(runs / stage / name, rng, how)
    child = faults.alone(faults.run_stages, runs.parents[1])
    assert not child.error and child.made == [stage], child
    assert any(line.startswith(f"{stage}: {name} is damaged") for line in child.said)
    assert not unbroken.differing(runs) and not faults.touched(runs, others, before)


def test_a_flipped_bit_in_meta_json_is_found(tmp_path):
    def make(work):
        (work / "file").write_text("content")

    def stage():
        return store.make_stage(tmp_path / "s", {"a": [1]}, {"of": "1"}, make)

    meta, rng = stage().folder / store.META, random.Random(0)
    for _ in range(60):
        right = meta.read_bytes()
        faults.damage(meta, rng)
        wrong = meta.read_bytes()
        assert stage().made or b'"checksum"' not in wrong, wrong  # harmless in the word itself
        if meta.read_bytes() == wrong:
            meta.write_bytes(right)


@pytest.mark.parametrize("stage", ["networks/trained", "sae/main"])
def test_a_damaged_checkpoint_is_not_resumed(unbroken, stage):
    runs = unbroken.copy(stage)
    late = unbroken.counts[stage]["rename"] - 8
    assert unbroken.run(runs.parents[1], stage, trap=("rename", late)).killed
    (checkpoint,) = runs.glob(f"{stage}.partial/checkpoint.pt")
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 64  # among the weights
    checkpoint.write_bytes(data)
    unbroken.run(runs.parents[1], stage)
    assert not unbroken.differing(runs, [stage])


def test_workers_end_with_a_killed_parent(unbroken):
    runs = unbroken.copy("dataset")
    child = faults.start(faults.run_stages, runs.parents[1], faults.STAGES[:1])
    while not list(runs.rglob("*.jpg")):
        assert child[1].is_alive()
        time.sleep(0.05)
    os.kill(child[1].pid, signal.SIGKILL)
    ended = faults.finish(*child)
    assert ended.killed and not ended.outlived


def test_two_processes_make_each_stage_once_even_if_one_is_killed(unbroken):
    stage = "activations/trained"
    runs, trap = unbroken.copy(stage), ("event", unbroken.counts[stage]["event"] // 2)
    one = faults.start(faults.run_stages, runs.parents[1], target=stage, trap=trap, hurried=True)
    while one[1].is_alive() and not (runs / f"{stage}.partial").exists():
        time.sleep(0.01)  # else the other might start first
    other = faults.start(faults.run_stages, runs.parents[1], target=stage)
    one, other = faults.finish(*one), faults.finish(*other)
    assert one.killed and not other.killed and not other.error
    assert one.made + other.made == list(faults.STAGES[faults.STAGES.index(stage) :])
    assert not unbroken.differing(runs)


def test_a_changed_config_makes_again_only_what_depends_on_it(unbroken):
    runs, again = unbroken.copy(), ["sae/main", "features/main"]
    kept = [stage for stage in faults.STAGES if stage not in again]
    before = faults.exact(runs, kept)
    child = faults.alone(faults.run_stages, runs.parents[1], faults.STAGES, (("sae.k", 3),))
    assert not child.error and child.made == again and not faults.touched(runs, kept, before)


def test_a_full_disk_is_recognised_before_the_failed_file_is_removed(tmp_path, monkeypatch):
    """torch.save only says that writing failed, and removing its file makes room again."""

    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("file write failed")

    free = lambda folder: SimpleNamespace(free=0 if list(folder.glob(".*.tmp")) else 10**9)  # noqa: E731
    monkeypatch.setattr(store.files.shutil, "disk_usage", free)
    with pytest.raises(OSError, match="disk full while writing") as caught:
        store.write_whole(tmp_path / "checkpoint.pt", fail)
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
