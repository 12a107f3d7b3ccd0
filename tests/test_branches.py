"""Branch specialisation: planted features, slow loops, and nulls at their nominal rate."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, load_npz
from sklearn.metrics import cohen_kappa_score, mutual_info_score

from aircraft_sae.config import SAEConfig
from aircraft_sae.hangar.scene import FACTORS
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.studies import branches, comparison
from aircraft_sae.studies.branches import contribution, excess, home, information, permutation_p, specialised

GROUPS = {"1x1": slice(0, 16), "3x3": slice(16, 40), "5x5": slice(40, 52), "pool": slice(52, 64)}


def decoder(seed: int, planted: int = 100, n: int = 300) -> np.ndarray:
    """Unit rows of noise; the first `planted` live in the 5x5 branch."""
    rows = np.random.default_rng(seed).normal(size=(n, 64))
    rows[:planted, GROUPS["5x5"]] *= 12
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


PLANTED = decoder(0)


def test_contribution_matches_a_slow_loop_and_excess_all_ways_to_draw_channels():
    shares, squared = contribution(PLANTED, GROUPS), contribution(PLANTED, GROUPS, squared=True)
    for i, row in enumerate(PLANTED[:20]):
        for name, own in GROUPS.items():
            part, whole = np.maximum(row[own], 0), np.maximum(row, 0)
            assert shares[name][i] == pytest.approx(np.sqrt((part**2).sum()) / np.sqrt((whole**2).sum()))
            assert squared[name][i] == pytest.approx((row[own] ** 2).sum() / (row**2).sum())
    row, groups = np.array([[3.0, -2, 0.5, 1, 0, 2]]), {"a": slice(0, 2), "b": slice(2, 6)}
    squares = np.maximum(row[0], 0) ** 2 / (np.maximum(row[0], 0) ** 2).sum()
    for name, own in groups.items():
        drawn = [squares[list(each)].sum() for each in combinations(range(6), own.stop - own.start)]
        wanted = (squares[own].sum() - np.mean(drawn)) / np.std(drawn)
        assert excess(row, groups)[name][0] == pytest.approx(wanted)


def test_planted_specialisation_is_found_and_permuted_channels_have_none():
    own, homes = specialised(permutation_p(PLANTED, GROUPS)), home(PLANTED, GROUPS)
    assert own["5x5"][:100].mean() > 0.75 and own.iloc[100:].to_numpy().mean() < 0.005
    assert (homes[:100] == "5x5").mean() > 0.95 and (homes[100:] == "5x5").mean() < 0.4
    for null in (np.random.default_rng(3).permuted(PLANTED, axis=1), decoder(1, planted=0)):
        assert specialised(permutation_p(null, GROUPS)).to_numpy().mean() < 0.003  # the nominal rate is 0.001


def test_p_matches_slow_permutations_and_is_uniform_by_chance():
    rows, rng = decoder(2, planted=3, n=2000), np.random.default_rng(4)
    found = permutation_p(rows, GROUPS)
    for i in (0, 1, *found["5x5"].sort_values().index[3:6]):
        squares = np.maximum(rows[i], 0) ** 2
        drawn = np.array([squares[rng.permutation(64)[:12]].sum() for _ in range(4000)])
        wanted = (drawn >= squares[GROUPS["5x5"]].sum() - 1e-9).mean()
        assert found["5x5"][i] == pytest.approx(wanted, abs=4 * np.sqrt((wanted + 2e-4) / 4000))
    for name in GROUPS:  # bounded on both sides: too wide a null would find nothing
        share = (found[name][3:] <= 0.01).mean()
        assert 0.005 < share < 0.017, name


def test_specialised_needs_a_rare_share_few_false_discoveries_and_more_than_a_single_channel():
    """One channel must be somewhere, however large its share; four need not be in the same branch."""
    p = {"too common, though few are false": np.full(100, 0.002), "too rare among 100": [0.0009, *np.ones(99)]}
    assert not specialised(pd.DataFrame(p)).to_numpy().any()
    assert specialised(pd.DataFrame({"1x1": [0.0004, *np.ones(99)]}))["1x1"].tolist() == [True] + 99 * [False]
    one, four = np.full((50, 64), 0.01), np.full((50, 64), 0.01)
    one[:, 45], four[:, 41:45] = 5, 5
    assert (contribution(one, GROUPS)["5x5"] > 0.99).all()
    assert not specialised(permutation_p(one, GROUPS)).to_numpy().any()
    found = specialised(permutation_p(four, GROUPS))
    assert found["5x5"].all() and not found.drop(columns="5x5").to_numpy().any()


class Planted:
    """A network without weights: a picture is the acts of its middle cell, and twice those of the other cells."""

    def __init__(self, values: dict[str, np.ndarray]):
        self.values = values

    def as_input(self, picture: str) -> torch.Tensor:
        return torch.tensor(self.values[picture], dtype=torch.float32)

    def stream(self, batches, sites, logits=True):
        for x in batches:
            acts = (x / 2)[:, None, None].repeat(1, 3, 3, 1)
            acts[:, 1, 1] = x
            yield SimpleNamespace(acts={site: acts for site in sites})


def test_features_lean_to_the_factor_they_follow_and_are_about_the_level_of_their_class(tmp_path):
    """Channel 0 falls without the fin, 1 changes with light, 2 follows a variant, 39 is silent; the rest are noise."""
    rng, n = np.random.default_rng(0), 60
    kinds = [("", ""), *((name, "") for name in FACTORS), *((name, "fin") for name in ("part", "paint"))]
    rows = [(f"{i}-{factor}", i, factor, part) for i in range(n) for factor, part in kinds]
    varied = pd.DataFrame(rows, columns=["image", "number", "factor", "part"]).assign(split="test")
    base, values = 1 + rng.random((n, 40)), {}
    for image, i, factor, _ in rows:
        values[image] = base[i] + (0.2 * rng.normal(size=40) if factor else 0)
        values[image][0] -= 0.9 * (factor == "part")
        values[image][1] += 2.0 * (factor == "light")
        values[image][39] = 0
    variants = np.repeat([*"abcdef"], 20)
    test = pd.DataFrame({"image": [f"t{i}" for i in range(120)], "variant": variants, "split": "test"})
    for image, own in zip(test["image"], variants, strict=True):
        values[image] = 1 + rng.random(40)
        values[image][2], values[image][39] = 0.5 + 2 * (own == "c"), 0
    saes, noise = {}, torch.eye(40)[[*range(10, 13), *range(3, 40)]]
    for name, W_enc_rows in {"a": torch.eye(40), "a-random": noise}.items():
        saes[name] = SparseAutoencoder(SAEConfig(site="x", variant="topk", k=40, expansion=1, aux_k=1), 40)
        saes[name].load_state_dict({"W_enc_rows": W_enc_rows}, strict=False)
    shown, scenes = (SimpleNamespace(table=each, rows=lambda split, each=each: each, picture=lambda image: image,
                                     levels=("variant",), classes=lambda level: [*"abcdef"], region_names=("fin",))
                     for each in (test, varied))  # fmt: skip
    given = {"saes": {"a": saes["a"]}, "random": {"a": saes["a-random"]}, "pictures": shown}

    def described(**more) -> pd.DataFrame:
        branches.see_blocks(tmp_path, network=Planted(values), **given, **more)
        return pd.read_parquet(tmp_path / "features.parquet").query("dictionary == 'a'").set_index("feature_id")

    table = described(varied=scenes)
    assert table["leaning"][0] == table["about"][0] == "part" and table["leaning"][1] == table["about"][1] == "light"
    assert table["about"][2] == "variant" and set(table["leaning"]) <= {*comparison.ALL, "unknown"}
    assert (table["about"][3:] == "unknown").mean() > 0.6 and set(table.loc[39, ["leaning", "about"]]) == {"unknown"}
    maxima = np.stack([values[image] for image in test["image"]])
    np.testing.assert_allclose(load_npz(tmp_path / "a.npz").toarray(), maxima, rtol=1e-6)
    np.testing.assert_allclose(table["mass"], maxima.mean(0), rtol=1e-5)
    table = described()
    assert table["about"][2] == "variant" and (table["about"][:2] == "unknown").all()
    shown.levels = ()
    assert (described()[["leaning", "about"]] == "unknown").all(axis=None)


def test_information_of_a_tied_category_is_found_and_of_a_free_one_is_not():
    rng = np.random.default_rng(0)
    branch = rng.choice([*GROUPS], 400)
    tied = np.where(branch == "5x5", "fin", rng.choice(["wing", "paint"], 400))
    found, free = information(tied, branch), information(rng.choice(["wing", "fin"], 400), branch)
    assert found["p"] < 0.01 and found["value"] > 10 * found["null"]["high"] and free["p"] > 0.05
    assert found["value"] == pytest.approx(mutual_info_score(tied, branch))
    fins = (tied == "fin").sum()
    assert found["table"].loc["fin", ["5x5", "5x5, expected"]].tolist() == [fins, fins * (branch == "5x5").mean()]
    none = information(np.full(400, "fin"), branch)
    assert none["value"] == pytest.approx(0) == none["null"]["value"] and none["p"] == 1


def test_content_is_chosen_on_one_half_and_counted_on_the_other():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"feature_id": range(400), "home": rng.choice([*GROUPS], 400)})
    table["leaning"] = np.where((table["home"] == "5x5") & (rng.random(400) < 0.8), "fin", rng.choice([*"abc"], 400))
    factor, here, elsewhere = branches.content(table)
    assert factor == "fin" and here["low"] > 0.6 and elsewhere["value"] == 0
    odd = table[(table["feature_id"] % 2 == 1) & (table["home"] == "5x5")]
    assert here["n"] == len(odd) and here["value"] == pytest.approx((odd["leaning"] == "fin").mean())
    table["leaning"] = rng.choice([*"abcdefgh"], 400)
    factor, here, elsewhere = branches.content(table)
    assert here["low"] < elsewhere["value"] + 0.05, "a chance excess does not last"
    factor, here, _ = branches.content(table[:0])
    assert factor == "nothing" and here == {"value": 0.0, "low": None, "high": None, "n": 0}


def test_correlations_are_numpys():
    rng = np.random.default_rng(0)
    a, b = (rng.random((50, d)) * (rng.random((50, d)) < 0.3) for d in (4, 3))
    found = branches._standardised(csr_array(a)).T @ branches._standardised(csr_array(b))
    np.testing.assert_allclose(found, np.corrcoef(a.T, b.T)[:4, 4:], atol=1e-12)


def test_kappa_of_planted_partners_and_of_shuffled_homes():
    """Nine in ten partners, found by their activations, have the same home; shuffled homes agree by chance."""
    rng = np.random.default_rng(0)
    first = np.maximum(rng.normal(size=(300, 60)), 0)
    order = rng.permutation(60)
    second, homes = csr_array(first[:, order] + 0.05 * rng.random((300, 60))), rng.choice([*GROUPS], 60)
    other = homes[order].copy()
    other[:6] = "pool"
    found = branches.agreement_across_blocks(csr_array(first), second, (homes, other))
    assert found["kappa"]["value"] > 0.8 > found["permuted"]["high"] and found["p"] < 0.01 and found["kappa"]["n"] == 60
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(homes, other[np.argsort(order)]))
    shuffled = branches.agreement_across_blocks(csr_array(first), second, (homes, rng.permutation(other)))
    assert shuffled["kappa"]["low"] < 0.2 and shuffled["p"] > 0.02
    silent = first.copy()
    silent[:291, :10] = 0
    assert branches.agreement_across_blocks(csr_array(silent), second, (homes, other))["kappa"]["n"] == 50
    unrelated = csr_array(np.maximum(rng.normal(size=(300, 60)), 0))
    apart = branches.agreement_across_blocks(csr_array(first), unrelated, (homes, other))
    assert apart["matched"] < 0.1 < 0.9 < found["matched"], "a feature without a partner is not matched by chance"


def test_features_that_share_a_partner_count_once():
    """40 groups of 25 features with one partner each and random homes: small p are as rare as they should be."""
    rng, ps = np.random.default_rng(0), []
    base = np.maximum(rng.normal(size=(60, 40)), 0)
    first = np.repeat(base, 25, axis=1) + 0.01 * rng.random((60, 1000))
    for _ in range(40):
        homes = np.repeat(rng.choice([*GROUPS], 40), 25), rng.choice([*GROUPS], 40)
        found = branches.agreement_across_blocks(csr_array(first), csr_array(base), homes)
        ps.append(found["p"])
        assert found["kappa"]["high"] - found["kappa"]["low"] > 0.2, "as wide as for 40, not for 1,000"
    assert 0.02 < np.mean(np.array(ps) < 0.2) < 0.45


def test_neighbours_of_planted_rows_share_their_branch():
    found = branches.purity(PLANTED, np.where(np.arange(300) < 100, "5x5", ""))
    assert found["purity"]["value"] > found["permuted"]["high"] + 0.1
    rows, labels = np.random.default_rng(6).normal(size=(60, 8)), np.random.default_rng(7).choice([*"ab"], 60)
    unit, same = rows / np.linalg.norm(rows, axis=1, keepdims=True), []
    for i in range(60):
        near = [j for j in np.argsort(-unit @ unit[i]) if j != i][:15]
        same.append((labels[near] == labels[i]).mean())
    assert branches.purity(rows, labels)["purity"]["value"] == pytest.approx(np.mean(same))
    mixed = branches.purity(decoder(1, planted=0), np.where(np.arange(300) < 100, "5x5", ""))
    assert abs(mixed["purity"]["value"] - mixed["permuted"]["value"]) < 0.03


def test_random_directions_are_as_often_active_as_features(smoke_study):
    acts = smoke_study.activations("stage3")
    cfg = SAEConfig(site="stage3", variant="topk", k=32, expansion=400, tied=True, aux_k=0)
    made = branches.random_thousand(SparseAutoencoder(cfg, acts.d_in), acts)
    assert 1000 <= made.d_sae < 1000 + acts.d_in
    assert made.cfg.k / made.d_sae == pytest.approx(32 / (400 * acts.d_in), rel=0.2)
    few = SparseAutoencoder(replace(cfg, k=3, expansion=2), acts.d_in)
    assert branches.random_thousand(few, acts).d_sae == few.d_sae
