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
# # 3. Train sparse autoencoders
#
# **Question.** Can the activations of a stage be written as sums of a few directions out of a large dictionary,
# and how much is lost by doing so? A sparse autoencoder (SAE) learns such a dictionary. Its directions are the
# *features* that the next notebooks look at, so we first have to know how well they describe what the network
# computes, and how much of that a method that learned nothing would have reached too.
#
# **Reads** `data/runs/<preset>/activations` (notebook 02). **Writes** `…/sae/<name>` for each autoencoder,
# `…/activations/permuted-every3` (of a control network), and the numbers in
# `data/runs/<preset>/results/03_train_sae.json`.
#
# **Runtime** with the default preset on 2 CPU cores: 3 to 4 minutes the first time, of which the main autoencoder takes
# about 20 seconds; one minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display

# %%
from aircraft_sae.devices import side_by_side
from aircraft_sae.features import reconstruction as evaluation
from aircraft_sae.metrics import bootstrap_draws, interval, ratio_of_sums
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import units
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# What the default preset promises stands here and is asserted below. Other presets promise nothing. The sweep and the
# controls see fewer cells than the main autoencoder; what they are compared with sees as few.

# %%
study = Study.open()
NAME, results, config = "03_train_sae", {}, study.config.sae
promised = {"hangar": {"explained": 0.85, "lost": 2.0, "dead": 0.05, "ratio": 1.12, "l0": 32.5}}.get(
    study.config.name, {"explained": -9.0, "lost": 100.0, "dead": 1.0, "ratio": 99.0, "l0": 1e9}
)
SHORT = evaluation.short_training(config)
WIDTHS = (2, 8)  # times d_in
N_PURSUIT = 16  # test pictures for orthogonal matching pursuit, which takes 15 ms a cell

# %% [markdown]
# ## Does it learn?
#
# Each cell's activations are centred and scaled. The encoder scores every feature, a few of the highest scores are
# kept (on average `k` a cell, over a batch), and the decoder adds up the kept features' directions: a kept
# feature *fires*, or is *active*, in that cell. What the sum misses, as a share of the cells' variance, is the
# *unexplained variance* (fvu). In training, a feature is *dead* if it has not fired for long. Grey is where the
# learning rate falls.

# %%
acts, sae = study.activations(), study.sae()
stage = study.stages["sae/main"]
history = pd.read_csv(stage.folder / "history.csv")
print(f"{config.site}: {acts.d_in} channels to {sae.d_sae} features, {config.variant}, k = {config.k}")

# %%
figure, axes = plots.sheet(3.4, 1, 2)
titles = {"fvu": "unexplained variance, %", "dead_share": "dead features, %"}
by_cells = 100 * history.set_index(history["n_cells"] / 1000)[list(titles)]
falling = by_cells.index[history["lr"].diff() < 0]
for ax, (name, title) in zip(axes, titles.items(), strict=True):
    by_cells[name].plot(ax=ax, xlim=(0, None), ylim=(0, None), xlabel="cells seen, thousands", ylabel=title)
    if len(falling):
        ax.axvspan(falling[0], by_cells.index[-1], color=plots.GREY, alpha=0.15, linewidth=0)
display(figure)

# %%
seconds = history["seconds"].sum()
results |= {"d_in": acts.d_in, "d_sae": sae.d_sae, "k": config.k, "n_cells": int(history["n_cells"].iloc[-1])}
results |= {"train_seconds": seconds, "cells_per_second": results["n_cells"] / seconds}
text = f"""**Takeaway.** After {results["n_cells"]:,} cells in {seconds:.0f} s ({results["cells_per_second"]:,.0f} a
second), the last batches leave {history["fvu"].iloc[-1]:.1%} of the variance unexplained."""
display(Markdown(text))
assert history["fvu"].iloc[-1] < history["fvu"].iloc[0]

# %% [markdown]
# These are batches of training cells, some of which were seen before. What counts is the next section.

# %% [markdown]
# ## How much does it explain on pictures it has not seen?
#
# Explained variance is 1 - fvu: squared error over squared distance from the mean training cell, summed over all cells
# in float64, in the network's own units. *Pooled* is the same for the mean over a picture's cells, which is all that
# the classifier's head sees. In the hangar, cells that show the aircraft (in at least a quarter of their pixels) are
# also measured apart. The autoencoder never saw the test split. Its width and the number of cells were chosen in trials
# that learned from training pictures and looked at validation pictures. Learning rate, batch size and variant were
# chosen earlier, on activations of a weaker classifier, in trials that looked at fvu on these test pictures.

# %%
train, test = acts.rows("train", "val"), acts.rows("test")
mean, _ = acts.moments(train)
data, network = study.pictures(), study.network()
images = acts.images["image"][test]
foreground = data.foreground(images, acts.grid) if data.region_names else None
measured = evaluation.measure(sae.reconstruct, acts, test, mean, foreground)
seen = evaluation.measure(sae.reconstruct, acts, train, mean)
both = measured, seen

# %% tags=["nbval-check-output"]
learned = set(acts.images["image"][~acts.images["split"].eq("test")])
print("test pictures that an autoencoder learned from:", len(learned & set(images)))
assert not learned & set(images)

# %%
flip = {"value": "value", "low": "high", "high": "low"}
for name, entry in [(name, entry) for name, entry in measured.results.items() if "fvu" in name]:
    explained = {key: 1 - entry[other] for key, other in flip.items()} | {"n": entry["n"]}
    results[name.replace("fvu", "explained_variance")] = explained
results |= {name: entry for name, entry in measured.results.items() if "fvu" not in name}
draws = [bootstrap_draws(ratio_of_sums, *m.table[["error", "total"]].to_numpy().T, seed=i) for i, m in enumerate(both)]
ratio = measured.results["fvu"]["value"] / seen.results["fvu"]["value"]
results["test_train_fvu_ratio"] = (ratio, *interval(draws[0] / draws[1]), len(test))
results["train/explained_variance"] = 1 - seen.results["fvu"]["value"]

# %%
kinds = {"explained_variance": "all cells", "explained_variance_foreground": "aircraft cells"}
kinds |= {"explained_variance_background": "other cells", "pooled_explained_variance": "pooled"}
shown = {title: results[name] for name, title in kinds.items() if name in results}
plots.dots(shown, "explained variance on test pictures, %", "", 100)

# %%
low, high = results["test_train_fvu_ratio"][1:3]
where = {"l0_foreground": "where the cell shows aircraft", "l0_background": "elsewhere"}
places = [f"{results[key]['value']:.0f} {words}" for key, words in where.items() if key in results] or ["everywhere"]
text = f"""**Takeaway.** With {results["l0"]["value"]:.1f} active features a cell ({", ".join(places)}), it explains
{in_words(results["explained_variance"])} of the variance on test pictures, and
{in_words(results["pooled_explained_variance"])} of the pooled vector's. Test fvu is {ratio:.3f} ({low:.3f} to
{high:.3f}) times that on the training pictures."""
display(Markdown(text))
assert results["explained_variance"]["value"] >= promised["explained"] and ratio <= promised["ratio"]
assert results["l0"]["value"] <= promised["l0"]

# %% [markdown]
# Explained variance counts large activations most. It does not say whether what is missing matters to the classifier,
# nor whether a feature means anything to a person. And it is not what other studies call so: below is the fvu of the
# same reconstructions as other libraries define it, all in float64. Only numbers of one row can be compared.
#
# *This project* divides the squared error by the squared distance from the mean of the training cells, as saev does;
# *sparsify* and *SAELens* take the mean of these cells; *dictionary_learning* divides the variance of the error by
# that of the activations, which forgives a constant error; *overcomplete* measures from one scalar mean of all
# channels. The *mean of cells' ratios* is SAELens' legacy, of SAEBench's paper and of ViT-Prisma; *OpenAI* divides
# each cell's squared error by its squared length. The same autoencoder can so look twice as bad.

# %%
some = torch.cat([block.flatten(0, 2) for block in acts.blocks(test[:: max(1, len(test) // 300)])])
with torch.inference_mode():
    reconstructed = {"this autoencoder": sae.reconstruct(some)[0], "the mean cell": mean.float().expand_as(some)}
cells = some.double().numpy()
errors = {title: recon.double().numpy() - cells for title, recon in reconstructed.items()}
around = np.square(cells - mean.numpy())

# %%
fvus = {}
for title, error in errors.items():
    squared = np.square(error)
    fvus[title] = {
        "this project": squared.sum() / around.sum(),
        "sparsify, SAELens": squared.sum() / np.square(cells - cells.mean(0)).sum(),
        "dictionary_learning": error.var(0).sum() / cells.var(0).sum(),
        "overcomplete": squared.sum() / np.square(cells - cells.mean()).sum(),
        "mean of cells' ratios": (squared.sum(1) / around.sum(1)).mean(),
        "OpenAI": (squared.sum(1) / np.square(cells).sum(1)).mean(),
    }

# %%
results |= {
    f"fvu_as_in/{name}": (fvu, None, None, len(some) // acts.cells_per_image)
    for name, fvu in fvus["this autoencoder"].items()
}
display(pd.DataFrame(fvus).round(3))
assert abs(fvus["the mean cell"]["this project"] - 1) < 1e-4
assert all(own["dictionary_learning"] <= own["sparsify, SAELens"] + 1e-9 for own in fvus.values())

# %% [markdown]
# ## Is that much? Sparsity, width and baselines
#
# The same training with fewer cells, for four sparsities and two widths (in multiples of *d_in*, the number of
# channels; where widths lie on each other, only one is seen); and what needs no autoencoder: principal
# components (each cell may use *all* of them, so they are dense), the nearest of as many k-means centres as there are
# features (one a cell), random directions with the best coefficients (orthogonal matching pursuit, on a few
# pictures), the network's own channels, an autoencoder before training and one whose decoder stays random.

# %%
sparsities = sorted({max(1, config.k // 4), max(1, config.k // 2), config.k, 2 * config.k})
grid, rows = list(product(sorted({*WIDTHS, config.expansion}), sparsities)), []
trained = side_by_side(lambda xk: study.sae(f"k{xk[1]}-x{xk[0]}", expansion=xk[0], k=xk[1], **SHORT), grid)
for (expansion, k), model in zip(grid, trained, strict=True):
    found = evaluation.measure(model.reconstruct, acts, test, mean).results
    row = {"expansion": expansion, "k": k, "l0": found["l0"]["value"]}
    rows.append(row | {"explained_variance": 1 - found["fvu"]["value"]})
    results |= {f"sweep/k{k}-x{expansion}/{name}": found[name] for name in ("fvu", "l0", "dead_share")}
sweep = pd.DataFrame(rows)

# %%
frozen = study.nulls()["frozen decoder"].sae
untrained = SparseAutoencoder(replace(config, variant="topk"), acts.d_in)
in_training = units(config, acts, train)
components = {k: evaluation.pca(acts, train, k) for k in sweep["k"].unique()}
models = {f"PCA, {k} components": (k, partial(evaluation.project, *found)) for k, found in components.items()}
models["k-means"] = (1, partial(evaluation.nearest, evaluation.k_means(acts, train, sae.d_sae)))
channels = evaluation.dictionary(sae, *in_training, evaluation.both_signs(torch.eye(acts.d_in)))
models["network's channels"] = (config.k, channels.reconstruct)
models["decoder stays random"] = (config.k, frozen.reconstruct)
models["untrained"] = (config.k, untrained.in_units_of(*in_training).reconstruct)
reached = {name: evaluation.measure(model, acts, test, mean).results for name, (_, model) in models.items()}

# %%
pursuit = partial(evaluation.pursue, mean.float(), untrained.W_dec.detach(), config.k)
some = test[:: max(1, len(test) // N_PURSUIT)][:N_PURSUIT]
reached["random directions"] = evaluation.measure(pursuit, acts, some, mean).results
counts = {name: k for name, (k, _) in models.items()} | {"random directions": config.k}
counts |= {name: entry["l0"]["value"] for name, entry in reached.items() if "l0" in entry}
results |= {f"baseline/{name}/fvu": entry["fvu"] for name, entry in reached.items()}

# %%
baselines = pd.DataFrame({"name": [name.split(",")[0] for name in reached], "l0": [counts[name] for name in reached]})
baselines["explained_variance"] = [1 - entry["fvu"]["value"] for entry in reached.values()]
results |= {f"baseline/{name}/explained_variance": 1 - entry["fvu"]["value"] for name, entry in reached.items()}

# %% tags=["report"]
figure, ax = plots.sheet(5.2)
for (width, line), blue in zip(sweep.groupby("expansion"), ("#9ECAE1", "#4292C6", "#08306B"), strict=False):
    ax.plot(line["l0"], 100 * line["explained_variance"], "o-", color=blue, label=f"autoencoder, {width} x d_in")
found = baselines[baselines["explained_variance"] > -0.1].groupby("name", sort=False)
for (name, points), marker in zip(found, "sD^vPX*", strict=False):
    ax.plot(points["l0"], 100 * points["explained_variance"], f"{marker}--", color=plots.ORANGE, label=name)
ax.axhline(0, color=plots.GREY, linewidth=0.8)
ax.set_xscale("log", base=2)
ax.xaxis.set_major_formatter("{x:g}")
ax.set(xlabel="active features (or components) a cell", ylabel="explained variance on test pictures, %")
figure.legend(loc="outside right center")
display(figure)

# %%
same = sweep.query("k == @config.k and expansion == @config.expansion")["explained_variance"].iloc[0]
best = baselines.query("l0 < @config.k + 0.5").sort_values("explained_variance").iloc[-1]
widest = sweep.query("k == @config.k")["explained_variance"].iloc[-1]
text = f"""**Takeaway.** With {SHORT["n_cells"]:,} cells of training, the autoencoder of the main one's width and
sparsity explains {same:.1%} (n = {len(test)} pictures), the widest {widest:.1%}; the best baseline of as many terms,
*{best["name"]}*, {best["explained_variance"]:.1%}."""
display(Markdown(text))
assert study.config.name != "hangar" or same > best["explained_variance"]

# %% [markdown]
# A baseline that explains little is not thereby meaningless, and one that explains much is not thereby meaningful. The
# mean cell explains 0 by definition. Longer training was not tried; k-means saw 20,000 cells five times from random
# starts, and might do better with more.

# %% [markdown]
# ## Is it the network that has structure, or the method?
#
# Autoencoders also reconstruct activations of networks that have learned nothing. The control is the same network with
# the entries of every weight tensor in a random order, and an autoencoder of the same size trained on it. Both learn
# from the same pictures here, every third, and are measured on the same.

# %%
control_acts = study.activations(network="permuted", pictures="every3")
third, permuted = study.sae("every-third", pictures="every3", **SHORT), study.nulls()["permuted network"].sae
halves, explained = {"trained network": (acts, third), "permuted weights": (control_acts, permuted)}, {}
shown = acts.images["image"].isin(control_acts.images["image"]).to_numpy()
for name, (own, model) in halves.items():
    own_mean, _ = own.moments(own.rows("train", "val") if own is control_acts else train[shown[train]])
    chosen = own.rows("test") if own is control_acts else test[shown[test]]
    entry = evaluation.measure(model.reconstruct, own, chosen, own_mean).results["fvu"]
    explained[name] = {key: 1 - entry[other] for key, other in flip.items()} | {"n": entry["n"]}
results |= {f"control/{name}/explained_variance": entry for name, entry in explained.items()}
# %%
gain = explained["trained network"]["value"] - explained["permuted weights"]["value"]
results["control/gain"] = gain
shares = ", ".join(f"{name} {in_words(entry)}" for name, entry in explained.items())
text = f"""**Takeaway.** Variance explained: {shares}. The difference is {100 * gain:.1f} points (one permutation). What
a network with permuted weights gives too needs no network that has learned."""
display(Markdown(text))
assert len({entry["n"] for entry in explained.values()}) == 1 and np.isfinite(gain)

# %% [markdown]
# A permuted network's activations may be easier to reconstruct, since they vary in fewer directions. So this comparison
# says nothing about whether features of either network mean something; that is asked with part masks later.

# %% [markdown]
# ## What does the classifier lose?
#
# We let the head go on from the reconstruction in place of the activations (*splicing*). KL says how far apart the two
# predictions are, in nats: 0 where they are equal. With the mean cell (or zero) in place of every cell cross-entropy
# rises; *recovered* is the share of that rise that the reconstruction avoids. Above 1, cross-entropy is even lower than
# the network's own, as smoothing can make it. Beside it stand k-means, with one term a cell, and as many principal
# components as a cell has features.

# %%
codes = pd.Categorical(acts.images[network.level][test], network.classes).codes.astype(np.int64)
spliced = {"autoencoder": sae.reconstruct, "k-means": models["k-means"][1]}
spliced |= {name: model for name, (k, model) in models.items() if name.startswith("PCA") and k == config.k}
costs = {name: evaluation.splice(model, acts, test, codes, network, data, mean) for name, model in spliced.items()}
results |= costs["autoencoder"]
results |= {
    f"baseline/{name}/{key}": cost[key] for name, cost in costs.items() for key in cost if name != "autoencoder"
}

# %%
by_points = {name: cost["top1_change_points"] for name, cost in costs.items()}
plots.dots(by_points, "change of top-1 accuracy, points", "", line=0)

# %%
titles = {
    "top1_change_points": "change of top-1 accuracy, points",
    "agreement": "predictions that stay",
    "kl_nats": "KL, nats",
    "ce_recovered_mean": "cross-entropy recovered (mean cell), share",
    "ce_recovered_zero": "cross-entropy recovered (zero), share",
}
by_method = {
    name: {title: in_words(cost[key], percent=key == "agreement") for key, title in titles.items()}
    for name, cost in costs.items()
}
display(pd.DataFrame(by_method))

# %%
changed, kl, agree = results["top1_change_points"], results["kl_nats"]["value"], results["agreement"]["value"]
in_points = (
    f"{changed['value']:.1f} points ({changed['low']:.1f} to {changed['high']:.1f}, n = {changed['n']} pictures)"
)
of_others = ", ".join(f"{name} {cost['kl_nats']['value']:.3f}" for name, cost in costs.items() if name != "autoencoder")
text = f"""**Takeaway.** Splicing changes top-1 accuracy by {in_points}; {agree:.0%} of the predictions stay. KL is
{kl:.3f} nats ({of_others})."""
display(Markdown(text))
assert changed["value"] >= -promised["lost"]

# %% [markdown]
# The head sees only the mean over cells, in which errors of single cells cancel. A small cost is therefore a weak test
# of the reconstruction of each cell: compare k-means, with one term a cell, above. KL tells them apart.

# %% [markdown]
# ## Which features live, and how often do they fire?
#
# A feature's *density* is the share of cells on which it fires. A *dense* one fires on more than 10%, right of the
# dotted line; *dead* means here: on no cell of the test pictures. Dead features are drawn at 0.0001%, far left.

# %%
density = measured.fired / measured.n_cells
figure, ax = plots.sheet(3.6)
sns.histplot(100 * np.maximum(density, 1e-6), bins=50, log_scale=True, ax=ax)
ax.axvline(10, color=plots.GREY, linestyle=":")
ax.set(xlabel="cells on which a feature fires, % (log scale)", ylabel="features")
display(figure)

# %%
results["median_density"] = float(np.median(density))
edges = [0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]  # of the share of cells; the first bin also holds features that never fire
for i, n_within in enumerate(np.histogram(density, edges)[0]):
    results[f"density/{edges[i]:g}_to_{edges[i + 1]:g}"] = (int(n_within), None, None, len(density))
text = f"""**Takeaway.** Of {sae.d_sae:,} features, {results["dead_share"]["value"]:.1%} never fire on a cell of the
{len(test)} test pictures, {results["dense_share"]["value"]:.1%} fire on more than 10%, and the median feature on
{results["median_density"]:.2%}. A picture has {in_words(results["distinct_features_per_image"], percent=False)}
distinct features."""
display(Markdown(text))
assert results["dead_share"]["value"] <= promised["dead"]

# %% [markdown]
# Dense features need not be defects: light or distance vary in every picture. Whether they are is not answered here.

# %% [markdown]
# ## Would another seed find the same features?
#
# Two more autoencoders, with other initial directions and another order of cells. Features of two seeds are matched one
# to one so that the sum of their decoder directions' cosines is largest. Directions that mean nothing reach a cosine
# well above 0 that way, the more so as features share few dimensions. So chance is measured on *random mixtures*: the
# same number of directions, each a random linear combination of a seed's features, so that they have the same
# covariance. *Agreement* counts their cosine as 0 and identity as 1.

# %%
others = side_by_side(lambda seed: study.sae(f"main-seed{seed}", like="main", seed=config.seed + seed), (1, 2))
seeds = dict(zip((1, 2), others, strict=True))
pairs = [(sae, seeds[1]), (sae, seeds[2]), (seeds[1], seeds[2])]
agreements = [evaluation.seed_agreement(a.W_dec, b.W_dec) for a, b in pairs]
values = [agreement["agreement"] for agreement in agreements]
results["seed_agreement"] = (float(np.mean(values)), min(values), max(values), 3)
results["seed_matched_cosine"] = float(np.mean([agreement["matched_cosine"] for agreement in agreements]))
others = seeds[1].W_dec, evaluation.mixtures(seeds[1].W_dec)
cosines, chance = (evaluation.matched_cosines(sae.W_dec, rows).numpy() for rows in others)

# %%
both = {"features of two seeds": cosines, "features and random mixtures of another seed's": chance}
figure, ax = plots.sheet(3.4)
sns.histplot(both, stat="percent", common_norm=False, bins=50, element="step", ax=ax)
ax.set(xlabel="cosine with the matched partner", ylabel="share, %")
display(figure)

# %%
spread = pd.DataFrame(
    [{name: results[name]["value"] for name in ("l0", "dead_share", "top1_change_points", "kl_nats")}]
)
spread[["explained_variance", "test_train_fvu_ratio"]] = results["explained_variance"]["value"], ratio

for seed, model in seeds.items():
    here, there = (evaluation.measure(model.reconstruct, acts, each, mean).results for each in (test, train))
    here |= evaluation.splice(model.reconstruct, acts, test, codes, network, data, mean)
    row, fvu = {name: entry["value"] for name, entry in here.items()}, here["fvu"]["value"]
    row |= {"explained_variance": 1 - fvu, "test_train_fvu_ratio": fvu / there["fvu"]["value"]}
    spread.loc[seed] = [row[name] for name in spread.columns]

# %%
for name, column in spread.items():  # low and high of these entries are the least and the largest seed
    results[f"seeds/{name}"] = (column.mean(), column.min(), column.max(), len(column))
titles |= {"l0": "active features a cell", "dead_share": "dead share", "explained_variance": "explained variance"}
titles |= {"test_train_fvu_ratio": "test fvu by training fvu"}
display(spread.rename(columns=titles).rename_axis("seed").T.round(4))

# %%
results["seed_share_above_0.7"] = float((cosines > 0.7).mean())
results["seed_chance_cosine"] = agreements[0]["chance"]
stayed = torch.nn.functional.cosine_similarity(sae.W_dec, untrained.W_dec).detach().numpy()

# %%
groups = {"more than 1% of cells": density > 0.01, "at most 1%": density <= 0.01}
table = pd.DataFrame(index=["features", "with another seed's partner", "with its own random start"])
for name, chosen in groups.items():
    means = [float(cosine[chosen].mean()) if chosen.any() else 0.0 for cosine in (cosines, stayed)]
    results |= {f"seed_cosine/{name}": (means[0], None, None, int(chosen.sum()))}
    results |= {f"start_cosine/{name}": (means[1], None, None, int(chosen.sum()))}
    table[f"fires on {name}"] = [f"{chosen.sum():,}", *(f"cosine {mean_cosine:.2f}" for mean_cosine in means)]
table["chance"] = ["", f"cosine {results['seed_chance_cosine']:.2f}", "cosine 0"]
display(table)

# %%
least, most = spread["explained_variance"].min(), spread["explained_variance"].max()
text = f"""**Takeaway.** Matched features have a mean cosine of {results["seed_matched_cosine"]:.2f}, with random
mixtures {results["seed_chance_cosine"]:.2f}: an agreement of {results["seed_agreement"][0]:.2f} (3 pairs of seeds). Of
the pair shown,
{results["seed_share_above_0.7"]:.0%} are above 0.7. Explained variance is {least:.1%} to {most:.1%} (3 seeds)."""
display(Markdown(text))
assert results["seed_agreement"][0] > -0.1 and most - least < 0.1

# %% [markdown]
# Three seeds give a range, not an interval. Explained variance is dominated by frequent features and can hide that rare
# ones stay close to their own random start. Whether a longer training would move them to the same places from every
# seed is not shown. A claim about a single feature therefore needs to say whether another seed finds it too.

# %% [markdown]
# ## A second autoencoder, one stage earlier
#
# All of the above is about the network's end. There a cell sees nearly the whole picture. Earlier stages have more and
# smaller cells. So a second autoencoder, *local*, learns from the stage before, its channels *standardised*: each less
# its mean and over its deviation, so that no few loud ones decide what is worth a feature. (That is folded into the
# weights: codes and reconstructions are in the network's own units.) The table is of a sweep over places and ways to
# standardise, on half A of the test pictures: the mean over twelve parts of the AP of the best feature, and of its
# AUROC among cells of one family and place, beside that of a frozen random decoder. (A finer grid lowers AP by itself.)

# %%
path = Path("../data/results/hangar/sites.csv")
swept = pd.read_csv(path) if path.is_file() and study.config.name == "hangar" else None
display(swept if swept is not None else Markdown("No sweep belongs to these pictures: see tests/benchmarks/sites.py."))

# %%
local, local_acts = study.sae("local"), study.activations(study.config.local.site)
local_mean = local_acts.moments(local_acts.rows("train", "val"))[0]
own = evaluation.measure(local.reconstruct, local_acts, local_acts.rows("test"), local_mean).results
spliced = evaluation.splice(local.reconstruct, local_acts, test, codes, network, data, local_mean)
results |= {f"local/{name}": own[name] for name in ("l0", "dead_share", "fvu")}
results["local/explained_variance"] = {key: 1 - own["fvu"][other] for key, other in flip.items()} | {"n": len(test)}
results["local/top1_change_points"], results["local/d_sae"] = spliced["top1_change_points"], local.d_sae
text = f"""**Takeaway.** The local autoencoder of {study.config.local.site} has {local.d_sae:,} features,
{in_words(results["local/l0"], percent=False)} of them active in a cell, {results["local/dead_share"]["value"]:.1%}
never. It explains {in_words(results["local/explained_variance"])} of the variance there, and going on from it changes
accuracy by {spliced["top1_change_points"]["value"]:.1f} points."""
display(Markdown(text))

# %% [markdown]
# The sweep is of one seed and 300,000 cells a row; how much seeds differ was not measured, and the study keeps the end
# of the stage. A place that scores well for parts need not be one that the classifier reads; nor can the explained
# variance of two sites be compared.

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file.

# %%
study.record(NAME, results)
final = study.results(NAME)
number = {name: entry["value"] for name, entry in final.items()}

# %%
permuted, trained = (number[f"control/{name}/explained_variance"] for name in ("permuted weights", "trained network"))
lines = [
    f"""{number["d_sae"]:,} features, {number["l0"]:.1f} active a cell ({", ".join(places)}), explain
    {in_words(final["explained_variance"])} of the variance on test pictures.""",
    f"""With fewer cells of training the autoencoder explains {same:.1%}, the best baseline of as many terms
    ({best["name"]}) {best["explained_variance"]:.1%}, one whose decoder stays random
    {number["baseline/decoder stays random/explained_variance"]:.1%}.""",
]

# %%
lines += [
    f"""Of a network with permuted weights the same method explains {permuted:.1%}, of the trained one
    {trained:.1%}.""",
    f"Going on from the reconstruction changes top-1 accuracy by {in_points}; KL is {kl:.3f} nats ({of_others}).",
    f"""The mean cosine of features with another seed's partner is {number["seed_matched_cosine"]:.2f}, with random
    mixtures {number["seed_chance_cosine"]:.2f}.""",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))
assert len(lines) <= 6

# %% [markdown]
# ## What this does not show
#
# - **That features mean something.** Nothing here looked at a feature. The next notebook does.
# - **That the network uses them.** Splicing tests the sum of all features, not one of them.
# - **The best autoencoder possible.** The settings suit 20 seconds of training on two cores.
# - **Anything about other networks.** Two sites of one network were taken apart.
