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
# # 5. Ablate features
#
# **Question.** Do features do what they seem to? Three kinds of intervention, each with its controls. *Suppression*
# takes a feature out of the activations and asks what the classifier loses. *Blurring* takes away what is under a
# feature's peak in the picture. *Scene edits* take one part off the aircraft and render the scene again, every other
# pixel as it was. A sentence such as "feature 12 detects propellers" is printed only after tests that are also tried on
# dictionaries that learned little or nothing, and beside it stands the share of *random* features that pass.
#
# **Reads** `data/runs/<preset>/features` (notebook 04). **Writes** `…/experiments/<name>` and the numbers in
# `data/runs/<preset>/results/05_ablate_features.json`.
#
# **Runtime** with the default preset on 2 CPU cores: 4 minutes the first time, one minute after that. It tests
# 40 features on up to 80 pictures where forward passes are needed, and 70 scenes for each part.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from scipy.stats import spearmanr, wilcoxon

from aircraft_sae import features
from aircraft_sae import interventions as ablation

# %%
from aircraft_sae.activations import see_features
from aircraft_sae.metrics import median, point, with_interval
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser import InterventionBench
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The list of features is the one drawn in notebook 04 before any test; what is claimed of them was chosen on half A of
# the test pictures, and is tested on half B. Suppression at the last stage covers every feature and picture;
# experiments that need forward passes cover fewer. `FULL = True` takes 100 features and 240 pictures each.

# %%
study = Study.open()
NAME, results, config, FULL = "05_ablate_features", {}, study.config.sae, False
small = study.config.name == "smoke"
N_FEATURES, N_IMAGES = (100, 240) if FULL else (3, 4) if small else (40, 40)
SIGMA, WINDOW = 8, 64  # pixels of a picture of 224
NO_MASKS = "This data set holds photographs: parts can't be removed from them, so this can't be known here."

# %%
sae, index, acts = study.sae(), study.features(), study.activations()
pictures, network, table = study.pictures(), study.network(), index.table
trial = ablation.Trial.of(network, sae, pictures, acts, index)
half_b, in_b, test = trial[trial.in_b], trial.in_b, index.rows("test")
rows_b, size = test[in_b], network.size
window, sigma = round(WINDOW * size / 224), SIGMA * size / 224
parts, editable = list(pictures.region_names), pictures.scenes is not None

# %%
LIKES = {"local": study.config.local.site, "main": config.site}
claims = {like: study.claims(like) for like in LIKES}
frozen = claims["main"]
drawn_ids = frozen.query("chosen == 'random'")["feature_id"].tolist()
kinds_of_claim = frozen["chosen"].value_counts().to_dict()
print(f"{len(frozen)} claims (a feature and what it is said to show) to test: {kinds_of_claim}")

# %% [markdown]
# ## The strongest cases
#
# What may be said of a feature that seems to show a part comes in four tiers, each of which includes those before it.
# Everything is chosen on half A and measured on half B, and on scenes that chose nothing. *A null's best* is what a
# null dictionary offers for the same part by the same rule: random directions, an untrained autoencoder, an autoencoder
# whose decoder stays random (its encoder learns), and one of the network with permuted weights. The last two learn from
# an eighth of the cells.
#
# 1. *Suggestive*: average precision is above every null's best, and above the feature's own with the masks of another
#    picture of the same class.
# 2. *Specific*: so is AUROC among aircraft cells of one family and one place in the picture, by 0.05 or more. There,
#    0.5 is reached by knowing family and place alone.
# 3. *Causal in the scene*: without the part, the largest activation in its cells falls by 0.3 or more of the feature's
#    maximum (*R*), and by more than removing other parts, of at most twice the pixels, does to the same cells.
# 4. *Replicated*: two other seeds have a feature of tier 3 for the part.
#
# All tests are at q < 0.05 (Benjamini-Hochberg) over the claims of one kind. First three parts of the highest tier, and
# among these of the largest R, which is chosen on half B and flatters: for each the scene in which its feature is
# strongest, as it is and without the part. These are the tail; all parts follow.

# %%
judged, removals = {}, None
if editable:
    removals = study.removals()
    for like in LIKES:
        judged[like] = pd.read_parquet(study.tiers(like) / "tiers.parquet")
    responses = {like: ablation.Responses.of(study.sae(like), removals) for like in LIKES}

# %%
figure, pairs, names_ = Markdown(NO_MASKS), [], []
if editable:
    cases = judged["local"].query("claimant == 'local' and best").sort_values(["tier", "R"], ascending=False).head(3)
    scenes_ = pd.read_parquet(removals / "scenes.parquet")["scene"]
    for case in cases.itertuples():
        shown = responses["local"].of_part(case.part)[1]
        strongest = scenes_[shown[responses["local"].before[shown, case.feature_id].argmax()]]
        pair = [network.as_input(ablation.without(strongest, part, size, 2)) for part in (None, case.part)]
        pairs.append(torch.stack(pair))
        names_.append(f"{case.part.replace('_', ' ')} (feature {case.feature_id})")

# %% tags=["report"]
if editable:
    shown_, captions = [], []
    for pair, case, name in zip(pairs, cases.itertuples(), names_, strict=True):
        with torch.no_grad():
            heats = see_features(network, study.sae("local"), pair)[1][..., case.feature_id].numpy()
        shown_ += [plots.heat(network.as_picture(x), heat, heats.max()) for x, heat in zip(pair, heats, strict=True)]
        captions += [f"{name}: {heats[0].max():.1f}", f"without it: {heats[1].max():.1f}"]
    figure = plots.picture_grid([shown_], [captions])
display(figure)

# %% [markdown]
# ## Every part: how far its best feature gets
#
# *AP* and *AUROC* (within family and place) on half B, the nulls' largest beside them; *R*, what it is when other parts
# are removed, and the nulls' largest. Whatever is local loses when its place is emptied: a null's R can be as large, so
# that R speaks only together with tier 2. *Guess's AUROC* is that of a guess from the true outline and class, within
# the same strata; no feature has to exceed it. Probes are judged as features are, silent below their best threshold,
# which costs them AP.

# %%
columns = {"feature_id": "feature", "ap": "AP", "null_ap": "null's AP", "auroc": "AUROC", "null_auroc": "null's AUROC"}
columns |= {"guessed_auroc": "guess's AUROC", "R": "R", "others": "others' R", "null_R": "null's R"}
columns |= {"n_scenes": "scenes", "tier": "tier"}
for like, table_ in judged.items():
    own = table_[(table_["claimant"] == like) & table_["best"]].set_index("part").rename_axis(LIKES[like])
    display(own.sort_values(["tier", "R"], ascending=False)[list(columns)].rename(columns=columns).round(2))

# %%
for like, table_ in judged.items():
    own, before = table_[(table_["claimant"] == like) & table_["best"]], "" if like == "local" else "main/"
    for name in ("R", "null_R"):
        results[f"{before}{name}_mean"] = point(own[name].mean(), int(own[name].notna().sum()))
    results[f"{before}R_above_null"] = point(int((own["R"] > own["null_R"]).sum()), len(own))

# %%
told_R = [
    f"""at {site} {results[f"{before}R_mean"]["value"]:.2f}, of the nulls' largest
    {results[f"{before}null_R_mean"]["value"]:.2f}; larger than it for {results[f"{before}R_above_null"]["value"]}"""
    for before, site in zip(("", "main/"), LIKES.values(), strict=True)
    if editable
]
text = f"""**Takeaway.** That a feature falls with its part proves little by itself. Mean R over {len(parts)} parts:
{"; ".join(told_R)} of the parts."""
display(Markdown(text if editable else NO_MASKS))

# %% [markdown]
# ## How many parts?
#
# Tier 4 is asked of the trained seeds only: probes and nulls were not repeated for it.

# %%
counts = {}
for like, table_ in judged.items():
    best_ = table_[table_["best"]]
    for name, each in best_.groupby("claimant", sort=False):
        counts[like, name] = [int((each["tier"] >= tier).sum()) for tier in (1, 2, 3, 4)]

# %%
seeds_of = {like: [like, f"{like}-seed1", f"{like}-seed2"] for like in LIKES}
for like, before in {"local": "", "main": "main/"}.items():
    for tier in (1, 2, 3, 4) if editable else ():
        each = [counts[like, name][tier - 1] for name in seeds_of[like]]
        results[f"{before}parts_at_tier_{tier}"] = (int(np.median(each)), min(each), max(each), len(each))
        if tier < 4:
            results[f"{before}probe_parts_at_tier_{tier}"] = counts[like, "probes"][tier - 1]
            null = {name: own[tier - 1] for (site, name), own in counts.items() if site == like and "null" in name}
            results[f"{before}null_parts_at_tier_{tier}_max"] = max(null.values())
            results |= {f"{before}parts_at_tier_{tier}/{name}": own for name, own in null.items()}

# %% tags=["report"]
kinds = {"features": ("", ""), "probes": ("probe_", ""), "nulls, largest": ("null_", "_max")}
rows_ = [
    (f"{name}, {LIKES[like]}", "main/" * (like == "main"), *ends) for name, ends in kinds.items() for like in LIKES
]
reached = {}
for name, before, start, end in rows_ if editable else ():
    found_ = (results.get(f"{before}{start}parts_at_tier_{tier}{end}", np.nan) for tier in (1, 2, 3, 4))
    reached[name] = [np.ravel(each)[0] for each in found_]

# %% tags=["report"]
figure = Markdown(NO_MASKS)
if editable:
    (figure, ax), blues = plots.sheet(3.8), ["#C6DBEF", "#6BAED6", "#2171B5", "#08306B"]
    by_tier = pd.DataFrame(reached, [f"tier {tier}" for tier in (1, 2, 3, 4)]).T
    by_tier.plot.barh(ax=ax, color=blues, width=0.8)
    ax.invert_yaxis()
    ax.set(xlabel=f"parts, of {len(parts)}, whose best feature reaches the tier", xlim=(0, len(parts)))
display(figure)

# %%
told_tiers = {}
for like, before in {"main": "main/", "local": ""}.items() if editable else ():
    two, three, four = (results[f"{before}parts_at_tier_{tier}"] for tier in (2, 3, 4))
    nulls_2 = {name: own[1] for (site, name), own in counts.items() if site == like and "null" in name}
    most = max(nulls_2, key=nulls_2.get)
    told_tiers[like] = f"""Features reach tier 2 for {two[0]} of {len(parts)} parts (median of three seeds; {two[1]} to
    {two[2]}), tier 3 for {three[0]} ({three[1]} to {three[2]}), tier 4 for {four[0]}. """
    of_null = f"{most.removeprefix('null, ')}: tier 2 for {nulls_2[most]}, tier 3 for {counts[like, most][2]}"
    told_tiers[like] += f"The null that gets furthest, {of_null}." if nulls_2[most] else "No null reaches tier 2."

# %%
text = NO_MASKS
if editable:
    results["n_parts"] = len(parts)
    idle = results["null_parts_at_tier_2_max"] >= results["parts_at_tier_2"][0]
    no_gain = " At this stage the counts show no gain from a learned decoder." if idle else ""
    text = f"""**Takeaway, {LIKES["main"]}.** {told_tiers["main"]}

**Takeaway, {LIKES["local"]}.** {told_tiers["local"]}{no_gain}"""
display(Markdown(text))

# %% [markdown]
# A feature at tier 3 tells its part from other cells of the same family and place, and its activation there falls when
# the part is removed. Nothing here shows that the classifier uses the feature, or that the feature follows nothing
# else.

# %% [markdown]
# ## And a feature drawn at random?
#
# A random feature *claims* the part for which its average precision on half A is furthest above the 95th percentile of
# what the best of as many random directions reaches; most claim none. The tables are of a hundred random features of
# each dictionary. *Claims* counts those that claim a part, the columns after it how many of these claims reach each
# tier. (The bar comes from random directions of the trained network. So nulls claim nearly nothing by construction, and
# the permuted network's features meet a bar that was made of other activations.)

# %%
claimed = {}
for like, table_ in judged.items():
    own, each = table_[table_["chosen"] == "random"], table_.groupby("claimant", sort=False)
    asked = pd.DataFrame({"random features": each["n_random"].first(), "claims": own.groupby("claimant").size()})
    for tier in (1, 2, 3, 4):
        asked[f"tier {tier}"] = own[own["tier"] >= tier].groupby("claimant").size()
    asked, before = asked.fillna(0).astype(int), "" if like == "local" else "main/"
    null, three = asked[asked.index.str.startswith("null")], asked.reindex(seeds_of[like], fill_value=0)
    results[f"{before}null_random_claim_share_max"] = float((null["claims"] / null["random features"]).max())
    results[f"{before}null_random_tier_2_max"] = int(null["tier 2"].max())
    claimed[like] = [point(three[name].sum(), int(three["random features"].sum())) for name in ("claims", "tier 2")]
    display(asked.rename_axis(LIKES[like]))

# %%
for like, table_ in judged.items():
    own = table_[(table_["claimant"] == like) & (table_["chosen"] == "random")]
    asked, before = claims[like].query("chosen == 'random'"), "" if like == "local" else "main/"
    shares_ = {"claim": asked["part"].notna()} | {f"tier_{i}": own["tier"] >= i for i in (1, 2, 3, 4) if len(own)}
    results |= {f"{before}random_{name}_share": ablation.pass_share(each) for name, each in shares_.items()}
    results[f"{before}imprecise_share"] = float(own["imprecise"].mean()) if len(own) else 0.0

# %%
text = NO_MASKS
if editable:
    for before, own in zip(("", "main/"), claimed.values(), strict=True):
        results |= {
            f"{before}random_{name}_of_three_seeds": each for name, each in zip(("claims", "tier_2"), own, strict=True)
        }
    claimants = [f"""{own[0]["value"]:.0f} of {own[0]["n"]} claim a part and {own[1]["value"]:.0f} of these reach tier
    2""" for own in claimed.values()]  # fmt: skip
    text = f"""**Takeaway.** Most random features claim no part. At {LIKES["local"]}, of three seeds, {claimants[0]}; at
    {LIKES["main"]}, {claimants[1]}."""
display(Markdown(text))

# %% [markdown]
# ## One feature through every experiment
#
# Now one feature of the network's end: the first of the list's best matches (in photographs: the first random one).
# First the picture of half B in which it is strongest, with its map; second the same with the patch under its peak
# blurred, and the map that the network then gives. In the hangar also the scene rendered without shadows, and that once
# more without the part that the feature matches.

# %%
candidates = frozen[frozen["chosen"] == ("part" if parts else "random")]
patches = [(claim, index.patches(int(claim.feature_id), "top", 1, rows_b)) for claim in candidates.itertuples()]
active = [(claim, patch.iloc[0]) for claim, patch in patches if len(patch)]
if not active:
    raise ValueError(f"none of {len(patches)} features is active in the {len(rows_b)} pictures of half B: too few")
followed, pick = active[0]
feature_id, label = int(followed.feature_id), int(trial.labels[np.searchsorted(test, pick["image_row"])])
x = network.as_input(pictures.picture(pick["image"]))
place = ablation.Window.around(pick["row"], pick["column"], index.grid, size, window)
versions = {"as it is": x, f"blurred, sigma {sigma:.0f} px": ablation.patched(x, ablation.blur(x, sigma), place)}

# %%
if editable:
    scene, rays = (
        pictures.scenes.set_index("image").at[pick["image"], "scene"],
        study.config.dataset.hangar.supersampling,
    )
    plain, edit = (network.as_input(ablation.without(scene, part, size, rays)) for part in (None, followed.part))
    versions |= {"no shadows": plain, f"no shadows, without its {followed.part.replace('_', ' ')}": edit}

# %%
with torch.no_grad():
    seen, codes = see_features(network, sae, torch.stack(list(versions.values())))
maps, logit, top = codes[..., feature_id].numpy(), seen.logits[:, label], float(table.at[feature_id, "max"])
heated = [plots.heat(network.as_picture(each), heat, top) for each, heat in zip(versions.values(), maps, strict=True)]
shown = zip(versions, maps, logit, strict=True)
captions = [f"{name}: feature {heat.max():.2f}, logit {each:.2f}" for name, heat, each in shown]
plots.picture_grid([heated], [captions])

# %% [markdown]
# One feature and one picture show what is done, and nothing else. Both were chosen for being strong, so that what is
# lost here is more than what is lost in general.

# %% [markdown]
# ## Suppression: what does the classifier lose with each feature?
#
# Replace each cell's activations x by x - f d, with f the feature's activation and d its decoder direction; the part
# of x that the autoencoder does not explain stays. At the last stage only the mean over cells reaches the head, so
# the effect of every feature on every picture follows by arithmetic; a forward pass must agree. The effect is the
# change of the true class's logit *beyond the other classes'*: less the mean change of theirs. Controls: as much of
# a random direction (same length, drawn with the cells' covariance), and the feature's partner of like density and
# strength. If features mattered more than random directions, their histogram would lie to the right.

# %%
inputs = {"trial": trial, "index": index, "claims": frozen}
folder = study.stage("experiments/suppress", ablation.suppress_features, {}, inputs)
suppressed, own_random = (pd.read_parquet(folder / f"{name}.parquet") for name in ("features", "beyond_random"))
often = suppressed[suppressed["often"]]
paired = often[often["partner"] >= 0]

# %%
if trial.readout:
    few = slice(None, None, max(1, len(test) // 20))
    closed, passed, some = trial[few], trial[few], frozen["feature_id"].iloc[:10].tolist()
    passed.readout = None  # forward passes in place of the closed form
    ways = closed.suppress(some), passed.suppress(some)
    gap = max(np.abs(ways[0][name] - ways[1][name]).max() for name in ways[0])
    results["suppress_max_abs_error"] = point(gap, len(closed.rows) * len(some))
    print(f"closed form against forward pass: equal within 1e-4: {gap < 1e-4}")
    assert gap < 1e-4

# %%
results["share_beyond_control_95"] = ablation.pass_share(own_random["beyond"])
both, (figure, ax) = often.rename(columns=lambda name: f"{name}s")[["features", "random directions"]], plots.sheet(3.4)
sns.histplot(both + 1e-6, stat="percent", common_norm=False, bins=50, log_scale=True, element="step", ax=ax)
ax.set(xlabel="mean |change of the true class's logit beyond the others'|", ylabel="share, %")
display(figure)

# %%
sized = {name: float(paired[name].median()) for name in ("feature", "random direction", "feature of like density")}
results |= {f"suppress/{name}/median_abs_specificity": point(value, len(paired)) for name, value in sized.items()}

# %%
like_density = sized["feature of like density"]
beyond_95 = in_words(results["share_beyond_control_95"], unit="features")
less = sized["feature"] < sized["random direction"]
beside_random = ": the median feature does less than a random direction, and few do more" if less else ""
text = f"""**Takeaway.** The median feature's suppression moves the true class's logit by {sized["feature"]:.4f}
relative to the other classes' (absolute; {len(paired)} features, n = {in_b.sum()} pictures). Removing as much of a
random direction moves it by {sized["random direction"]:.4f}, of its partner's direction by {like_density:.4f}. Of
{len(own_random)} random features {beyond_95} are beyond 95% of 99 random directions of their own length, where 5% would
be by chance{beside_random}."""

# %%
display(Markdown(text))

# %% [markdown]
# A median hides strong features. Here are the 20 with the largest mean absolute effect on half A (of those active in 8
# of its pictures or more), and the 20 random directions with the largest, each removed as much as its feature is. We
# suppress each in the 16 pictures of half B in which its feature is strongest on average over cells. Shown is the size
# of the change of the true class's logit.

# %%
half_a, tail = trial[~in_b], []
active_a = (half_a.strength > 0).numpy()
rare = active_a.sum(0) < min(8, len(active_a) // 4)
kinds = {"features": sae.W_dec.detach(), "random directions": trial.random} if trial.readout else {}
for of, directions in kinds.items():
    by_all = half_a.suppress(range(sae.d_sae), directions=directions)["specificity"]
    on_a = np.where(rare, 0, ablation.mean_over_active(np.abs(by_all), active_a))
    for j in on_a.argsort()[::-1][: min(20, (on_a > 0).sum())].tolist():
        top = half_b.strength[:, j].topk(min(16, len(half_b.rows)))
        some = half_b[top.indices[top.values > 0].numpy()]
        made = some.suppress([j], directions=directions[[j]]) if len(some.rows) else {}
        tail += [{"of": of} | {name: np.abs(each).mean() for name, each in made.items()}] if made else []

# %%
figure = Markdown("Without a closed form, this needs a forward pass for each feature and picture, so it is left out.")
if tail:
    tail = pd.DataFrame(tail)
    figure, ax = plots.sheet(2.0)
    sns.stripplot(tail, x="logit", y="of", hue="of", legend=False, jitter=0.25, alpha=0.7, ax=ax)
    ax.set(xlabel="mean |change of the true class's logit|", ylabel="", xlim=(0, None))
display(figure)

# %%
if len(tail):
    sizes_ = {of: each.dropna() for of, each in tail.groupby("of")[["logit", "margin", "confidence"]]}
    for of, each in sizes_.items():
        results |= {f"suppress/tail/{of}/{name}": with_interval(each[name], np.ones(len(each))) for name in each}
    logit_ = [in_words(results[f"suppress/tail/{of}/logit"], percent=False, unit=of) for of in sizes_]
    points_ = [100 * results[f"suppress/tail/{of}/confidence"]["value"] for of in sizes_]
    text = f"""**Takeaway.** In the pictures in which they are strongest, suppressing the {len(sizes_["features"])}
    features changes the true class's logit by {logit_[0]} and its probability by {points_[0]:.0f} points, in size. The
    strongest of as many random directions change them by {logit_[1]} and {points_[1]:.0f} points."""
    display(Markdown(text))

# %% [markdown]
# This is exact, and nearly a tautology: it says which way the head's weights point. It is no evidence of what the
# network before the head does with a feature.

# %% [markdown]
# ## Dose and response
#
# The same with features multiplied by 0, 0.5, 2 and 4, for the random features of the list and their random
# directions.

# %%
doses, inputs = [0.0, 0.5, 1.0, 2.0, 4.0], {"trial": trial}
folder = study.stage("experiments/dose", ablation.dose_response, {"features": drawn_ids, "doses": doses}, inputs)
dosed, means = pd.read_parquet(folder / "doses.parquet"), {}
for name, suffix in (("features", ""), ("random directions", "_random")):
    own = dosed[dosed["of"] == name]
    by_dose = own[own["n"] > 0].pivot(index="feature_id", columns="dose", values="logit")
    rank = [spearmanr(doses, each).statistic for each in by_dose.to_numpy()]
    results[f"dose/share_monotone{suffix}"] = point((np.abs(rank) > 0.999).mean(), len(rank))
    sizes = {dose: each["size"].to_numpy() for dose, each in own.groupby("dose")}
    results |= {f"dose/{name}/x{dose:g}": with_interval(each, np.ones(len(each))) for dose, each in sizes.items()}
    means[name] = [sizes[dose].mean() for dose in doses]

# %%
figure, ax = plots.sheet(3.6)
axes = {"xlabel": "activation multiplied by", "ylabel": "mean |change of the\ntrue class's logit|"}
pd.DataFrame(means, doses).plot(style=["o-", "s--"], ax=ax, **axes)
display(figure)

# %%
four, four_random = (in_words(results[f"dose/{name}/x4"], percent=False, unit=name) for name in means)
text = f"""**Takeaway.** Four times the activation changes the logit by {four}, as much of a random direction by
{four_random}. (The logit itself, and the mean over features, not the median: hence larger than above.)"""
display(Markdown(text))

# %% [markdown]
# ## Does it hold where a network follows? Stage 3
#
# At the stage before the last, a whole stage of the network works on what is left after suppression. The local
# autoencoder's features, drawn at random by density, and forward passes; the control is a random direction again.
# As before, the change is that of the true class's logit beyond the others', over pictures in which the feature is
# active. On the line, both do as much; dots above it are features that do more than their random direction.

# %%
site3, sae3, index3 = LIKES["local"], study.sae("local"), study.features("local")
acts3, frozen3 = study.activations(site3), claims["local"]
drawn3 = frozen3.query("chosen == 'random'")["feature_id"].sample(N_FEATURES, random_state=0).tolist()
trial3 = ablation.Trial.of(network, sae3, pictures, acts3, index3)
settings = {"features": drawn3, "n_images": 2 * N_IMAGES}
folder = study.stage("experiments/suppress-local", ablation.suppress_some, settings, {"trial": trial3})
effect3 = pd.read_parquet(folder / "features.parquet")

# %%
both3 = effect3[(effect3["feature"] > 0) & (effect3["random"] > 0)]
ratios = np.log(both3["feature"] / both3["random"]).to_numpy() if len(both3) else np.zeros(1)
entry = median(ratios)
entry |= {name: float(np.exp(entry[name])) for name in ("value", "low", "high")}
results["stage3/median_effect_over_random_direction"] = entry
results["stage3/median_abs_specificity"] = point(effect3["feature"].median(), len(drawn3))
results["stage3/features_above_random_direction"] = ablation.pass_share(ratios > 0)
results["stage3/wilcoxon_p"] = float(wilcoxon(ratios).pvalue) if np.any(ratios) else 1.0

# %%
figure, ax = plots.sheet(5, width=6)
both = effect3[["random", "feature"]].clip(lower=1e-6)
sns.scatterplot(both, x="random", y="feature", alpha=0.6, ax=ax)
ends = [both.min(axis=None), both.max(axis=None)]
ax.plot(ends, ends, color=plots.GREY, linewidth=0.8)
beyond_others = "mean |change beyond other classes|"
ax.set(xscale="log", yscale="log", xlabel=f"random direction: {beyond_others}", ylabel=f"feature: {beyond_others}")
display(figure)

# %%
above3, n_pictures3 = in_words(results["stage3/features_above_random_direction"]), min(2 * N_IMAGES, len(rows_b))
text = f"""**Takeaway.** At {site3}, suppressing the median random feature moves the true class's logit (beyond the
others') {entry["value"]:.2f} times as much as a random direction of equal length ({entry["low"]:.2f} to
{entry["high"]:.2f}, n = {entry["n"]} features, {n_pictures3} pictures); {above3} of them do more than theirs
(two-sided Wilcoxon p = {results["stage3/wilcoxon_p"]:.1g}, whichever does more). Both are small: the median feature
moves it by {results["stage3/median_abs_specificity"]["value"]:.4f}."""
display(Markdown(text))

# %% [markdown]
# ## Blurring: is what lies under the peak what the feature needs?
#
# The window is 64 pixels of 224, twice a cell's width. For each feature, half of its pictures are those of half B in
# which it is strongest, half are any others in which it is active; the window lies around the picture's peak in both.
# Controls on the same picture, two of these four drawn at random: a window on the aircraft, one anywhere, the window on
# the aircraft where the feature is lowest (in photographs: anywhere), and the peak of another feature of like density.
# A control is *matched* if its change in pixels is within a fifth of the target's; only these count (how many, below).
# The change of the logit is also given beyond that of a control on the same picture, above all of windows on the
# aircraft (in photographs, where its outline is not known: of those where the feature is lowest). *Mediation*: after
# blurring, put the feature alone back, and ask which share of the logit's loss returns; control: a random direction.

# %%
half = N_FEATURES // 2 if parts else N_FEATURES
blur_list = pd.Series(drawn_ids).sample(min(half, len(drawn_ids)), random_state=0).tolist()
matches = [j for j in frozen.query("chosen == 'part'")["feature_id"].drop_duplicates() if j not in blur_list]
blur_list += matches[: N_FEATURES - len(blur_list)]
picks = ablation.choose_picks(index, blur_list, rows_b, N_IMAGES)
settings, inputs = {"sigma": sigma, "window": window}, {"trial": trial, "index": index, "picks": picks}
folder = study.stage("experiments/blur", ablation.blur_peaks, settings, inputs)
blur, picked = pd.read_parquet(folder / "blur.parquet"), pd.read_parquet(folder / "suppressed.parquet")
print(f"{blur['feature_id'].nunique()} features, {len(picks):,} feature-picture pairs, {len(blur):,} forward passes")

# %%
kinds = {"target": "under the peak", "foreground": "on the aircraft", "anywhere": "anywhere"}
kinds |= {"lowest": "on the aircraft, where it is lowest" if parts else "where it is lowest"}
kinds |= {"other": "another feature's peak"}
present = {kind: title for kind, title in kinds.items() if (blur["matched"] & (blur["where"] == kind)).any()}
lost = {title: ablation.feature_lost(blur, kind) for kind, title in present.items()}
results |= {f"blur/{title}/feature_lost": entry for title, entry in lost.items()}
for kind, title in present.items():
    own = blur[(blur["where"] == kind) & blur["matched"]].groupby("image_row")
    sums = {name: own[name].agg(["sum", "count"]) for name in ("logit", "margin", "confidence")}
    results |= {f"blur/{title}/{name}": with_interval(each["sum"], each["count"]) for name, each in sums.items()}

# %%
beside, short = "foreground" if parts else "lowest", {"foreground": "aircraft"}  # its name in the results
chosen = {"strongest": "top", "any in which it is active": "random"}
choices = {"all pictures": blur} | {name: blur[blur["how"] == how] for name, how in chosen.items()}
beyond = {name: ablation.beyond_controls(each, [beside]) for name, each in choices.items()}
results |= {f"blur/logit_beyond_{short.get(beside, beside)}/{name}": entry for name, entry in beyond.items()}
less_at = {kind: ablation.beyond_controls(blur, [kind]) for kind in present if kind != "target"}
results |= {f"blur/logit_beyond_{short.get(kind, kind)}": entry for kind, entry in less_at.items()}
at_peak = {name: ablation.feature_lost(each, "target") for name, each in choices.items()}
results |= {f"blur/under the peak, {name}/feature_lost": entry for name, entry in at_peak.items()}
results["blur/matched_controls_share"] = float(blur.loc[blur["where"] != "target", "matched"].mean())
mediation = ablation.mediation(blur)
results |= {f"mediation/{name}": entry for name, entry in mediation.items()}

# %%
in_pictures = {"unit": "pictures"}
logit_beyond = in_words(beyond["all pictures"], percent=False, **in_pictures)
back, back_random = (in_words(entry, **in_pictures) for entry in mediation.values())
lost_peak, lost_beside = (in_words(lost[title], **in_pictures) for title in ("under the peak", kinds[beside]))
matched_share = results["blur/matched_controls_share"]
text = f"""**Takeaway.** A blur under the peak takes {lost_peak} of the feature's maximum, a matched one {kinds[beside]}
{lost_beside}. Beyond a matched window of that kind the logit changes by {logit_beyond}. Putting the feature back
returns {back} of the logit's loss, as much of a random direction {back_random}. Of the controls,
{matched_share:.0%} are matched."""

# %%
display(Markdown(text))

# %%
columns = {
    "maximum lost": {title: in_words(entry) for title, entry in lost.items()},
    "change of the logit": {title: in_words(results[f"blur/{title}/logit"], percent=False) for title in lost},
    "logit under the peak, less here": {kinds[kind]: in_words(each, percent=False) for kind, each in less_at.items()},
}
display(pd.DataFrame(columns).fillna("–").rename_axis("blurred window"))
columns = {
    "maximum lost under the peak": [in_words(entry) for entry in at_peak.values()],
    f"logit there, less {kinds[beside]}": [in_words(entry, percent=False) for entry in beyond.values()],
}
which = ["all", "in which the feature is strongest", "others in which it is active"]
pd.DataFrame(columns, pd.Index(which, name="pictures"))

# %% [markdown]
# Does any direction lose as much when its own peak is blurred? The same for a few random directions, principal
# components and, where parts are known, probes, each at its own peaks; and beside them the random features alone.

# %%
nulls = study.nulls()
dictionaries, lost_by = {name: nulls[name].sae for name in ("random directions", "PCA")}, {}
if parts:
    dictionaries["probes"] = probes = features.probe_dictionary(sae, acts, features.Regions.of(acts, pictures))

# %%
for name, one in dictionaries.items():
    where = f"main-{'' if name == 'probes' else 'null-'}{name.replace(' ', '-')}"
    its = study.features(where, sae=one, splits=["test"], selectivity=False)
    its_b = its.rows("test")[in_b]
    living = pd.Series(np.flatnonzero(its.maxima(its_b).max(0)))
    few = living.sample(min(max(1, N_FEATURES // 4), len(living)), random_state=0)
    own = {"index": its, "picks": ablation.choose_picks(its, few, its_b, N_IMAGES)}
    own["trial"] = ablation.Trial.of(network, one, pictures, acts, its)
    folder = study.stage(f"experiments/blur-{where}", ablation.blur_peaks, settings, own)
    lost_by[name] = ablation.feature_lost(pd.read_parquet(folder / "blur.parquet"), "target")

# %%
lost_by = {"random features": ablation.feature_lost(blur[blur["feature_id"].isin(drawn_ids)], "target")} | lost_by
results |= {f"blur/under the peak, {name}/feature_lost": entry for name, entry in lost_by.items()}
display(plots.dots(lost_by, "share of the maximum lost under the peak, %", "", 100))

# %%
told_lost = ", ".join(f"{name} {in_words(entry, **in_pictures)}" for name, entry in lost_by.items())
at_random, way = lost_by["random features"], {}
for name in ("random directions", "PCA"):
    less, more_ = at_random["high"] < lost_by[name]["low"], at_random["low"] > lost_by[name]["high"]
    way[name] = "less than" if less else "more than" if more_ else "as much as"
alone = "" if set(way.values()) == {"more than"} else " So the loss alone is no evidence of a detector."
text = f"""**Takeaway.** Lost of the maximum by a blur under its own peak: {told_lost}. Random features lose
{way["random directions"]} random directions and {way["PCA"]} principal components.{alone} (Intervals are over pictures,
for these {N_FEATURES // 4} directions of a kind.)"""
display(Markdown(text))

# %% [markdown]
# ## Do blurring and suppression agree?
#
# For each feature, over its pictures: does the logit fall most by blurring where it falls most by suppression?
# Spearman's rank correlation; for the median feature, its interval by drawing features anew, for each feature by
# drawing its pictures anew. The figure shows the correlations of all features, beside the same with each feature's
# pictures in random order.

# %%
shuffled, at_target, rng = blur.copy(), blur["where"] == "target", np.random.default_rng(0)
in_turn = blur[at_target].groupby("feature_id")["logit"]
shuffled.loc[at_target, "logit"] = np.concatenate([rng.permutation(each) for _, each in in_turn])
agree, by_chance = (ablation.agreement(each, picked) for each in (blur, shuffled))
values, null = (each["spearman"].dropna().to_numpy() for each in (agree, by_chance))
values, null = (each if len(each) else np.zeros(1) for each in (values, null))
for end, table_, each in (("", agree, values), ("_shuffled", by_chance, null)):
    results[f"blur_suppress_spearman_median{end}"] = median(each)
    results[f"blur_suppress_same_sign{end}"] = float(table_["same_sign"].mean())
results["blur_suppress_spearman_above_0"] = ablation.pass_share((agree["low"] > 0).to_numpy())
over = point(np.nan_to_num(spearmanr(agree["suppressed"], agree["blurred"]).statistic), len(agree))
results["blur_suppress_spearman_over_features"] = over

# %%
figure, ax = plots.sheet(3.6)
both = {"as they are": values, "each feature's pictures in random order": null}
sns.histplot(both, stat="percent", common_norm=False, bins=np.linspace(-1, 1, 21), element="step", ax=ax)
ax.set(xlabel="Spearman's rank correlation", ylabel="share of features, %")
display(figure)

# %%
median_, chance = (results[f"blur_suppress_spearman_median{end}"] for end in ("", "_shuffled"))
above_0 = in_words(results["blur_suppress_spearman_above_0"], unit="features")
same_sign, same_by_chance = (results[f"blur_suppress_same_sign{end}"] for end in ("", "_shuffled"))
text = f"""**Takeaway.** Over a feature's pictures, the rank correlation is {median_["value"]:.2f} in the median feature
({median_["low"]:.2f} to {median_["high"]:.2f}, n = {median_["n"]} features of about {N_IMAGES} pictures), and with
each feature's pictures in random order {chance["value"]:.2f} ({chance["low"]:.2f} to {chance["high"]:.2f}). A
feature's own interval is above 0 in {above_0}, where 2.5% would be by chance. Blurring and suppression have the same
sign in {same_sign:.0%} of the pairs of a feature and a picture, with pictures in random order in
{same_by_chance:.0%}."""
display(Markdown(text))

# %% [markdown]
# Blurring a window changes all features that look there, suppression one. Agreement says that the two point the same
# way, not that the one works through the other; that is what mediation asks.

# %% [markdown]
# ## Does a feature detect a class?
#
# *Detector of a class*, on half B: AUROC is at least 0.9 and above that of the best feature, chosen on half A, of each
# of four null dictionaries (the permuted network's on a third of the pictures); suppression hurts the class more than
# the others, and more than 999 random directions do (by rank); and two other seeds have the feature (cosine of decoder
# and encoder at least 0.7). A random feature's claim is the class that stands out most on half A; tests are at q < 0.05
# over the list. Beside them each feature's random direction is judged, with the feature's own AUROC.

# %%
verdicts, shares, only, rivals = {}, {}, {"splits": ["test"], "selectivity": False}, []
for name in ("random directions", "untrained", "frozen decoder", "permuted network"):
    null = study.nulls()[name]._asdict()
    rivals.append(study.features(f"main-null-{name.replace(' ', '-')}", **null, **only))

# %%
for like, own_sae in {"local": sae3, "main": sae}.items():
    its_trial = trial if like == "main" else trial3
    others = [study.sae(f"{like}-seed{seed}", like=like, seed=own_sae.cfg.seed + seed) for seed in (1, 2)]
    given = {"trial": its_trial, "index": study.features(like), "claims": claims[like], "others": others}
    given |= {"suppressed": suppressed if like == "main" else None, "removals": removals}
    given |= {"tiers": study.tiers(like) if editable else None, "nulls": rivals if like == "main" else []}
    folder = study.stage(f"experiments/verdicts-{like}", ablation.verdict_tables, {}, given)
    verdicts[like] = ablation.Verdicts.open(folder)
classes, null_classes = verdicts["main"].classes, pd.read_parquet(folder / "null_classes.parquet")

# %% tags=["report"]
results["random_pass_share_classes"] = shares["features, all tests"] = ablation.pass_share(classes["passes"])
shares["features, no seeds"] = ablation.pass_share(classes["shown"])
shares["null, random directions, no seeds"] = ablation.pass_share(null_classes["shown"])
results |= {f"pass_share/class: {name}": entry for name, entry in shares.items()}
plots.dots(shares, "claims about a class that pass, %", "claims", 100)

# %%
passed, by_class = classes[classes["passes"]], in_words(results["random_pass_share_classes"], unit="features")
without_seeds = [shares[f"{name}, no seeds"]["value"] for name in ("features", "null, random directions")]
named = [f"feature {j}, *{name}*" for j, name in zip(passed["feature_id"], passed["class"], strict=True)]
text = f"""**Takeaway.** As detectors of a class, {by_class} pass; without the seeds' test {without_seeds[0]:.0%} of the
features and {without_seeds[1]:.0%} of their random directions (with the features' own AUROC). Those that pass:
{"; ".join(named) or "none"}. The random features with the smallest p, *specificity* (change of the class's logit beyond
the others' when suppressed) beside their random directions' (*control*):"""
display(Markdown(text))
facts = "feature_id level class auroc null_auroc specificity control q seed_match verdict why".split()
classes.sort_values("p").head(8)[facts].round(3)

# %% [markdown]
# ## Try it yourself
#
# One picture, its features under sliders, and a brush that blurs cells. The widget needs a running kernel.

# %%
bench = InterventionBench(study)
display(bench)

# %% [markdown]
# That some set of features changes a prediction says nothing of what these features mean.

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file.

# %% tags=["nbval-check-output"]
print("pictures of half A in the claims' tests:", len(set(picks["image_row"]) - set(rows_b)))
assert set(picks["image_row"]) <= set(rows_b)

# %%
number = {name: entry["value"] if isinstance(entry, dict) else np.ravel(entry)[0] for name, entry in results.items()}
study.record(NAME, {name: results[name] for name, value in number.items() if np.isfinite(value)})  # nan: untested
final = study.results(NAME)
value = {name: entry["value"] for name, entry in final.items()}

# %%
lines = [f"{told_tiers[like]} ({LIKES[like]}.)" for like in told_tiers]
if editable:
    lines += [
        f"""Most random features claim no part: of three seeds, {claimants[0]} at {LIKES["local"]},
        {claimants[1]} at {LIKES["main"]}. That a feature falls with its part means little alone: mean R of best
        features {value.get("main/R_mean", np.nan):.2f}, of the nulls' largest
        {value.get("main/null_R_mean", np.nan):.2f} ({LIKES["main"]})."""
    ]

# %%
name = "suppress/{}/median_abs_specificity"
by_median = [value[name.format(of)] for of in ("feature", "random direction")]
lines += [
    f"""Suppressing the median feature moves the logit by {by_median[0]:.4f}, as much of a random direction by
    {by_median[1]:.4f} (beyond the other classes'). Of random features
    {in_words(final["share_beyond_control_95"], unit="features")} do more than 95% of random directions; by chance 5%
    would."""
]

# %%
name = "blur/under the peak, {}/feature_lost"
under = [value[name.format(of)] for of in ("random features", "random directions")]
returned = [value[f"mediation/{of}"] for of in ("the feature", "a random direction")]
lines += [
    f"""A blur under the peak takes {under[0]:.0%} of a random feature's maximum and {under[1]:.0%} of a random
    direction's. Putting the feature back returns {returned[0]:.0%} of the logit's loss, a random direction
    {returned[1]:.0%}.""",
    f"""As detectors of a class, {in_words(final["random_pass_share_classes"], unit="random features")} pass every
    test.""",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That a feature that fails is nothing.** It may follow what has no mask here, or a part from one side only. Tiers
#   are of claims, not of features.
# - **That removal singles features out.** A null's best can lose as much when the part goes; tier 3 stands on tier 2.
# - **That the classifier uses what a feature shows.** Removing a part and suppressing a feature are separate tests.
# - **How the classifier computes.** Suppression at the last stage is arithmetic; blurring and edits change more than
#   one feature.
# - **Photographs.** Renders without shadows are not the pictures the network learned from.
