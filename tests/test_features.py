"""The feature index against dense arrays; selectivity and part scores against scikit-learn and planted truth."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, mutual_info_score, roc_auc_score

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig
from aircraft_sae.features import FeatureIndex, build_index, cell_labels, halves, neighbours, part_scores, selectivity
from aircraft_sae.features.parts import ranking_scores
from aircraft_sae.features.selectivity import auroc, auroc_spread, information, morcos_index, purity_and_entropy
from aircraft_sae.sae import SparseAutoencoder

N_IMAGES, GRID, D = 40, (3, 4), 8


def identity(d):
    """An autoencoder whose features are the positive channels."""
    sae = SparseAutoencoder(SAEConfig(variant="l1", l1_coefficient=1.0, expansion=1), d)
    with torch.no_grad():
        for rows in (sae.W_dec, sae.W_enc_rows):
            rows.copy_(torch.eye(d))
    return sae


def indexed(dense, folder, splits=None):
    """The index of dense feature activations (n, rows, columns, d)."""
    n = len(dense)
    images = pd.DataFrame({"image": [f"i{i}" for i in range(n)], "split": splits or ["test"] * n})
    build_index(identity(dense.shape[3]), Activations(np.float16(dense), images), folder, progress=False)
    return FeatureIndex.open(folder)


@pytest.fixture(scope="module")
def dense():
    """Activations with ties, a feature that never fires (6) and one that always does (7)."""
    rng = np.random.default_rng(0)
    values = np.maximum(0, rng.normal(-1, 1.5, (N_IMAGES, *GRID, D))).round(1)
    values[..., 6], values[..., 7] = 0, 1 + values[..., 7]
    return np.float32(np.float16(values))


@pytest.fixture(scope="module")
def index(dense, tmp_path_factory):
    splits = ["train"] * 20 + ["test"] * 20
    made = np.concatenate([dense, dense[:5] + 1])  # views are no pictures: left out
    return indexed(made, tmp_path_factory.mktemp("index"), [*splits, *["views"] * 5])


def test_the_index_holds_every_code(index, dense):
    assert index.grid == GRID and len(index.images) == N_IMAGES and index.d_sae == D
    for row in (0, 17, 39):
        np.testing.assert_array_equal(index.image(row), dense[row])
    for feature_id in range(D):
        cells, values = index.firings(feature_id)
        flat = dense[..., feature_id].reshape(-1)
        np.testing.assert_array_equal(cells, np.flatnonzero(flat))
        np.testing.assert_array_equal(values, flat[flat > 0])
        np.testing.assert_array_equal(index.maps(feature_id, np.array([3, 30])), dense[[3, 30]][..., feature_id])
    np.testing.assert_array_equal(index.maxima(), dense.max((1, 2)))
    np.testing.assert_array_equal(index.maxima(index.rows("test")), dense[20:].max((1, 2)))
    np.testing.assert_allclose(index.sums(), dense.sum((1, 2)), rtol=1e-5)


def test_the_table_describes_each_feature(index, dense):
    table, flat = index.table, dense.reshape(-1, D)
    np.testing.assert_allclose(table["density_cell"], (flat > 0).mean(0))
    np.testing.assert_allclose(table["density_image"], (dense.max((1, 2)) > 0).mean(0))
    rows, columns = np.indices(GRID)
    for feature_id in (0, 3, 7):
        active, weight = flat[flat[:, feature_id] > 0, feature_id], dense[..., feature_id]
        row = table.loc[feature_id]
        assert row["mean"] == pytest.approx(active.mean()) and row["max"] == active.max()
        assert row["q50"] == np.quantile(active, 0.5, method="inverted_cdf")
        assert row["q90"] == np.quantile(active, 0.9, method="inverted_cdf")
        centre = (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()
        assert (row["row"], row["column"]) == pytest.approx(centre)
        squares = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        assert row["spread"] == pytest.approx(np.sqrt((weight * squares).sum() / weight.sum()))
    assert table.loc[6, ["mean", "max", "row", "spread"]].isna().all() and table.loc[6, "density_cell"] == 0


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
    assert not index.patches(2, "random", 10).equals(index.patches(2, "random", 10, seed=1))
    spread = np.floor(10 * index.patches(7, "interval", 10)["value"] / dense[..., 7].max()).clip(upper=9)
    assert spread.nunique() > 5  # each tenth of the range has its turn
    assert len(index.patches(6)) == 0


def test_companions_and_neighbours(index, dense):
    flat = dense.reshape(-1, D) > 0
    share = np.array([flat[flat[:, 1], j].mean() if j != 1 else 0 for j in range(D)])
    wanted = [j for j in np.argsort(flat.mean(0) - share, kind="stable") if share[j] > flat[:, j].mean()]
    got = index.coactive(1, 3)
    assert got["feature_id"].tolist() == wanted[:3]
    np.testing.assert_allclose(got["share"], share[got["feature_id"]])
    np.testing.assert_allclose(got["lift"], got["share"] / flat.mean(0)[got["feature_id"]])
    assert len(index.coactive(6)) == 0
    rows = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [-1, 0]])
    assert neighbours(rows, 0, 2)["feature_id"].tolist() == [1, 2]


def test_what_is_not_there_is_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="build the feature index first"):
        FeatureIndex.open(tmp_path)
    with pytest.raises(ValueError, match=r"feature 8 is not one of 0 \.\. 7"):
        index.firings(8)
    with pytest.raises(ValueError, match="width 5, these have 8"):
        build_index(identity(5), Activations(np.zeros((2, 1, 1, 8), np.float16), pd.DataFrame()), tmp_path)
    with pytest.raises(ValueError, match="got 'best'"):
        index.patches(0, "best")


@pytest.mark.parametrize("seed", range(4))
def test_ranking_scores_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    dense = np.maximum(0, rng.normal(0, 1, 300)).round(1 if seed < 3 else 9)  # ties, or none
    member = rng.random((300, 3)) < [0.1, 0.5, 0.02] + 0.1 * dense[:, None]
    active = np.flatnonzero(dense)
    got = ranking_scores(dense[active], member[active], member.sum(0), 300)
    for i in range(3):
        assert got["ap"][i] == pytest.approx(average_precision_score(member[:, i], dense))
        assert got["auroc"][i] == pytest.approx(roc_auc_score(member[:, i], dense))
        f1 = [f1_score(member[:, i], dense >= t) for t in np.unique(dense[active])]
        assert got["f1"][i] == pytest.approx(max(f1))
        assert f1_score(member[:, i], dense >= got["threshold"][i]) == pytest.approx(max(f1))
    silent = ranking_scores(np.zeros(0), np.zeros((0, 1), bool), np.array([30]), 300)
    assert silent["auroc"][0] == 0.5 and silent["ap"][0] == pytest.approx(0.1) and silent["f1"][0] == 0


def test_class_measures_are_scikit_learns():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, 120)
    values = np.maximum(0, rng.normal(0, 1, (120, 5)) + 0.5 * codes[:, None] * np.arange(5)).round(1)
    member = np.float32(codes == np.arange(4)[:, None])
    area, index, shared = auroc(values, member), morcos_index(values, member), information(values > 0, member)
    for j in range(5):
        assert shared[j] == pytest.approx(
            mutual_info_score(codes, values[:, j] > 0)
            / max(1e-9, mutual_info_score(values[:, j] > 0, values[:, j] > 0)),
            abs=1e-6,
        )
        for c in range(4):
            assert area[c, j] == pytest.approx(roc_auc_score(codes == c, values[:, j]), abs=1e-5)
            m, r = values[codes == c, j].mean(), values[codes != c, j].mean()
            assert index[c, j] == pytest.approx((m - r) / (m + r), abs=1e-5)
    purity, entropy = purity_and_entropy(values, codes, 4, 10)
    top = codes[np.argsort(-values[:, 4], kind="stable")[:10]]
    shares = np.bincount(top, minlength=4) / 10
    assert purity[4] == shares.max()
    assert entropy[4] == pytest.approx(-sum(s * np.log(s) for s in shares if s) / np.log(4))


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
    in_b = halves(pd.Series(taxonomy["variant"][0]))
    table = selectivity(maxima, taxonomy, in_b)
    assert table["placed"].tolist()[:3] == ["variant", "family", "manufacturer"]
    for i, level in enumerate(taxonomy):
        row = table.loc[i]
        assert row[f"{level}/class"] == f"{level}1" and row[f"{level}/auroc"] > 0.99 and row[f"{level}/purity"] == 1
        assert row[f"{level}/entropy"] == pytest.approx(0, abs=1e-9) and row[f"{level}/auroc_z"] > 5
    assert (table["placed"][3:] == "none").mean() > 0.9


def test_shuffled_labels_are_called_selective_as_often_as_they_should(taxonomy):
    rng = np.random.default_rng(3)
    density = np.repeat([0.025, 0.1, 0.5, 1.0], 250)
    maxima = rng.gamma(1, 1, (480, 1000)) * (rng.random((480, 1000)) < density)
    labels = {"family": taxonomy["family"]}
    table = selectivity(maxima, labels, halves(pd.Series(taxonomy["family"][0])))
    tested = table["family/auroc_p"].notna()
    assert tested[250:].all() and tested[:250].mean() < 0.5  # rare features are not tested
    assert 0.03 <= (table["family/auroc_p"][tested] < 0.05).mean() <= 0.07
    assert abs(table["family/auroc_z"].mean()) < 0.1 and abs(table["family/information_z"].mean()) < 0.1
    assert (table["placed"] == "none").mean() > 0.99
    # a rare feature without a class has a high index all the same: only its z-score says so
    rare = table["family/morcos"][:250].abs().mean()
    assert rare > 0.5 and abs(table["family/morcos_z"][:250].mean()) < 0.3


def test_the_spread_of_auroc_is_that_of_permutations():
    rng = np.random.default_rng(5)
    values = rng.random((60, 4))
    values[:, 1], values[:, 2], values[:, 3] = values[:, 1].round(1), values[:, 2] * (values[:, 2] > 0.8), 1
    member = np.float32(np.arange(60) % 3 == np.arange(3)[:, None])
    null = np.stack([auroc(values, member[:, rng.permutation(60)]) for _ in range(2000)])
    np.testing.assert_allclose(auroc_spread(values, member), null.std(0), rtol=0.06, atol=1e-9)
    assert (auroc_spread(values, member)[:, 3] == 0).all()
    alone = selectivity(np.float32(values), {"c": (np.arange(60) % 3, list("abc"))}, np.arange(60) % 2 == 1, 19)
    assert np.isnan(alone["c/auroc_z"][3]) and np.isnan(alone["c/morcos_z"][3]) and alone["placed"][3] == "none"


def test_halves_share_every_class_evenly():
    classes = pd.Series(list("aabbbbccc"))
    in_b = halves(classes)
    assert in_b.tolist() == [False, True, True, False, True, False, False, True, False]
    assert halves(pd.Series(list("abcd"))).tolist() == [False, True, False, True]  # single images go to both halves
    with pytest.raises(ValueError, match="0 images in half B"):
        selectivity(np.ones((4, 2)), {}, np.zeros(4, bool))


def test_a_part_reader_passes_and_place_or_outline_readers_do_not(tmp_path):
    rng = np.random.default_rng(4)
    n, grid = 200, (7, 7)
    labels, aircraft = np.zeros((n, *grid, 12), bool), np.zeros((n, *grid))
    for i in range(n):  # a block of aircraft somewhere near the middle, two parts in it
        row, column = rng.integers(1, 3, 2)
        aircraft[i, row : row + 4, column : column + 4] = 1
        labels[i, row + rng.integers(4), column + rng.integers(4), 0] = True
        labels[i, row, column : column + 4, 1] = True
    noise = rng.random((n, *grid))
    dense = np.zeros((n, *grid, 5))
    dense[..., 0] = labels[..., 0] * (1 + noise) + 0.5 * (noise > 0.97)  # reads part 0
    dense[..., 1] = np.broadcast_to(labels[..., 0].mean(0) + 0.01, (n, *grid))  # knows where it usually is
    dense[..., 2] = aircraft * (1 + 0.01 * noise)  # reads the outline
    dense[..., 3] = (1 - aircraft) * noise  # reads background
    dense[..., 4] = noise * (np.arange(n) % 3 == 0)[:, None, None]  # reads a class
    in_b = np.arange(n) % 2 == 1
    table = part_scores(indexed(dense, tmp_path), labels, aircraft, np.arange(n), in_b).query("part == 'fuselage'")
    reader, others = table.iloc[0], table.iloc[1:]
    assert reader["ap"] > 0.9 and reader["f1"] > 0.9 and reader["excess"] > 0.05
    assert (others["excess"] < 0.02).all() and (others["ap"] < 0.3).all()
    own = labels[in_b][..., 0].reshape(-1)
    assert reader["auroc"] == pytest.approx(roc_auc_score(own, np.float16(dense[in_b][..., 0]).reshape(-1)))
    shown = aircraft[in_b].reshape(-1) > 0
    within = roc_auc_score(own[shown], np.float16(dense[in_b][..., 2]).reshape(-1)[shown])
    assert table.iloc[2]["auroc_within"] == pytest.approx(within)
    absent = part_scores(FeatureIndex.open(tmp_path), labels, aircraft, np.arange(n), in_b).query("part == 'strut'")
    assert absent["ap"].isna().all() and absent["excess"].isna().all()


def test_cells_of_small_parts_count_by_the_parts_own_pixels(smoke_study):
    data = smoke_study.dataset()
    images = data.table["image"][:6]
    labels, aircraft = cell_labels(data, images, (4, 4))
    for i, image in enumerate(images):
        mask = data.mask(image)
        for row in range(4):
            for column in range(4):
                cell = mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                assert aircraft[i, row, column] == pytest.approx((cell >= 2).mean())
                for part in range(2, 14):
                    share, of_part = (cell == part).mean(), (cell == part).sum() / max(1, (mask == part).sum())
                    assert labels[i, row, column, part - 2] == (share >= 0.25 or of_part >= 0.25)
