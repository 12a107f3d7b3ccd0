"""Any number of ranks make what one process makes, even if some are killed; the command that makes one stage."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from benchmarks import faults, ranks

from aircraft_sae import store
from aircraft_sae.__main__ import main
from aircraft_sae.activations import Activations, Source
from aircraft_sae.config import ClassifierConfig, change
from aircraft_sae.networks import build, training
from aircraft_sae.study import Study

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
KILLS = int(os.environ.get("KILLS", 10))
LIVE = {"keep_activations": False}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return faults.Unbroken(tmp_path_factory.mktemp("ranks"))


def crew(work, n, *arguments):
    """What each of n ranks returned."""
    port = ranks.free_port()
    ends = [faults.finish(*one) for one in [faults.start(work, i, n, port, *arguments) for i in range(n)]]
    assert not [end.error for end in ends if end.error]
    return [end.result for end in ends]


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("stage", ["dataset", *ranks.STAGES, "experiments/edit-remove"])
def test_ranks_make_what_one_process_makes(unbroken, stage, n):
    runs = unbroken.copy(stage)
    assert not any(each.error or each.result for each in ranks.Crew(n, runs.parents[1], stage).end())
    assert not ranks.different(runs, unbroken, stage)


@pytest.mark.parametrize("stage", ranks.STAGES)
def test_nothing_is_lost_when_ranks_are_killed(unbroken, stage):
    rng, kills = random.Random(stage), []
    while sum(kill["killed"] for kill in kills) < KILLS:
        trial = ranks.kill_trial(unbroken, stage, 5, rng)
        assert not trial["wrong"], trial
        kills += trial["kills"]
        assert len(kills) < 6 * KILLS, f"too few kills hit: {kills}"
    assert sum(kill["hung"] for kill in kills) <= 1, kills


def gradients(number, n, port, data_dir):
    """In a child: gradients of a classifier over an epoch and of autoencoders over six steps, and their metrics."""
    from aircraft_sae.networks.training import Run
    from aircraft_sae.sae import training

    study = Study.open("smoke", data_dir=data_dir)
    pictures, acts = study.pictures(), study.activations()
    ranks.join(number, n, port)
    torch.set_num_threads(1)
    run = Run(change(study.config.classifier, mixed_precision=False), pictures, Path(data_dir))
    found, sizes = [], []
    run.optimizer.step = lambda: found.append(torch.cat([weight.grad.flatten() for weight in run.learned]))
    for x, labels, _ in run.batches(64):
        run.train_step(x, labels)
        sizes.append(len(labels))
    found.append(torch.tensor([run.sums["loss"], run.sums["hits"]]))
    training.BLOCK, rows = 8, []  # less than a batch
    for changes in ({}, {"variant": "topk"}, {"tied": True}, {"frozen_decoder": True}, {"batch_size": 10}):
        cfg = change(study.config.sae, dead_after=100, mixed_precision=False, **changes)
        sae = training.Run(Path(data_dir), cfg, acts, acts.rows("train"))

        def note(sae=sae, step=sae.optimizer.step):
            found.append(torch.cat([p.grad.flatten() for p in sae.sae.parameters() if p.grad is not None]))
            step()

        sae.optimizer.step = note
        batches = acts.batches(acts.rows("train"), cfg.batch_size, 0)
        rows += [list(sae.train_step(next(batches)).values()) for _ in range(6)]
    return [each.numpy() for each in found], rows, sizes


def test_batch_norms_are_shared_between_gpus_alone(monkeypatch):
    """timm's norms include an activation, which a plain SyncBatchNorm would lose."""
    x = torch.rand(2, 3, 64, 64)
    model = build(ClassifierConfig(arch="test_efficientnet", weights=None, sizes=(64,), epochs=(1,)), 4).eval()
    with pytest.raises(ValueError, match="has BatchNorm, whose batch statistics PyTorch shares only between GPUs"):
        training.share_norms(model)
    expected = model(x)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shared = training.share_norms(model).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in shared.modules())
    torch.testing.assert_close(shared(x), expected)


@pytest.fixture(scope="module")
def whole(unbroken):
    return crew(gradients, 1, str(unbroken.data_dir))[0]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_ranks_gradients_add_up_to_those_of_the_batch(unbroken, whole, n):
    """Also for dead features, and in a last batch with fewer pictures than ranks."""
    of_ranks = crew(gradients, n, str(unbroken.data_dir))
    sizes = np.sum([each[2] for each in of_ranks], axis=0)
    assert (sizes == np.maximum(whole[2], n)).all(), "an idle rank gets a picture that does not count"
    for found, rows, _ in of_ranks:
        for own, all_of_it in zip(found, whole[0], strict=True):
            assert np.linalg.norm(own - all_of_it) <= 2e-4 * np.linalg.norm(all_of_it)
        np.testing.assert_allclose(rows, whole[1], rtol=1e-4, atol=1e-6)
    assert whole[1][5][-1] > 0, "no feature was dead"


def write_ranks(work):
    """A make that notes which rank runs it, of how many."""
    from aircraft_sae import ranks as own

    (work / f"{os.environ['RANK']} of {own.n_ranks()}").write_text("")


def write_ranks_together(work):
    """The same, to be marked `on_all_ranks`."""
    write_ranks(work)


def gathered(number, n, port, folder):
    """In a child: the results of every function, from a different number of rows on each rank."""
    from aircraft_sae import ranks as own

    alone = own.gather(torch.ones(3)), own.share(7), own.label()
    ranks.join(number, n, port)
    rows = torch.full((number, 2), number, dtype=torch.float16)
    with own.alone():
        assert own.rank() == 0 and own.n_ranks() == 1 and torch.equal(own.gather(rows), rows)
    own.add(total := torch.tensor([1.0, number]))
    told, mine = own.broadcast(7 + number), own.missing_share([number != 0, True, True, False, True, True])
    for name, make in (("alone", write_ranks), ("together", own.on_all_ranks(write_ranks_together))):
        store.make_stage(Path(folder) / name, {}, {}, make, lambda line: None)
    return alone[1:], own.gather(rows).tolist(), own.share(10, 4), total.tolist(), told, mine, own.label()[:15]


def test_ranks_share_sum_gather_and_broadcast(tmp_path):
    found = crew(gathered, 3, str(tmp_path))
    made = {
        path.name: sorted(file.name for file in path.glob("* of *")) for path in tmp_path.iterdir() if path.is_dir()
    }
    assert made == {"alone": ["0 of 1"], "together": ["0 of 3", "1 of 3", "2 of 3"]}
    assert all(each[0] == (slice(0, 7), "") for each in found)
    assert all(each[1] == [[1, 1], [2, 2], [2, 2]] and each[3] == [3, 3] and each[4] == 7 for each in found)
    assert [each[2] for each in found] == [slice(0, 0), slice(0, 4), slice(4, 10)]
    assert [each[5] for each in found] == [[1], [2], [4, 5]], "the first rank decides what is missing"
    assert [each[6] for each in found] == [f"rank {i} of 3 on " for i in range(3)]


def command(runs, *words, n=2):
    """The command, under torchrun if n > 1, in an environment like a user's."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n)] if n > 1 else []
    known = {"AIRCRAFT_SAE_DATA_DIR": str(runs.parents[1]), "AIRCRAFT_SAE_PRESET": "smoke"}
    process = [sys.executable, *launcher, "-m", "aircraft_sae", "make", *words]
    return subprocess.Popen(process, env=os.environ | known, stdout=-1, stderr=-1, text=True)


def test_torchrun_makes_a_stage_that_one_process_then_finds(unbroken):
    runs = unbroken.copy("sae/main")
    out, said = (made := command(runs, "sae")).communicate(timeout=200)
    assert made.returncode == 0 and out.splitlines()[-1] == str(runs / "sae" / "main"), said
    assert "rank 0 of 2" in said and said.count("sae/main: made in") == 1
    assert not ranks.different(runs, unbroken, "sae/main")
    out, said = (found := command(runs, "sae", n=1)).communicate(timeout=200)
    assert found.returncode == 0 and "making" not in said


def test_a_killed_rank_ends_all_with_one_error(unbroken):
    runs = unbroken.copy("sae/main")
    made = command(runs, "sae", "--set", "sae.n_cells=10000000")
    until = time.monotonic() + 120
    while not (runs / "sae" / "main.partial" / "checkpoint.pt").exists():
        assert time.monotonic() < until and made.poll() is None
        time.sleep(0.2)
    (victim,) = [p for p in psutil.Process(made.pid).children() if p.environ().get("RANK") == "1"]
    victim.send_signal(signal.SIGKILL)
    said = made.communicate(timeout=100)[1]
    assert made.returncode != 0 and "Signal 9 (SIGKILL)" in said
    assert "rank      : 1" in said and "Traceback" not in said.split("torch/distributed")[0]
    assert not (runs / "sae" / "main").exists() and (runs / "sae" / "main.partial" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "make takes one of dataset, network, activations, sae, features at a time, got none"),
        (("sae", "features"), "got sae features"),
        (("sae", "--set", "sae.k=many"), "k must be a valid integer, got 'many'"),
        (("sae", "--set", "sae.k"), "--set takes FIELD=VALUE, got 'sae.k'"),
        (("sae", "--again"), "are for run, not for make"),
        (("network", "--site", "stage3"), "--site is for activations, sae and features, not for network"),
    ],
)
def test_wrong_arguments_of_make_are_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="2"):
        main(["make", *words, "--preset", "smoke"])
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_stage_is_made_at_another_site_and_an_unknown_site_refused(unbroken, capsys, monkeypatch):
    runs = unbroken.copy("features/main")
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(runs.parents[1]))
    words = "--set", " sae.k = 2 ", "--set", "local.tied=False"
    assert main(["make", "sae", "--preset", "smoke", "--site", "stage2", *words]) == 0
    assert (runs / "sae" / "stage2" / "cfg.json").is_file() and not (runs / "sae" / "local").exists()
    assert main(["make", "activations", "--preset", "smoke", "--site", "stage9"]) == 1
    assert "no site 'stage9'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--preset", "smoke", "--set", "sae.k=2"])


def test_activations_that_are_not_stored_equal_stored_ones(unbroken):
    config = Study.open("smoke").config
    kept = Study.open(config, data_dir=unbroken.data_dir)
    live = Study(change(config, **LIVE), unbroken.data_dir)
    stored, seen = kept.activations("stage3"), live.activations("stage3")
    n = len(stored.images)
    rows = np.array([5, 2, 2, n - 1, n - 3])
    assert n > len(kept.pictures().table), "views are included"
    np.testing.assert_allclose(np.float32(seen.acts[rows]), np.float32(stored.acts[rows]), atol=0.02)
    assert seen.acts.shape == stored.acts.shape and seen.acts[3].shape == stored.acts[3].shape
    assert "activations/trained" not in live.stages and seen.fingerprint != stored.fingerprint
    assert live.activations("stage3").fingerprint == seen.fingerprint
    some = Activations.live(Source(live.network(), live.pictures(), n_cells=3), "stage3")
    assert np.array_equal(some.acts[[5, 9]][1], some.acts[9]), "the draw of cells depends on the picture alone"


def test_views_do_not_depend_on_other_threads(unbroken):
    live = Study(change(Study.open("smoke").config, **LIVE), unbroken.data_dir).activations("stage3")
    alone = live.acts[live.rows("views")]
    with ThreadPoolExecutor(3) as pool:
        for again in pool.map(lambda _: live.acts[live.rows("views")], range(6)):
            np.testing.assert_array_equal(again, alone)


def test_an_autoencoder_trains_without_stored_activations(unbroken, tmp_path):
    """Without views it sees the same cells in the same order as from the disk."""
    runs = unbroken.copy("activations/trained", tmp_path)
    config = change(Study.open("smoke").config, n_views=0)
    kept, live = Study(config, tmp_path), Study(change(config, keep_activations=False), tmp_path)
    saes = [study.sae(name) for study, name in ((kept, "kept"), (live, "live"))]
    assert not (runs / "sae" / "live.partial").exists()
    acts = torch.from_numpy(kept.activations().acts[:]).float().flatten(0, 2)
    errors = [float((sae.reconstruct(acts)[0] - acts).square().sum()) for sae in saes]
    assert errors[0] == pytest.approx(errors[1], abs=0.01 * float((acts - acts.mean(0)).square().sum()))
