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
# **Question.** What do the features of an autoencoder show?
#
# Why care: the pictures in which a feature is strong usually look convincing. But so do the pictures picked by
# autoencoders that learned nothing. This notebook therefore compares whatever a feature seems to mean with a *null*:
# the same procedure with shuffled labels, with directions that learned nothing, or with a guess. A guess knows where
# the aircraft is, and perhaps its class, but not what the cell looks like.
#
# **Reads** the autoencoders of notebook 03. **Writes** `data/runs/<preset>/features/<name>` (every cell's codes, and a
# table of features) and the numbers in `data/runs/<preset>/results/04_inspect_features.json`.
#
# **Runtime** with the default preset on 2 CPU cores: one and a half minutes the first time, one minute after that.

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
# We split the test pictures of each class in two. *Half A* is for choices: which class or part a feature is said to
# follow, where thresholds lie, and which features we show. *Half B* is for measurements. Unless the text says
# otherwise, no number below was measured on the pictures used for the choice behind it. The list of features to be
# tested (`claims`) is drawn up here, before any test.

# %%
study = Study.open()
NAME, results, config = "04_inspect_features", {}, study.config.sae
LIKES = {"local": study.config.local.site, "main": study.config.sae.site}
NO_MASKS = "These pictures are photographs without part masks, so it is not known which parts features follow."
only = {"splits": ["test"], "selectivity": False}

# %%
indexes = {like: study.features(like) for like in LIKES}
sae, index, acts = study.sae(), indexes["main"], study.activations()
pictures, network, table = study.pictures(), study.network(), index.table
test, level, parts = index.rows("test"), pictures.levels[0], list(pictures.region_names)
images = index.images.iloc[test].reset_index(drop=True)
in_b = features.halves(images[level])
rows_b = test[in_b]
claims = {like: study.claims(like) for like in LIKES}
random_ids = claims["main"].query("chosen == 'random'")["feature_id"]
print(f"{index.d_sae} features of {len(index.images):,} pictures; half A {(~in_b).sum()}, half B {in_b.sum()}")

# %% [markdown]
# ## What do the best features show?
#
# For each part of the aircraft we take the feature that finds the part best on half A. Each row shows such a feature's
# nine strongest patches of half B, one per picture, cropped around the peak. For *AP* (average precision, on half B),
# all cells are ranked by the feature's activation. AP is 1 if the cells that show the part come first; a random order
# gives about the share of cells that show it. (Photographs have no masks; there, the rows are the features that follow
# a class most closely.)
#
# First, the *local* autoencoder, which reads the second-to-last stage:

# %%
scores, best, best_of = {}, {}, {}
for like, own in indexes.items() if parts else ():
    scores[like] = pd.read_parquet(own.folder / "parts.parquet")
    best[like] = features.best_matches(scores[like]).reindex(parts).dropna(subset="ap").astype({"feature_id": int})
    titles = [f"{part.replace('_', ' ')}\nAP {ap:.2f}" for part, ap in best[like]["ap"].items()]
    best_of[like] = dict(zip(titles, best[like]["feature_id"], strict=True))
for like, own in {} if parts else indexes.items():  # chosen on half B, so that these AUROCs flatter
    each = own.table.nlargest(8, f"{level}/auroc_z")
    words = zip(each["feature_id"], each[f"{level}/class"], each[f"{level}/auroc"], strict=True)
    best_of[like] = {f"{name}\nfeature {j}\nAUROC {auroc:.2f}": j for j, name, auroc in words}

# %% tags=["report"]
figure = patches_figure(indexes["local"], pictures, best_of["local"], rows_b)
plots.titled(figure, "What do the best local features show?")

# %% [markdown]
# Next, the *main* autoencoder, at the network's end. There, cells are twice as wide, and each sees nearly the whole
# picture. Where one feature is the best match of several parts, its row is repeated. (We save the five best rows for
# the README.)

# %%
figure = patches_figure(indexes["main"], pictures, best_of["main"], rows_b)
plots.titled(figure, "What do the best features at the network's end show?")

# %%
if parts and pictures.scenes is not None:  # the picture of the README; photographs are never written
    five = best["main"].nlargest(5, "ap")["feature_id"]
    five = {f"{part.replace('_', ' ')}\nfeature {j}": j for part, j in five.items()}
    (study.folder / "results").mkdir(parents=True, exist_ok=True)
    figure = patches_figure(index, pictures, five, rows_b)
    figure.savefig(study.folder / "results" / "features.jpg", dpi=110, pil_kwargs={"quality": 85})

# %% [markdown]
# It is tempting to find the title in each row. But a title tells the eye what to see, and each feature was picked from
# hundreds. What do the best of equally many features look like if they learned nothing? Here are the best features of
# an untrained autoencoder:

# %%
figure = Markdown(NO_MASKS)
if parts:
    untrained = study.features("local-null-untrained", **study.nulls("local")["untrained"]._asdict(), **only)
    matches = features.best_matches(pd.read_parquet(untrained.folder / "parts.parquet"))
    matches = matches.reindex(parts).dropna(subset="ap")
    titles = {f"{part.replace('_', ' ')}\nAP {row.ap:.2f}": int(row.feature_id) for part, row in matches.iterrows()}
    figure = patches_figure(untrained, pictures, titles, untrained.rows("test")[in_b])
    figure = plots.titled(figure, "And the best features of an untrained autoencoder?")
display(figure)

# %% [markdown]
# In a blind test, one rater was given the trained local autoencoder's rows from an earlier run, shuffled and without
# titles, and the twelve part names to choose from. Another rater was given the untrained autoencoder's rows in the same
# way.

# %%
path, text = Path("../data/results/hangar/blind_test.csv"), "No blind test belongs to these pictures."
if study.config.name == "hangar" and path.is_file():
    blind = pd.read_csv(path)
    right = (blind["part"] == blind["named"]).groupby(blind["rows"]).sum()
    results["blind_named_right"], results["blind_named_right_null"] = int(right["trained"]), int(right["untrained"])
    text = f"""**Takeaway.** The raters named {results["blind_named_right"]} of 12 trained rows correctly, and
    {results["blind_named_right_null"]} of 12 untrained ones (one rater each; guessing gets one). Trained rows would
    have to be named correctly more often for their looks to be evidence."""
display(Markdown(text))

# %% [markdown]
# An untrained autoencoder still reads a trained network. Its hundreds of random directions may include, for each part,
# one whose strongest patches show that part, and the masks would pick it out. To tell such a direction from a learned
# feature, we need numbers.

# %% [markdown]
# ## Do the best features beat nulls and guesses?
#
# A cell *shows* a part if the part fills at least a quarter of the cell, or if at least a quarter of the part lies in
# the cell. Four scores compete for each part:
#
# - the *best feature*, chosen on half A and scored on half B;
# - the *best null*, the highest score that any of six dictionaries reaches when its feature is chosen by the same rule:
#   the network's own channels and principal components (each with its negative), random directions, an untrained
#   autoencoder, one whose decoder stays random, and one trained on the network with permuted weights (the last two with
#   the short training of notebook 03);
# - the *best guess*, the highest score of four guesses. All of them know the aircraft's true outline. Some also know
#   how often half A shows the part at that place, or in aircraft of that class;
# - a *probe*: one direction fitted to the part labels of half A. It shows how well a single direction can do.

# %%
nulls, null_ap, null_means = {like: study.nulls(like) for like in LIKES} if parts else {}, {}, {}
for like, (name, null) in ((like, each) for like, own in nulls.items() for each in own.items()):
    own = study.features(f"{like}-null-{name}".replace(" ", "-"), **null._asdict(), **only)
    its_regions = features.Regions.of(own, study.pictures(null.pictures))
    matches = features.best_matches(pd.read_parquet(own.folder / "parts.parquet"))
    null_ap[like, name] = matches["ap"]
    null_means[like, name] = average(features.best_estimates(own, its_regions, matches).values()).entry
    results["local/" * (like == "local") + f"null/{name}/mean_part_ap"] = null_means[like, name]

# %%
kinds, guessed = {}, {}
for like, own in indexes.items() if parts else ():
    at, before = study.activations(LIKES[like]), "local/" * (like == "local")
    regions = features.Regions.of(own, pictures)
    ceiling = features.probe_scores(at.acts[at.rows("test")], regions)
    guessed[like] = features.guess_scores(regions).pivot(index="guess", columns="part", values="ap")
    highest = pd.DataFrame({name: ap for (site, name), ap in null_ap.items() if site == like}).max(axis=1)
    kinds[like] = {"best feature": best[like]["ap"], "best null": highest, "best guess": guessed[like].max()}
    kinds[like]["probe"] = ceiling
    results[f"{before}probe/mean_part_ap"] = (float(ceiling.mean()), None, None, int(in_b.sum()))
    results["ap_over_probe_mean" + "/main" * (like == "main")] = float((best[like]["ap"] / ceiling).mean())
    results |= {f"{before}guess/{name}/mean_part_ap": float(ap) for name, ap in guessed[like].mean(axis=1).items()}

# %%
estimates, spans = {}, {}
for like, own in indexes.items() if parts else ():
    before, regions = "local/" * (like == "local"), features.Regions.of(own, pictures)
    found = features.best_estimates(own, regions, best[like])
    estimates[like] = {part: each for part, each in found.items() if np.isfinite(each.value)}
    results[f"{before}mean_part_ap"] = average(estimates[like].values()).entry
    spans[like] = {part: each.interval for part, each in found.items()}
if parts:
    results |= {f"part_ap/{part}": each.entry for part, each in estimates["main"].items()}

# %% [markdown]
# Lines are 95% intervals over the pictures of half B; they are drawn for the best features only.

# %% tags=["report"]
title, figure = f"Do the best features beat nulls and guesses at {LIKES['local']}?", Markdown(NO_MASKS)
if parts:
    figure = plots.titled(plots.scores_by_part(kinds["local"], spans["local"]), title)
display(figure)

# %%
if parts:
    figure = plots.titled(plots.scores_by_part(kinds["main"], spans["main"]), "And at the network's end?")
display(figure)

# %%
if parts:
    regions, ids = features.Regions.of(index, pictures), best["main"]["feature_id"][list(estimates["main"])]
    swapped = [features.average_precision(index, regions, j, part, swap=True).value for part, j in ids.items()]
    results["swapped/mean_part_ap"] = float(np.mean(swapped))
    above = best["main"]["ap"].gt(guessed["main"].max())[list(estimates["main"])]
    clear = sum(each.interval[0] > guessed["main"][part].max() for part, each in estimates["main"].items())
    results["parts_above_guesses"] = (int(above.sum()), None, None, len(above))
    means = pd.Series({key: entry["value"] for key, entry in null_means.items()})
    results["best_null/mean_part_ap"] = null_means["main", means["main"].idxmax()]

# %%
told = {}
for like, site in LIKES.items() if parts else ():
    before, name = "local/" * (like == "local"), means[like].idxmax()
    guess, by_part = results[f"{before}guess/outline, place, class/mean_part_ap"], kinds[like]["best null"].mean()
    results[f"{before}best_null_by_part/mean_part_ap"] = (float(by_part), None, None, len(parts))
    told[like] = f"""**Takeaway, {site}.** The best features have a mean AP of
    {in_words(results[f"{before}mean_part_ap"], percent=False)}. The best null ({name}) reaches
    {null_means[like, name]["value"]:.2f} (taking the strongest null for each part: {by_part:.2f}), a guess from
    outline, place and class {guess:.2f}, and the probe {results[f"{before}probe/mean_part_ap"][0]:.2f}."""
display(Markdown("\n\n".join(told.values()) if parts else NO_MASKS))

# %%
if parts:
    text = f"""**Takeaway.** Features at the network's end beat every guess for {results["parts_above_guesses"][0]} of
    {len(above)} parts (for {clear}, even the lower end of their interval does). Scored against the masks of
    another picture of the same class, their mean AP is {results["swapped/mean_part_ap"]:.2f}; features that responded
    to the class alone would lose nothing."""
    display(Markdown(text))

# %% [markdown]
# AP is a strict measure. It penalises a feature for being active in neighbouring cells, and for being silent in any
# cell that shows the part. A feature that marks only engines seen from the left is right whenever it is active, and
# still scores low. AP is also lower on a finer grid, so compare scores within a figure, not between the two.

# %% [markdown]
# ## What does a feature drawn at random show?
#
# The best features were picked from hundreds. Here are eight features of the network's end that were drawn at random
# before any test:

# %%
drawn = random_ids.sample(min(8, len(random_ids)), random_state=1).tolist()
figure = patches_figure(index, pictures, {f"feature {j}": j for j in drawn}, rows_b)
plots.titled(figure, "What do random features show?")

# %% [markdown]
# The strongest patches are all that most galleries show. The next figure shows the first of these features three times:
# where it is strongest, where its activation falls in different tenths of its range, and in randomly drawn pictures in
# which it is active. All heat maps share one scale, up to the feature's largest activation; the cyan square marks the
# chosen cell. Read the bottom row first: that is what the feature does most of the time.

# %% tags=["report"]
plots.titled(
    gallery_figure(index, pictures, drawn[0], rows_b), f"What does feature {drawn[0]} do outside its strongest cells?"
)

# %% [markdown]
# Pictures suggest meanings. They show neither how often a suggestion holds, nor whether a direction that learned
# nothing would suggest a meaning as readily. The rest of this notebook mostly counts instead of looking.

# %% [markdown]
# ## Do features follow classes?
#
# For each feature and each level of the taxonomy, we choose on half A the class whose pictures the feature ranks
# highest. On half B we measure the *AUROC*: how often the feature is stronger in a picture of that class than in a
# picture of another (0.5 is chance, 1 is always). Its distance from chance, in standard deviations, is *z*. A feature
# is *placed* at the level at which its class stands out most on half A, if its AUROC for that class passes a
# permutation test on half B (9,999 permutations; Benjamini-Hochberg over all features and levels, q < 0.05).
#
# There are three nulls. One shuffles the labels. The second takes random directions: as many as there are features,
# drawn with the covariance of the cells, and on average as many active in a cell. It should be harder to beat: this
# network was trained to tell classes apart, so any direction in it may follow some class. But many features are active
# in few pictures, and pictures in which a feature is silent are tied. So the third null makes random directions *as
# sparse*: each one's weakest pictures are set to zero until the densest direction is active in as many pictures as the
# densest feature, the next direction in as many as the next feature, and so on.

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
of_random, shares = others.maxima(others.rows("test")), np.sort((index.maxima(test) > 0).mean(0))
rank = (of_random > 0).mean(0).argsort().argsort()  # the densest direction becomes as dense as the densest feature
least = [np.quantile(own, 1 - share) for own, share in zip(of_random.T, shares[rank], strict=True)]
lucky, sparse = (features.selectivity(each, codes, in_b) for each in (of_random, of_random * (of_random > least)))
kinds_ = {"features": table, "random directions": lucky, "random directions, as sparse": sparse}
kinds_["features, shuffled labels"] = null
z = {name: each[[f"{own}/auroc_z" for own in pictures.levels]].max(axis=1).dropna() for name, each in kinds_.items()}

# %%
figure = Markdown("No class has enough pictures for a test.")
if len(z["features"]):
    figure, ax = plots.sheet(3.6)
    sns.histplot(z, stat="percent", common_norm=False, bins=50, element="step", fill=False, ax=ax)
    ax.set(xlabel="largest z of a feature's AUROC on half B", ylabel="share, %")
    figure = plots.titled(figure, "Do features follow classes more than random directions do?")
display(figure)

# %%
tested, placed = null[f"{level}/auroc_p"].dropna(), {}
results["shuffled_share_below_0.05"] = (float((tested < 0.05).mean()), None, None, len(tested))
ends = {"": table, "_random_directions": lucky, "_random_directions_as_sparse": sparse, "_shuffled": null}
for (end, each), name in product(ends.items(), (*pictures.levels, "none")):
    results[f"placed{end}/{name}"] = (float((each["placed"] == name).mean()), None, None, len(each))
    placed.setdefault(name, []).append(f"{results[f'placed{end}/{name}'][0]:.0%}")
results["median_z"] = float(z["features"].median())
results["median_z_shuffled"] = float(z["features, shuffled labels"].median())
display(pd.DataFrame(placed, index=list(kinds_)).rename_axis("placed at"))

# %%
strong = table[f"{level}/auroc"] >= 0.9
for end, each in ends.items():
    results[f"share_auroc_0.9{end}/{level}"] = (float((each[f"{level}/auroc"] >= 0.9).mean()), None, None, len(each))

# %%
beyond, at_09 = (
    [results[name.format(end)][0] for end in ends] for name in ("placed{}/none", f"share_auroc_0.9{{}}/{level}")
)
text = f"""**Takeaway.** {1 - beyond[0]:.0%} of the features (n = {len(table)}) and {1 - beyond[1]:.0%} of random
directions follow some class beyond chance (as sparse: {1 - beyond[2]:.0%}; shuffled labels: {1 - beyond[3]:.0%}). An
AUROC of 0.9 or more for a {level} is reached by {at_09[0]:.0%} of the features and {at_09[1]:.0%} of the random
directions (as sparse: {at_09[2]:.0%})."""
display(Markdown(text))
assert study.config.name != "hangar" or beyond[3] > 0.9

# %% [markdown]
# In a network trained on these classes, a feature that follows a class is remarkable only if random directions follow
# classes less closely. And following a class does not show what in the picture the feature follows.

# %% [markdown]
# ## Does a feature have one meaning?
#
# We choose the 16 pictures of half B in which a random feature is strongest, take its strongest cell in each, keep the
# cells that lie on the aircraft, and ask which parts they show. *Purity* is the share of these cells that show the most
# common part. Many cells show several parts, so purity is well above zero in any case. There are two controls: the same
# number of random aircraft cells, and the strongest cells of random directions.

# %%
N_TOP, purities, on_aircraft, draws = 16, {"features": {}, "random directions": {}}, {}, []
if parts:
    within, rng = regions.within, np.random.default_rng(0)
    random_cells = regions.labels[in_b][within[in_b]]
    both = {"features": (index, test, random_ids), "random directions": (others, others.rows("test"), random_ids)}

# %%
for of, (own, rows_, ids) in both.items() if parts else ():
    for feature_id in ids:
        picks = own.patches(feature_id, "top", N_TOP, rows_[in_b])
        where = np.searchsorted(rows_, picks["image_row"]), picks["row"], picks["column"]
        on = within[where]
        if len(picks) == N_TOP:
            on_aircraft.setdefault(of, []).append(on.mean())
        if on.sum() >= N_TOP // 2:
            purities[of][feature_id] = regions.labels[where][on].mean(0)
        if of == "features" and on.sum() >= N_TOP // 2:
            draws.append(random_cells[rng.integers(len(random_cells), size=(200, on.sum()))].mean(1).max(1))

# %%
figure, purity = Markdown("No feature has 8 such cells." if parts else NO_MASKS), purities["features"]
if len(purity):
    highest, lucky_ = (np.array([each.max() for each in own.values()]) for own in purities.values())
    null, (figure, ax) = np.concatenate(draws), plots.sheet(3.6)
    both = {"random features": highest, "random directions": lucky_, "random aircraft cells": null}
    sns.histplot(both, stat="percent", common_norm=False, bins=16, element="step", fill=False, ax=ax)
    ax.set(xlabel="purity: share of the strongest cells that show one part", ylabel="share, %")
    figure = plots.titled(figure, "Do a feature's strongest cells show one part?")
display(figure)

# %%
if len(purity):
    pure = np.array([each > np.quantile(drawn, 0.95) for each, drawn in zip(highest, draws, strict=True)])
    results["purity_above_random_cells"] = (float(pure.mean()), None, None, len(purity))
    each = {"": highest, "_random_directions": lucky_, "_random_cells": null}
    results |= {f"purity_median{end}": float(np.median(own)) for end, own in each.items() if len(own)}
    for end, of in (("", "features"), ("_random_directions", "random directions")):
        each = on_aircraft.get(of, [np.nan])
        results[f"top_cells_on_aircraft{end}"] = with_interval(each, np.ones(len(each)))
    shares = within[in_b].mean((1, 2))
    results["all_cells_on_aircraft"] = with_interval(shares, np.ones(len(shares)))

# %%
if len(purity):
    on_, on_random = (in_words(results[f"top_cells_on_aircraft{end}"]) for end in ("", "_random_directions"))
    on_any, lucky_said = results["all_cells_on_aircraft"]["value"], ""
    if len(lucky_):
        lucky_said = f"{np.median(lucky_):.2f} for random directions (n = {len(lucky_)}), "
    text = f"""**Takeaway.** A random feature's strongest cells lie on the aircraft in {on_} of the cases, a random
    direction's in {on_random} (any cell: {on_any:.0%}). Where at least half of them do, median purity is
    {np.median(highest):.2f} (n = {len(purity)} features), {lucky_said}and {np.median(null):.2f} for random aircraft
    cells."""
    display(Markdown(text))

# %% [markdown]
# Purity above that of random aircraft cells is no evidence of learning as long as random directions are as pure.
#
# A feature of low purity may still have a single meaning, but one for which the hangar has no mask: a colour, a viewing
# direction, a shadow. Of the features with at least half of their strongest cells on the aircraft, here are the two
# least pure:

# %%
figure = Markdown("No feature has 8 such cells." if parts else NO_MASKS)
if len(purity):
    mixed, titles = sorted(purity, key=lambda feature_id: purity[feature_id].max())[:2], {}
    for j in mixed:
        two = pd.Series(purity[j], parts).nlargest(2)
        titles[f"feature {j}\n" + "\n".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in two.items())] = j
    figure = plots.titled(patches_figure(index, pictures, titles, rows_b), "What do the least pure features show?")
display(figure)

# %% [markdown]
# ## What do features that claim no part follow?
#
# A feature *claims* a part if its AP on half A lies above a bar. To set the bar, we draw as many random directions as
# there are features, and take the highest AP among them; the bar is the 95th percentile over 20 such draws (notebook
# 05). What do the others follow? Each scene of the hangar was made from known factors, such as class, view, light,
# paint and background. For each local feature that is active and claims no part, we choose on half A the factor that
# explains the largest share of the variance, over pictures, of the feature's largest activation (numerical factors are
# cut into eighths). On half B we measure how much that factor explains. One null shuffles the pictures of half B. The
# other takes the same steps, without shuffling, for all active random directions.

# %%
groups, numbers = {}, pd.DataFrame()
if parts:
    known = pictures.table.set_index("image").loc[images["image"]]
    numbers = known.filter(regex="^(variant|family|camera|light|livery|background|finish_[ebn]|gear)")
for name, column in numbers.items():
    many = column.nunique() > 40  # a number, not a name
    groups[name] = pd.factorize(pd.qcut(column, 8, duplicates="drop") if many else column)[0]
titles = {"variant": "class", "family": "class", "camera": "view", "light": "light", "livery": "paint"}
titles |= {"background": "background", "finish": "photographic finish", "gear": "gear down or not"}

# %%
shares, rng, maxima_ = {}, np.random.default_rng(0), {}
if parts:
    given = study.nulls("local")["random directions"]._asdict()
    maxima_ = {"features": indexes["local"].maxima(test)}
    random_ = study.features("local-null-random-directions", **given, **only)
    maxima_["random directions"] = random_.maxima(random_.rows("test"))
halves_ = {"a": np.flatnonzero(~in_b), "b": np.flatnonzero(in_b), "null": rng.permutation(np.flatnonzero(in_b))}

# %%
for (of, each), (half, order), (name, codes_) in product(maxima_.items(), halves_.items(), groups.items()):
    labels = codes_[np.sort(order)]
    member, x = np.eye(labels.max() + 1)[labels], each[order] - each[order].mean(0)
    between = np.square(member.T @ x) / np.maximum(member.sum(0), 1)[:, None]
    share = between.sum(0) / np.maximum(np.square(x).sum(0), 1e-9)
    shares[of, half, name] = 1 - (1 - share) * (len(x) - 1) / max(1, len(x) - member.any(0).sum())

# %%
explained = []
for of, each in maxima_.items():
    asked = each[in_b].max(0) > 0
    if of == "features":
        asked &= features.claims_of(scores["local"], study.bars("local")).isna().to_numpy()
        results["no_part/share"] = (float(asked.mean()), None, None, len(asked))
    on = {half: pd.DataFrame({name: shares[of, half, name] for name in groups})[asked] for half in halves_}
    factor = on["a"].idxmax(axis=1)
    at = np.arange(len(factor)), on["a"].columns.get_indexer(factor)
    found = {half: values.to_numpy()[at] for half, values in on.items()} | {"of": of, "factor": factor}
    explained.append(pd.DataFrame(found).assign(kind=factor.str.split("_").str[0].map(titles)))

# %%
figure = Markdown(NO_MASKS)
if parts:
    known, (figure, ax) = pd.concat(explained).assign(share=lambda own: 100 * own["b"]), plots.sheet(4.4)
    kinds_of = known[known["of"] == "features"]["kind"].value_counts(normalize=True)
    least, colours = known["null"].quantile(0.95), ("#9ECAE1", "#CCCCCC")
    options = {"hue": "of", "palette": colours, "order": kinds_of.index, "fliersize": 2}
    sns.boxplot(known, x="share", y="kind", ax=ax, **options)
    ax.axvline(100 * least, color=plots.GREY, linestyle=":", label="95th percentile, half B shuffled")
    ax.set(xlabel="variance of the largest activation explained on half B, %", ylabel="best factor on half A")
    ax.legend()
    figure = plots.titled(figure, "What explains the features that claim no part?")
display(figure)

# %%
for end, of in (("", "features"), ("/random", "random directions")) if parts else ():
    told_b = known.loc[known["of"] == of, "b"]
    results[f"no_part/explained_above_chance{end}"] = (float((told_b > least).mean()), None, None, len(told_b))
    results[f"no_part/median_explained{end}"] = (float(told_b.median()), None, None, len(told_b))
if parts:
    results |= {f"no_part/{name}": (float(each), None, None, len(explained[0])) for name, each in kinds_of.items()}

# %%
text = NO_MASKS
if parts:
    most, silent = kinds_of.index[0], results["no_part/share"]
    own, other = (results[f"no_part/median_explained{end}"][0] for end in ("", "/random"))
    text = f"""**Takeaway.** {silent[0]:.0%} of the local features are active and claim no part (n = {silent[3]:,}). The
    best factor is most often the {most}. For the median feature, the best factor explains {own:.0%} of the variance
    (random directions: {other:.0%}).
    {results["no_part/explained_above_chance"][0]:.0%} of the features lie above the 95th percentile of shuffled
    pictures (random directions: {results["no_part/explained_above_chance/random"][0]:.0%}; chance: 5%)."""
display(Markdown(text))

# %% [markdown]
# A random direction adds up many cues, so a factor may explain more of it than of a feature that few cells activate.
# And the factor that best explains a feature's maximum need not be what a person would name: each class has its own
# parts, and each view shows some parts and hides others.

# %% [markdown]
# ## Are features local?
#
# Heat maps of the network's end can show vertical bands: a feature that is strong in one cell is then strong in much of
# its column. The table gives the correlation between neighbouring cells on half B: for the activation of the median
# random feature, for the median channel of the network, and for the share of a cell that the aircraft fills.

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
shown = {name if "/" in name else f"{LIKES['main']}/{name}": each for name, each in rows.items()}
display(pd.DataFrame(shown, index=["one above the other", "side by side"]).T.round(2))

# %%
near = rows[f"{LIKES['local']}/features"]
text = f"""**Takeaway.** At {LIKES["main"]}, the median feature's correlation is {rows["features"][0]:.2f} between
vertical neighbours (channel: {rows["channels"][0]:.2f}) and {rows["features"][1]:.2f} between horizontal ones (channel:
{rows["channels"][1]:.2f}). At {LIKES["local"]}, it is {near[0]:.2f} and {near[1]:.2f}
(n = {in_b.sum()} pictures)."""
display(Markdown(text))
assert all(-1 <= value <= 1 for each in rows.values() for value in each if np.isfinite(value))

# %% [markdown]
# Bands raise the vertical correlation above the horizontal one, although aircraft are wider than tall. Where the
# channels' correlations differ in the same way, bands come at least in part from the network. A feature at the
# network's end should not be read as a statement about only the part of the picture that lies under its cell.

# %% [markdown]
# ## Would another seed find them?
#
# There are two ways to ask this. First, *subspaces*: a part's five best features span a subspace, and so do another
# seed's five best for the same part. How much do the two subspaces share (mean squared cosine of the principal angles)?
# The controls are the other seed's five best features for another part, and five of its features drawn at random.

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
    others_ = [np.concatenate([bases[like, i], drawn_bases[like, i]]) for i in (1, 2)]
    cosines = [np.einsum("pdi,qdj->pqij", bases[like, 0], each) for each in others_]
    shared, n = np.mean([np.square(each).sum((2, 3)) / 5 for each in cosines], axis=0), len(parts)
    own, apart = shared[:, :n].diagonal(), ~np.eye(n, dtype=bool)
    of = {"subspaces": own, "subspaces of random features": shared[:, n:].mean(1)}
    of["subspaces of other parts"] = [row[kept].mean() for row, kept in zip(shared[:, :n], apart, strict=True)]
    for name, values in of.items():
        results[f"{like}/{name.replace(' ', '_')}"] = entry = with_interval(np.array(values), np.ones(n))
        again.setdefault(site, {})[name] = in_words(entry, unit="parts")
display(pd.DataFrame(again) if parts else Markdown(NO_MASKS))

# %%
text = NO_MASKS
if parts:
    own, other = (results[f"main/{name}"] for name in ("subspaces", "subspaces_of_other_parts"))
    text = f"""**Takeaway.** At {LIKES["main"]} a part's subspace shares {in_words(own, unit="parts")} with the same
    part's subspace in another seed, and {in_words(other, unit="parts")} with another part's."""
display(Markdown(text))

# %% [markdown]
# Second, *single features*. We match the features at the network's end one to one with those of two other seeds, as in
# notebook 03. Each feature has four cosines with its partners: one between the encoder directions and one between the
# decoder directions, for each of the two seeds. We take the lowest. Chance is again measured with random mixtures of
# the other seeds' features.

# %%
seeds = [study.sae(f"main-seed{seed}", like="main", seed=config.seed + seed) for seed in (1, 2)]
stability = reconstruction.seed_match(sae, seeds)
mixed = [
    SimpleNamespace(**{name: reconstruction.mixtures(getattr(model, name), seed) for name in ("W_dec", "W_enc_rows")})
    for seed, model in enumerate(seeds)
]
by_chance = reconstruction.seed_match(sae, mixed)

# %%
matched = claims["main"].query("chosen == 'part'")
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

# %%
figure = plots.dots(entries, "lowest of four cosines with partners in other seeds (dotted: 0.7)", "features", line=0.7)
plots.titled(figure, "Does another seed find the same features?")

# %%
random, chance = (in_words(entries[name], percent=False) for name in ("random", "chance: random, with random mixtures"))
of_parts = f" (best matches: {each['value']:.2f})" if (each := entries.get("several best matches of each part")) else ""
text = f"""**Takeaway.** A random feature's lowest cosine with its partners is {random} on average{of_parts}; chance
gives {chance}. {results["seed_match_0.7"][0]:.1%} of all features reach 0.7 in both other seeds (chance:
{results["seed_match_0.7_chance"][0]:.1%})."""
display(Markdown(text))

# %% [markdown]
# A feature found by one seed alone may still be real: many dictionaries have a similar error, and training settles on
# one of them. But a claim about it should say how many seeds support it, which is why notebook 05 tests three.

# %% [markdown]
# ## Do features of renders show the same things in photographs?
#
# This section runs only on photographs, and only if the default study has been made in the same data folder. Here the
# hangar's network is shown the photographs. Do the features that mark nose gears in renders mark nose gears here?
# Photographs have no masks, so you have to judge by eye. One thing can be counted: of the features that are active in
# at least 1% of the test renders, how many are active in a similar share of the photographs (half to twice as large)?

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
    figure = plots.titled(figure, "Do features of renders show the same things in photographs?")
display(figure)

# %%
if carried:
    of_test = renders.maxima(renders.rows("test")) > 0, carried.maxima(carried.rows("test")) > 0
    here, there = (active.mean(0) for active in reversed(of_test))
    like = here[there >= 0.01] / there[there >= 0.01]
    results["hangar/firing_ratio_within_2"] = (float(((like >= 0.5) & (like <= 2)).mean()), None, None, len(like))
    results["hangar/silent_in_photographs"] = (float((like == 0).mean()), None, None, len(like))
    text = f"""**Takeaway.** Of {len(like)} features of renders, {results["hangar/firing_ratio_within_2"][0]:.0%} are
    active in a similar share of the photographs (half to twice as large), and
    {results["hangar/silent_in_photographs"][0]:.0%} in no photograph."""
    display(Markdown(text))

# %% [markdown]
# ## Browse them yourself
#
# Here are all features, the measurements of each, and a field for what you think it shows. The widget needs a running
# kernel; without one, its opening gallery stands in for it. Notebook 06 shows the same browser by itself.

# %%
browser = FeatureBrowser(study, like="local")
display(browser)

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
outside = set(index.images["image"].iloc[rows_b]) & set(images["image"][~in_b])
print("pictures in both halves:", len(outside))

# %%
number = {name: (entry["value"] if isinstance(entry, dict) else np.ravel(entry)[0]) for name, entry in results.items()}
study.record(NAME, {name: results[name] for name, value in number.items() if np.isfinite(value)})  # nan: untested
final = study.results(NAME)
value = {name: entry["value"] for name, entry in final.items()}

# %%
lines = []
if "blind_named_right" in value:
    lines += [
        f"""Judging by looks, one rater correctly named {value["blind_named_right"]} of 12 rows of an earlier run's
        local autoencoder; another, {value["blind_named_right_null"]} of 12 rows of an untrained one."""
    ]

# %%
for like, site in LIKES.items() if parts else ():
    before, guess = "local/" * (like == "local"), "guess/outline, place, class/mean_part_ap"
    lines += [
        f"""At {site} the best features find parts with a mean AP of {value[f"{before}mean_part_ap"]:.2f}; the best
        null, chosen for each part, reaches {value[f"{before}best_null_by_part/mean_part_ap"]:.2f}, a guess
        {value[f"{before}{guess}"]:.2f}, and a fitted probe {value[f"{before}probe/mean_part_ap"]:.2f}."""
    ]

# %%
lines += [
    f"""{1 - value["placed/none"]:.0%} of the features and {1 - value["placed_random_directions/none"]:.0%} of random
    directions follow some class beyond chance.""",
    f"""{value["seed_match_0.7"]:.1%} of the features have a cosine of at least 0.7 with partners in both other
    seeds (chance: {value["seed_match_0.7_chance"]:.1%}).""",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That this seed is typical.** Notebook 05 repeats the claims about parts for three seeds.
# - **What features do.** A feature that follows a part need not matter to the classifier. The next notebook asks
#   whether it does.
# - **What the other features mean.** The hangar has masks for twelve parts, but not for light, paint or view.
# - **Anything about other autoencoders.** Other widths and sparsities may split parts differently.
