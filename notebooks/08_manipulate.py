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
# # 8. Turn features like knobs
#
# **Question.** Can a feature be turned like a knob?
#
# Why care: if a feature shows the fin, then turning it down should make the network see less of the fin, turning it up
# should make it see more, and nothing else should change. Many papers show one example where this works. Here a fixed
# rule gives every part of the aircraft a knob, each knob is tested in a task that neither the network nor the
# autoencoder was trained for, and as a control we add vectors of the same length along random directions.
#
# **Reads** the network, the activations and the local autoencoder of notebooks 01 to 03, and the scenes of notebook 05
# from which parts were removed. **Writes** `data/runs/<preset>/experiments/segmentation-local`, `…/knobs`,
# `…/knobs-removed`, `…/edit-add`, `…/knobs-added`, and the numbers in `data/runs/<preset>/results/08_manipulate.json`.
#
# **Runtime** with the default preset on 2 CPU cores: one minute, once notebook 05 has run.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from itertools import product

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

# %%
from aircraft_sae.features import halves
from aircraft_sae.metrics import with_interval
from aircraft_sae.studies import manipulation
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# We use the local autoencoder, at the end of stage 3, where a cell is 16 pixels wide: a large part fills a few cells, a
# small one less than one. The null is an untrained autoencoder, whose features are chosen by the same rule.

# %%
study = Study.open()
NAME, LIKE, results, small = "08_manipulate", "local", {}, study.config.name == "smoke"
if study.pictures().scenes is None:
    raise ValueError("these pictures are not rendered scenes: run this notebook with the preset hangar")
pictures, network, sae = study.pictures(), study.network(), study.sae(LIKE)
acts = study.activations(sae.cfg.site)
saes = {"feature": sae, "untrained": study.nulls(LIKE)["untrained"].sae}

# %% [markdown]
# ## The second task: which part does a cell show?
#
# The network was trained to name variants and was never taught about parts. We fit a linear head to the activations of
# single cells: it names the part that fills most of the cell, or the background where all parts together fill less than
# a quarter of it. It is fitted on training and validation pictures, and scored pixel by pixel on test pictures by
# intersection over union (*IoU*), averaged over parts. Outlines run through cells, so even the right name in every cell
# would score below 1. The column *right names* shows this ceiling.

# %%
inputs = {"acts": acts, "pictures": pictures}
segmentation = study.stage("experiments/segmentation-local", manipulation.segment, {}, inputs)
head, scores = manipulation.CellHead.open(segmentation), manipulation.segmentation_scores(segmentation)
right = (network.predictions["label"] == network.predictions["predicted"]).to_numpy()
results |= scores | {"class_accuracy": with_interval(right, np.ones(len(right)))}
named = {name: {region: in_words(scores[f"{key}/{region}"] | {"n": None}, percent=False)
                for region in head.names if f"{key}/{region}" in scores}
         for name, key in {"head": "iou", "right names": "iou_right"}.items()}  # fmt: skip
pd.DataFrame(named).rename_axis("IoU")

# %%
text = f"""**Takeaway.** The head's mean IoU is {in_words(scores["miou"], percent=False)}, which is
{scores["miou_of_grid_ceiling"]["value"]:.0%} of what the right names reach ({scores["miou_right"]["value"]:.2f})."""
display(Markdown(text))

# %% [markdown]
# Here are three test pictures, with the true parts and with the head's name for each cell (*outside* is the
# background).

# %%
rows = acts.rows("test")[:: max(1, len(acts.rows("test")) // 3)][:3]
shown = acts.images["image"].iloc[rows].tolist()
cells = head.logits(next(acts.blocks(rows))).argmax(-1).numpy()
views, masks = [], []
for name, own in zip(shown, cells, strict=True):
    views += [pictures.picture(name)] * 2
    masks += [pictures.mask(name), np.kron(own, np.ones((network.size // len(own),) * 2, int))]
figure = plots.part_masks(views, masks, head.names[1:], ["true parts", "head's names"] * 3, "no test pictures")
plots.titled(figure, "Which part does a cell show?")

# %% [markdown]
# ## A knob for each part
#
# A part's knob is the feature that best tells which cells show the part: it has the highest F1 on half A of the test
# pictures, at the best of four thresholds (0, 10, 30 or 100% of its maximum). One feature may be the knob of several
# parts. The untrained dictionary gets knobs by the same rule. The table shows the F1 of these choices on half B. Knobs
# are turned on half B only.

# %%
inputs = {"segmentation": segmentation, "acts": acts, "pictures": pictures, "saes": saes}
knob_folder = study.stage("experiments/knobs", manipulation.turn_knobs, {}, inputs)
knobs, turned = (pd.read_parquet(knob_folder / f"{name}.parquet") for name in ("knobs", "turned"))
f1 = knobs.pivot(index="part", columns="arm", values="f1_b")
results |= {f"f1/{row.arm}/{row.part}": (float(row.f1_b), None, None, None) for row in knobs.itertuples()}
no_worse = int((f1["untrained"] >= f1["feature"]).sum())
results["untrained_no_worse"] = (no_worse, None, None, len(f1))
f1.round(2).transpose()

# %%
text = f"""**Takeaway.** For {no_worse} of {len(f1)} parts, the untrained dictionary's F1 is at least as high as the
trained one's. Finding a part does not make a feature its knob."""
display(Markdown(text))

# %% [markdown]
# ## What happens when we turn the knobs?
#
# A knob turned to *s* sets its feature to *s* times its maximum in **all** cells and keeps what the autoencoder does
# not explain: x' = x + (s max - f) d, where f is the feature's activation and d its decoder row. At *s* = 0 the feature
# is off; at -2 it is pushed far below zero. Unless *s* is 0, cells in which the feature was silent change, too.
#
# *Target* cells are those to which the head gives the name of the knob's part. When a good knob is turned down, target
# cells **lose** that name; when it is turned up, other cells **gain** it. Nothing else should change. The controls add
# vectors of the same length in every cell:
#
# - *random directions* (20 for each part, drawn with the covariance of the cells), *isotropic* directions (as in saev,
#   Stevens et al. 2025), and the direction of one *random feature* of similar density and strength;
# - the *probe*, which was fitted to the part: the head's own weights for it, minus their mean over all parts and the
#   background.
#
# The *untrained* dictionary's knobs are turned to *s* times their own maxima. (The head reads each cell by itself, so
# setting the feature in target cells alone would change those cells just as much, and no others.)

# %%
measured = []
for arm, dose, which in product(turned["arm"].unique(), manipulation.DOSES, ("target", "other", "gained")):
    entry, _ = manipulation.macro_average(turned, arm, dose, which)
    results[f"{arm}/{which}/{dose:g}"] = entry
    measured.append({"arm": arm, "dose": dose, "which": which} | entry)
measured = pd.DataFrame(measured)

# %%
figure, axes = plots.sheet(4.8, 1, 3, sharex=True)
titles = {"target": "target cells\nthat lose their name", "gained": "other cells that\ngain the part's name"}
titles["other"] = "other cells\nthat change"
for ax, (which, title) in zip(axes, titles.items(), strict=True):
    ax.set(title=title, xlabel="dose s (0: off, 1: maximum)", ylim=(-1, 32) if which == "gained" else (-3, 103))
    drawn = measured[measured["which"] == which].groupby("arm", sort=False)
    for marker, (arm, own) in zip("osdv^x", drawn, strict=False):
        ax.plot(own["dose"], 100 * own["value"], marker=marker, label=arm)
        ax.fill_between(own["dose"], 100 * own["low"], 100 * own["high"], alpha=0.2)
axes[0].set_ylabel("share of these cells, %")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
display(plots.titled(figure, "What happens when we turn the knobs?"))

# %% [markdown]
# Each line is a mean over the pictures of half B, averaged over parts, with its 95% interval. The middle panel ends at
# 32%, so the probe's line may leave it. Pushed far enough, any direction changes names. The question is which name a
# cell gets.

# %%
gains = {dose: {arm: results[f"{arm}/gained/{dose}"] for arm in turned["arm"].unique()} for dose in (1, 2)}
null = {dose: gains[dose]["random direction"]["value"] for dose in gains}
text = f"""**Takeaway.** Set to its maximum, a feature gives its part's name to {in_words(gains[1]["feature"])} of the
other cells; random directions give it to {null[1]:.1%}. Set to twice its maximum, the feature reaches
{in_words(gains[2]["feature"])}, random directions {null[2]:.1%}, and the probe {gains[2]["probe"]["value"]:.0%}."""
display(Markdown(text))

# %% [markdown]
# And when the knob is turned down? Of the cells that change when the feature is switched off, what share were target
# cells?

# %%
at = {arm: results[f"{arm}/target/0"] for arm in turned["arm"].unique()}
results |= {"target_change": at["feature"], "other_change": results["feature/other/0"]}
results |= {f"target_change_{arm.replace(' ', '_')}": entry for arm, entry in at.items() if arm != "feature"}
drawn, null = (manipulation.macro_average(turned, arm, 0.0)[1] for arm in ("feature", "random direction"))
apart = at["feature"]["value"] - at["random direction"]["value"]
beyond = (apart, *np.quantile(drawn - null, [0.025, 0.975]).tolist(), at["feature"]["n"])
clean = {arm: manipulation.on_target(turned, arm, 0.0) for arm in at}
clean = {arm: entry for arm, entry in clean.items() if np.isfinite(entry["value"])}  # some change nothing
results |= {"beyond_random_direction": beyond} | {f"on_target/{arm}": entry for arm, entry in clean.items()}
figure = plots.dots(clean, "share of changing cells that were target cells, % (s = 0)", "turned", 100)
plots.titled(figure, "Does switching a feature off change its own part's cells?")

# %%
text = f"""**Takeaway.** Switching a part's feature off renames {at["feature"]["value"]:.0%} of the target cells; the
difference from random directions is {100 * apart:.0f} percentage points ({100 * beyond[1]:.0f} to
{100 * beyond[2]:.0f}). The direction of a random feature renames {at["random feature"]["value"]:.0%}, and the probe
{at["probe"]["value"]:.0%}."""
display(Markdown(text))

# %% [markdown]
# Other cells far outnumber target cells, so an edit that changes a small share of them may still change more of them
# than of the target cells. A mean over parts also hides differences between parts, so here is each part by itself
# (without the parts that the head never names):

# %%
by_part = manipulation.beyond(turned, 0.0, "random direction")
by_part = dict(sorted(by_part.items(), key=lambda item: -item[1]["value"]))
results |= {f"beyond_random_direction/{part}": entry for part, entry in by_part.items()}
named_parts = {part.replace("_", " "): entry for part, entry in by_part.items()}
figure = plots.dots(named_parts, "target cells renamed at s = 0, less random directions, points", "part", 100, line=0)
plots.titled(figure, "Which knobs beat random directions?")

# %%
above = [part for part, entry in by_part.items() if entry["low"] > 0]
over_feature = manipulation.beyond(turned, 0.0, "random feature")
both = [part for part in above if part in over_feature and over_feature[part]["low"] > 0]
under = [part for part, entry in by_part.items() if entry["high"] < 0]
for name, parts in {"n_beyond_random_direction": above, "n_beyond_both": both, "n_below": under}.items():
    results[name] = (len(parts), None, None, len(by_part))
listed = {name: ", ".join(parts).replace("_", " ") or "none" for name, parts in {"both": both, "under": under}.items()}
text = f"""**Takeaway.** {len(above)} of {len(by_part)} knobs rename more of their target cells than random directions
do; of these, {len(both)} also rename more than a random feature does ({listed["both"]}). Knobs
that rename fewer than random directions do: {len(under)} ({listed["under"]}). (Each 95% interval is for one part, not
for all parts at once.)"""
display(Markdown(text))

# %% [markdown]
# ## Three experiments
#
# For each experiment, we say beforehand what should happen if the feature is what it seems, and what would count
# against it. For the second experiment, we made the prediction before we had run anything like it; what the notebook
# shows is a repetition with one change, described below. Before the first and the third experiments, we had seen a
# pilot on the same pictures, so there we speak of expectations, not predictions. All scenes are from half B and are
# rendered without shadows. A *scene edit* removes or adds a part and leaves every other pixel as it was, apart from
# JPEG artefacts and shading next to added engines.

# %% [markdown]
# ### First: switch the fin's feature off
#
# **Expectation.** (a) Most cells that the head names *fin* lose that name. (b) Fewer other cells change than with
# random directions. (c) Consider the cells that lose the name both with the feature off and with the fin removed. They
# get the same new name both times more often than if the new names were shuffled, and the margin is wider than with
# random directions. **Against it:** the names stay, other cells change too, or the new names are arbitrary.

# %%
removed = {"network": network, "sae": sae, "segmentation": segmentation, "knobs": knob_folder, "acts": acts}
removals = study.removals()
removed["scenes"] = study.activations(sae.cfg.site, pictures=removals)
settings = {"dose": 0.0, "everywhere": True}
folder = study.stage("experiments/knobs-removed", manipulation.compare_edits, settings, removed)
counted, moved = (pd.read_parquet(folder / f"{name}.parquet") for name in ("cells", "logits"))
counted["way"] = counted["how"].str.replace(r" \d+$", "", regex=True)

# %%
case = counted.groupby("part")["target"].sum().idxmax() if small else "fin"  # few cells are named fin on smoke
fins = counted[counted["part"] == case].groupby(["way", "scene"]).mean(numeric_only=True)
of = {"turned": "target", "edited": "target", "others_turned": "others"}
of |= dict.fromkeys(("same", "shuffled", "background"), "both")
pairs = product(fins.index.unique("way"), of)
fins = {(way, name): with_interval(fins.loc[way][name], fins.loc[way][of[name]]) for way, name in pairs}
results |= {f"fin/{way}/{name}": entry for (way, name), entry in fins.items() if np.isfinite(entry["value"])}

# %%
own = counted[(counted["part"] == case) & (counted["way"] == "feature")]
by_scene = counted[counted["part"] == case].groupby(["way", "scene"]).mean(numeric_only=True)
ours, theirs = by_scene.loc["feature"], by_scene.loc["random direction"]
excess = {way: with_interval(each["same"] - each["shuffled"], each["both"]) for way, each in by_scene.groupby(level=0)}
tests = {f"{way}/same_beyond_shuffled": entry for way, entry in excess.items()}
tests["fewer_others"] = fewer = with_interval(theirs["others_turned"] - ours["others_turned"], ours["others"])
tests["background_beyond_same"] = with_interval(ours["background"] - ours["same"], ours["both"])
results |= {f"fin/{name}": entry for name, entry in tests.items() if np.isfinite(entry["value"])}
heads = dict(zip(of, ["lose the name", "lose it in the scene edit", "other cells that change", "same new name",
                      "same, if shuffled", 'same, if always "background"'], strict=True))  # fmt: skip
table = pd.DataFrame({way: {heads[name]: 100 * fins[way, name]["value"] for name in of} for way, _ in fins}).T
table.round(1).rename_axis(f"{case}: share of its cells, %")

# %%
turned_, more, null = fins["feature", "turned"], excess["feature"], excess["random direction"]
verdicts = [(turned_["low"] or 0) > 0.5, (fewer["low"] or 0) > 0, (more["low"] or 0) > (null["high"] or 1)]
said = fin_said = ["as expected" if each else "not as expected" for each in verdicts]
others = {way: fins[way, "others_turned"]["value"] for way in ("feature", "random direction")}
points = {name: in_words(entry | {"n": None}).replace("%", "") for name, entry in tests.items()}
text = f"""**What happened.** (a) {in_words(turned_, unit="scenes")} of the {case} cells lose the name: {said[0]}. (b)
Of the other cells, {others["feature"]:.1%} change (random directions: {others["random direction"]:.1%}): {said[1]}. (c)
The share of cells with the same new name, minus that share if names are shuffled, is
{points["feature/same_beyond_shuffled"]} points, and with random directions
{points["random direction/same_beyond_shuffled"]} points: {said[2]}. The share that the constant answer "background"
would reach, minus the feature's share, is {points["background_beyond_same"]} points."""
display(Markdown(text))

# %% [markdown]
# The last three columns of the table count only cells that lose the name both ways. Removing the fin need not take the
# name from every cell, because the head may also call other parts "fin". A useful feature should at least beat the
# constant answer "background".
#
# The figure shows two scenes, one with the largest fin and one with a fin of median size. For each, it shows the head's
# names in the scene as it is, with the feature off, and with the fin removed.

# %%
order = own.reset_index().assign(shown=removals.scenes["pixels_fin"][own["scene"]].to_numpy())
order = order.sort_values("shown", ascending=False)
chosen, size = order.iloc[[0, len(order) // 2]], study.config.dataset.hangar.size
edited = removals.table[removals.table["part"] == case].set_index("number")["image"]
images = [image for n in chosen["scene"] for image in (*removals.table["image"][[n, n]], edited[n])]
views = [removals.picture(image) for image in images]

# %%
place = (counted["how"] == "feature").cumsum()[chosen["index"]] - 1
maps = np.load(folder / "named.npy")[place].reshape(-1, *acts.grid)
blocks = [np.kron(each, np.ones((size // len(each),) * 2, int)) for each in maps]
figure = plots.part_masks(
    views, blocks, head.names[1:], ["as it is", "feature off", "fin removed"] * 2, "no fin is shown"
)
plots.titled(figure, "Does switching the feature off look like removing the fin?")

# %% [markdown]
# ### Second: more engines
#
# The Hauler 2 has two engines and is 25 m long; its sister, the Hauler 4, has four smaller ones and is 33 m long.
# **Prediction.** In pictures of the Hauler 2, let the *margin* be the logit of Hauler 4 minus the logit of Hauler 2.
# (a) Setting the engine feature to twice its maximum where the head sees engines raises the margin, and raises it more
# than any of twelve random directions does. (b) Adding a pair of engines to the scene raises it too. (c) The feature
# and the added engines move the same logits: over all classes, the rank correlation of their effects is higher than
# with random directions in the feature's place. **Against it:** the margin stays the same or falls, random directions
# raise it as much, or the effects disagree.
#
# In the first run, we set the feature only in cells that the head called *engine* before the edit, and the prediction
# failed. In this run, we also set it in cells that the head calls *engine* after the edit.

# %%
pair = ("Hauler 2", "Hauler 4") if "Hauler 4" in network.classes else tuple(network.classes[:2])
finest, test = pictures.levels[0], pictures.rows("test")
half_b = test["image"][halves(test[finest]) & (test[finest] == pair[0]).to_numpy()]
scenes = pictures.scenes.set_index("image")["scene"][half_b].tolist()
extra = study.vary("edit-add", scenes, edits=["add"], parts=["engine"], most=len(scenes))
added = removed | {"scenes": study.activations(sae.cfg.site, pictures=extra)}
settings = {"dose": 2.0, "everywhere": False}
folder = study.stage("experiments/knobs-added", manipulation.compare_edits, settings, added)
engines = pd.read_parquet(folder / "logits.parquet")

# %%
engines["margin"] = engines[pair[1]] - engines[pair[0]]
margins = {how: with_interval(own, np.ones(len(own))) for how, own in engines.groupby("how", sort=False)["margin"]}
random = [entry["value"] for how, entry in margins.items() if how.startswith("random")]
margins = {how: entry for how, entry in margins.items() if not how.startswith("random")}
margins["random directions"] = {"value": np.mean(random), "low": min(random), "high": max(random), "n": len(random)}
alike = manipulation.logit_agreement(pd.read_parquet(folder / "logits.parquet"))
results |= {f"engines/margin/{how}": tuple(entry.values()) for how, entry in margins.items()}
results |= {f"engines/agreement/{name}": alike[name] for name in ("own", "random direction")}
figure = plots.dots(margins, f"change of the margin {pair[1]} - {pair[0]}, logits", "edit", line=0)
plots.titled(figure, "Do more engines, or a stronger engine feature, move the margin?")

# %%
up, scene, random = (margins[how] for how in ("feature", "scene edit", "random directions"))
agrees = alike["beyond random direction"]["low"] > 0
verdicts = [up["low"] > 0 and up["value"] > random["high"], scene["low"] > 0, agrees]
said = ["as predicted" if each else "not as predicted" for each in verdicts]
span = f"{random['low']:.2f} to {random['high']:.2f}"
text = f"""**What happened.** (a) The feature moves the margin by {in_words(up, percent=False)}, random directions by
{span}: {said[0]}. (b) Added engines move it by {in_words(scene, percent=False)}: {said[1]}. (c) The effects of the
feature and of the added engines have a rank correlation of {in_words(alike["own"] | {"n": None}, percent=False)}; with
random directions in the feature's place, it is {alike["random direction"]["value"]:.2f}: {said[2]}."""
display(Markdown(text))

# %%
STATES = ("as it is", "with the feature", "with added engines")
named = (np.load(folder / "named.npy") == head.names.index("engine")).sum((2, 3))
counts = {way: with_interval(each, np.ones(len(each))) for way, each in zip(STATES, named.T, strict=True)}
results |= {f"engines/cells/{way}": entry for way, entry in counts.items()}
text = "; ".join(f"{way}, {in_words(entry | {'n': None}, percent=False)}" for way, entry in counts.items())
display(Markdown(f"Does the head see more engines? Mean number of cells that it calls *engine* per picture: {text}."))

# %% [markdown]
# In the figure, the line of random directions spans all twelve of them; the other lines are 95% intervals over scenes.
# The probe checks the test itself: if the head's own direction moves the margin no further than random directions do, a
# better engine feature would probably have failed, too. And if the head calls no more cells *engine* once the feature
# is set, the knob failed before the hypothesis could be tested. We tried no scene edit other than adding engines.
#
# ### Third: the worst knob
#
# We chose this case because we expected it to fail. Among the parts that the head names in at least twenty pictures, we
# take the one whose knob finds it worst (lowest F1 on half A). **If every part had its knob**, pushing this part's knob
# to -2 would rename more of the part's cells than random directions do. **Expectation:** it does not, because no
# feature finds this part well. **Against it:** the knob clearly renames more.

# %%
chosen_by = knobs[knobs["arm"] == "feature"].set_index("part")["f1"]
pushed = manipulation.beyond(turned, -2.0, "random direction")
worst = chosen_by[[part for part, entry in pushed.items() if entry["n"] >= (1 if small else 20)]].idxmin()
results |= {"worst/f1": float(chosen_by[worst]), "worst/beyond_random_direction": pushed[worst]}
low = turned[(turned["dose"] == -2) & (turned["part"] == worst)].dropna(subset="target")
changes = {arm: with_interval(each["target"], np.ones(len(each))) for arm, each in low.groupby("arm", sort=False)}
results |= {f"worst/{arm}": entry for arm, entry in changes.items()}
figure = plots.dots(changes, f"{worst.replace('_', ' ')} cells renamed at s = -2, %", "turned", 100)
plots.titled(figure, "Does the worst knob do anything?")

# %%
outcome = "does not clearly rename more, as expected"
outcome = "renames fewer, as expected" if pushed[worst]["high"] < 0 else outcome
outcome = "renames more, against expectation" if pushed[worst]["low"] > 0 else outcome
low, high = (f"{100 * pushed[worst][end]:.0f}" for end in ("low", "high"))
text = f"""**What happened.** The worst knob is that of the {worst.replace("_", " ")} (its F1 on half A is
{chosen_by[worst]:.2f}; the head's IoU for this part is {scores[f"iou/{worst}"]["value"]:.2f}). The share of this part's
cells that the knob renames, minus the share that random directions rename, is {100 * pushed[worst]["value"]:.0f}
percentage points ({low} to {high}, n = {pushed[worst]["n"]}): the knob {outcome}."""
display(Markdown(text))

# %% [markdown]
# ## Do a feature and a scene edit move the same logits?
#
# Now we turn to all parts, and to the task that the network was trained for. We switch each part's feature off in
# scenes that show the part, and remove the part from the same scenes. Do the two edits have similar mean effects on the
# class logits? We measure this by rank correlation. If switching a feature off is like losing the part, its effects
# should agree better with the scene edit of its own part than with scene edits of *other* parts, and better than the
# effects of random directions do. We leave out features that are active in less than a tenth of their part's cells,
# because switching them off can change little. Lines are 95% intervals over scenes.

# %%
active = knobs[(knobs["arm"] == "feature") & (knobs["active"] >= 0.1)]
agreed = manipulation.logit_agreement(moved[moved["part"].isin(active["part"])])
results |= {f"agreement/{name}": entry for name, entry in agreed.items()}
kinds = {
    "feature, own part's scene edit": agreed["own"],
    "random direction, same scene edit": agreed["random direction"],
}
kinds["feature, other parts' scene edits"] = agreed["other parts"]
figure = plots.dots(
    kinds, f"rank correlation over {len(network.classes)} classes, mean of {len(active)} parts", "", line=0
)
plots.titled(figure, "Do a feature and a scene edit move the same logits?")

# %%
same, beyond = agreed["own"], agreed["beyond random direction"]
left_out = ", ".join(part.replace("_", " ") for part in f1.index if part not in set(active["part"]))
text = f"""**Takeaway.** The correlation is {same["value"]:.2f}; the difference from random directions is
{in_words(beyond | {"n": None}, percent=False)}. (Against features and parts paired at random, p =
{agreed["p"]["value"]:.1g}.) This p treats {len(active)} parts as independent (different features among
their knobs: {active["feature_id"].nunique()}). Left out: {left_out or "none"}."""
display(Markdown(text))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
wanted = ["miou", "miou_of_grid_ceiling", "target_change", "other_change"]
wanted += ["target_change_random_direction", "target_change_random_feature"]
print("missing:", [name for name in wanted if name not in results])

# %%
_ = study.record(NAME, results)

# %%
agree = "agree" if beyond["low"] > 0 else "do not clearly agree"
lines = [
    f"""Switching a part's feature off renames {in_words(results["target_change"])} of the target cells; of all cells
    that it renames, {in_words(clean["feature"])} were target cells.""",
    f"Of {len(by_part)} knobs, {len(above)} rename more target cells than random directions do, {len(under)} fewer.",
    f"""Set to twice its maximum, a feature gives its part's name to {in_words(results["feature/gained/2"])} of the
    other cells.""",
    f"""Beyond random directions, the effects of features and of scene edits {agree}: the difference in rank correlation
    is {in_words(beyond, percent=False)}.""",
    f"Fin, (a) to (c): {', '.join(fin_said)}. Engines, (a) to (c): {', '.join(said)}. The worst knob {outcome}.",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That the network uses what the head reads.** We fitted the head ourselves; it is linear and reads one cell at a
#   time.
# - **That no dictionary has better knobs.** We turned the features of one autoencoder, from one seed, at one site of a
#   small network.
# - **What happens at natural activations.** At -2 and 2, and with a feature set in every cell, activations lie where no
#   picture would put them.
