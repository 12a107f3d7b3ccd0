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
# **Question.** What makes features what they are: the network's architecture, the pictures, or what it was trained
# for? Studies that compare models with different objectives usually change the architecture and the data with them.
# Here all networks look at the same pictures, and we ask of each feature what it responds to, by changing one thing in
# a scene at a time: a part, its paint, the light, the background, where the camera stands.
#
# **Reads** the data set and the network of notebook 01. **Writes** `data/runs/<preset>/experiments/varied` (the
# changed scenes), `…/profile-<network>-<site>`, activations and autoencoders of each network, and the numbers in
# `data/runs/<preset>/results/07_compare_networks.json`.
#
# **Runtime** with the default preset on 2 CPU cores: some 12 minutes the first time, half of them for activations; one
# minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from itertools import product

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
# Six networks. Three are one ConvNeXt, trained from the same first weights on the same scenes of 192 other made-up
# variants for as many steps, by three objectives: *class labels*; *part masks*, the share of each part in a cell; and
# *no labels*, where two crops of a picture, and the same place in both, should look alike and others not. *This task*
# is the study's own ConvNeXt, which tells this study's variants apart; *permuted* is that with its weights in random
# order: it has learned nothing. *ImageNet* is EfficientNet-Lite0, which was shown photographs and never a rendered
# aircraft. To compare others, put their names here: any that timm's hub knows, where it can be reached, such as
# `convnextv2_tiny.fcmae`, `convnext_tiny.fb_in22k`, `convnext_tiny.dinov3_lvd1689m`, `convnext_base.clip_laion2b`.
#
# Each is opened at two depths, where a cell is 16 and 32 pixels wide. There, autoencoders have as many features for
# each network, and use 16 in a cell. Three seeds tell how far a number depends on the autoencoder.

# %%
study = Study.open()
NAME, results, small = "07_compare_networks", {}, study.config.name == "smoke"
NETWORKS = {"class labels": "hangar_classes", "part masks": "hangar_parts", "no labels": "hangar_self_supervised"}
NETWORKS |= {"this task": "trained", "permuted": "permuted", "ImageNet": "efficientnet_lite0"}
STRIDES, N_SEEDS = (16, 32), 2 if small else 3
sites = {
    name: dict(zip(STRIDES, comparison.sites_at(study.network(own)), strict=True)) for name, own in NETWORKS.items()
}
level = study.pictures().levels[0]
results["n_networks"] = len(NETWORKS)
if study.pictures().scenes is None:
    raise ValueError("these pictures are no scenes: one thing at a time cannot be changed in them")

# %% [markdown]
# ## Has each network learnt anything?
#
# A network whose activations tell nothing apart has no features worth a look. Can variants be told from activations,
# pooled over cells at the greater depth? By the vote of the ten training pictures that are most alike, and by a
# logistic regression on training pictures. Only *this task* was trained on these variants.

# %%
known = {}
for name, own in NETWORKS.items():
    given = {"network": own, "pictures": "all" if own == "trained" else "every1"}
    known[name] = comparison.accuracies(study.activations(sites[name][32], **given), level)
for (name, own), kind in product(NETWORKS.items(), ("knn", "linear")):
    results[f"{own.removeprefix('hangar_')}_{kind}_accuracy"] = known[name][kind]
linear = {name: entry["linear"] for name, entry in known.items()}
plots.dots(
    linear,
    f"{level} named right by a logistic regression, %",
    "network",
    100,
    line=100 / len(study.pictures().classes(level)),
)

# %%
unlabelled, none = known["no labels"], known["permuted"]
learnt = "has learnt" if unlabelled["linear"]["low"] > none["linear"]["high"] else "is not shown to have learnt"
text = f"""**Takeaway.** The network that saw no labels {learnt}: a regression on its activations names
{in_words(unlabelled["linear"])}, on those of permuted weights {in_words(none["linear"])}. By their neighbours' vote it
is {in_words(unlabelled["knn"])} and {in_words(none["knn"])}: the vote reads only what is easy to read."""
display(Markdown(text))

# %% [markdown]
# The dotted line is guessing. The three objectives were stopped after 96,000 pictures each; *this task* began from
# weights that had seen six times as many, and then saw these variants.

# %% [markdown]
# ## What do features respond to?
#
# Scenes of half B are rendered as they are and with one thing changed: a *part* removed, a part in another *paint*, a
# new *livery*, another *light* or *background*, the camera turned (*azimuth* by 15°, *elevation* and *roll* by 10°), a
# *distance* a quarter larger or smaller, a *place* one cell to the side. A feature's response is the change of its
# image maximum as a share of its range, averaged over scenes in which it is active. Which part it responds to is chosen
# on every second scene and measured on the others. Large changes of the picture change everything a little; so random
# directions of the same network stand beside the features (orange).

# %%
widths = {
    stride: [study.network(own).shape(sites[name][stride])[2] for name, own in NETWORKS.items()] for stride in STRIDES
}
saes, folders = {}, {}
for stride, (name, own) in product(STRIDES, NETWORKS.items()):
    site, d_sae = sites[name][stride], comparison.common_width(widths[stride])
    saes[stride, name] = study.seeds(own, site, d_sae, N_SEEDS)
    folders[stride, name] = study.profile(own, site, saes[stride, name])

# %%
profiles = []
for (stride, name), folder in folders.items():
    own = pd.read_parquet(folder / "profile.parquet")
    random = own[own["dictionary"] == comparison.RANDOM].set_index("factor")["value"]
    seeds = own[own["dictionary"] != comparison.RANDOM].groupby("factor", sort=False)
    spans = seeds.agg({"value": "mean", "low": "min", "high": "max", "n": "first"}).reset_index()
    profiles.append(spans.assign(stride=stride, network=name, random=spans["factor"].map(random)))
profiles = pd.concat(profiles, ignore_index=True)

# %%
for row in profiles.dropna(subset="value").itertuples():
    key = f"{row.stride}/{NETWORKS[row.network]}/{row.factor}"
    results |= {key: (row.value, row.low, row.high, row.n), f"{key}/random": row.random}
plots.profiles(
    profiles[profiles["stride"] == 16],
    "mean change of a feature's maximum, as a share of its range (cells of 16 pixels)",
)

# %% [markdown]
# Lines span the 95% intervals over scenes of all seeds. The same where cells are 32 pixels wide:

# %%
plots.profiles(
    profiles[profiles["stride"] == 32],
    "mean change of a feature's maximum, as a share of its range (cells of 32 pixels)",
)

# %%
apart = []
for (stride, factor), own in profiles.dropna().groupby(["stride", "factor"]):
    least, most = (own.loc[own["value"].agg(which)] for which in ("idxmin", "idxmax"))
    if most["low"] > least["high"]:
        words = f"{most['network']} {most['value']:.2f}, {least['network']} {least['value']:.2f}"
        apart.append((most["value"] - least["value"], f"{factor}, {stride} pixels: {words}"))

# %%
largest = "; ".join(text for _, text in sorted(apart, reverse=True)[:3]) or "none"
results["factors_apart"] = (len(apart), None, None, 2 * len(comparison.ALL))
lower = profiles.dropna()
lower = (lower["high"] < lower["random"]).mean()
text = f"""**Takeaway.** Between the networks that respond most and least, the lines are apart for {len(apart)} of
{2 * len(comparison.ALL)} factors and depths: {largest}, and so on. For the rest, seeds and scenes differ as much. In
{lower:.0%} of all rows, features respond less than random directions do."""
display(Markdown(text))

# %% [markdown]
# ## What is a feature about?
#
# A mean over features hides that some respond to one thing alone. A feature is *about* a factor if that has a larger
# share in its responses than in those of 99.5% of random directions of its network; with ten factors, about one in
# twenty random directions would be about something. Shares are of all activation, so that features that are hardly
# ever active count little.

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
shown = by_network["features"].groupby(["stride", "network"], sort=False).mean().loc[16].reindex(NETWORKS)
(100 * shown).round(1).rename_axis("share of activation, %: about", axis=1)

# %%
whole = {name: (100 * share).sum() for name, share in shown.iterrows()}
chance = 100 * by_network["random directions"].loc[16].sum(axis=1).mean()
told = "; ".join(f"{name} {share:.1f}%" for name, share in whole.items())
text = f"""**Takeaway.** At 16 pixels, features about one factor hold this much of all activation: {told}; random
directions {chance:.0f}%. Most activation is about nothing that was changed here."""
display(Markdown(text))

# %% [markdown]
# For each factor the feature of each network that is about it and most active, as the patches of test pictures in which
# it is strongest. They were chosen by their responses, not by their looks:

# %%
grid = study.network().shape(sites["this task"][16])[:2]
for name in NETWORKS:
    typical = pd.read_parquet(folders[16, name] / "typical.parquet")
    by_factor = {factor: own for factor in comparison.ALL if len(own := typical[typical["factor"] == factor])}
    display(Markdown(f"*{name}*"), crops_figure(by_factor, study.pictures(), grid))

# %% [markdown]
# ## Do features show parts and classes?
#
# The same features by the measures of notebook 04: mean average precision of each part's best feature (chosen on half
# A, scored on half B), how many of them beat the best of as many random directions, and how well one or five features
# tell the families apart (AUROC of a logistic regression on half B). Beside them the site's channels and their
# principal components, and how far two seeds agree.

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
table = measured["mean"].unstack(["dictionary", "measure"]).loc[16].reindex(NETWORKS)
wanted = [("features", "mean_ap"), (comparison.RANDOM, "mean_ap"), ("features", "n_parts")]
wanted += [(kind, "probe_5") for kind in ("features", "channels", "PCA", comparison.RANDOM)]
table[[*wanted, ("all", "seed_agreement")]].round(2)

# %%
precision, null = (table[kind, "mean_ap"] for kind in ("features", comparison.RANDOM))
told = "; ".join(
    f"{name} {precision[name]:.2f} (random directions {null[name]:.2f})"
    for name in (precision.idxmax(), precision.idxmin())
)
text = f"""**Takeaway.** At 16 pixels the mean average precision of parts' best features is highest and lowest for:
{told}. {int((precision > null).sum())} of {len(precision)} networks are above their own random directions."""
display(Markdown(text))

# %% [markdown]
# ## Which features do networks share?
#
# Two features are alike if they are active in the same cells. For each feature of one network, take the other's feature
# whose activations correlate best with its own over all cells of the test pictures. Chance: the same with the other
# network's pictures moved on by half their number. Shared is what 99.5% of chance does not reach.

# %%
inputs = {"acts": {}, "saes": {}}
for name, own in NETWORKS.items():
    given = {"network": own, "pictures": "all" if own == "trained" else "every1"}
    inputs["acts"][name] = study.activations(sites[name][16], **given)
    inputs["saes"][name] = saes[16, name]["seed 0"]
folder = study.stage("experiments/shared", comparison.share_features, {}, inputs)
shared = pd.read_parquet(folder / "shared.parquet")

# %%
for row in shared.itertuples():
    key = f"shared/{NETWORKS[row.first]}-{NETWORKS[row.second]}"
    results |= {f"{key}/share": (row.share, None, None, row.n), f"{key}/correlation": row.correlation}
(100 * shared.pivot(index="first", columns="second", values="share")).round(0).reindex(NETWORKS, columns=NETWORKS)

# %%
pairs = shared.sort_values("share", ascending=False)
most, least = pairs.iloc[0], pairs.iloc[-1]
typical = f"median correlation {most['correlation']:.2f}, by chance {most['chance']:.2f}"
text = f"""**Takeaway.** Most is shared of *{most["first"]}* with *{most["second"]}*: features with
{most["share"]:.0%} of its activation have a partner beyond chance ({typical}). Least of *{least["first"]}* with
*{least["second"]}*, {least["share"]:.0%}."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
print(
    "networks without a test of what they learnt:",
    sum(f"{own.removeprefix('hangar_')}_knn_accuracy" not in results for own in NETWORKS.values()),
)
value = {name: np.ravel(entry["value"] if isinstance(entry, dict) else entry)[0] for name, entry in results.items()}

# %%
written = study.record(NAME, {name: entry for name, entry in results.items() if np.isfinite(value[name])})
pairs = [f"{row['first']} with {row['second']} {row['share']:.0%}" for row in (most, least)]
best = precision.idxmax()
lines = [
    f"Networks differ in what their features respond to beyond seeds and scenes for {len(apart)} of"
    f" {2 * len(comparison.ALL)} factors and depths.",
    f"Few features are about one factor: at most {max(whole.values()):.0f}% of a network's activation.",
    f"{best.capitalize()} show parts best: mean average precision {precision[best]:.2f}, random {null[best]:.2f}.",
    f"Share of activation with a partner beyond chance: {pairs[0]} (most), {pairs[1]} (least).",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **What objectives do at scale.** Three small networks saw the same scenes for as many steps; each may need its own
#   schedule, and one training each says nothing of the spread between trainings.
# - **That a feature means its factor.** A feature can respond to the background since it follows an outline.
# - **What larger networks do.** All are small, and shown one kind of picture.
