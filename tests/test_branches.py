"""Branch specialisation: planted features, slow loops, and nulls at their nominal rate."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, load_npz
from sklearn.metrics import cohen_kappa_score
from torch import nn

from aircraft_sae.config import SAEConfig
from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.studies import branches, comparison
from aircraft_sae.studies.branches import (
    across,
    contribution,
    equalised,
    excess,
    home,
    information,
    purity,
    specialised,
)  # fmt: skip

GROUPS = {"1x1": slice(0, 16), "3x3": slice(16, 40), "5x5": slice(40, 52), "pool": slice(52, 64)}


def decoder(seed: int, planted: int = 100, n: int = 300) -> np.ndarray:
    """Rows of noise, a third of which live in the 5x5 branch."""
    rows = np.random.default_rng(seed).normal(size=(n, 64))
    rows[:planted, GROUPS["5x5"]] *= 12
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def planted() -> np.ndarray:
    return decoder(0)


def test_contribution_is_the_slow_loops(planted):
    shares, squared = contribution(planted, GROUPS), contribution(planted, GROUPS, squared=True)
    for i, row in enumerate(planted[:20]):
        for name, own in GROUPS.items():
            part, whole = np.maximum(row[own], 0), np.maximum(row, 0)
            assert shares[name][i] == pytest.approx(np.sqrt((part**2).sum()) / np.sqrt((whole**2).sum()))
            assert squared[name][i] == pytest.approx((row[own] ** 2).sum() / (row**2).sum())
    assert np.allclose(squared.sum(axis=1), 1)


def test_excess_is_that_of_all_ways_to_draw_channels():
    row, groups = np.array([[3.0, -2, 0.5, 1, 0, 2]]), {"a": slice(0, 2), "b": slice(2, 6)}
    squares = np.maximum(row[0], 0) ** 2 / (np.maximum(row[0], 0) ** 2).sum()
    for name, own in groups.items():
        drawn = [squares[list(each)].sum() for each in combinations(range(6), own.stop - own.start)]
        wanted = (squares[own].sum() - np.mean(drawn)) / np.std(drawn)
        assert excess(row, groups)[name][0] == pytest.approx(wanted)


def test_planted_specialisation_is_found_and_permuted_channels_have_none(planted):
    own = specialised(planted, GROUPS)
    assert own["5x5"][:100].mean() > 0.75 and own.iloc[100:].to_numpy().mean() < 0.005
    permuted = np.random.default_rng(3).permuted(planted, axis=1)
    assert specialised(permuted, GROUPS).to_numpy().mean() < 0.003  # the nominal rate is one in a thousand
    assert (home(planted, GROUPS)[:100] == "5x5").mean() > 0.95 and (home(planted, GROUPS)[100:] == "5x5").mean() < 0.4
    assert specialised(decoder(1, planted=0), GROUPS).to_numpy().mean() < 0.003


def test_a_row_of_one_channel_is_in_a_branch_by_chance():
    """However large its share, one channel has to be somewhere; four of twelve in one branch have not."""
    one, four = np.full((50, 64), 0.01), np.full((50, 64), 0.01)
    one[:, 45], four[:, 41:45] = 5, 5
    assert (contribution(one, GROUPS)["5x5"] > 0.99).all() and not specialised(one, GROUPS).to_numpy().any()
    found = specialised(four, GROUPS)
    assert found["5x5"].all() and not found.drop(columns="5x5").to_numpy().any()


def test_a_planted_third_is_found_with_its_category_and_again_in_the_next_layer(planted):
    """Share, category and kappa at once: features of fins in 5x5, in two layers, matched by when they are active."""
    rng, fins = np.random.default_rng(0), np.arange(300) < 100
    first = np.maximum(rng.normal(size=(200, 300)), 0)
    order = rng.permutation(300)
    second, other = first[:, order] + 0.05 * rng.random((200, 300)), decoder(5)[order]
    category = np.where(fins, "fin", rng.choice(["wing", "paint"], 300))
    own = home(planted, GROUPS)
    assert specialised(planted, GROUPS)["5x5"].mean() == pytest.approx(1 / 3, abs=0.09)
    told = information(category, own)
    assert told["p"] < 0.01 and told["table"].loc["fin", "5x5"] > 90 > 3 * told["table"].loc["fin", "5x5, expected"] / 2
    found = across(csr_array(first), csr_array(second), (own, home(other, GROUPS)))
    assert found["kappa"]["low"] > found["permuted"]["high"] and found["p"] < 0.01
    unplanted = across(csr_array(first), csr_array(second), (home(decoder(8, 0), GROUPS), home(decoder(9, 0), GROUPS)))
    assert unplanted["kappa"]["low"] < 0.05 and unplanted["p"] > 0.01


def test_branches_of_equal_width_keep_their_features(planted):
    """As many channels of each; a feature that lives in one branch lives there still, and a branch wins by no width."""
    columns, groups = equalised(GROUPS)
    assert len(set(columns)) == 48 and all(own.stop - own.start == 12 for own in groups.values())
    for name, own in groups.items():
        assert ((columns[own] >= GROUPS[name].start) & (columns[own] < GROUPS[name].stop)).all()
    special = specialised(planted[:, columns], groups)
    assert special["5x5"][:100].mean() > 0.6 and special.iloc[100:].to_numpy().mean() < 0.01
    plain = decoder(1, planted=0)
    assert contribution(plain[:, columns], groups, squared=True).mean().between(0.22, 0.28).all()
    assert contribution(plain, GROUPS, squared=True).mean()["3x3"] > 0.33


def test_blocks_are_seen_and_their_features_given_a_category(smoke_study, tmp_path):
    """Maxima are those of `see_maxima`, and a feature that never answers is unknown."""
    network, pictures, varied = smoke_study.network(), smoke_study.pictures(), smoke_study.varied(4)
    d = network.shape("stage3")[2]
    sae, random = (
        SparseAutoencoder(SAEConfig(site="stage3", variant="topk", k=4, expansion=2, seed=i), d) for i in (0, 1)
    )
    given = {"network": network, "pictures": pictures, "varied": varied}
    branches.see_blocks(tmp_path, saes={"three": sae}, random={"three": random}, **given)
    table = pd.read_parquet(tmp_path / "features.parquet")
    maxima = branches.see_maxima(network, {"three": sae}, pictures)["three"]
    assert (load_npz(tmp_path / "three.npz") != maxima).nnz == 0
    assert len(table) == 2 * d and set(table["about"]) <= {*comparison.ALL, *pictures.levels, "unknown"}
    np.testing.assert_allclose(table["mass"], maxima.toarray().mean(0), rtol=1e-5)
    silent = (maxima.toarray() == 0).all(0)
    assert (table.loc[silent, ["about", "leaning"]] == "unknown").all(axis=None)


def test_information_of_a_tied_category_is_found_and_of_a_free_one_is_not():
    rng = np.random.default_rng(0)
    branch = rng.choice([*GROUPS], 400)
    tied = np.where(branch == "5x5", "fin", rng.choice(["wing", "paint"], 400))
    found, free = information(tied, branch), information(rng.choice(["wing", "fin"], 400), branch)
    assert found["p"] < 0.01 and found["value"] > 10 * found["null"]["high"] and free["p"] > 0.05
    assert found["table"].loc["fin", "5x5"] == (branch == "5x5").sum()
    assert found["table"].loc["fin", "5x5, expected"] == pytest.approx((tied == "fin").sum() * (branch == "5x5").mean())


def test_kappa_across_planted_layers_and_of_shuffled_ones():
    """Partners found by their activations have the same home in nine of ten; shuffled homes agree by chance alone."""
    rng = np.random.default_rng(0)
    first = np.maximum(rng.normal(size=(300, 60)), 0)
    order = rng.permutation(60)
    second = first[:, order] + 0.05 * rng.random((300, 60))
    homes = rng.choice([*GROUPS], 60)
    other = homes[order].copy()
    other[:6] = "pool"
    found = across(csr_array(first), csr_array(second), (homes, other))
    assert found["kappa"]["value"] > 0.8 > found["permuted"]["high"] and found["p"] < 0.01 and found["kappa"]["n"] == 60
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(homes, other[np.argsort(order)]))
    shuffled = across(csr_array(first), csr_array(second), (homes, rng.permutation(other)))
    assert shuffled["kappa"]["low"] < 0.2 and shuffled["p"] > 0.02
    silent = first.copy()
    silent[:, :10] = 0
    assert across(csr_array(silent), csr_array(second), (homes, other))["kappa"]["n"] == 50


def test_neighbours_of_planted_rows_share_their_branch(planted):
    found = purity(planted, np.where(np.arange(300) < 100, "5x5", ""))
    assert found["purity"]["value"] > found["permuted"]["high"] + 0.1
    mixed = purity(decoder(1, planted=0), np.where(np.arange(300) < 100, "5x5", ""))
    assert abs(mixed["purity"]["value"] - mixed["permuted"]["value"]) < 0.03


def test_without_scenes_features_are_about_classes_or_unknown(smoke_study, tmp_path):
    network, pictures = smoke_study.network(), smoke_study.pictures()
    sae = SparseAutoencoder(SAEConfig(site="stage3", variant="topk", k=4, expansion=2), network.shape("stage3")[2])
    branches.see_blocks(tmp_path, network=network, pictures=pictures, saes={"a": sae}, random={"a": sae})
    assert set(pd.read_parquet(tmp_path / "features.parquet")["about"]) <= {*pictures.levels, "unknown"}


def test_random_directions_are_as_dense_as_features(smoke_study):
    acts = smoke_study.activations("stage3")
    like = SparseAutoencoder(
        SAEConfig(site="stage3", variant="topk", k=32, expansion=400, tied=True, aux_k=0), acts.d_in
    )
    made = branches.random_thousand(like, acts)
    assert 1000 <= made.d_sae < 1000 + acts.d_in and made.cfg.k / made.d_sae == pytest.approx(32 / like.d_sae, rel=0.2)
    few = SparseAutoencoder(SAEConfig(site="stage3", variant="topk", k=3, expansion=2), acts.d_in)
    assert branches.random_thousand(few, acts).d_sae == few.d_sae


@pytest.fixture(scope="module")
def line(smoke_study):
    """(a network of two convolutions, autoencoders of both whose features are the channels)."""
    one, two = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        two.weight.copy_(torch.eye(4)[..., None, None] + 0.01)
        two.bias.zero_()
    network = Network(nn.Sequential(one, two), list("abcd"), size=64)
    network.model.append(nn.AdaptiveAvgPool2d(1)), network.model.append(nn.Flatten())
    saes = []
    for site in ("0", "1"):
        sae = SparseAutoencoder(SAEConfig(site=site, variant="topk", k=4, expansion=1, aux_k=1), 4)
        with torch.no_grad():
            sae.W_enc_rows.copy_(torch.eye(4)), sae.W_dec.copy_(torch.eye(4)), sae.b_enc.fill_(2.0)
        saes.append(sae)
    return network, saes


def test_an_edge_is_what_suppression_takes(smoke_study, line, tmp_path):
    """Upstream feature 0 alone drives downstream feature 0; changes are those of a hook, and of a slow mean."""
    (network, saes), pictures = line, smoke_study.pictures()
    roles = {"asked": [0], "null": [1, 2], "control": [3]}
    branches.find_edges(tmp_path, network=network, saes=saes, pictures=pictures, roles=roles)
    table = pd.read_parquet(tmp_path / "edges.parquet")
    assert table.groupby("role")["upstream"].unique().map(list).to_dict() == roles
    own = table[table["role"] == "asked"].set_index("downstream")
    assert own["change"].abs().idxmax() == 0 and own["change"][0] < -0.1 and own["predicted"][0] < 0
    row, names = saes[0].W_dec[0].detach(), pictures.rows("test")["image"]
    x = torch.stack([network.as_input(pictures.picture(name)) for name in names])
    edit = {"0": lambda acts: acts - (saes[0].encode(acts.flatten(0, 2)).dense()[:, [0]] * row).view(acts.shape)}
    plain, hooked = (
        saes[1].encode((acts := network.see(x, ["1"], each).acts["1"].detach()).flatten(0, 2)).dense()
        .view(len(acts), -1, 4).amax(1).mean(0) for each in (None, edit)
    )  # fmt: skip
    assert own["change"].to_numpy() == pytest.approx((hooked / plain - 1).numpy(), abs=1e-4)
    active = saes[0].encode(network.see(x, ["0"]).acts["0"].flatten(0, 2).detach()).dense()[:, 0].mean()
    linear = -active * network.model[1].weight[:, 0, 0, 0].detach()  # of a linear module, exactly
    assert own["predicted"].to_numpy() == pytest.approx((linear / plain).numpy(), rel=1e-3)
    usual = table[table["role"] == "null"]["change"].abs().quantile(0.999)
    assert (table["beyond"] == (table["change"].abs() > usual)).all()


def test_maxima_are_those_of_all_cells(smoke_study, line):
    (network, saes), pictures = line, smoke_study.pictures()
    maxima = branches.see_maxima(network, {"up": saes[0], "down": saes[1]}, pictures)["down"].toarray()
    x = torch.stack([network.as_input(pictures.picture(name)) for name in pictures.rows("test")["image"]])
    acts = network.see(x, ["1"]).acts["1"].detach()
    wanted = saes[1].encode(acts.flatten(0, 2)).dense().view(len(acts), -1, 4).amax(1)
    np.testing.assert_allclose(maxima, wanted, atol=1e-4)


def test_a_feature_sees_what_its_kernels_span(smoke_study, line, tmp_path):
    """A cell of an 8 x 8 convolution, with equal weights: half of its square lies within 3 pixels."""
    (network, saes), pictures = line, smoke_study.pictures()
    with torch.no_grad():
        network.model[0].weight[1] = 1.0
    image = pictures.rows("test")["image"][0]
    best = pd.DataFrame({"unit": [1, 1], "image": image, "row": [3, 0], "column": [2, 0], "value": [2.0, 1.0]})
    best.to_parquet(tmp_path / "patches.parquet")
    branches.see_reach(tmp_path, network=network, pictures=pictures, sae=saes[0], patches=tmp_path, units=[1])
    found = pd.read_parquet(tmp_path / "reach.parquet")
    assert found["unit"].tolist() == [1] and found["radius"][0] == pytest.approx(3.0, abs=0.2)
