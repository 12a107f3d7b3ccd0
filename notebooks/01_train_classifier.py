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
# This is the first of six notebooks that ask what an aircraft classifier looks at, and how sure we can be. This one
# trains it; 02 takes its activations; 03 writes them as sums of a few directions, called features; 04 asks what the
# features show, 05 whether they do it; 06 lets you look for yourself. Before we look inside a network, we have to know
# how good it is, and on what.
#
# **Reads** nothing but the settings in the next cells: the default preset renders its own pictures, the *hangar*.
# Other presets read photographs in FGVC-Aircraft layout.
#
# **Writes** `data/runs/<preset>/dataset` and `…/networks/trained` (found again when they match), the numbers in
# `data/runs/<preset>/results/01_train_classifier.json` and, of rendered aircraft, `contact_sheet.jpg` beside them.
#
# **Runtime** with the default preset on 2 CPU cores: 6 to 9 minutes the first time, less than half a minute after
# that. The takeaways at the end say what it took on the machine that made this copy.

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
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.networks import evaluate
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The environment variable `AIRCRAFT_SAE_PRESET` chooses the preset: `hangar` unless it says otherwise, `smoke` in the
# tests. Only the default preset promises anything about its numbers: what it promises stands here, and is asserted
# below.

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
# levels, as in FGVC-Aircraft. The network learns on `train`, is watched on `val`, and is measured once on `test` (whose
# pictures later notebooks use too).

# %%
data = study.pictures()
fine, *coarser = data.levels
splits = data.table.groupby("split", sort=False).agg(
    pictures=("image", "size"), **{f"{level} classes": (level, "nunique") for level in data.levels}
)
results |= {"n_train": len(data.rows(study.config.classifier.train_split)), "n_test": len(data.rows("test"))}
results |= {"n_classes": len(data.classes(fine)), "chance": 1 / len(data.classes(fine))}
display(splits)

# %% [markdown]
# A picture that is in two splits would make the test easier than it is. There are none:

# %% tags=["nbval-check-output"]
print("pictures in more than one split:", int(data.table["image"].duplicated().sum()))
assert not data.table["image"].duplicated().any() and results["n_classes"] >= promised["n_classes"]

# %% [markdown]
# The classes, from the manufacturer down:

# %%
pd.set_option("display.max_colwidth", None, "display.max_rows", 120)
above = coarser[::-1] or [fine]
data.table.groupby(above)[fine].unique().map(sorted).map(", ".join).to_frame(f"{fine} classes")

# %% [markdown]
# What do they look like? Below is one picture of each family, with its manufacturer. Of rendered aircraft we take
# pictures that show the whole aircraft from the front quarter in sunlight, and of these the one with the most aircraft
# in it; of photographs, simply the first.

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
display(figure)

# %%
text = f"""**Takeaway.** There are {results["n_classes"]} {fine} classes; guessing is right in
{results["chance"]:.1%} of the cases. The network learns from {results["n_train"]:,} pictures and is tested on
{results["n_test"]:,}."""
display(Markdown(text))
assert results["n_train"] + results["n_test"] <= len(data.table)

# %% [markdown]
# One picture per family does not show how much the pictures of one family vary: the camera goes all round, and light,
# paint, background and sharpness change from scene to scene. In the hangar none of these depends on the class.

# %% [markdown]
# ## What tells two variants of a family apart?
#
# Pictures of two variants also differ in view and paint. In the hangar we can take that away: a scene is a record of
# everything in the picture, and the variant is one of its entries. Below, each column is one scene rendered twice, with
# nothing changed but the variant; pixels that show another part are marked in orange.

# %%
NO_SCENES = "This data set holds photographs: there are no scenes to render again, and no part masks."
parents = data.parents(fine, shown) if coarser else {}
families = [name for name in data.classes(shown) if rendered and list(parents.values()).count(name) > 1]
chosen = families[:: max(1, len(families) // 5)][:5]
twins = [[name for name in data.classes(fine) if parents[name] == family][:2] for family in chosen]
views = [Scene.from_json(first.loc[family, "scene"]) for family in chosen]
drawn = [[render(replace(view, variant=name)) for name in pair] for view, pair in zip(views, twins, strict=True)]
differ = [one.mask != other.mask for one, other in drawn]

# %%
one, other = ([pair[k] for pair in drawn] for k in (0, 1))
plots.picture_grid(
    [[p.image for p in one], [p.image for p in other], [p.image for p in other]],
    [[pair[0] for pair in twins], [pair[1] for pair in twins], [""] * len(twins)],
    ["one variant", "the other", "part differs"],
    [[None] * len(twins), [None] * len(twins), differ],
    empty=NO_SCENES,
)

# %%
shares = [mark.sum() / ((a.mask >= 2) | (b.mask >= 2)).sum() for mark, (a, b) in zip(differ, drawn, strict=True)]
if rendered:
    results["variants/least_share_of_pixels_that_differ"] = (min(shares), None, None, len(shares))
    text = f"""**Takeaway.** In these {len(shares)} pairs, {min(shares):.0%} to {max(shares):.0%} of the
    aircraft's pixels show another part, with view, light and paint held the same."""
    display(Markdown(text))
    assert min(shares) > 0.02

# %% [markdown]
# This shows that the difference is there to be seen in a clear view. It does not show that it can be seen in every
# view: from behind, two lengths of fuselage look much alike.

# %% [markdown]
# ## Where are the parts?
#
# The hangar knows which part of the airframe each pixel shows. The classifier never sees these masks; later notebooks
# need them to ask whether something inside the network responds to, say, engines. Below are the scenes that show the
# most parts at once, of up to three manufacturers.

# %%
most = scenes.iloc[:0]
if rendered:
    n_seen = (scenes[pixels] >= 40).sum(axis=1).sort_values(ascending=False, kind="stable")
    most = scenes.loc[n_seen.index].drop_duplicates(coarser[-1]).head(3)
plots.part_masks(
    [data.picture(image) for image in most["image"]],
    [data.mask(image) for image in most["image"]],
    data.region_names,
    most[fine].tolist(),
    empty=NO_SCENES,
)

# %% tags=["nbval-check-output"]
print("parts:", ", ".join(data.region_names))

# %% [markdown]
# How much of an aircraft is each part? The left bars are shares of all pixels that show aircraft, in all splits; the
# right bars say in how many pictures a part can be seen at all.

# %%
share, seen, figure = {}, {}, Markdown(NO_SCENES)
if rendered:
    total = scenes[pixels].sum()
    share = dict(zip(data.region_names, total / total.sum(), strict=True))
    seen = dict(zip(data.region_names, scenes[pixels].gt(0).mean(), strict=True))
    table = 100 * pd.DataFrame({"of the aircraft's pixels, %": share, "of pictures that show it, %": seen})[::-1]
    figure, axes = plots.sheet(0.8 + 0.32 * len(table), 1, 2, sharey=True)
    table.rename(lambda part: part.replace("_", " ")).plot.barh(subplots=True, ax=axes, color="C0", legend=False)
    for ax in axes:
        ax.bar_label(ax.containers[0], fmt="%.1f", padding=3)
        ax.margins(x=0.15)
display(figure)

# %%
if rendered:
    results["parts/n_seen"] = int(sum(value > 0 for value in seen.values()))
    results |= {f"parts/{part}/share_of_pixels": (share[part], None, None, len(scenes)) for part in data.region_names}
    small, *_, large = sorted((part for part in share if share[part]), key=share.get)
    text = f"""**Takeaway.** {results["parts/n_seen"]} of {len(share)} parts occur (n = {len(scenes):,} pictures).
    Of the aircraft's pixels, {share[large]:.0%} show {large}, and {share[small]:.1%} show {small}."""
    display(Markdown(text.replace("_", " ")))
    assert results["parts/n_seen"] >= promised["n_parts"] and abs(sum(share.values()) - 1) < 1e-9

# %% [markdown]
# A small part is not an unimportant one: the share of pixels says nothing about how much a part helps to tell classes
# apart. That is the subject of the notebooks to come.

# %% [markdown]
# ## Does an edit change only what it says?
#
# Later we shall take a part away and see what the network makes of it. That is evidence only if nothing else in the
# picture changes. Below, one scene is edited in three ways, with cast shadows off and one ray per pixel, so that each
# pixel shows exactly one thing; the lower row marks every pixel whose colour changed at all.

# %%
edits = {}
if rendered:
    scene = Scene.from_json(first.loc[data.classes(shown)[0], "scene"])
    scene = replace(scene, shadows=False, finish=replace(scene.finish, blur=0.0))
    edits = {
        "as it was": ("engine", scene),
        "engine removed": ("engine", scene.edit("remove", "engine")),
        "fin moved forward": ("fin", scene.edit("move", "fin", (0.12, 0.0, 0.0))),
        "wing in red": ("wing", scene.edit("recolour", "wing", (0.85, 0.1, 0.1))),
    }
pictures = {name: render(edited, supersampling=1) for name, (_, edited) in edits.items()}

# %%
before = pictures.get("as it was")
changed = {name: (p.image != before.image).any(axis=2) for name, p in pictures.items()}
own = {name: PARTS.index(part) for name, (part, _) in edits.items()}
allowed = {name: (before.mask == own[name]) | (p.mask == own[name]) for name, p in pictures.items()}
images = [p.image for p in pictures.values()]
plots.picture_grid(
    [images, images],
    [list(edits), [f"{mark.sum():,} pixels changed" for mark in changed.values()]],
    marks=[[None] * len(images), list(changed.values())],
    empty=NO_SCENES,
)

# %% tags=["nbval-check-output"]
elsewhere = sum(int((changed[name] & ~allowed[name]).sum()) for name in edits)
share = elsewhere / max(1, sum(mark.size for mark in changed.values()))  # where two faces coincide, one ray may differ
print(f"pixels changed outside the edited part, before or after: {share:.2%}")
assert share < 5e-5 and (not rendered or changed["engine removed"].any())

# %% [markdown]
# **Takeaway.** An edit changes pixels of the part it names, where that was or where it now is, and no others. With
# shadows on, a removed part takes its shadow with it as well. Every part is tested like this in `tests/test_hangar.py`.
#
# One more thing has to hold for the class to be in the airframe and nowhere else: it must not be readable from the
# background or from the colours. The same file tests that a linear classifier scores at chance on held-out scenes when
# it sees only what is around the aircraft, and when it sees only the aircraft's colour histogram. That is a statement
# about linear classifiers on rendered scenes. Photographs have no such guarantee: there, an airline or a place can hint
# at the type.

# %% [markdown]
# ## Does it learn?
#
# The network is a ConvNeXt: four *stages*, one after the other, each of which leaves a coarser grid of cells with more
# numbers in each. The *head* takes the mean over the last grid, norms it, and gives one number a class, its *logit*;
# softmax makes probabilities of these. It starts from the weights that the preset names (shipped ones that have seen
# other made-up variants, by default), with a new last layer, and is trained by the optimiser Muon where the preset says
# nothing else; the next cell loads the result where it is on disk already. Training accuracy is measured on the fly, on
# cropped and recoloured pictures; validation accuracy on whole pictures, with weights averaged over past steps. From a
# vertical line on, pictures are larger. The dotted line is what guessing would give.

# %%
network, cfg = study.network(), study.config.classifier
history = network.history
print(f"{cfg.arch}, from {cfg.weights or 'random'} weights, {network.size} px")
by_epoch = history.set_index("epoch").dropna(axis=1, how="all")

# %%
figure, (left, right) = plots.sheet(3.6, 1, 2)
look = {"style": ["o-", "s-"], "xticks": by_epoch.index}
by_epoch.filter(like="_loss").plot(ax=left, ylabel="cross-entropy, nats", **look)
(100 * by_epoch.filter(like="_accuracy")).plot(ax=right, ylabel="accuracy, %", ylim=(0, 100), **look)
for ax, guess in ((left, np.log(len(network.classes))), (right, 100 / len(network.classes))):
    ax.axhline(guess, color=plots.GREY, linestyle=":")
    ax.set_ylim(0)
    for epoch in by_epoch.index[by_epoch["size"].diff() > 0]:
        ax.axvline(epoch - 0.5, color=plots.GREY, linewidth=0.8)
display(figure)

# %%
results["train_seconds"] = study.stages["networks/trained"].meta["seconds"]
results |= {"render_seconds": study.stages["dataset"].meta["seconds"]} if rendered else {}
results |= {"n_epochs": len(history), "train/accuracy": history["train_accuracy"].iloc[-1]}
assert results["n_epochs"] == cfg.n_epochs and 0 <= results["train/accuracy"] <= 1

# %%
watched, on_watched = cfg.val_split, ""
if watched:
    results["val/accuracy"] = (history["val_accuracy"].iloc[-1], None, None, len(data.rows(watched)))
    on_watched = f" and {results['val/accuracy'][0]:.1%} on the {results['val/accuracy'][-1]:,} pictures of {watched}"
text = f"""**Takeaway.** After {len(history)} epochs, accuracy is {results["train/accuracy"]:.1%} in
training{on_watched}."""
display(Markdown(text))

# %% [markdown]
# These curves are there to see that training went well. They are not the result: that is the test split, which no
# choice was made on.

# %% [markdown]
# ## How good is it?
#
# The official metric of FGVC-Aircraft is class-averaged accuracy: the share of pictures recognised, averaged over
# classes, so that frequent classes do not count more. Top-1 is the share of all pictures. A family's probability is the
# sum over its variants. Intervals hold 95% of 2,000 bootstrap draws of test pictures, which n counts.

# %%
level = network.level
measured, confusion = evaluate(network, data, "test", network.predictions)
results |= measured
levels = [name for name in data.levels if f"test/{name}/top1_accuracy" in results]
titles = {"class_averaged_accuracy": "class-averaged accuracy", "top1_accuracy": "top-1"}

# %%
table = pd.DataFrame({"guessing": {name: f"{1 / len(data.classes(name)):.1%}" for name in levels}})
for metric, title in titles.items():
    table[title] = [in_words(results[f"test/{name}/{metric}"] | {"n": None}) for name in levels]
display(table)

# %% tags=["report"]
official = {name: results[f"test/{name}/class_averaged_accuracy"] for name in levels}
counts = {name: len(data.classes(name)) for name in levels}
named = {f"{name} ({n} classes, guessing {1 / n:.1%})": official[name] for name, n in counts.items()}
plots.dots(named, "class-averaged accuracy and its 95% interval, %", "level", 100)

# %%
at_others = "".join(f" At {name} level it is {in_words(official[name])}." for name in levels[1:])
text = f"""**Takeaway.** Class-averaged accuracy on test pictures is {in_words(official[level])} at {level}
level; guessing gives {results["chance"]:.1%}.{at_others}"""
display(Markdown(text))
assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in official.values())
assert official[level]["value"] >= promised["accuracy"] and official[level]["n"] == results["n_test"]

# %% [markdown]
# The intervals say how far the numbers could move with other test pictures of the same kind. They do not say how far
# they move with another training run, and nothing here says how the network does on pictures of another kind.

# %% [markdown]
# ## Which classes does it confuse?
#
# If the network sees airframes, its mistakes should stay between aircraft that are built alike. Rows are what the
# picture shows, columns what the network says; classes are ordered by manufacturer and family.

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
display(figure)

# %%
wrong = network.predictions.query("label != predicted").sort_values("confidence", ascending=False, kind="stable")
confused = confusion.stack().rename("n_images").reset_index()
confused["share"] = confused["n_images"] / confused["actual"].map(confusion.sum(axis=1))
confused = confused.query("actual != predicted and n_images > 0")
confused = confused.sort_values("n_images", ascending=False, kind="stable")
results["test/n_mistakes"] = len(wrong)
in_family = ""

# %%
if len(wrong) and "family" in levels[1:]:
    family = pd.Series(data.parents(level, "family"))
    within = int((wrong["label"].map(family) == wrong["predicted"].map(family)).sum())
    interval = binomtest(within, len(wrong)).proportion_ci(method="wilson")
    results["test/share_of_mistakes_within_family"] = (within / len(wrong), interval.low, interval.high, len(wrong))
    siblings = family.map(family.value_counts()) - 1  # of each class
    by_chance = float(wrong["label"].map(siblings).mean() / (len(family) - 1))
    results["test/share_of_mistakes_within_family_if_random"] = (by_chance, None, None, len(wrong))
    in_family = f""", {within} of them ({within / len(wrong):.0%}, {interval.low:.0%} to {interval.high:.0%}) for
    another class of the same family; of mistakes at random it would be {by_chance:.0%}"""
text = f"""**Takeaway.** {len(wrong):,} of {results["n_test"]:,} test pictures are mistaken{in_family}."""
display(Markdown(text))

# %%
assert len(wrong) == confusion.to_numpy().sum() - confusion.to_numpy().trace()

# %% [markdown]
# What do the most confused pairs look like? The upper row shows mistaken pictures; for each pair, the one that the
# network was surest of. Below each is what it was taken for: in the hangar the very same scene with the variant that
# the network named, so that only the airframe differs; of photographs, the first picture of that class. Shares are of
# the test pictures of the class in the upper row; n counts the mistaken ones.

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
plots.picture_grid(
    [[data.picture(image) for image in mistaken], taken_for],
    [[p.actual for p in pairs], [f"{p.predicted}\n{p.share:.0%} (n = {p.n_images})" for p in pairs]],
    ["is", "taken for"],
    empty="no mistakes",
)

# %%
text = "**Takeaway.** There are no mistakes to show."
for p in confused.head(1).itertuples():
    text = f"""**Takeaway.** The commonest mistake is to take {p.actual} for {p.predicted}: {p.n_images} of its test
    pictures ({p.share:.0%})."""
display(Markdown(text))
assert confused["n_images"].is_monotonic_decreasing and bool(len(pairs)) == bool(len(wrong))

# %% [markdown]
# With a few dozen test pictures per class, which pair comes first is partly chance. The pictures show mistakes, not
# their causes.

# %% [markdown]
# ## When is it wrong and sure?
#
# Mistakes made with high confidence are the ones to look at: there the network saw something that misled it.

# %%
surest = list(wrong.head(8).itertuples())
captions = [f"{m.label}\nsaid {m.predicted}\n{m.confidence:.0%} sure" for m in surest]
images = [data.picture(m.image) for m in surest]
plots.picture_grid([images[:4], images[4:]][: 1 + (len(images) > 4)], [captions[:4], captions[4:]], empty="no mistakes")

# %%
results["test/n_mistakes_above_90_percent"] = int((wrong["confidence"] > 0.9).sum())
text = f"""**Takeaway.** Mistakes made with more than 90% confidence: {results["test/n_mistakes_above_90_percent"]} of
{len(wrong):,}."""
display(Markdown(text))

# %% [markdown]
# Label smoothing holds confidence down in training; how many mistakes there would be without it was not tried.

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file. Numbers that other programs added to it
# (a classical baseline on photographs, under `hog_svm/`) are kept.

# %%
kept = {}
with suppress(FileNotFoundError):
    kept = {name: entry for name, entry in study.results(NAME).items() if name.startswith("hog_svm/")}
study.record(NAME, kept | results)
final = study.results(NAME)
number = {name: entry["value"] for name, entry in final.items()}

# %%
accuracy = {name: in_words(final[f"test/{name}/class_averaged_accuracy"]) for name in levels}
rendering = f", rendering {number['render_seconds'] / 60:.1f}" if rendered else ""
lines = [
    f"""Class-averaged accuracy on test pictures is {accuracy[level]} at {level} level, with {number["n_classes"]}
    classes; guessing gives {number["chance"]:.1%} (n: test pictures).""",
    *(f"At {name} level it is {accuracy[name]}." for name in levels[1:]),
]
if "test/share_of_mistakes_within_family" in final:
    within = in_words(final["test/share_of_mistakes_within_family"])
    lines += [f"Mistakes that stay within the family: {within} of all mistakes (n: mistaken pictures)."]
lines += [f"On this machine, training took {number['train_seconds'] / 60:.1f} minutes{rendering}."]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %%
assert number["test/n_mistakes"] == len(wrong) and len(lines) <= 5

# %% [markdown]
# ## What this does not show
#
# - **What the network looks at.** High accuracy is no evidence of sensible reasons. That is the question of the
#   notebooks that follow.
# - **Real aircraft**, where the data set is the hangar: rendered aircraft are cleaner and less varied than photographs.
#   The presets `photos` and `fgvc` run this same notebook on photographs.
# - **The spread between training runs.** One network was trained, from one seed; the intervals are over test pictures.
# - **The best accuracy possible.** The settings are for a small machine, and were not tuned on the test split.
