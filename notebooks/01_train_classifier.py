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
# # 1. Train a classifier on aircraft
#
# **Question.** How well can a small ConvNeXt tell apart aircraft that differ only in details, and where does it go
# wrong?
#
# This is the first of six notebooks that ask what an aircraft classifier looks at, and how sure we can be. Notebook 01
# trains it; 02 extracts its activations; 03 decomposes each activation vector into a few directions, called features;
# 04 asks what the features show; 05 tests whether they do what they seem to do; and 06 lets you look for yourself.
# Before we look inside a network, we have to know how good it is, and at what.
#
# **Reads** only the settings below. The default preset renders its own pictures, the *hangar*; the presets `photos` and
# `fgvc` read photographs. **Writes** `data/runs/<preset>/dataset` and `…/networks/trained`, the numbers in
# `data/runs/<preset>/results/01_train_classifier.json`, and a contact sheet of rendered aircraft.
#
# **Runtime** with the default preset on 2 CPU cores: five minutes the first time, a quarter of a minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy.stats import binomtest
from sklearn.metrics import ConfusionMatrixDisplay

# %%
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.networks import evaluate
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The environment variable `AIRCRAFT_SAE_PRESET` chooses the preset: `hangar` by default, `smoke` in the tests. The
# default preset has to reach the numbers below, or the notebook fails. Other presets have no such limits.

# %%
study = Study.open()
NAME, results = "01_train_classifier", {}
promised = {"hangar": {"accuracy": 0.88, "n_classes": 30, "n_parts": 12}}.get(
    study.config.name, {"accuracy": 0.0, "n_classes": 2, "n_parts": 0}
)

# %% [markdown]
# ## What pictures are there?
#
# Every picture belongs to one *variant*, every variant to one *family*, every family to one *manufacturer*: three
# levels, as in FGVC-Aircraft. The network learns from `train`, is monitored on `val`, and is measured once on `test`.
# Later notebooks measure features on these test pictures, too.

# %%
data = study.pictures()
fine, *coarser = data.levels
splits = data.table.groupby("split", sort=False).agg(
    pictures=("image", "size"), **{f"{level} classes": (level, "nunique") for level in data.levels}
)
results |= {"n_train": len(data.rows(study.config.classifier.train_split)), "n_test": len(data.rows("test"))}
results |= {"n_classes": len(data.classes(fine)), "chance": 1 / len(data.classes(fine))}
assert results["n_classes"] >= promised["n_classes"]
display(splits)

# %% [markdown]
# The classes, from the manufacturer down:

# %%
pd.set_option("display.max_colwidth", None, "display.max_rows", 120)
above = coarser[::-1] or [fine]
data.table.groupby(above)[fine].unique().map(sorted).map(", ".join).to_frame(f"{fine} classes")

# %% [markdown]
# And here is one picture of each family. For rendered aircraft we show the clearest view: the whole aircraft from the
# front quarter, in sunlight, as large as possible. For photographs we show the first.

# %%
rendered = data.scenes is not None
scenes = data.table.merge(data.scenes, on="image") if rendered else data.table
if rendered:
    size, pixels = data.picture(scenes["image"][0]).width, [f"pixels_{part}" for part in data.region_names]
    whole = scenes[["xmin", "ymin"]].gt(1).all(axis=1) & scenes[["xmax", "ymax"]].lt(size).all(axis=1)
    quarter = scenes["camera_azimuth"].abs().between(0.6, 1.4) & scenes["camera_elevation"].between(0.0, 0.4)
    clear = (whole & quarter & scenes["light_sun"].gt(1)) * scenes[pixels].sum(axis=1)
    scenes = scenes.loc[clear.sort_values(ascending=False, kind="stable").index]
shown = coarser[0] if coarser else fine
first = scenes.drop_duplicates(shown).set_index(shown)

# %% tags=["report"]
groups = data.parents(shown, coarser[-1]) if len(coarser) > 1 else dict.fromkeys(data.classes(shown), "")
tiles = [data.picture(first.loc[name, "image"]) for name in groups]
captions = [f"{name.removeprefix(f'{group} ')}\n{group}".strip() for name, group in groups.items()]
fives = [slice(i, i + 5) for i in range(0, len(tiles), 5)]
figure = plots.picture_grid([tiles[five] for five in fives], [captions[five] for five in fives])
if rendered:  # photographs belong to their owners, so a sheet of them is never written
    sheet = study.folder / "results" / "contact_sheet.jpg"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(sheet, dpi=110, pil_kwargs={"quality": 85})
plots.titled(figure, f"What does each {shown} look like?")

# %%
text = f"""**Takeaway.** There are {results["n_classes"]} {fine} classes, so a guess is right
{results["chance"]:.1%} of the time. The network learns from {results["n_train"]:,} pictures and is tested on
{results["n_test"]:,}."""
display(Markdown(text))

# %% [markdown]
# One picture per family hides how much the pictures of a family vary: the camera goes all the way round, and light,
# paint, background and sharpness change from scene to scene. In the hangar, none of these depends on the class.
# `tests/test_hangar.py` checks that: from the background alone, or from the colours alone, a linear classifier scores
# at chance. Photographs have no such guarantee. There, an airline or an airport can hint at the type.

# %% [markdown]
# ## What tells two variants of a family apart?
#
# In the hangar we can answer this with everything else held constant. Each column is one scene rendered twice, with
# only the variant changed. Orange marks the pixels at which the two show different parts.

# %%
NO_SCENES = "These pictures are photographs. There are no scenes to render again, and no part masks."
parents = data.parents(fine, shown) if coarser else {}
families = [name for name in data.classes(shown) if rendered and list(parents.values()).count(name) > 1]
chosen = families[:: max(1, len(families) // 5)][:5]
twins = [[name for name in data.classes(fine) if parents[name] == family][:2] for family in chosen]
views = [Scene.from_json(first.loc[family, "scene"]) for family in chosen]
drawn = [[render(replace(view, variant=name)) for name in pair] for view, pair in zip(views, twins, strict=True)]
differ = [one.mask != other.mask for one, other in drawn]

# %%
one, other = ([pair[k] for pair in drawn] for k in (0, 1))
figure = plots.picture_grid(
    [[p.image for p in one], [p.image for p in other], [p.image for p in other]],
    [[pair[0] for pair in twins], [pair[1] for pair in twins], [""] * len(twins)],
    ["one variant", "the other", "part differs"],
    [[None] * len(twins), [None] * len(twins), differ],
    empty=NO_SCENES,
)
plots.titled(figure, "What tells two variants of a family apart?")

# %%
shares = [mark.sum() / ((a.mask >= 2) | (b.mask >= 2)).sum() for mark, (a, b) in zip(differ, drawn, strict=True)]
text = NO_SCENES
if rendered:
    results["variants/least_share_of_pixels_that_differ"] = (min(shares), None, None, len(shares))
    text = f"""**Takeaway.** In these {len(shares)} pairs, the two variants show different parts in {min(shares):.0%}
    to {max(shares):.0%} of the aircraft's pixels."""
    assert min(shares) > 0.02
display(Markdown(text))

# %% [markdown]
# So the difference is visible in a clear view. It need not be visible in every view: from behind, a long fuselage looks
# much like a short one.

# %% [markdown]
# ## Where are the parts?
#
# The hangar knows which part of the airframe each pixel shows. The classifier never sees these masks. Later notebooks
# need them to ask whether something inside the network responds to, say, engines. Here are the scenes that show the
# most parts at once.

# %%
most = scenes.iloc[:0]
if rendered:
    n_seen = (scenes[pixels] >= 40).sum(axis=1).sort_values(ascending=False, kind="stable")
    most = scenes.loc[n_seen.index].drop_duplicates(coarser[-1]).head(3)
figure = plots.part_masks(
    [data.picture(image) for image in most["image"]],
    [data.mask(image) for image in most["image"]],
    data.region_names,
    most[fine].tolist(),
    empty=NO_SCENES,
)
plots.titled(figure, "Where are the parts?")

# %% tags=["nbval-check-output"]
print("parts:", ", ".join(data.region_names))

# %% [markdown]
# What share of the aircraft's pixels does each part take up, and in how many pictures is it visible at all?

# %%
share, seen, figure = {}, {}, Markdown(NO_SCENES)
if rendered:
    total = scenes[pixels].sum()
    share = dict(zip(data.region_names, total / total.sum(), strict=True))
    seen = dict(zip(data.region_names, scenes[pixels].gt(0).mean(), strict=True))
    table = 100 * pd.DataFrame({"of the aircraft's pixels, %": share, "of pictures that show it, %": seen})[::-1]
    figure, axes = plots.sheet(1.2 + 0.32 * len(table), 1, 2, sharey=True)
    table.rename(lambda part: part.replace("_", " ")).plot.barh(subplots=True, ax=axes, color="C0", legend=False)
    for ax in axes:
        ax.bar_label(ax.containers[0], fmt="%.1f", padding=3)
        ax.margins(x=0.15)

# %%
display(plots.titled(figure, "How much of an aircraft is each part?") if rendered else figure)

# %%
text = NO_SCENES
if rendered:
    results["parts/n_seen"] = int(sum(value > 0 for value in seen.values()))
    results |= {f"parts/{part}/share_of_pixels": (share[part], None, None, len(scenes)) for part in data.region_names}
    small, *_, large = sorted((part for part in share if share[part]), key=share.get)
    text = f"""**Takeaway.** Of the aircraft's pixels, {share[large]:.0%} show the largest part, the {large}, and
    {share[small]:.1%} show the smallest, the {small} (n = {len(scenes):,} pictures)."""
    assert results["parts/n_seen"] >= promised["n_parts"] and abs(sum(share.values()) - 1) < 1e-9
display(Markdown(text.replace("_", " ")))

# %% [markdown]
# A small part may still be important: the number of its pixels does not say how much it helps to tell classes apart.

# %% [markdown]
# ## What is a scene edit?
#
# Later notebooks remove a part and record how the network responds. The response says something about the part only if
# nothing else in the picture changes. Below, one scene is edited in three ways; orange marks every pixel whose colour
# changed at all. (`tests/test_hangar.py` checks for every part that removing it changes that part's pixels and no
# others.)

# %%
edits = {}
if rendered:
    scene = replace(Scene.from_json(first.loc[data.classes(shown)[0], "scene"]), shadows=False)
    edits = {
        "as it was": scene,
        "engine removed": scene.edit("remove", "engine"),
        "fin moved forward": scene.edit("move", "fin", (0.12, 0.0, 0.0)),
        "wing in red": scene.edit("recolour", "wing", (0.85, 0.1, 0.1)),
    }
images = [render(edited).image for edited in edits.values()]
changed = [(image != images[0]).any(axis=2) for image in images]

# %%
captions = [list(edits), [f"{mark.sum():,} pixels changed" for mark in changed]]
figure = plots.picture_grid([images, images], captions, marks=[[None] * len(images), changed], empty=NO_SCENES)
plots.titled(figure, "What does a scene edit change?")

# %% [markdown]
# We edit scenes rendered without cast shadows, because a removed part would otherwise take its shadow with it.

# %% [markdown]
# ## Does the network learn?
#
# The network is a ConvNeXt: four *stages*, each of which outputs a coarser grid of cells with more channels than the
# one before. The *head* averages the last grid over its cells, normalises the result, and gives one number per class,
# its *logit*. By default, training starts from weights that were trained on other made-up variants, with a new head.
# Training accuracy is measured on the fly, on cropped and recoloured pictures; validation accuracy is measured on whole
# pictures, with a running average of the weights. To the right of the vertical line, training uses larger pictures. The
# dotted line shows what guessing achieves.

# %%
network, cfg = study.network(), study.config.classifier
history = network.history
print(f"{cfg.arch}, from {cfg.weights or 'random'} weights, {network.size} px")
by_epoch = history.set_index("epoch").dropna(axis=1, how="all")

# %%
figure, axes = plots.sheet(3.8, 1, 2)
look, names = {"style": ["o-", "s-"], "xticks": by_epoch.index}, {"train": "training", "val": "validation"}
guesses = {"loss": np.log(len(network.classes)), "accuracy": 100 / len(network.classes)}
for ax, (kind, guess), label in zip(axes, guesses.items(), ("cross-entropy, nats", "accuracy, %"), strict=True):
    own = (100 if kind == "accuracy" else 1) * by_epoch.filter(like=f"_{kind}")
    own.rename(columns=lambda name: names[name.partition("_")[0]]).plot(ax=ax, ylabel=label, **look)
    ax.axhline(guess, color=plots.GREY, linestyle=":")
    ax.set_ylim(0, 100 if kind == "accuracy" else None)
    for epoch in by_epoch.index[by_epoch["size"].diff() > 0]:
        ax.axvline(epoch - 0.5, color=plots.GREY, linewidth=0.8)
display(plots.titled(figure, "Does the network learn?"))

# %%
made = {"train_seconds": "networks/trained", "render_seconds": "dataset"}
results |= {name: study.stages[stage].meta["seconds"] for name, stage in made.items() if rendered or "train" in name}
results |= {"n_epochs": len(history), "train/accuracy": history["train_accuracy"].iloc[-1]}
watched, on_watched = cfg.val_split, ""
if watched:
    results["val/accuracy"] = (history["val_accuracy"].iloc[-1], None, None, len(data.rows(watched)))
    on_watched = f" and {results['val/accuracy'][0]:.1%} on the {results['val/accuracy'][-1]:,} pictures of {watched}"
text = f"""**Takeaway.** After {len(history)} epochs, accuracy is {results["train/accuracy"]:.1%} in
training{on_watched}."""
display(Markdown(text))
assert results["n_epochs"] == cfg.n_epochs

# %% [markdown]
# These curves show whether training went well. The result itself comes from the test split, on which no choice was
# based.

# %% [markdown]
# ## How good is it?
#
# FGVC-Aircraft's official metric is *class-averaged accuracy*: the share of each class's pictures that is recognised,
# averaged over classes, so that frequent classes do not count more. *Top-1* is the share of all pictures that is
# recognised. The probability of a family is the sum of its variants' probabilities. Each interval contains the values
# of 95% of 2,000 bootstrap draws of test pictures.

# %%
level = network.level
measured, confusion = evaluate(network, data, "test", network.predictions)
results |= measured
levels = [name for name in data.levels if f"test/{name}/top1_accuracy" in results]
titles = {"class_averaged_accuracy": "class-averaged accuracy", "top1_accuracy": "top-1"}
table = pd.DataFrame({"guessing": {name: f"{1 / len(data.classes(name)):.1%}" for name in levels}})
for metric, title in titles.items():
    table[title] = [in_words(results[f"test/{name}/{metric}"] | {"n": None}) for name in levels]
display(table)

# %% tags=["report"]
official = {name: results[f"test/{name}/class_averaged_accuracy"] for name in levels}
counts = {name: len(data.classes(name)) for name in levels}
named = {f"{name} ({n} classes, guessing {1 / n:.1%})": official[name] for name, n in counts.items()}
figure = plots.dots(named, "class-averaged accuracy, % (axis truncated)", "level", 100)
plots.titled(figure, "How good is the classifier?")

# %%
at_others = "".join(f" At {name} level it is {in_words(official[name])}." for name in levels[1:])
text = f"""**Takeaway.** Class-averaged accuracy on test pictures is {in_words(official[level])} at {level} level;
guessing gives {results["chance"]:.1%}.{at_others}"""
display(Markdown(text))
assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in official.values())
assert official[level]["value"] >= promised["accuracy"] and official[level]["n"] == results["n_test"]

# %% [markdown]
# The intervals say how far the numbers could move with other test pictures of this kind. They do not cover another
# training run, or pictures of another kind.

# %% [markdown]
# ## Which classes does it confuse?
#
# If the network recognises airframes, it should mostly confuse aircraft that are built alike. Rows are the actual
# classes, columns the predicted ones; both are ordered by manufacturer and family.

# %%
above = [data.parents(level, name) for name in reversed(levels[1:])]
order = sorted(confusion, key=lambda name: [groups[name] for groups in above])
shares = confusion.loc[order, order].div(confusion.loc[order].sum(axis=1), axis=0).fillna(0)
side = 3 + 0.2 * len(order)
figure, ax = plots.sheet(side, width=side + 1)
drawn = ConfusionMatrixDisplay(100 * shares.to_numpy(), display_labels=[plots.literal(name) for name in order])
drawn.plot(include_values=False, cmap="Blues", xticks_rotation="vertical", ax=ax)
ax.set(xlabel="predicted", ylabel="actual")
drawn.im_.colorbar.set_label("share of the actual class's pictures, %")
display(plots.titled(figure, "Which classes does it confuse?"))

# %%
wrong = network.predictions.query("label != predicted").sort_values("confidence", ascending=False, kind="stable")
confused = confusion.stack().rename("n_images").reset_index()
confused["share"] = confused["n_images"] / confused["actual"].map(confusion.sum(axis=1))
confused = confused.query("actual != predicted and n_images > 0")
confused = confused.sort_values("n_images", ascending=False, kind="stable")
results["test/n_mistakes"], in_family = len(wrong), ""

# %%
if len(wrong) and "family" in levels[1:]:
    family = pd.Series(data.parents(level, "family"))
    within = int((wrong["label"].map(family) == wrong["predicted"].map(family)).sum())
    interval = binomtest(within, len(wrong)).proportion_ci(method="wilson")
    results["test/share_of_mistakes_within_family"] = (within / len(wrong), interval.low, interval.high, len(wrong))
    siblings = family.map(family.value_counts()) - 1  # of each class
    by_chance = float(wrong["label"].map(siblings).mean() / (len(family) - 1))
    results["test/share_of_mistakes_within_family_if_random"] = (by_chance, None, None, len(wrong))
    in_family = f""" {within / len(wrong):.0%} of the mistakes ({interval.low:.0%} to {interval.high:.0%}) stay within
    the family; if they were random, {by_chance:.0%} would."""

# %%
text = f"""**Takeaway.** The network gets {len(wrong):,} of {results["n_test"]:,} test pictures wrong.{in_family}"""
display(Markdown(text))

# %% [markdown]
# What do the most confused pairs look like? The upper row shows, for each pair, the mistake of which the network was
# most confident. The lower row shows what it took the picture for: in the hangar, the very same scene with the
# predicted variant, so that only the airframe differs; for photographs, the first picture of the predicted class.

# %%
pairs = list(confused.head(4).itertuples())
mistaken = [wrong[(wrong["label"] == p.actual) & (wrong["predicted"] == p.predicted)]["image"].iloc[0] for p in pairs]
if rendered:
    record = scenes.set_index("image")["scene"]
    views = [replace(Scene.from_json(record[i]), variant=p.predicted) for i, p in zip(mistaken, pairs, strict=True)]
    taken_for = [render(view, size).image for view in views]
else:
    examples = data.table.drop_duplicates(level).set_index(level)["image"]
    taken_for = [data.picture(examples[p.predicted]) for p in pairs]

# %%
figure = plots.picture_grid(
    [[data.picture(image) for image in mistaken], taken_for],
    [[p.actual for p in pairs], [f"{p.predicted}\n{p.share:.0%} (n = {p.n_images})" for p in pairs]],
    ["is", "taken for"],
    empty="no mistakes",
)
plots.titled(figure, "What do the most confused pairs look like?")

# %%
text = "**Takeaway.** There are no mistakes to show."
for p in confused.head(1).itertuples():
    text = f"""**Takeaway.** The most common mistake is to take {p.actual} for {p.predicted}. It is made in
    {p.n_images} of the actual class's test pictures ({p.share:.0%})."""
display(Markdown(text))

# %% [markdown]
# With a few dozen test pictures per class, which pair comes first is partly a matter of chance. The pictures show
# mistakes, not their causes.

# %% [markdown]
# ## Takeaways
#
# The list is built from the recorded numbers. (On photographs, a classical baseline adds its own numbers to the same
# file, under `hog_svm/`. These are kept.)

# %%
kept = {}
with suppress(FileNotFoundError):
    kept = {name: entry for name, entry in study.results(NAME).items() if name.startswith("hog_svm/")}
study.record(NAME, kept | results)
final = study.results(NAME)
number = {name: entry["value"] for name, entry in final.items()}

# %%
accuracy = {name: in_words(final[f"test/{name}/class_averaged_accuracy"]) for name in levels}
lines = [
    f"""Class-averaged accuracy on test pictures is {accuracy[level]} at {level} level, with {number["n_classes"]}
    classes; guessing gives {number["chance"]:.1%}.""",
    *(f"At {name} level it is {accuracy[name]}." for name in levels[1:]),
]
if "test/share_of_mistakes_within_family" in final:
    within = in_words(final["test/share_of_mistakes_within_family"])
    lines += [f"{within} of the mistakes stay within the family."]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **What the network looks at.** A network can be accurate for the wrong reasons. The next notebooks look for its
#   reasons.
# - **Real aircraft**, if the data set is the hangar: renders are cleaner and vary less than photographs. The presets
#   `photos` and `fgvc` run this notebook on photographs.
# - **The spread between training runs.** We trained one network from one seed.
# - **The best accuracy possible.** The settings suit a small machine, and were not tuned on the test split.
