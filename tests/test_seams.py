"""The same few lines on any network, any site, any pictures: look, change, extract, train, index, suppress, bench."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_networks import SIZE, model

import aircraft_sae
from aircraft_sae import config
from aircraft_sae.activations import replay, see_features
from aircraft_sae.interventions import Trial
from aircraft_sae.networks import Network
from aircraft_sae.pictures import ImageFolder
from aircraft_sae.study import Study
from aircraft_sae.view.browser import Bench, Catalogue

PLACES = [
    ("convnext", "stage4"), ("convnext", "stages.2.blocks.1"), ("lite", "blocks.4"), ("googlenet", "inception4c"),
    ("googlenet", "inception4c:branch2"), ("plain", "first"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An image folder without levels: 3 classes of 16 noisy pictures with a square of their colour."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for c, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for i in range(16):
            pixels = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
            pixels[8:30, 10:40, c] += np.uint8(100)
            Image.fromarray(pixels).save(folder / name / f"{name}{i}.jpg")
    return ImageFolder.open(folder)


@pytest.fixture(scope="module", params=PLACES, ids=":".join)
def study(request, pictures, tmp_path_factory):
    name, site = request.param
    classes = pictures.classes()
    network = Network(model(name, len(classes)), classes, SIZE, name=name)
    sae = config.SAEConfig(site=site, expansion=2, k=4, n_cells=2000, batch_size=32, aux_k=0, dead_after=1000)
    made = config.StudyConfig(name=name, sites=(site,), n_views=0, sae=sae)
    return Study.open(made, data_dir=tmp_path_factory.mktemp("data"), network=network, pictures=pictures)


def test_any_site_of_any_network_goes_from_pictures_to_suppression(study):
    network, pictures, site = study.network(), study.pictures(), study.config.sae.site
    x = torch.stack([network.as_input(pictures.picture(image)) for image in pictures.table["image"][:2]])
    with torch.no_grad():
        seen = network.see(x, [site])
        changed = network.see(x, edits={site: lambda acts: acts * torch.linspace(0, 2, acts.shape[3])})
    assert not torch.allclose(seen.logits, changed.logits)
    acts = study.activations()
    stored = torch.from_numpy(acts.acts[:2]).float()
    assert torch.allclose(stored, seen.acts[site], rtol=2e-3, atol=2e-3)
    again = replay(network, pictures, acts, np.arange(2))
    assert torch.allclose(again, seen.logits, rtol=2e-2, atol=2e-2)
    sae, index = study.sae(), study.features()
    with torch.no_grad():
        _, codes = see_features(network, sae, x)
    assert codes.shape == (2, *network.shape(site)[:2], sae.d_sae)
    trial = Trial.of(network, sae, pictures, acts, index)
    strongest = index.sums(trial.rows[:1])[0].argsort()[::-1][:2].tolist()
    effect = trial[np.array([0])].suppress(strongest)
    assert effect["logit"].shape == (1, 2) and np.abs(effect["logit"]).max() > 0


def test_the_bench_takes_any_site_of_any_network(study):
    catalogue = Catalogue.of(study)
    bench = Bench(catalogue)
    subject = bench.of_row(int(catalogue.rows[0]))
    feature_id = int(subject.codes.sum((0, 1)).argmax())
    made = bench.change(subject, {feature_id: 0.0})
    assert torch.allclose(made["before"], subject.logits, atol=1e-3)
    site, direction = bench.sae.cfg.site, bench.sae.W_dec[feature_id].detach()
    edit = {site: lambda acts: acts - subject.codes[None, ..., feature_id, None] * direction}
    with torch.no_grad():
        after = catalogue.network.see(subject.x[None], edits=edit).logits[0]
    assert torch.allclose(made["after"], after, atol=1e-3)
    assert not torch.allclose(made["after"], made["before"], atol=1e-6)


def test_nothing_asks_for_a_kind_of_network_or_data_set():
    package = Path(aircraft_sae.__file__).parent
    kinds = re.compile(
        r"isinstance\([^)]*(ConvNeXt|EfficientNet|GoogLeNet|Inception|FGVCLayout|ImageFolder)"
        r"|\b(source|name|arch|preset)\s*[!=]=\s*[\"'](hangar|fgvc|folder|photos|images|convnext)"
    )
    allowed = {"networks", "pictures", "config.py"}
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in allowed:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if kinds.search(line)]
            assert not found, (path.name, found)
