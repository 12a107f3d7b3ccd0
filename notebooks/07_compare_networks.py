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
# # 7. Compare networks
#
# **Question.** Do a network's features show what it was trained *for*?
#
# Why care: it is tempting to explain features by the training objective. But studies that compare models with different
# objectives usually change the architecture and the data as well. Here three networks have the same architecture,
# initial weights and scenes, and differ in their objective. We show all networks the same pictures, change one thing at
# a time in a scene (a part, its paint, the light, the background, the camera), and measure what every feature responds
# to.
#
# **Reads** the data set and the network of notebook 01. **Writes** the changed scenes
# (`data/runs/<preset>/experiments/varied`), the activations, autoencoders and profiles of each network, and the numbers
# in `data/runs/<preset>/results/07_compare_networks.json`.
#
# **Runtime** with the default preset on 2 CPU cores: twelve minutes the first time, two minutes after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from itertools import combinations, product

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

# %%
from aircraft_sae.studies import comparison
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser.catalogue import crops_figure
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# Six networks:
#
# - *class labels*, *part masks*, *no labels*: three networks with the same ConvNeXt architecture, trained from the same
#   initial weights, on the same scenes (of 192 other made-up variants) and for the same number of steps, each with its
#   own objective. *Class labels* predicts the variant, and *part masks* predicts each part's share of a cell. *No
#   labels* is contrastive: two crops of one picture should get similar activations, and crops of different pictures
#   should not. (This objective needs more varied crops and colours than the other two, and got them.)
# - *this task*: the study's own ConvNeXt, trained on the variants of this study.
# - *permuted*: the network of *this task* with its weights permuted. This is the null.
# - *ImageNet*: EfficientNet-Lite0, which was trained on photographs and has never seen a render.
#
# To compare other networks, add their names: any CNN on timm's hub will do, such as `convnextv2_tiny.fcmae` or
# `convnext_tiny.dinov3_lvd1689m`. We read each network at two depths, where a cell is 16 or 32 pixels wide. At each
# depth, all autoencoders have the same number of features, of which 16 are active in a cell. Three seeds show how much
# a result varies from one autoencoder to another.

# %%
study = Study.open()
if study.pictures().scenes is None:
    raise ValueError("these pictures are not rendered scenes: run this notebook with the preset hangar")
NAME, results, small = "07_compare_networks", {}, study.config.name == "smoke"
NETWORKS = {"class labels": "hangar_classes", "part masks": "hangar_parts", "no labels": "hangar_self_supervised"}
NETWORKS |= {"this task": "trained", "permuted": "permuted", "ImageNet": "efficientnet_lite0"}
STRIDES, N_SEEDS = (16, 32), 2 if small else 3
sites = {name: comparison.sites_at(study.network(own), STRIDES) for name, own in NETWORKS.items()}
level = study.pictures().levels[0]
results["n_networks"] = len(NETWORKS)

# %% [markdown]
# ## Has each network learned anything?
#
# If a network's activations cannot separate variants, its features mean little. We fit a logistic regression to the
# activations of the deeper site, averaged over cells. Only *this task* was trained on these variants. The dotted line
# marks guessing.

# %%
known = {}
for name, own in NETWORKS.items():
    given = {"network": own, "pictures": "all" if own == "trained" else "every1"}
    known[name] = comparison.accuracy(study.activations(sites[name][32], **given), level)
    results[f"{own.removeprefix('hangar_')}_linear_accuracy"] = known[name]
guess = 100 / len(study.pictures().classes(level))
figure = plots.dots(known, f"{level} named right by a logistic regression, %", "network", 100, line=guess)
plots.titled(figure, "Has each network learned anything?")

# %%
text = f"""**Takeaway.** From the activations of *no labels*, a regression names the variant of
{in_words(known["no labels"])} of the test pictures; from those of *permuted*, {in_words(known["permuted"])}."""
display(Markdown(text))

# %% [markdown]
# The networks with the three objectives were each trained on 96,000 pictures. *This task* began from weights trained on
# about six times as many, and was then trained on these variants. The three should therefore be compared only with each
# other, as briefly trained networks.

# %% [markdown]
# ## What do features respond to?
#
# We render scenes from half B of the test pictures without shadows, once as they are and again with one thing changed:
# a *part* is removed, the *paint* of a part turns red or blue, the *livery*, the *light* or the *background* is
# replaced, the camera turns (*azimuth* by 15°, *elevation* or *roll* by 10°), its *distance* changes by a quarter, or
# the aircraft's *place* shifts by a seventh of the picture.
#
# A feature's *image maximum* is its largest activation in a picture. Its *response* to a factor is the absolute change
# of its image maximum, as a share of its largest activation in any test picture, averaged over the scenes in which it
# is active. (For *part* and *paint*, we use every second scene to choose the part that the feature responds to most,
# and measure the response in the other scenes.)
#
# Some networks respond more strongly than others to any change. The figure therefore shows the mean response of a
# network's features as a multiple of the mean response of random directions in the same network.

# %%
widths = {
    stride: [study.network(own).shape(sites[name][stride])[2] for name, own in NETWORKS.items()] for stride in STRIDES
}
folders = {}
for stride, (name, own) in product(STRIDES, NETWORKS.items()):
    site, d_sae = sites[name][stride], comparison.common_width(widths[stride])
    folders[stride, name] = study.profile(own, site, study.seeds(own, site, d_sae, N_SEEDS))

# %%
profiles = []
for (stride, name), folder in folders.items():
    own = pd.read_parquet(folder / "profile.parquet")
    random = own[own["dictionary"] == comparison.RANDOM].set_index("factor")["value"]
    seeds = own[own["dictionary"] != comparison.RANDOM].groupby("factor", sort=False)
    spans = {"value": "mean", "low": "min", "high": "max", "n": "first", "times": "mean"}
    spans = seeds.agg(spans | {"times_low": "min", "times_high": "max"}).reset_index()
    profiles.append(spans.assign(stride=stride, network=name, random=spans["factor"].map(random)))
profiles = pd.concat(profiles, ignore_index=True).dropna(subset="value")

# %%
for row in profiles.itertuples():
    key = f"{row.stride}/{NETWORKS[row.network]}/{row.factor}"
    results |= {key: (row.value, row.low, row.high, row.n), f"{key}/random": row.random}
    results[f"{key}/times"] = (row.times, row.times_low, row.times_high, row.n)
names = {"times": "value", "times_low": "low", "times_high": "high"}
relative = profiles[["stride", "network", "factor", *names]].rename(columns=names)
panels = {f"cells of {stride} pixels": own for stride, own in relative.groupby("stride")}
figure = plots.profiles(panels, "mean response of features / of random directions", line=1)
plots.titled(figure, "What do features respond to?")

# %% [markdown]
# Each line spans the 95% intervals (over scenes) of all seeds. At the dotted line, features respond as strongly as
# random directions do. We say that two networks differ in a factor if their lines do not overlap. For each pair of
# networks, the table counts the combinations of factor and depth in which they differ:

# %%
by_row = {key: row for key, row in relative.set_index(["stride", "factor", "network"]).iterrows()}
apart = {pair: [] for pair in combinations(NETWORKS, 2)}
for (stride, factor), (first, second) in product(list(product(STRIDES, comparison.ALL)), apart):
    ends = [by_row.get((stride, factor, name)) for name in (first, second)]
    if all(each is not None for each in ends) and max(each["low"] for each in ends) > min(
        each["high"] for each in ends
    ):
        apart[first, second].append((stride, factor))
counts = pd.DataFrame({pair: len(found) for pair, found in apart.items()}, ["apart"]).T["apart"].unstack()
n_factors = 2 * len(comparison.ALL)
counts = counts.reindex(list(NETWORKS)[:-1], columns=list(NETWORKS)[1:]).map("{:g}".format).replace("nan", "")
counts.rename_axis(index=f"of {n_factors}", columns="apart")

# %%
trained_for = list(combinations(list(NETWORKS)[:3], 2))
loud = [f"{row.factor} at {row.stride} in {row.network}" for row in relative[relative["low"] > 1].itertuples()]
quiet = int((relative["high"] < 1).sum())
results |= {"quieter_than_random": (quiet, None, None, len(relative)), "louder_than_random": len(loud)}
for (a, b), found in apart.items():
    results[f"apart/{NETWORKS[a]}-{NETWORKS[b]}"] = (len(found), None, None, n_factors)

# %%
told_pairs = "; ".join(f"{a} and {b}: {len(apart[a, b])}" for a, b in trained_for)
least = min(len(apart[pair]) for pair in trained_for)
text = f"""**Takeaway.** Two networks with different objectives differ by more than the spread over seeds and scenes in
at least {least} of {n_factors} combinations of factor and depth ({told_pairs}). Features respond *less* than random
directions do in {quiet} of {len(relative)} lines of the figure, and *more* in {len(loud)}
({", ".join(loud) or "none"})."""
display(Markdown(text))

# %% [markdown]
# ## What is a feature about?
#
# A mean over features hides any feature that responds to one thing alone. We call a feature *about* a factor if the
# factor's share of all its responses is larger than it is for 99.5% of random directions in the same network. With ten
# factors, about one random direction in twenty passes this test. The table weights features by their activity.

# %%
tables = {key: pd.read_parquet(folder / "features.parquet") for key, folder in folders.items()}
about = pd.concat(
    [table.assign(stride=stride, network=name) for (stride, name), table in tables.items()], ignore_index=True
)
shares = about.pivot_table("mass", ["stride", "network", "dictionary"], "about", "sum", fill_value=0)
shares = shares.reindex(columns=list(comparison.ALL), fill_value=0)
is_random = shares.index.get_level_values("dictionary") == comparison.RANDOM
by_network = {"features": shares[~is_random], "random directions": shares[is_random]}

# %%
for (stride, name), own in by_network["features"].groupby(["stride", "network"]):
    null = by_network["random directions"].loc[(stride, name)].iloc[0]
    for factor in comparison.ALL:
        key, each = f"{stride}/{NETWORKS[name]}/about/{factor}", own[factor]
        results |= {key: (each.mean(), each.min(), each.max(), len(each)), f"{key}/random": null[factor]}
    results[f"{stride}/{NETWORKS[name]}/about_something"] = float(own.sum(axis=1).mean())

# %%
whole = {
    kind: 100 * own.sum(axis=1).groupby(["stride", "network"]).agg(["mean", "min", "max"])
    for kind, own in by_network.items()
}
rows = {}
for name, stride in product(NETWORKS, STRIDES):
    own, null = (each.loc[stride, name] for each in whole.values())
    rows[f"{name}, {stride} pixels"] = {"features": own["mean"], "least seed": own["min"], "largest seed": own["max"],
                                        "random directions": null["mean"]}  # fmt: skip
table = pd.DataFrame(rows).T
table.round(1).rename_axis("activation of features about one factor, %")

# %%
above = table.index[table["least seed"] > table["random directions"]]
results["about_more_than_random"] = (len(above), None, None, len(table))
both = table.loc[above].round().astype(int)
told = [f"{row}: {own['features']}%, random {own['random directions']}%" for row, own in both.iterrows()]
below = int((table["largest seed"] < table["random directions"]).sum())
text = f"""**Takeaway.** In {below} of {len(table)} combinations of network and depth, features about one factor have
a smaller share of all activity than random directions about one factor, in every seed; in {len(above)}, they have a
larger share, in every seed ({"; ".join(told) or "none"})."""
display(Markdown(text))

# %% [markdown]
# What do such features show? For each factor and network, the figure shows the three strongest test patches of the most
# active feature about that factor (16 pixels, first seed). The feature was chosen by its responses, not by its looks.
# White means that no feature is about that factor. First, the three networks that differ in their objective:

# %%
grid, columns = study.network().shape(sites["this task"][16])[:2], ["image", "row", "column"]
typical = {name: pd.read_parquet(folders[16, name] / "typical.parquet") for name in NETWORKS}
strips = {}
for name, factor in product(NETWORKS, comparison.ALL):
    own = typical[name][typical[name]["factor"] == factor][columns]
    strips[name, factor] = own.reset_index(drop=True).reindex(range(3))
first, second = list(NETWORKS)[:3], list(NETWORKS)[3:]
by_factor = {factor: pd.concat([strips[name, factor] for name in first]) for factor in comparison.ALL}
figure = crops_figure(by_factor, study.pictures(), grid)
plots.titled(figure, f"What do features about one factor show? ({', '.join(first)})")

# %% [markdown]
# And the other three:

# %%
by_factor = {factor: pd.concat([strips[name, factor] for name in second]) for factor in comparison.ALL}
figure = crops_figure(by_factor, study.pictures(), grid)
plots.titled(figure, f"What do features about one factor show? ({', '.join(second)})")

# %% [markdown]
# ## Do features show parts and classes?
#
# The table shows the measures of notebook 04, with the values for random directions in brackets.
#
# - *parts: AP* is the average precision of a part's best feature, averaged over parts. *n above* counts the parts whose
#   best feature beats the best random direction.
# - *variant*, *family* and *manufacturer* are the AUROC of each class's best feature, averaged over classes.
# - *1 feature*, *5 features*, *5 channels* and *5 of PCA* are the AUROC of logistic regressions that recognise families
#   from only that many features, channels or principal components (chance: 0.5).
# - *seeds* is the agreement of two seeds' decoders (0 is chance, 1 is identity), and *dead* the share of features that
#   are never active.

# %%
measured = []
for (stride, name), folder in folders.items():
    scores = pd.read_parquet(folder / "scores.parquet")
    kind = scores["dictionary"].where(~scores["dictionary"].str.startswith("seed"), "features")
    each = scores.groupby([kind, "measure"])["value"].agg(["mean", "min", "max", "size"]).reset_index()
    measured.append(each.assign(stride=stride, network=name))
measured = pd.concat(measured, ignore_index=True).set_index(["stride", "network", "dictionary", "measure"])
for (stride, name, kind, measure), row in measured.iterrows():
    key = f"{stride}/{NETWORKS[name]}/{measure}" + ("" if kind in ("features", "all") else f"/{kind}")
    results[key] = (row["mean"], row["min"], row["max"], int(row["size"]))

# %%
names = {"mean_ap": "parts: AP", "n_parts": "n above"} | {f"auroc_{each}": each for each in study.pictures().levels}
names |= {"probe_1": "1 feature", "probe_5": "5 features"}
mean = measured["mean"].unstack(["dictionary", "measure"]).reindex(product(STRIDES, NETWORKS))
own, null = (mean[kind][list(names)].map("{:.2f}".format) for kind in ("features", comparison.RANDOM))
table = (own + " (" + null + ")").rename(columns=names)
rest = {"5 channels": ("channels", "probe_5"), "5 of PCA": ("PCA", "probe_5"), "seeds": ("all", "seed_agreement")}
rest |= {"dead": ("features", "dead")}
table.assign(**{name: mean[key].round(2) for name, key in rest.items()})

# %%
least, null = (each.loc[16] for each in (measured["min"].unstack(["dictionary", "measure"]).reindex(mean.index), mean))
gain = (null["features", "mean_ap"] - null[comparison.RANDOM, "mean_ap"]).sort_values(ascending=False)
finds = int((least["features", "mean_ap"] > null[comparison.RANDOM, "mean_ap"]).sum())
others = null[[(kind, "probe_5") for kind in ("channels", "PCA", comparison.RANDOM)]].max(axis=1)
better = [name for name in NETWORKS if least.loc[name, ("features", "probe_5")] > others[name]]
agreed = mean["all", "seed_agreement"]
text = f"""**Takeaway.** At 16 pixels, the best features find parts better than random directions do in {finds} of
{len(gain)} networks (the largest difference in mean AP is {gain.iloc[0]:.2f}, in *{gain.index[0]}*). There, five
features tell families apart better than five channels, components or random directions do in {len(better)}
({", ".join(better) or "none"}). At either depth, two seeds agree by {agreed.max():.2f} at most."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
wanted = ["n_networks", "self_supervised_linear_accuracy", "permuted_linear_accuracy", "16/trained/part/times"]
wanted += ["32/hangar_parts/about/paint", "16/permuted/probe_5/channels"]
print("missing:", [name for name in wanted if name not in results])

# %%
value = {name: np.ravel(entry["value"] if isinstance(entry, dict) else entry)[0] for name, entry in results.items()}
study.record(NAME, {name: entry for name, entry in results.items() if np.isfinite(value[name])})
lines = [
    f"""Combinations of factor and depth, out of {n_factors}, in which two networks with different objectives differ:
    {told_pairs}.""",
    f"""Features about one factor have a larger share of all activity than random directions about one factor have in
    {len(above)} of {len(rows)} cases.""",
    f"At 16 pixels, the best features find parts better than random directions do in {finds} of {len(gain)} networks.",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **What objectives do at scale.** Three small networks saw the same scenes for the same number of steps, but each
#   objective may need its own schedule. One training run per objective says nothing about the spread between runs. And
#   *no labels* saw more varied crops.
# - **What architecture or pictures do.** *ImageNet* differs in both, and in its objective.
# - **That a feature means its factor.** A feature may respond to the background because it follows outlines, for
#   example.
# - **What larger networks do.** All these networks are small, and we compare them on one kind of picture.
