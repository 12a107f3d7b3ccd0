"""The feature index against dense arrays; selectivity and part scores against scikit-learn and planted truth."""

# ruff: noqa: I001
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig
from aircraft_sae.features import (
    FeatureIndex, Regions, auroc_in_strata, average_precision, best_aurocs, best_estimates, best_matches,
    build_features, build_index, claim_bars, claims, claims_of, guess_scores, halves, neighbours,
    part_scores, probe_dictionary, probe_scores, selectivity,
)  # fmt: skip
from aircraft_sae.features.regions import (
    auroc, auroc_p, average_precision_and_influence, average_precisions, best_parts,
)  # fmt: skip
from aircraft_sae.metrics import average
from aircraft_sae.sae import SparseAutoencoder

N_IMAGES, GRID, D = 40, (3, 4), 8


def identity(d):
    """An autoencoder whose features are the positive channels."""
    sae = SparseAutoencoder(SAEConfig(k=1, expansion=1), d)
    sae.load_state_dict({"W_dec": torch.eye(d), "W_enc_rows": torch.eye(d)}, strict=False)
    return sae


def indexed(dense, folder, splits=None):
    """The index of dense feature activations (n, rows, columns, d)."""
    n = len(dense)
    images = pd.DataFrame({"image": [f"i{i}" for i in range(n)], "split": splits or ["test"] * n})
    acts = Activations(np.float16(dense), images)
    build_index(identity(dense.shape[3]), acts, folder, acts.rows("train", "test"))
    return FeatureIndex.open(folder)


@pytest.fixture(scope="module")
def dense():
    """Activations with ties; feature 6 never fires, feature 7 always."""
    rng = np.random.default_rng(0)
    values = np.maximum(0, rng.normal(-1, 1.5, (N_IMAGES, *GRID, D))).round(1)
    values[..., 6], values[..., 7] = 0, 1 + values[..., 7]
    return np.float32(np.float16(values))


@pytest.fixture(scope="module")
def index(dense, tmp_path_factory):
    splits = ["train"] * 20 + ["test"] * 20
    made = np.concatenate([dense, dense[:5] + 1])  # views are left out
    return indexed(made, tmp_path_factory.mktemp("index"), [*splits, *["views"] * 5])


def test_the_index_holds_every_code_and_describes_each_feature(index, dense):
    assert index.grid == GRID and len(index.images) == N_IMAGES and index.d_sae == D
    np.testing.assert_array_equal(index.by_cell.toarray(), dense.reshape(-1, D))
    for feature_id in range(D):
        cells, values = index.firings(feature_id)
        flat = dense[..., feature_id].reshape(-1)
        np.testing.assert_array_equal(cells, np.flatnonzero(flat))
        np.testing.assert_array_equal(values, flat[flat > 0])
        np.testing.assert_array_equal(index.maps(feature_id, np.array([3, 30])), dense[[3, 30]][..., feature_id])
    np.testing.assert_array_equal(index.maxima(np.arange(N_IMAGES)), dense.max((1, 2)))
    np.testing.assert_array_equal(index.maxima(index.rows("test")), dense[20:].max((1, 2)))
    np.testing.assert_allclose(index.sums(np.arange(N_IMAGES)), dense.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(index.sums([3, 3, 30]), dense[[3, 3, 30]].sum((1, 2)), rtol=1e-5)
    for matrix in (index.by_cell, index.by_feature):  # mapped from disk, not copied
        assert not any(array.flags.owndata or array.flags.writeable for array in (matrix.data, matrix.indices))
        assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    active = pd.DataFrame(np.float64(dense.reshape(-1, D))).replace(0, np.nan)  # all NaN for the silent feature
    np.testing.assert_allclose(index.table["density_cell"], active.notna().mean())
    np.testing.assert_allclose(index.table["density_image"], (dense.max((1, 2)) > 0).mean(0))
    np.testing.assert_allclose(index.table["mean"], active.mean(), rtol=1e-6)
    np.testing.assert_array_equal(index.table["max"], active.max())


def test_an_index_may_be_empty_but_not_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match="build the feature index first"):
        FeatureIndex.open(tmp_path)
    empty = indexed(np.zeros((4, *GRID, D), np.float32), tmp_path)
    assert not len(empty.by_cell.data) and (empty.table["density_image"] == 0).all() and empty.table["max"].isna().all()


def test_patches_show_each_picture_once(index, dense):
    largest = dense[..., 2].max((1, 2))
    top = index.patches(2, "top", 10)
    assert top["value"].tolist() == sorted(largest, reverse=True)[:10] and top["image_row"].is_unique
    for how in ("top", "interval", "random"):
        table = index.patches(2, how, 100)
        assert table["image_row"].is_unique and set(table["image_row"]) == set(np.flatnonzero(largest))
        at = table["image_row"], table["row"], table["column"]
        np.testing.assert_array_equal(dense[..., 2][at], table["value"])
        assert set(index.patches(2, how, 5, rows=[1, 2])["image_row"]) <= {1, 2}
    spread = np.floor(10 * index.patches(7, "interval", 10)["value"] / dense[..., 7].max()).clip(upper=9)
    assert spread.nunique() > 5  # each tenth of the range has its turn
    assert len(index.patches(6)) == 0
    with pytest.raises(ValueError, match="got 'best'"):
        index.patches(0, "best")


def test_neighbours_have_the_most_similar_rows():
    rows = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [-1, 0]])
    assert neighbours(rows, 0, 2)["feature_id"].tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_average_precisions_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    dense = np.maximum(0, rng.normal(0, 1, 300)).round(1 if seed < 3 else 9)  # ties, or none
    member = rng.random((300, 3)) < [0.1, 0.5, 0.02] + 0.1 * dense[:, None]
    got = average_precisions(csr_array(np.stack([dense, 0 * dense], 1)), member)
    assert got[0].tolist() == pytest.approx([average_precision_score(own, dense) for own in member.T])
    assert got[1].tolist() == pytest.approx(member.mean(0).tolist())  # a silent feature


def ranked(values):
    return np.float32(rankdata(values, axis=0))


@pytest.fixture(scope="module")
def taxonomy():
    """480 images of 12 variants in 6 families of 3 manufacturers."""
    variant = np.arange(480) % 12
    names = {"variant": 12, "family": 6, "manufacturer": 3}
    return {level: (variant * n // 12, [f"{level}{i}" for i in range(n)]) for level, n in names.items()}


def test_planted_features_are_placed_at_their_level(taxonomy):
    rng = np.random.default_rng(2)
    maxima = np.maximum(0, rng.normal(-1, 1, (480, 40)))
    for i, level in enumerate(taxonomy):
        own = taxonomy[level][0] == 1
        maxima[own, i] = 5 + rng.normal(0, 1, own.sum())
    table = selectivity(maxima, taxonomy, halves(pd.Series(taxonomy["variant"][0])))
    assert table["placed"].tolist()[:3] == ["variant", "family", "manufacturer"]
    for i, level in enumerate(taxonomy):
        name, area, z = table.loc[i, [f"{level}/{column}" for column in ("class", "auroc", "auroc_z")]]
        assert name == f"{level}1" and area > 0.99 and z > 5
    assert (table["placed"][3:] == "none").mean() > 0.9


def test_halves_share_every_class_evenly_and_half_a_chooses_a_classs_feature(taxonomy):
    assert halves(pd.Series(list("aabbbbccc"))).tolist() == [False, True, True, False, True, False, False, True, False]
    assert halves(pd.Series(list("abcd"))).tolist() == [False, True, False, True]  # single images go to both halves
    assert halves([0, 0, 0]).tolist() == [False, True, False]
    rng = np.random.default_rng(4)
    labels, maxima = pd.DataFrame({level: codes for level, (codes, _) in taxonomy.items()}), rng.random((480, 30))
    in_b = halves(labels["variant"])
    maxima[(labels["variant"] == 3) & ~in_b, 7] = 5  # on half A alone
    maxima[labels["family"] == 2, 8] = rng.random(80) + 0.5
    found = best_aurocs(maxima, labels)
    assert found["variant", 3] == pytest.approx(roc_auc_score(labels["variant"][in_b] == 3, maxima[in_b, 7]))
    assert found["family", 2] == pytest.approx(roc_auc_score(labels["family"][in_b] == 2, maxima[in_b, 8]))
    assert found["family", 2] > 0.8
    labels.loc[labels.index[labels["variant"] == 9][1:], "variant"] = 8  # one is left, in one half
    assert np.isnan(best_aurocs(maxima, labels)["variant", 9])
    assert len(found) == 21 and found.drop([("family", 2), ("variant", 4), ("variant", 5)]).max() < 0.8


def test_shuffled_labels_pass_as_often_as_they_should(taxonomy):
    rng = np.random.default_rng(3)
    density = np.repeat([0.025, 0.1, 0.5, 1.0], 250)
    maxima = rng.gamma(1, 1, (480, 1000)) * (rng.random((480, 1000)) < density)
    labels = {"family": taxonomy["family"]}
    table = selectivity(maxima, labels, halves(pd.Series(taxonomy["family"][0])))
    tested = table["family/auroc_p"].notna()
    assert tested[250:].all() and tested[:250].mean() < 0.5  # rare features are not tested
    assert 0.03 <= (table["family/auroc_p"][tested] < 0.05).mean() <= 0.07
    assert abs(table["family/auroc_z"].mean()) < 0.1
    assert (table["placed"] == "none").mean() > 0.99


def test_p_of_auroc_is_the_share_of_all_permutations():
    rng = np.random.default_rng(6)
    values = np.stack([rng.random(9), rng.integers(0, 3, 9), np.arange(9)], 1)
    ranks, n_in = ranked(values), np.array([3, 2, 3])
    own = [np.arange(9) >= 9 - n for n in n_in]
    area = np.array([roc_auc_score(member, values[:, j]) for j, member in enumerate(own)])
    wanted = [np.mean([ranks[list(some), j].sum() >= ranks[member, j].sum() for some in combinations(range(9), n)])
              for j, (member, n) in enumerate(zip(own, n_in, strict=True))]  # fmt: skip
    np.testing.assert_allclose(auroc_p(ranks, n_in, area), wanted, rtol=0.25)  # 1/84 to within 4 of its errors
    assert wanted[2] == pytest.approx(1 / 84)
    assert auroc_p(ranks, np.array([0, 9, 3]), area)[:2].tolist() == [1, 1]  # no class, no test


def test_auroc_is_scikit_learns_and_its_z_has_deviation_1_under_permutations():
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 4, 120)
    values = np.maximum(0, rng.normal(0, 1, (120, 5)) + 0.5 * codes[:, None] * np.arange(5)).round(1)
    area, _ = auroc(ranked(values), np.float32(codes == np.arange(4)[:, None]))
    wanted = [[roc_auc_score(codes == c, column) for column in values.T] for c in range(4)]
    np.testing.assert_allclose(area, wanted, atol=1e-5)
    values = rng.random((60, 4))
    values[:, 1], values[:, 2], values[:, 3] = values[:, 1].round(1), values[:, 2] * (values[:, 2] > 0.8), 1
    member = np.float32(np.arange(60) % 3 == np.arange(3)[:, None])
    ranks = ranked(values)
    null = np.stack([auroc(ranks, member[:, rng.permutation(60)])[1] for _ in range(2000)])
    np.testing.assert_allclose(null[..., :3].std(0), 1, rtol=0.06)
    assert np.isnan(null[..., 3]).all()
    alone = selectivity(np.float32(values), {"c": (np.arange(60) % 3, list("abc"))}, np.arange(60) % 2 == 1)
    assert np.isnan(alone["c/auroc_z"][3]) and np.isnan(alone["c/auroc_q"][3]) and alone["placed"][3] == "none"


PARTS = ["fuselage", "wing", "stabilizer", "fin", "engine", "propeller", "strut"]


@pytest.fixture(scope="module")
def planted_parts(tmp_path_factory):
    """(index, regions): features that read part 0, place, outline, background and a class.

    Only one class has the propeller: feature 7 reads that class, feature 8 the part.
    """
    rng, other = np.random.default_rng(4), np.random.default_rng(5)
    n, grid = 200, (7, 7)
    labels, aircraft = np.zeros((n, *grid, len(PARTS)), bool), np.zeros((n, *grid))
    for i in range(n):  # a block of aircraft somewhere near the middle, two parts in it
        row, column = rng.integers(1, 3, 2)
        aircraft[i, row : row + 4, column : column + 4] = 0.3 + 0.7 * rng.random((4, 4))
        labels[i, row + rng.integers(4), column + rng.integers(4), 0] = True
        labels[i, row, column : column + 4, 1] = True
        labels[i, row + other.integers(4), column + other.integers(4), 5] = i % 3 == 0
    noise = rng.random((n, *grid))
    dense = np.zeros((n, *grid, 9))
    dense[..., 0] = labels[..., 0] * (1 + noise) + 0.5 * (noise > 0.97)  # reads part 0
    dense[..., 1] = np.broadcast_to(labels[..., 0].mean(0) + 0.01, (n, *grid))  # knows where it usually is
    dense[..., 2] = aircraft  # reads the outline
    dense[..., 3] = (aircraft == 0) * noise  # reads background
    dense[..., 4] = noise * (np.arange(n) % 3 == 0)[:, None, None]  # reads a class
    left = np.arange(7)[None, None] < 3
    dense[..., 5] = labels[..., 1] * left  # two features for two sides of part 1
    dense[..., 6] = labels[..., 1] * ~left
    dense[..., 7] = (np.arange(n) % 3 == 0)[:, None, None] * (1 + aircraft)
    dense[..., 8] = labels[..., 5] * (1 + noise)
    index = indexed(dense, tmp_path_factory.mktemp("parts"))
    classes = np.arange(n) % 3
    return index, Regions(PARTS, np.arange(n), labels, aircraft, np.arange(n) % 2 == 1, classes, classes // 2)


def test_part_scores_are_scikit_learns_in_each_half(planted_parts):
    index, regions = planted_parts
    everything = part_scores(*planted_parts)
    table = everything.query("part == 'fuselage'")
    assert table.iloc[0]["ap"] > 0.9 and (table.iloc[1:5]["ap"] < 0.3).all()  # place, outline, background, class
    for name, half in (("ap_a", ~regions.in_b), ("ap", regions.in_b)):
        own, maps = regions.labels[half][..., 0].ravel(), index.maps(2, regions.rows)[half].ravel()
        assert table.iloc[2][name] == pytest.approx(average_precision_score(own, maps))
    assert table.iloc[0]["prevalence"] == pytest.approx(own.mean())
    assert everything.query("part == 'strut'")[["ap", "ap_a"]].isna().all().all()  # nothing shows it
    best, by_ap = best_parts(everything), everything.loc[everything.groupby("feature_id")["ap_a"].idxmax(), "part"]
    assert best["part"][8] == "propeller" and best["part"][0] == "fuselage"
    assert (best["part"].to_numpy() != by_ap.to_numpy()).any()  # frequent parts have a high AP


def test_guesses_are_what_half_a_shows(planted_parts):
    _, regions = planted_parts
    labels, aircraft, in_b, classes = regions.labels, regions.shown, regions.in_b, regions.classes
    got = guess_scores(regions).set_index(["guess", "part"])["ap"]
    own, outline = labels[in_b][..., 5].ravel(), aircraft[in_b]
    assert got["outline", "propeller"] == pytest.approx(average_precision_score(own, outline.ravel()))
    share = np.array([labels[~in_b & (classes == c)][..., 5].any((1, 2)).mean() for c in range(3)])
    assert share.tolist() == [1, 0, 0]
    by_class = average_precision_score(own, (outline * share[classes[in_b]][:, None, None]).ravel())
    assert got["outline, class", "propeller"] == pytest.approx(by_class) and by_class > got["outline", "propeller"]
    assert np.isnan(got["outline", "strut"])


@pytest.mark.parametrize("digits", [1, 9])
def test_average_precision_and_its_slopes_are_scikit_learns(digits):
    rng = np.random.default_rng(0)
    values, member = rng.random((12, 9)).round(digits), rng.random((12, 9)) < 0.3  # with ties, or without
    values[0], member[5] = 2.0, False
    values[rng.random((12, 9)) < 0.5] = 0
    got, influence = average_precision_and_influence(values, member)
    assert got == pytest.approx(average_precision_score(member.ravel(), values.ravel()))
    for i in range(12):
        either = (np.repeat(1 + step * (np.arange(12) == i), 9) for step in (1e-4, -1e-4))
        up, down = (average_precision_score(member.ravel(), values.ravel(), sample_weight=weight) for weight in either)
        assert influence[i] == pytest.approx((up - down) / 2e-4, abs=1e-6)
    assert influence.sum() == pytest.approx(0, abs=1e-12)  # twice all pictures are no better
    assert np.isnan(average_precision_and_influence(values, 0 * member)[0])
    silent, influence = average_precision_and_influence(0 * values, member)
    assert silent == pytest.approx(member.mean()) and influence == pytest.approx((member.mean(1) - silent) / 12)


def test_the_error_of_average_precision_is_that_of_redrawn_pictures(planted_parts):
    index, regions = planted_parts
    got, swapped = (average_precision(index, regions, 0, "fuselage", swap) for swap in (False, True))
    maps, labels = index.maps(0, regions.rows[regions.in_b]), regions.labels[regions.in_b][..., 0]
    assert got.value == pytest.approx(average_precision_score(labels.ravel(), maps.ravel()))
    draws = np.random.default_rng(0).integers(100, size=(400, 100))
    redrawn = [average_precision_and_influence(maps[drawn], labels[drawn])[0] for drawn in draws]
    assert got.error == pytest.approx(np.std(redrawn), rel=0.15)
    assert list(got.influence.index) == [f"i{i}" for i in range(1, 200, 2)]
    assert swapped.value < 0.3 and (got - swapped).p < 1e-6
    assert np.isnan(average_precision(index, regions, 0, "strut").value)
    another, own = claims._another(regions), np.flatnonzero(regions.in_b)
    assert (another != own).all() and sorted(another) == own.tolist(), "masks are swapped"
    assert (regions.classes[another] == regions.classes[own]).all(), "within a class"


def test_class_place_and_outline_tell_nothing_within_strata(planted_parts, tmp_path):
    _, regions = planted_parts
    rng, n, grid = np.random.default_rng(8), 200, (7, 7)
    place = np.broadcast_to(regions.labels.mean(0)[..., 5], (n, *grid))
    of_class = (regions.classes == 0)[:, None, None]
    readers_ = {
        "part": regions.labels[..., 5] * (1 + rng.random((n, *grid))), "class": of_class * (1 + rng.random((n, *grid))),
        "place": place, "outline": regions.shown, "class, place": of_class * place,
        "class, outline": of_class * regions.shown,
    }  # fmt: skip
    own = indexed(np.stack(list(readers_.values()), -1) + 0.01, tmp_path)
    regions = replace(regions, families=regions.classes)  # one class alone has the propeller
    got = {name: auroc_in_strata(own, regions, j, "propeller") for j, name in enumerate(readers_)}
    assert got["part"].value > 0.99 and got["part"].interval[0] > 0.95
    for name in ("class", "place", "class, place"):
        assert abs(got[name].value - 0.5) < 0.1, name
    # the outline tells a little, also to the nulls that a claim has to beat
    assert abs(got["outline"].value - 0.5) < 0.15 and abs(got["class, outline"].value - 0.5) < 0.15


def test_a_claim_beats_the_best_of_as_many_random_directions(tmp_path):
    rng = np.random.default_rng(0)
    images = pd.DataFrame({"image": [f"i{i}" for i in range(60)], "split": "test"})
    acts = Activations(np.float16(rng.normal(size=(60, 3, 4, 6))), images)
    covered = (rng.random((60, 3, 4, 2)) < [0.2, 0.05]).astype(float)
    known = {"levels": [], "region_names": ["wing", "fin"]}
    pictures = type("Known", (), known | {"regions": lambda self, image, grid: covered[int(image[1:])]})()
    regions = Regions.of(acts, pictures)
    nulls = [SparseAutoencoder(SAEConfig(variant="topk", k=2, expansion=2, seed=seed), 6) for seed in range(4)]
    claim_bars(tmp_path, acts=acts, nulls=nulls, pictures=pictures)
    bars = pd.read_parquet(tmp_path / "bars.parquet").set_index("part")["bar"]
    cells, labels = torch.from_numpy(acts.acts[~regions.in_b]).float().flatten(0, 2), regions.labels[~regions.in_b]
    dense = [null.encode(cells).dense().numpy() for null in nulls]
    for i, part in enumerate(["wing", "fin"]):
        own = labels[..., i].ravel()
        best = [max(average_precision_score(own, each[:, j]) for j in range(12)) for each in dense]
        assert bars[part] == pytest.approx(np.quantile(best, 0.95), rel=1e-5)
    scores = pd.DataFrame({"feature_id": [0, 0, 1, 1, 2, 2], "part": ["wing", "fin"] * 3})
    scores["ap_a"] = [bars["wing"] + 0.1, bars["fin"] + 0.2, bars["wing"] + 0.1, bars["fin"], 0.0, np.nan]
    assert claims_of(scores, bars.reset_index()).tolist() == ["fin", "wing", None]


def test_probes_are_a_ceiling_and_fire_where_f1_is_best(planted_parts):
    index, regions = planted_parts
    rng, labels = np.random.default_rng(1), regions.labels[~regions.in_b]
    acts = np.stack([index.maps(j, regions.rows) for j in range(7)], -1) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    probe = probe_scores(acts, regions)
    assert probe["fuselage"] > 0.9 and probe["wing"] > 0.95 and np.isnan(probe["strut"])
    assert part_scores(index, regions).query("part == 'wing'")["ap"].max() < 0.85, "two features share it"
    directions, biases = claims.fit_probes(acts, regions)
    score, own = (acts[~regions.in_b] @ directions.T + biases)[..., 1], labels[..., 1]
    precision, recall, _ = precision_recall_curve(own.ravel(), score.ravel())
    best = (2 * precision * recall / (precision + recall).clip(1e-12)).max()
    assert f1_score(own.ravel(), score.ravel() >= -1e-9) == pytest.approx(best)
    assert not directions[PARTS.index("strut")].any()  # no cell shows one
    every = Activations(np.float16(acts), pd.DataFrame({"split": ["test"] * len(acts)}))
    sae, flat = probe_dictionary(identity(7), every, regions), torch.from_numpy(every.acts).float().flatten(0, 2)
    directions, biases = claims.fit_probes(every.acts, regions)
    wanted = (flat @ torch.from_numpy(np.float32(directions.T)) + torch.from_numpy(np.float32(biases))).relu()
    torch.testing.assert_close(sae.encode(flat).dense(), wanted)


class Shapes:
    """Pictures with two regions, a block and a dot, at places that depend on the picture."""

    region_names, levels = ("block", "dot"), ("kind",)

    def __init__(self, n=24, **changes):
        names = [f"i{i}" for i in range(n)]
        self.table = pd.DataFrame({"image": names, "split": "test", "kind": ["a", "b"] * (n // 2)})
        vars(self).update(changes)

    def classes(self, level):
        return ["a", "b"]

    def mask(self, image):
        mask, at = np.zeros((32, 32), np.uint8), int(image[1:]) % 3
        mask[4 + 8 * at : 20 + 8 * at, 8:24] = 1
        mask[1:6, 1 + 8 * at : 6 + 8 * at] = 2
        return mask

    def picture(self, image):
        return Image.fromarray(120 * self.mask(image)).convert("RGB")

    def regions(self, image, grid):
        shown = self.mask(image)[..., None] == [1, 2]
        return np.float32(shown).reshape(grid[0], 32 // grid[0], grid[1], 32 // grid[1], 2).mean((1, 3))


def shaped(pictures, grid=(4, 4)):
    """Acts whose channels are a cell's shares of block and dot, and noise."""
    shares = np.stack([pictures.regions(image, grid) for image in pictures.table["image"]])
    noise = np.random.default_rng(0).random((*shares.shape[:3], 2))
    return Activations(np.float16(np.concatenate([shares, noise], -1)), pictures.table)


def test_a_cell_shows_a_region_that_fills_a_quarter_of_it_or_lies_to_a_quarter_in_it():
    pictures = Shapes()
    regions = Regions.of(shaped(pictures), pictures)
    for i, image in enumerate(pictures.table["image"]):
        mask = pictures.mask(image)
        for row, column in np.ndindex(4, 4):
            cell = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert regions.shown[i, row, column] == pytest.approx((cell > 0).mean())
            for part in (1, 2):
                share, of_part = (cell == part).mean(), (cell == part).sum() / (mask == part).sum()
                assert regions.labels[i, row, column, part - 1] == (share >= 0.25 or of_part >= 0.25)
    assert regions.classes.tolist() == [0, 1] * 12 and regions.names == ["block", "dot"]
    np.testing.assert_array_equal(regions.in_b, halves(pictures.table["kind"]))


@pytest.mark.parametrize("levels", [("kind",), ()])
@pytest.mark.parametrize("names", [("block", "dot"), ()])
def test_the_table_has_the_columns_that_the_pictures_allow(tmp_path, levels, names):
    pictures = Shapes(levels=levels, region_names=names)
    build_features(tmp_path, identity(4), shaped(pictures), pictures, ["train", "test"], by_class=True)
    table = FeatureIndex.open(tmp_path).table
    assert ("placed" in table) == bool(levels) and ("part" in table) == bool(names)
    assert (tmp_path / "parts.parquet").is_file() == bool(names) and len(table) == 4
    if names:
        assert table["part"][:2].tolist() == ["block", "dot"]
    build_features(tmp_path, identity(4), shaped(pictures), pictures, ["test"], by_class=False)
    assert "placed" not in FeatureIndex.open(tmp_path).table


def test_best_parts_and_matches_do_not_depend_on_the_order_of_rows(planted_parts):
    scores = part_scores(*planted_parts)
    shuffled = scores.sample(frac=1, random_state=0)
    assert shuffled.index[0] != 0
    for function in (best_parts, best_matches):
        pd.testing.assert_frame_equal(function(shuffled), function(scores))
    matches = best_matches(scores)
    pd.testing.assert_series_equal(matches["ap_a"], scores.groupby("part")["ap_a"].max(), check_like=True)
    drawn = best_estimates(*planted_parts, matches)
    for part in ("fuselage", "wing", "propeller"):
        assert drawn[part].value == pytest.approx(matches.at[part, "ap"])
    mean = average(drawn.values())
    assert mean.value == pytest.approx(matches["ap"].dropna().mean()) and 0 < mean.error < 0.1
    assert mean.entry["low"] < mean.value < mean.entry["high"] and mean.entry["n"] == 100
