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
# **Question.** Do features do what they seem to do?
#
# Why care: "feature 12 detects propellers" is easy to say. It should mean that the feature tells propellers from their
# surroundings better than directions that were not learned, grows weaker when the propeller is gone, and has a
# counterpart in other seeds. This notebook intervenes in three ways. *Scene edits* take a part off the aircraft and
# render the scene again. *Blurring* removes detail under a feature's peak. *Suppression* removes the feature from the
# activations and asks what the classifier loses. Each has its own controls. Beside the best features, we report how
# many *random* features pass.
#
# **Reads** the features of notebook 04. **Writes** `data/runs/<preset>/experiments/<name>`, the activations of scenes
# from which a part was removed, and the numbers in `data/runs/<preset>/results/05_ablate_features.json`.
#
# **Runtime** with the default preset on 2 CPU cores: four minutes the first time, one minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from scipy.stats import wilcoxon

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
# Notebook 04 listed the features to test before any test: a hundred drawn at random, and the best matches of each part.
# Every claim about them was chosen on half A of the test pictures, and is tested here on half B. Experiments that need
# forward passes cover 40 features, with up to 80 pictures each; `FULL = True` covers more of both.

# %%
study = Study.open()
NAME, results, config, FULL = "05_ablate_features", {}, study.config.sae, False
small = study.config.name == "smoke"
N_FEATURES, N_IMAGES = (100, 240) if FULL else (3, 4) if small else (40, 40)
SIGMA, WINDOW = 8, 64  # pixels of a picture of 224
NO_MASKS = "These pictures are photographs. Parts cannot be removed from them, so this cannot be tested here."

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
BEFORE = {"local": "", "main": "main/"}  # what the names of results begin with
claims = {like: study.claims(like) for like in LIKES}
frozen = claims["main"]
drawn_ids = frozen.query("chosen == 'random'")["feature_id"].tolist()
print(f"{len(frozen)} claims to test: {frozen['chosen'].value_counts().to_dict()}")

# %% [markdown]
# ## What do blurring and removal do to one feature?
#
# We take one feature of the network's end, the first of the best matches (on photographs: the first random one), and
# the picture of half B in which it is strongest. We blur the patch under its peak. In the hangar, we also render the
# scene without shadows, and then once more without the part that the feature matches (if the scene shows enough of it).

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
    scene = pictures.scenes.set_index("image").at[pick["image"], "scene"]
    both = study.vary("followed", [scene], edits=["part"], most=1, parts=[followed.part])
    for image, part in both.table[["image", "part"]].to_numpy():
        caption = "no shadows" + f", no {part.replace('_', ' ')}" * bool(part)
        versions[caption] = network.as_input(both.picture(image))
with torch.no_grad():
    seen, codes = see_features(network, sae, torch.stack(list(versions.values())))
maps, logit, top = codes[..., feature_id].numpy(), seen.logits[:, label], float(table.at[feature_id, "max"])

# %%
heated = [plots.heat(network.as_picture(each), heat, top) for each, heat in zip(versions.values(), maps, strict=True)]
shown = zip(versions, maps, logit, strict=True)
captions = [f"{name}: feature {heat.max():.2f}, logit {each:.2f}" for name, heat, each in shown]
plots.titled(plots.picture_grid([heated], [captions]), "What do blurring and removal do to one feature?")

# %% [markdown]
# We chose this feature and picture because the activation is strong, so what it loses here is no measure of what
# features generally lose. The rest of the notebook measures that, and how much a null loses.

# %% [markdown]
# ## How far does the best feature of each part get?
#
# A claim can climb four tiers, each of which also demands everything below it. The nulls are four dictionaries whose
# decoder directions were not learned from this network: random directions (with the covariance of its cells), an
# untrained autoencoder, one whose decoder stays random while its encoder learns, and one trained on the permuted
# network (the last two with the short training of notebook 03). *A null's best* is its feature for the part, chosen by
# the same rule. All tests are at q < 0.05 (Benjamini-Hochberg).
#
# 1. *Suggestive*: the feature's average precision (AP) is above that of every null's best, and above its own AP when
#    each picture's masks are swapped for those of another picture of the same class.
# 2. *Specific*: its AUROC among aircraft cells of the same family and place in the picture is also above that of every
#    null's best, by at least 0.05. Knowing family and place alone gives 0.5.
# 3. *Causal in the scene*: when the part is removed, the activation in the part's cells falls by a share *R* of the
#    feature's largest activation in the scene (over scenes, both are summed before we divide). R is at least 0.3, and
#    larger than when other parts, of similar size or smaller, are removed.
# 4. *Replicated*: in each of two other seeds, the part's best feature reaches tier 3, too. (It need not be the same
#    feature. Notebook 04 asks how many features recur.)
#
# Notebook 04 had two more nulls, the network's channels and its principal components. Neither is used here: channels
# are what the network learned, and components are the directions in which its cells vary most. For some parts their AP
# in notebook 04 is above that of the four nulls used here: with them among the nulls, fewer parts might pass.

# %%
judged, removals = {}, study.removals() if editable else None
for like in LIKES if editable else ():
    judged[like] = pd.read_parquet(study.tiers(like) / "tiers.parquet")
columns = {"feature_id": "feature", "ap": "AP", "null_ap": "null's AP", "auroc": "AUROC", "null_auroc": "null's AUROC"}
columns |= {"guessed_auroc": "guess's AUROC", "R": "R", "others": "R, other parts", "null_R": "null's R"}
columns |= {"n_scenes": "scenes", "tier": "tier"}
by_part = {}
for like, table_ in judged.items():
    own = table_[(table_["claimant"] == like) & table_["best"]].set_index("part").rename_axis(LIKES[like])
    by_part[like] = own.sort_values(["tier", "R"], ascending=False)[list(columns)].rename(columns=columns).round(2)

# %% [markdown]
# First the local autoencoder, first seed. The *guess* knows the true outline and class of the aircraft; features need
# not beat it. Where no scene has another part of similar size or smaller, *R, other parts* is empty, and R is tested
# against 0 instead.

# %%
display(by_part["local"] if editable else Markdown(NO_MASKS))

# %% [markdown]
# And the network's end:

# %%
display(by_part["main"] if editable else Markdown(NO_MASKS))

# %% [markdown]
# What do the top cases look like? These are the first three parts of the second table, which is sorted by tier and then
# by R. (R was measured on these very scenes, so this choice flatters.) Each pair shows the scene in which the feature
# is strongest, with the part and without it. The lower row shows the same for a null's best feature. For this row, the
# three nulls that read the trained network are drawn a second time, and we show the one with the largest R for the part
# (so it need not be the table's null). Captions give the largest activation anywhere in the picture; R counts only the
# part's own cells.

# %%
cases, asked = by_part["main"].head(3) if editable else pd.DataFrame(), {"best feature": [], "best null": []}
if editable:
    nulls = {f"null, {kind}": each.sae for kind, each in study.nulls("main", 1).items() if each.network == "trained"}
    tried = judged["main"][judged["main"]["claimant"].isin(nulls) & judged["main"]["best"]]
    tried = tried.sort_values("R", ascending=False).drop_duplicates("part").set_index("part")
    asked["best feature"] = [(part, j, sae) for part, j in cases["feature"].items()]
    rows = tried.reindex(cases.index).dropna(subset="R")
    asked["best null"] = [(part, int(row.feature_id), nulls[row.claimant]) for part, row in rows.iterrows()]

# %%
shown_, captions, known = {kind: [] for kind in asked}, {kind: [] for kind in asked}, {}
removed = study.activations(pictures=removals) if editable else None
for kind, (part, j, own) in ((kind, each) for kind, some in asked.items() for each in some):
    responses = known[id(own)] = known.get(id(own)) or ablation.Responses.of(own, removed, removals)
    its = responses.edits[responses.edits["part"] == part]
    row = its.index[responses.maxima[its["number"], j].argmax()]
    both = removals.table["image"][[its["number"][row], row]]
    pair = torch.stack([network.as_input(removals.picture(image)) for image in both])
    with torch.no_grad():
        heats = see_features(network, own, pair)[1][..., j].numpy()
    shown_[kind] += [plots.heat(network.as_picture(x), heat, heats.max()) for x, heat in zip(pair, heats, strict=True)]
    captions[kind] += [f"{part.replace('_', ' ')} ({j}): {heats[0].max():.1f}", f"without it: {heats[1].max():.1f}"]

# %% tags=["report"]
figure, rows = Markdown(NO_MASKS), {kind: pair for kind, pair in shown_.items() if pair}
if editable:
    figure = plots.picture_grid(list(rows.values()), [captions[kind] for kind in rows], list(rows))
    figure = plots.titled(figure, "What happens when the part is removed?")
display(figure)

# %%
told = []
for like, table_ in judged.items():
    own = table_[(table_["claimant"] == like) & table_["best"]]
    for name in ("R", "null_R"):
        results[f"{BEFORE[like]}{name}_mean"] = point(own[name].mean(), int(own[name].notna().sum()))
    results[f"{BEFORE[like]}R_above_null"] = point(int((own["R"] > own["null_R"]).sum()), len(own))
    own, null = own["R"].mean(), own["null_R"].mean()
    told += [f"At {LIKES[like]} mean R is {own:.2f} for the best features, and {null:.2f} for each part's best null."]
text = f"""**Takeaway.** {" ".join(told)} Where a null's best falls as much, R alone is no evidence; tier 3 therefore
builds on tier 2 (n = {len(parts)} parts)."""
display(Markdown(text if editable else NO_MASKS))

# %% [markdown]
# Any direction that responds locally loses activation when its place is emptied. That is why a null can have a large R,
# and why tier 3 builds on tier 2, at which a feature has to beat the nulls.

# %% [markdown]
# ## How many parts reach each tier?
#
# We count parts for three seeds, for *probes* (directions fitted to part labels, which serve as a ceiling), and for a
# second draw of the nulls. Tier 4 applies to the seeds only; *by chance* is the number of parts expected there if the
# three seeds reached tier 3 independently of each other. A probe is silent below its best threshold, which costs it
# some AP.

# %%
counts = {}
for like, table_ in judged.items():
    for name, each in table_[table_["best"]].groupby("claimant", sort=False):
        counts[like, name] = [int((each["tier"] >= tier).sum()) for tier in (1, 2, 3, 4)]
seeds_of = {like: [like, f"{like}-seed1", f"{like}-seed2"] for like in LIKES}
for (like, before), tier in ((each, tier) for each in BEFORE.items() for tier in (1, 2, 3, 4) if editable):
    each = [counts[like, name][tier - 1] for name in seeds_of[like]]
    results[f"{before}parts_at_tier_{tier}"] = (int(np.median(each)), min(each), max(each), len(each))

# %%
for (like, before), tier in ((each, tier) for each in BEFORE.items() for tier in (1, 2, 3) if editable):
    results[f"{before}probe_parts_at_tier_{tier}"] = counts[like, "probes"][tier - 1]
    null = {name: own[tier - 1] for (site, name), own in counts.items() if site == like and "null" in name}
    results[f"{before}null_parts_at_tier_{tier}_max"] = max(null.values())
    results |= {f"{before}parts_at_tier_{tier}/{name}": own for name, own in null.items()}
for like, before in BEFORE.items() if editable else ():
    reached_3 = judged[like].query("best and tier >= 3").groupby("claimant")["part"].nunique()
    own, *others = (int(reached_3.get(name, 0)) for name in seeds_of[like])
    results[f"{before}replicated_by_chance"] = float(own * np.prod([each / len(parts) for each in others]))

# %%
kinds = {"features": ("", ""), "probes": ("probe_", ""), "nulls, largest": ("null_", "_max")}
reached = {}
for (name, (start, end)), like in ((kind, like) for kind in kinds.items() for like in LIKES if editable):
    found_ = (results.get(f"{BEFORE[like]}{start}parts_at_tier_{tier}{end}", np.nan) for tier in (1, 2, 3, 4))
    reached[f"{name}, {LIKES[like]}"] = [np.ravel(each)[0] for each in found_]

# %% tags=["report"]
figure = Markdown(NO_MASKS)
if editable:
    (figure, ax), blues = plots.sheet(3.8), ["#C6DBEF", "#6BAED6", "#2171B5", "#08306B"]
    pd.DataFrame(reached, [f"tier {tier}" for tier in (1, 2, 3, 4)]).T.plot.barh(ax=ax, color=blues, width=0.8)
    ax.invert_yaxis()
    ax.set(xlabel=f"parts, of {len(parts)}, whose best feature reaches the tier (features: median of three seeds)")
    ax.set_xlim(0, len(parts))
    figure = plots.titled(figure, "For how many parts does a feature pass the tests?")
display(figure)

# %%
told_tiers, results["n_parts"] = {}, len(parts)
for like in ("main", "local") if editable else ():
    before = BEFORE[like]
    two, three, four = (results[f"{before}parts_at_tier_{tier}"] for tier in (2, 3, 4))
    null_2, null_3 = (results[f"{before}null_parts_at_tier_{tier}_max"] for tier in (2, 3))
    by_chance = results[f"{before}replicated_by_chance"]
    alone = int(by_part[like].loc[by_part[like]["tier"] >= 3, "R, other parts"].isna().sum())
    told_tiers[like] = f"""At {LIKES[like]}, features reach tier 2 for {two[0]} of {len(parts)} parts (median of three
    seeds; {two[1]} to {two[2]}; best null: {null_2}), tier 3 for {three[0]} ({three[1]} to {three[2]}; best null:
    {null_3}), and tier 4 for {four[0]} (by chance: {by_chance:.1f}). (Of the first seed's parts at tier 3, {alone} had
    no other part of similar size to be compared with.)"""
display(Markdown("\n\n".join(f"**Takeaway.** {each}" for each in told_tiers.values()) if editable else NO_MASKS))

# %% [markdown]
# A feature at tier 3 tells cells that show its part from other cells of the same family and place, and its activation
# there falls when the part is removed. Nothing here shows that the classifier uses the feature, or that the feature
# follows nothing else. Where a null reaches as many parts as the features do, learning gained nothing by this count.

# %% [markdown]
# ## How far does a random feature get?
#
# The best features were searched for. A feature drawn at random *claims* the part for which its AP on half A is
# furthest above a bar. To set the bar, we draw as many random directions as there are features, and take the highest
# AP among them; the bar is the 95th percentile over 20 such draws. For a hundred random features of each dictionary,
# the tables count those that claim a part, and the claims that reach each tier. (The bar is set by random directions in
# the trained network, so random directions should rarely claim a part.)

# %%
claimed, tables = {}, {}
for like, table_ in judged.items():
    own, each = table_[table_["chosen"] == "random"], table_.groupby("claimant", sort=False)
    asked = pd.DataFrame({"random features": each["n_random"].first(), "claims": own.groupby("claimant").size()})
    for tier in (1, 2, 3, 4):
        asked[f"tier {tier}"] = own[own["tier"] >= tier].groupby("claimant").size()
    tables[like] = asked = asked.fillna(0).astype(int).rename_axis(LIKES[like])
    null, three = asked[asked.index.str.startswith("null")], asked.reindex(seeds_of[like], fill_value=0)
    results[f"{BEFORE[like]}null_random_claim_share_max"] = float((null["claims"] / null["random features"]).max())
    results[f"{BEFORE[like]}null_random_tier_2_max"] = int(null["tier 2"].max())
    claimed[like] = [point(three[name].sum(), int(three["random features"].sum())) for name in ("claims", "tier 2")]

# %%
display(tables["main"] if editable else Markdown(NO_MASKS))

# %%
display(tables["local"] if editable else Markdown(NO_MASKS))

# %%
for like, table_ in judged.items():
    own = table_[(table_["claimant"] == like) & (table_["chosen"] == "random")]
    asked, before = claims[like].query("chosen == 'random'"), BEFORE[like]
    shares_ = {"claim": asked["part"].notna()} | {f"tier_{i}": own["tier"] >= i for i in (1, 2, 3, 4) if len(own)}
    results |= {f"{before}random_{name}_share": ablation.pass_share(each) for name, each in shares_.items()}
    results[f"{before}imprecise_share"] = float(own["imprecise"].mean()) if len(own) else 0.0
    names = ("random_claims_of_three_seeds", "random_tier_2_of_three_seeds")
    results |= {f"{before}{name}": each for name, each in zip(names, claimed[like], strict=True)}

# %%
told_random = [
    f"""At {LIKES[like]}, {own[0]["value"]:.0f} of {own[0]["n"]} random features claim a part (three seeds; in each
    null, at most {results[f"{BEFORE[like]}null_random_claim_share_max"]:.0%} do), and {own[1]["value"]:.0f} of these
    claims reach tier 2."""
    for like, own in claimed.items()
]
display(Markdown("\n\n".join(f"**Takeaway.** {each}" for each in told_random) if editable else NO_MASKS))

# %% [markdown]
# A feature that claims no part is not meaningless: the hangar has masks for twelve parts, and for nothing else. But
# anyone who meets a feature in a gallery should know how often a random feature gets as far as a claim.

# %% [markdown]
# ## What does the classifier lose when a feature is suppressed?
#
# *Suppression* replaces each cell's activations x by x - f d, where f is the feature's activation and d its decoder
# direction. What the autoencoder does not explain stays as it is. At the last stage only the mean over cells reaches
# the head, so the effect on the logits needs no forward pass: we compute it from that mean, through the head's
# normalisation and its weights. We report the change of the true class's logit *relative to the other classes* (minus
# their mean change). There are two controls: a random direction of the same length, drawn with the covariance of the
# cells, and the direction of a partner feature with similar density and strength.

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
    passed.readout = None  # forward passes instead of the closed form
    ways = closed.suppress(some), passed.suppress(some)
    gap = max(np.abs(ways[0][name] - ways[1][name]).max() for name in ways[0])
    results["suppress_max_abs_error"] = point(gap, len(closed.rows) * len(some))
    assert gap < 1e-4

# %%
results["share_beyond_control_95"] = ablation.pass_share(own_random["beyond"])
both, (figure, ax) = often.rename(columns=lambda name: f"{name}s")[["features", "random directions"]], plots.sheet(3.6)
sns.histplot(both + 1e-6, stat="percent", common_norm=False, bins=50, log_scale=True, element="step", ax=ax)
ax.set(xlabel="mean |change of the true class's logit, relative to the others| (log scale)", ylabel="share, %")
plots.titled(figure, "Does the classifier lose more with a feature than with a random direction?")

# %%
sized = {name: float(paired[name].median()) for name in ("feature", "random direction", "feature of like density")}
results |= {f"suppress/{name}/median_abs_specificity": point(value, len(paired)) for name, value in sized.items()}
text = f"""**Takeaway.** Suppressing the median feature moves the true class's logit, relative to the others, by
{sized["feature"]:.4f}, a random direction by {sized["random direction"]:.4f}, and the partner's direction by
{sized["feature of like density"]:.4f} ({len(paired)} features, each where it is active in half B).
{in_words(results["share_beyond_control_95"], unit="features")} of the random features have a larger effect than 95% of
random directions of their own length (chance: 5%)."""
display(Markdown(text))

# %% [markdown]
# A median hides the strongest features. We therefore also take the 20 features with the largest effect on half A, and
# the 20 random directions with the largest effect there. Each is suppressed in the 16 pictures of half B in which it is
# strongest. (Each random direction borrows the activations of one feature.)

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
figure = Markdown("Without a closed form, this would take a forward pass for each feature and picture: left out.")
if tail:
    tail = pd.DataFrame(tail)
    figure, ax = plots.sheet(2.2)
    sns.stripplot(tail, x="logit", y="of", hue="of", legend=False, jitter=0.25, alpha=0.7, ax=ax)
    ax.set(xlabel="mean |change of the true class's logit|", ylabel="", xlim=(0, None))
    figure = plots.titled(figure, "And with the strongest twenty?")
display(figure)

# %%
if len(tail):
    sizes_ = {of: each.dropna() for of, each in tail.groupby("of")[["logit", "margin", "confidence"]]}
    for of, each in sizes_.items():
        results |= {f"suppress/tail/{of}/{name}": with_interval(each[name], np.ones(len(each))) for name in each}
    logit_ = [in_words(results[f"suppress/tail/{of}/logit"], percent=False) for of in sizes_]
    points_ = [100 * results[f"suppress/tail/{of}/confidence"]["value"] for of in sizes_]
    text = f"""**Takeaway.** The strongest features change the true class's logit itself by {logit_[0]} where they are
    strongest, and its probability by {points_[0]:.0f} percentage points. The strongest random directions change them by
    {logit_[1]} and {points_[1]:.0f} points."""
    display(Markdown(text))

# %% [markdown]
# This result is exact, but close to a tautology: it says which way the head's weights point. It is no evidence of what
# the rest of the network does with a feature.

# %% [markdown]
# ## Does this hold one stage earlier?
#
# One stage earlier, the whole last stage still processes what suppression leaves, so the effect has to be measured with
# forward passes. We suppress random features of the local autoencoder in pictures in which they are active. A dot above
# the line is a feature with a larger effect than a random direction of the same length.

# %%
site3, sae3, index3 = LIKES["local"], study.sae("local"), study.features("local")
acts3, frozen3 = study.activations(site3), claims["local"]
drawn3 = frozen3.query("chosen == 'random'")["feature_id"].sample(N_FEATURES, random_state=0).tolist()
trial3 = ablation.Trial.of(network, sae3, pictures, acts3, index3)
settings = {"features": drawn3, "n_images": 2 * N_IMAGES}
folder = study.stage("experiments/suppress-local", ablation.suppress_sample, settings, {"trial": trial3})
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
change = "mean |change of the true class's logit, relative|"
ax.set(xscale="log", yscale="log", xlabel=f"random direction: {change}", ylabel=f"feature: {change}")
plots.titled(figure, f"Does this hold at {site3}?")

# %%
text = f"""**Takeaway.** At {site3}, the median random feature has {entry["value"]:.2f} times the effect of a random
direction of its length ({entry["low"]:.2f} to {entry["high"]:.2f}, n = {entry["n"]} features).
{in_words(results["stage3/features_above_random_direction"])} of the features have a larger effect than their random
direction has (Wilcoxon p = {results["stage3/wilcoxon_p"]:.1g}, two-sided)."""
display(Markdown(text))

# %% [markdown]
# ## Does a feature need what lies under its peak?
#
# We blur a window 64 pixels wide (of 224) around a feature's peak. Half of the feature's pictures are those in which it
# is strongest; the other half are drawn at random from the other pictures in which it is active. Controls are blurred
# windows of four kinds in the same picture: on the aircraft; anywhere in the picture; where the feature is lowest; and
# under the peak of another feature of similar density. For each picture, two of these four kinds are drawn at random. A
# control counts only if it is *matched*: it changes the pixels as much as the target does, to within a fifth.
#
# *Mediation* asks whether the feature carries the damage: after blurring, we put back the feature alone. What share of
# the logit's loss returns? The control puts back a random direction of the same length.

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
columns = {
    "feature's maximum lost": {title: in_words(entry) for title, entry in lost.items()},
    "change of the logit": {title: in_words(results[f"blur/{title}/logit"], percent=False) for title in lost},
    "logit: peak minus this": {kinds[kind]: in_words(each, percent=False) for kind, each in less_at.items()},
}
display(pd.DataFrame(columns).fillna("–").rename_axis("blurred window"))

# %% [markdown]
# The last column compares only pictures that have a matched control of that kind, so its entries are not the
# differences between the rows of the column before. Here is the same by how the picture was chosen:

# %%
columns = {
    "maximum lost under the peak": [in_words(entry) for entry in at_peak.values()],
    f"logit: peak minus window {kinds[beside]}": [in_words(entry, percent=False) for entry in beyond.values()],
}
which = ["all", "in which the feature is strongest", "others in which it is active"]
pd.DataFrame(columns, pd.Index(which, name="pictures"))

# %%
back, back_random = (in_words(entry) for entry in mediation.values())
lost_peak, lost_beside = (in_words(lost[title]) for title in ("under the peak", kinds[beside]))
text = f"""**Takeaway.** A blur under the peak takes {lost_peak} of the feature's maximum; a matched blur
{kinds[beside]} takes {lost_beside}. The logit's change by the first blur, minus its change by the second, is
{in_words(beyond["all pictures"], percent=False)}. Putting the feature back returns {back} of the logit's loss; putting
back a random direction returns {back_random}."""
display(Markdown(text))

# %% [markdown]
# But every direction has a peak, and loses something when that peak is blurred. How much do random directions,
# principal components and probes lose under their own peaks?

# %%
nulls = study.nulls()
dictionaries, lost_by = {name: nulls[name].sae for name in ("random directions", "PCA")}, {}
if parts:
    dictionaries["probes"] = features.probe_dictionary(sae, acts, features.Regions.of(acts, pictures))

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
figure = plots.dots(lost_by, "share of the maximum lost under its own peak, % (axis truncated)", "", 100)
plots.titled(figure, "Does a feature lose more under its peak than a random direction does?")

# %%
told_lost = "; ".join(f"{name} {in_words(entry)}" for name, entry in lost_by.items())
own, other = (lost_by[name] for name in ("random features", "random directions"))
than = "less than" if (own["high"] or 1) < (other["low"] or 0) else "about as much as"
than = "more than" if (own["low"] or 0) > (other["high"] or 1) else than
text = f"""**Takeaway.** When their own peak is blurred, directions lose this share of their maximum: {told_lost}.
Random features lose {than} random directions; only a larger loss would be evidence of detectors."""
display(Markdown(text))

# %% [markdown]
# Intervals are over pictures. They do not cover the choice of directions: about twenty random features, and about ten
# directions of each other kind. The first row of the table above differs from the figure's because it includes the best
# matches of parts.

# %% [markdown]
# ## Do blurring and suppression agree?
#
# Does blurring lower the logit most in the same pictures as suppression does? For each feature, we compute Spearman's
# rank correlation over its pictures. The null shuffles each feature's pictures.

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

# %%
figure, ax = plots.sheet(3.6)
both = {"features": values, "shuffled pictures (null)": null}
sns.histplot(both, stat="percent", common_norm=False, bins=np.linspace(-1, 1, 21), element="step", ax=ax)
ax.set(xlabel="Spearman's rank correlation over a feature's pictures", ylabel="share of features, %")
plots.titled(figure, "Do blurring and suppression agree?")

# %%
median_, chance = (in_words(results[f"blur_suppress_spearman_median{end}"], percent=False) for end in ("", "_shuffled"))
above_0 = in_words(results["blur_suppress_spearman_above_0"])
text = f"""**Takeaway.** The median feature has a rank correlation of {median_}; with shuffled pictures it is {chance}.
For {above_0} of the features, the correlation's interval lies above 0; chance gives 2.5%."""
display(Markdown(text))

# %% [markdown]
# Blurring a window changes every feature that looks there; suppression changes only one. Any agreement would say that
# the two effects go together, not that blurring acts through the feature; that is what mediation asks.

# %% [markdown]
# ## Does a feature detect a class?
#
# A *detector of a class* passes three tests on half B. Its AUROC is at least 0.9 and above that of the best feature of
# each of four null dictionaries. Suppressing it hurts the class more than it hurts the others, and more than
# suppressing random directions does (999 of them). And two other seeds have a matching feature (with cosines of at
# least 0.7, in the decoder and in the encoder). A random feature claims the class that stands out most on half A; tests
# are at q < 0.05. For comparison, we judge each feature's random direction in the same way, but with the feature's
# AUROC.

# %%
shares, only, rivals = {}, {"splits": ["test"], "selectivity": False}, []
for name in ("random directions", "untrained", "frozen decoder", "permuted network"):
    null = study.nulls()[name]._asdict()
    rivals.append(study.features(f"main-null-{name.replace(' ', '-')}", **null, **only))
for like, own_sae in {"local": sae3, "main": sae}.items():
    others = [study.sae(f"{like}-seed{seed}", like=like, seed=own_sae.cfg.seed + seed) for seed in (1, 2)]
    given = {"trial": trial if like == "main" else trial3, "index": study.features(like), "claims": claims[like]}
    given |= {"others": others, "suppressed": suppressed if like == "main" else None, "removals": removals}
    given |= {"tiers": study.tiers(like) if editable else None, "nulls": rivals if like == "main" else []}
    given["removed"] = study.activations(own_sae.cfg.site, pictures=removals) if editable else None
    folder = study.stage(f"experiments/verdicts-{like}", ablation.verdict_tables, {}, given)

# %%
classes, null_classes = (pd.read_parquet(folder / f"{name}.parquet") for name in ("classes", "null_classes"))
results["random_pass_share_classes"] = shares["features, all tests"] = ablation.pass_share(classes["passes"])
shares["features, without the seeds' test"] = ablation.pass_share(classes["shown"])
shares["random directions, without the seeds' test"] = ablation.pass_share(null_classes["shown"])
names = {"features, all tests": "features, all tests", "features, without the seeds' test": "features, no seeds"}
names |= {"random directions, without the seeds' test": "null, random directions, no seeds"}
results |= {f"pass_share/class: {names[name]}": entry for name, entry in shares.items()}
display(pd.DataFrame({"pass": {name: in_words(entry, unit="features") for name, entry in shares.items()}}))

# %%
passed = classes[classes["passes"]]
named = [f"feature {j}, *{name}*" for j, name in zip(passed["feature_id"], passed["class"], strict=True)]
text = f"""**Takeaway.** Of {len(classes)} random features, {len(passed)} pass every test as a detector of a class
(those that pass: {"; ".join(named) or "none"}). Without the test of other seeds,
{shares["features, without the seeds' test"]["value"]:.0%} of the features and
{shares["random directions, without the seeds' test"]["value"]:.0%} of the random directions pass (each with its
feature's AUROC)."""
display(Markdown(text))

# %% [markdown]
# The bar for AUROC is high: a feature has to beat the best of a whole null dictionary. We know of no direction that
# must pass all tests, so a count near zero says that detectors as defined here are rare, not that none could exist.
#
# Which tests do features fail? Here are the eight features with the smallest p in the suppression test, with their
# AUROC (and the best null's), the effect of suppressing them on the class's logit relative to other classes, and the
# mean effect of the random directions (*control*):

# %%
facts = "feature_id level class auroc null_auroc specificity control q seed_match verdict why".split()
classes.sort_values("p").head(8)[facts].round(3)

# %% [markdown]
# ## Try it yourself
#
# The bench shows one picture, with sliders for its features and a brush that blurs cells. It needs a running kernel. If
# a change flips the prediction, the features in it need not mean anything that a person would recognise.

# %%
bench = InterventionBench(study)
display(bench)

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
print("pictures of half A in the claims' tests:", len(set(picks["image_row"]) - set(rows_b)))

# %%
number = {name: entry["value"] if isinstance(entry, dict) else np.ravel(entry)[0] for name, entry in results.items()}
study.record(NAME, {name: results[name] for name, value in number.items() if np.isfinite(value)})  # nan: untested
final = study.results(NAME)
value = {name: entry["value"] for name, entry in final.items()}

# %%
lines = list(told_tiers.values())
if editable:
    lines += [told_random[1]]
name = "suppress/{}/median_abs_specificity"
by_median = [value[name.format(of)] for of in ("feature", "random direction")]
lines += [
    f"""Suppressing the median feature moves the true class's logit, relative to the others, by {by_median[0]:.4f}, a
    random direction by {by_median[1]:.4f}. {in_words(final["share_beyond_control_95"], unit="random features")} have a
    larger effect than 95% of random directions; chance gives 5%."""
]

# %%
if len(tail):
    lines += [
        f"""The strongest twenty features change the logit itself by {logit_[0]} where they are strongest, the strongest
        twenty random directions by {logit_[1]}. This says which way the head's weights point; it is no evidence of a
        detector."""
    ]

# %%
name = "blur/under the peak, {}/feature_lost"
under = [value[name.format(of)] for of in ("random features", "random directions")]
lines += [
    f"""A blur under its own peak takes {under[0]:.0%} of a random feature's maximum and {under[1]:.0%} of a random
    direction's. Putting features back returns {back} of the logit's loss; random directions return {back_random}.""",
    f"""{value["random_pass_share_classes"]:.0%} of random features pass every test as a detector of a class.""",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That a feature that fails is meaningless.** It may follow something without a mask, or a part seen from one side
#   only. Tiers judge claims, not features.
# - **That removal singles out features.** A null's best can lose as much when the part is removed; tier 3 therefore
#   builds on tier 2.
# - **That the classifier uses what a feature shows.** Removing a part and suppressing a feature are separate tests.
# - **How the classifier computes.** Suppression at the last stage is arithmetic; blurs and edits change more than one
#   feature.
# - **Photographs.** They cannot be edited like this. Even renders without shadows are not quite the pictures that the
#   network learned from.
