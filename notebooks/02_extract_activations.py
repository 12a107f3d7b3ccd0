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
# # 2. Extract and look at activations
#
# **Question.** What do the activations of the network's last two stages look like? How large are they, where in the
# picture do they stand out, and in how many directions do they vary?
#
# Why care: the next notebooks decompose these activations with sparse autoencoders. What they contain limits what an
# autoencoder can find: vectors that vary in only a handful of directions leave nothing to decompose, and a large mean
# can make any reconstruction look good.
#
# **Reads** the pictures and the classifier of notebook 01. **Writes** `data/runs/<preset>/activations` and the numbers
# in `data/runs/<preset>/results/02_extract_activations.json`.
#
# **Runtime** with the default preset on 2 CPU cores: one minute the first time, less after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.special import entr

# %%
from aircraft_sae.features.reconstruction import pca
from aircraft_sae.metrics import with_interval
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The environment variable `AIRCRAFT_SAE_PRESET` chooses the preset, as in notebook 01. The default preset has to reach
# the numbers below, or the notebook fails.

# %%
study = Study.open()
NAME, results = "02_extract_activations", {}
promised = {"hangar": {"aircraft": 1.3, "rank": 60}}.get(study.config.name, {"aircraft": 0.0, "rank": 1})
NO_MASKS = "These pictures are photographs without part masks, so it is not known which cells show the aircraft."

# %% [markdown]
# ## What do we keep of each picture?
#
# A *site* is a place in the network. At a site, a picture becomes a grid of *cells*, and each cell is a vector with one
# number per *channel*. One pass over the pictures records all sites and writes the vectors to disk as 16-bit numbers.
# Each training and validation picture also passes through the network once more as a random crop (split `views`). The
# autoencoders learn from these crops, too. After this section, we look at whole pictures only.

# %%
data, network = study.pictures(), study.network()
sites = {site: study.activations(site) for site in study.config.sites}
images = next(iter(sites.values())).images
test, training = (np.flatnonzero(images["split"].isin(splits)) for splits in (["test"], ["train", "val"]))
kept = {
    site: dict(zip(("rows", "columns", "channels"), acts.acts.shape[1:], strict=True))
    | {"cells": f"{len(images) * acts.cells_per_image:,}", "megabytes": f"{acts.acts.nbytes / 1e6:,.0f}"}
    for site, acts in sites.items()
}
display(images["split"].value_counts(sort=False).to_frame("pictures").T, pd.DataFrame(kept).T)

# %% tags=["nbval-check-output"]
in_order = [acts.images["image"].tolist()[: len(data.table)] == data.table["image"].tolist() for acts in sites.values()]
print("activations of all pictures, in the order of the data set:", all(in_order))

# %%
n_bytes = sum(acts.acts.nbytes for acts in sites.values())
made = study.stages.get("activations/trained")
if made:
    results |= {"extract_seconds": made.meta["seconds"], "images_per_second": len(images) / made.meta["seconds"]}
results |= {"n_images": len(images), "n_training": len(training), "n_test": len(test), "megabytes": n_bytes / 1e6}
results |= {f"{site}/n_cells": len(images) * acts.cells_per_image for site, acts in sites.items()}
text = f"""**Takeaway.** The activations of {len(images):,} pictures and crops at {" and ".join(sites)} take
{n_bytes / 1e6:,.0f} MB."""
display(Markdown(text))

# %% [markdown]
# `tests/test_activations.py` checks that the network gives the same answer from the stored activations, although they
# are rounded to 16 bits. Whatever is lost later is therefore lost by the autoencoder.

# %% [markdown]
# ## What do all cells have in common?
#
# We split the mean squared length of a cell's vector into three shares: the *mean* over all cells, the *first principal
# component* (the direction in which cells vary most), and everything else. Mean and components come from training
# pictures, the shares from test pictures.

# %%
basis = {site: pca(acts, training, acts.d_in) for site, acts in sites.items()}
energy = {site: {} for site in sites}  # for each image, squared distance from the mean along each component
for site, acts in sites.items():
    mean, components = basis[site]
    for split, rows in (("training", training), ("test", test)):
        sums = [((x.flatten(1, 2) - mean) @ components.t()).square().sum(1).double() for x in acts.blocks(rows)]
        energy[site][split] = torch.cat(sums).numpy()
length = {
    site: torch.cat([x.double().square().sum((1, 2, 3)) for x in acts.blocks(test)]) for site, acts in sites.items()
}

# %%
shares = {}
for site in sites:
    whole, around = length[site].numpy(), energy[site]["test"]
    pairs = {"mean": (whole - around.sum(1), whole), "first": (around[:, 0], around.sum(1))}
    for name, pair in pairs.items():
        results[f"{site}/{name}/share"] = with_interval(*pair)
    mean, first = (results[f"{site}/{name}/share"]["value"] for name in ("mean", "first"))
    shares[site] = {"mean": mean, "first component": (1 - mean) * first, "all others": (1 - mean) * (1 - first)}

# %%
figure, ax = plots.sheet(1.8 + 0.55 * len(shares))
(100 * pd.DataFrame(shares).T[::-1]).plot.barh(stacked=True, width=0.8, edgecolor="white", legend=False, ax=ax)
for bars in ax.containers:
    written = [f"{width:.0f}" if width >= 5 else "" for width in bars.datavalues]
    ax.bar_label(bars, written, label_type="center", color="white", fontweight="bold")
ax.set(xlim=(0, 100), xlabel="share of the mean squared length of a cell, %", ylabel="site")
figure.legend(loc="outside lower center", ncols=3)
display(plots.titled(figure, "What do all cells have in common?"))

# %%
said = [
    f"""At {site} the mean makes up {in_words(results[f"{site}/mean/share"])} of the squared length, and the first
    component {in_words(results[f"{site}/first/share"])} of the rest."""
    for site in sites
]
display(Markdown(f"**Takeaway.** {' '.join(said)}"))
assert all(abs(sum(own.values()) - 1) < 1e-9 and min(own.values()) > -1e-6 for own in shares.values())

# %% [markdown]
# So an error quoted as a share of *all* squared length can be small even if an autoencoder has found nothing but the
# mean. The next notebooks therefore compare errors with the variance around the mean. But the direction with the most
# variance need not matter most to the network.

# %% [markdown]
# ## In how many directions do cells vary?
#
# The curves show what share of the variance the first principal components hold. The null has the same variance in each
# channel, but its channels are uncorrelated. The dotted line is 90%.

# %%
curves, alone = {}, {}
for site in sites:
    variance = {split: sums.sum(0) for split, sums in energy[site].items()}
    alone[site] = np.sort(variance["training"] @ basis[site][1].double().numpy() ** 2)[::-1]
    curves[site] = {f"{split} pictures": v.cumsum() / v.sum() for split, v in variance.items()}
    curves[site] |= {"uncorrelated channels (null)": alone[site].cumsum() / alone[site].sum()}

# %%
figure, panels = plots.sheet(4.2, 1, len(sites), sharey=True, squeeze=False)
for ax, (site, lines) in zip(panels[0], curves.items(), strict=True):
    table = 100 * pd.DataFrame(lines, np.arange(1, sites[site].d_in + 1))
    table.plot(logx=True, ylim=(0, 102), style=["-", "--", "-"], linewidth=2, legend=False, ax=ax)
    ax.axhline(90, color="black", linestyle=":", linewidth=1)
    ax.set(title=f"{site}, {len(table)} channels", xlabel="number of directions (log scale)", ylabel="variance, %")
    ax.xaxis.set_major_formatter("{x:g}")
figure.legend(handles=ax.lines[:3], loc="outside lower center", ncols=3)
display(plots.titled(figure, "In how many directions do cells vary?"))

# %% [markdown]
# The *effective rank* sums up such a curve in one number: how many directions of equal variance would have the same
# entropy (it is the exponential of the entropy of the shares). Each interval contains the values of 95% of 2,000
# bootstrap draws of test pictures.

# %%
draws = np.random.default_rng(0).multinomial(len(test), np.full(len(test), 1 / len(test)), 2000)
for site in sites:
    share = np.vstack([np.ones(len(test)), draws]) @ energy[site]["test"]  # all pictures once, then the draws
    share /= share.sum(1, keepdims=True)
    rank = {"effective_rank": np.exp(entr(share).sum(1)), "n_for_90_percent": (share.cumsum(1) < 0.9).sum(1) + 1.0}
    for name, values in rank.items():
        results[f"{site}/{name}"] = (values[0], *np.quantile(values[1:], [0.025, 0.975]), len(test))
    results[f"{site}/effective_rank_if_unrelated"] = np.exp(entr(alone[site] / alone[site].sum()).sum())

# %%
said = []
for site, acts in sites.items():
    value, low, high, n = results[f"{site}/effective_rank"]
    unrelated = results[f"{site}/effective_rank_if_unrelated"]
    said += [f"At {site} the effective rank is {value:.0f} ({low:.0f} to {high:.0f}, n = {n}) of {acts.d_in} channels"]
    said[-1] += f"; uncorrelated channels would give {unrelated:.0f}."
    assert low <= value <= high and unrelated <= acts.d_in + 1e-6
assert results[f"{site}/effective_rank"][0] >= promised["rank"]
display(Markdown("\n\n".join(f"**Takeaway.** {each}" for each in said)))

# %% [markdown]
# The larger the rank, the more there is to decompose. But it does not say *which* directions mean something: it is the
# same after any rotation of the channels.

# %% [markdown]
# ## Where are cells far from the mean?
#
# Below are five test pictures, with the distance of each cell from the mean as a heat map: the nearest cells keep the
# picture's colours, only paler; the farthest are yellow. Each row is labelled with its smallest and its largest
# distance, in the network's units.

# %%
shown = images.iloc[test].drop_duplicates(data.levels[-1]).head(5)["image"].tolist()
if len(shown) < 5:
    shown = images.iloc[test].drop_duplicates(data.levels[0]).head(5)["image"].tolist()
at = [images["image"].iloc[test].tolist().index(image) for image in shown]
pictures, distance = [data.picture(image) for image in shown], {}
for site, acts in sites.items():
    distance[site] = torch.cat([(x - basis[site][0]).norm(dim=3) for x in acts.blocks(test)]).numpy()

# %%
heated, names = [pictures], ["picture"]
for site, d in distance.items():
    least, most = d[at].min(), d[at].max()
    heated += [[plots.heat(p, far - least, most - least) for p, far in zip(pictures, d[at], strict=True)]]
    names += [f"{site}\n{least:.3g} to {most:.3g}"]
plots.titled(plots.picture_grid(heated, names=names), "Where are cells far from the mean?")

# %% [markdown]
# Are cells that show aircraft (in at least a quarter of their pixels) farther from the mean than other cells of the
# same picture? Aircraft tend to be near the middle of a picture, and the middle might be special whatever it shows. The
# null therefore uses the outline of *another* test picture.

# %%
aircraft = {}
if data.region_names:
    aircraft = {site: data.foreground(images["image"].iloc[test], acts.grid) for site, acts in sites.items()}

# %%
lines = []
for site, seen in aircraft.items():
    for name, mask in (("ratio", seen), ("null", np.roll(seen, len(test) // 2, axis=0))):
        both = mask.any((1, 2)) & ~mask.all((1, 2))
        d, mask = distance[site][both], mask[both]
        pair = (d * mask).sum((1, 2)) / mask.sum((1, 2)), (d * ~mask).sum((1, 2)) / (~mask).sum((1, 2))
        results[f"{site}/aircraft/{name}"] = with_interval(*pair)
    ratio, null = (results[f"{site}/aircraft/{name}"] for name in ("ratio", "null"))
    of_what = "" if lines else " as far from the mean as other cells"
    lines += [f"{in_words(ratio, percent=False)} times{of_what} at {site} (null: {null['value']:.2f})"]
    assert ratio["value"] >= promised["aircraft"] and (not promised["aircraft"] or ratio["low"] > null["high"])

# %%
text = f"**Takeaway.** Cells that show aircraft lie {' and '.join(lines)}."
display(Markdown(text if data.region_names else NO_MASKS))
assert all(np.isfinite(d).all() and d.min() >= 0 for d in distance.values())

# %% [markdown]
# A cell's vector depends on far more of the picture than the pixels under the cell. The maps are therefore blurred, and
# the vector of a cell beside an aircraft may describe the aircraft, too. And being far from the mean does not make a
# cell important.

# %% [markdown]
# ## Takeaways

# %%
study.record(NAME, results)
final = study.results(NAME)
number, deep = {name: entry["value"] for name, entry in final.items()}, list(sites)[-1]
lines = [f"{number['n_images']:,} pictures and crops take {number['megabytes']:,.0f} MB at {' and '.join(sites)}."]
for site in sites:
    mean, rank = in_words(final[f"{site}/mean/share"]), number[f"{site}/effective_rank"]
    lines += [f"At {site} the mean makes up {mean} of the squared length, and the effective rank is {rank:.0f}."]

# %%
if data.region_names:
    near, null = in_words(final[f"{deep}/aircraft/ratio"], percent=False), number[f"{deep}/aircraft/null"]
    lines += [f"At {deep}, cells with aircraft are {near} times as far from the mean as others (null: {null:.2f})."]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **What any direction means.** Distances and ranks describe a cloud of points. The next notebooks ask what its
#   directions respond to, and what they do.
# - **What matters to the network.** A direction with much variance may be ignored, and one with little may decide the
#   class.
# - **That sparse features exist**, or that there is one right set of them.
# - **Other networks.** We looked at one network from one training run; intervals are over its test pictures.
