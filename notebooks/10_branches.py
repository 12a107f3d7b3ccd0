# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
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
# pool. Do they hold different things? Sparse autoencoders of mixed4a to mixed4e are said to show three things (Bozoukov
# 2025): features specialise in branches in every block; they do so alike in all blocks; and 5 x 5 branches hold one
# kind of content (animals there). That rests on features picked by hand. Here every feature is asked, by ground truth,
# and so are directions that no autoencoder learned.
#
# **Reads** the data set of notebook 01. **Writes** cells and autoencoders of each block, `data/runs/<preset>/
# experiments/blocks` and what follows from it, and the numbers in `data/runs/<preset>/results/10_branches.json`.
#
# **Runtime** with the default preset on 2 CPU cores: some fifteen minutes the first time, two minutes after that.

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

from aircraft_sae.features.reconstruction import measure, random_dictionaries, untrained

# %%
from aircraft_sae.metrics import median, with_interval
from aircraft_sae.studies import branches, curves
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser.catalogue import crop, crops_figure
from aircraft_sae.view.plots import in_words
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
BLOCKS, ALONE, pictures = [f"mixed4{letter}" for letter in "abcde"], ("5x5", "1x1"), study.pictures()
groups = {block: {name: network.channels(f"{block}:{name}") for name in branches.BRANCHES} for block in BLOCKS}
every = 1 if small else 3

# %% [markdown]
# ## Two kinds of autoencoder
#
# *The paper's*: tied weights, the 32 largest activations of a cell, 16 features a channel, ten cells a picture, drawn
# by the length of their vectors; and not only of whole blocks, but of the 5 x 5 and the 1 x 1 branch alone. *Ours*: the
# same, but untied, with decoder rows of length one and an auxiliary loss that is to revive dead features. Each sees
# every training cell four times.

# %%
sites = [*BLOCKS, *(f"{block}:{name}" for block, name in product(BLOCKS, ALONE))]
cells = study.cells(sites, network, 10, by_norm=True)
paper = {"variant": "topk", "k": 32, "expansion": 16, "tied": True, "aux_k": 0}
paper |= {} if small else {"n_cells": 80_000}
kinds = {"the paper's": paper, "ours": paper | {"tied": False, "aux_k": 256}}
NULLS = ("random directions", "untrained", "permuted network")
wanted = [("the paper's", site) for site in sites] + [("ours", block) for block in BLOCKS]
saes = {}
for kind, site in wanted:
    name = "-".join([network.name, site.replace(":", "-"), kind.split()[-1].removesuffix("'s")])
    saes[kind, site] = study.dictionary(name, cells[site], **kinds[kind])

# %%
live, rows = {}, {}
for (kind, site), sae in saes.items():
    acts, end = cells[site], "" if kind == "the paper's" else "/ours"
    found = measure(sae.reconstruct, acts, acts.rows("test"), acts.moments(acts.rows("train"))[0])
    live[kind, site], fvu = found.fired > 0, found.results["fvu"]
    own = {"n_live": int(live[kind, site].sum()), "dead_share": found.results["dead_share"], "l0": found.results["l0"]}
    own["explained"] = {"value": 1 - fvu["value"], "low": 1 - fvu["high"], "high": 1 - fvu["low"], "n": fvu["n"]}
    results |= {f"{site}/{name}{end}": entry for name, entry in own.items()}
    row = {"live": own["n_live"], "dead, %": 100 * own["dead_share"]["value"], "active a cell": own["l0"]["value"]}
    rows[f"{site}, {kind}"] = row | {"variance explained, %": 100 * own["explained"]["value"]}
pd.DataFrame(rows).T.round(1)

# %%
said = {f"{name}{end}": np.mean([results[f"{block}/{name}{end}"]["value"] for block in BLOCKS])
        for name, end in product(("explained", "dead_share"), ("", "/ours"))}  # fmt: skip
text = f"""**Takeaway.** With as many active features, ours explains {said["explained/ours"]:.0%} of the variance of a
block in the mean, the paper's {said["explained"]:.0%}; of ours {said["dead_share/ours"]:.0%} are dead (active in no
test cell), of the paper's {said["dead_share"]:.0%}."""
display(Markdown(text))

# %% [markdown]
# ## Does each branch have features of its own?
#
# A feature's decoder row has a part in each branch; the branch's *share* is the length of that part by the length of
# the row, where negative entries count nothing (the paper's measure). How large would it be by chance? If the row's
# channels are permuted, the share is that of as many channels at random. A feature is *specialised* in a branch if at
# most one permutation in a thousand gives the branch as much, at a false discovery rate of 5%.
#
# The same is asked of rows that were not learned from this network: *random directions*, which vary as its cells do;
# an *untrained* autoencoder; and the paper's, trained on a *permuted network*, with the same weights in another order.

# %%
shuffled, rows, special, nominal = network.permuted(), {}, {}, {}
null_cells = study.cells(BLOCKS, shuffled, 10, by_norm=True)
for block in BLOCKS:
    own = {kind: saes[kind, block].W_dec[live[kind, block]] for kind in kinds}
    acts, null = null_cells[block], study.dictionary(f"{network.name}-{block}-permuted", null_cells[block], **paper)
    own["random directions"] = random_dictionaries(saes["ours", block], cells[block], (0,))[0].W_dec
    own["untrained"] = untrained(saes["ours", block], cells[block]).W_dec
    own["permuted network"] = null.W_dec[measure(null.reconstruct, acts, acts.rows("test"), null.b_dec).fired > 0]
    own = {kind: each.detach().numpy() for kind, each in own.items()}
    special |= {(block, kind): branches.specialised(each, groups[block]) for kind, each in own.items()}
    rows |= {(block, kind): own[kind] for kind in ("the paper's", "random directions")}

# %%
for (block, kind), above in special.items():
    end = "" if kind == "the paper's" else f"/{kind}"
    results |= {f"{block}/specialised_share/{name}{end}": with_interval(above[name], np.ones(len(above)))
                for name in above}  # fmt: skip
for block in BLOCKS:
    permuted = np.random.default_rng(1).permuted(rows[block, "the paper's"], axis=1)
    nominal = branches.specialised(permuted, groups[block]).mean()
    results |= {f"{block}/specialised_share/{name}_null": share for name, share in nominal.items()}

# %%
panels = {name: [] for name in branches.BRANCHES}
for (block, kind), name in product(special, branches.BRANCHES):
    entry = results[f"{block}/specialised_share/{name}" + ("" if kind == "the paper's" else f"/{kind}")]
    scaled = {end: 100 * entry[end] for end in ("value", "low", "high")}
    panels[name].append({"network": kind, "factor": block} | scaled)
panels = {name.replace("x", " x "): pd.DataFrame(each) for name, each in panels.items()}
plots.profiles(panels, "features specialised in this branch, %", 0.1)

# %%
table = pd.Series({key: own.any(axis=1).mean() for key, own in special.items()}).unstack()[[*kinds, *NULLS]]
results |= {f"specialised/{kind}": (each.mean(), each.min(), each.max(), len(each)) for kind, each in table.items()}
mean = table.mean()
text = f"""**Takeaway.** {mean["the paper's"]:.1%} of the paper's features are specialised in some branch, in the
mean of five blocks, and {mean["ours"]:.1%} of ours; so are {mean["random directions"]:.1%} of random directions,
{mean["untrained"]:.1%} of untrained rows and {mean["permuted network"]:.1%} of features of the permuted network."""
display(Markdown(text))

# %% [markdown]
# ## Is it the width of a branch, or the scale of its channels?
#
# Channels of one branch may vary more than those of another, and rows then have more there. So we ask again of rows in
# units of each channel's deviation; and of rows with as many channels of each branch, drawn at random.

# %%
shown = {}
for (block, kind), W_dec in rows.items():
    columns, even = branches.equalised(groups[block])
    variance = cells[block].moments(cells[block].rows("test"))[1].numpy()
    forms = {"as they are": special[block, kind]}
    forms["in deviations"] = branches.specialised(W_dec / np.sqrt(variance + 1e-9), groups[block])
    forms["equal widths"] = branches.specialised(W_dec[:, columns], even)
    shown[block, kind] = {form: 100 * own.any(axis=1).mean() for form, own in forms.items()}
    results |= {f"{block}/specialised/{form}/{kind}": share / 100 for form, share in shown[block, kind].items()}
    results |= {f"{block}/variance/{name}": float(variance[own].sum() / variance.sum())
                for name, own in groups[block].items()}  # fmt: skip
pd.DataFrame(shown).T.round(1).rename_axis(["specialised in some branch, %", ""])

# %% [markdown]
# ## What are they about?
#
# From ground truth, in scenes where one thing is changed. A feature *leans* to the factor that has the largest share in
# its responses, by that in random directions' responses. It is *about* the factor if that share is larger than in 99.5%
# of random directions (notebook 07), or about a level of classes if it is selective for a class and stands out more
# than 99.5% of them do; by chance, some 5% are. Features active in fewer than ten of sixty scenes are *unknown*.

# %%
asked = {site: saes["the paper's", site] for site in sites}
inputs = {"network": network, "pictures": pictures.every(every), "saes": asked}
inputs["random"] = {site: branches.random_thousand(sae, cells[site]) for site, sae in asked.items()}
if pictures.scenes is not None:
    varied = study.varied()
    inputs["varied"] = varied.subset(varied.table["number"] < 60, "varied60")
folder = study.stage(f"experiments/blocks-{network.name}", branches.see_blocks, {}, inputs)
features = pd.read_parquet(folder / "features.parquet").query("mass > 0")

# %%
homes = {block: branches.home(asked[block].W_dec.detach().numpy(), groups[block]) for block in BLOCKS}
told, shown = {}, {}
for block in BLOCKS:
    own = features[(features["dictionary"] == block) & (features["leaning"] != "unknown")]
    found = told[block] = branches.information(own["leaning"].to_numpy(), homes[block][own["feature_id"]])
    results |= {f"{block}/information": (found["value"], None, None, len(own)), f"{block}/information/p": found["p"]}
    results[f"{block}/information/permuted"] = found["null"]
    row = {"features": len(own), "information, nats": found["value"], "permuted": found["null"]["value"]}
    shown[block] = row | {"at most, in 95%": found["null"]["high"], "p": found["p"]}
pd.DataFrame(shown).T.round(4)

# %% [markdown]
# The *home* of a feature is the branch that has most of its row beyond chance, specialised or not. Mutual information
# says how much the home tells of what a feature leans to. Where it tells most, what is where? Counts, beside what would
# be expected if the two had nothing to do with each other.

# %%
block = max(BLOCKS, key=lambda name: told[name]["value"] - told[name]["null"]["value"])
told[block]["table"].round(1).rename_axis(f"{block}: leans to")

# %% [markdown]
# Do autoencoders of one branch alone hold other things than those of whole blocks? Means of five blocks:

# %%
columns = {}
for what in ("leaning", "about"):
    each = features.groupby("dictionary")[what].value_counts(normalize=True).unstack(fill_value=0)
    columns["whole blocks", what] = each.loc[BLOCKS].mean()
    columns |= {(f"{name} alone", what): each.loc[[f"{block}:{name}" for block in BLOCKS]].mean() for name in ALONE}
kinds_of = pd.DataFrame(columns).fillna(0).sort_values(("whole blocks", "leaning"), ascending=False)
results |= {f"{what}/{where}/{name}": share for (where, what), own in kinds_of.items() for name, share in own.items()}
(100 * kinds_of).round(1).rename_axis("% of features")

# %%
informed = [name for name in BLOCKS if told[name]["p"] < 0.05 / len(BLOCKS)]
most = max(told[name]["value"] - told[name]["null"]["value"] for name in BLOCKS)
lean = kinds_of.xs("leaning", axis=1, level=1).drop("unknown", errors="ignore")
said = [f"of {where} {own.idxmax()} ({own.max():.0%})" for where, own in lean.items()]
known = 1 - kinds_of["whole blocks", "about"].get("unknown", 0)
results |= {"informed_blocks": len(informed), "information_beyond": most, "about": known}
text = f"""**Takeaway.** What features lean to and where they live go together in {len(informed)} of {len(BLOCKS)}
blocks (p < {0.05 / len(BLOCKS):.2f} each), by at most {most:.3f} nats beyond chance. Most features lean,
{", ".join(said)}. {known:.1%} of features are about something; by chance, some 5% would be."""
display(Markdown(text))

# %% [markdown]
# ## Does it last across blocks?
#
# A feature's partner in another block is the one whose image maxima correlate best with its own. Are their homes
# branches of the same kind? Cohen's kappa is 1 if they always are, and 0 by chance. Beside features: random directions
# of the two blocks, matched in the same way.

# %%
maxima = {name: load_npz(folder / f"{name}.npz") for block in BLOCKS for name in (block, f"{block}-random")}
homes |= {f"{block}-random": branches.home(sae.W_dec.detach().numpy(), groups[block])
          for block, sae in inputs["random"].items() if block in BLOCKS}  # fmt: skip
rows = []
for pair, end in product(combinations(BLOCKS, 2), ("", "-random")):
    names, key = [f"{block}{end}" for block in pair], "kappa/" + "-".join(pair) + end.replace("-", "/")
    found = branches.across(*(maxima[name] for name in names), [homes[name] for name in names])
    results |= {key: found["kappa"], f"{key}/permuted": found["permuted"], f"{key}/p": found["p"]}
    kind = "random directions" if end else "features"
    rows.append({"network": kind, "factor": " and ".join(pair), **found["kappa"], "p": found["p"]})
kappas = pd.DataFrame(rows)
plots.profiles({"Are matched features in branches of one kind?": kappas}, "Cohen's kappa", 0)

# %%
own, null = (kappas[kappas["network"] == kind] for kind in ("features", "random directions"))
alike = int((own["p"] < 0.05 / len(own)).sum())
beyond = int((own["low"].to_numpy() > null["high"].to_numpy()).sum())
results |= {"kappa": (own["value"].mean(), own["value"].min(), own["value"].max(), len(own)), "kappa_beyond": beyond}
results["kappa/random"] = (null["value"].mean(), null["value"].min(), null["value"].max(), len(null))
text = f"""**Takeaway.** Homes of matched features agree with a kappa of {own["value"].mean():.2f} in the mean
({own["value"].min():.2f} to {own["value"].max():.2f}), of random directions {null["value"].mean():.2f}. They agree
beyond permuted partners in {alike} of {len(own)} pairs of blocks, and beyond random directions in {beyond}."""
display(Markdown(text))

# %% [markdown]
# ## Is it the size of the kernel?
#
# If features live in the 5 x 5 branch because they need more of the picture, they should see more of it. Of each
# branch the twelve features that have most there beyond chance: the *effective radius* is the pixels around the
# strongest cell that hold half of the gradient of the activation there.

# %%
block, kind, grid = "mixed4c", "the paper's", network.shape("mixed4c")[:2]
known_of = features[features["dictionary"] == block].set_index("feature_id")
W_dec = asked[block].W_dec.detach().numpy()[known_of.index]
far = branches.excess(W_dec, groups[block]).set_index(known_of.index)
chosen = {name: [int(j) for j in far[name].nlargest(12)[lambda own: own > 0].index] for name in branches.BRANCHES}
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

# %% [markdown]
# ## A map of features
#
# Decoder rows of mixed4c in two dimensions, by UMAP. Colours are the features' homes. Point at a larger dot, or reach
# it by Tab, to see the three strongest patches of the feature; a click keeps them. The picture below shows the same
# without.

# %%
xy = umap.UMAP(random_state=0, n_jobs=1, metric="cosine").fit_transform(W_dec)
patches = pd.read_parquet(seen / "patches.parquet")
crops = {j: [crop(pick, pictures, grid) for pick in each.itertuples()] for j, each in patches.groupby("unit")}
where = homes[block][known_of.index]
said = zip(known_of.index, where, known_of["leaning"], strict=True)
names = [f"feature {j}: home {own}, leans to {factor}" for j, own, factor in said]
alt = f"Decoder rows of {len(known_of)} features of {block} in two dimensions, coloured by their home branch."
display(HTML(scatter(xy, where, names, [crops.get(j, []) for j in known_of.index], alt)))

# %% [markdown]
# A map shows clusters where there are none. *Purity* is the number to trust: how many of a row's 15 nearest neighbours,
# in all dimensions, are of its kind. Left: how much of the row lies in the 5 x 5 branch; right: what
# the feature leans to.

# %%
figure, (left, right) = plots.sheet(4.4, 1, 2, sharex=True, sharey=True)
marks = left.scatter(*xy.T, c=far["5x5"], s=4, cmap="cividis", vmin=-3, vmax=3)
figure.colorbar(marks, ax=left, label="share of 5 x 5, in chance's deviations", location="bottom")
right.scatter(*xy.T, s=2, color="#BBBBBB", label="any other")
for name in known_of["leaning"][known_of["leaning"] != "unknown"].value_counts().index[:5]:
    right.scatter(*xy[known_of["leaning"] == name].T, s=5, label=name)
left.set(xlabel="UMAP 1", ylabel="UMAP 2", title="Do features of 5 x 5 lie together?")
right.set(xlabel="UMAP 1", title="Do features that lean to one factor?")
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, markerscale=2)
display(figure)

# %%
pure = {"home": branches.purity(W_dec, where), "leaning": branches.purity(W_dec, known_of["leaning"].to_numpy())}
for name, found in pure.items():
    results |= {f"{block}/purity/{name}": found["purity"], f"{block}/purity/{name}/permuted": found["permuted"]}
text = f"""**Takeaway.** Of a feature's nearest neighbours {in_words(pure["home"]["purity"])} have its home; with homes
permuted, {in_words(pure["home"]["permuted"])}. {in_words(pure["leaning"]["purity"])} lean to the same factor,
permuted {in_words(pure["leaning"]["permuted"])}."""
display(Markdown(text))

# %% [markdown]
# ## Circuits
#
# What does the next block lose when a feature is suppressed? In mixed4a the six most active features are asked, in
# later blocks the six that these changed most. Beside them are twelve features of like activity: six set what is much
# (an *edge* is a change larger than 99.9% of theirs), and the edges of the other six are counted beside.

# %%
asked_next, tables = [], {}
for a, b in pairwise(BLOCKS):
    active = features[features["dictionary"] == a].sort_values("mass", ascending=False)["feature_id"].tolist()
    mine = asked_next or active[:6]
    drawn = np.random.default_rng(0).permutation([j for j in active if j not in mine][:18])[:12].tolist()
    roles = {"asked": mine, "null": drawn[::2], "control": drawn[1::2]}
    given = {"network": network, "saes": [asked[a], asked[b]], "pictures": pictures.every(2 if small else 30)}
    folder = study.stage(f"experiments/edges-{network.name}-{a}", branches.find_edges, {"roles": roles}, given)
    tables[a, b] = pd.read_parquet(folder / "edges.parquet")
    found = tables[a, b].query("role == 'asked' and beyond")
    strongest = found.reindex(found["change"].abs().sort_values(ascending=False).index)
    asked_next = strongest.drop_duplicates("downstream")["downstream"].head(6).astype(int).tolist()

# %%
edges = pd.concat([table.assign(first=a, second=b) for (a, b), table in tables.items()], ignore_index=True)
counts = edges.groupby(["first", "role"])["beyond"].agg(["sum", "size"]).unstack()
own = edges[(edges["role"] == "asked") & edges["beyond"]]
fit = edges[edges["role"] == "asked"].groupby("first")[["change", "predicted"]].corr("spearman").iloc[::2, 1]
for name, role in (("n_edges", "asked"), ("n_edges/control", "control")):
    n, of = (counts[each, role] for each in ("sum", "size"))
    results |= {f"{a}/{name}": (int(n[a]), None, None, int(of[a])) for a in n.index}
    results[name] = (int(n.sum()), None, None, int(of.sum()))
results["edges_predicted"] = (fit.mean(), fit.min(), fit.max(), len(fit))
pd.DataFrame({"edges": counts["sum", "asked"], "of as many controls": counts["sum", "control"],
              "rank correlation with the weights'": fit.to_numpy()}).round(2).rename_axis("from")  # fmt: skip

# %% [markdown]
# The strongest edges of each feature that was asked, two at most; nodes are patches. A solid line is a loss when the
# feature on its left is suppressed, a dashed one a gain; widths are by the size of the change. Point at a node for more
# patches, at a line for its change.

# %%
own = own.reindex(own["change"].abs().sort_values(ascending=False).index)
drawn = own.groupby(["first", "upstream"], sort=False).head(2).groupby("first", sort=False).head(8)
links = [(f"{row.first} {row.upstream}", f"{row.second} {row.downstream}", row.change) for row in drawn.itertuples()]
nodes = sorted({end for link in links for end in link[:2]})
columns = {block: [name for name in nodes if name.startswith(block)] for block in BLOCKS}
pieces = {}
for name, own in ((name, own) for name, own in columns.items() if own):
    settings = {"site": name, "units": {kind: [int(node.split()[1]) for node in own]}, "n_patches": 9}
    given = {"network": network, "pictures": pictures.every(every), "saes": {kind: asked[name]}}
    found = study.stage(f"experiments/nodes-{network.name}-{name}", curves.see_pictures, settings, given)
    found = pd.read_parquet(found / "patches.parquet").groupby("unit")
    pieces |= {f"{name} {j}": each for j, each in found}

# %%
crops = {node: [crop(pick, pictures, network.shape(node.split()[0])[:2]) for pick in each.head(3).itertuples()]
         for node, each in pieces.items()}  # fmt: skip
alt = f"{len(nodes)} features of five blocks as patches, and {len(links)} edges: what the next block loses without one."
display(HTML(graph(columns, links, crops, alt)))

# %% [markdown]
# Three worked examples: of the first three pairs of blocks the largest edge. They were chosen by that alone. Each is
# two rows of patches, the feature that was suppressed and the one that changed most.

# %%
rows = {}
for row in drawn.drop_duplicates("first").sort_values("first").head(3).itertuples():
    rows[f"{row.first} {row.upstream}"] = pieces[f"{row.first} {row.upstream}"]
    rows[f"{row.second} {row.downstream} ({row.change:+.0%})"] = pieces[f"{row.second} {row.downstream}"]
crops_figure(rows, pictures, grid)

# %%
asked_share, control_share = (counts["sum", role].sum() / counts["size", role].sum() for role in ("asked", "control"))
text = f"""**Takeaway.** {results["n_edges"][0]:,} of {results["n_edges"][3]:,} changes are edges
({asked_share:.1%}); of as many features of like activity, {control_share:.1%} are. What the weights between two blocks
predict orders the changes with a rank correlation of {fit.mean():.2f} ({fit.min():.2f} to {fit.max():.2f})."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
asked_for = ("n_live", "dead_share", "explained", "information", "information/p")
wanted = [f"{block}/{name}" for block in BLOCKS for name in asked_for]
wanted += [f"{block}/specialised_share/{name}{end}"
           for block, name, end in product(BLOCKS, branches.BRANCHES, ("", "_null"))]  # fmt: skip
wanted += [*(f"kappa/{a}-{b}" for a, b in combinations(BLOCKS, 2)), "mixed4c/purity/home", "n_edges"]
print("missing:", [name for name in wanted if name not in results])

# %%
study.record(NAME, results)
five, whole = lean["5x5 alone"], lean["whole blocks"]
text = f"""
- **Do features specialise in branches, in every block?** {mean["the paper's"]:.1%} do, from
  {table["the paper's"].min():.1%} to {table["the paper's"].max():.1%} by block; of random directions
  {mean["random directions"]:.1%} do.
- **Alike in all blocks?** Homes of matched features agree with a kappa of {results["kappa"][0]:.2f}, of random
  directions {results["kappa/random"][0]:.2f}.
- **One kind of content in 5 x 5?** Of autoencoders of 5 x 5 alone {five.max():.0%} of features lean to
  {five.idxmax()}, the commonest factor; of whole blocks {whole.max():.0%} to {whole.idxmax()}.
"""
display(Markdown(text))

# %% [markdown]
# ## What this does not show
#
# - **That the published network does the same.** Ours saw rendered aircraft, and there are no animals in it. With the
#   published weights the same notebook asks the same of them.
# - **That longer training would not change it.** The paper's autoencoders saw a hundred times twelve million cells;
#   ours saw twenty thousand four times.
# - **That a branch is needed for its features.** A share of a decoder row is where a feature is written, not what it
#   needs.
# - **What unknown features are about.** Only what can be changed in a scene, and classes, were asked; and of features
#   that are active in fewer than ten of sixty scenes, nothing is known.
# - **That edges are direct.** A feature is suppressed in all cells at once, and its effect is the mean over few
#   pictures.
