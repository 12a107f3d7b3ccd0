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
# pixel as it was. A sentence such as "feature 12 detects propellers" is printed only after tests that random
# directions fail, and the answer of this notebook is the share of *random* features that pass.
#
# **Reads** `data/runs/<preset>/features` (notebook 04). **Writes** `…/ablation/<experiment>` and the numbers in
# `data/results/<preset>/05_ablate_features.json`.
#
# **Runtime** with the default preset on 2 CPU cores: 6 minutes the first time, one minute after that. It tests
# 40 features on up to 70 pictures each where forward passes are needed, and 70 scenes for each part.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
from functools import partial

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.stats import spearmanr, wilcoxon

from aircraft_sae import features
from aircraft_sae import interventions as ablation

# %%
from aircraft_sae.activations import captured
from aircraft_sae.features import reconstruction as evaluation
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.metrics import bootstrap_counts, interval, with_draws, with_interval
from aircraft_sae.pictures import test_transform
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_json, write_parquet
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser import InterventionBench
from aircraft_sae.view.browser.snapshots import bench_figure, bench_table
from aircraft_sae.view.plots import in_words

# %% [markdown]
# ## Settings
#
# The list of features is the one drawn in notebook 04 before any test; what is claimed of them was chosen on half A
# of the test pictures, and is tested on half B. Suppression at the last stage covers every feature and picture;
# experiments that need forward passes cover fewer. `FULL = True` takes the numbers of the full protocol: 100 features,
# 240 pictures each, about 80,000 forward passes. From the times of this run that is some 20 minutes on 2 CPU cores
# (extrapolated, not run).

# %%
study = Study.open()
NAME, results, config, FULL = "05_ablate_features", {}, study.config.sae, False
small = study.config.name == "smoke"
N_FEATURES, N_IMAGES = (100, 240) if FULL else (3, 4) if small else (40, 70)
N_SCENES, N_MOVED = (240, 240) if FULL else (3, 2) if small else (70, 12)
SIGMA, WINDOW = 8, 64  # pixels of a picture of 224
NO_MASKS = "This data set holds photographs: parts can't be removed from them, so this can't be known here."


def point(value, n):
    """A result without an interval."""
    return value, None, None, int(n)


def of(entry, unit, percent=True):
    """A result in words that say what n counts: "93.1% (91.2 to 94.8, n = 990 pictures)"."""
    return in_words(entry, percent).replace(")", f" {unit})")


def median_interval(values):
    """The 95% interval of a median, by drawing the values anew."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return interval(np.median(values[drawn], axis=1))


# %%
sae, index, acts = study.sae(), study.features(), study.activations()
data, classifier, table = study.dataset(), study.classifier(), index.table
test, level = index.rows("test"), data.levels[0]
images = index.images.iloc[test].reset_index(drop=True)
in_b = features.halves(images[level])
rows_b, size = test[in_b], classifier.image_size
window, sigma = round(WINDOW * size / 224), SIGMA * size / 224
scores = pd.read_parquet(study.folder / "features" / "main" / "parts.parquet") if data.masks else None
frozen = ablation.frozen_list(table, scores)
class_of = torch.from_numpy(pd.Categorical(images[level], classifier.classes).codes.astype(np.int64))
pooled = torch.cat([block.mean((1, 2)) for block in acts.blocks(test)])
strength = index.sums(test) / index.cells_per_image  # (n, d_sae) mean over a picture's cells
print(
    f"{len(frozen)} claims (a feature and what it is said to show) to test: {frozen['chosen'].value_counts().to_dict()}"
)

# %% [markdown]
# ## One feature through every experiment
#
# Before the tables, one feature: the first of the list's best matches (in photographs: the first random one). First
# the picture of half B in which it is strongest, with its map; second the same with the patch under its peak blurred,
# and the map that the network then gives. In the hangar also the scene rendered without shadows, and that once more
# without the part that the feature matches.

# %%
candidates = frozen[frozen["chosen"] == ("part" if scores is not None else "random")]
patches = [(claim, index.patches(int(claim.feature_id), "top", 1, rows_b)) for claim in candidates.itertuples()]
active = [(claim, patch.iloc[0]) for claim, patch in patches if len(patch)]
if not active:
    raise ValueError(f"none of {len(patches)} features is active in the {len(rows_b)} pictures of half B: too few")
(followed, pick), transform = active[0], test_transform(size, classifier.mean, classifier.std)
feature_id = int(followed.feature_id)


@torch.inference_mode()
def seen(x):
    """(map of the feature, logits) of a normalised picture."""
    with captured(classifier, [config.site]) as got:
        logits = classifier.model(x[None].to(next(classifier.model.parameters()).device))[0].float().cpu()
    cells = got[config.site].float().cpu()[0].permute(1, 2, 0)
    return sae.encode(cells.flatten(0, 1)).dense()[:, feature_id].view(cells.shape[:2]).numpy(), logits


def as_input(picture):
    """A picture as the network takes it."""
    return transform.normalise(transform(picture)[None])[0]


def as_picture(x):
    """A normalised picture as uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (classifier.mean, classifier.std))
    return (255 * (x * std + mean)).clamp(0, 255).byte().permute(1, 2, 0).numpy()


# %%
x = as_input(data.picture(pick["image"]))
place = ablation.Window.around(pick["row"], pick["column"], index.grid, size, window)
blurred = x.clone()
blurred[:, *place.slices] = ablation.blur(x, sigma)[:, *place.slices]
versions = {"as it is": x, f"blurred, sigma {sigma:.0f} px": blurred}
if scores is not None:
    listing = pd.read_parquet(data.folder / "scenes.parquet").set_index("image")
    scene, rays = Scene.from_json(listing.at[pick["image"], "scene"]), study.config.dataset.hangar.supersampling
    plain, edit = (ablation.without(scene, part, size, rays) for part in (None, followed.part))
    versions["no shadows"] = as_input(plain)
    versions[f"no shadows, without its {followed.part.replace('_', ' ')}"] = as_input(edit)
label = int(class_of[np.searchsorted(test, pick["image_row"])])
panels = {name: seen(each) for name, each in versions.items()}
top = float(table.at[feature_id, "max"])
pictures = [[plots.heat(as_picture(each), panels[name][0], top) for name, each in versions.items()]]
captions = [[f"{name}: feature {panels[name][0].max():.2f}, logit {panels[name][1][label]:.2f}" for name in versions]]
plots.picture_grid(pictures, captions)

# %% [markdown]
# One feature and one picture show what is done, and nothing else: both were chosen for being strong.

# %% [markdown]
# ## Suppression: what does the classifier lose with each feature?
#
# Replace each cell's activations x by x - f d, with f the feature's activation and d its decoder direction; the part
# of x that the autoencoder does not explain stays. At the last stage only the mean over cells reaches the head, so
# the effect of every feature on every picture follows by arithmetic; a forward pass must agree. The effect is the
# change of the true class's logit *beyond the other classes'*: less the mean change of theirs. Controls: as much of
# a random direction (same length, drawn with the cells' covariance), and the feature's partner of like density and
# strength.

# %%
head = ablation.PooledHead.of(classifier)
W_dec = sae.W_dec.detach()
cells = torch.cat([block.flatten(0, 2) for block in acts.blocks(acts.rows("val"))])
covariance = torch.cov(cells.t())
random = ablation.random_directions(W_dec, covariance)
removed = torch.from_numpy(strength)
suppressed = ablation.suppress_all(head, pooled, removed, W_dec, class_of)
control = ablation.suppress_all(head, pooled, removed, random, class_of)

# %%
some, every = frozen["feature_id"].iloc[: min(10, len(frozen))].tolist(), max(1, len(test) // 20)
few = test[::every]
hooked = ablation.suppress_hooked(classifier, sae, torch.cat(list(acts.blocks(few))), some, class_of[::every])
gap = max(np.abs(hooked[name] - suppressed[name][np.ix_(np.searchsorted(test, few), some)]).max() for name in hooked)
results["suppress_max_abs_error"] = point(float(gap), len(few) * len(some))
print(f"closed form against forward pass: equal within 1e-4: {gap < 1e-4}")
assert gap < 1e-4

# %%
fires = strength > 0
alive = fires[in_b].sum(0) >= min(8, in_b.sum() // 4)


def mean_effect(effect):
    """(d_sae,) mean absolute specificity over the pictures of half B in which each feature is active."""
    return (np.abs(effect["specificity"]) * fires)[in_b].sum(0) / np.maximum(fires[in_b].sum(0), 1)


sizes, control_sizes = mean_effect(suppressed)[alive], mean_effect(control)[alive]
drawn_ids = frozen.query("chosen == 'random'")["feature_id"].tolist()
own_random = ablation.beyond_random(
    head, pooled[in_b], removed[in_b], W_dec, covariance, class_of[in_b], drawn_ids, n_random=99
)
results["share_beyond_control_95"] = ablation.pass_share(own_random["beyond"])
plots.against_null(
    np.log10(sizes + 1e-6),
    np.log10(control_sizes + 1e-6),
    "mean |change of the true class's logit beyond the others'|, log10",
    ("features", "random directions"),
)

# %%
partner = ablation.matched_features(table, (table["mean"] * table["norm"]).fillna(0).to_numpy())
swapped = np.where(partner >= 0, partner, 0)
scale = strength * np.linalg.norm(W_dec, axis=1) / np.linalg.norm(W_dec[swapped], axis=1)
like = ablation.suppress_all(head, pooled, torch.from_numpy(np.float32(scale)), W_dec[swapped], class_of)
has = alive & (partner >= 0)
sized = {
    name: float(np.median(mean_effect(each)[has]))
    for name, each in (("feature", suppressed), ("random direction", control), ("feature of like density", like))
}
results |= {f"suppress/{name}/median_abs_specificity": point(value, has.sum()) for name, value in sized.items()}
centred = removed - removed[~in_b].mean(0)  # not to 0, but to the mean of half A
to_mean = mean_effect(ablation.suppress_all(head, pooled, centred, W_dec, class_of))[alive]
results["suppress/feature, to its mean/median_abs_specificity"] = point(float(np.median(to_mean)), len(to_mean))
recon = torch.cat(
    [sae.reconstruct(block.flatten(0, 2))[0].view(block.shape).mean((1, 2)) for block in acts.blocks(test)]
).detach()
only = ablation.effects(head.logits(pooled), head.logits(recon)[:, None], class_of)["specificity"][:, 0].abs().numpy()
results["suppress/reconstruction_only/mean_abs_specificity"] = with_interval(only, np.ones(len(only)))

# %%
like_density, beyond_95 = sized["feature of like density"], of(results["share_beyond_control_95"], "features")
less = sized["feature"] < sized["random direction"]
beside_random = ": the median feature does less than a random direction, and few do more" if less else ""
by_recon = of(results["suppress/reconstruction_only/mean_abs_specificity"], "pictures of both halves", percent=False)
text = f"""**Takeaway.** Suppressing the median feature changes its pictures' true class's logit, beyond the other
classes', by {sized["feature"]:.4f} (absolute; {has.sum()} features with a partner, n = {in_b.sum()} pictures), as much
of a random direction by {sized["random direction"]:.4f}, of its partner's direction by {like_density:.4f}; set to its
mean in place of 0, by {np.median(to_mean):.4f}. Of {len(own_random)} random features {beyond_95} are beyond 95% of 99
random directions of their own length, where 5% would be by chance{beside_random}. The reconstruction alone changes the
logit by {by_recon} (mean, absolute)."""
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
doses, listed = (0.0, 0.5, 1.0, 2.0, 4.0), frozen.query("chosen == 'random'")["feature_id"].tolist()
dosed = {"features": [], "random directions": []}
for factor in doses:
    for name, rows in (("features", W_dec), ("random directions", random)):
        less_of = (1 - factor) * removed[in_b][:, listed]
        effect = ablation.suppress_all(head, pooled[in_b], less_of, rows[listed], class_of[in_b])
        dosed[name].append(effect["logit"].T)
for name, suffix in (("features", ""), ("random directions", "_random")):
    rank = [
        spearmanr(doses, [each[j][fires[in_b][:, feature]].mean() for each in dosed[name]]).statistic
        for j, feature in enumerate(listed)
        if fires[in_b][:, feature].any()
    ]
    results[f"dose/share_monotone{suffix}"] = point(float((np.abs(rank) > 0.999).mean()), len(rank))

# %%
active = fires[in_b][:, listed].T  # (features, pictures): the feature is there
n_active = np.maximum(active.sum(1), 1)
per = {name: [(np.abs(each) * active).sum(1) / n_active for each in all_] for name, all_ in dosed.items()}
means = {name: [each.mean() for each in values] for name, values in per.items()}
for name, values in per.items():
    for factor, each in zip(doses, values, strict=True):
        results[f"dose/{name}/x{factor:g}"] = with_interval(each, np.ones(len(each)))
plots.curves(means, doses, "activation multiplied by", "mean |change of the true class's logit|")

# %%
four, four_random = (of(results[f"dose/{name}/x4"], name, percent=False) for name in dosed)
text = f"""**Takeaway.** {results["dose/share_monotone"][0]:.0%} of {len(rank)} random features move their mean logit
the same way at every dose, of random directions {results["dose/share_monotone_random"][0]:.0%}. Four times the
activation changes it by {four}, of random directions by {four_random}; 0 times
by {means["features"][0]:.3f} and {means["random directions"][0]:.3f}. This is the logit itself, not beyond the other
classes', and the mean over features, not the median: hence larger than above."""
display(Markdown(text))


# %% [markdown]
# ## Which features tell two variants apart?
#
# The two classes most often mistaken for each other on half A, and the features whose suppression lowers the margin
# (logit of the true class less that of the other) most on half A. On half B: how much more each lowers it than its
# random direction does. Negative means that the feature speaks for the true class.

# %%
logits = head.logits(pooled)
wrong = (logits.argmax(1) != class_of).numpy() & ~in_b
mistaken = zip(class_of[wrong].tolist(), logits.argmax(1)[wrong].tolist(), strict=True)
pairs = pd.Series([tuple(sorted(pair)) for pair in mistaken]).value_counts()
one, two = pairs.index[0] if len(pairs) else (0, 1)
own = np.isin(class_of.numpy(), (one, two))
rival = torch.where(class_of == one, two, one)
margins = {}
for name, rows in (("feature", W_dec), ("random direction", random)):
    after = head.edited(pooled[own], removed[own], rows)
    margins[name] = ablation.effects(logits[own], after, class_of[own], rival[own])["margin"].numpy()
a, b = ~in_b[own], in_b[own]
strongest = margins["feature"][a].mean(0).argsort()[:8]
beyond = margins["feature"][b][:, strongest] - margins["random direction"][b][:, strongest]
pair_rows = {f"feature {j}": with_interval(each, np.ones(b.sum())) for j, each in zip(strongest, beyond.T, strict=True)}
results |= {f"pair/{name}/margin_beyond_random": entry for name, entry in pair_rows.items()}

# %%
n_wrong = int(pairs.iloc[0]) if len(pairs) else 0
text = f"""*{classifier.classes[one]}* and *{classifier.classes[two]}*, mistaken for each other in {n_wrong} of
half A's {a.sum()} pictures of the two:"""
display(Markdown(text))
plots.dots(pair_rows, "change of the margin when suppressed, less that of a random direction", "", line=0)

# %%
held = sum(entry["high"] < 0 for entry in pair_rows.values())
results["pair/features_that_hold"] = point(held, len(strongest))
text = f"""**Takeaway.** {held} of the {len(strongest)} features chosen on half A lower the margin on half B by more
than their random direction does (interval of the difference below 0, n = {b.sum()} pictures)."""
display(Markdown(text))

# %% [markdown]
# ## Does it hold where a network follows? Stage 3
#
# At the stage before the last, a whole stage of the network works on what is left after suppression. An autoencoder
# of that stage, its features drawn at random by density, and forward passes; the control is a random direction again.
# As before, the change is that of the true class's logit beyond the others', over pictures in which the feature is
# active. On the line, both do as much.

# %%
site3 = next((site for site in study.config.sites if site != config.site), config.site)
sae3 = study.sae("stage3", site=site3, n_cells=config.n_cells // 2, dead_after=config.dead_after // 2)
index3, acts3 = study.index("stage3", sae3), study.activations(site3)
scores3 = pd.read_parquet(study.folder / "features" / "stage3" / "parts.parquet") if data.masks else None
frozen3 = ablation.frozen_list(index3.table, scores3)
drawn3 = frozen3.query("chosen == 'random'")["feature_id"].sample(N_FEATURES, random_state=0).tolist()
cells3 = torch.cat([block.flatten(0, 2)[::5] for block in acts3.blocks(acts3.rows("val"))])
random3 = ablation.random_directions(sae3.W_dec.detach(), torch.cov(cells3.t()))
chosen3 = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(in_b))[: 2 * N_IMAGES])


def suppress_stage3(folder):
    """Effects of the drawn features and of random directions, in the chosen pictures."""
    block, labels = torch.cat(list(acts3.blocks(test[chosen3]))), class_of[chosen3]
    for name, rows in (("feature", None), ("random", random3[drawn3])):
        effect = ablation.suppress_hooked(classifier, sae3, block, drawn3, labels, directions=rows)["specificity"]
        np.save(folder / f"{name}.npy", effect)


folder = study.ablation(
    "suppress-stage3", suppress_stage3, ["classifier", "features/stage3"], n_features=N_FEATURES, n_images=N_IMAGES
)

# %%
effect3 = {name: np.abs(np.load(folder / f"{name}.npy")) for name in ("feature", "random")}
n_active3 = np.maximum((effect3["feature"] > 0).sum(0), 1)  # where it is silent, nothing is taken out
effect3 = {name: each.sum(0) / n_active3 for name, each in effect3.items()}
both3 = (effect3["feature"] > 0) & (effect3["random"] > 0)
ratios = np.log(effect3["feature"][both3] / effect3["random"][both3]) if both3.any() else np.zeros(1)
entry = (float(np.exp(np.median(ratios))), *np.exp(median_interval(ratios)), len(ratios))
results["stage3/median_effect_over_random_direction"] = entry
results["stage3/median_abs_specificity"] = point(float(np.median(effect3["feature"])), len(drawn3))
results["stage3/features_above_random_direction"] = ablation.pass_share(ratios > 0)
results["stage3/wilcoxon_p"] = float(wilcoxon(ratios).pvalue) if np.any(ratios) else 1.0
plots.agreement(
    np.log10(np.maximum(effect3["random"], 1e-6)),
    np.log10(np.maximum(effect3["feature"], 1e-6)),
    tuple(f"{name}: mean |change beyond other classes|, log10" for name in ("random direction", "feature")),
    diagonal=True,
)

# %%
above3 = in_words(results["stage3/features_above_random_direction"])
text = f"""**Takeaway.** At {site3}, suppressing the median random feature moves the true class's logit (beyond the
others') {entry[0]:.2f} times as much as a random direction of equal length ({entry[1]:.2f} to {entry[2]:.2f},
n = {entry[3]} features, {len(chosen3)} pictures); {above3} of them do more than theirs
(Wilcoxon p = {results["stage3/wilcoxon_p"]:.1g}). Both are small: the median feature moves it
by {results["stage3/median_abs_specificity"][0]:.4f}."""
display(Markdown(text))

# %% [markdown]
# ## Blurring: is what lies under the peak what the feature needs?
#
# The window is 64 pixels of 224: twice a cell's width, and smaller than the disc that holds half of a feature's
# gradient (notebook 04). For each feature, half of its pictures are those of half B in which it is strongest, half are
# any others in which it is active; the window lies around the picture's peak in both. Controls on the same picture, two
# of these four drawn at random: a window on the aircraft, one anywhere, the window on the aircraft where the feature is
# lowest (in photographs: anywhere), and the peak of another feature of like density. A control is *matched* if its
# change in pixels is within a fifth of the target's; only these count (how many, below). The change of the logit is
# also given beyond that of a control on the same picture, above all of windows on the aircraft (in photographs, where
# its outline is not known: of those where the feature is lowest): where a window of sky is blurred, nothing much can
# change. *Mediation*: after blurring, put the feature alone back, and ask which share of the logit's loss returns;
# control: a random direction.

# %%
half = N_FEATURES // 2 if scores is not None else N_FEATURES
blur_list = frozen.query("chosen == 'random'")["feature_id"].sample(half, random_state=0).tolist()
matches = [j for j in frozen.query("chosen == 'part'")["feature_id"].drop_duplicates() if j not in blur_list]
blur_list += matches[: N_FEATURES - len(blur_list)]
picks = []
for j in blur_list:
    peaks = index.patches(int(j), "top", len(rows_b), rows_b)
    strongest_, others = peaks.head(N_IMAGES // 2), peaks.iloc[N_IMAGES // 2 :]
    others = others.sample(min(len(others), N_IMAGES - len(strongest_)), random_state=int(j))
    picks.append(pd.concat([strongest_.assign(how="top"), others.assign(how="random")]).assign(feature_id=int(j)))
picks = pd.concat(picks, ignore_index=True)


def blur_all(folder):
    """Every pick and its controls."""
    made = ablation.blur_effects(classifier, sae, data, index, picks, partner, covariance, sigma, window)
    write_parquet(made.merge(picks[["feature_id", "image_row", "how"]]), folder / "blur.parquet")


uses, settings = ["classifier", "features/main"], dict(n_features=N_FEATURES, n_images=N_IMAGES)
folder = study.ablation("blur", blur_all, uses, sigma=sigma, window=window, **settings)
blur = pd.read_parquet(folder / "blur.parquet")
print(f"{blur['feature_id'].nunique()} features, {len(picks):,} feature-picture pairs, {len(blur):,} forward passes")


# %% tags=["report"]
kinds = {
    "target": "under the peak",
    "aircraft": "on the aircraft",
    "anywhere": "anywhere",
    "lowest": "on the aircraft, where it is lowest" if data.masks else "where it is lowest",
    "other": "another feature's peak",
}
present = {kind: title for kind, title in kinds.items() if (blur["matched"] & (blur["where"] == kind)).any()}
lost = {title: ablation.feature_lost(blur, kind) for kind, title in present.items()}
results |= {f"blur/{title}/feature_lost": entry for title, entry in lost.items()}
for kind, title in present.items():
    own = blur[(blur["where"] == kind) & blur["matched"]]
    for name in ("logit", "margin", "confidence"):
        sums = own.groupby("image_row")[name].agg(["sum", "count"])
        results[f"blur/{title}/{name}"] = with_interval(sums["sum"], sums["count"])
plots.dots(lost, "share of the feature's maximum lost, %", "blurred window", 100, line=0)

# %%
beside = "aircraft" if data.masks else "lowest"
choices = {
    "all pictures": blur,
    "strongest": blur[blur["how"] == "top"],
    "any in which it is active": blur[blur["how"] == "random"],
}
beyond = {name: ablation.beyond_controls(each, [beside]) for name, each in choices.items()}
results |= {f"blur/logit_beyond_{beside}/{name}": entry for name, entry in beyond.items()}
controls = [kind for kind in present if kind != "target"]
results |= {f"blur/logit_beyond_{kind}": ablation.beyond_controls(blur, [kind]) for kind in controls}
at_peak = {name: ablation.feature_lost(each, "target") for name, each in choices.items()}
results |= {f"blur/under the peak, {name}/feature_lost": entry for name, entry in at_peak.items()}
results["blur/matched_controls_share"] = float(blur.loc[blur["where"] != "target", "matched"].mean())
mediation = ablation.mediation(blur)
results |= {f"mediation/{name}": entry for name, entry in mediation.items()}

# %%
logit_at = of(results["blur/under the peak/logit"], "pictures", percent=False)
logit_beyond, logit_top, logit_other = (of(each, "pictures", percent=False) for each in beyond.values())
back, back_random = (of(entry, "pictures") for entry in mediation.values())
lost_peak, lost_beside = of(lost["under the peak"], "pictures"), of(lost[kinds[beside]], "pictures")
matched_share = results["blur/matched_controls_share"]
text = f"""**Takeaway.** A blur under the peak takes {lost_peak} of the feature's maximum, a matched one {kinds[beside]}
takes {lost_beside}. The true class's logit changes by {logit_at} under the peak; beyond a matched
window of that kind on the same picture, by {logit_beyond}: {logit_top} in the pictures in which the feature is
strongest, {logit_other} in others. Of the controls, {matched_share:.0%} are matched. Putting back the feature alone
returns {back} of the logit's loss, as much of a random direction {back_random}. The tables give the other windows and
the two kinds of pictures; n counts pictures."""
display(Markdown(text))
changes = {title: in_words(results[f"blur/{title}/logit"], percent=False) for title in present.values()}
less_there = {present[kind]: in_words(results[f"blur/logit_beyond_{kind}"], percent=False) for kind in controls}
columns = {
    "maximum lost": {title: in_words(entry) for title, entry in lost.items()},
    "change of the logit": changes,
    "logit under the peak, less here": less_there,
}
display(pd.DataFrame(columns).fillna("–").rename_axis("blurred window"))
pd.DataFrame(
    {
        "maximum lost under the peak": [in_words(entry) for entry in at_peak.values()],
        f"logit there, less {kinds[beside]}": [in_words(entry, percent=False) for entry in beyond.values()],
    },
    pd.Index(["all", "in which the feature is strongest", "others in which it is active"], name="pictures"),
)

# %% [markdown]
# With less and with more blur, for ten of the features and some of the pictures in which each is strongest, hence more
# at 8 pixels than above:

# %%
few_picks = picks[picks["feature_id"].isin(blur_list[:10])].groupby("feature_id").head(max(1, N_IMAGES // 4))
strengths = {f"{SIGMA} px": blur.merge(few_picks[["feature_id", "image_row"]])}
for other_sigma in (4, 16):

    def blur_few(folder, other_sigma=other_sigma):
        """The same windows with another sigma."""
        how = sigma * other_sigma / SIGMA
        made = ablation.blur_effects(classifier, sae, data, index, few_picks, partner, covariance, how, window)
        write_parquet(made, folder / "blur.parquet")

    where = study.ablation(f"blur-{other_sigma}", blur_few, uses, n_picks=len(few_picks), window=window)
    strengths[f"{other_sigma} px"] = pd.read_parquet(where / "blur.parquet")
by_sigma = {name: ablation.feature_lost(strengths[name], "target") for name in ("4 px", f"{SIGMA} px", "16 px")}
results |= {f"blur/sigma {name}/feature_lost": entry for name, entry in by_sigma.items()}
plots.dots(by_sigma, "share of the feature's maximum lost under the peak, %", "sigma", 100, line=0)

# %% [markdown]
# ## Do blurring and suppression agree?
#
# For each feature, over its pictures: does the logit fall most by blurring where it falls most by suppression?
# Spearman's rank correlation; for the median feature, its interval by drawing features anew, for each feature by
# drawing its pictures anew. The figure shows the correlations of all features, beside the same with each feature's
# pictures in random order. *Over features*, the correlation is that of their mean changes.

# %%
agree = ablation.agreement(blur, suppressed["logit"], test)
shuffled, at_target, rng = blur.copy(), blur["where"] == "target", np.random.default_rng(0)
in_turn = blur[at_target].groupby("feature_id")["logit"]
shuffled.loc[at_target, "logit"] = in_turn.transform(lambda each: rng.permutation(each.to_numpy()))
by_chance = ablation.agreement(shuffled, suppressed["logit"], test)
values, null = (
    each["spearman"].dropna().to_numpy() if each["spearman"].notna().any() else np.zeros(1)
    for each in (agree, by_chance)
)
for name, each in (("median", values), ("median_shuffled", null)):
    results[f"blur_suppress_spearman_{name}"] = (float(np.median(each)), *median_interval(each), len(each))
results["blur_suppress_spearman_above_0"] = ablation.pass_share((agree["low"] > 0).to_numpy())
results["blur_suppress_same_sign"] = float(agree["same_sign"].mean())
results["blur_suppress_same_sign_shuffled"] = float(by_chance["same_sign"].mean())
over = float(np.nan_to_num(spearmanr(agree["suppressed"], agree["blurred"]).statistic))
results["blur_suppress_spearman_over_features"] = point(over, len(agree))

# %%
ends = np.floor(10 * min(values.min(), null.min())) - 1.5, np.ceil(10 * max(values.max(), null.max())) + 2
edges = np.arange(*ends) / 10  # tenths, the first and the last empty
tenths = {"as they are": values, "each feature's pictures in random order": null}
tenths = {name: 100 * np.histogram(each, edges)[0] / len(each) for name, each in tenths.items()}
plots.curves(tenths, edges[:-1] + 0.05, "Spearman's rank correlation, to the nearest tenth", "features, %")

# %%
median_, low, high, n = results["blur_suppress_spearman_median"]
chance, chance_low, chance_high, _ = results["blur_suppress_spearman_median_shuffled"]
above_0 = of(results["blur_suppress_spearman_above_0"], "features")
same_sign, same_by_chance = (results[f"blur_suppress_same_sign{end}"] for end in ("", "_shuffled"))
text = f"""**Takeaway.** Over a feature's pictures, the rank correlation is {median_:.2f} in the median feature
({low:.2f} to {high:.2f}, n = {n} features of about {N_IMAGES} pictures), and with each feature's pictures in random
order {chance:.2f} ({chance_low:.2f} to {chance_high:.2f}); over the {len(agree)} features it is {over:.2f}. A feature's
own interval is above 0 in {above_0}, where 2.5% would be by chance. Blurring and suppression have the same sign in
{same_sign:.0%} of the pairs of a feature and a picture, with pictures in random order in {same_by_chance:.0%}."""
display(Markdown(text))

# %% [markdown]
# Blurring a window changes all features that look there, suppression one. Agreement says that the two point the same
# way, not that the one works through the other; that is what mediation asks.

# %% [markdown]
# ## Scene edits: does the feature go when the part goes?
#
# Scenes of half B, rendered without shadows, then again without one part. *R* is the share of the feature's maximum
# that goes with a part, *S* that less the largest R of another part whose removal changes no more than twice as many
# pixels. The matrix shows each part's best match (chosen on half A by AP) against every part: a detector would be red
# on the diagonal alone. A feature can be the best match of several parts; where R is negative, it grew.

# %%
responses, networks = {}, {"trained": classifier}
if data.masks:
    study.activations(control=True)
    networks["permuted"] = classifier.permuted()
    own = pd.read_parquet(data.folder / "scenes.parquet").set_index("image").loc[images["image"][in_b]]
    size_ = study.config.dataset.hangar.size
    render = dict(size=size_, supersampling=study.config.dataset.hangar.supersampling)
    for kind, most in (("remove", N_SCENES), ("move", N_MOVED), ("recolour", N_MOVED)):
        scenes = ablation.choose_scenes(own, most, size_)
        which = networks if kind == "remove" else {"trained": classifier}
        make = partial(ablation.edit_scenes, which, study.config.sites, scenes, kind, most=most, **render)
        uses = ["classifier", "permuted"] if kind == "remove" else ["classifier"]
        responses[kind] = study.ablation(f"edit-{kind}", make, uses, most=most)

# %% tags=["report"]
if data.masks:
    removal = ablation.Responses.of(sae, responses["remove"])
    R = removal.response()
    parts = list(PARTS[features.FIRST :])
    ranked = scores.sort_values("ap_a", ascending=False, kind="stable").drop_duplicates("part")
    best = ranked.set_index("part")["feature_id"].reindex(parts).dropna().astype(int)
    grid = {part: R[i, best.to_numpy()] for i, part in enumerate(parts)}
    grid = pd.DataFrame(grid, [f"{part} ({j})" for part, j in best.items()])
    figure = plots.matrix(
        grid, "R: share of the feature's maximum that goes", "best match of (feature)", "part removed"
    )
else:
    figure = Markdown(NO_MASKS)
display(figure)

# %%
if data.masks:
    shown_pairs, n_scenes = removal.edits["part"].value_counts(), len(removal.before)
    place_ = [parts.index(part) for part in best.index], np.arange(len(best))
    redrawn = removal.response(best.to_numpy(), bootstrap_counts(n_scenes, 2000))
    on_diagonal = redrawn[:, *place_]
    diagonal = {part: float(R[parts.index(part), j]) for part, j in best.items()}
    results |= {
        f"response/{part}": with_draws(value, on_diagonal[:, i], shown_pairs.get(part, 0))
        for i, (part, value) in enumerate(diagonal.items())
        if np.isfinite(value)
    }
    mean_ = np.nanmean(list(diagonal.values()))
    results["mean_response_best_match"] = with_draws(mean_, np.nanmean(on_diagonal, axis=1), n_scenes)
    apart = best.to_numpy()[None] != best.reindex(parts).to_numpy()[:, None]  # the same removals, other parts' features
    mean_apart = np.nanmean(R[:, best.to_numpy()][apart])
    drawn_apart = np.nanmean(redrawn[:, apart], axis=1)
    results["mean_response_other_best_matches"] = with_draws(mean_apart, drawn_apart, n_scenes)
    off = [removal.off_rate(part, j) for part, j in best.items()]
    results["off_rate_best_match"] = point(float(np.nanmean(off)), np.isfinite(off).sum())
    firing = (removal.before > 0).mean(0)[alive] / np.maximum((strength[in_b] > 0).mean(0)[alive], 1e-9)
    results["render_firing_ratio_within_2"] = point(float(((firing > 0.5) & (firing < 2)).mean()), alive.sum())

# %%
if data.masks:
    alike, silenced = results["render_firing_ratio_within_2"][0], results["off_rate_best_match"][0]
    whose = "best_match", "other_best_matches"
    taken, taken_other = (of(results[f"mean_response_{name}"], "scenes") for name in whose)
    least, most = (pick(diagonal, key=diagonal.get) for pick in (min, max))
    ends = [f"{diagonal[part]:.0%} ({part.replace('_', ' ')})" for part in (least, most)]
    text = f"""**Takeaway.** Removing a part takes {taken} of its best match's maximum on average
    over {len(diagonal)} parts, from {ends[0]} to {ends[1]} ({shown_pairs.min()} to {shown_pairs.max()} pairs
    a part), and silences it in {silenced:.0%} of the scenes in which it was active. Other parts' best matches lose
    {taken_other} by the same removals. Of the features, {alike:.0%} fire about as often in these renders (half to
    twice) as in the data set."""
    display(Markdown(text))

# %% [markdown]
# Moving a part up, down, forward or back by 12% of the aircraft's length or span, whichever is longer, asks whether
# the feature's centre goes along: 100% if as far as the middle of the part's pixels, 0% if it stays. The control is
# the best matches of the other parts, which should stay. Cells are coarse, so 100% is out of reach: the probes,
# directions fitted to labels, show how far one can go. Painting the part red or blue asks whether the feature is
# about its colour.

# %%
if data.masks:
    moved, painted = (ablation.Responses.of(sae, responses[kind]) for kind in ("move", "recolour"))
    own_labels = features.cell_labels(data, images["image"], index.grid)[0]
    fitted = features.fit_probes(acts.acts[test[~in_b]], own_labels[~in_b])
    probes = evaluation.readers(sae, *(torch.from_numpy(each) for each in fitted))
    probed = ablation.Responses.of(probes, responses["move"])
    shifts = {
        "best match": [moved.moves(part, j) for part, j in best.items()],
        "best matches of other parts": [moved.moves(part, j) for part in best.index for j in set(best) - {best[part]}],
        "probe": [probed.moves(part, i) for i, part in enumerate(parts)],
    }
    shifts, ways = {name: pd.concat(each) for name, each in shifts.items()}, ("down", "across")
    for way in ways:
        beyond_others = ablation.followed(shifts["best match"], way, shifts["best matches of other parts"])
        results[f"move/best match beyond other parts, {way}"] = beyond_others
    results["move/n_moves"], results["move/n_kept"] = len(moved.edits), len(shifts["best match"])
    follows = {f"{name}, {way}": ablation.followed(each, way) for name, each in shifts.items() for way in ways}
    results |= {f"move/{name}": entry for name, entry in follows.items()}
    own_colour = painted.response()
    recoloured = [abs(own_colour[parts.index(part), j]) for part, j in best.items()]
    results["recolour/mean_abs_response_best_match"] = float(np.nanmean(recoloured))
    figure = plots.dots(follows, "share of the part's shift that the centre makes, %", "features", 100, line=0)
else:
    figure = Markdown(NO_MASKS)
display(figure)

# %%
if data.masks:
    told = {name: " and ".join(of(follows[f"{name}, {way}"], "scenes") for way in ways) for name in shifts}
    n_moves, n_kept = results["move/n_moves"], results["move/n_kept"]
    recoloured_by = results["recolour/mean_abs_response_best_match"]
    difference = " and ".join(of(results[f"move/best match beyond other parts, {way}"], "scenes") for way in ways)
    text = f"""**Takeaway.** Down and across the picture, the best matches' centres make {told["best match"]}
    of their part's shift, other parts' features {told["best matches of other parts"]}, probes {told["probe"]}.
    The best matches less the others: {difference}. Of {n_moves} moves, {n_kept} leave the feature
    active. Painting the part changes the best match's maximum by {recoloured_by:.0%} in size, on average over parts (no
    control)."""
else:
    text = NO_MASKS
display(Markdown(text))

# %% [markdown]
# ## Verdicts
#
# *Detector of a part*, on half B:
#
# 1. *Guesses*: among aircraft cells, the feature's AUROC is by 0.05 above what place, outline and the picture's class
#    predict (its *excess*).
# 2. *Removal*: R is at least 0.5.
# 3. *Other parts*: S is above 0.
# 4. *Other seeds*: two have the feature (cosine at least 0.7).
#
# *Detector of a class*, on half B:
#
# 1. *AUROC*: at least 0.9.
# 2. *Suppression* hurts the class more than the others, and more than 999 random directions do (by rank).
# 3. *Other seeds*, as above.
#
# All but removal and other seeds are at q < 0.05 (Benjamini-Hochberg) over the list. A random feature's claim is the
# part of the largest excess on half A, even where that is below 0, as it is for most, and the class that stands out
# most there.
#
# *Nulls* have no other seeds: rows that say *no seeds* are without that test, and are to be compared with each other.
# The permuted network and the frozen decoder had a shorter training, and the permuted one a third of the pictures, so
# that its tests are weaker. For classes, the null is each feature's random direction, judged with the feature's own
# AUROC.
#
# A test that nothing passes may be one that nothing can pass. So the *probes* of notebook 04, one direction for each
# part, fitted to the labels of half A and silent below the threshold that is best there, go the same way: they show
# what a feature could reach if the autoencoder had found the best direction.

# %%
match = evaluation.seed_match(sae, [study.sae(f"seed{seed}", seed=config.seed + seed) for seed in (1, 2)])
labels_b = {each: images[each][in_b].to_numpy() for each in data.levels}
claimed, of_b = frozen.query("chosen == 'random'"), (pooled[in_b], removed[in_b])
to_classes = covariance, class_of[in_b], labels_b, match
classes = ablation.class_verdicts(claimed, table, head, *of_b, W_dec, *to_classes)
null_classes = ablation.class_verdicts(claimed, table, head, *of_b, random, *to_classes)
verdicts, shares = {}, {}
if data.masks:
    removals = responses["remove"]
    verdicts["features"] = ablation.judge(sae, index, frozen, data, removals, seed_match=match)
    verdicts["features at stage 3"] = ablation.judge(sae3, index3, frozen3, data, removals)
    labels3 = features.cell_labels(data, images["image"], index3.grid)[0]
    fitted3 = features.fit_probes(acts3.acts[test[~in_b]], labels3[~in_b])
    probes3 = evaluation.readers(sae3, *(torch.from_numpy(each) for each in fitted3))
    claims = pd.DataFrame({"feature_id": range(len(parts)), "chosen": "part", "part": parts})
    for name, dictionary in (("probes", probes), ("probes at stage 3", probes3)):
        its_index = study.index(name.replace(" ", "-"), dictionary)
        verdicts[name] = ablation.judge(dictionary, its_index, claims, data, removals)
    for name in ("channels", "PCA", "random-directions", "untrained", "frozen-decoder", "permuted-network"):
        where = study.folder / "features" / f"null-{name}"
        its_index, dictionary = features.FeatureIndex.open(where), SparseAutoencoder.load(where / "dictionary")
        its_scores = pd.read_parquet(where / "parts.parquet")
        claims = ablation.frozen_list(its_index.table, its_scores, n_matched=0)
        network = "permuted" if name.startswith("permuted") else "trained"
        verdicts[name.replace("-", " ")] = ablation.judge(dictionary, its_index, claims, data, removals, network)

# %%
if data.masks:
    drawn = {name: each.query("chosen == 'random'") for name, each in verdicts.items() if "probes" not in name}
    results["random_pass_share"] = ablation.pass_share(drawn["features"]["passes"])
    results["random_pass_share_without_seeds"] = ablation.pass_share(drawn["features"]["shown"])
    powered = drawn["features"].query("verdict != 'underpowered'")
    results["random_pass_share_of_powered"] = ablation.pass_share(powered["passes"]) if len(powered) else 0.0
    shares["part: features, all tests"] = results["random_pass_share"]
    without = {name: drawn.get(name, each)["shown"] for name, each in verdicts.items()}  # without the seeds' test
    titles = {name: name if "features" in name or "probes" in name else f"null, {name}" for name in without}
    shares |= {f"part: {titles[name]}, no seeds": ablation.pass_share(each) for name, each in without.items()}
    results["null_pass_share_max"] = max(without[name].mean() for name in without if titles[name].startswith("null"))
    results |= {
        f"parts_shown/{name}": point(int(verdicts[name]["shown"].sum()), len(parts))
        for name in verdicts
        if "probes" in name
    }
results["random_pass_share_classes"] = shares["class: features, all tests"] = ablation.pass_share(classes["passes"])
shares["class: features, no seeds"] = ablation.pass_share(classes["shown"])
shares["class: null, random directions, no seeds"] = ablation.pass_share(null_classes["shown"])

# %% tags=["report"]
uses = ["features/main", "features/stage3", "sae/seed1", "sae/seed2", *(["ablation/edit-remove"] if data.masks else [])]


def keep(folder):
    """All verdicts, and what is known of every feature, for the browser."""
    known = {"seed_match": match, "suppressed": mean_effect(suppressed), "suppressed_random": mean_effect(control)}
    write_parquet(pd.DataFrame({"feature_id": range(sae.d_sae)} | known), folder / "features.parquet")
    if data.masks:
        response = pd.DataFrame(R.T, columns=parts).rename_axis("feature_id").reset_index()
        write_parquet(response.melt("feature_id", var_name="part", value_name="response"), folder / "responses.parquet")
    write_json(folder / "about.json", {"features": study.stages["features/main"].fingerprint})
    write_parquet(classes, folder / "classes.parquet")
    for name, each in verdicts.items():
        write_parquet(each, folder / f"parts-{name.replace(' ', '-')}.parquet")


study.ablation("verdicts", keep, uses, shares=shares)
results |= {f"pass_share/{name}": entry for name, entry in shares.items()}
plots.dots(shares, "claims that pass, %", "claims", 100)

# %%
if data.masks:
    tests = {"excess_passes": "guesses", "response_passes": "removal", "selective_passes": "other parts"}
    tests |= {"shown": "all but seeds", "passes": "all"}
    passed = pd.DataFrame({name: drawn.get(name, each)[list(tests)].mean() for name, each in verdicts.items()})
    passed = passed.T.rename(columns=tests).map("{:.0%}".format)
    passed.loc[passed.index != "features", "all"] = "–"  # which have no other seeds
    display(passed.rename_axis("passes the test of"))

# %%
if data.masks:
    stages = [verdicts["features"], verdicts["features at stage 3"]]
    both = pd.concat(stages, keys=["stage 4", "stage 3"], names=["site"]).reset_index("site")
    held = both[both["passes"] & (both["site"] == "stage 4")]
    results["parts_with_verdict"] = point(int(held["part"].nunique()), len(parts))
    results["parts_shown_without_seeds"] = point(int(both[both["shown"]]["part"].nunique()), len(parts))
    results["n_parts"] = len(parts)
    results["underpowered_share"] = float((drawn["features"]["verdict"] == "underpowered").mean())
    # all features and parts, whatever was claimed: does any pair pass the two tests of size?
    bars, n_pairs = ablation.verdicts, []
    for its_scores, its_R in ((scores, R), (scores3, ablation.Responses.of(sae3, removals).response())):
        excess_ = its_scores["excess"].to_numpy().reshape(-1, len(parts))
        n_pairs.append(int(((excess_ >= bars.LEAST_EXCESS) & (its_R.T >= bars.LEAST_RESPONSE)).sum()))
    results["pairs_with_excess_and_response"] = point(n_pairs[0], R.size)
    results["pairs_with_excess_and_response/stage 3"] = point(n_pairs[1], len(scores3))
    counts_ = drawn["features"]["part"].value_counts()
    results |= {f"claims/{part}": int(n) for part, n in counts_.items()}

# %%
if data.masks:
    passing = results["parts_shown/probes"][0], results["parts_shown/probes at stage 3"][0]
    can = ": the tests can be passed, all but the seeds', which probes do not take" if max(passing) > 0 else ""
    of_powered = of(results["random_pass_share_of_powered"], "claims") if len(powered) else "none"
    no_seeds = results["random_pass_share_without_seeds"]["value"]
    either = results["parts_shown_without_seeds"][0]
    commonest, few_active = counts_.index[0].replace("_", " "), results["underpowered_share"]
    text = f"""**Takeaway.** {in_words(results["random_pass_share"])} of the random features pass as detectors of a part
    ({no_seeds:.0%} without the seeds' test; of the nulls {results["null_pass_share_max"]:.0%} at most). Of {len(parts)}
    parts, {results["parts_with_verdict"][0]} have a detector among the {len(frozen)} claims of stage 4, {either} at
    either stage without the seeds' test. Of the {len(parts)} probes, {passing[0]} pass at stage 4 and {passing[1]} at
    stage 3{can}. Of the random claims, {counts_.iloc[0]} are about the {commonest}; {few_active:.0%} are
    underpowered (fewer than {bars.LEAST_PICTURES} pictures, or {bars.LEAST_SCENES} scenes, in which the feature is
    active), and of the other {len(powered)}, {of_powered} pass. Whatever was claimed, pairs of a feature and a part
    with an excess of {bars.LEAST_EXCESS} and R of {bars.LEAST_RESPONSE} on half B: {n_pairs[0]} of {R.size:,} at
    stage 4, {n_pairs[1]} of {len(scores3):,} at stage 3."""
else:
    by_class = in_words(results["random_pass_share_classes"])
    text = f"**Takeaway.** {by_class} of the random features pass as detectors of a class. {NO_MASKS}"
display(Markdown(text))

# %%
if data.masks:
    facts = ["site", "feature_id", "part", "excess", "R", "R_low", "R_high", "S", "seed_match", "verdict", "why"]
    shown = both[both["shown"]].sort_values("R", ascending=False)[facts]
    none_shown = Markdown("No claim about a part passes all but the seeds' test.")
    display(shown.head(15).round(2) if len(shown) else none_shown)
    text = """The probes, largest R first. *S_q*: q of the test that S is above 0; *shown*: passes all tests but the
    seeds'; *why*: the tests failed."""
    facts = ["part", "excess", "R", "R_low", "R_high", "S", "S_q", "shown", "why"]
    display(Markdown(text), verdicts["probes"][facts].sort_values("R", ascending=False).round(2))

# %%
passing = classes[classes["passes"]]
without_seeds = [shares[f"class: {name}, no seeds"]["value"] for name in ("features", "null, random directions")]
named = [f"feature {j}, *{name}*" for j, name in zip(passing["feature_id"], passing["class"], strict=True)]
text = f"""As detectors of a class, {of(results["random_pass_share_classes"], "features")} pass; without the
seeds' test {without_seeds[0]:.0%} of the features and {without_seeds[1]:.0%} of their random directions (with the
features' own AUROC). Those that pass: {"; ".join(named) or "none"}. The random features with the smallest p,
*specificity* (change of the class's logit beyond the others' when suppressed) beside their random directions'
(*control*):"""
display(Markdown(text))
facts = ["feature_id", "level", "class", "auroc", "specificity", "control", "q", "seed_match", "verdict", "why"]
classes.sort_values("p").head(8)[facts].round(3)

# %% [markdown]
# ## Try it yourself
#
# One picture, its features under sliders, and a brush that blurs cells. The widget needs a running kernel; below it
# stands what it shows of one picture: the fewest features found whose suppression changes the prediction, what they
# do to the logits, and the picture with two cells blurred.

# %%
bench = InterventionBench(study)
display(bench)

# %%
hands = bench.answers.bench
subject = hands.of_row(int(rows_b[0]))
flip = hands.flip(subject)
middle = index.grid[0] // 2, index.grid[1] // 2
blurred_ = hands.blurred(subject, [middle, (middle[0], middle[1] - 1)], SIGMA)
bench_figure(hands, subject, blurred_, flip["features"][0] if flip["features"] else feature_id)

# %%
found, agrees = ", ".join(map(str, flip["features"])), "agrees" if flip["verified"] else "disagrees"
text = f"""Features suppressed: {found}. That turns *{flip["before"]}* into *{flip["after"]}*; a forward pass of the
whole network {agrees}. Logits:"""
display(Markdown(text if flip["features"] else "No set of features was found that changes the prediction. Logits:"))
bench_table(hands, subject, dict.fromkeys(flip["features"], 0.0)).round(3)

# %% [markdown]
# One picture shows what the bench does. In many pictures such a set can be found (not counted here): that it exists
# says nothing of what these features mean.

# %% [markdown]
# ## Takeaways
#
# All numbers are now written down, and the list below is built from the file.

# %% tags=["nbval-check-output"]
print("pictures of half A in the claims' tests:", len(set(picks["image_row"]) - set(rows_b)))
assert set(picks["image_row"]) <= set(rows_b)

# %%
number = {name: (entry["value"] if isinstance(entry, dict) else np.ravel(entry)[0]) for name, entry in results.items()}
study.record(NAME, {name: results[name] for name, value in number.items() if np.isfinite(value)})  # nan: untested
final = study.results(NAME)
value = {name: entry["value"] for name, entry in final.items()}
by_class = of(final["random_pass_share_classes"], "features")
class_shares = [value[f"pass_share/class: {name}, no seeds"] for name in ("features", "null, random directions")]
lines = [
    f"""Random features that pass every test as detectors of a class: {by_class}. Without the seeds'
    test: {class_shares[0]:.0%}, of their random directions {class_shares[1]:.0%}."""
]
if data.masks:
    under, elsewhere = (value[f"blur/{place}/feature_lost"] for place in ("under the peak", "on the aircraft"))
    lines += [
        f"As detectors of a part: {of(final['random_pass_share'], 'features')}.",
        f"""A part takes {value["mean_response_best_match"]:.0%} of its best match's maximum with it, of other
        parts' {value["mean_response_other_best_matches"]:.1%}; a blur under the peak takes {under:.0%}, elsewhere on
        the aircraft {elsewhere:.0%}.""",
        f"""Parts with a detector: {value["parts_with_verdict"]} of {value["n_parts"]}; directions fitted to labels pass
        for {value["parts_shown/probes"]} (stage 4) and {value["parts_shown/probes at stage 3"]} (stage 3).""",
    ]
agreeing = of(final["blur_suppress_spearman_median"], "features", percent=False)
by_chance_ = of(final["blur_suppress_spearman_median_shuffled"], "features", percent=False)
lines += [
    f"""The rank correlation of blurring and suppression over pictures is {agreeing} in the median feature, and with
    each feature's pictures in random order {by_chance_}."""
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That a feature that fails is nothing.** It may follow what has no mask here, or a part from one side only. "Not
#   shown" and "underpowered" are said of claims, not of features.
# - **How the classifier computes.** Suppression at the last stage is arithmetic; blurring and edits change more than
#   one feature; mediation is linear.
# - **Photographs.** Renders without shadows are not the pictures the network learned from, though features fire alike.
