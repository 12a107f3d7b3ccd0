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
# **Question.** Does what a network was trained *for* show in its features? Studies that compare models with different
# objectives usually change architecture and data with them. Here three networks differ in their objective alone, and
# three others stand beside them. All look at the same pictures, and we ask of each feature what it responds to, by
# changing one thing in a scene at a time: a part, its paint, the light, the background, where the camera stands.
#
# **Reads** the data set and the network of notebook 01. **Writes** `data/runs/<preset>/experiments/varied` (the
# changed scenes), `…/profile-<network>-<site>`, activations and autoencoders of each network, and the numbers in
# `data/runs/<preset>/results/07_compare_networks.json`.
#
# **Runtime** with the default preset on 2 CPU cores: some 14 minutes the first time, half of them for activations; one
# minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from itertools import combinations, product

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

# %%
from aircraft_sae.features.reconstruction import random_dictionaries
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
# *no labels*, where two crops of a picture, and the same place in both, should look alike and others not; its crops and
# colours vary more, as that objective needs. Between these three, nothing else differs. *This task* is the study's own
# ConvNeXt, which tells this study's variants apart; in an earlier training it was also told which cells *ImageNet*
# finds alike. *Permuted* is that network with permuted weights: it has learnt nothing. *ImageNet* is
# EfficientNet-Lite0, which was shown photographs and never a rendered aircraft. To compare more, add their names at the
# end: any that timm's hub knows, where it can be reached, such as `convnextv2_tiny.fcmae`, `convnext_tiny.fb_in22k`,
# `convnext_tiny.dinov3_lvd1689m`, `convnext_base.clip_laion2b`.
#
# Each is opened at two depths, where a cell is 16 and 32 pixels wide. There, autoencoders have as many features for
# each network (a multiple of all their widths), and activate 16 of them in a cell. They are trained on an eighth of the
# cells that notebook 03 takes. Three seeds tell how far a number depends on the autoencoder.

# %%
study = Study.open()
if study.pictures().scenes is None:
    raise ValueError("these pictures are no scenes: one thing at a time cannot be changed in them")
NAME, results, small = "07_compare_networks", {}, study.config.name == "smoke"
NETWORKS = {"class labels": "hangar_classes", "part masks": "hangar_parts", "no labels": "hangar_self_supervised"}
NETWORKS |= {"this task": "trained", "permuted": "permuted", "ImageNet": "efficientnet_lite0"}
STRIDES, N_SEEDS = (16, 32), 2 if small else 3
sites = {name: dict(zip(STRIDES, comparison.sites_at(study.network(own), STRIDES), strict=True))
         for name, own in NETWORKS.items()}  # fmt: skip
level = study.pictures().levels[0]
results["n_networks"] = len(NETWORKS)

# %% [markdown]
# ## Has each network learnt anything?
#
# If a network's activations cannot separate variants, its features mean little. Two readers try it on activations of
# the greater depth, pooled over cells: the vote of the ten training pictures that are most alike, and a logistic
# regression on training pictures. Only *this task* was trained on these variants. The dotted line is guessing.

# %%
known = {}
for name, own in NETWORKS.items():
    given = {"network": own, "pictures": "all" if own == "trained" else "every1"}
    known[name] = comparison.accuracies(study.activations(sites[name][32], **given), level)
for (name, own), kind in product(NETWORKS.items(), ("knn", "linear")):
    results[f"{own.removeprefix('hangar_')}_{kind}_accuracy"] = known[name][kind]
linear, guess = {name: entry["linear"] for name, entry in known.items()}, 100 / len(study.pictures().classes(level))
plots.dots(linear, f"{level} named right by a logistic regression, %", "network", 100, line=guess)

# %%
unlabelled, none = known["no labels"], known["permuted"]
learnt = "has learnt" if unlabelled["linear"]["low"] > none["linear"]["high"] else "is not shown to have learnt"
text = f"""**Takeaway.** The network that saw no labels {learnt}: a regression on its activations names
{in_words(unlabelled["linear"])}, on those of permuted weights {in_words(none["linear"])}. By their neighbours' vote it
is {in_words(unlabelled["knn"])} and {in_words(none["knn"])}."""
display(Markdown(text))

# %% [markdown]
# The three objectives were stopped after 96,000 pictures each; *this task* began from weights trained on six times as
# many, and was then trained on these variants. The three are compared as they are, after a short training.

# %% [markdown]
# ## What do features respond to?
#
# Scenes of half B of the test pictures (the half that claims are made on) are rendered without shadows, as they are
# and with one thing changed: a *part* removed, a part *painted* red or blue, a new *livery*, another *light* or
# *background*, the camera turned (*azimuth* by 15°, *elevation* and *roll* by 10°), a *distance* a quarter larger or
# smaller, a *place* a seventh of the picture to the side. A feature's response is the change of its image maximum as a
# share of its range, averaged over scenes in which it is active. Which part it responds to is chosen on every second
# scene and measured on the others.
#
# Some networks respond more to whatever changes. So each network's features are compared with random directions in the
# same network: a *profile* is their mean response to each factor as a multiple of theirs.

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
plots.profiles(panels, "mean response of features, times that of random directions", line=1)

# %% [markdown]
# Lines span the 95% intervals, over scenes, of all seeds; at the dotted line, features respond as random directions do.
# Two networks differ where their lines do not overlap:

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
counts.reindex(list(NETWORKS)[:-1], columns=list(NETWORKS)[1:]).rename_axis(index=f"of {n_factors}", columns="apart")

# %%
trained_for = list(combinations(list(NETWORKS)[:3], 2))
known = profiles.loc[profiles["network"].isin(list(NETWORKS)[:3]), ["stride", "factor"]].drop_duplicates()
same = [f"{factor} at {stride}" for stride, factor in known.itertuples(index=False)
        if not any((stride, factor) in apart[pair] for pair in trained_for)]  # fmt: skip
loud = [f"{row.factor} at {row.stride} in {row.network}" for row in relative[relative["low"] > 1].itertuples()]
quiet = int((relative["high"] < 1).sum())
results |= {"quieter_than_random": (quiet, None, None, len(relative)), "louder_than_random": len(loud)}
for (a, b), found in apart.items():
    results[f"apart/{NETWORKS[a]}-{NETWORKS[b]}"] = (len(found), None, None, n_factors)

# %%
told_pairs = "; ".join(f"{a} and {b} in {len(apart[a, b])}" for a, b in trained_for)
text = f"""**Takeaway.** The three networks of one architecture respond differently beyond seeds and scenes, of
{n_factors} factors and depths: {told_pairs}. For none of the three pairs: {", ".join(same) or "no factor"}. In {quiet}
of {len(relative)} rows features respond less than random directions do, and more in: {", ".join(loud) or "none"}."""
display(Markdown(text))

# %% [markdown]
# ## What is a feature about?
#
# A mean over features hides that some respond to one thing alone. A feature is *about* a factor if that has a larger
# share in its responses than in those of 99.5% of random directions of its network; with ten factors, about one in
# twenty random directions would be about something. Shares are of all activation, so that features that are hardly
# ever active count little. Each network's own random directions stand beside its features.

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
told = [f"{row} ({own['features']}%, random {own['random directions']}%)" for row, own in both.iterrows()]
below = int((table["largest seed"] < table["random directions"]).sum())
text = f"""**Takeaway.** In {len(above)} of {len(table)} networks and depths, all seeds' features are about one factor
for more of their activation than random directions are: {"; ".join(told) or "none"}. In {below} all are for less."""
display(Markdown(text))

# %% [markdown]
# For each factor the most active feature about it, of the first seed, as the three test patches in which it is
# strongest; white where no feature is about it. They were chosen by their responses, not by their looks, however
# little of all activation they hold. Three networks a figure, three patches each, in the order that is said above it.

# %%
grid, columns = study.network().shape(sites["this task"][16])[:2], ["image", "row", "column"]
typical = {name: pd.read_parquet(folders[16, name] / "typical.parquet") for name in NETWORKS}
strips = {}
for name, factor in product(NETWORKS, comparison.ALL):
    own = typical[name][typical[name]["factor"] == factor][columns].head(3).reset_index(drop=True).reindex(range(3))
    strips[name, factor] = own
for names in (list(NETWORKS)[i : i + 3] for i in range(0, len(NETWORKS), 3)):
    by_factor = {factor: pd.concat([strips[name, factor] for name in names]) for factor in comparison.ALL}
    display(Markdown(", ".join(f"*{name}*" for name in names)), crops_figure(by_factor, study.pictures(), grid))

# %% [markdown]
# ## Do features show parts and classes?
#
# The same features by the measures of notebook 04, in brackets those of random directions: mean average precision of
# each part's best feature (chosen on half A, scored on half B); *n above*, how many of these beat the best of other
# random directions; AUROC of each class's best feature, mean over classes, at each level. *1 feature*, *5 features* and
# so on are the AUROC, on half B, of logistic regressions for the classes of the second level (chance: 0.5), beside
# channels and principal components. *Seeds* is the agreement of two seeds' decoders (0: chance, 1: the same), *dead*
# the share of features that are never active.

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
text = f"""**Takeaway.** At 16 pixels, parts' best features surpass random directions in all seeds in {finds} of
{len(gain)} networks, by most in *{gain.index[0]}* ({gain.iloc[0]:.2f}). Five features tell classes better than five
channels, components or random directions in all seeds in {len(better)} ({", ".join(better) or "none"}). Decoders of two
seeds agree to {agreed.min():.2f} to {agreed.max():.2f}."""
display(Markdown(text))

# %% [markdown]
# ## Which features do networks share?
#
# Two features are alike if they are active in the same cells. For each feature of one network, take the other's feature
# whose activations correlate best with its own over all cells of the test pictures; the table has the median, weighted
# by activity, of the row's network with the column's. On the diagonal is the ceiling: the network's other seed. In
# brackets is the null: the same of one draw of random directions in both networks.

# %%
inputs = {"acts": {}, "dictionaries": {}}
for i, (name, own) in enumerate(NETWORKS.items()):
    seen = study.activations(sites[name][16], own, "all" if own == "trained" else "every1")
    two = list(saes[16, name].values())[:2]
    inputs["acts"][name], inputs["dictionaries"][name] = seen, [*two, *random_dictionaries(two[0], seen, (2 + i,))]
folder = study.stage("experiments/shared", comparison.share_features, {}, inputs)
shared = pd.read_parquet(folder / "shared.parquet")

# %%
for row in shared.itertuples():
    key = f"shared/{NETWORKS[row.first]}-{NETWORKS[row.second]}"
    results |= {f"{key}/share": (row.share, None, None, row.n), f"{key}/correlation": row.correlation}
    results |= {f"{key}/chance": row.chance} | ({} if row.first == row.second else {f"{key}/random": row.random})
null = shared["random"].map(" ({:.2f})".format).where(shared["random"].notna(), "")
shared["shown"] = shared["correlation"].map("{:.2f}".format) + null
shared.pivot(index="first", columns="second", values="shown").reindex(list(NETWORKS), columns=list(NETWORKS))

# %%
pairs = shared[shared["first"] != shared["second"]].assign(gain=lambda own: own["correlation"] - own["random"])
most, least, n_above = (
    pairs.loc[pairs["gain"].idxmax()],
    pairs.loc[pairs["gain"].idxmin()],
    int((pairs["gain"] > 0).sum()),
)
results["shared_more_than_random"] = (n_above, None, None, len(pairs))
text = f"""**Takeaway.** In {n_above} of {len(pairs)} ordered pairs, features of the first have better partners in the
second than random directions have. By most: *{most["first"]}* in *{most["second"]}* ({most["correlation"]:.2f}, random
directions {most["random"]:.2f}); by least: *{least["first"]}* in *{least["second"]}* ({least["correlation"]:.2f},
{least["random"]:.2f})."""
display(Markdown(text))

# %% [markdown]
# These are point values of one seed and one draw, without intervals. The diagonal compares in which cells features of
# two seeds are active, *seeds* above their directions: the two need not agree.
#
# ## Takeaways

# %% tags=["nbval-check-output"]
wanted = ["n_networks", "self_supervised_knn_accuracy", "permuted_knn_accuracy", "16/trained/part/times"]
wanted += [
    "32/hangar_parts/about/paint",
    "16/permuted/probe_5/channels",
    "shared/hangar_parts-hangar_classes/correlation",
]
print("missing:", [name for name in wanted if name not in results])

# %%
value = {name: np.ravel(entry["value"] if isinstance(entry, dict) else entry)[0] for name, entry in results.items()}
study.record(NAME, {name: entry for name, entry in results.items() if np.isfinite(value[name])})
lines = [
    f"Of {n_factors} factors and depths, networks of one architecture differ in: {told_pairs}.",
    f"In {len(above)} of {len(rows)} cases features are more about one factor than random directions, in {below} less.",
    f"Parts' best features surpass random directions in {finds} of {len(gain)} networks.",
    f"Features have better partners in other networks than random directions have in {n_above} of {len(pairs)} pairs.",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **What objectives do at scale.** Three small networks saw the same scenes for as many steps; each may need its own
#   schedule, and one training each says nothing about the spread between trainings. That *no labels* saw more varied
#   crops and colours may count for as much as its objective.
# - **What architecture or pictures do.** *ImageNet* differs in both, and in its objective.
# - **That a feature means its factor.** A feature can respond to the background because it follows an outline.
# - **What larger networks do.** All are small, and shown one kind of picture.
