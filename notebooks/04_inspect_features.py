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
# # 4. Inspect features
#
# **Question.** What do the features of the autoencoder show? A gallery of pictures in which a feature is strong looks
# convincing almost always. So beside each thing that a feature seems to be stands what the same procedure finds where
# there is nothing to be found: labels in random order, autoencoders that learned nothing, networks that learned
# nothing, and guesses that know the aircraft's outline, the place in the picture and the class, and nothing else.
#
# **Reads** `data/runs/<preset>/sae` (notebook 03). **Writes** `…/features/<name>` (every cell's codes and one table)
# and the numbers in `data/runs/<preset>/results/04_inspect_features.json`.
#
# **Runtime** with the default preset on 2 CPU cores: 5 minutes the first time, one after that. Most of it goes into
# null dictionaries and scenes without parts, which notebook 05 needs too.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

# %%
from aircraft_sae import features
from aircraft_sae.config import preset
from aircraft_sae.features import reconstruction
from aircraft_sae.metrics import average, with_interval
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser import FeatureBrowser, gallery_figure, patches_figure
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# Half of the test pictures of each class (*half A*) serve to choose: the class or part that a feature is said to
# follow, thresholds, which features to show. Every number about a choice is measured on the other half (*half B*).
# The list of features to be tested is drawn here, before any test, and is the same in notebook 05.

# %%
study = Study.open()
NAME, results, config = "04_inspect_features", {}, study.config.sae
NO_MASKS = (
    "This data set holds photographs: there are no part masks, so what parts features follow can't be known here."
)

# %%
LIKES = {"local": study.config.local.site, "main": study.config.sae.site}
indexes = {like: study.features(like) for like in LIKES}
sae, index, acts = study.sae(), indexes["main"], study.activations()
pictures, network, table = study.pictures(), study.network(), index.table
test, level, parts, scores = index.rows("test"), pictures.levels[0], list(pictures.region_names), None
images = index.images.iloc[test].reset_index(drop=True)
in_b = features.halves(images[level])
rows_b = test[in_b]
if parts:
    scores = pd.read_parquet(index.folder / "parts.parquet")
    regions = features.Regions.of(index, pictures)

# %%
claims = {like: study.claims(like) for like in LIKES}
frozen = claims["main"]
print(f"{index.d_sae} features of {len(index.images):,} pictures; half A {(~in_b).sum()}, half B {in_b.sum()}")

# %% [markdown]
# ## Twelve parts, and the feature that shows each best
#
# For each part of the aircraft the feature is chosen whose strongest cells show the part best on half A. A row has its
# nine strongest patches of half B, one a picture, cut out around the peak. *AP* (average precision, on half B) is 1
# where all cells that show the part come before all others, and about their share of all cells for a random order. The
# *tier* says which tests the claim has passed. Tier 1: average precision is above that of four null dictionaries. Tier
# 2: so is the ability to tell the part's cells from others of the same family and place. Tier 3: the activation falls
# where the part is removed. Tier 4: two other seeds also have a feature of tier 3 for the part. Tier 0: none. Notebook
# 05 has the tests. (Photographs have no masks; there the rows are the features that follow a class most.)
#
# There are two autoencoders: *local* reads the stage before the last, where the activations of neighbouring cells
# hardly correlate in a feature (measured below), *main* the network's end. The local one comes first.

# %%
tiers, best_of, second, only = {}, {}, {}, {"splits": ["test"], "selectivity": False}
if parts and pictures.scenes is None:
    raise ValueError("these pictures have masks but no scenes: parts cannot be taken out of them, nor claims be tested")
if parts:
    for like in LIKES:
        judged = pd.read_parquet(study.tiers(like) / "tiers.parquet")
        tiers[like] = judged[(judged["claimant"] == like) & judged["best"]].set_index("part").reindex(parts)
        second[like] = judged[judged["best"]].groupby("claimant")["tier"].agg(lambda tier: (tier >= 2).sum())
        facts = tiers[like].dropna(subset="feature_id").astype({"feature_id": int, "tier": int})
        words = zip(facts.index.str.replace("_", " "), facts["ap"], facts["tier"], strict=True)
        titles = [f"{part}\nAP {ap:.2f}\ntier {tier}" for part, ap, tier in words]
        best_of[like] = dict(zip(titles, facts["feature_id"], strict=True))

# %%
if not parts:  # photographs: the features that follow a class most (on half B, so that their AUROC flatters)
    for like in LIKES:
        each = indexes[like].table.nlargest(8, f"{level}/auroc_z")
        words = zip(each["feature_id"], each[f"{level}/class"], each[f"{level}/auroc"], strict=True)
        titles = [f"{name}\nfeature {j}\nAUROC {auroc:.2f}" for j, name, auroc in words]
        best_of[like] = dict(zip(titles, each["feature_id"], strict=True))

# %% tags=["report"]
patches_figure(indexes["local"], pictures, best_of["local"], rows_b)

# %% [markdown]
# The same at the network's end, where a cell is twice as wide and sees nearly the whole picture:

# %%
patches_figure(indexes["main"], pictures, best_of["main"], rows_b)

# %%
text = NO_MASKS
if parts:
    at = {like: [int((each["tier"] >= tier).sum()) for tier in (1, 2, 3, 4)] for like, each in tiers.items()}
    results |= {f"{like}/parts_at_tier_{i + 1}": n for like, counts in at.items() for i, n in enumerate(counts)}
    seeds_ = {like: second[like].reindex([like, f"{like}-seed1", f"{like}-seed2"]) for like in LIKES}
    null_2 = {like: second[like][second[like].index.str.startswith("null")] for like in LIKES}

# %%
if parts:
    told = [
        f"""{at[like][1]} of {len(parts)} reach tier 2 at {site} (median of three seeds {seeds_[like].median():.0f};
        best null {null_2[like].max()})"""
        for like, site in LIKES.items()
    ]
    text = f"**Takeaway.** Of the parts' best features in this seed, {'; '.join(told)}."
display(Markdown(text))

# %% [markdown]
# Patches are chosen for being strong, and a title tells the eye what to see. In a blind test a rater therefore got the
# local rows of the committed run in random order, without titles, and the twelve names to choose from. Another rater
# did the same for an untrained autoencoder, whose rows these are:

# %%
figure = Markdown(NO_MASKS)
if parts:
    untrained = study.features("local-null-untrained", **study.nulls("local")["untrained"]._asdict(), **only)
    matches = features.best_matches(pd.read_parquet(untrained.folder / "parts.parquet"))
    titles = {f"{part.replace('_', ' ')}\nAP {row.ap:.2f}": int(row.feature_id) for part, row in matches.iterrows()}
    figure = patches_figure(untrained, pictures, titles, untrained.rows("test")[in_b])
display(figure)

# %%
path, text = Path("../data/results/hangar/blind_test.csv"), "No blind test belongs to these pictures."
if study.config.name == "hangar" and path.is_file():
    blind = pd.read_csv(path)
    right = (blind["part"] == blind["named"]).groupby(blind["rows"]).sum()
    results["blind_named_right"], results["blind_named_right_null"] = int(right["trained"]), int(right["untrained"])
    text = f"""**Takeaway.** Of the trained autoencoder's rows, {results["blind_named_right"]} of 12 were named right,
    of the untrained one's {results["blind_named_right_null"]}; guessing names one right on average. With one rater
    each, which is higher says nothing; but a row that can be named is no evidence of a detector."""
display(Markdown(text))

# %% [markdown]
# A row that can be named says that the strongest patches of one feature show one thing. Among a thousand features that
# learned nothing, but read a network that learned much, there can be one for each part whose patches do so too: it was
# looked for, with masks. Looks therefore tell no detector from a lucky direction. The tiers ask for more. (One feature
# can be the best of two parts. Their rows are then the same, and only luck tells them apart.)

# %% [markdown]
# ## What does a feature look like?
#
# From here on, where nothing else is said, features are those of the network's end. Four of them: two at random, the
# best match of a part on half A (the feature whose strongest cells show it best, by average precision, below), and the
# one that is furthest above chance for a class, in standard deviations. *AUROC* is how often a feature is stronger in a
# picture of the class than in one of another, ties counting half: 0.5 is chance, 1 always. (This feature was chosen on
# half B, so its AUROC flatters.) Upper row: the pictures of half B in which it is strongest. Middle row: pictures from
# different tenths of its range. Lower row: any picture in which it is active. Heat has one scale for the feature, up to
# its largest activation; the cyan square is the cell that was picked. Galleries usually show the upper row only.

# %%
selective = int(table[f"{level}/auroc_z"].fillna(-np.inf).to_numpy().argmax())
shown = frozen.query("chosen == 'random'")["feature_id"].sample(2, random_state=1).tolist()
matched = frozen.query("chosen == 'part'")
best = int(matched["feature_id"].iloc[0]) if len(matched) else None
display(Markdown(f"A random feature, {shown[0]}:"), gallery_figure(index, pictures, shown[0], rows_b))

# %%
display(Markdown(f"Another, {shown[1]}:"), gallery_figure(index, pictures, shown[1], rows_b))

# %%
if best is None:
    display(Markdown(NO_MASKS))
else:
    named = matched["part"].iloc[0].replace("_", " ")
    display(Markdown(f"The best match of *{named}* on half A, feature {best}:"))
    display(gallery_figure(index, pictures, best, rows_b))

# %% tags=["report"]
words = f"{table.at[selective, f'{level}/class']}, AUROC {table.at[selective, f'{level}/auroc']:.2f} on half B"
display(Markdown(f"Feature {selective}, most selective for a {level}: {words}."))
gallery_figure(index, pictures, selective, rows_b)

# %% [markdown]
# Look at the lower rows too: they are what a feature does most of the time. Pictures suggest; they show neither how
# often a suggestion is right nor whether a feature that learned nothing would suggest as much.

# %% [markdown]
# ## Which classes do features follow?
#
# For each feature and each level of the taxonomy the class whose pictures it ranks highest is chosen on half A. On half
# B we take the AUROC of the feature's largest activation in a picture for that class, and how many standard deviations
# it is above chance (z). A feature is *placed* on the level where it stands out most on half A, if its AUROC there is
# significant on half B (9,999 permutations of the labels; Benjamini-Hochberg for many tests, q < 0.05). Beside it: the
# same with shuffled labels, and of random directions, since any direction of a network that was trained to tell classes
# apart may follow one.

# %%
classes = {each: pictures.classes(each) for each in pictures.levels}
codes = {each: (pd.Categorical(images[each], names).codes, names) for each, names in classes.items()}
shuffles = []
for seed in range(5):
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = {each: (values[order], names) for each, (values, names) in codes.items()}
    shuffles.append(features.selectivity(index.maxima(test), shuffled, in_b))
null = pd.concat(shuffles, ignore_index=True)

# %%
given = study.nulls()["random directions"]._asdict()
others = study.features("main-null-random-directions", **given, **only)
lucky = features.selectivity(others.maxima(others.rows("test")), codes, in_b)
kinds = {"features": table, "random directions": lucky, "features, shuffled labels": null}
z = {name: each[[f"{own}/auroc_z" for own in pictures.levels]].max(axis=1).dropna() for name, each in kinds.items()}

# %%
figure = Markdown("No class has pictures enough to test.")
if len(z["features"]):
    figure, ax = plots.sheet(3.4)
    sns.histplot(z, stat="percent", common_norm=False, bins=50, element="step", fill=False, ax=ax)
    ax.set(xlabel="largest z over levels of AUROC on half B", ylabel="share, %")
display(figure)

# %%
tested, placed = null[f"{level}/auroc_p"].dropna(), {}
results["shuffled_share_below_0.05"] = (float((tested < 0.05).mean()), None, None, len(tested))
ends = {"": table, "_random_directions": lucky, "_shuffled": null}
for (end, each), name in product(ends.items(), (*pictures.levels, "none")):
    results[f"placed{end}/{name}"] = (float((each["placed"] == name).mean()), None, None, len(each))
    placed.setdefault(name, []).append(f"{results[f'placed{end}/{name}'][0]:.1%}")
results["median_z"] = float(z["features"].median())
results["median_z_shuffled"] = float(z["features, shuffled labels"].median())
display(pd.DataFrame(placed, index=list(kinds)).rename_axis("placed on"))

# %%
strong = table[f"{level}/auroc"] >= 0.9
for end, each in ends.items():
    results[f"share_auroc_0.9{end}/{level}"] = (float((each[f"{level}/auroc"] >= 0.9).mean()), None, None, len(each))
    own_level = each[each["placed"] != "none"]
    areas = [row[f"{row['placed']}/auroc"] for _, row in own_level.iterrows()]
    results[f"placed{end}/median_auroc"] = (float(np.median(areas or [0.5])), None, None, len(areas))

# %%
beyond, at_09 = (
    [results[name.format(end)][0] for end in ends] for name in ("placed{}/none", f"share_auroc_0.9{{}}/{level}")
)
text = f"""**Takeaway.** {1 - beyond[0]:.0%} of {len(table)} features rank some class's pictures above others beyond
chance, of random directions {1 - beyond[1]:.0%}, with shuffled labels {1 - beyond[2]:.0%}. An AUROC of 0.9 for a
{level} is reached by {at_09[0]:.0%}, {at_09[1]:.0%} and {at_09[2]:.0%}."""
display(Markdown(text))
assert study.config.name != "hangar" or beyond[2] > 0.9

# %% [markdown]
# That a feature follows classes is no news in a network trained to tell them apart. And that a feature follows a class
# does not say what in the picture it follows.

# %% [markdown]
# ## Which parts of the aircraft do features follow?
#
# In the hangar each pixel's part is known. A cell *shows* a part if the part fills a quarter of the cell, or the cell
# holds a quarter of the part. *Average precision* (AP) ranks all cells by activation: it is 1 if those that show the
# part come first, and about their share of all cells if the order is random. For each part, the feature of largest AP
# on half A is scored on half B. Beside it: the best feature of each null (the network's own channels and principal
# components, both with their negatives; random directions; an untrained autoencoder; one with a frozen random decoder;
# one trained on the network with permuted weights), and a *probe*: one direction fitted to the labels of half A, which
# shows how far one direction can go. The frozen and the permuted one saw an eighth of the cells in training. The
# permuted network is scored on every third picture. AP falls with the fineness of the grid by itself, since a smaller
# cell shows a part more rarely: compare within a figure. First the local autoencoder.

# %%
null_ap, null_results = {}, {}
nulls = {like: study.nulls(like) for like in LIKES} if parts else {}
for like, (name, null) in ((like, each) for like, own in nulls.items() for each in own.items()):
    own = study.features(f"{like}-null-{name}".replace(" ", "-"), **null._asdict(), **only)
    its_regions = features.Regions.of(own, study.pictures(null.pictures))
    matches = features.best_matches(pd.read_parquet(own.folder / "parts.parquet"))
    null_ap[like, name] = matches["ap"]
    null_results[like, name] = average(features.best_estimates(own, its_regions, matches).values()).entry

# %%
kinds = {}
if parts:
    for like, own in indexes.items():
        at, best_ = study.activations(LIKES[like]), features.best_matches(pd.read_parquet(own.folder / "parts.parquet"))
        ceiling = features.probe_scores(at.acts[at.rows("test")], features.Regions.of(own, pictures))
        kinds[like] = {"best feature": best_["ap"], "probe": ceiling}
        kinds[like] |= {name: ap for (site, name), ap in null_ap.items() if site == like}
        kinds[like]["chance"] = best_["prevalence"]
        before = "" if like == "main" else "local/"
        results[f"{before}probe/mean_part_ap"] = (float(ceiling.mean()), None, None, int(in_b.sum()))
        results["ap_over_probe_mean" + "/main" * (like == "main")] = float((best_["ap"] / ceiling).mean())

# %% tags=["report"]
display(plots.scores_by_part(kinds["local"]) if parts else Markdown(NO_MASKS))

# %%
display(plots.scores_by_part(kinds["main"]) if parts else Markdown(NO_MASKS))

# %%
if parts:
    local_index, local_scores = indexes["local"], pd.read_parquet(indexes["local"].folder / "parts.parquet")
    local_best, local_regions = features.best_matches(local_scores), features.Regions.of(local_index, pictures)
    drawn = features.best_estimates(local_index, local_regions, local_best)
    results["local/mean_part_ap"] = average(drawn.values()).entry
    chosen = features.best_matches(scores)
    own_ap = chosen["ap"]

# %%
if parts:
    drawn = features.best_estimates(index, regions, chosen)
    drawn = {part: each for part, each in drawn.items() if np.isfinite(each.value)}
    results["mean_part_ap"] = average(drawn.values()).entry
    results["parts_with_ap_0.3"] = (int((own_ap >= 0.3).sum()), None, None, len(own_ap))
    results |= {f"part_ap/{part}": each.entry for part, each in drawn.items()}
    for (like, name), entry in null_results.items():
        results["local/" * (like == "local") + f"null/{name}/mean_part_ap"] = entry

# %%
text = NO_MASKS
if parts:
    means = pd.Series({key: entry["value"] for key, entry in null_results.items()})
    highest = {like: (like, means[like].idxmax()) for like in LIKES}
    results["best_null/mean_part_ap"] = null_results[highest["main"]]
    by_null = {like: f"{in_words(null_results[key], percent=False)} ({key[1]})" for like, key in highest.items()}
    text = f"""**Takeaway.** At {LIKES["local"]} the best features have a mean AP of
    {in_words(results["local/mean_part_ap"], percent=False)}, the best null {by_null["local"]}, the probe
    {results["local/probe/mean_part_ap"][0]:.2f}; part by part, features reach {results["ap_over_probe_mean"]:.2f} of
    the probe's AP. At {LIKES["main"]}: {in_words(results["mean_part_ap"], percent=False)}, {by_null["main"]},
    {results["probe/mean_part_ap"][0]:.2f} and {results["ap_over_probe_mean/main"]:.2f}."""
display(Markdown(text))

# %% [markdown]
# Is that more than what one could guess without looking for a part? *Guesses* know the true outline of the aircraft,
# and from half A how often each cell shows the part (place), and how often the picture's class does. And the best
# features once more, with the masks of another picture of the same class.

# %%
if parts:
    guesses = features.guess_scores(regions)
    guessed = {name: each.set_index("part")["ap"] for name, each in guesses.groupby("guess", sort=False)}
    ids = chosen["feature_id"].astype(int)[list(drawn)]
    swapped = {part: features.average_precision(index, regions, j, part, swap=True).value for part, j in ids.items()}
    results["swapped/mean_part_ap"] = float(np.mean(list(swapped.values())))
    results |= {f"guess/{name}/mean_part_ap": float(each.mean()) for name, each in guessed.items()}

# %%
if parts:
    named = {"best feature": dict(own_ap), "its AP with masks of another picture": swapped}
    named |= {f"guess: {name}": dict(each) for name, each in guessed.items()}

# %% tags=["report"]
display(plots.scores_by_part(named) if parts else Markdown(NO_MASKS))

# %%
text = NO_MASKS
if parts:
    beaten = sum(own_ap[part] > max(each[part] for each in guessed.values()) for part in drawn)
    results["parts_above_guesses"] = (beaten, None, None, len(drawn))
    reached = "; ".join(f"{results[f'guess/{name}/mean_part_ap']:.2f} ({name})" for name in guessed)
    text = f"""**Takeaway.** Guesses reach a mean AP of {reached}. The best feature is above all of them for {beaten} of
    {len(drawn)} parts; its mean AP is {results["mean_part_ap"]["value"]:.2f}, and
    {results["swapped/mean_part_ap"]:.2f} with masks of another picture of the class."""
display(Markdown(text))

# %% [markdown]
# AP is a hard measure: it counts a neighbouring cell, and cells in which a part is shown and the feature silent, as
# errors. A feature that follows an engine seen from the left only is right whenever it speaks and still scores low.

# %% [markdown]
# ## Does a feature have one meaning?
#
# Take the 16 pictures of half B in which a feature is strongest, the picked cells that are on the aircraft, and the
# parts that these show. *Purity* is the share of these cells that show the commonest part. Many cells show several
# parts, so purity is high by itself: the control is as many random aircraft cells.

# %%
N_TOP, purity, on_aircraft, draws = 16, {}, {}, []
if parts:
    within, rng = regions.within, np.random.default_rng(0)
    random_cells, random_ids = regions.labels[in_b][within[in_b]], frozen.query("chosen == 'random'")["feature_id"]
    both = {"features": (index, test, random_ids), "random directions": (others, others.rows("test"), random_ids)}

# %%
for of, (own, rows_, ids) in both.items() if parts else ():
    for feature_id in ids:
        picks = own.patches(feature_id, "top", N_TOP, rows_[in_b])
        where = np.searchsorted(rows_, picks["image_row"]), picks["row"], picks["column"]
        on = within[where]
        if len(picks) == N_TOP:
            on_aircraft.setdefault(of, []).append(on.mean())
        if of == "features" and on.sum() >= N_TOP // 2:
            purity[feature_id] = regions.labels[where][on].mean(0)
            draws.append(random_cells[rng.integers(len(random_cells), size=(200, on.sum()))].mean(1).max(1))

# %%
figure = Markdown("No feature has 8 such cells." if parts else NO_MASKS)
if len(purity):
    highest, null = np.array([each.max() for each in purity.values()]), np.concatenate(draws)
    both, (figure, ax) = {"random features": highest, "as many random aircraft cells": null}, plots.sheet(3.4)
    sns.histplot(both, stat="percent", common_norm=False, bins=16, element="step", ax=ax)
    ax.set(xlabel="purity of the strongest cells on the aircraft", ylabel="share, %")
display(figure)

# %%
if len(purity):
    pure = np.array([each > np.quantile(drawn, 0.95) for each, drawn in zip(highest, draws, strict=True)])
    results["purity_above_random_cells"] = (float(pure.mean()), None, None, len(purity))
    results["purity_median"], results["purity_median_random_cells"] = float(np.median(highest)), float(np.median(null))
    for end, of in (("", "features"), ("_random_directions", "random directions")):
        each = on_aircraft.get(of, [np.nan])
        results[f"top_cells_on_aircraft{end}"] = with_interval(each, np.ones(len(each)))
    shares = within[in_b].mean((1, 2))
    results["all_cells_on_aircraft"] = with_interval(shares, np.ones(len(shares)))

# %%
if len(purity):
    on_, on_random = (in_words(results[f"top_cells_on_aircraft{end}"]) for end in ("", "_random_directions"))
    text = f"""**Takeaway.** Of the strongest cells of random features, {on_} are on the aircraft, of random directions
    {on_random}. For the {len(purity)} features with half of them there, median purity is {np.median(highest):.2f}, of
    random aircraft cells {np.median(null):.2f}; {pure.mean():.0%} are purer than 95% of as many random cells."""
    display(Markdown(text))

# %%
if len(purity):
    mixed = min(purity, key=lambda feature_id: purity[feature_id].max())
    named = pd.Series(purity[mixed], parts).nlargest(3)
    shown_parts = ", ".join(f"{part.replace('_', ' ')} in {share:.0%}" for part, share in named.items())
    display(Markdown(f"The least pure of them, feature {mixed}: {shown_parts}"))
    display(gallery_figure(index, pictures, mixed, rows_b))

# %% [markdown]
# A feature of low purity may still have one meaning, for which the hangar has no mask: a colour, a viewing direction,
# a shadow. Low purity shows only that no part of this list is it.

# %% [markdown]
# ## And the features that claim no part?
#
# Scenes of the hangar are drawn from numbers: who stands there, from where it is seen, in which paint, light and
# weather. For each local feature that claims no part (more than the best of as many random directions would), the
# factor is chosen on half A that explains most of the variance of its largest activation in a picture; on half B it is
# told how much (the share between groups, less what so many groups explain by chance; numbers are cut into eighths).
# The null is the same with half B's pictures in random order.

# %%
groups, numbers = {}, pd.DataFrame()
if parts:
    known = pictures.table.set_index("image").loc[images["image"]]
    numbers = known.filter(regex="^(variant|family|camera|light|livery|background|finish_[ebn]|gear)")
for name, column in numbers.items():
    many = column.nunique() > 40  # a number, and no name
    groups[name] = pd.factorize(pd.qcut(column, 8, duplicates="drop") if many else column)[0]
titles = {"variant": "class", "family": "class", "camera": "view", "light": "light", "livery": "paint"}
titles |= {"background": "background", "finish": "photographic finish", "gear": "gear down or not"}

# %%
shares, rng = {}, np.random.default_rng(0)
maxima_ = indexes["local"].maxima(test) if parts else None
halves_ = {"a": np.flatnonzero(~in_b), "b": np.flatnonzero(in_b), "null": rng.permutation(np.flatnonzero(in_b))}
for (half, order), (name, codes_) in product(halves_.items(), groups.items()):
    labels = codes_[np.sort(order)]
    member, x = np.eye(labels.max() + 1)[labels], maxima_[order] - maxima_[order].mean(0)
    between = np.square(member.T @ x) / np.maximum(member.sum(0), 1)[:, None]
    share = between.sum(0) / np.maximum(np.square(x).sum(0), 1e-9)
    shares[half, name] = 1 - (1 - share) * (len(x) - 1) / max(1, len(x) - member.any(0).sum())

# %%
if parts:
    by_factor = {half: pd.DataFrame({name: shares[half, name] for name in groups}) for half in halves_}
    silent = features.claims_of(local_scores, study.bars("local")).isna().to_numpy() & (maxima_[in_b].max(0) > 0)
    factor = by_factor["a"][silent].idxmax(axis=1)
    at = factor.index, by_factor["a"].columns.get_indexer(factor)
    told_b, by_chance_b = by_factor["b"].to_numpy()[at], by_factor["null"].to_numpy()[at]
    kind, least = factor.str.split("_").str[0].map(titles), np.quantile(by_chance_b, 0.95)
    kinds_of = kind.value_counts(normalize=True)

# %%
figure = Markdown(NO_MASKS)
if parts:
    figure, ax = plots.sheet(3.4)
    sns.boxplot(x=100 * told_b, y=kind, order=kinds_of.index, color="#9ECAE1", fliersize=2, ax=ax)
    ax.axvline(100 * least, color=plots.GREY, linestyle=":")
    ax.set(xlabel="variance of a feature's maximum explained on half B, %", ylabel="")
display(figure)

# %%
text = NO_MASKS
if parts:
    above = told_b > least
    results["no_part/share"] = (float(silent.mean()), None, None, len(silent))
    results["no_part/explained_above_chance"] = (float(above.mean()), None, None, len(above))
    results |= {f"no_part/{name}": (float(each), None, None, len(kind)) for name, each in kinds_of.items()}
    commonest = ", ".join(f"{name} {share:.0%}" for name, share in kinds_of.head(4).items())
    results["no_part/median_explained"] = (float(np.median(told_b)), None, None, len(told_b))

# %%
if parts:
    text = f"""**Takeaway.** {silent.mean():.0%} of the local features are active and claim no part
    (n = {len(silent):,}). The best factor explains a median of {np.median(told_b):.0%} of their variance on half B, and
    more than the null's 95th percentile (dotted) for {above.mean():.0%}. By share of features it is {commonest}. Random
    directions were not tried."""
display(Markdown(text))

# %% [markdown]
# What explains a maximum need not be what a person would name: a class brings its own parts, and a view shows some and
# hides others.

# %% [markdown]
# ## How local are features?
#
# Galleries can show bands: a feature that is strong in one cell is strong along the whole column. A number for it is
# the correlation between the activations of neighbouring cells, one above the other or side by side, over half B.
# Beside the features (median of the random ones) stand the network's own channels, which the autoencoder had to
# explain, and the share of aircraft in a cell.

# %%
local = {}
for like, site in LIKES.items():
    own, at, before = indexes[like], study.activations(site), "" if like == "main" else f"{site}/"
    drawn_ids = claims[like].query("chosen == 'random'")["feature_id"]
    local[f"{before}features"] = [own.maps(int(j), rows_b) for j in drawn_ids]
    block = np.float32(at.acts[at.rows("test")[in_b]])
    local[f"{before}channels"] = [block[..., c] for c in range(0, at.d_in, max(1, at.d_in // 100))]
    if parts:
        local[f"{before}aircraft in a cell"] = [features.Regions.of(own, pictures).shown[in_b]]

# %%
rows = {name: [] for name in local}
for (name, maps), (i, way) in product(local.items(), enumerate(("vertical", "horizontal"), 1)):
    turned = [np.moveaxis(each, i, 0) for each in maps if np.ptp(each) > 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [np.corrcoef(each[:-1].ravel(), each[1:].ravel())[0, 1] for each in turned]
    rows[name].append(np.nanmedian(found))
    results[f"neighbour_correlation/{name}/{way}"] = (float(rows[name][-1]), None, None, len(found))
display(pd.DataFrame(rows, index=["one above the other", "side by side"]).round(2))

# %%
near = rows[f"{LIKES['local']}/features"]
text = f"""**Takeaway.** At {LIKES["main"]}, cells one above the other correlate to {rows["features"][0]:.2f} in the
median feature and to {rows["channels"][0]:.2f} in the median channel, side by side to {rows["features"][1]:.2f} and
{rows["channels"][1]:.2f} (n = {in_b.sum()} pictures). At {LIKES["local"]}, features to {near[0]:.2f} and
{near[1]:.2f}."""
display(Markdown(text))
assert all(-1 <= value <= 1 for each in rows.values() for value in each if np.isfinite(value))

# %% [markdown]
# Where channels are more alike down than across, and the aircraft is not, the bands come at least in part from the
# network. Where features show none, bands do not explain why few of them mark a small part's cells alone.

# %% [markdown]
# ## Would another seed find them?
#
# Three things could be found again in another seed, each with its own chance level. *Claims*: a part whose best feature
# reaches tier 3 here should reach it in both other seeds; by chance, that is the number of such parts times the other
# two seeds' shares of parts at tier 3, as if seeds were independent (parts that are easy everywhere make chance larger
# than that). *Subspaces*: a part's five best features span a subspace; we measure how much of it another seed's five
# best cover (mean squared cosine of the principal angles). One chance is five living features of that seed, drawn at
# random; the harder one is its five best for another part.

# %%
bases, drawn_bases, rng = {}, {}, np.random.default_rng(0)
for like, i in product(LIKES, range(3)) if parts else ():
    model = study.sae(f"{like}-seed{i}", like=like, seed=study.sae(like).cfg.seed + i) if i else study.sae(like)
    own = study.features(f"{like}-seed{i}", sae=model, **only) if i else indexes[like]
    ranked = pd.read_parquet(own.folder / "parts.parquet").sort_values("ap_a", ascending=False, kind="stable")
    rows, living = model.W_dec.detach().numpy(), np.flatnonzero(own.table["density_cell"] > 0)
    best_5 = [ids.head(5) for _, ids in ranked.groupby("part")["feature_id"]]
    random_5 = [rng.choice(living, 5, len(living) < 5) for _ in range(100)]
    bases[like, i], drawn_bases[like, i] = (
        np.stack([np.linalg.qr(rows[ids].T)[0] for ids in each]) for each in (best_5, random_5)
    )

# %%
again = {}
for like, site in LIKES.items() if parts else ():
    judged = pd.read_parquet(study.tiers(like) / "tiers.parquet").query("best and tier >= 3")
    three = [f"{like}{end}" for end in ("", "-seed1", "-seed2")]
    own, *others = (set(judged.loc[judged["claimant"] == name, "part"]) for name in three)
    n_again, chance = len(own.intersection(*others)), len(own) * np.prod([len(each) / len(parts) for each in others])
    results[f"{like}/claims_replicated"] = (n_again, None, None, len(own))
    results[f"{like}/claims_replicated_chance"] = float(chance)
    again[site] = {"claims": f"{n_again} of {len(own)}", "claims by chance": f"{chance:.1f}"}

# %%
for like, site in LIKES.items() if parts else ():
    others = [np.concatenate([bases[like, i], drawn_bases[like, i]]) for i in (1, 2)]
    cosines = [np.einsum("pdi,qdj->pqij", bases[like, 0], each) for each in others]
    shared, n = np.mean([np.square(each).sum((2, 3)) / 5 for each in cosines], axis=0), len(parts)
    own, apart = shared[:, :n].diagonal(), ~np.eye(n, dtype=bool)
    of = {"subspaces": own, "subspaces of random features": shared[:, n:].mean(1)}
    of["subspaces of other parts"] = [row[kept].mean() for row, kept in zip(shared[:, :n], apart, strict=True)]
    for name, values in of.items():
        entry = with_interval(np.array(values), np.ones(n))
        results[f"{like}/{name.replace(' ', '_')}"] = entry
        again[site][name] = in_words(entry, unit="parts")

# %%
display(pd.DataFrame(again) if parts else Markdown(NO_MASKS))

# %%
text, share = NO_MASKS, {}
if parts:
    names = "subspaces", "subspaces_of_other_parts", "subspaces_of_random_features"
    share = {like: [f"{results[f'{like}/{name}']['value']:.0%}" for name in names] for like in LIKES}
    told = [f"{own[0]} at {LIKES[like]} (another part's {own[1]}, random {own[2]})" for like, own in share.items()]
    text = f"""**Takeaway.** Of the parts at tier 3, {again[LIKES["local"]]["claims"]} recur at {LIKES["local"]},
    {again[LIKES["main"]]["claims"]} at {LIKES["main"]}. Of its subspace a part shares {"; ".join(told)}."""
display(Markdown(text))

# %% [markdown]
# *Features* themselves, at the network's end, are matched one to one with those of the other two seeds, as in notebook
# 03. Shown is the lowest of four cosines: of encoder and decoder, with each of the two. Chance is the same
# with random mixtures of the other seeds' features, as there.

# %%
seeds = [study.sae(f"main-seed{seed}", like="main", seed=config.seed + seed) for seed in (1, 2)]
stability = reconstruction.seed_match(sae, seeds)
mixed = [
    SimpleNamespace(**{name: reconstruction.mixtures(getattr(model, name), seed) for name in ("W_dec", "W_enc_rows")})
    for seed, model in enumerate(seeds)
]
by_chance = reconstruction.seed_match(sae, mixed)

# %%
random_ids = frozen.query("chosen == 'random'")["feature_id"].to_numpy()
groups = {
    "random": stability[random_ids],
    "several best matches of each part": stability[matched["feature_id"].unique()],
    f"AUROC of a {level} at least 0.9": stability[strong],
    "chance: random, with random mixtures": by_chance[random_ids],
}
entries = {name: with_interval(each, np.ones(len(each))) for name, each in groups.items() if len(each)}
results |= {f"seed_match/{name}": entry for name, entry in entries.items()}
results["seed_match_0.7"] = (float((stability >= 0.7).mean()), None, None, len(stability))
results["seed_match_0.7_chance"] = (float((by_chance >= 0.7).mean()), None, None, len(by_chance))
plots.dots(entries, "cosine with the partner in other seeds", "features", line=0.7)

# %%
random, chance = (in_words(entries[name], percent=False) for name in ("random", "chance: random, with random mixtures"))
text = f"""**Takeaway.** Random features have a mean cosine of {random} with their partners (a cosine, not notebook 03's
agreement), with random mixtures {chance}.
{results["seed_match_0.7"][0]:.1%} of all features reach 0.7, and {results["seed_match_0.7_chance"][0]:.1%} do with
random mixtures."""
display(Markdown(text))

# %% [markdown]
# A feature that only one seed finds may still be real: autoencoders choose among many dictionaries of like error.

# %% [markdown]
# ## Does a feature of renders show the same in photographs?
#
# This is asked where the notebook runs on photographs, and the default study was made beside it. The hangar's own
# network looks at the photographs, and its local features are asked for their nine strongest test photographs: is the
# feature that shows nose gears in renders at nose gears here? Nobody has drawn masks for photographs, so this is for
# the eye. A number for whether features carry over at all: how many of those active in 1% of the test renders or more
# are active in half to twice as many photographs.

# %%
carried, of_renders = None, study.data_dir / "runs" / "hangar" / "sae" / "local"
if not parts and of_renders.is_dir():
    hangar = Study(preset("hangar"), study.data_dir)
    renders, looking = hangar.features("local"), replace(hangar.network(), name="hangar")
    photographs = pictures.subset(np.flatnonzero(pictures.table["split"] == "test"), "test")
    given = {"network": looking, "pictures": photographs, "splits": ["test"], "selectivity": False}
    carried = study.features("hangar-local", sae=hangar.sae("local"), **given)

# %% tags=["report"]
figure = Markdown("Nothing to compare here: these are renders, or the default study has not been run.")
if carried:
    best_ = features.best_matches(pd.read_parquet(renders.folder / "parts.parquet"))["feature_id"]
    titles = {f"{part.replace('_', ' ')}\nin renders": int(j) for part, j in best_.items()}
    figure = patches_figure(carried, pictures, titles, carried.rows("test"))
display(figure)

# %%
if carried:
    of_test = renders.maxima(renders.rows("test")) > 0, carried.maxima(carried.rows("test")) > 0
    here, there = (active.mean(0) for active in reversed(of_test))
    like = here[there >= 0.01] / there[there >= 0.01]
    results["hangar/firing_ratio_within_2"] = (float(((like >= 0.5) & (like <= 2)).mean()), None, None, len(like))
    results["hangar/silent_in_photographs"] = (float((like == 0).mean()), None, None, len(like))
    text = f"""**Takeaway.** Of {len(like)} features of renders, {results["hangar/firing_ratio_within_2"][0]:.0%} are
    active in half to twice as many photographs, and {results["hangar/silent_in_photographs"][0]:.0%} in none."""
    display(Markdown(text))

# %% [markdown]
# ## Browse them yourself
#
# All features, with what was measured of each, their pictures, and a field for what you think they show. The widget
# needs a running kernel (notebook 06 has it alone, and writes a folder that needs none). Where there is none, the
# gallery that it opens with stands for it, over all test pictures.

# %%
browser = FeatureBrowser(study, like="local")
display(browser)

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file.

# %% tags=["nbval-check-output"]
outside = set(index.images["image"].iloc[rows_b]) & set(images["image"][~in_b])
print("pictures in both halves:", len(outside))
assert not outside

# %%
number = {name: (entry["value"] if isinstance(entry, dict) else np.ravel(entry)[0]) for name, entry in results.items()}
study.record(NAME, {name: results[name] for name, value in number.items() if np.isfinite(value)})  # nan: untested
final = study.results(NAME)
value = {name: entry["value"] for name, entry in final.items()}

# %%
lines = [
    f"""{1 - value["placed/none"]:.0%} of features rank a class's pictures above others beyond shuffled labels; so do
    {1 - value["placed_random_directions/none"]:.0%} of random directions."""
]
if parts:
    guess = value["guess/outline, place, class/mean_part_ap"]
    lines += [
        f"""Mean AP of parts' best features: {value["local/mean_part_ap"]:.2f} at {LIKES["local"]} (best null
        {means["local"].max():.2f}, probes {value["local/probe/mean_part_ap"]:.2f}) and {value["mean_part_ap"]:.2f} at
        {LIKES["main"]} ({means["main"].max():.2f}, {value["probe/mean_part_ap"]:.2f}). A guess from outline,
        place and class has {guess:.2f} there."""
    ]

# %%
if parts:
    lines += [
        f"""Features that reach tier 3 are found again by two other seeds for {again[LIKES["local"]]["claims"]} parts
        at {LIKES["local"]}, {again[LIKES["main"]]["claims"]} at {LIKES["main"]}.""",
        f"""{value["no_part/share"]:.0%} of the local features are active and claim no part. What explains them best,
        explains a median of {value["no_part/median_explained"]:.0%} of their variance.""",
    ]
if "blind_named_right" in value:
    lines += [
        f"""Raters named {value["blind_named_right"]} of 12 rows of the trained autoencoder, and
        {value["blind_named_right_null"]} of the untrained one."""
    ]

# %%
lines += [
    f"""Features hardly recur in other seeds: {value["seed_match_0.7"]:.1%} have a cosine of 0.7 with partners in both,
    {value["seed_match_0.7_chance"]:.1%} with random mixtures."""
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That this seed is typical.** Notebook 05 has the medians of three.
# - **What features do.** To follow a part is not to need it, nor to be used by the classifier. The next notebook asks.
# - **What the features without a part mean.** The hangar's masks are of twelve parts; light, paint and view have none.
# - **Anything about other autoencoders.** Other widths and sparsities split parts in other ways.
