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
# **Question.** Do the branches of a network hold features of their own?
#
# Why care: each block of InceptionV1 has four parallel branches, with 1 x 1, 3 x 3 and 5 x 5 convolutions and with
# pooling. If each feature kept to one branch, the architecture would tell us where to look for what. Sparse
# autoencoders of mixed4a to mixed4e are said to show three things (Bozoukov 2025): (1) features specialise in branches,
# in every block; (2) a branch holds the same kind of content in all blocks; (3) the 5 x 5 branch holds one kind of
# content (animals, in that paper). These claims rest on features picked by hand. Here we test every live feature, ask
# the same of directions that no autoencoder learned, and use ground truth to find out what a feature is about.
#
# **Reads** the data set of notebook 01. **Writes** the cells and autoencoders of each block,
# `data/runs/<preset>/experiments/blocks-<network>` and `…/varied`, and the numbers in
# `data/runs/<preset>/results/10_branches.json`.
#
# **Runtime** with the default preset on 2 CPU cores: eight minutes the first time, up to four after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import os
from itertools import combinations, product

import numpy as np
import pandas as pd
import umap
from IPython.display import Markdown, display
from scipy.sparse import load_npz
from torch.nn.functional import cosine_similarity

from aircraft_sae.features.reconstruction import measure, random_dictionaries, untrained

# %%
from aircraft_sae.metrics import median, with_interval
from aircraft_sae.studies import branches
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# Here InceptionV1 has weights of our own: it learned to name rendered aircraft and never saw a photograph. To study the
# published weights, run `python -m aircraft_sae run 10 --network inception5h.pth` (`data/README.md` says where to find
# this file).

# %%
study, NETWORK = Study.open(), os.environ.get("AIRCRAFT_SAE_NETWORK")
network, small, results = study.network(NETWORK or "hangar_inceptionv1"), study.config.name == "smoke", {}
NAME = "10_branches" + f"-{network.name}" * bool(NETWORK)
BLOCKS = [f"mixed4{letter}" for letter in ("abc" if small else "abcde")]
ALONE, RECIPE, pictures = ("5x5", "1x1"), "the paper's recipe", study.pictures()
groups = {block: {name: network.channels(f"{block}:{name}") for name in branches.BRANCHES} for block in BLOCKS}

# %% [markdown]
# ## Two kinds of autoencoder
#
# *The paper's recipe* has tied weights and 16 features for each channel, and keeps the 32 largest activations of a
# cell. We train it briefly on our own pictures, with ten cells from each picture, drawn in proportion to the length of
# their activation vectors. It is trained on whole blocks, and on the 5 x 5 branch and the 1 x 1 branch alone. *Ours*
# differs in three ways: its weights are not tied, its decoder rows have length one, and an auxiliary loss is meant to
# revive dead features.

# %%
sites = [*BLOCKS, *(f"{block}:{name}" for block, name in product(BLOCKS, ALONE))]
cells = study.sampled_cells(sites, network, 10, by_norm=True)
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
pd.DataFrame.from_dict(shown, orient="index").round(2)

# %%
said = {f"{name}{end}": np.mean([results[f"{block}/{name}{end}"]["value"] for block in BLOCKS])
        for name, end in product(("cosine_with_start", "dead_share"), ("", "/ours"))}  # fmt: skip
text = f"""**Takeaway.** Training passes {passes:.1f} times over {n_cells:,} cells. After it, the decoder row of a live
feature of the paper's recipe has a cosine of {said["cosine_with_start"]:.2f} with its random start (median over
features, mean over blocks). {said["dead_share"]:.0%} of the recipe's features are dead, and
{said["dead_share/ours"]:.0%} of ours."""
display(Markdown(text))

# %% [markdown]
# Whatever is left of the random start belongs to no branch and can hide specialisation; keep this in mind for
# everything below. From here on, we count only *live* features, which are active in at least one test cell (ten are
# drawn from each picture).
#
# ## Does each branch have features of its own?
#
# A feature's decoder row has entries in each branch. With negative entries set to zero, a branch's *share* is the
# length of its entries over the length of the row (the paper's measure). Even by chance, shares are large: a branch
# with an eighth of the channels has a share of about 0.35. So we compare each share with the shares that the branch
# gets when the row's channels are permuted. A share is *beyond chance* if at most one permutation in a thousand gives
# the branch as large a share. A feature is *specialised* in that branch if its share also survives a correction for
# testing all features (5% false discoveries; with 9,999 permutations, specialised features can be found only if they
# are at least one in 500).
#
# There are four nulls: *random directions*, drawn with the covariance of the cells; features of the *untrained* recipe;
# features of the recipe trained on the *permuted network*, whose weights are permuted; and *permuted rows*, which check
# the test itself and should lie near the dotted line. Random directions are not pure chance: they point where cells
# vary most, so if the channels that vary most belong to one branch, random directions lie there, too. If random
# directions have larger shares than features, a large share needs no learning.

# %%
shuffled, rows, chance = network.permuted(), {}, {}
null_cells = study.sampled_cells(BLOCKS, shuffled, 10, by_norm=True)
for block in BLOCKS:
    own = {kind: learnt[kind, block] for kind in kinds}
    acts, null = null_cells[block], study.dictionary(f"{network.name}-{block}-permuted", null_cells[block], **paper)
    own["random directions"] = random_dictionaries(asked[block], cells[block], (0,))[0].W_dec.detach().numpy()
    own["untrained"] = untrained(asked[block], cells[block]).W_dec.detach().numpy()
    fired = measure(null.reconstruct, acts, acts.rows("test"), null.b_dec).fired
    own["permuted network"] = null.W_dec.detach().numpy()[fired > 0]
    chance |= {(block, kind): branches.permutation_p(each, groups[block]) for kind, each in own.items()}
    rows |= {(block, kind): own[kind] for kind in (RECIPE, "random directions")}

# %%
for block in BLOCKS:
    permuted = np.random.default_rng(1).permuted(rows[block, RECIPE], axis=1)
    chance[block, "null"] = branches.permutation_p(permuted, groups[block])
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
figure = plots.profiles(panels, "features with a share of this branch beyond chance, % (dotted: 0.1%)", 0.1)
plots.titled(figure, "Does each branch have features of its own?")

# %%
table = pd.Series({key: own.any(axis=1).mean() for key, own in special.items()}).unstack()[[*kinds, *NULLS]]
results |= {f"specialised/{kind}": (each.mean(), each.min(), each.max(), len(each)) for kind, each in table.items()}
in_5x5 = {kind: np.mean([special[block, kind]["5x5"].mean() for block in BLOCKS]) for kind in table}
far = [own[kept[RECIPE, block] < np.median(kept[RECIPE, block])].any(axis=1).mean()
       for block, own in ((block, special[block, RECIPE]) for block in BLOCKS)]  # fmt: skip
results |= {f"specialised_in_5x5/{kind}": share for kind, share in in_5x5.items()}
results["specialised/far_from_start"] = (np.mean(far), min(far), max(far), len(far))
text = f"""**Takeaway.** {table[RECIPE].mean():.1%} of the recipe's features are specialised in some branch (mean of the
blocks), as are {np.mean(far):.1%} of the half that moved furthest from their start, and
{table["random directions"].mean():.1%} of random directions. In 5 x 5 itself, {in_5x5["random directions"]:.2%} of
random directions are specialised (features: {in_5x5[RECIPE]:.2%})."""
display(Markdown(text))

# %% [markdown]
# ## Is it the scale of a branch's channels?
#
# The channels of one branch may vary more than those of another, which by itself gives that branch a larger share. So
# we repeat the test with rows in units of each channel's standard deviation. (The test already allows for the width of
# a branch, because the permuted channels of a row fill branches of the same widths.)

# %%
shown = {}
for (block, kind), W_dec in rows.items():
    variance = cells[block].moments(cells[block].rows("test"))[1].numpy()
    in_deviations = W_dec / np.sqrt(np.where(variance > 1e-9, variance, np.inf))
    ways = {"as they are": chance[block, kind], "in deviations": branches.permutation_p(in_deviations, groups[block])}
    shown[block, kind] = {name: 100 * branches.specialised(p).any(axis=1).mean() for name, p in ways.items()}
    results |= {f"{block}/specialised/{name}/{kind}": share / 100 for name, share in shown[block, kind].items()}
shown = pd.DataFrame(shown).T
shown.round(1).rename_axis(["specialised in some branch, %", ""])

# %%
mean = shown.groupby(level=1).mean()
learnt_, drawn_ = mean.loc[RECIPE], mean.loc["random directions"]
text = f"""**Takeaway.** In units of each channel's standard deviation, {learnt_["in deviations"]:.1f}% of features are
specialised (before: {learnt_["as they are"]:.1f}%), and {drawn_["in deviations"]:.1f}% of random directions (before:
{drawn_["as they are"]:.1f}%). Any change is due to the scale of the channels."""
display(Markdown(text))

# %% [markdown]
# ## Does a feature's branch tell us what the feature is about?
#
# Ground truth comes from scenes with one thing changed. A feature *leans* to the factor that it responds to most, where
# each response is in units of the mean response of random directions. It is *about* the factor if the factor's share of
# its responses is larger than in 99.5% of random directions (notebook 07); failing that, it is about a level of classes
# (such as *family*) if it selects one class of that level more clearly than 99.5% of random directions do. A response
# is known only if the feature is active in at least ten of 40 scenes; otherwise the leaning is *unknown*.

# %%
inputs = {"network": network, "pictures": pictures.every(1 if small else 3), "saes": asked}
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
pd.DataFrame.from_dict(shown, orient="index").round(4)

# %% [markdown]
# A feature's *home* is the branch whose share lies furthest above chance, in standard deviations, whether the feature
# is specialised or not. Every feature has a home, even if only by a small margin, so this section is about all features
# and not just about specialised ones. *Mutual information* measures how much a feature's home tells us about its
# leaning; the null permutes homes. Here are the counts for the block where the home tells us most, next to the counts
# expected if home and leaning were unrelated:

# %%
block = max(BLOCKS, key=lambda name: told[name]["value"] - told[name]["null"]["value"])
told[block]["table"].round(1).rename_axis(f"{block}: leans to")

# %% [markdown]
# Do autoencoders of one branch alone hold different things from autoencoders of whole blocks? The table shows means
# over blocks. By construction, some 5% of random directions are *about* something (*unknown*: about nothing); their
# columns show what to expect by chance.

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
text = f"""**Takeaway.** The home and the leaning of features are related in {informed} of {len(BLOCKS)} blocks (p <
{0.05 / len(BLOCKS):.2f} in each), and those of random directions in {by_chance}. (The most common known leanings:
{most}.)"""
display(Markdown(text))

# %% [markdown]
# And does 5 x 5 hold one kind of content? For each factor, we compare how often features at home in 5 x 5 lean to it
# with how often other features do. On half of the features (those with even ids), we choose the factor in which 5 x 5
# leads the others by most. On the other half, we measure how often each group leans to it.

# %%
leaning = leaning.assign(home=[homes[name][j] if name in homes else "" for name, j in
                               zip(leaning["dictionary"], leaning["feature_id"], strict=True)])  # fmt: skip
content, shown = {}, {}
for kind, names in {"features": BLOCKS, "random directions": [f"{block}-random" for block in BLOCKS]}.items():
    factor, here, elsewhere = content[kind] = branches.content(leaning[leaning["dictionary"].isin(names)])
    shown |= {f"{kind} at home in 5 x 5: {factor}": here, f"{kind} at home elsewhere: {factor}": elsewhere}
    results |= {f"content/{kind}/5x5/{factor}": here, f"content/{kind}/elsewhere/{factor}": elsewhere}
figure = plots.dots(shown, "features that lean to the factor, %", "home: factor", scale=100)
plots.titled(figure, "Does the 5 x 5 branch hold one kind of content?")

# %%
said = "{} of the features at home in 5 x 5 lean to {}, as do {} of the others"
factor, here, elsewhere = content["features"]
lean = said.format(in_words(here), factor, in_words(elsewhere))
text = f"""**Takeaway.** {lean}. In the figure, the dot for random directions at home in 5 x 5 rests on
{content["random directions"][1]["n"]:,} directions."""
display(Markdown(text))

# %% [markdown]
# ## Is a branch alike in all blocks?
#
# A feature's partner in another block is the feature whose image maxima (largest activations in each picture) correlate
# best with its own. As a null, we shift the pictures of one block against those of the other, and find each feature's
# best partner again. A feature and its partner are *matched* if they correlate better than 99.5% of these null pairs
# do. Do matched features have their homes in branches of the same kind? Cohen's kappa is 1 if they always do, and 0 if
# they do so as often as by chance. (There are about a thousand random directions in each block, fewer than there are
# features, so expect wider intervals for them.)

# %%
maxima = {name: load_npz(folder / f"{name}.npz") for name in dictionaries}
panels = []
for pair, end in product(combinations(BLOCKS, 2), ("", "-random")):
    names, key = [f"{block}{end}" for block in pair], "kappa/" + "-".join(pair) + end.replace("-", "/")
    found = branches.agreement_across_blocks(*(maxima[name] for name in names), [homes[name] for name in names])
    results |= {key: found["kappa"], f"{key}/permuted": found["permuted"], f"{key}/p": found["p"]}
    results[f"{key}/matched"] = found["matched"]
    kind, null = "random directions" if end else "features", found["permuted"]["high"]
    panels.append({"network": kind, "factor": " and ".join(pair)} | found["kappa"] | {"p": found["p"], "null": null})
kappas = pd.DataFrame(panels)
figure = plots.profiles({"": kappas}, "Cohen's kappa", 0)
plots.titled(figure, "Do matched features live in branches of the same kind?")

# %%
by = {kind: own for kind, own in kappas.groupby("network")}
ranges = {kind: (own["value"].mean(), own["value"].min(), own["value"].max(), len(own)) for kind, own in by.items()}
results |= {"kappa": ranges["features"], "kappa/random": ranges["random directions"]}
alike = {kind: int((own["p"] < 0.05 / len(own)).sum()) for kind, own in by.items()}
mean, at_chance = (ranges[kind][0] for kind in ("features", "random directions"))
text = f"""**Takeaway.** The homes of matched features agree with a kappa of {mean:.2f} (mean of {len(by["features"])}
pairs of blocks); the number of pairs in which they agree better than permuted homes is {alike["features"]}. For random
directions, kappa is {at_chance:.2f}, and the number is {alike["random directions"]}."""
display(Markdown(text))

# %% [markdown]
# ## Do features of one branch lie together?
#
# The map shows the decoder rows of mixed4c in two dimensions (UMAP). In the left panel, colour shows how much of a row
# lies in 5 x 5; in the right panel, it shows what the feature leans to.

# %%
block = "mixed4c"
known_of = features[features["dictionary"] == block].set_index("feature_id")
W_dec = asked[block].W_dec.detach().numpy()[known_of.index]
far = branches.excess(W_dec, groups[block]).set_index(known_of.index)

# %%
xy = umap.UMAP(random_state=0, n_jobs=1, metric="cosine").fit_transform(W_dec)
figure, (left, right) = plots.sheet(4.2, 1, 2, sharex=True, sharey=True)
marks = left.scatter(*xy.T, c=far["5x5"], s=4, cmap="cividis", vmin=-3, vmax=3)
figure.colorbar(marks, ax=left, label="5 x 5, deviations above chance", location="left")
right.scatter(*xy.T, s=2, color="#BBBBBB", label="any other")
most = known_of["leaning"][known_of["leaning"] != "unknown"].value_counts().index[:4]
for colour, name in zip(plots.FIVE, most, strict=False):
    right.scatter(*xy[known_of["leaning"] == name].T, s=5, color=colour, label=name)
left.set(xlabel="UMAP 1", ylabel="UMAP 2", title="by branch")
right.set(xlabel="UMAP 1", title="by leaning")
figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=2)
display(plots.titled(figure, "Do features of one branch, or of one leaning, lie together?"))

# %% [markdown]
# Such maps can show clusters where there are none, so we count neighbours in all dimensions. *Purity* is the share of a
# row's 15 nearest neighbours that have its own label. Homes are computed from the rows themselves, so neighbours tend
# to share a home. We therefore compare with two nulls: permuted labels, and random directions, which have homes too.

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
text = f"""**Takeaway.** The purity of homes, minus that of permuted homes, is {100 * gains[""]:.1f} percentage points
for features (mean of the blocks) and {100 * gains["/random"]:.1f} for random directions. With leanings of features
instead of homes, the difference is {100 * gains["/leaning"]:.1f} points."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
asked_for = ("n_live", "dead_share", "explained", "information", "information/p")
wanted = [f"{block}/{name}" for block in BLOCKS for name in asked_for]
wanted += [f"{block}/specialised_share/{name}{end}"
           for block, name, end in product(BLOCKS, branches.BRANCHES, ("", "_null"))]  # fmt: skip
wanted += [*(f"kappa/{a}-{b}" for a, b in combinations(BLOCKS, 2)), *(f"{block}/purity" for block in BLOCKS)]
print("missing:", [name for name in wanted if name not in results])

# %%
_ = study.record(NAME, results)

# %%
shares = table.mean()
text = f"""- **Do features specialise in branches, in every block?** On average, {shares[RECIPE]:.1%} do, as do
  {shares["random directions"]:.1%} of random directions.
- **Is a branch alike in all blocks?** The homes of matched features agree with a kappa of {mean:.2f}, those of random
  directions with {at_chance:.2f}.
- **Does 5 x 5 hold one kind of content?** {lean}.
- **What does this mean for the claim?** Large shares, agreement across blocks and pure neighbourhoods can occur in
  random directions, too. They are evidence of specialisation only where they are stronger in features. Where they are
  not, short training may also be the reason; the published weights and length of training would settle this."""
display(Markdown(text))

# %% [markdown]
# ## What this does not show
#
# - **That the published network does the same.** Ours saw rendered aircraft, and no animals. The same notebook should
#   also run with the published weights, but nobody has tried.
# - **That features would not specialise with longer training.** The paper's autoencoders saw 12.8 million cells a
#   hundred times. The first takeaway says how close ours still are to their start.
# - **That a branch is needed for its features.** A share of a decoder row says where a feature is written, not what it
#   needs.
# - **What unknown features are about.** We tested only classes and what can be changed in a scene. And nothing is known
#   about features that are seldom active in these scenes.
# - **That *ours* would give the same answers throughout.** We used it only to count specialised features.
