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
# **Question.** What do the activations of the network's last two stages look like: how large are they, where, in how
# many directions, and are single channels already sparse? The notebooks after this one decompose these activations
# with sparse autoencoders. What is in them decides what an autoencoder can find, and what it has to beat.
#
# **Reads** the data set and the classifier of notebook 01, in `data/runs/<preset>` (made here where they are missing).
#
# **Writes** `data/runs/<preset>/activations` (found again when it matches), and the numbers in
# `data/runs/<preset>/results/02_extract_activations.json`.
#
# **Runtime** with the default preset on 2 CPU cores: 2 minutes the first time, half a minute after that.
# The takeaways at the end say what it took on the machine that made this copy.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from scipy.special import entr
from scipy.stats import binomtest

# %%
from aircraft_sae.activations import replay
from aircraft_sae.features.reconstruction import pca
from aircraft_sae.metrics import with_interval
from aircraft_sae.store import ENTRY
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The environment variable `AIRCRAFT_SAE_PRESET` chooses the preset, as in notebook 01. What the default preset promises
# about its numbers stands here, and is asserted below.

# %%
study = Study.open()
NAME, results = "02_extract_activations", {}
promised = {"hangar": {"same": 0.99, "aircraft": 1.3, "rank": 60}}.get(
    study.config.name, {"same": 0.0, "aircraft": 0.0, "rank": 1}
)
NO_MASKS = "This data set holds photographs: there are no part masks, so cells with aircraft are not told from others."

# %% [markdown]
# ## What is kept of each picture?
#
# A *site* is a place in the network. At each site, a picture becomes a grid of *cells*, and each cell a vector with one
# number per *channel*. One pass over the pictures hooks all sites and writes the vectors to disk as 16-bit numbers
# (32-bit where a value is beyond 65,504).
# Each picture of train and val also goes through once more as a random crop (split `views`), for autoencoders to learn
# from; everything in this notebook is about whole pictures.

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

# %%
seconds, n_bytes = study.stages["activations/trained"].meta["seconds"], sum(acts.acts.nbytes for acts in sites.values())
results |= {"extract_seconds": seconds, "images_per_second": (len(images) / seconds, None, None, len(images))}
results |= {"n_images": len(images), "n_training": len(training), "n_test": len(test), "megabytes": n_bytes / 1e6}
results |= {f"{site}/n_cells": len(images) * acts.cells_per_image for site, acts in sites.items()}
text = f"""**Takeaway.** {len(images):,} pictures and views took {seconds:.0f} s, {len(images) / seconds:.0f} a second;
their activations at {" and ".join(sites)} take {n_bytes / 1e6:,.0f} MB."""
display(Markdown(text))
assert len(images) == len(training) * (1 + study.config.n_views) + len(test)

# %% [markdown]
# All that follows relies on every picture being there, in the order of the data set:

# %% tags=["nbval-check-output"]
for site, acts in sites.items():
    stored = acts.images["image"].tolist()
    pairs = zip(stored, data.table["image"], strict=False)  # views come after all pictures
    print(f"{site}: pictures missing or out of order:", sum(a != b for a, b in pairs))
    assert stored[: len(data.table)] == data.table["image"].tolist() and acts.acts.dtype in (np.float16, np.float32)

# %% [markdown]
# ## Is anything lost on the way to the disk?
#
# If what is stored is what the network computed, the rest of the network must give its own answer from it. Below, the
# stored activations of each test picture are put back in at their site, and the largest change of any class's
# probability is taken, compared with the predictions of notebook 01. In grey is the null, what the same measure gives
# where there is nothing to find: another picture's predictions.

# %%
own = torch.from_numpy(network.predictions.filter(regex=r"^p_\d+$").to_numpy(copy=True))
spliced = {site: torch.cat([seen.logits for seen in replay(network, data, acts, test)]) for site, acts in sites.items()}
change = {site: (logits.softmax(1) - own).abs().amax(1).numpy() for site, logits in spliced.items()}
another = (own.roll(len(test) // 2, 0) - own).abs().amax(1).numpy()
figure, ax = plots.sheet(3.2)
both = {name: np.clip(values, 1e-7, 1) for name, values in (change | {"another picture": another}).items()}
sns.histplot(both, bins=50, log_scale=True, element="step", ax=ax)
ax.set(xlabel="largest change of a class's probability", ylabel="pictures")
display(figure)

# %%
same = {site: int((logits.argmax(1) == own.argmax(1)).sum()) for site, logits in spliced.items()}
back = []
for site, n_same in same.items():
    wilson = binomtest(n_same, len(test)).proportion_ci(method="wilson")
    results[f"{site}/splice/same_prediction"] = (n_same / len(test), wilson.low, wilson.high, len(test))
    results[f"{site}/splice/largest_probability_change"] = (float(change[site].max()), None, None, len(test))
    unchanged = in_words(dict(zip(ENTRY, results[f"{site}/splice/same_prediction"], strict=True)))
    back += [
        f"""put back at {site}, {unchanged} keep their prediction, and the largest change of a probability is
        {change[site].max():.0e};"""
    ]
    assert change[site].max() < 0.01 and n_same / len(test) >= promised["same"]

# %%
results["splice/another_pictures_median_change"] = (float(np.median(another)), None, None, len(test))
text = f"""**Takeaway.** Of test pictures {" ".join(back)} between two pictures it is {np.median(another):.2f}
(median)."""
display(Markdown(text))

# %% [markdown]
# So 16 bits are enough for whole pictures, and whatever an autoencoder loses on these is its own loss. The views, which
# autoencoders only learn from, were computed in mixed precision and are not tested here. It does not follow that
# everything that is stored matters to the network.

# %% [markdown]
# ## What do all cells have in common?
#
# The mean squared length of a cell's vector has three parts: that of the *mean* over all cells, that along the *first
# principal component* (the direction in which cells differ most), and everything else. Mean and components come from
# training pictures; the shares are of test pictures. An autoencoder that is not given the mean spends features on it.

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
    results[f"{site}/first/largest_channel"] = float(basis[site][1][0].square().max())
    mean, first = (results[f"{site}/{name}/share"]["value"] for name in ("mean", "first"))
    shares[site] = {"mean": mean, "first component": (1 - mean) * first, "all others": (1 - mean) * (1 - first)}

# %%
figure, ax = plots.sheet(1.4 + 0.55 * len(shares))
(100 * pd.DataFrame(shares).T[::-1]).plot.barh(stacked=True, width=0.8, edgecolor="white", legend=False, ax=ax)
for bars in ax.containers:
    written = [f"{width:.1f}" if width >= 5 else "" for width in bars.datavalues]
    ax.bar_label(bars, written, label_type="center", color="white", fontweight="bold")
ax.set(xlim=(0, 100), xlabel="share of the mean squared length of a cell, %", ylabel="site")
figure.legend(loc="outside upper center", ncols=3)
display(figure)

# %%
words = {name: in_words(entry) for name, entry in results.items() if "/share" in name}
said = [
    f"""At {site} the mean is {words[f"{site}/mean/share"]} of the squared length; of what remains, the first
    component is {words[f"{site}/first/share"]}, and one channel is
    {results[f"{site}/first/largest_channel"]:.0%} of that component."""
    for site in sites
]
display(Markdown(f"**Takeaway.** {' '.join(said)}"))
assert all(abs(sum(own.values()) - 1) < 1e-9 and min(own.values()) > -1e-6 for own in shares.values())

# %% [markdown]
# Why this matters: an error that is measured as a share of all squared length can be small although an autoencoder has
# found nothing but the mean and one direction. The notebooks after this one therefore measure errors around the mean.
# A component that holds most of the variance does not have to matter most: what follows in the network norms each cell.

# %% [markdown]
# ## In how many directions do cells differ?
#
# Below is the share of the variance that lies within the first so many principal components of training pictures, for
# training pictures and for test pictures. In grey is the null: the same variances, with no channel telling anything
# about another (channels in order of their variance). The dotted line is 90%.

# %%
curves, alone = {}, {}
for site in sites:
    variance = {split: sums.sum(0) for split, sums in energy[site].items()}
    alone[site] = np.sort(variance["training"] @ basis[site][1].double().numpy() ** 2)[::-1]
    curves[site] = {f"{split} pictures": v.cumsum() / v.sum() for split, v in variance.items()}
    curves[site] |= {"channels, if unrelated": alone[site].cumsum() / alone[site].sum()}

# %%
figure, panels = plots.sheet(4.2, 1, len(sites), sharey=True, squeeze=False)
for ax, (site, lines) in zip(panels[0], curves.items(), strict=True):
    table = 100 * pd.DataFrame(lines, np.arange(1, sites[site].d_in + 1))
    table.plot(logx=True, ylim=(0, 102), style=["-", "--", "-"], linewidth=2, legend=False, ax=ax)
    ax.axhline(90, color="black", linestyle=":", linewidth=1)
    ax.set(title=f"{site}, {len(table)} channels", xlabel="number of directions", ylabel="share of variance, %")
    ax.xaxis.set_major_formatter("{x:g}")
figure.legend(handles=ax.lines[:3], loc="outside upper center", ncols=3)
display(figure)

# %% [markdown]
# One number for such a curve is the *effective rank*: how many directions of equal variance would be as spread out, by
# entropy (exp of the entropy of the shares) or by the sum of squares (*participation ratio*). Intervals hold 95% of
# 2,000 bootstrap draws of test pictures.

# %%
draws = np.random.default_rng(0).multinomial(len(test), np.full(len(test), 1 / len(test)), 2000)
for site in sites:
    share = np.vstack([np.ones(len(test)), draws]) @ energy[site]["test"]  # all pictures once, then the draws
    share /= share.sum(1, keepdims=True)
    rest = share[:, 1:] / share[:, 1:].sum(1, keepdims=True)
    rank = {"effective_rank": np.exp(entr(share).sum(1)), "effective_rank_less_first": np.exp(entr(rest).sum(1))}
    rank |= {"participation_ratio": 1 / (share**2).sum(1), "n_for_90_percent": (share.cumsum(1) < 0.9).sum(1) + 1.0}
    for name, values in rank.items():
        results[f"{site}/{name}"] = (values[0], *np.quantile(values[1:], [0.025, 0.975]), len(test))
    results[f"{site}/effective_rank_if_unrelated"] = np.exp(entr(alone[site] / alone[site].sum()).sum())

# %%
names = {"effective_rank": "effective rank", "effective_rank_less_first": "less the first component"}
names |= {"participation_ratio": "participation ratio", "n_for_90_percent": "components for 90%"}
table = {title: [results[f"{site}/{name}"] for site in sites] for name, title in names.items()}
table = {title: [f"{v:.1f} ({low:.1f} to {high:.1f})" for v, low, high, _ in row] for title, row in table.items()}
table["if channels were unrelated"] = [f"{results[f'{site}/effective_rank_if_unrelated']:.1f}" for site in sites]
display(pd.DataFrame(table, index=list(sites)))

# %%
deep, d_in = list(sites)[-1], list(sites.values())[-1].d_in
value, low, high, n = results[f"{deep}/effective_rank"]
unrelated, n_90 = results[f"{deep}/effective_rank_if_unrelated"], results[f"{deep}/n_for_90_percent"][0]
text = f"""**Takeaway.** At {deep} the effective rank is {value:.0f} ({low:.0f} to {high:.0f}, n = {n}) of {d_in}; it
would be {unrelated:.0f} with unrelated channels. {n_90:.0f} components hold 90% of the variance."""
display(Markdown(text))
assert low <= value <= high and value >= promised["rank"] and unrelated <= d_in + 1e-6

# %% [markdown]
# Few directions would mean that a handful of principal components say it all, and there is nothing to decompose. The
# rank says nothing about *which* directions mean something: any rotation of the channels has the same rank.

# %% [markdown]
# ## Where are cells far from the mean?
#
# Below, the first test picture of each of five classes of the coarsest level, and under it how far each cell is from
# the mean: the nearest of a row's cells have the picture's own colours, paler, the farthest are yellow. Beside each row
# stand these two distances, in the network's own units.

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
plots.picture_grid(heated, names=names)

# %% [markdown]
# How much farther are cells that show aircraft (a quarter of their pixels or more) than other cells of the same
# picture? We take the ratio of the two mean distances over pictures that have both kinds of cell. The null is the same
# with the outline of another test picture: aircraft are near the middle of pictures, and cells there might be far from
# the mean whatever they show.

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
    lines += [f"{in_words(ratio, percent=False)} times as far at {site}, {in_words(null, percent=False)} for the null"]
    assert ratio["value"] >= promised["aircraft"] and (not promised["aircraft"] or ratio["low"] > null["high"])

# %%
text = f"**Takeaway.** Cells that show aircraft are, against others of their picture, {'; '.join(lines)}."
display(Markdown(text if data.region_names else NO_MASKS))
assert all(np.isfinite(d).all() and d.min() >= 0 for d in distance.values())

# %% [markdown]
# A cell sees far more of the picture than the pixels below it, so the maps are blurred, and a cell beside an aircraft
# is not "background" to the network. A cell in the picture's own colours is like the average cell, which can also mean
# halfway between two extremes. Being far from the mean is not being important.

# %% [markdown]
# ## Are single channels sparse already?
#
# A sparse channel would be near its mean for most cells and far from it for a few: a high *kurtosis*, and positive in
# few cells (or in all but a few). Below, each dot is a direction: the channels themselves; random directions in the
# same cells, at right angles to the first component, which would drown all else at a site where it is large; and the
# channels of Gaussian noise with the mean and covariance of the cells, whose excess kurtosis is 0 but for chance.

# %%
draw, views, spread = torch.Generator().manual_seed(0), {}, {}
for site, acts in sites.items():
    first, others, d = basis[site][1][0], basis[site][1][1:], acts.d_in
    turn = torch.linalg.qr(torch.randn(d - 1, d - 1, generator=draw)).Q
    views[site] = {"channels": torch.eye(d), "random directions": others.t() @ turn}
    views[site]["channels less the first component"] = torch.eye(d) - torch.outer(first, first)
    spread[site] = (energy[site]["training"].sum(0) / len(training) / acts.cells_per_image) ** 0.5  # per component

# %%
sums = {site: {} for site in sites}  # for each image and direction: cells above 0, second and fourth powers
for site, acts in sites.items():
    (centre, components), std = basis[site], torch.from_numpy(spread[site]).float()
    for block in acts.blocks(test):
        x = block.flatten(1, 2) - centre
        seen = [(name, x @ view, centre @ view) for name, view in views[site].items()]
        noise = torch.randn(x.shape, generator=draw) * std @ components
        for name, y, mean in [*seen, ("Gaussian noise", noise, centre)]:
            powers = torch.stack([(y > -mean).float().sum(1), y.square().sum(1), y.pow(4).sum(1)])
            sums[site].setdefault(name, []).append(powers.double())

# %%
points, kurtosis = {site: {} for site in sites}, {site: {} for site in sites}
for site, acts in sites.items():
    for name, blocks in sums[site].items():
        positive, second, fourth = torch.cat(blocks, dim=1).numpy()  # each (images, directions)
        n_cells, once_and_drawn = len(test) * acts.cells_per_image, np.vstack([np.ones(len(test)), draws])
        excess = n_cells * (once_and_drawn @ fourth) / (once_and_drawn @ second) ** 2 - 3
        points[site][name], kurtosis[site][name] = (positive.sum(0) / n_cells, excess[0]), np.median(excess, axis=1)
    del points[site]["channels less the first component"]

# %%
figure, panels = plots.sheet(4.2, 1, len(sites), sharey=True, squeeze=False)
for ax, (site, groups) in zip(panels[0], points.items(), strict=True):
    for (name, (positive, excess)), marker in zip(groups.items(), "o^s", strict=True):
        ax.plot(100 * positive, excess, marker, markersize=4, alpha=0.7, label=name)
    ax.set(xlim=(0, 100), title=site, xlabel="cells where it is positive, %", ylabel="excess kurtosis")
    ax.label_outer()
figure.legend(handles=ax.lines, loc="outside upper center", ncols=3)
display(figure)

# %%
for site, own in kurtosis.items():
    own["gain"] = own["channels less the first component"] - own["random directions"]
    for name, m in own.items():
        results[f"{site}/kurtosis/{name.replace(' ', '_')}"] = (m[0], *np.quantile(m[1:], [0.025, 0.975]), len(test))
    positive = points[site]["channels"][0]
    results[f"{site}/positive/median"] = (np.median(positive), None, None, len(positive))
    results[f"{site}/positive/least"] = (positive.min(), None, None, len(positive))
    n_cells = len(test) * sites[site].cells_per_image
    assert abs(own["Gaussian noise"][0]) < 4 * (24 / n_cells) ** 0.5 and ((positive >= 0) & (positive <= 1)).all()

# %%
said = []
for site, own in kurtosis.items():
    k = {name: results[f"{site}/kurtosis/{name.replace(' ', '_')}"] for name in own}
    k = {name: f"{value:z.2f} ({low:z.2f} to {high:z.2f})" for name, (value, low, high, _) in k.items()}
    median, least = (results[f"{site}/positive/{name}"][0] for name in ("median", "least"))
    said += [
        f"""At {site} the median excess kurtosis is {k["channels"]} of channels, {k["random directions"]} of random
        directions and {k["Gaussian noise"]} of noise. With the first component taken out of both, channels less
        random directions is {k["gain"]}. The median channel is positive in {median:.0%} of cells, and none in
        fewer than {least:.0%}."""
    ]
display(Markdown(f"**Takeaway.** {' '.join(said)} Intervals are over n = {len(test)} test pictures."))

# %% [markdown]
# Kurtosis above 0 in *every* direction says that cells are of different lengths, not that some direction is special;
# what channels have beyond random directions is what the network's own axes add. Channels that are not sparse leave
# room for sparse directions, and do not show that there are any: that is for autoencoders to find, and for controls to
# doubt.

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file.

# %%
study.record(NAME, results)
final = study.results(NAME)
number, words = {name: entry["value"] for name, entry in final.items()}, {}
for name, entry in final.items():
    words[name] = in_words(entry, percent="share" in name or "same" in name)
top, deep = next(iter(sites)), list(sites)[-1]

# %%
share = {name: [f"{words[f'{site}/{name}/share']} at {site}" for site in (top, deep)] for name in ("mean", "first")}
lines = [
    f"""{number["n_images"]:,} pictures and views took {number["extract_seconds"]:.0f} s and
    {number["megabytes"]:,.0f} MB; put back, {words[f"{deep}/splice/same_prediction"]} keep their prediction.""",
    f"The mean is {' and '.join(share['mean'])} of a cell's squared length.",
    f"Of what remains, one direction holds {' and '.join(share['first'])}.",
]
if data.region_names:
    near, null = words[f"{deep}/aircraft/ratio"], words[f"{deep}/aircraft/null"]
    lines += [f"At {deep}, cells with aircraft are {near} times as far from the mean as others; null: {null}."]

# %%
lines += [
    f"""Effective rank at {deep}: {number[f"{deep}/effective_rank"]:.0f} of {d_in}. Kurtosis of channels less
    random directions: {words[f"{deep}/kurtosis/gain"]}."""
]

# %%
display(Markdown("\n".join(f"- {line}" for line in lines)))
assert number["n_test"] == len(test) and len(lines) <= 5

# %% [markdown]
# ## What this does not show
#
# - **What any direction means.** Distances and ranks describe a cloud of points; the notebooks that follow ask what its
#   directions respond to, and what they do.
# - **What matters to the network.** A direction with much variance may be ignored by all that follows, and one with
#   little may decide.
# - **That sparse features exist**, or that there is one right set of them: a cloud that is not Gaussian is no evidence
#   of either.
# - **Other networks.** One network from one training run was looked at; intervals are over its test pictures.
