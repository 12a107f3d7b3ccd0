"""Bad input at every door: the documented error, the value and the remedy in words, no work begun, no byte changed."""

import hashlib
import io
import json
import pickle
import re
import shutil
import struct
import zlib
from copy import copy
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from aircraft_sae import config, features, interventions
from aircraft_sae import networks as classifier
from aircraft_sae.__main__ import main
from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig, StudyConfig
from aircraft_sae.features import FeatureIndex
from aircraft_sae.hangar.dataset import render_dataset
from aircraft_sae.networks import load, training
from aircraft_sae.pictures import FGVCLayout
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae import training as sae_training
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.atlas import write_atlas
from aircraft_sae.view.browser import Bench, FeatureBrowser, InterventionBench, Labels, gallery_figure
from aircraft_sae.view.browser.catalogue import catalogue_of
from aircraft_sae.view.browser.widgets import SCRIPT

SMOKE = config.preset("smoke")
OUTSIDE = ("../../x", "/x", "a/b", "..", "a\0b", "a\nb", "main.partial", "main.old", "main.lock", "x" * 101)
"""Names that would leave a study's folder, or stand for another of its folders."""


# ---------------------------------------------------------------- a finished study, and what is done to it
@pytest.fixture(scope="session")
def finished(smoke_study, tmp_path_factory):
    """A copy of the smoke study with all its stages, so that nobody else writes into it meanwhile."""
    smoke_study.features()
    root = tmp_path_factory.mktemp("bad") / "a"  # two folders down: what climbs out of the study is seen
    for name in ("dataset", "networks", "activations", "sae/main", "features/main"):
        shutil.copytree(smoke_study.folder / name, root / "data" / "runs" / "smoke" / name)
    study = Study.open("smoke", data_dir=root / "data")
    catalogue = catalogue_of(study)
    bench = Bench(catalogue)
    rows = study.activations().rows("test")
    return SimpleNamespace(
        root=root.parent, state=digest(root.parent), study=study, data=study.pictures(), trained=study.network(),
        sae=study.sae(), acts=study.activations(), index=study.features(), catalogue=catalogue, bench=bench, rows=rows,
        subject=bench.of_row(int(catalogue.rows[0])), cells=next(study.activations().blocks(rows[:2])),
    )  # fmt: skip


def digest(root):
    """Name, kind and content of all that is below."""
    paths = sorted(root.rglob("*"))
    return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "") for path in paths]


def long_work(*_, **__):
    raise AssertionError("long work began")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def w(finished, tmp_path, monkeypatch, capsys):
    """The study and a folder for hostile files, checked after the test: nothing ran and nothing changed."""
    for where, name in (
        ("activations", "check_room"), ("features.regions", "build_index"),
        ("networks.training.Run", "train_step"), ("sae.training.Run", "train_step"),
        ("hangar.dataset", "mapper"), ("pictures.folders.FGVCAircraft", "__init__"), ("__main__", "run"),
    ):  # fmt: skip
        monkeypatch.setattr(f"aircraft_sae.{where}.{name}", long_work)
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(finished.study.data_dir))
    yield SimpleNamespace(**vars(finished), tmp=tmp_path, ran=tmp_path / "ran", capsys=capsys)
    before, finished.state = finished.state, digest(finished.root)
    assert finished.state == before
    assert not (tmp_path / "ran").exists()


def pictures(change, **more):
    """Ask a study for a copy of the pictures to which `change(data folder)` was done; they too stay as they are."""

    def call(w):
        root = w.tmp / "pictures"
        shutil.copytree(w.study.folder / "dataset", root)
        change(root / "fgvc-aircraft-2013b" / "data")
        before = digest(root)
        values = {"name": "mine", "dataset.source": "folder", **more}
        try:
            Study.open(config.change(SMOKE, **values), data_dir=w.study.data_dir, data_root=root).pictures()
        finally:
            assert digest(root) == before

    return call


def edit(name, pattern, new):
    """Replace the first match of a pattern in the files of a name pattern."""

    def change(folder):
        for path in folder.glob(name):
            path.write_text(re.sub(pattern, new, path.read_text("utf-8"), count=1), "utf-8")

    return change


def first_picture(content):
    """Put bytes in the place of the first picture."""
    return lambda folder: sorted((folder / "images").iterdir())[0].write_bytes(content)


def bomb(width, height):
    """The head of a PNG that would be so large."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def weights(make, arch="test_convnext"):
    """Ask the study for a classifier that starts from the file that `make(w)` writes."""

    def call(w):
        values = {"classifier.weights": str(make(w)), "classifier.layer_scale": None, "classifier.arch": arch}
        Study.open(config.change(SMOKE, **values), data_dir=w.study.data_dir).network()

    return call


def state_with(change, suffix=".safetensors"):
    """Write the trained weights, changed by `change(state, w)`."""

    def make(w):
        state, path = dict(w.trained.model.state_dict()), w.tmp / f"odd{suffix}"
        state = change(state, w) or state
        state = {name: value.clone().contiguous() for name, value in state.items()} if suffix != ".pt" else state
        safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        return path

    return make


def written(name, content):
    """Write a file of these bytes, or of what a function of w gives."""

    def make(w):
        path = w.tmp / name
        path.write_bytes(content(w) if callable(content) else content)
        return path

    return make


def beside(facts):
    """Good weights with this JSON beside them."""

    def make(w):
        (w.tmp / "odd.json").write_text(facts, "utf-8")
        return state_with(lambda state, w: None)(w)

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


def json_with(name, *path, value=None):
    """Set (or take out) an entry of a JSON file, named by its path of keys."""

    def change(folder, w):
        facts = json.loads((folder / name).read_text())
        inner = facts
        for key in path[:-1]:
            inner = inner[key]
        inner.pop(path[-1])
        if value is not None:
            inner[path[-1]] = value
        (folder / name).write_text(json.dumps(facts))

    return change


def tensors_with(name, **values):
    """Set (or take out, with None) tensors of a safetensors file."""

    def change(folder, w):
        state = safetensors.torch.load_file(folder / name) | values
        state = {key: value for key, value in state.items() if value is not None}
        safetensors.torch.save_file(state, folder / name)

    return change


def put(name, content):
    return lambda folder, w: (folder / name).write_bytes(content(w) if callable(content) else content)


def checkpoint(run, make):
    """Resume a run (made by `run(w, folder)`) from a hostile checkpoint."""

    def call(w):
        torch.save(make(w), w.tmp / "checkpoint.pt")
        run(w, w.tmp)

    return call


def train_classifier(w, folder):
    training.Run(SMOKE.classifier, w.data, folder, "none").resume()


def train_autoencoder(w, folder):
    sae_training.Run(folder, SMOKE.sae, w.acts, w.rows).resume()


def command(*words):
    """The command with these words; what it says as it ends."""

    def call(w):
        try:
            main([str(w.tmp) if word == "TMP" else word for word in words])
        except SystemExit as ended:
            assert ended.code == 2
            raise ValueError(w.capsys.readouterr().err) from ended

    return call


def asked(make, message, *buffers):
    """Ask a widget something; its answer, an error, is raised."""

    def call(w):
        widget = make(w)
        sent = []
        widget.send = lambda content, buffers=None: sent.append(content)
        widget._answer(None, {"id": 1, **message}, list(buffers))
        raise ValueError(sent[0]["error"])

    return call


def npy_of_objects(w):
    file = io.BytesIO()
    np.save(file, np.array([Payload(w.ran)], dtype=object), allow_pickle=True)
    return file.getvalue()


def case(name, call, *words, error=ValueError):
    return pytest.param(call, error, words, id=name)


def field(path, value, *words):
    return case(f"{path} {value!r}"[:50], lambda w: config.change(SMOKE, **{path: value}), *words)


CONFIG = [
    case("preset jet", lambda w: config.preset("jet"), "'jet'", "choose one of smoke, hangar"),
    case("preset path", lambda w: Study.open("../../x"), re.escape("'../../x'"), "choose one of"),
    case("preset NUL", lambda w: Study.open("smoke\0"), re.escape(r"'smoke\x00'"), "choose one of"),
    case("preset number", lambda w: Study.open(7), "no preset 7", "choose one of"),
    case("preset list", lambda w: Study.open(["smoke"]), r"\['smoke'\]", "choose one of"),
    field("classifier.colour", 1, "'classifier.colour'", "did you mean classifier"),
    field("classifier.seed.x", 1, "'classifier.seed.x'", "did you mean classifier.seed"),
    field("dataset.source", "web", "'web'", "'hangar', 'fgvc' or 'folder'"),
    field("dataset", {"source": "hangar"}, "StudyConfig lacks", "dataset.banner"),
    field("dataset.banner", "20", "banner must be a valid integer", "'20'"),
    field("dataset.hangar.n_variants", 1, "n_variants", "at least 2", "got 1"),
    field("dataset.hangar.split_shares", (0.5, 0.5), "split_shares lacks a value", r"\(0.5, 0.5\)"),
    field("dataset.hangar.seed", -1, "seed must be at least 0", "-1"),
    field("classifier.batch_size", 8.5, "batch_size must be a valid integer", "8.5"),
    field("classifier.batch_size", "8", "batch_size must be a valid integer", "'8'"),
    field("classifier.batch_size", True, "batch_size must be a valid integer", "True"),
    field("classifier.learning_rate", float("nan"), "learning_rate must be a finite number", "nan"),
    field("classifier.learning_rate", 0, "learning_rate must be greater than 0", "got 0"),
    field("classifier.epochs", (0,), "epochs must be at least 1", "got 0"),
    field("classifier.sizes", 64, "sizes must be a valid tuple", "got 64"),
    field("classifier.train_split", "tran", "'tran'", "'train', 'val', 'trainval' or 'test'"),
    field("classifier.val_split", "vall", "'vall'", "'train', 'val', 'trainval' or 'test'"),
    field("classifier.weights", 5, "weights must be a valid string", "got 5"),
    field("classifier.frozen_stages", 5, "frozen_stages must be less than or equal to 4", "got 5"),
    field("classifier.ema_decay", 1.0, "ema_decay must be less than 1", "1.0"),
    field("classifier.flip", "yes", "flip must be a valid boolean", "'yes'"),
    field("sites", ("../x",), "'../x'", "sites must be like stage4"),
    field("sites", ("stage3",), "'stage4'", "one of the sites that are kept"),
    field("sae.site", "a/b", "'a/b'", "sae.site must be like stage4"),
    field("sae.k", 4.5, "k must be a valid integer", "4.5"),
    field("sae.dead_after", 10**9, "dead_after=1000000000", "lower it"),
    field("name", 7, "name must be a valid string", "got 7"),
    *(field("name", name, "a name has letters", re.escape(repr(name))) for name in OUTSIDE),
    case("JSON of a list", lambda w: config.from_dict(StudyConfig, [1]), "StudyConfig must be a dictionary", r"\[1\]"),
    case("JSON field", lambda w: config.from_dict(SAEConfig, {"kk": 1}), "kk is no field", "got 1"),
    case("JSON of a number inside", lambda w: config.from_dict(StudyConfig, asdict(SMOKE) | {"sae": 3}),
         "sae must be a dictionary or an instance of SAEConfig", "got 3"),
    case("data root of the hangar", lambda w: Study.open("smoke", data_root="x"), "smoke", "only fgvc, photos do"),
    case("no data root", lambda w: Study.open("photos"), "photos", "--data-root"),
    case("data dir is a file", lambda w: Study.open("smoke", data_dir=written("f", b"")(w)), "/f is no folder",
         "AIRCRAFT_SAE_DATA_DIR"),
]  # fmt: skip

STUDY = [
    case("site not there", lambda w: w.study.activations("stage9"), "'stage9'", "stage4"),
    case("site unknown", lambda w: w.study.activations("../stage4"), re.escape("'../stage4'"), "did you mean"),
    *(case(f"sae {name!r}"[:20], lambda w, name=name: w.study.sae(name, k=2), "a name has letters",
           re.escape(repr(name))) for name in OUTSIDE),
    case("sae main changed", lambda w: w.study.sae("main", k=2), '"main"', "name of its own"),
    case("sae field", lambda w: w.study.sae("x", kk=2), "'kk'", "did you mean k"),
    case("sae k", lambda w: w.study.sae("x", k=10**6), "k=1000000", "lower sae.k"),
    case("sae k is text", lambda w: w.study.sae("x", k="2"), "k must be a valid integer", "'2'"),
    case("sae batch", lambda w: w.study.sae("x", batch_size=10**6), "batch_size 1000000", "lower sae.batch_size"),
    case("sae pictures", lambda w: w.study.sae("x", pictures="every0"), "'every0'", "pictures of your own"),
    case("sae network", lambda w: w.study.sae("x", network="other"), "'other'", "a network of your own"),
    case("sae site", lambda w: w.study.sae("x", site="stam"), "'stam'", "stem"),
    case("features name", lambda w: w.study.features("../x", k=2), re.escape("'../x'"), "a name has letters"),
    case("index main", lambda w: w.study.features("main", sae=w.sae), '"main"', "name of its own"),
    case("index name", lambda w: w.study.features("..", sae=w.sae), re.escape("'..'"), "a name has letters"),
    case("index of another width", lambda w: w.study.features("x", sae=SparseAutoencoder(SAEConfig(k=2), 5)),
         "x is for acts of width 5", "make it of this study's acts"),
    case("stage name", lambda w: w.study.stage("/x", render_dataset), "''", "a name has letters"),
    case("stage of a closure", lambda w: w.study.stage("x", lambda folder: None), "function of the package", "move it"),
    case("stage input", lambda w: w.study.stage("x", render_dataset, {}, {"of": object()}), "object", "no digest"),
    case("record name", lambda w: w.study.record("../../../x", {}), re.escape("'../../../x'"), "a name has letters"),
    case("record nan", lambda w: w.study.record("01_x", {"acc": float("nan")}), "acc", "finite", "nan"),
    case("record text", lambda w: w.study.record("01_x", {"acc": "high"}), "acc", "finite", "'high'"),
    case("record entry", lambda w: w.study.record("01_x", {"acc": {"value": 1}}), "acc must have value, low, high, n"),
    case("results absent", lambda w: w.study.results("09_x"), "09_x", "run notebook", error=FileNotFoundError),
    case("results name", lambda w: w.study.results("../../runs/smoke/classifier/config"), "a name has letters"),
]  # fmt: skip

PICTURES = [
    case("no folder", lambda w: Study.open(config.change(SMOKE, name="mine", **{"dataset.source": "folder"}),
         data_dir=w.study.data_dir, data_root=w.tmp / "none").pictures(), "none does not exist", "Name the folder",
         error=FileNotFoundError),
    case("fgvc root is a file", lambda w: Study.open("fgvc", data_dir=w.study.data_dir,
         data_root=written("f", b"")(w)).pictures(), "/f:", "by hand", "hangar", error=OSError),
    case("no split file", pictures(lambda f: (f / "images_variant_val.txt").unlink()), "images_variant_val.txt",
         "copy them", error=FileNotFoundError),
    case("empty split", pictures(lambda f: [p.write_text("") for p in f.glob("images_*_test.txt")]), "test split",
         "list at least one"),
    case("unknown class", pictures(edit("images_variant_train.txt", r" .+", " Concorde")), "Concorde", "Correct"),
    case("class name climbs", pictures(edit("images_variant_train.txt", r" .+", " ../../x")), re.escape("../../x"),
         "Correct"),
    case("class of two lines", pictures(edit("variants.txt", r"^", "x\u2028y\n")), "x\u2028y", "without an image"),
    case("class twice", pictures(edit("variants.txt", r"^(.+)\n", r"\1\n\1\n")), "classes twice", "Correct"),
    case("image twice", pictures(edit("images_*_train.txt", r"^(.+)\n", r"\1\n\1\n")), "listed twice", "Correct"),
    case("image climbs", pictures(edit("images_*_train.txt", r"^\S+", "../x")), re.escape("../x"), "Correct"),
    case("image absolute", pictures(edit("images_*_train.txt", r"^\S+", "/etc/x")), "/etc/x", "Correct"),
    case("image NUL", pictures(edit("images_*_train.txt", r"^\S+", "a\0b")), "a\0b",
         "Replace", error=FileNotFoundError),
    case("scenes are text", pictures(lambda f: (f / "scenes.parquet").write_bytes(b"text")), "scenes.parquet cannot be",
         "remove it"),
    case("not UTF-8", pictures(lambda f: (f / "variants.txt").write_bytes(b"\xff")), "variants.txt", "save it as"),
    case("picture absent", pictures(lambda f: sorted((f / "images").iterdir())[0].unlink()), "1 of 48", "Replace",
         error=FileNotFoundError),
    case("picture empty", pictures(first_picture(b"")), "1 of 48", r"\.jpg", "Replace"),
    case("picture is text", pictures(first_picture(b"<html>no aircraft</html>")), "1 of 48", "identify", "Replace"),
    case("picture is a pickle", lambda w: pictures(first_picture(pickled(w)))(w), "1 of 48", "Replace"),
    case("picture cut short", pictures(lambda f: first_picture(sorted((f / "images").iterdir())[0].read_bytes()[:400])(
         f)), "1 of 48", "(?i)truncated", "Replace"),
    case("picture too large", pictures(first_picture(bomb(60_000, 60_000))), "3600000000 pixels", "Replace"),
    case("banner too high", pictures(lambda f: None, **{"dataset.banner": 64}), "64 pixels high", "Replace"),
    case("level not there", lambda w: w.data.classes("airline"), "'airline'", "they have variant, family"),
    case("split not there", lambda w: w.data.rows("tests"), "'tests'", "train, val, trainval, test"),
    case("picture not there", lambda w: w.data.picture("../../x"), "'../../x' is listed"),
    case("mask not there", lambda w: w.data.mask("none"), "none.png", "only rendered", error=FileNotFoundError),
    case("mask is text", saved("dataset", lambda f: FGVCLayout.open(f).mask("odd"),
         put("fgvc-aircraft-2013b/data/masks/odd.png", b"text")), "odd.png cannot be read", "Replace it"),
]  # fmt: skip

CLASSIFIER = [
    case("arch", weights(state_with(lambda s, w: None), arch="convnext_atta"), "'convnext_atta'", "did you mean"),
    case("weights of another kind", weights(state_with(lambda s, w: None), arch="resnet18"), "'resnet18'", "Set"),
    case("weights absent", weights(lambda w: w.tmp / "none.pth"), "none.pth is not there", "Set classifier.weights",
         error=FileNotFoundError),
    case("weights name climbs", weights(lambda w: "../../x"), re.escape("../../x"), "name in data/weights",
         error=FileNotFoundError),
    case("weights empty", weights(written("odd.safetensors", b"")), "odd.safetensors", "Save model.state_dict"),
    case("weights are text", weights(written("odd.safetensors", b"not tensors " * 9)), "odd.safetensors", "damaged"),
    case("weights cut short", weights(written("odd.safetensors", lambda w: state_with(lambda s, w: None)(
         w).read_bytes()[:-1000])), "odd.safetensors", "Save model.state_dict"),
    case("weights are a folder", weights(lambda w: (w.tmp / "odd.pth").mkdir() or w.tmp / "odd.pth"), "odd.pth",
         "Set classifier.weights", error=FileNotFoundError),
    *(case(f"weights pickled {suffix}", weights(written(f"odd{suffix}", pickled)), f"odd{suffix}", "could run code",
           "Save model.state_dict") for suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt")),
    case("weights hold a pickle", weights(state_with(lambda s, w: {"model": Payload(w.ran)}, ".pt")), "odd.pt",
         "could run code"),
    case("weights hold numbers", weights(state_with(lambda s, w: {"epoch": 3}, ".pt")), "odd.pt", "holds no tensors",
         "Save model.state_dict"),
    case("weights without names", weights(state_with(lambda s, w: {3: torch.ones(2)}, ".pt")), "odd.pt",
         "Save model.state_dict"),
    case("weights lack a key", weights(state_with(lambda s, w: s.pop("stem.0.bias") is None)), "stem.0.bias",
         "Set classifier.arch"),
    case("weights of another shape", weights(state_with(lambda s, w: s.update({"stem.0.bias": torch.ones(7)}))),
         r"stem.0.bias \(7,\)", "Set classifier.arch"),
    case("head of another shape", weights(state_with(lambda s, w: s.update({"head.fc.bias": torch.tensor(1.0)}))),
         "head.fc", "Set classifier.arch"),
    case("weights of another arch", weights(state_with(lambda s, w: None), arch="test_convnext2"), "'test_convnext2'",
         "Set classifier.arch"),
    case("facts cut short", weights(beside("{")), "odd.json", "mend or remove"),
    case("facts of words", weights(beside('{"mean": ["a", "b", "c"], "std": [1, 1, 1]}')), "odd.json", "remove"),
    case("frozen at random", lambda w: Study.open(config.change(SMOKE, **{"classifier.frozen_stages": 1}),
         data_dir=w.study.data_dir).network(), "frozen_stages=1", "set it to 0"),
    case("load nothing", lambda w: load(w.tmp), "model.safetensors is not there", "train a network",
         error=FileNotFoundError),
    case("load without config", saved("networks/trained", load, lambda f, w: (f / "config.json").unlink()),
         "config.json", "Train a network"),
    case("load cut config", saved("networks/trained", load, put("config.json", b"{")), "damaged", "Train"),
    case("load config of a field", saved("networks/trained", load, json_with("config.json", "classifier", "seed")),
         "lacks the fields seed", "Train"),
    case("load without classes", saved("networks/trained", load, json_with("config.json", "classes")),
         "'classes'", "Train"),
    case("load fewer classes", saved("networks/trained", load, json_with("config.json", "classes", value=["a"])),
         r"head.fc.weight \(4, 64\)", "Train"),
    case("load another arch", saved("networks/trained", load, json_with("config.json", "classifier", "arch",
         value="test_convnext2")), "'test_convnext2'", "Train"),
    case("load cut weights", saved("networks/trained", load, put("model.safetensors", b"\x08")),
         "model.safetensors", "Save model.state_dict"),
    case("load pickled weights", saved("networks/trained", load, put("model.safetensors", pickled)),
         "model.safetensors", "could run code"),
    case("load less weights", saved("networks/trained", load, tensors_with("model.safetensors",
         **{"stem.0.bias": None})), "stem.0.bias", "Train"),
    case("load pickled predictions", saved("networks/trained", load, put("predictions.parquet", pickled)),
         "copy holds a damaged network", "Train"),
    case("checkpoint pickled", checkpoint(train_classifier, lambda w: {"identity": Payload(w.ran)}), "checkpoint.pt",
         "remove it"),
    case("checkpoint of numbers", checkpoint(train_classifier, lambda w: [1]), "checkpoint.pt", "remove it"),
    case("checkpoint of another run", checkpoint(train_classifier, lambda w: {"identity": "x"}), "another config",
         "remove it"),
    case("no site", lambda w: w.trained.see(torch.zeros(1, 3, 64, 64), ["stage5"]), "'stage5'", "stage4"),
    case("predictions of others", lambda w: classifier.evaluate(w.trained, w.data, "val",
         w.trained.predictions), "other images than the val split"),
    case("predictions lack columns", lambda w: classifier.evaluate(w.trained, w.data, "test",
         w.trained.predictions.drop(columns="p_0")), "lack p_0", "predict"),
    case("evaluate no split", lambda w: classifier.evaluate(w.trained, w.data, "tset",
         w.trained.predictions), "'tset'", "train, val"),
]  # fmt: skip


def stage_4(folder):
    return Activations.open(folder, "stage4")


def all_of_stage_4(folder):
    return stage_4(folder).acts[:]


load_sae = SparseAutoencoder.load
WEIGHTS = "sae_weights.safetensors"
AUTOENCODER = [
    case("sae nothing", lambda w: load_sae(w.tmp), "is not there", "train an autoencoder", error=FileNotFoundError),
    case("sae without cfg", saved("sae/main", load_sae, lambda f, w: (f / "cfg.json").unlink()), "'aircraft_sae'",
         "train one"),
    case("sae cut cfg", saved("sae/main", load_sae, put("cfg.json", b"{")), "'aircraft_sae'", "train one"),
    case("sae cfg list", saved("sae/main", load_sae, put("cfg.json", b"[1]")), "'aircraft_sae'", "train one"),
    case("sae d_in text", saved("sae/main", load_sae, json_with("cfg.json", "d_in", value="64")), "str", "train one"),
    case("sae d_in huge", saved("sae/main", load_sae, json_with("cfg.json", "d_in", value=10**12)), "1000000000000",
         "bring cfg.json"),
    case("sae d_in below 0", saved("sae/main", load_sae, json_with("cfg.json", "d_in", value=-64)), "-", "bring"),
    case("sae another width", saved("sae/main", load_sae, json_with("cfg.json", "d_in", value=5)), r"\[20, 5\]",
         "bring cfg.json"),
    case("sae expansion huge", saved("sae/main", load_sae, json_with("cfg.json", "aircraft_sae", "expansion",
         value=10**9)), "64000000000", "bring cfg.json"),
    case("sae k text", saved("sae/main", load_sae, json_with("cfg.json", "aircraft_sae", "k", value="4")), "'4'",
         "train one"),
    case("sae no field", saved("sae/main", load_sae, json_with("cfg.json", "aircraft_sae", "k")), "lacks the fields k",
         "train one"),
    case("sae no table", saved("sae/main", load_sae, json_with("cfg.json", "aircraft_sae", value="x")), "'x'",
         "train one"),
    case("sae less weights", saved("sae/main", load_sae, tensors_with(WEIGHTS, W_dec=None)), "Missing.*W_dec"),
    case("sae one bias", saved("sae/main", load_sae, tensors_with(WEIGHTS, b_dec=torch.ones(1))), r"b_dec.*\[1\]",
         "bring"),
    case("sae no threshold", saved("sae/main", load_sae, tensors_with(WEIGHTS, threshold=None)), "'threshold'",
         "bring"),
    case("sae cut weights", saved("sae/main", load_sae, put(WEIGHTS, b"\x08\0")), "copy holds a damaged", "train one"),
    case("sae pickled weights", saved("sae/main", load_sae, put(WEIGHTS, pickled)), "copy holds a", "train one"),
    case("encode another width", lambda w: w.sae.encode(torch.ones(2, 5)), r"\[2, 5\]", "make it one with"),
    case("encode an array", lambda w: w.sae.encode(np.ones((2, 64))), "ndarray", "torch.from_numpy"),
    case("train on too few", lambda w: sae_training.train_sae(w.tmp, SMOKE.sae, w.acts, w.rows[:1]),
         "batch_size 64", "lower sae.batch_size"),
    case("sae checkpoint pickled", checkpoint(train_autoencoder, lambda w: {"identity": Payload(w.ran)}),
         "checkpoint.pt", "remove it"),
    case("acts not there", lambda w: Activations.open(w.tmp, "stage4"), "images.parquet is not there", "extract",
         error=FileNotFoundError),
    case("acts pickled", saved("activations/trained", all_of_stage_4, put("stage4/acts-00000.npy", npy_of_objects)),
         "acts-00000.npy has the wrong size"),
    case("images pickled", saved("activations/trained", stage_4, put("stage4/images.parquet", pickled)), "[Pp]arquet"),
]  # fmt: skip

EDITS = dict(networks={}, sites=["stage4"], scenes=[], kind="remove", parts=["wing"], most=1, size=64, supersampling=1)


def trial(w):
    return interventions.Trial.of(w.trained, w.sae, w.data, w.acts, w.index)


def blur(w, feature_id, window):
    picks = w.index.patches(0).assign(feature_id=feature_id)
    interventions.blur_peaks(w.tmp, trial=trial(w), index=w.index, picks=picks, sigma=8.0, window=window)


FEATURES = [
    case("index not there", lambda w: FeatureIndex.open(w.tmp), "facts.json is not there", "build the feature index",
         error=FileNotFoundError),
    case("index pickled", saved("features/main", FeatureIndex.open, put("by_cell_data.npy", npy_of_objects)),
         "objects"),
    case("table pickled", saved("features/main", FeatureIndex.open, put("features.parquet", pickled)), "[Pp]arquet"),
    *(case(f"feature {j}", lambda w, j=j: w.index.patches(j), f"feature {j} is not one of", r"0 \.\. 255")
      for j in (-1, 256, 10**30, 1.5, True, "3")),
    case("neighbours", lambda w: features.neighbours(w.bench.W_dec, -1), "feature -1", r"0 \.\. 255"),
    case("patches how", lambda w: w.index.patches(0, "best"), "'best'", '"top", "interval" or "random"'),
    case("rows of no split", lambda w: w.index.rows("tests"), "tests", "train, val, test"),
    *(case(f"suppress {j}", lambda w, j=j: trial(w).suppress([j]), f"feature {j} is not one of", r"0 \.\. 255")
      for j in (256, -1, 1.5)),
    case("suppress True", lambda w: trial(w).suppress([True]), "feature True"),
    case("blur window", lambda w: blur(w, 0, 99), "1 to 64 pixels", "got 99"),
    case("blur feature", lambda w: blur(w, 256, 9), "feature 256", r"0 \.\. 255"),
    case("edit no scenes", lambda w: interventions.edit_scenes(w.tmp, **EDITS), "at least one"),
    case("edit site", lambda w: interventions.edit_scenes(w.tmp, **EDITS | {"networks": {"a": w.trained}, "sites": [
         "stage5"], "scenes": w.data.scenes["scene"].tolist()[:1]}), "'stage5'", "did you mean"),
    case("responses not there", lambda w: interventions.Responses.of(w.sae, w.tmp), "stage4.npy is not there",
         "run edit_scenes", error=FileNotFoundError),
    case("variants", lambda w: render_dataset(w.tmp, config.HangarConfig(n_variants=31)), "31", "there are 30"),
]  # fmt: skip

BROWSER = [
    case("browser feature", lambda w: FeatureBrowser(w.study, 256), "feature 256", r"0 \.\. 255"),
    case("catalogue class", lambda w: w.catalogue.feature(0, name="../../x"), re.escape("'../../x'"), "no variant of"),
    case("catalogue level", lambda w: w.catalogue.feature(0, level="airline", name="x"), "'airline'",
         "they have variant"),
    case("pair", lambda w: w.catalogue.pair("Concorde", "x"), "'Concorde'", "two different classes"),
    case("picture row", lambda w: w.bench.of_row(-1), "picture -1", "is not one of 0"),
    case("upload text", lambda w: w.bench.of_file(b"my notes", "notes.jpg"), "notes.jpg", "give a JPEG"),
    case("upload nothing", lambda w: w.bench.of_file(b"", "empty.jpg"), "empty.jpg", "give a JPEG"),
    case("upload a pickle", lambda w: w.bench.of_file(pickled(w), "x.jpg"), "x.jpg", "give a JPEG"),
    case("upload a bomb", lambda w: w.bench.of_file(bomb(60_000, 60_000), "x.png"), "x.png", "give a JPEG"),
    case("upload too large", lambda w: w.bench.of_file(bomb(8000, 8000), "x.png"), "8000 x 8000", "give a JPEG"),
    case("multiplier", lambda w: w.bench.change(w.subject, {0: float("nan")}), "from 0 to 4", "nan"),
    case("multiplied feature", lambda w: w.bench.change(w.subject, {256: 0.0}), "feature 256", r"0 \.\. 255"),
    case("half a feature", lambda w: w.bench.change(w.subject, {1.5: 0.0}), "feature 1.5", r"0 \.\. 255"),
    case("half a picture", lambda w: w.bench.of_row(1.5), "picture 1.5", "is not one of 0"),
    case("browser feature of text", lambda w: FeatureBrowser(w.study, "3"), "feature 3", r"0 \.\. 255"),
    case("gallery feature", lambda w: gallery_figure(w.index, w.data, -1), "feature -1", r"0 \.\. 255"),
    *(case(f"label {text!r}", lambda w, text=text: Labels(w.study.folder, "x").set(0, label=text), "control character",
           re.escape(repr(text[1])), "take it out") for text in ("a\0b", "a\x1bb", "a\ud800b")),
    case("label of feature -1", lambda w: Labels(w.study.folder, "x").set(-1, label="x"), "got -1", "from 0"),
    case("no cell", lambda w: w.bench.blurred(w.subject, []), "at least one cell"),
    case("cell outside", lambda w: w.bench.blurred(w.subject, [(-1, 0)]), "cell -1, 0", "grid of 2 x 2"),
    case("asked nothing", asked(lambda w: InterventionBench(w.study), {"call": "__init__"}), "'__init__'", "nothing"),
    case("asked about no feature", asked(lambda w: FeatureBrowser(w.study, 0), {"call": "feature", "given": {
         "feature_id": -5}}), "feature -5", r"0 \.\. 255"),
    case("asked for an upload", asked(lambda w: FeatureBrowser(w.study, 0), {"call": "upload", "given": {
         "name": "../../x"}}, b"text"), re.escape("../../x cannot be used"), "give a JPEG"),
    case("asked for a label", asked(lambda w: FeatureBrowser(w.study, 0), {"call": "label", "given": {
         "feature_id": 0, "label": "x" * 10**7}}), "at most 200", "xxx"),
    case("rating", lambda w: Labels(w.study.folder, "x").set(0, rating=6), "rating", "0 .none. to 5", "got 6"),
    case("label pickled", lambda w: Labels(written("labels.csv", pickled)(w).parent, "x").all(), "labels.csv", "mend"),
]  # fmt: skip

COMMANDS = [
    case("word", command("fly"), "'fly'", "choose from '?run"),
    case("option", command("--fast"), "--fast", "usage"),
    case("number of a notebook", command("run", "99"), "no notebook 99", "there are 01, 02"),
    case("preset of the command", command("--preset", "../../x"), re.escape("'../../x'"), "choose one of"),
    case("data root of the command", command("--preset", "smoke", "--data-root", "x"), "smoke", "only fgvc, photos do"),
    case("no data root of the command", command("--preset", "photos"), "photos", "--data-root"),
    case("data root is none", command("--preset", "photos", "--data-root", "/not/there"), "/not/there is not a folder"),
    case("photographs in place", command("--preset", "photos", "--data-root", "TMP", "--in-place"), "photos",
         "run without it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [*CONFIG, *STUDY, *PICTURES, *CLASSIFIER, *AUTOENCODER, *FEATURES, *BROWSER, *COMMANDS],
)
def test_bad_input_is_refused_in_words_and_nothing_changes(w, call, error, words):
    with pytest.raises(error) as raised:
        call(w)
    for word in words:
        assert re.search(word, str(raised.value)), f"{word!r} is not in: {raised.value}"


# ---------------------------------------------------------------- what is taken, and must stay text
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
    said, atlas = {"label": NAMES[2], "note": NAMES[1], "rating": 0}, tmp_path / "atlas"
    Labels(odd.folder, odd.key).set(0, **said)
    atlas.mkdir()
    write_atlas(atlas, catalogue=odd, pages={}, n_pictures=4)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "atlas"}
    assert digest(finished.root) == before
    # what shows it writes text, never markup
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write", SCRIPT)
    for path in atlas.rglob("*.js"):
        text = path.read_text("utf-8")
        assert "<" not in text and "\u2028" not in text
    text = (atlas / "data.js").read_text("utf-8")
    shown = json.loads(text.removeprefix("window.ATLAS = ").rstrip().removesuffix(";"))
    assert shown["facts"]["classes"]["variant"] == NAMES
    assert Labels(odd.folder, odd.key).all() == {0: said}
    Labels(odd.folder, odd.key).set(1, note="a\r\nb\rc")
    assert Labels(odd.folder, odd.key).all()[1]["note"] == "a\nb\nc"
    plots.picture_grid([[finished.subject.picture] * 4], [NAMES]).savefig(io.BytesIO())
