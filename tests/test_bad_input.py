"""Bad input at every door: the documented error names the value and the remedy; no work begins, no byte changes."""

import hashlib
import io
import pickle
import re
import shutil
import struct
import zlib
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_weights import Payload

from aircraft_sae import config
from aircraft_sae.activations import Activations
from aircraft_sae.features import FeatureIndex
from aircraft_sae.hangar.dataset import render_dataset
from aircraft_sae.networks import load, training
from aircraft_sae.pictures import FGVCLayout
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae import training as sae_training
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser import Bench, FeatureBrowser, Labels
from aircraft_sae.view.browser.catalogue import catalogue_of
from aircraft_sae.view.browser.widgets import Application

SMOKE = config.preset("smoke")
OUTSIDE = ("../../x", "/x", "a/b", "..", "a\0b", "a\nb", "main.partial", "main.old", "main.lock", "x" * 101)
"""Names that would leave a study's folder, or stand for another folder in it."""


@pytest.fixture(scope="session")
def finished(smoke_study, tmp_path_factory):
    """A copy of the smoke study with all its stages, which no other test writes into."""
    smoke_study.features()
    root = tmp_path_factory.mktemp("bad") / "a"  # two folders down, to see what climbs out of the study
    for name in ("dataset", "networks", "activations", "sae/main", "features/main"):
        shutil.copytree(smoke_study.folder / name, root / "data" / "runs" / "smoke" / name)
    study = Study.open("smoke", data_dir=root / "data")
    catalogue, acts = catalogue_of(study), study.activations()
    return SimpleNamespace(
        root=root.parent, state=digest(root.parent), study=study, data=study.pictures(), sae=study.sae(), acts=acts,
        rows=acts.rows("test"), index=study.features(), catalogue=catalogue, bench=Bench(catalogue),
    )  # fmt: skip


def digest(root):
    """Name and content of everything below."""
    paths = sorted(root.rglob("*"))
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "") for path in paths]


def long_work(*_, **__):
    raise AssertionError("long work began")


@pytest.fixture
def w(finished, tmp_path, monkeypatch):
    """The study and a folder for hostile files; checks after the test that nothing ran and nothing changed."""
    for where, name in (
        ("activations", "check_room"), ("features.regions", "build_index"),
        ("networks.training.Run", "train_step"), ("sae.training.Run", "train_step"),
        ("hangar.dataset", "worker_map"), ("pictures.folders.FGVCAircraft", "__init__"),
    ):  # fmt: skip
        monkeypatch.setattr(f"aircraft_sae.{where}.{name}", long_work)
    yield SimpleNamespace(**vars(finished), tmp=tmp_path, ran=tmp_path / "ran")
    before, finished.state = finished.state, digest(finished.root)
    assert finished.state == before
    assert not (tmp_path / "ran").exists()


def pictures(change):
    """Open a study on a copy of the pictures after `change(data folder)`; the copy must stay as it is."""

    def call(w):
        root, own = w.tmp / "pictures", config.change(SMOKE, name="mine", **{"dataset.source": "folder"})
        shutil.copytree(w.study.folder / "dataset", root)
        change(root / "fgvc-aircraft-2013b" / "data")
        before = digest(root)
        try:
            Study.open(own, data_dir=w.study.data_dir, data_root=root).pictures()
        finally:
            assert digest(root) == before

    return call


def edit(name, pattern, new):
    """Replace the first match of a pattern in the files of a name pattern."""

    def change(folder, w=None):
        for path in folder.glob(name):
            path.write_text(re.sub(pattern, new, path.read_text("utf-8"), count=1), "utf-8")

    return change


def first_picture(content):
    """Replace the first picture by these bytes."""
    return lambda folder: sorted((folder / "images").iterdir())[0].write_bytes(content)


def bomb(width, height):
    """A PNG of a few bytes that claims this size."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def weights(make):
    """Ask for a classifier that starts from the weights that `make(w)` writes."""

    def call(w):
        values = {"classifier.weights": str(make(w)), "classifier.layer_scale": None}
        Study.open(config.change(SMOKE, **values), data_dir=w.study.data_dir).network()

    return call


def written(name, content):
    """Write a file with these bytes, or with those of a function of w."""

    def make(w):
        path = w.tmp / name
        path.write_bytes(content(w) if callable(content) else content)
        return path

    return make


def pickled(w):
    return pickle.dumps(Payload(w.ran), protocol=2)


def saved(stage, load, change):
    """Load a copy of a stage's folder after `change(folder, w)`."""

    def call(w):
        folder = w.tmp / "copy"
        shutil.copytree(w.study.folder / stage, folder)
        change(folder, w)
        return load(folder)

    return call


def put(name, content):
    return lambda folder, w: (folder / name).write_bytes(content(w) if callable(content) else content)


def checkpoint(run):
    """Resume a run (made by `run(w)` in w.tmp) from a hostile checkpoint."""

    def call(w):
        torch.save({"identity": Payload(w.ran)}, w.tmp / "checkpoint.pt")
        run(w).resume()

    return call


def npy_of_objects(w):
    file = io.BytesIO()
    np.save(file, np.array([Payload(w.ran)], dtype=object), allow_pickle=True)
    return file.getvalue()


def case(name, call, *words, error=ValueError):
    return pytest.param(call, error, words, id=name)


def stage_4(folder):
    return Activations.open(folder, "stage4")


load_sae = SparseAutoencoder.load
REFUSED = [
    # a config
    *(case(f"preset {name!r}", lambda w, name=name: Study.open(name), re.escape(repr(name)), "choose one of smoke")
      for name in ("jet", "../../x", "smoke\0", 7, ["smoke"])),
    case("a part", lambda w: config.change(SMOKE, dataset={"source": "hangar"}), "StudyConfig lacks", "dataset.banner"),
    *(case(f"name {name!r}"[:50], lambda w, name=name: config.change(SMOKE, name=name), "a name has letters",
           re.escape(repr(name))) for name in OUTSIDE),
    case("data dir is a file", lambda w: Study.open("smoke", data_dir=written("f", b"")(w)), "/f is not a folder",
         "AIRCRAFT_SAE_DATA_DIR"),
    # a study's stages and results
    case("sae name", lambda w: w.study.sae("../../x", k=2), re.escape("'../../x'"), "a name has letters"),
    case("sae batch", lambda w: w.study.sae("x", batch_size=10**6), "batch_size 1000000", "lower sae.batch_size"),
    case("sae typo", lambda w: w.study.sae("mian"), "'mian'", "main, local or a site"),
    case("sae pictures", lambda w: w.study.sae("x", pictures="every0"), "'every0'", "pictures of your own"),
    case("sae network", lambda w: w.study.sae("x", network="other"), "'other'", "a network of your own"),
    case("index main", lambda w: w.study.features("main", sae=w.sae), '"main"', "name of its own"),
    case("index width", lambda w: w.study.features("x", sae=SparseAutoencoder(w.study.config.sae, 5)), "a width of 5",
         "make it from"),
    case("sae like", lambda w: w.study.sae("x", like="stage"), "'stage'", "one of main, local"),
    case("index name", lambda w: w.study.features("..", sae=w.sae), re.escape("'..'"), "a name has letters"),
    case("stage name", lambda w: w.study.stage("/x", render_dataset), "''", "a name has letters"),
    case("record name", lambda w: w.study.record("../../../x", {}), re.escape("'../../../x'"), "a name has letters"),
    *(case(f"record {wrong!r}", lambda w, wrong=wrong: w.study.record("01_x", {"acc": wrong}), "acc")
      for wrong in (float("nan"), "high", None, (1, 2), (1, 2, 3, float("inf")), {"value": 1})),
    # pictures
    case("image climbs", pictures(edit("images_*_train.txt", r"^\S+", "../x")), re.escape("../x"), "Correct"),
    case("scenes are text", pictures(lambda f: (f / "scenes.parquet").write_bytes(b"text")), "scenes.parquet cannot be",
         "remove it"),
    case("picture is text", pictures(first_picture(b"<html>no aircraft</html>")), "1 of 48", "identify", "Replace"),
    case("picture is a pickle", lambda w: pictures(first_picture(pickled(w)))(w), "1 of 48", "Replace"),
    case("picture too large", pictures(first_picture(bomb(60_000, 60_000))), "3600000000 pixels", "Replace"),
    case("mask is text", saved("dataset", lambda f: FGVCLayout.open(f).mask("odd"),
         put("fgvc-aircraft-2013b/data/masks/odd.png", b"text")), "odd.png cannot be read", "Replace it"),
    # a classifier
    case("weights name climbs", weights(lambda w: "../../x"), re.escape("../../x"), "name in data/weights",
         error=FileNotFoundError),
    *(case(f"weights pickled {suffix}", weights(written(f"odd{suffix}", pickled)), f"odd{suffix}", "could run code",
           "Save model.state_dict") for suffix in (".safetensors", ".pth")),
    case("load pickled weights", saved("networks/trained", load, put("model.safetensors", pickled)),
         "model.safetensors", "could run code"),
    case("load pickled predictions", saved("networks/trained", load, put("predictions.parquet", pickled)),
         "copy holds a damaged network", "Train"),
    case("checkpoint pickled", checkpoint(lambda w: training.Run(SMOKE.classifier, w.data, w.tmp, "none")),
         "checkpoint.pt", "remove it"),
    # an autoencoder and what it is trained on
    case("sae d_in huge", saved("sae/main", load_sae, edit("cfg.json", r'"d_in": \d+', '"d_in": 1000000000000')),
         "1000000000000", "bring cfg.json"),
    case("sae k text", saved("sae/main", load_sae, edit("cfg.json", r'"k": \d+,', '"k": "4",')), "'4'", "train one"),
    case("sae pickled weights", saved("sae/main", load_sae, put("sae_weights.safetensors", pickled)),
         "copy holds a", "train one"),
    case("sae checkpoint pickled", checkpoint(lambda w: sae_training.Run(w.tmp, SMOKE.sae, w.acts, w.rows)),
         "checkpoint.pt", "remove it"),
    case("acts pickled", saved("activations/trained", lambda f: stage_4(f).acts[:], put("stage4/acts-00000.npy",
         npy_of_objects)), "acts-00000.npy has the wrong size"),
    case("images pickled", saved("activations/trained", stage_4, put("stage4/images.parquet", pickled)), "[Pp]arquet"),
    # features
    case("index pickled", saved("features/main", FeatureIndex.open, put("by_cell_data.npy", npy_of_objects)),
         "objects"),
    *(case(f"feature {j}", lambda w, j=j: w.index.patches(j), f"feature {j} is not one of", r"0 \.\. 255")
      for j in (-1, 256, 1.5, True, "3")),
    case("suppress", lambda w: w.catalogue.trial.suppress([256]), "feature 256 is not one of", r"0 \.\. 255"),
    case("variants", lambda w: render_dataset(w.tmp, config.HangarConfig(n_variants=31)), "31", "there are 30"),
    # the browser
    case("browser feature", lambda w: FeatureBrowser(w.study, 256), "feature 256", r"0 \.\. 255"),
    case("catalogue class", lambda w: w.catalogue.feature(0, name="../../x"), re.escape("'../../x'"), "no variant of"),
    case("picture row", lambda w: w.bench.of_row(-1), "picture -1", "is not one of 0"),
    *(case(f"upload {i}", lambda w, content=content: w.bench.of_file(content, "x.jpg"), "x.jpg", "give a JPEG")
      for i, content in enumerate((b"my notes", b"", bomb(60_000, 60_000), bomb(8000, 8000)))),
    case("upload a pickle", lambda w: w.bench.of_file(pickled(w), "x.jpg"), "x.jpg", "give a JPEG"),
    *(case(f"label {text!r}", lambda w, text=text: Labels(w.study.folder, "x").set(0, label=text), "control character",
           re.escape(repr(text[1])), "take it out") for text in ("a\0b", "a\ud800b")),
    case("label of feature -1", lambda w: Labels(w.study.folder, "x").set(-1, label="x"), "got -1", "from 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_bad_input_is_refused_in_words_and_nothing_changes(w, call, error, words):
    with pytest.raises(error) as raised:
        call(w)
    for word in words:
        assert re.search(word, str(raised.value)), f"{word!r} is not in: {raised.value}"


NAMES = ["../../../x", "</script><script>alert(1)</script>", "=cmd|' /C calc'!A0", "a\u2028b $\\x$"]


def test_names_of_classes_and_labels_stay_text(finished, tmp_path):
    given, before = finished.catalogue, digest(finished.root)
    renamed = dict(zip(finished.data.classes("variant"), NAMES, strict=True))
    data, index = copy(finished.data), copy(given.index)
    data._classes = data._classes | {"variant": NAMES}
    data.table, index.images = (table.replace({"variant": renamed}) for table in (data.table, index.images))
    images = given.images.replace(dict.fromkeys(("variant", "label", "predicted"), renamed))
    table = given.table.replace({"variant/class": renamed})
    trial = replace(given.trial, network=replace(given.network, classes=NAMES), pictures=data)
    odd = replace(given, trial=trial, index=index, images=images, table=table, folder=tmp_path / "mine")
    said = {"label": NAMES[2], "note": NAMES[1], "rating": 0}
    Labels(odd.folder, odd.key).set(0, **said)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}
    assert digest(finished.root) == before
    # what shows it writes text, never markup
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write", Application._esm)
    assert odd.overview()["classes"]["variant"] == NAMES
    assert Labels(odd.folder, odd.key).all() == {0: said}
    Labels(odd.folder, odd.key).set(1, note="a\r\nb\rc")
    assert Labels(odd.folder, odd.key).all()[1]["note"] == "a\nb\nc"
    plots.picture_grid([[data.picture(data.table["image"][0])] * 4], [NAMES]).savefig(io.BytesIO())
