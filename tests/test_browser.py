"""What the browser shows, without a front end: catalogue, bench, labels, the widget's answers."""

import base64
import io
import json
import shutil
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
from aircraft_sae.interventions.suppression import N_TRIED, tell_apart
from aircraft_sae.networks import Network
from aircraft_sae.pictures import ImageFolder
from aircraft_sae.pictures.base import PictureFiles
from aircraft_sae.store import META, digest, write_json, write_parquet
from aircraft_sae.study import Study
from aircraft_sae.view.browser import Bench, Catalogue, FeatureBrowser, InterventionBench, Labels
from aircraft_sae.view.browser.catalogue import catalogue_of
from aircraft_sae.view.browser.widgets import Answers, Application


@pytest.fixture(scope="module")
def subject(bench):
    """The first test picture."""
    return bench.of_row(int(bench.catalogue.rows[0]))


def file_of(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(*size):
    return file_of(Image.new("RGB", size, (90, 120, 200)))


def same(got, wanted, atol=1e-5, rtol=1e-5):
    got, wanted = (torch.as_tensor(each).double() for each in (got, wanted))
    torch.testing.assert_close(got, wanted, atol=atol, rtol=rtol)


# ---------------------------------------------------------------- catalogue
def test_the_overview_has_every_feature_and_part_and_fits_into_one_message(catalogue, often):
    facts = json.loads(json.dumps(catalogue.overview(), allow_nan=False))
    assert facts["columns"]["feature_id"] == list(range(facts["n_features"])) and len(facts["colours"]) == 768
    assert set(facts["classes"]) == {"variant", "family", "manufacturer"} and facts["has_parts"]
    assert tuple(facts["parts"]) == catalogue.trial.pictures.region_names
    for score in catalogue.parts.sample(20, random_state=0).itertuples():
        ap = facts["parts"][score.part]["ap"][score.feature_id]
        assert ap == (None if np.isnan(score.ap) else pytest.approx(score.ap, abs=6e-4))
    photographs = replace(catalogue, parts=None)
    assert photographs.feature(often)[0]["parts"] == [] and not photographs.overview()["has_parts"]
    wide = pd.concat([catalogue.table] * (10_000 // len(catalogue.table) + 1), ignore_index=True).head(10_000)
    facts = replace(catalogue, table=wide.assign(feature_id=range(10_000))).overview()
    assert facts["n_features"] == 10_000 and len(json.dumps(facts)) < 6e6  # JupyterLab's limit is 10 MB


def test_a_gallery_shows_the_index_of_one_class_or_of_mistakes(catalogue, often):
    view, maps = catalogue.feature(often, n=5)
    assert view["feature_id"] == often and len(view["gallery"]) == len(maps) <= 5
    values = [tile["value"] for tile in view["gallery"]]
    assert values == sorted(values, reverse=True)
    for tile, each in zip(view["gallery"], maps, strict=True):
        assert each[tuple(tile["cell"])] == pytest.approx(tile["value"]) and each.max() == pytest.approx(tile["value"])
        own = catalogue.index.images.iloc[tile["picture"]]
        assert own["split"] == "test" and own["variant"] == tile["label"]
    name = catalogue.images["variant"].iloc[0]
    assert {tile["label"] for tile in catalogue.feature(often, level="variant", name=name)[0]["gallery"]} <= {name}
    everything, wrong = (catalogue.feature(often, n=100, wrong=wrong)[0]["gallery"] for wrong in (False, True))
    assert wrong == [tile for tile in everything if tile["label"] != tile["predicted"]]


def test_a_features_page_is_counted_from_its_maps_and_a_dead_one_is_empty(catalogue, often):
    about, maps = catalogue.about(often), catalogue.index.maps(often, catalogue.rows)
    assert sum(about["histogram"]["counts"]) == (maps > 0).sum() and about["histogram"]["n_cells"] == maps.size
    assert about["histogram"]["top"] == pytest.approx(maps.max())
    means = pd.Series(maps.max((1, 2)), catalogue.images["variant"]).groupby(level=0).mean()
    assert about["classes"]["variant"][0] == [means.idxmax(), pytest.approx(means.max())]
    assert [level["level"] for level in about["selectivity"]] == ["variant", "family", "manufacturer"]
    best = about["parts"][0]
    scores = catalogue.parts.query("feature_id == @often").set_index("part")["ap"]
    assert best["ap"] == pytest.approx(scores.max(), rel=1e-5) and best["part"] == scores.idxmax()
    assert often not in [each["feature_id"] for each in about["neighbours"]]
    dead = int(catalogue.table["density_cell"].argmin())
    view, maps = catalogue.feature(dead)
    assert catalogue.table.at[dead, "density_cell"] == len(view["gallery"]) == len(maps) == 0
    assert sum(view["histogram"]["counts"]) == 0 and json.dumps(view, allow_nan=False)


def test_what_a_feature_pushes_up_goes_down_without_it(bench, catalogue, often):
    pushes, trial, lost = catalogue.about(often)["pushes"], catalogue.trial, 0
    active = (trial.strength[:, often] > 0).numpy()
    assert pushes["n"] == active.sum() <= 200
    for row in catalogue.rows[active]:
        made = bench.change(bench.of_row(int(row)), {often: 0.0})
        lost = lost + (made["before"] - made["after"]) / active.sum()
    lost = dict(zip(catalogue.network.classes, (lost - lost.mean()).tolist(), strict=True))
    for end, best in (("up", max(lost, key=lost.get)), ("down", min(lost, key=lost.get))):
        assert pushes[end][0] == [best, pytest.approx(lost[best], abs=1e-4)]
    strength, own = trial.strength[active][:, [often]], trial.sae.W_dec.detach()[[often]]
    most, pooled = [], trial.pooled[active]
    for direction in random_directions(own.expand(20, -1), cell_covariance(trial.acts), (0, often)):
        added = (trial.readout.logits(pooled) - trial.readout.logits(pooled - strength * direction)).mean(0)
        most.append(float((added - added.mean()).abs().max()))
    assert pushes["band"] == pytest.approx(np.quantile(most, 0.95), rel=1e-3)


def check_pair(bench, one, two):
    """A pair's features are chosen on half A and measured on half B."""
    catalogue, classes, rows, changes = bench.catalogue, bench.network.classes, [], []
    found, other = catalogue.pair(one, two, n=4), catalogue.pair(two, one, n=4)
    ranked = tell_apart(catalogue.trial, (classes.index(one), classes.index(two)), 4)["feature_id"].tolist()
    assert [each["feature_id"] for each in found] == [each["feature_id"] for each in other] == ranked
    for row in map(int, catalogue.rows):
        if (label := catalogue.label(row)) in (one, two):
            made = bench.change(bench.of_row(row), {found[0]["feature_id"]: 0.0})
            change = made["after"] - made["before"]
            rows.append(row)
            changes.append(float(change[classes.index(label)] - change[classes.index(two if label == one else one)]))
    in_b, changes = catalogue.trial.in_b[np.isin(catalogue.rows, rows)], np.array(changes)
    assert found[0]["n"] == in_b.sum() and changes[~in_b].mean() < 0
    assert found[0]["value"] == pytest.approx(changes[in_b].mean(), abs=1e-4)


def test_a_pairs_features_are_chosen_on_one_half_and_measured_on_the_other(bench, catalogue):
    one, two = catalogue.network.classes[:2]
    check_pair(bench, one, two)
    for pair in ((one, one), (one, "Concorde")):
        with pytest.raises(ValueError, match="two different classes"):
            catalogue.pair(*pair)
    one_half = replace(catalogue, trial=replace(catalogue.trial, in_b=np.ones_like(catalogue.trial.in_b)))
    with pytest.raises(ValueError, match="too few test pictures for two halves"):
        one_half.pair(one, two)


def test_verdicts_on_another_index_are_not_shown(browser_study, catalogue):
    folder = browser_study.folder / "experiments" / "verdicts-main"
    folder.mkdir(parents=True)
    known = pd.DataFrame({"feature_id": range(catalogue.trial.sae.d_sae), "verdict": None})
    known.loc[3, "verdict"] = "detector of fin"
    responses = catalogue.parts[["feature_id", "part"]].sample(frac=1, random_state=0)
    responses["response"] = (responses["feature_id"] == 7) / 4
    try:
        write_parquet(known, folder / "features.parquet")
        write_parquet(responses, folder / "responses.parquet")
        write_parquet(responses.head(9).assign(tier=2)[["feature_id", "part", "tier"]], folder / "parts.parquet")
        for key, there in ((digest(catalogue.index), True), ("0" * 16, False)):
            write_json(folder / META, {"inputs": {"index": key}})
            shown = Catalogue.of(browser_study)
            assert ("verdict" in shown.table) == there
            assert not there or shown.table["verdict"][3] == "detector of fin"
            assert {part.get("response") for part in shown.about(7)["parts"]} == {0.25 if there else None}
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------- bench
def edited(subject, multipliers, cells, directions):
    """The subject's acts with features multiplied in these cells, one by one."""
    acts = subject.acts.clone()
    for row, column in cells:
        for j, factor in multipliers.items():
            acts[row, column] += (factor - 1) * subject.codes[row, column, j] * directions[j]
    return acts


def check_forward(bench, subject):
    """Multipliers, in one column and in all cells, and the reconstruction give logits of forward passes."""

    def passed(acts):
        with torch.no_grad():
            return bench.network.see(subject.x[None], edits={bench.sae.cfg.site: lambda _: acts[None]}).logits[0]

    recon = bench.sae.reconstruct(subject.acts.flatten(0, 1))[0].detach().view(subject.acts.shape)
    same(bench.reconstruction(subject), passed(recon), 1e-4, 1e-4)
    assert (bench.reconstruction(subject) - subject.logits).abs().max() > 1e-4  # it drops the error
    active = subject.codes[:, 0].sum(0).topk(3).indices.tolist()
    multipliers = dict(zip(active, (0.0, 2.5, 4.0), strict=True))
    rows, columns = subject.acts.shape[:2]
    everywhere, made = list(np.ndindex(rows, columns)), {}
    for cells in ([(i, 0) for i in range(rows)], everywhere):
        made[len(cells)] = bench.change(subject, multipliers, cells)
        for name, directions in (("after", bench.W_dec), ("random", bench.catalogue.trial.random)):
            same(made[len(cells)][name], passed(edited(subject, multipliers, cells, directions)))
    some, all_ = made[rows]["after"], made[len(everywhere)]["after"]
    same(bench.change(subject, multipliers)["after"], all_)
    assert (some - subject.logits).abs().max() > 5e-4 < (some - all_).abs().max()
    with pytest.raises(ValueError, match="cell 0, 99 is not in the grid"):
        bench.change(subject, multipliers, [(0, 99)])
    silent = replace(subject, codes=torch.zeros_like(subject.codes))
    assert bench.page(silent)["active"] == []


def check_effects(bench, subject, page):
    """Effects are on the page's margin."""
    own, other = (bench.network.classes.index(page[name]) for name in ("own", "other"))
    for each in page["active"][:3]:
        change = bench.change(subject, {each["feature_id"]: 0.0})["after"] - subject.logits
        assert each["effect"] == pytest.approx(float(change[own] - change[other]), abs=1e-4)


def test_multipliers_of_one_change_nothing_and_others_are_the_forward_pass_of_edited_acts(bench, subject):
    for logits in bench.change(subject, {3: 1.0, 7: 1.0}).values():
        same(logits, subject.logits)
    with pytest.raises(ValueError, match="from 0 to 4, got 5"):
        bench.change(subject, {0: 5.0})
    check_forward(bench, subject)


def test_effects_are_on_the_chosen_margin(bench, subject, catalogue):
    row, classes = int(catalogue.rows[0]), catalogue.network.classes
    own = catalogue.label(row)
    for against in ("", *(name for name in classes if name != own)):
        page = bench.page(subject, row, against)
        assert page["own"] == own and page["other"] == (against or page["other"]) != own
        check_effects(bench, subject, page)
    others = {name: float(value) for name, value in zip(classes, subject.logits, strict=True) if name != own}
    assert bench.page(subject, row)["other"] == max(others, key=others.get)
    for wrong in (own, "zeppelin"):
        with pytest.raises(ValueError, match=wrong):
            bench.page(subject, row, wrong)


@pytest.mark.parametrize("n", [1, 256])
def test_a_picture_lists_all_its_active_features(bench, subject, n):
    codes = torch.zeros_like(subject.codes)
    codes[0, 0, :n] = torch.linspace(1, 2, n)  # all in one cell
    page = bench.page(replace(subject, codes=codes))
    assert len(page["active"]) == n
    assert [j for j, _ in page["cells"][0]] == list(reversed(range(n))) and not any(page["cells"][1:])


def test_a_blur_changes_its_cells_only_and_its_control_is_equally_changed_and_on_the_aircraft(bench, subject):
    got = bench.blurred(subject, [(0, 1)], sigma=16)
    size, (rows, columns) = subject.x.shape[1], subject.acts.shape[:2]
    changed = (got.x != subject.x).any(0)
    inside = torch.zeros_like(changed)
    inside[: size // rows, size // columns : 2 * size // columns] = True
    assert changed.any() and not changed[~inside].any()
    assert (got.logits - subject.logits).abs().max() > 0
    pixels = np.asarray(got.picture.resize((size, size)), np.float32)
    before = np.asarray(subject.picture.resize((size, size), Image.BICUBIC), np.float32)
    assert np.abs(pixels - before)[~inside.numpy()].max() <= 2
    for cells, words in (([], "at least one cell"), ([(0, 99)], "cell 0, 99 is not in the grid")):
        with pytest.raises(ValueError, match=words):
            bench.blurred(subject, cells)
    x, size = torch.zeros_like(subject.x), size // columns
    stripes = (torch.arange(x.shape[2]) // 2 % 2 * 2 - 1).float()
    for at in range(rows * columns):  # each cell's stripes are stronger than the last one's
        down, across = (slice(k * size, (k + 1) * size) for k in divmod(at, columns))
        x[:, down, across] = (at + 1) * stripes[across]
    striped = replace(subject, x=x, aircraft=np.ones((rows, columns), bool))
    assert bench.control_cells(striped, [(0, 0)], 16).tolist() == [[0, 1]], "the next in strength"
    partly = replace(striped, aircraft=np.arange(rows * columns).reshape(rows, columns) != 1)
    assert bench.control_cells(partly, [(0, 0)], 16).tolist() == [list(divmod(2, columns))], "on the aircraft"
    assert not len(bench.control_cells(striped, list(np.ndindex(rows, columns))[1:], 16)), "too few are left"


# ---------------------------------------------------------------- the user's own picture
def test_uploads_of_any_size_are_read_broken_ones_refused_and_the_last_ones_kept(catalogue, bench, monkeypatch):
    for size in ((4000, 3000), (1, 1)):
        assert bench.of_file(jpeg(*size), "a.jpg").logits.isfinite().all()
    with pytest.raises(ValueError, match=r"half\.jpg cannot be used"):
        bench.of_file(jpeg(640, 480)[:500], "half.jpg")
    monkeypatch.setattr("aircraft_sae.view.browser.widgets.MOST_SUBJECTS", 2)
    answers = Answers(catalogue)
    keys = [answers.upload("a.jpg", jpeg(32, 32 + i))[0]["key"] for i in range(3)]
    assert [*answers._uploads] == keys[1:]


def test_an_upload_is_read_as_the_data_set_is(bench, catalogue, tmp_path, monkeypatch):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    grey = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    monkeypatch.setattr(catalogue.trial.pictures, "banner", 5)
    files = PictureFiles(tmp_path, {"a": tmp_path / "a.png"}, pd.DataFrame({"image": ["a"], "split": "test"}), {}, 5)
    for pixels, options in ((grey, {}), (colours, {}), (colours[..., :3], {"exif": exif})):  # the second: transparent
        content = file_of(Image.fromarray(pixels), "PNG", **options)
        (tmp_path / "a.png").write_bytes(content)
        seen = np.asarray(bench.of_file(content, "a.png").picture)
        assert (seen == np.asarray(files.picture("a"))).all()
    assert (seen == np.rot90(colours[..., :3], -1)[:-5]).all()  # the last one: turned


# ---------------------------------------------------------------- labels
def test_labels_are_on_disk_at_once_and_belong_to_one_autoencoder(tmp_path):
    one, two, other = Labels(tmp_path, "abc"), Labels(tmp_path, "abc"), Labels(tmp_path, "another")
    one.set(3, label="fin, upper", note='says "left"\nonly')
    two.set(np.int64(4), rating=5)
    one.set(3, rating=2)
    wanted = {
        3: {"label": "fin, upper", "note": 'says "left"\nonly', "rating": 2},
        4: {"label": "", "note": "", "rating": 5},
    }
    assert one.all() == two.all() == wanted and other.all() == {}
    other.set(3, label="NA")
    assert one.all() == wanted and other.all()[3]["label"] == "NA"
    one.set(4, rating=0)
    assert 4 not in one.all()


def test_two_processes_lose_no_label(tmp_path):
    code = "import sys; from aircraft_sae.view.browser import Labels\n"
    code += "for i in range(15): Labels(sys.argv[1], 'abc').set(int(sys.argv[2]) + i, label=f'of {sys.argv[2]}')"
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(first)]) for first in (0, 100)]
    assert [process.wait() for process in running] == [0, 0]
    assert set(Labels(tmp_path, "abc").all()) == {*range(15), *range(100, 115)}


def test_a_damaged_table_of_labels_is_named_and_kept(tmp_path):
    labels = Labels(tmp_path, "abc")
    for content in (b"", b"\xff\xfe\x00", b"a,b\n1,2\n"):
        labels.path.write_bytes(content)
        for work in (labels.all, lambda: labels.set(1, label="wing")):
            with pytest.raises(ValueError, match=r"labels\.csv"):
                work()
        assert labels.path.read_bytes() == content


# ---------------------------------------------------------------- widgets
def test_the_widget_answers_its_front_end_which_hears_of_every_error(browser_study, monkeypatch, catalogue, often):
    messages, widget = [], FeatureBrowser(browser_study)
    monkeypatch.setattr(Application, "send", lambda self, content, buffers=None: messages.append((content, buffers)))

    def ask(call=None, *files, **given):
        """(what the widget sends back, its files)."""
        widget._answer(None, {"id": "a/1", "call": call, "given": given} if call else {}, list(files))
        content, buffers = messages.pop()
        assert not messages and content.get("id") == ("a/1" if call else None)
        return content.get("result", content.get("error")), buffers

    view, arrays = catalogue.feature(often)
    known = [tile["picture"] for tile in view["gallery"]]
    result, (maps,) = ask("feature", feature_id=often, known=known)
    assert result == view | {"fresh": []} and np.frombuffer(maps, np.float32).tolist() == arrays.ravel().tolist()
    result, (_, *thumbnails) = ask("feature", feature_id=often, known=known[:1])
    assert result["fresh"] == known[1:] and thumbnails == [catalogue.thumbnail(row) for row in known[1:]]
    upload, (picture,) = ask("upload", memoryview(jpeg(300, 200)), name="x.jpg")
    assert upload["label"] is None and picture[:2] == b"\xff\xd8"
    assert ask("change", key=upload["key"], multipliers={})[0]["after"] == pytest.approx(upload["before"], abs=1e-5)
    assert not widget.errors
    assert "nothing called '_subject'" in ask("_subject")[0] and "nothing called ''" in ask()[0]
    assert "picture mine is not one of" in ask("open", key="mine")[0]
    assert "TypeError" in ask("feature", colour=1)[0] and len(widget.errors) == 4


def test_a_browser_without_a_kernel_shows_its_features_gallery(browser_study):
    data, _ = FeatureBrowser(browser_study)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert min(Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))).size) > 300
    assert InterventionBench(browser_study).mode == "bench"


# ---------------------------------------------------------------- a network whose effects have no closed form
@pytest.fixture(scope="module", params=[True, False], ids=["classes", "no levels"])
def elsewhere(request, tmp_path_factory):
    """(study, catalogue, bench) of a plain network, at a site with a nonlinearity behind it."""
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


def test_without_a_closed_form_the_bench_runs_forward_passes(elsewhere):
    _, catalogue, bench = elsewhere
    row = int(catalogue.rows[0])
    subject = bench.of_row(row)
    check_forward(bench, subject)
    page = bench.page(subject, row)
    tried = [each for each in page["active"] if each["effect"] is not None]
    assert 0 < len(tried) == min(N_TRIED, len(page["active"])) and page["active"][: len(tried)] == tried
    check_effects(bench, subject, page)
    if catalogue.levels:
        check_pair(bench, "green", "red")
