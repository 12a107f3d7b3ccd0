"""What the browser shows, without a front end: catalogue, bench, labels, the widget's answers, the atlas' files."""

import base64
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_networks import Plain

from aircraft_sae.config import SAEConfig, StudyConfig
from aircraft_sae.features.reconstruction import cell_covariance, random_directions
from aircraft_sae.interventions.suppression import N_TRIED
from aircraft_sae.networks import Network
from aircraft_sae.pictures import ImageFolder
from aircraft_sae.pictures.base import PictureFiles
from aircraft_sae.store import META, digest, write_json, write_parquet
from aircraft_sae.study import Study
from aircraft_sae.view.atlas import _chosen, export_atlas
from aircraft_sae.view.browser import Bench, Catalogue, FeatureBrowser, InterventionBench, Labels
from aircraft_sae.view.browser.catalogue import TILE, catalogue_of
from aircraft_sae.view.browser.widgets import Application


@pytest.fixture(scope="module")
def catalogue(smoke_study):
    return catalogue_of(smoke_study)


@pytest.fixture(scope="module")
def bench(catalogue):
    return Bench(catalogue)


@pytest.fixture(scope="module")
def subject(bench, catalogue):
    return bench.of_row(int(catalogue.rows[0]))


@pytest.fixture(scope="module")
def often(catalogue):
    """The feature that is active in the most pictures."""
    return int(catalogue.table["density_image"].argmax())


def jpeg(size, colour=(90, 120, 200)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


# ---------------------------------------------------------------- catalogue
def test_the_overview_is_json_and_has_every_feature(catalogue):
    facts = json.loads(json.dumps(catalogue.overview(), allow_nan=False))
    assert facts["n_features"] == catalogue.trial.sae.d_sae == len(facts["columns"]["max"])
    assert facts["columns"]["feature_id"] == list(range(catalogue.trial.sae.d_sae))
    assert set(facts["classes"]) == {"variant", "family", "manufacturer"} and facts["has_parts"]
    assert facts["colours"][:3] == [0, 0, 4] and len(facts["colours"]) == 768  # matplotlib's inferno


def test_a_gallery_shows_what_the_index_has(catalogue, often):
    view, maps = catalogue.feature(often, n=5)
    assert view["feature_id"] == often and len(view["gallery"]) == len(maps) <= 5
    values = [tile["value"] for tile in view["gallery"]]
    assert values == sorted(values, reverse=True)
    for tile, each in zip(view["gallery"], maps, strict=True):
        assert each[tuple(tile["cell"])] == pytest.approx(tile["value"]) and each.max() == pytest.approx(tile["value"])
        own = catalogue.index.images.iloc[tile["picture"]]
        assert own["split"] == "test" and own["variant"] == tile["label"]


def test_a_gallery_of_one_class_or_of_mistakes_shows_nothing_else(catalogue, often):
    name = catalogue.images["variant"].iloc[0]
    view, _ = catalogue.feature(often, level="variant", name=name)
    assert {tile["label"] for tile in view["gallery"]} <= {name}
    view, _ = catalogue.feature(often, wrong=True)
    wrong = (catalogue.images["predicted"] != catalogue.images["variant"]).sum()
    assert all(tile["label"] != tile["predicted"] for tile in view["gallery"]) and len(view["gallery"]) <= wrong
    everywhere = len(catalogue.feature(often, n=100)[0]["gallery"])
    right = [t for t in catalogue.feature(often, n=100)[0]["gallery"] if t["label"] == t["predicted"]]
    assert len(right) + len(catalogue.feature(often, n=100, wrong=True)[0]["gallery"]) == everywhere


def test_what_is_said_about_a_feature_is_counted_from_its_maps(catalogue, often):
    about, maps = catalogue.about(often), catalogue.index.maps(often, catalogue.rows)
    assert sum(about["histogram"]["counts"]) == (maps > 0).sum() and about["histogram"]["n_cells"] == maps.size
    assert about["histogram"]["top"] == pytest.approx(maps.max())
    name, value = about["classes"]["variant"][0]
    own = (catalogue.images["variant"] == name).to_numpy()
    assert value == pytest.approx(maps.reshape(len(maps), -1).max(1)[own].mean())
    assert [level["level"] for level in about["selectivity"]] == ["variant", "family", "manufacturer"]
    best = about["parts"][0]
    scores = catalogue.parts.query("feature_id == @often").set_index("part")["ap"]
    assert best["ap"] == pytest.approx(scores.max(), rel=1e-5) and best["part"] == scores.idxmax()
    assert often not in [each["feature_id"] for each in about["neighbours"] + about["coactive"]]


def test_a_picture_is_made_for_a_feature_beside_a_random_directions(catalogue, often):
    picture, (reached, random) = catalogue.made_for(often)
    trial = catalogue.trial
    acts = torch.cat(list(trial.acts.blocks(trial.rows))).flatten(0, 2)
    row = trial.sae.W_enc_rows[often].detach()
    b_dec, b_enc = trial.sae.b_dec.detach(), float(trial.sae.b_enc[often].detach())
    top = float(((acts - b_dec) @ row).max()) + b_enc
    x = trial.network.as_input(Image.fromarray(picture).resize((trial.network.size,) * 2))[None]
    seen = trial.network.see(x, [trial.acts.site]).acts[trial.acts.site]
    middle = seen[0, seen.shape[1] // 2, seen.shape[2] // 2]
    assert picture.dtype == np.uint8 and picture.std() > 5
    assert reached * top > 0.5 * (float((middle - b_dec) @ row) + b_enc)
    assert reached > 1 and random > 0
    assert catalogue.made_for(often)[1] == (reached, random)


def test_a_dead_feature_has_an_empty_page(catalogue):
    dead = int(catalogue.table["density_cell"].argmin())
    assert catalogue.table.at[dead, "density_cell"] == 0
    with pytest.raises(ValueError, match=f"feature {dead} is active in no test picture"):
        catalogue.made_for(dead)
    view, maps = catalogue.feature(dead)
    assert view["gallery"] == [] and maps.shape[0] == 0 and sum(view["histogram"]["counts"]) == 0
    json.dumps(view, allow_nan=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"feature_id": 10**6}, "feature 1000000 is not one of"),
        ({"feature_id": -1}, "feature -1 is not one of"),
        ({"feature_id": 0, "how": "best"}, "got 'best'"),
        ({"feature_id": 0, "name": "Concorde"}, "'Concorde' is no variant"),
    ],
)
def test_what_is_not_there_is_refused(catalogue, given, words):
    with pytest.raises(ValueError, match=words):
        catalogue.feature(**given)


def test_photographs_have_no_parts(catalogue, often):
    bare = replace(catalogue, parts=None)
    assert bare.feature(often)[0]["parts"] == [] and not bare.overview()["has_parts"]


def test_thumbnails_are_the_pictures(catalogue):
    row = int(catalogue.rows[0])
    tile = Image.open(io.BytesIO(catalogue.thumbnail(row)))
    whole = catalogue.picture(row).resize((TILE, TILE), Image.BICUBIC)
    assert tile.size == (TILE, TILE) and np.abs(np.float32(tile) - np.float32(whole)).mean() < 4
    assert catalogue.thumbnail(catalogue.rows[0]) == catalogue.thumbnail(row)  # numpy's own whole number
    with pytest.raises(ValueError, match="picture 99999 is not one of"):
        catalogue.thumbnail(99999)


def test_a_pair_is_compared_on_the_half_that_did_not_choose(catalogue):
    one, two = catalogue.network.classes[:2]
    found = catalogue.pair(one, two, n=4)
    assert [each["feature_id"] for each in found] == [each["feature_id"] for each in catalogue.pair(two, one, n=4)]
    first, trial, classes, changes = found[0], catalogue.trial, catalogue.network.classes, {False: [], True: []}
    for i, name in enumerate(catalogue.images["variant"]):
        if name not in (one, two):
            continue
        pooled = trial.pooled[[i]]
        gone = float(catalogue.index.maps(first["feature_id"], catalogue.rows[[i]]).mean())
        after = pooled - gone * trial.sae.W_dec.detach()[first["feature_id"]]
        own, other = classes.index(name), classes.index(two if name == one else one)
        change = catalogue.trial.readout.logits(after)[0] - catalogue.trial.readout.logits(pooled)[0]
        changes[bool(trial.in_b[i])].append(float(change[own] - change[other]))
    assert first["n"] == len(changes[True]) and first["value"] == pytest.approx(np.mean(changes[True]), abs=1e-4)
    assert np.mean(changes[False]) < 0  # the half that chose
    for classes in ((one, one), (one, "Concorde")):
        with pytest.raises(ValueError, match="two different classes"):
            catalogue.pair(*classes)


def test_ten_thousand_features_are_listed_and_shown_quickly(catalogue, tmp_path):
    """Rows of an index with far more features than cells: nothing grows with their number but the table."""
    wide = pd.concat([catalogue.table] * (10_000 // len(catalogue.table) + 1), ignore_index=True).head(10_000)
    wide["feature_id"] = range(10_000)
    facts = replace(catalogue, table=wide).overview()
    assert facts["n_features"] == 10_000 and len(json.dumps(facts)) < 6e6  # JupyterLab takes no message over 10 MB


# ---------------------------------------------------------------- bench
def test_multipliers_of_one_leave_the_networks_own_logits(bench, subject):
    made = bench.change(subject, {3: 1.0, 7: 1.0})
    for name in ("before", "after", "random"):
        torch.testing.assert_close(made[name], subject.logits, atol=1e-5, rtol=0)
    assert (bench.reconstruction(subject) - made["before"]).abs().max() > 1e-4  # what is left out is not nothing


def test_several_multipliers_are_the_forward_pass_of_edited_acts(bench, subject, catalogue):
    active = subject.strength.argsort(descending=True)[:3].tolist()
    multipliers = dict(zip(active, (0.0, 2.5, 4.0), strict=True))
    edited = subject.acts.clone()
    for feature_id, factor in multipliers.items():
        edited -= (1 - factor) * subject.codes[..., feature_id, None] * bench.W_dec[feature_id]
    with torch.no_grad():
        wanted = catalogue.network.see(subject.x[None], given={"stage4": edited[None]}).logits[0]
    got = bench.change(subject, multipliers)
    torch.testing.assert_close(got["after"], wanted, atol=1e-5, rtol=1e-5)
    assert (got["random"] - got["after"]).abs().max() > 1e-5


def in_some_cells(bench, subject, multipliers, cells, directions):
    """Logits of a forward pass whose hook multiplies features in these cells, one by one."""

    def edit(acts):
        acts = acts.clone()
        for row, column in cells:
            for j, factor in multipliers.items():
                acts[:, row, column] += (factor - 1) * subject.codes[row, column, j] * directions[j]
        return acts

    with torch.no_grad():
        return bench.network.see(subject.x[None], edits={bench.sae.cfg.site: edit}).logits[0]


def check_some_cells(bench, subject):
    """Of several features in one column; and that it is not what all cells give."""
    active = subject.codes[:, 0].sum(0).topk(3).indices.tolist()
    multipliers, cells = dict(zip(active, (0.0, 2.5, 4.0), strict=True)), [(i, 0) for i in range(len(subject.acts))]
    made = bench.change(subject, multipliers, cells)
    for name, directions in (("after", bench.W_dec), ("random", bench.catalogue.trial.random)):
        wanted = in_some_cells(bench, subject, multipliers, cells, directions)
        torch.testing.assert_close(made[name], wanted, atol=1e-5, rtol=1e-5)
    everywhere = bench.change(subject, multipliers, list(np.ndindex(*subject.acts.shape[:2])))["after"]
    torch.testing.assert_close(everywhere, bench.change(subject, multipliers)["after"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bench.change(subject, multipliers, [])["after"], everywhere, atol=1e-5, rtol=1e-5)
    assert (made["after"] - made["before"]).abs().max() > 5e-4 < (made["after"] - everywhere).abs().max()
    with pytest.raises(ValueError, match="cell 0, 99 is not in the grid"):
        bench.change(subject, multipliers, [(0, 99)])


def test_features_are_multiplied_in_chosen_cells_alone(bench, subject):
    check_some_cells(bench, subject)


def test_a_cells_regions_follow_from_what_the_page_has(bench, subject, catalogue, smoke_study):
    """Multipliers in closed form, from the answer and the pushes alone, are the head's logits of edited acts."""
    page, answers = bench.told(subject), FeatureBrowser(smoke_study).answers
    names, files = answers.regions()
    assert (
        names["names"] == ["background", *catalogue.trial.pictures.region_names] and catalogue.overview()["has_regions"]
    )
    n, multipliers = len(names["names"]), {each["feature_id"]: 3.0 * (i % 2) for i, each in enumerate(page["active"])}
    for file, directions in zip(files, (bench.W_dec, catalogue.trial.random), strict=True):
        adds, got = np.frombuffer(file, "<f4").reshape(-1, n), np.array(page["regions"])
        for i, cell in enumerate(page["cells"]):
            for j, value in cell:
                got[i] += (multipliers[j] - 1) * value * adds[j]
        acts = subject.acts + sum((m - 1) * subject.codes[..., j, None] * directions[j] for j, m in multipliers.items())
        wanted = catalogue.head.logits(acts).flatten(0, 1)
        np.testing.assert_allclose(got, wanted, atol=1e-3)
        assert np.abs(got - page["regions"]).max() > 0.1
    row = int(catalogue.rows[0])
    blurred = answers.blur(row, [[0, 1]], 8.0)[0]["regions"]
    seen = bench.blurred(bench.of_row(row), [(0, 1)])
    np.testing.assert_allclose(blurred, catalogue.head.logits(seen.acts).flatten(0, 1), atol=1e-4)


def test_the_reconstruction_is_the_autoencoders_own(bench, subject, catalogue):
    recon = catalogue.trial.sae.reconstruct(subject.acts.flatten(0, 1))[0].detach().mean(0, keepdim=True)
    wanted = catalogue.trial.readout.logits(recon)[0]
    torch.testing.assert_close(bench.reconstruction(subject), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("multipliers", "words"), [({0: 5.0}, "from 0 to 4, got 5"), ({0: -1.0}, "got -1"), ({10**6: 0.0}, "is not one of")]
)
def test_multipliers_out_of_range_are_refused(bench, subject, multipliers, words):
    with pytest.raises(ValueError, match=words):
        bench.change(subject, multipliers)


def test_all_that_is_active_is_told(bench, subject, catalogue):
    codes = torch.zeros_like(subject.codes)
    codes[0, 0] = torch.linspace(1, 2, codes.shape[-1])  # every feature in one cell
    page = bench.told(replace(subject, codes=codes))
    n = catalogue.trial.sae.d_sae
    assert page["n_active"] == len(page["active"]) == len(page["cells"][0]) == n
    assert [j for j, _ in page["cells"][0]] == list(reversed(range(n))) and not any(page["cells"][1:])


def test_blurring_a_cell_blurs_that_cell(bench, subject):
    got = bench.blurred(subject, [(0, 1)], sigma=16)
    size, (rows, columns) = subject.x.shape[1], subject.acts.shape[:2]
    changed = (got.x != subject.x).any(0)
    inside = torch.zeros_like(changed)
    inside[: size // rows, size // columns : 2 * size // columns] = True
    assert changed.any() and not changed[~inside].any()
    assert (got.logits - subject.logits).abs().max() > 0
    pixels = np.asarray(got.picture.resize((size, size)), np.float32)
    before = np.asarray(subject.picture.resize((size, size), Image.BICUBIC), np.float32)
    assert np.abs(pixels - before)[~inside.numpy()].max() <= 2  # shown as it is seen
    for cells, words in (([], "at least one cell"), ([(0, 99)], "cell 0, 99 is not in the grid")):
        with pytest.raises(ValueError, match=words):
            bench.blurred(subject, cells)


def test_a_flip_is_verified_and_needs_each_member(bench, catalogue):
    sizes = []
    for row in catalogue.rows[:6]:
        subject = bench.of_row(int(row))
        found = bench.flip(subject)
        predicted = catalogue.network.classes[int(subject.logits.argmax())]
        assert found["before"] == predicted
        if not found["features"]:
            continue
        sizes.append(len(found["features"]))
        gone = {j: 0.0 for j in found["features"]}
        assert (
            catalogue.network.classes[int(bench.change(subject, gone)["after"].argmax())] == found["after"] != predicted
        )
        assert found["verified"] and found["needed"]
        for left in found["features"]:
            kept = bench.change(subject, {j: 0.0 for j in found["features"] if j != left})["after"]
            assert catalogue.network.classes[int(kept.argmax())] == predicted
        if len(found["features"]) > 1:  # then none alone does it
            active = subject.strength.nonzero()[:, 0].tolist()
            alone = [int(bench.change(subject, {j: 0.0})["after"].argmax()) for j in active]
            assert {catalogue.network.classes[i] for i in alone} == {predicted}
    assert sizes


def test_a_picture_in_which_nothing_or_one_feature_is_active(bench, subject, catalogue):
    for kept in (0, 1):
        codes = torch.zeros_like(subject.codes)
        codes[0, 0, :kept] = 2.0
        bare = replace(subject, codes=codes)
        page = bench.told(bare)
        assert page["n_active"] == len(page["active"]) == kept
        assert sum(len(cell) for cell in page["cells"]) == kept
        flip = bench.flip(bare)
        assert len(flip["features"]) <= kept


def test_a_class_with_one_picture_is_refused_in_a_pair_by_name(catalogue):
    one, two = catalogue.network.classes[:2]
    first = catalogue.images["variant"].isin([one, two]).to_numpy().argmax()
    other = np.arange(len(catalogue.images)) != first
    alone, labels = catalogue.images["variant"].mask(other, "other"), catalogue.trial.labels.clone()
    labels[other] = 3
    few = replace(
        catalogue, images=catalogue.images.assign(variant=alone), trial=replace(catalogue.trial, labels=labels)
    )
    with pytest.raises(ValueError, match="too few test pictures"):
        few.pair(one, two)
    shown = {j: few.feature(j, level="variant", name=few.images["variant"][first])[0] for j in range(20)}
    pictures = [tile["picture"] for view in shown.values() for tile in view["gallery"]]
    assert set(pictures) == {int(few.rows[first])} and len(pictures) < 20  # one tile, or none
    for view in shown.values():
        json.dumps(view, allow_nan=False)


def test_pictures_of_12_megapixels_are_taken_and_what_is_none_is_refused(bench):
    assert bench.of_file(jpeg((4000, 3000)), "a.jpg").logits.isfinite().all()
    assert bench.of_file(jpeg((1, 1)), "a.jpg").logits.isfinite().all()
    with pytest.raises(ValueError, match=r"notes\.jpg cannot be used"):
        bench.of_file(b"these are my notes", "notes.jpg")
    with pytest.raises(ValueError, match="are too many"):
        bench.of_file(jpeg((9000, 6000)), "a.jpg")
    with pytest.raises(ValueError, match="cannot be used"):
        bench.of_file(jpeg((640, 480))[:500], "a.jpg")


def odd_files():
    """(name, content) of pictures that libraries read in several ways."""
    rng, files = np.random.default_rng(0), {}
    ramp = np.linspace(0, 65535, 30 * 40).reshape(30, 40)
    colours = rng.integers(0, 256, (30, 40, 4), np.uint8)
    palette = Image.fromarray(colours[..., :3]).quantize(16)
    palette.info["transparency"] = 3
    exif = Image.Exif()
    exif[0x0112] = 8
    pictures = {
        "16 bits.png": (Image.fromarray(ramp.astype(np.uint16)), {}), "hidden.png": (Image.fromarray(colours), {}),
        "LA.png": (Image.fromarray(colours[..., :2], "LA"), {}), "palette.png": (palette, {"transparency": 3}),
        "CMYK.jpg": (Image.fromarray(colours[..., :3]).convert("CMYK"), {}),
        "turned.jpg": (Image.fromarray(rng.integers(0, 256, (900, 1300, 3), np.uint8)), {"exif": exif}),
    }  # fmt: skip
    for name, (picture, options) in pictures.items():
        file = io.BytesIO()
        picture.save(file, "JPEG" if name.endswith("jpg") else "PNG", **options)
        files[name] = file.getvalue()
    return files


@pytest.mark.parametrize("name", odd_files())
def test_an_uploaded_file_is_what_the_data_set_makes_of_it(bench, catalogue, tmp_path, monkeypatch, name):
    content = odd_files()[name]
    monkeypatch.setattr(catalogue.trial.pictures, "banner", 5)
    files = PictureFiles(tmp_path, {"a": tmp_path / name}, pd.DataFrame({"image": ["a"], "split": "test"}), {}, 5)
    (tmp_path / name).write_bytes(content)
    seen = bench.of_file(content, name).picture
    assert (np.asarray(seen) == np.asarray(files.picture("a"))).all()
    assert seen.height < max(30, 1300) and (name != "turned.jpg" or seen.size == (900, 1295))


def test_a_photograph_is_seen_as_the_camera_was_held(bench):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    lying, file = Image.fromarray(pixels), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    lying.save(file, "PNG", exif=exif)
    wanted = np.asarray(lying.transpose(Image.Transpose.ROTATE_270))
    assert (np.asarray(bench.of_file(file.getvalue(), "a.png").picture) == wanted).all()


# ---------------------------------------------------------------- one feature on two classes
def test_effects_are_on_the_margin_that_is_asked_for(bench, subject, catalogue):
    row, classes = int(catalogue.rows[0]), catalogue.network.classes
    own = catalogue.label(row)
    for against in ("", *(name for name in classes if name != own)):
        page = bench.told(subject, row, against)
        assert page["own"] == own and page["other"] == (against or page["other"]) != own
        a, b = classes.index(own), classes.index(page["other"])
        for each in page["active"][:3]:
            change = bench.change(subject, {each["feature_id"]: 0.0})["after"] - subject.logits
            assert each["effect"] == pytest.approx(float(change[a] - change[b]), abs=1e-4)
    left = sorted((float(value), name) for name, value in zip(classes, subject.logits, strict=True) if name != own)
    assert bench.told(subject, row)["other"] == left[-1][1]
    for wrong in (own, "zeppelin"):
        with pytest.raises(ValueError, match=wrong):
            bench.told(subject, row, wrong)


def test_a_features_effect_on_a_pair_is_that_of_its_pictures_one_by_one(bench, catalogue, often):
    one, two = catalogue.network.classes[:2]
    found = catalogue.effect(often, one, two)
    rows = [int(row) for row in catalogue.rows if catalogue.label(row) in (one, two)]
    pair, changes = [bench.network.classes.index(name) for name in (one, two)], {}
    for row in rows:
        subject, sign = bench.of_row(row), 1 if catalogue.label(row) == one else -1
        made = bench.change(subject, {often: 0.0})
        for name in ("after", "random"):
            change = made[name] - made["before"]
            changes.setdefault(name, []).append(sign * float(change[pair[0]] - change[pair[1]]))
    assert found["effect"]["n"] == len(rows)
    assert found["effect"]["value"] == pytest.approx(np.mean(changes["after"]), abs=1e-4)
    assert found["random"]["value"] == pytest.approx(np.mean(changes["random"]), abs=1e-4)
    assert abs(found["effect"]["value"] - found["random"]["value"]) > 1e-3  # else neither could be taken for the other
    best = max(range(len(rows)), key=lambda i: abs(changes["after"][i]))
    assert found["pictures"][0]["picture"] == rows[best]
    with pytest.raises(ValueError, match="zeppelin"):
        catalogue.effect(often, one, "zeppelin")


def test_what_a_feature_pushes_up_goes_down_without_it(bench, catalogue, often):
    pushes, lost = catalogue.about(often)["pushes"], 0
    active = [int(row) for row, s in zip(catalogue.rows, catalogue.trial.strength[:, often], strict=True) if s > 0]
    for row in active[:200]:
        made = bench.change(bench.of_row(row), {often: 0.0})
        lost = lost + made["before"] - made["after"]
    lost = lost / min(200, len(active))
    lost = dict(zip(catalogue.network.classes, (lost - lost.mean()).tolist(), strict=True))
    best = max(lost, key=lost.get)
    assert pushes["up"][0] == [best, pytest.approx(lost[best], abs=1e-4)] and pushes["n"] == min(200, len(active))
    assert pushes["down"][0] == [min(lost, key=lost.get), pytest.approx(min(lost.values()), abs=1e-4)]
    strength, own = catalogue.trial.strength[:, [often]], catalogue.trial.sae.W_dec.detach()[[often]]
    random, most = random_directions(own.expand(20, -1), cell_covariance(catalogue.trial.acts), (0, often)), []
    kept = strength[:, 0] > 0
    for direction in random:
        after = catalogue.trial.readout.logits(catalogue.trial.pooled[kept] - strength[kept] * direction)
        added = (catalogue.trial.readout.logits(catalogue.trial.pooled[kept]) - after).mean(0)
        most.append(float((added - added.mean()).abs().max()))
    assert pushes["band"] == pytest.approx(np.quantile(most, 0.95), rel=1e-3)


def test_parts_are_told_of_every_feature(catalogue):
    facts = catalogue.overview()
    assert tuple(facts["parts"]) == catalogue.trial.pictures.region_names
    for row in catalogue.parts.sample(20, random_state=0).itertuples():
        told = facts["parts"][row.part]["ap"][row.feature_id]
        assert told == (None if np.isnan(row.ap) else pytest.approx(row.ap, abs=6e-4))


# ---------------------------------------------------------------- labels
def test_labels_are_on_disk_at_once_and_shared(tmp_path):
    one, two = Labels(tmp_path, "abc"), Labels(tmp_path, "abc")
    one.set(3, label="fin, upper", note='says "left"\nonly')
    two.set(np.int64(4), rating=5)
    one.set(3, rating=2)
    wanted = {
        3: {"label": "fin, upper", "note": 'says "left"\nonly', "rating": 2},
        4: {"label": "", "note": "", "rating": 5},
    }
    assert one.all() == two.all() == Labels(tmp_path, "abc").all() == wanted
    assert Labels(tmp_path, "another").all() == {}  # other features, other labels
    Labels(tmp_path, "another").set(3, label="NA")
    assert one.all() == wanted and Labels(tmp_path, "another").all()[3]["label"] == "NA"
    one.set(4, rating=0)
    assert 4 not in one.all()  # nothing is left to say


def test_two_processes_lose_no_label(tmp_path):
    code = "import sys; from aircraft_sae.view.browser import Labels\n"
    code += "for i in range(15): Labels(sys.argv[1], 'abc').set(int(sys.argv[2]) + i, label=f'of {sys.argv[2]}')"
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(first)]) for first in (0, 100)]
    assert [process.wait() for process in running] == [0, 0]
    assert set(Labels(tmp_path, "abc").all()) == {*range(15), *range(100, 115)}


def test_what_others_wrote_is_heard_once(smoke_study, catalogue):
    answers = FeatureBrowser(smoke_study).answers
    (overview, _), labels = answers.overview(), Labels(catalogue.folder, catalogue.key)
    stamp = overview["stamp"]
    assert answers.heard(stamp) == ({"labels": None, "stamp": stamp}, [])
    try:
        for said in ("wing", "tail"):  # of equal length, at once
            labels.set(3, label=said)
            heard, _ = answers.heard(stamp)
            assert heard["labels"][3]["label"] == said and heard["stamp"] != stamp
            stamp = heard["stamp"]
        own, _ = answers.label(4, rating=2)  # what is written here need not be heard again
        assert own["labels"][4]["rating"] == 2 and answers.heard(own["stamp"])[0]["labels"] is None
    finally:
        labels.path.unlink()
    assert answers.heard(stamp)[0]["labels"] == {}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"colour": "x"}, "no 'colour'"),
        ({"rating": 6}, "got 6"),
        ({"rating": True}, "got True"),
        ({"label": "x" * 201}, "at most 200"),
        ({"note": 3}, "got '3'"),
    ],
)
def test_what_cannot_be_said_is_refused_and_nothing_changes(tmp_path, said, words):
    labels = Labels(tmp_path, "abc")
    labels.set(1, label="wing")
    before = labels.path.read_bytes()
    with pytest.raises(ValueError, match=words):
        labels.set(1, **said)
    assert labels.path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a,b\n1,2\n", b"autoencoder,feature_id,label,note,rating,changed\nx,one,,,0,\n"]
)
def test_a_damaged_table_of_labels_is_named_and_kept(tmp_path, content):
    labels = Labels(tmp_path, "abc")
    labels.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.csv"):
        labels.all()
    with pytest.raises(ValueError, match=r"labels\.csv"):
        labels.set(1, label="wing")
    assert labels.path.read_bytes() == content


# ---------------------------------------------------------------- widgets
@pytest.fixture
def sent(monkeypatch):
    messages = []
    monkeypatch.setattr(Application, "send", lambda self, content, buffers=None: messages.append((content, buffers)))
    return messages


def test_the_widget_answers_what_it_is_asked(smoke_study, catalogue, sent, often):
    browser = FeatureBrowser(smoke_study, often)
    wanted, arrays = catalogue.feature(often)
    known = [tile["picture"] for tile in wanted["gallery"]]
    browser._answer(None, {"id": "a/1", "call": "feature", "given": {"feature_id": often, "known": known}}, [])
    content, (maps,) = sent.pop()
    assert (
        content == {"id": "a/1", "result": wanted | {"fresh": []}}
        and np.frombuffer(maps, np.float32).tolist() == arrays.ravel().tolist()
    )
    browser._answer(None, {"call": "feature", "given": {"feature_id": often, "known": known[:1]}}, [])
    content, (_, *thumbnails) = sent.pop()
    assert content["result"]["fresh"] == known[1:] and thumbnails == [catalogue.thumbnail(row) for row in known[1:]]
    browser._answer(None, {"id": "a/2", "call": "open", "given": {"row": int(catalogue.rows[0])}}, [])
    content, (picture,) = sent.pop()
    assert content["result"]["label"] == catalogue.label(int(catalogue.rows[0])) and picture[:2] == b"\xff\xd8"
    first = content["result"]["active"][0]["feature_id"]
    browser._answer(
        None,
        {"id": "a/3", "call": "change", "given": {"key": content["result"]["key"], "multipliers": {str(first): 0}}},
        [],
    )
    content, _ = sent.pop()
    bench = browser.answers.bench
    subject = bench.of_row(int(catalogue.rows[0]))
    assert content["result"]["after"] == bench.change(subject, {first: 0.0})["after"].tolist()
    browser._answer(None, {"id": "a/4", "call": "upload", "given": {"name": "x.jpg"}}, [memoryview(jpeg((300, 200)))])
    assert sent.pop()[0]["result"]["label"] is None
    assert not browser.errors and not sent


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"call": "feature", "given": {"feature_id": 10**6}}, "is not one of"),
        ({"call": "_told", "given": {}}, "'_told' is nothing that can be asked"),
        ({"call": "delete"}, "'delete' is nothing that can be asked"),
        ({}, "None is nothing that can be asked"),
        (
            {"call": "change", "given": {"key": "mine", "multipliers": {}}},
            "no longer on the bench: give its file again",
        ),
        ({"call": "feature", "given": {"colour": 1}}, "TypeError"),
        ({"call": "upload", "given": {"name": "notes.jpg"}}, "IndexError"),
    ],
)
def test_errors_are_shown_not_swallowed(smoke_study, sent, message, words):
    bench = InterventionBench(smoke_study)
    bench._answer(None, {"id": 1, **message}, [])
    assert len(sent) == 1 and words in sent[0][0]["error"] and len(bench.errors) == 1


def test_an_equal_blur_elsewhere_is_on_the_aircraft_and_changes_as_much(bench, subject):
    rows, columns = subject.acts.shape[:2]
    x = torch.zeros_like(subject.x)
    size, contrast = x.shape[1] // columns, torch.arange(1.0, rows * columns + 1)
    stripes = (torch.arange(x.shape[2]) // 2 % 2 * 2 - 1).float()
    for at, level in enumerate(contrast):  # each cell's stripes stronger than those of the cell before
        down, across = (slice(k * size, (k + 1) * size) for k in divmod(at, columns))
        x[:, down, across] = level * stripes[across]
    striped = replace(subject, x=x, aircraft=np.ones((rows, columns), bool))
    assert bench.elsewhere(striped, [(0, 0)], 16).tolist() == [[0, 1]], "the next in strength"
    partly = replace(striped, aircraft=np.arange(rows * columns).reshape(rows, columns) != 1)
    assert bench.elsewhere(partly, [(0, 0)], 16).tolist() == [list(divmod(2, columns))], "of the aircraft's cells"
    assert not len(bench.elsewhere(striped, list(np.ndindex(rows, columns))[1:], 16)), "too few are left"


def test_what_is_asked_of_a_picture_is_answered_of_it_whichever_was_opened_last(smoke_study, catalogue, monkeypatch):
    answers, bench = FeatureBrowser(smoke_study).answers, Bench(catalogue)
    one, two = map(int, catalogue.rows[:2])
    wanted = bench.change(bench.of_row(one), {0: 0.0, 3: 2.0})["after"].tolist()
    for most in (32, 1):  # with one kept, the other is opened again
        monkeypatch.setattr("aircraft_sae.view.browser.widgets.MOST_SUBJECTS", most)
        answers.open(one), answers.open(two)
        assert answers.change(one, {"0": 0, "3": 2})[0]["after"] == wanted and len(answers.subjects) <= most
    key = answers.upload("x.jpg", jpeg((300, 200)))[0]["key"]
    answers.open(two)
    with pytest.raises(ValueError, match="give its file again"):
        answers.flip(key)


def test_a_page_without_a_kernel_shows_the_gallery_of_the_browsers_feature(smoke_study):
    browser = FeatureBrowser(smoke_study)
    data, _ = browser._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert min(Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).size) > 300


def test_a_feature_that_is_not_there_is_refused_before_anything_is_shown(smoke_study):
    with pytest.raises(ValueError, match="feature 99999 is not one of"):
        FeatureBrowser(smoke_study, 99999)


# ---------------------------------------------------------------- atlas
@pytest.fixture(scope="module")
def atlas(smoke_study):
    return export_atlas(smoke_study).parent


def given(path, name):
    """What a script hands to the page."""
    text = (path / name).read_text(encoding="utf-8")
    start = f"ATLAS.got({json.dumps(name)}, "
    assert text.startswith(start)
    return json.loads(text[len(start) :].rstrip().removesuffix(");"))


def test_the_atlas_has_every_feature_and_picture_that_it_shows(atlas, catalogue, often):
    first = often - often % 20
    page = given(atlas, f"features/{first:05d}.js")[often - first]
    wanted, maps = catalogue.feature(often)
    for tile, said in zip(page["galleries"]["top"]["tiles"], wanted["gallery"], strict=True):
        value = pytest.approx(said["value"], rel=1e-4)
        assert {"predicted": tile["label"]} | tile == said | {"value": value}  # a right prediction is not said twice
    assert page["about"] == json.loads(json.dumps(catalogue.about(often)))
    shares = np.frombuffer(base64.b64decode(page["galleries"]["top"]["maps"]), np.uint8)
    np.testing.assert_allclose(
        shares / 255 * catalogue.table.at[often, "max"], maps.ravel(), atol=catalogue.table["max"].max() / 255
    )
    shown = {tile["picture"] for each in page["galleries"].values() for tile in each["tiles"]}
    assert shown and all((atlas / "pictures" / f"{row:05d}.jpg").is_file() for row in shown)
    assert len(list((atlas / "features").glob("*.js"))) == -(-catalogue.trial.sae.d_sae // 20)


def test_the_atlas_bench_has_what_its_arithmetic_needs(atlas, catalogue, bench):
    text = (atlas / "data.js").read_text(encoding="utf-8")
    data = json.loads(text.removeprefix("window.ATLAS = ").rstrip().removesuffix(";"))
    assert len(data["facts"]["bench_pictures"]) == 2 * len(catalogue.network.classes)
    head = given(atlas, "bench/head.js")
    row = data["facts"]["bench_pictures"][0]["picture"]
    page = given(atlas, f"bench/{row:05d}.js")
    used = {each["feature_id"] for each in page["active"]}
    assert used <= set(head["features"]) and set(page["flip"]["features"]) <= used
    hidden = torch.from_numpy(np.frombuffer(base64.b64decode(page["hidden"]), np.float32).copy())
    found = catalogue.trial.readout.logits(hidden[None])[0]
    torch.testing.assert_close(found, bench.of_row(row).logits, atol=1e-5, rtol=0)


def test_the_atlas_bench_is_of_all_classes_of_mistakes_and_of_what_galleries_show(catalogue):
    images = pd.DataFrame({"label": list("aaabbbccc"), "predicted": list("aaabbbcca")})
    small = replace(catalogue, images=images, rows=np.arange(9) + 100)
    shown = {101: {1}, 102: {2, 3}, 103: {2, 3}, 104: {4}, 106: {5}, 107: {2, 3, 4}}
    assert _chosen(small, shown, 2) == [102, 104]  # 103's features have their picture already
    assert _chosen(small, shown, 3) == [102, 104, 106]
    assert _chosen(small, shown, 6)[:5] == [102, 104, 106, 101, 103]
    assert sorted(_chosen(small, shown, 99)) == list(range(100, 109))
    some = {100: {1}, 102: {2, 3}}
    assert _chosen(small, some, 4)[::3] == [102, 100]
    images["predicted"] = list("abaaaaaaa")  # every fourth is a misclassified one, if its class has any
    assert _chosen(small, some, 4)[::3] == [102, 101]


def test_an_atlas_is_made_again_only_where_something_changed(smoke_study, atlas, catalogue):
    def made():
        return (atlas / "data.js").stat().st_mtime_ns

    before = made()
    assert export_atlas(smoke_study).parent == atlas and made() == before
    labels = Labels(catalogue.folder, catalogue.key)
    labels.set(5, label="</script><b>wing")
    try:
        export_atlas(smoke_study)
        text = (atlas / "labels.js").read_text(encoding="utf-8")
        assert made() == before, "a label has a file of its own"
        assert "wing" in text and "</script>" not in text
    finally:
        labels.set(5, label="")


def test_verdicts_of_other_features_are_not_shown(smoke_study, catalogue):
    folder = smoke_study.folder / "experiments" / "verdicts-main"
    if folder.exists():
        pytest.skip("notebook 05 has run in this folder")
    folder.mkdir(parents=True)
    known = pd.DataFrame({"feature_id": range(catalogue.trial.sae.d_sae), "seed_match": 0.5, "verdict": None})
    known.loc[3, "verdict"] = "detector of fin"
    responses = catalogue.parts[["feature_id", "part"]].sample(frac=1, random_state=0).assign(response=0.0)
    responses.loc[responses["feature_id"] == 7, "response"] = 0.25
    try:
        write_parquet(known, folder / "features.parquet")
        write_parquet(responses, folder / "responses.parquet")
        for key, there in ((digest(catalogue.index), True), ("0" * 16, False)):
            write_json(folder / META, {"inputs": {"index": key}})
            shown = Catalogue.of(smoke_study)
            assert ("verdict" in shown.table) == there == ("seed_match" in shown.table)
            assert not there or shown.table["verdict"][3] == "detector of fin"
            assert {part.get("response") for part in shown.about(7)["parts"]} == {0.25 if there else None}
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


# ---------------------------------------------------------------- a network whose effects have no closed form
@pytest.fixture(scope="module", params=[True, False], ids=["classes", "no levels"])
def elsewhere(request, tmp_path_factory):
    """A study of the catalogue of a plain network, at a site with a nonlinearity behind it; its bench too."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(36):
        path = folder / ("red", "green")[i % 2] if request.param else folder
        path.mkdir(exist_ok=True)
        pixels = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
        pixels[8:30, 10:40, i % 2] += np.uint8(100)
        Image.fromarray(pixels).save(path / f"{i}.png")
    pictures, classes = ImageFolder.open(folder), ["green", "red"]
    torch.manual_seed(0)
    network = Network(Plain(2), classes, 64, name="plain", level="class" if request.param else None)
    sae = SAEConfig(site="first", expansion=4, k=4, n_cells=2000, batch_size=32, aux_k=0, dead_after=1000)
    config = StudyConfig(name="plain", sites=("first",), n_views=0, sae=sae)
    study = Study.open(config, data_dir=tmp_path_factory.mktemp("data"), network=network, pictures=pictures)
    catalogue = catalogue_of(study)
    assert catalogue.trial.readout is None
    return study, catalogue, Bench(catalogue)


def forward(bench, subject, features, factor=0.0):
    """Logits of one forward pass with these features multiplied."""
    taken = (1 - factor) * subject.codes[..., features] @ bench.W_dec[features]
    with torch.no_grad():
        return bench.network.see(subject.x[None], edits={"first": lambda acts: acts - taken}).logits[0]


def test_without_a_closed_form_the_bench_goes_by_forward_passes(elsewhere):
    _, catalogue, bench = elsewhere
    subject = bench.of_row(int(catalogue.rows[0]))
    page = bench.told(subject, int(catalogue.rows[0]))
    tried = [each for each in page["active"] if each["effect"] is not None]
    assert 0 < len(tried) == min(N_TRIED, page["n_active"]) and page["active"][: len(tried)] == tried
    own, other = (bench.network.classes.index(page[name]) for name in ("own", "other"))
    for each in tried[:3]:
        change = forward(bench, subject, [each["feature_id"]]) - subject.logits
        assert each["effect"] == pytest.approx(float(change[own] - change[other]), abs=1e-4)
    some = [each["feature_id"] for each in tried[:2]]
    made = bench.change(subject, dict.fromkeys(some, 3.0))
    torch.testing.assert_close(made["after"], forward(bench, subject, some, 3.0), atol=1e-4, rtol=1e-4)
    recon = bench.sae.reconstruct(subject.acts.flatten(0, 1))[0].detach().view(subject.acts.shape)
    with torch.no_grad():
        wanted = bench.network.see(subject.x[None], edits={"first": lambda _: recon[None]}).logits[0]
    torch.testing.assert_close(bench.reconstruction(subject), wanted, atol=1e-4, rtol=1e-4)
    silent = replace(subject, codes=torch.zeros_like(subject.codes))
    assert bench.told(silent)["active"] == bench.flip(silent)["features"] == []
    found = [(each, bench.flip(each)) for each in map(bench.of_row, catalogue.rows.tolist())]
    flipped = [(each, flip) for each, flip in found if flip["features"]]
    for each, flip in flipped:
        assert flip["verified"] and flip["needed"] and flip["before"] != flip["after"]
        assert bench.network.classes[int(forward(bench, each, flip["features"]).argmax())] == flip["after"]


@pytest.mark.parametrize("elsewhere", [True], indirect=True)
def test_without_a_closed_form_features_are_multiplied_in_chosen_cells_alone(elsewhere):
    _, catalogue, bench = elsewhere
    check_some_cells(bench, bench.of_row(int(catalogue.rows[0])))


@pytest.mark.parametrize("elsewhere", [True], indirect=True)
def test_without_a_closed_form_a_pair_is_compared_by_forward_passes(elsewhere):
    _, catalogue, bench = elsewhere
    first = catalogue.pair("green", "red", n=2)[0]
    changes = []
    for i in np.flatnonzero(catalogue.trial.in_b):
        subject, label = bench.of_row(int(catalogue.rows[i])), int(catalogue.trial.labels[i])
        change = forward(bench, subject, [first["feature_id"]]) - subject.logits
        changes.append(float(change[label] - change[1 - label]))
    assert first["n"] == len(changes) and first["value"] == pytest.approx(np.mean(changes), abs=2e-3)


def test_without_a_closed_form_the_atlas_stores_what_each_switch_gives(elsewhere):
    study, _, bench = elsewhere
    folder = export_atlas(study).parent
    text = (folder / "data.js").read_text(encoding="utf-8")
    data = json.loads(text.removeprefix("window.ATLAS = ").rstrip().removesuffix(";"))
    assert data["facts"]["switches"] and data["facts"]["radius"] > 0
    row = data["facts"]["bench_pictures"][0]["picture"]
    page, subject = given(folder, f"bench/{row:05d}.js"), bench.of_row(row)
    assert 0 < len(page["active"]) == len(page["after"]) == len(page["random"]) <= N_TRIED and "flip" not in page
    wanted = forward(bench, subject, [page["active"][0]["feature_id"]])
    torch.testing.assert_close(torch.tensor(page["after"][0]), wanted, atol=1e-4, rtol=1e-4)
    assert not (folder / "bench" / "head.js").exists()
    assert not data["facts"]["has_regions"] and page["regions"] is None  # nor have these pictures parts
    assert not (folder / "bench" / "regions.js").exists()
