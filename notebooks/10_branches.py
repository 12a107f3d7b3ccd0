# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10. Do branches specialise?
#
# **Question.** A block of InceptionV1 has four branches side by side: convolutions of 1 x 1, 3 x 3 and 5 x 5, and a
# pool. Sparse autoencoders of mixed4a to mixed4e are said to show three things (Bozoukov 2025). (1) Features specialise
# in branches, in every block. (2) What a branch holds is alike in all blocks. (3) Branches of 5 x 5 hold one kind of
# content (there, animals). That rests on features picked by hand. Here every live feature is asked, and so are
# directions that no autoencoder learned; what a feature is about comes from ground truth, where that is known. Then:
# do kernel size, a map of features and circuits between blocks say anything more?
#
# **Reads** the data set of notebook 01. **Writes** cells and autoencoders of each block, `data/runs/<preset>/
# experiments/blocks` and what follows from it, and the numbers in `data/runs/<preset>/results/10_branches.json`.
#
# **Runtime** with the default preset on 2 CPU cores: some fifteen minutes the first time, four minutes after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import os
from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd
import umap
from IPython.display import HTML, Markdown, display
from scipy.sparse import load_npz
from torch.nn.functional import cosine_similarity

from aircraft_sae.features.reconstruction import measure, random_dictionaries, untrained

# %%
from aircraft_sae.metrics import median, with_interval
from aircraft_sae.studies import branches, circuits, curves
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser.catalogue import crop, crops_figure
from aircraft_sae.view.scatter import graph, scatter

# %% [markdown]
# ## Settings
#
# InceptionV1 has weights of our own here: it was trained to name rendered aircraft, and saw no photograph. With the
# published weights, `python -m aircraft_sae run 10 --network inception5h.pth` asks the same of them.

# %%
study, NETWORK = Study.open(), os.environ.get("AIRCRAFT_SAE_NETWORK")
network, small, results = study.network(NETWORK or "hangar_inceptionv1"), study.config.name == "smoke", {}
NAME = "10_branches" + f"-{network.name}" * bool(NETWORK)
BLOCKS = [f"mixed4{letter}" for letter in ("abc" if small else "abcde")]
ALONE, RECIPE, pictures = ("5x5", "1x1"), "the paper's recipe", study.pictures()
groups = {block: {name: network.channels(f"{block}:{name}") for name in branches.BRANCHES} for block in BLOCKS}
every = 1 if small else 3

# %% [markdown]
# ## Two kinds of autoencoder
#
# *The paper's recipe*, trained briefly and on our pictures: tied weights, the 32 largest activations of a cell, 16
# features a channel, ten cells a picture, drawn by the length of their vectors; of whole blocks, and of the 5 x 5 and
# the 1 x 1 branch alone. *Ours*: the same, but untied, with decoder rows of length one and an auxiliary loss for dead
# features.

# %%
sites = [*BLOCKS, *(f"{block}:{name}" for block, name in product(BLOCKS, ALONE))]
cells = study.cells(sites, network, 10, by_norm=True)
paper = {"variant": "topk", "k": 32, "expansion": 16, "tied": True, "aux_k": 0}
paper |= {} if small else {"n_cells": 50_000}
kinds = {RECIPE: paper, "ours": paper | {"tied": False, "aux_k": 256}}
NULLS = ("random directions", "untrained", "permuted network")
wanted = [(RECIPE, site) for site in sites] + [("ours", block) for block in BLOCKS]
asked, learnt, kept, shown = {}, {}, {}, {}

# %%
for kind, site in wanted:
    acts, end, name = cells[site], "" if kind == RECIPE else "/ours", kind.replace(RECIPE, "paper")
    sae = study.dictionary(f"{network.name}-{site.replace(':', '-')}-{name}", acts, **kinds[kind])
    found = measure(sae.reconstruct, acts, acts.rows("test"), acts.moments(acts.rows("train"))[0])
    live, start = found.fired > 0, untrained(sae, acts).W_dec
    both = sae.W_dec, cosine_similarity(start, sae.W_dec)
    learnt[kind, site], kept[kind, site] = (each.detach().numpy()[live] for each in both)
    asked |= {} if end else {site: sae}
    own, fvu = {name: found.results[name] for name in ("dead_share", "l0")}, found.results["fvu"]
    own |= {"n_live": int(live.sum()), "cosine_with_start": median(kept[kind, site])}
    own["explained"] = {"value": 1 - fvu["value"], "low": 1 - fvu["high"], "high": 1 - fvu["low"], "n": fvu["n"]}
    results |= {f"{site}/{name}{end}": entry for name, entry in own.items()}

# %%
for kind, site in wanted:
    own = {name: results[f"{site}/{name}" + "/ours" * (kind == "ours")]
           for name in ("n_live", "dead_share", "l0", "explained", "cosine_with_start")}  # fmt: skip
    row = {"live": own["n_live"], "dead, %": 100 * own["dead_share"]["value"], "active a cell": own["l0"]["value"]}
    row["variance explained, %"] = 100 * own["explained"]["value"]
    shown[f"{site}, {kind}"] = row | {"cosine with start": own["cosine_with_start"]["value"]}
n_cells = 10 * len(cells["mixed4a"].rows("train", "val"))
passes = asked["mixed4a"].cfg.n_cells / n_cells
pd.DataFrame(shown).T.round(2)

# %%
said = {f"{name}{end}": np.mean([results[f"{block}/{name}{end}"]["value"] for block in BLOCKS])
        for name, end in product(("cosine_with_start", "dead_share"), ("", "/ours"))}  # fmt: skip
text = f"""**Takeaway.** Training is short: {n_cells:,} cells, {passes:.1f} times. A live row of the paper's recipe
still has a cosine of {said["cosine_with_start"]:.2f} with its random start (median; means of five blocks). What is
left of the start lies in no branch, and can hide a share. Of ours {said["dead_share/ours"]:.0%} are dead
(active in none of ten cells of each test picture), of the paper's recipe {said["dead_share"]:.0%}; what follows is of
live features."""
display(Markdown(text))

# %% [markdown]
# ## Does each branch have features of its own?
#
# A feature's decoder row has a part in each branch. We set negative entries to zero; the branch's *share* is then the
# length of that part over the length of the row (the paper's measure). Wide branches have large shares by chance: an
# eighth of the channels has 0.35, the root of an eighth. So we permute the row's channels. A share is *beyond chance*
# if at most one permutation in a thousand gives the branch as much. A feature is *specialised* in the branch if its
# share stays beyond chance when we allow 5% false discoveries among all features; with 9,999 permutations this cannot
# find fewer than one feature in 500.
#
# Beside features: *random directions*, drawn with the covariance of the cells; *untrained*, the recipe before its first
# step; features of a *permuted network*, which has the same weights in another order; and *permuted rows*, the check of
# the test itself, which must lie on the dotted line. Random directions are no picture of pure chance: they lie where
# cells vary most, and if the loud channels are in one branch, so are they. If they exceed features, a large share needs
# no learning. That does not say that branches are alike.

# %%
shuffled, rows, chance = network.permuted(), {}, {}
null_cells = study.cells(BLOCKS, shuffled, 10, by_norm=True)
for block in BLOCKS:
    own = {kind: learnt[kind, block] for kind in kinds}
    acts, null = null_cells[block], study.dictionary(f"{network.name}-{block}-permuted", null_cells[block], **paper)
    own["random directions"] = random_dictionaries(asked[block], cells[block], (0,))[0].W_dec.detach().numpy()
    own["untrained"] = untrained(asked[block], cells[block]).W_dec.detach().numpy()
    fired = measure(null.reconstruct, acts, acts.rows("test"), null.b_dec).fired
    own["permuted network"] = null.W_dec.detach().numpy()[fired > 0]
    chance |= {(block, kind): branches.by_chance(each, groups[block]) for kind, each in own.items()}
    rows |= {(block, kind): own[kind] for kind in (RECIPE, "random directions")}

# %%
for block in BLOCKS:
    permuted = np.random.default_rng(1).permuted(rows[block, RECIPE], axis=1)
    chance[block, "null"] = branches.by_chance(permuted, groups[block])
beyond = {key: p <= branches.SPECIAL for key, p in chance.items()}
special = {key: branches.specialised(p) for key, p in chance.items()}
for name, found in {"beyond_share": beyond, "specialised_share": special}.items():
    for (block, kind), above in found.items():
        end = {RECIPE: "", "null": "_null"}.get(kind, f"/{kind}")
        results |= {f"{block}/{name}/{branch}{end}": with_interval(above[branch], np.ones(len(above)))
                    for branch in above}  # fmt: skip

# %%
for (block, kind), W_dec in rows.items():
    end = "" if kind == RECIPE else f"/{kind}"
    for name, squared in {"share": False, "share_squared": True}.items():
        means = branches.contribution(W_dec, groups[block], squared).mean()
        results |= {f"{block}/{name}/{branch}{end}": value for branch, value in means.items()}
    widths = {name: (own.stop - own.start) / W_dec.shape[1] for name, own in groups[block].items()}
    results |= {f"{block}/channels/{name}": value for name, value in widths.items()}

# %%
panels = {name: [] for name in branches.BRANCHES}
for (block, kind), name in product(beyond, branches.BRANCHES):
    above = beyond[block, kind][name]
    entry = with_interval(above, np.ones(len(above)))
    scaled = {end: 100 * entry[end] for end in ("value", "low", "high")}
    panels[name].append({"network": kind.replace("null", "permuted rows"), "factor": block} | scaled)
panels = {name.replace("x", " x "): pd.DataFrame(each) for name, each in panels.items()}
plots.profiles(panels, "features with a share of this branch beyond chance, % (dotted: 0.1%)", 0.1)

# %%
table = pd.Series({key: own.any(axis=1).mean() for key, own in special.items()}).unstack()[[*kinds, *NULLS]]
results |= {f"specialised/{kind}": (each.mean(), each.min(), each.max(), len(each)) for kind, each in table.items()}
in_5x5 = {kind: np.mean([special[block, kind]["5x5"].mean() for block in BLOCKS]) for kind in table}
far = [own[kept[RECIPE, block] < np.median(kept[RECIPE, block])].any(axis=1).mean()
       for block, own in ((block, special[block, RECIPE]) for block in BLOCKS)]  # fmt: skip
results |= {f"specialised_in_5x5/{kind}": share for kind, share in in_5x5.items()}
results["specialised/far_from_start"] = (np.mean(far), min(far), max(far), len(far))
text = f"""**Takeaway.** Of the recipe's features {table[RECIPE].mean():.1%} are specialised in some branch (mean of
five blocks), of the half furthest from their start {np.mean(far):.1%}, of random directions
{table["random directions"].mean():.1%}. In 5 x 5 it is {in_5x5[RECIPE]:.2%} of features and
{in_5x5["random directions"]:.2%} of random directions."""
display(Markdown(text))

# %% [markdown]
# ## Is it the width of a branch, or the scale of its channels?
#
# Channels of one branch may vary more than those of another, and rows then have more there. So we ask again of rows in
# units of each channel's deviation; of rows with equally many channels of each branch, drawn at random; and, since
# fewer channels can show less, of rows with as few in the branches' own proportions.

# %%
shown = {}
for (block, kind), W_dec in rows.items():
    variance = cells[block].moments(cells[block].rows("test"))[1].numpy()
    in_deviations = W_dec / np.sqrt(np.where(variance > 1e-9, variance, np.inf))
    ways = {"as they are": chance[block, kind], "in deviations": branches.by_chance(in_deviations, groups[block])}
    for name, even in {"equal widths": True, "as few, in proportion": False}.items():
        columns, few = branches.equalised(groups[block], even)
        ways[name] = branches.by_chance(W_dec[:, columns], few)
    shown[block, kind] = {name: 100 * branches.specialised(p).any(axis=1).mean() for name, p in ways.items()}
    results |= {f"{block}/specialised/{name}/{kind}": share / 100 for name, share in shown[block, kind].items()}
shown = pd.DataFrame(shown).T
shown.round(1).rename_axis(["specialised in some branch, %", ""])

# %%
mean = shown.groupby(level=1).mean()
learnt_, drawn_ = mean.loc[RECIPE], mean.loc["random directions"]
text = f"""**Takeaway.** With each channel in units of its own deviation, {learnt_["in deviations"]:.1f}% of features
are specialised in place of {learnt_["as they are"]:.1f}%, and {drawn_["in deviations"]:.1f}% of random directions in
place of {drawn_["as they are"]:.1f}%: part of what random directions show is the scale of channels."""
display(Markdown(text))

# %% [markdown]
# ## What are they about?
#
# From ground truth, in scenes where one thing is changed. A feature *leans* to one factor: that to which it responds
# most, after each factor is divided by the mean response of random directions. It is *about* the factor if the
# factor's part in all its responses is larger than in 99.5% of random directions (notebook 07). Failing that, it is
# about a level of classes (variant, family, manufacturer) if it selects one class more clearly than 99.5% of them do.
# Responses are known of features that are active in ten of 40 scenes; edits of parts and of their paint are in fewer
# scenes, and count where ten are known.

# %%
inputs = {"network": network, "pictures": pictures.every(every), "saes": asked}
inputs["random"] = {site: branches.random_thousand(sae, cells[site]) for site, sae in asked.items()}
if pictures.scenes is not None:
    varied = study.varied()
    inputs["varied"] = varied.subset(varied.table["number"] < 40, "varied40")
folder = study.stage(f"experiments/blocks-{network.name}", branches.see_blocks, {}, inputs)
features = pd.read_parquet(folder / "features.parquet").query("mass > 0")

# %%
dictionaries = {block: asked[block] for block in BLOCKS}
dictionaries |= {f"{block}-random": inputs["random"][block] for block in BLOCKS}
homes = {name: branches.home(sae.W_dec.detach().numpy(), groups[name.removesuffix("-random")])
         for name, sae in dictionaries.items()}  # fmt: skip
leaning, told, shown = features[features["leaning"] != "unknown"], {}, {}

# %%
for name in dictionaries:
    own = leaning[leaning["dictionary"] == name]
    found = told[name] = branches.information(own["leaning"].to_numpy(), homes[name][own["feature_id"]])
    key = f"{name.removesuffix('-random')}/information" + "/random" * name.endswith("-random")
    results |= {key: (found["value"], None, None, len(own)), f"{key}/permuted": found["null"], f"{key}/p": found["p"]}
    shown[name] = {"features": len(own), "information, nats": found["value"], "permuted": found["null"]["value"]}
    shown[name] |= {"permuted, at most (95%)": found["null"]["high"], "p": found["p"]}
pd.DataFrame(shown).T.round(4)

# %% [markdown]
# The *home* of a feature is the branch whose share is most standard deviations above chance, specialised or not.
# Nearly all features have a home without being specialised, and often by little: what follows tests branches as they
# are for all features, not for the few that are specialised, of which there are too few to ask. Mutual information
# says how much the home tells of what a feature leans to. Where it tells most, what is where? Counts, beside what
# would be expected if the two had nothing to do with each other.

# %%
block = max(BLOCKS, key=lambda name: told[name]["value"] - told[name]["null"]["value"])
told[block]["table"].round(1).rename_axis(f"{block}: leans to")

# %% [markdown]
# Do autoencoders of one branch alone hold other things than those of whole blocks? Means of five blocks. By its rule
# some 5% of random directions are *about* something: that column is what chance gives.

# %%
columns = {}
for what in ("leaning", "about"):
    each = features.groupby("dictionary")[what].value_counts(normalize=True).unstack(fill_value=0)
    columns["whole blocks", what] = each.loc[BLOCKS].mean()
    columns |= {(f"{name} alone", what): each.loc[[f"{block}:{name}" for block in BLOCKS]].mean() for name in ALONE}
    columns["random directions", what] = each.loc[[f"{block}-random" for block in BLOCKS]].mean()
kinds_of = pd.DataFrame(columns).fillna(0).sort_values(("whole blocks", "leaning"), ascending=False)
results |= {f"{what}/{where}/{name}": share for (where, what), own in kinds_of.items() for name, share in own.items()}
(100 * kinds_of).round(1).rename_axis("% of features")

# %%
ends, p = ("", "-random"), {name: found["p"] for name, found in told.items()}
informed, by_chance = (sum(p[f"{block}{end}"] < 0.05 / len(BLOCKS) for block in BLOCKS) for end in ends)
gains = {name: found["value"] - found["null"]["value"] for name, found in told.items()}
gained, at_random = (np.mean([gains[f"{block}{end}"] for block in BLOCKS]) for end in ends)
results |= {"informed_blocks": informed, "informed_blocks/random": by_chance}
results |= {"information_gain": gained, "information_gain/random": at_random}

# %%
lean = kinds_of.xs("leaning", axis=1, level=1).drop(columns="random directions")
known = (lean.drop("unknown", errors="ignore") / (1 - lean.T.get("unknown", 0.0))).fillna(0)
most = "; ".join(f"{own.max():.0%} to {own.idxmax()} in {where}" for where, own in known.items())
text = f"""**Takeaway.** Home and leaning go together in {informed} of {len(BLOCKS)} blocks (p <
{0.05 / len(BLOCKS):.2f} each), and for random directions in {by_chance}. Of features whose leaning is known most
lean: {most}."""
display(Markdown(text))

# %% [markdown]
# And is the content of 5 x 5 of one kind? On half of the features of all blocks (even numbers) we choose the factor to
# which features at home in 5 x 5 lean more often than the others, and count on the other half.

# %%
leaning = leaning.assign(home=[homes[name][j] if name in homes else "" for name, j in
                               zip(leaning["dictionary"], leaning["feature_id"], strict=True)])  # fmt: skip
content, shown = {}, {}
for kind, names in {"features": BLOCKS, "random directions": [f"{block}-random" for block in BLOCKS]}.items():
    factor, here, elsewhere = content[kind] = branches.content(leaning[leaning["dictionary"].isin(names)])
    shown |= {f"{kind} at home in 5 x 5: {factor}": here, f"{kind} at home elsewhere: {factor}": elsewhere}
    results |= {f"content/{kind}/5x5/{factor}": here, f"content/{kind}/elsewhere/{factor}": elsewhere}
plots.dots(shown, "features that lean to the factor, %", "home: factor", scale=100)

# %%
said = "{:.0%} of those at home in 5 x 5 lean to {}, and {:.0%} of the others"
lean = {kind: said.format(here["value"], factor, elsewhere["value"])
        for kind, (factor, here, elsewhere) in content.items()}  # fmt: skip
text = f"""**Takeaway.** Of features, {lean["features"]} (n = {content["features"][1]["n"]:,} and
{content["features"][2]["n"]:,}). Of random directions few are known (n =
{content["random directions"][1]["n"]:,} in 5 x 5)."""
display(Markdown(text))

# %% [markdown]
# ## Does it last across blocks?
#
# A feature's partner in another block is the one whose image maxima correlate best with its own. The two are
# *matched* if their correlation is above what 0.5% of features reach when the second block's pictures are shifted.
# Are their homes branches of the same kind? Cohen's kappa is 1 if they always are, and 0 by chance. Beside features:
# random directions of the two blocks, some thousand each, so that their intervals are wider.

# %%
maxima = {name: load_npz(folder / f"{name}.npz") for name in dictionaries}
panels = []
for pair, end in product(combinations(BLOCKS, 2), ("", "-random")):
    names, key = [f"{block}{end}" for block in pair], "kappa/" + "-".join(pair) + end.replace("-", "/")
    found = branches.across(*(maxima[name] for name in names), [homes[name] for name in names])
    results |= {key: found["kappa"], f"{key}/permuted": found["permuted"], f"{key}/p": found["p"]}
    results[f"{key}/matched"] = found["matched"]
    kind, null = "random directions" if end else "features", found["permuted"]["high"]
    panels.append({"network": kind, "factor": " and ".join(pair)} | found["kappa"] | {"p": found["p"], "null": null})
kappas = pd.DataFrame(panels)
plots.profiles({"Are matched features in branches of one kind?": kappas}, "Cohen's kappa", 0)

# %%
by = {kind: own for kind, own in kappas.groupby("network")}
ranges = {kind: (own["value"].mean(), own["value"].min(), own["value"].max(), len(own)) for kind, own in by.items()}
results |= {"kappa": ranges["features"], "kappa/random": ranges["random directions"]}
alike = {kind: int((own["p"] < 0.05 / len(own)).sum()) for kind, own in by.items()}
mean, at_chance = (ranges[kind][0] for kind in ("features", "random directions"))
text = f"""**Takeaway.** Homes of matched features agree with a kappa of {mean:.2f} (mean of {len(by["features"])}
pairs of blocks), beyond permuted homes in {alike["features"]} pairs; those of random directions with {at_chance:.2f},
in {alike["random directions"]}. """
display(Markdown(text))

# %% [markdown]
# ## Is it the size of the kernel?
#
# If features live in the 5 x 5 branch because they need more of the picture, they should see more of it. Of each
# branch the twelve features that have most there beyond chance: the *effective radius* is the distance from the
# strongest cell within which half of the gradient of the activation lies.

# %%
block, kind, grid = "mixed4c", "the paper's", network.shape("mixed4c")[:2]
known_of = features[features["dictionary"] == block].set_index("feature_id")
W_dec = asked[block].W_dec.detach().numpy()[known_of.index]
far = branches.excess(W_dec, groups[block]).set_index(known_of.index)
chosen = {name: far[name].nlargest(12).index.tolist() for name in branches.BRANCHES}
units = sorted({j for own in chosen.values() for j in own})

# %%
settings = {"site": block, "units": {kind: units}, "n_patches": 3}
given = {"network": network, "pictures": pictures.every(every), "saes": {kind: asked[block]}}
seen = study.stage(f"experiments/branches-{network.name}", curves.see_pictures, settings, given)
given = {"network": network, "pictures": pictures, "sae": asked[block], "patches": seen}
reach = study.stage(f"experiments/reach-{network.name}", branches.see_reach, {"units": units}, given)
reach = pd.read_parquet(reach / "reach.parquet").set_index("unit")["radius"]
radii = {name.replace("x", " x "): median(reach[units].to_numpy()) for name, units in chosen.items()}
results |= {f"{block}/radius/{name}": entry for name, entry in zip(chosen, radii.values(), strict=True)}
plots.dots(radii, f"effective radius of features of {block}, median, pixels", "most of the row in")

# %%
one, five = (radii[name]["value"] for name in ("1 x 1", "5 x 5"))
text = f"""**Takeaway.** The median radius is {one:.0f} pixels in 1 x 1 and {five:.0f} in 5 x 5 (twelve features
each). A larger kernel sees more whatever is read from it: this does not tell whether features are there because they
need more."""
display(Markdown(text))

# %% [markdown]
# ## A map of features
#
# Decoder rows of mixed4c in two dimensions, by UMAP. Colours are the features' homes. Point at a larger dot, or reach
# it by Tab, to see its three strongest patches; a click keeps them there.

# %%
xy = umap.UMAP(random_state=0, n_jobs=1, metric="cosine").fit_transform(W_dec)
patches = pd.read_parquet(seen / "patches.parquet")
crops = {j: [crop(pick, pictures, grid) for pick in each.itertuples()]
         for j, each in patches[patches["value"] > 0].groupby("unit")}  # fmt: skip
where = homes[block][known_of.index]
said = zip(known_of.index, where, known_of["leaning"], strict=True)
names = [f"feature {j}: home {own}, leans to {factor}" for j, own, factor in said]
alt = f"Decoder rows of {len(known_of)} features of {block} in two dimensions, coloured by their home branch."
display(HTML(scatter(xy, where, names, [crops.get(j, []) for j in known_of.index], alt)))

# %% [markdown]
# Maps show clusters where there are none. And homes are computed from the rows themselves, so that near rows tend to
# share one. So we count, in all dimensions, how many of a row's 15 nearest neighbours are of its kind (*purity*), and
# compare with random directions, which have homes too. Left: how much of the row lies in 5 x 5; right: what the feature
# leans to.

# %%
figure, (left, right) = plots.sheet(4.2, 1, 2, sharex=True, sharey=True)
marks = left.scatter(*xy.T, c=far["5x5"], s=4, cmap="cividis", vmin=-3, vmax=3)
figure.colorbar(marks, ax=left, label="5 x 5, deviations above chance", location="left")
right.scatter(*xy.T, s=2, color="#BBBBBB", label="any other")
for name in known_of["leaning"][known_of["leaning"] != "unknown"].value_counts().index[:4]:
    right.scatter(*xy[known_of["leaning"] == name].T, s=5, label=name)
left.set(xlabel="UMAP 1", ylabel="UMAP 2", title="Do features of 5 x 5 lie together?")
right.set(xlabel="UMAP 1", title="Do features that lean to one factor?")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=2)
display(figure)

# %%
pure, shown = {}, {}
for name in BLOCKS:
    live_of = features[features["dictionary"] == name]["feature_id"].to_numpy()
    pure[name] = branches.purity(asked[name].W_dec.detach().numpy()[live_of], homes[name][live_of])
    W_random, some = rows[name, "random directions"], leaning[leaning["dictionary"] == name]
    pure[f"{name}/random"] = branches.purity(W_random, branches.home(W_random, groups[name]))
    directions = asked[name].W_dec.detach().numpy()[some["feature_id"]]
    pure[f"{name}/leaning"] = branches.purity(directions, some["leaning"].to_numpy())

# %%
for name, found in pure.items():
    key = name.replace("/", "/purity/") if "/" in name else f"{name}/purity"
    results |= {key: found["purity"], f"{key}/permuted": found["permuted"]}
    shown[name] = {each: 100 * entry["value"] for each, entry in found.items()}
pd.DataFrame(shown).T.round(1).rename_axis("neighbours of one kind, %")

# %%
gains = {kind: np.mean([pure[f"{name}{kind}"]["purity"]["value"] - pure[f"{name}{kind}"]["permuted"]["value"]
                        for name in BLOCKS]) for kind in ("", "/random", "/leaning")}  # fmt: skip
text = f"""**Takeaway.** Beyond permuted labels, a feature's neighbours share its home {100 * gains[""]:.1f} points
more often (mean of five blocks), a random direction's {100 * gains["/random"]:.1f} points. They lean to the same
factor {100 * gains["/leaning"]:.1f} points more often."""
display(Markdown(text))

# %% [markdown]
# ## Do features change the next block more than others do?
#
# We suppress a feature everywhere and see by what share each feature of the next block changes, up or down (of those of
# at least median activity). In mixed4a we ask six: of the hundred most active, those most beyond chance in one branch.
# In each later block we ask up to six of those that the last six changed most, whatever their branch. Each has two
# neighbours in the order of activity. One sets the threshold: an *edge* is a change larger than 99.9% of all changes
# from such neighbours. The other is counted for comparison.

# %%
asked_next, tables = [], {}
for a, b in pairwise(BLOCKS):
    order = features[features["dictionary"] == a].sort_values("mass", ascending=False)["feature_id"].tolist()
    most = branches.excess(asked[a].W_dec.detach().numpy()[order[:100]], groups[a]).max(axis=1)
    mine = asked_next or [order[i] for i in most.nlargest(6).index]
    near = circuits.neighbours(order, mine)
    given = {"network": network, "saes": [asked[a], asked[b]], "pictures": pictures.every(2 if small else 30)}
    roles = {"roles": {"asked": mine, "null": near[::2], "control": near[1::2]}}
    folder = study.stage(f"experiments/edges-{network.name}-{a}", circuits.find_edges, roles, given)
    each = tables[a, b] = pd.read_parquet(folder / "edges.parquet")
    found = each[(each["role"] == "asked") & each["beyond"]]
    asked_next = circuits.strongest(found)["downstream"].drop_duplicates().head(6).tolist()

# %%
edges = pd.concat([table.assign(first=a, second=b) for (a, b), table in tables.items()], ignore_index=True)
counts = edges.groupby(["first", "role"])["beyond"].agg(["sum", "size"]).unstack()
for name, role in (("n_edges", "asked"), ("n_edges/control", "control")):
    n, of = (counts[each, role] for each in ("sum", "size"))
    results |= {f"{a}/{name}": (int(n[a]), None, None, int(of[a])) for a in n.index}
    results[name] = (int(n.sum()), None, None, int(of.sum()))
fit = circuits.foretold(edges)
results |= {f"edges_predicted/{kind}": median(values.to_numpy()) for kind, values in fit.items()}
columns = {"asked": counts["sum", "asked"], "their neighbours": counts["sum", "control"]}
pd.DataFrame(columns | {"possible": counts["size", "asked"]}).rename_axis("edges from")

# %% [markdown]
# How many edges the threshold alone would draw is said below: take these as candidates. The strongest of each feature
# that was asked, two at most, and eight of a block; nodes are patches. A solid
# line is a loss when the feature on its left is suppressed, a dashed one a gain; widths are by the size of the
# change. Point at a node for more patches, at a line for its change.

# %%
own = circuits.strongest(edges[(edges["role"] == "asked") & edges["beyond"]])
drawn = own.groupby(["first", "upstream"], sort=False).head(2).groupby("first", sort=False).head(8)
links = [(f"{row.first} {row.upstream}", f"{row.second} {row.downstream}", row.share) for row in drawn.itertuples()]
nodes = sorted({end for link in links for end in link[:2]})
columns = {block: [name for name in nodes if name.startswith(block)] for block in BLOCKS}
pieces = {}
for name, own in ((name, own) for name, own in columns.items() if own):
    settings = {"site": name, "units": {kind: [int(node.split()[1]) for node in own]}, "n_patches": 9}
    given = {"network": network, "pictures": pictures.every(4 * every), "saes": {kind: asked[name]}}
    found = study.stage(f"experiments/nodes-{network.name}-{name}", curves.see_pictures, settings, given)
    found = pd.read_parquet(found / "patches.parquet").groupby("unit")
    pieces |= {f"{name} {j}": each[each["value"] > 0] for j, each in found}

# %%
crops = {node: [crop(pick, pictures, network.shape(node.split()[0])[:2]) for pick in each.head(3).itertuples()]
         for node, each in pieces.items()}  # fmt: skip
alt = f"{len(nodes)} features as patches, in columns by block, and {len(links)} edges between neighbouring blocks."
display(HTML(graph(columns, links, crops, alt)))

# %% [markdown]
# Worked examples: of the first three blocks that have edges the largest, chosen by that alone. Each is two rows of
# patches, the feature that was suppressed and the one that changed: a plus means that it grew. The derivative of the
# block says how the second's mean pre-activation would change, the edge how its maximum does.

# %%
shown = {}
for row in drawn.drop_duplicates("first").sort_values("first").head(3).itertuples():
    shown[f"{row.first[5:]}:\n{row.upstream}"] = pieces[f"{row.first} {row.upstream}"]
    shown[f"{row.second[5:]}: {row.downstream}\n{row.share:+.0%}"] = pieces[f"{row.second} {row.downstream}"]
crops_figure(shown, pictures, grid)

# %%
own, other = (results[f"edges_predicted/{kind}"] for kind in ("own", "another's"))
by_threshold = branches.SPECIAL * results["n_edges"][3]
text = f"""**Takeaway.** Features that were asked have {results["n_edges"][0]:,} edges, their neighbours
{results["n_edges/control"][0]:,}; the threshold alone would give {by_threshold:.0f}. The derivative foretells the
order of a feature's effects with a rank correlation of {own["value"]:.2f} (n = {own["n"]}), another feature's with
{other["value"]:.2f}."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
asked_for = ("n_live", "dead_share", "explained", "information", "information/p")
wanted = [f"{block}/{name}" for block in BLOCKS for name in asked_for]
wanted += [f"{block}/specialised_share/{name}{end}"
           for block, name, end in product(BLOCKS, branches.BRANCHES, ("", "_null"))]  # fmt: skip
wanted += [*(f"kappa/{a}-{b}" for a, b in combinations(BLOCKS, 2)), *(f"{block}/purity" for block in BLOCKS)]
print("missing:", [name for name in [*wanted, "n_edges"] if name not in results])

# %%
path = study.record(NAME, results)

# %%
shares = table.mean()
text = f"""
- **Do features specialise in branches, in every block?** {shares[RECIPE]:.1%} do in the mean, and in 5 x 5
  {in_5x5[RECIPE]:.2%}; of random directions {shares["random directions"]:.1%} and {in_5x5["random directions"]:.2%}.
- **Alike in all blocks?** Homes of matched features agree with a kappa of {mean:.2f}, of random directions with one of
  {at_chance:.2f}.
- **One kind of content in 5 x 5?** Of features, {lean["features"]}.
- **What it means for the claim.** A large share in a branch, agreement across blocks and neighbours of one home can be
  found in random directions. They are evidence of specialisation only where features exceed these. Where ours do not,
  short training is a second explanation; the published weights, and the published length of training, would tell.
"""
display(Markdown(text))

# %% [markdown]
# ## What this does not show
#
# - **That the published network does the same.** Ours saw rendered aircraft, and there are no animals in it. With the
#   published weights the same notebook asks the same of them.
# - **That well-trained features specialise no more.** The paper's autoencoders saw 12.8 million cells a hundred times;
#   how far our rows have moved from their start is said above.
# - **That a branch is needed for its features.** A share of a decoder row is where a feature is written, not what it
#   needs.
# - **What unknown features are about.** Only what can be changed in a scene, and classes, were asked; and nothing is
#   known of features that are seldom active in the scenes.
# - **That our autoencoder would give the same answers throughout.** It was asked for shares alone.
# - **That edges are direct.** A feature is suppressed in all cells at once, and its effect is the mean over few
#   pictures.
