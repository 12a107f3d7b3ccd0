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
# # 9. Look for missing curve detectors
#
# **Question.** Do sparse autoencoders find the curve detectors that neurons miss?
#
# Why care: early layers of image networks have *curve detectors*, units that respond to an arc of one orientation.
# InceptionV1's mixed3b has ten such neurons, with gaps between their orientations (Cammarata et al. 2020). Sparse
# autoencoders are said to fill these gaps (Gorton 2024). But an autoencoder has many more features than the layer has
# neurons, and more candidates can cover more orientations for that reason alone. So we ask whether features cover more
# orientations than **equally many** neurons, and more than directions that no autoencoder learned.
#
# **Reads** the data set of notebook 01. **Writes** `data/runs/<preset>/experiments/stimuli-<network>`,
# `…/tuning-<network>-<site>`, `…/in-pictures-<network>-<site>`, the cells and autoencoders of each site, and the
# numbers in `data/runs/<preset>/results/09_curves.json`.
#
# **Runtime** with the default preset on 2 CPU cores: four minutes the first time, one minute after that.

# %%
# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"quality": 88}}
import os
from itertools import product

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

# %%
from aircraft_sae.features.reconstruction import as_batchtopk, measure, random_dictionaries, seed_agreement, untrained
from aircraft_sae.metrics import with_interval
from aircraft_sae.pictures.curves import Curves
from aircraft_sae.studies import curves
from aircraft_sae.studies.tuning import LARGEST, PUBLISHED, family
from aircraft_sae.study import Study
from aircraft_sae.view import plots
from aircraft_sae.view.browser.catalogue import crops_figure

# %% [markdown]
# ## Settings
#
# We study two networks. *InceptionV1* is the network of the claim, with weights of our own: it learned to name rendered
# aircraft, turned by any angle. *EfficientNet-Lite0* has ImageNet weights, so we did not choose its training pictures.
# (Its channels take both signs; we use only their positive part.) To study the published weights of InceptionV1, run
# `python -m aircraft_sae run 09 --network inception5h.pth` (`data/README.md` says where to find this file).
#
# At early sites a picture has up to 3,136 cells, so we draw 64 cells of each picture at random to train the
# autoencoders. Each has 8 times as many features as the site has channels, and on average 16 features are active in a
# cell. We train each from three seeds.

# %%
study = Study.open()
NETWORK, results, small = os.environ.get("AIRCRAFT_SAE_NETWORK"), {}, study.config.name == "smoke"
networks = {each.name: each for each in map(study.network, (NETWORK or "hangar_inceptionv1", "efficientnet_lite0"))}
NAME = "09_curves" + f"-{next(iter(networks))}" * bool(NETWORK)
SITES = dict(zip(networks, (("conv2d2", "mixed3a", "mixed3b"), ("blocks.1", "blocks.2")), strict=True))
NAMES = dict(zip(networks, ("InceptionV1", "EfficientNet-Lite0"), strict=True))
PAIRS = [(own, site) for own, sites in SITES.items() for site in sites]
KINDS = ["neurons", "features", "random directions", "untrained"]
N_SEEDS, stimuli = 2 if small else 3, Curves().every(4 if small else 1)
titles = {pair: f"{NAMES[pair[0]]} {pair[1]}" for pair in PAIRS}

# %% [markdown]
# ## What do we show the network?
#
# We show arcs of equal length and width that pass through the middle of a grey picture: at every 5 degrees, with four
# radii, bright and dark, and shifted by up to two pixels. An arc's angle is the direction from its middle towards its
# centre of curvature. We also show lines and corners, to which a curve detector should respond less. (At conv2d2 and
# blocks.1, a cell sees a window of some 20 pixels, in which arcs of the two larger radii are almost straight.)

# %%
shown = stimuli.table.drop_duplicates("kind")["image"].tolist()
arcs = stimuli.table.query("kind == 'curve'")["image"].to_numpy()
shown += arcs[(np.array([0.09, 0.3, 0.52]) * len(arcs)).astype(int)].tolist()
captions = stimuli.table.set_index("image").loc[shown].apply(lambda row: f"{row['kind']} {row['angle']}°", axis=1)
figure = plots.picture_grid([[stimuli.picture(image) for image in shown]], [captions.tolist()])
plots.titled(figure, "What do we show the network?")

# %%
responses, cells = {}, {}
for own, sites in SITES.items():
    inputs = {"network": networks[own], "pictures": stimuli}
    responses[own] = study.stage(f"experiments/stimuli-{own}", curves.record_middle, {"sites": sites}, inputs)
    cells |= {(own, site): acts for site, acts in study.sampled_cells(sites, networks[own]).items()}

# %% [markdown]
# ## Who detects curves?
#
# A unit's *tuning curve* is its mean response at each angle (over radii, contrasts and shifts), divided by its peak. A
# unit is a *curve detector* if all of this holds:
#
# - Its tuning curve is at most 70° wide at half height, and no higher than 0.3 at the angle opposite its peak.
# - At the angle of its peak, the best arc excites it at least 1.3 times as much as the straight line at that angle.
# - Its largest response to an arc exceeds 95% of its positive activations on real pictures.
# - No corner excites it more than the best arc does.
#
# We fixed these limits before we looked at a network, with two exceptions: "positive" was added because sparse units
# are silent in most cells, and the rule for corners was added because, without it, a corner filter that we had put into
# a test was counted as a curve detector.
#
# The units are the site's channels (*neurons*), the *features* of an autoencoder, and two nulls with as many units as
# the autoencoder: *random directions*, and the features of an *untrained* autoencoder. Both nulls are encoded as
# features are: a single threshold leaves, on average, 16 units active in a cell.

# %%
saes, folders = {}, {}
for own, site in PAIRS:
    acts, end = cells[own, site], f"{own}-{site}"
    how = {"variant": "batchtopk", "k": 16, "expansion": 8, "standardise": "channels"}
    seeds = [study.dictionary(f"{end}-{i}", acts, seed=i, **how) for i in range(N_SEEDS)]
    made = {"features": seeds[0]} | {f"features {i}": sae for i, sae in enumerate(seeds) if i}
    nulls = {"random directions": random_dictionaries(seeds[0], acts, range(N_SEEDS))}
    nulls["untrained"] = [untrained(seeds[0], acts, i) for i in range(N_SEEDS)]
    made |= {f"{name} {i}": as_batchtopk(sae, acts) for name, each in nulls.items() for i, sae in enumerate(each)}
    inputs = {"stimuli": responses[own], "pictures": stimuli, "acts": acts, "saes": made}
    saes[own, site], folders[own, site] = seeds, study.stage(f"experiments/tuning-{end}", curves.tune, {}, inputs)

# %%
covered = []
for (own, site), folder in folders.items():
    table = pd.read_parquet(folder / "coverage.parquet")
    covered.append(table.assign(network=own, site=site, kind=table["dictionary"].str.replace(r" \d+$", "", regex=True)))
covered = pd.concat(covered, ignore_index=True)
counts = covered.drop_duplicates(["network", "site", "dictionary"])
by_kind = counts.groupby(["network", "site", "kind"], sort=False)[["n", "units"]].agg(["mean", "min", "max"])
for (own, site, kind), row in by_kind.iterrows():
    results[f"{own}/{site}/n_detectors/{kind}"] = (*row["n"], row["units", "mean"])
shares = (100 * by_kind["n", "mean"] / by_kind["units", "mean"]).unstack().reindex(columns=KINDS)
shares.rename_axis(columns="detectors, % of units").round(1)

# %% [markdown]
# How good are these autoencoders? The table shows the variance that they leave unexplained on test pictures, the share
# of dead features, and the agreement of two seeds (0 is chance, 1 is identity).

# %%
fits = {}
for pair, seeds in saes.items():
    acts, name = cells[pair], "/".join(pair)
    found = measure(seeds[0].reconstruct, acts, acts.rows("test"), acts.moments(acts.rows("train"))[0]).results
    agreed = [seed_agreement(seeds[0].W_dec, other.W_dec)["agreement"] for other in seeds[1:]]
    results |= {f"{name}/fvu": found["fvu"], f"{name}/dead_share": found["dead_share"]}
    results[f"{name}/seed_agreement"] = (np.mean(agreed), min(agreed), max(agreed), len(agreed))
    row = {"unexplained, %": 100 * found["fvu"]["value"], "dead, %": 100 * found["dead_share"]["value"]}
    fits[titles[pair]] = row | {"agreement of seeds": np.mean(agreed)}
pd.DataFrame(fits).T.round(2)

# %%
mean, agreement = shares.mean(), np.mean([row["agreement of seeds"] for row in fits.values()])
text = f"""**Takeaway.** Curves are detected by {mean["neurons"]:.0f}% of neurons, {mean["features"]:.0f}% of features,
{mean["random directions"]:.0f}% of random directions and {mean["untrained"]:.0f}% of untrained features (means of
{len(shares)} layers). On average, the features of two seeds agree by {agreement:.2f}."""
display(Markdown(text))

# %% [markdown]
# ## Who covers more orientations, at equal size?
#
# Within a family of detectors, the *coverage* of an angle is the height of the highest tuning curve at that angle. From
# the detectors of each kind we grow a family, one detector at a time, each chosen to raise the *least coverage*, that
# of the worst-covered angle, as far as possible. The figure compares families of equal size. But a kind with more
# detectors has more to choose from, so any lead of that kind is an upper bound here.

# %%
figure, axes = plots.sheet(4.2, 1, len(PAIRS), sharex=True, sharey=True)
for ax, ((own, site), table) in zip(axes, covered.groupby(["network", "site"], sort=False), strict=True):
    for marker, (kind, each) in zip("osd^", table.groupby("kind", sort=False), strict=False):
        spread = each.groupby("m")["minimum"].agg(["mean", "min", "max"])
        ax.plot(spread.index, spread["mean"], marker=marker, markersize=3.5, label=kind)
        ax.fill_between(spread.index, spread["min"], spread["max"], alpha=0.2)
    ax.set(title=titles[own, site].replace(" ", "\n"), xlabel="detectors")
axes[0].set(ylabel="least coverage of any angle", ylim=(-0.02, 1))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
display(plots.titled(figure, "Who covers more orientations, at equal size?"))

# %% [markdown]
# The number of candidates has to be equal, too. From each kind we draw as many detectors as there are among the
# neurons, choose a family of at most 24 from these candidates, and average over 100 draws. (Where no neuron detects
# curves, we draw ten, the number published for InceptionV1's mixed3b.)

# %%
matched = pd.concat([pd.read_parquet(folder / "matched.parquet").assign(network=own, site=site)
                     for (own, site), folder in folders.items()], ignore_index=True)  # fmt: skip
matched["kind"] = matched["dictionary"].str.replace(r" \d+$", "", regex=True)
tables = {"min_coverage": matched, "min_coverage_of_all": covered.groupby(["network", "site", "dictionary"]).tail(1)}
for name, table in tables.items():
    for (own, site, kind), each in table.groupby(["network", "site", "kind"], sort=False)["minimum"]:
        results[f"{own}/{site}/{name}/{kind}"] = (each.mean(), each.min(), each.max(), len(each))
gaps = {name: covered[covered["m"] == covered["n"].clip(upper=10)].groupby(["network", "site", "kind"])[name].mean()
        for name in ("gap", "below_half")}  # fmt: skip
results |= {f"{own}/{site}/{name}/{kind}": v for name, each in gaps.items() for (own, site, kind), v in each.items()}

# %%
spans, size = {}, {}
for pair in PAIRS:
    n = size[pair] = int(matched[(matched["network"] == pair[0]) & (matched["site"] == pair[1])]["candidates"].iloc[0])
    for kind in KINDS:
        mean, low, high, _ = results["/".join([*pair, "min_coverage", kind])]
        spans[f"{titles[pair]}, {n or 10}", kind] = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
pd.Series(spans).unstack().reindex(columns=KINDS).rename_axis("layer, candidates: least coverage [range of seeds]")

# %%
asked, n_above = [pair for pair in PAIRS if size[pair]] or PAIRS, 0
gains, bounds = {}, {}
for pair in PAIRS:
    own, whole = ({kind: results["/".join([*pair, name, kind])] for kind in KINDS} for name in tables)
    null = results["/".join([*pair, "min_coverage/best_null"])] = max(own["random directions"], own["untrained"])
    if pair not in asked:
        continue
    gains[pair] = own["features"][0] - own["neurons"][0], own["features"][0] - null[0]
    bounds[pair] = whole["features"][0] - whole["neurons"][0]
    n_above += own["features"][1] > max(own["random directions"][2], own["untrained"][2])
over, beyond = (np.array([each[i] for each in gains.values()]) for i in (0, 1))

# %%
bound = np.mean(list(bounds.values()))
for name, each in {"gain_over_neurons": over, "gain_over_best_null": beyond}.items():
    results[name] = (each.mean(), each.min(), each.max(), len(each))
results["gain_over_neurons_upper_bound"] = bound
text = f"""**Takeaway.** With equally many candidates, the least coverage of features minus that of neurons is
{over.mean():+.2f} ({over.min():+.2f} to {over.max():+.2f} in the {len(over)} layers where neurons detect curves). For
features minus the better null, it is {beyond.mean():+.2f} ({beyond.min():+.2f} to {beyond.max():+.2f}). With all
detectors as candidates, it is {bound:+.2f} for features minus neurons."""
display(Markdown(text))

# %% [markdown]
# ## What does the best case look like?
#
# The best case for the claim is the layer in which features gain most over neurons when all detectors are candidates;
# layers where no neuron or no feature detects curves do not count, if there are others. The rosettes show the first ten
# detectors of each family (random directions are left out): the angle on the circle is the angle of the curve, and the
# distance from the middle is the response. Triangles mark the published peaks of mixed3b's ten curve neurons (in a
# network trained on photographs). Only the distances between these peaks can be compared with ours, because we do not
# know where they lie on our circle.

# %%
units = {pair: pd.read_parquet(folder / "units.parquet") for pair, folder in folders.items()}
found = {pair: own.query("dictionary == 'features'")["detects"].any() for pair, own in units.items()}
best, members, rosettes = max(asked, key=lambda pair: (found[pair], bounds[pair])), {}, {}
for kind in ("neurons", "features", "random directions 0", "untrained 0"):
    own = units[best][(units[best]["dictionary"] == kind) & units[best]["detects"]]["unit"].to_numpy()
    tuning = np.load(folders[best] / f"tuning_{kind.replace(' ', '_')}.npy")
    chosen = own[family(tuning[own], min(size[best] or 10, LARGEST))]
    members[kind], rosettes[kind.removesuffix(" 0")] = np.sort(chosen).tolist(), tuning[chosen]

# %%
first_ten = {kind: each[:10] for kind, each in rosettes.items() if kind != "random directions"}
first_ten = {f"{kind} of {best[1]}": each for kind, each in first_ten.items()}
figure = plots.rosettes(first_ten, {"peaks of the ten published neurons of mixed3b": PUBLISHED})
plots.titled(figure, "Which orientations do the families cover?")

# %% [markdown]
# And where are the gaps? The curves show the coverage by each whole family. Grey bands mark the two largest published
# gaps, between neighbouring peaks that are 62° and 68° apart.

# %%
figure, ax = plots.sheet(3.6)
for gap in ((181, 243), (290, 358)):
    ax.axvspan(*gap, color=plots.OUTSIDE, label="published gaps (mixed3b)" if gap[0] == 181 else None)
for (kind, each), style in zip(rosettes.items(), ("-", "-", "--", ":"), strict=False):
    most = each.max(axis=0, initial=0)
    ax.plot(np.arange(0, 361, 5), np.append(most, most[0]), style, linewidth=2.5, label=kind)
ax.axhline(0.307, color="black", linewidth=1, label="published least coverage (ten neurons)")
ax.set(xlabel="angle of the curve, degrees", ylabel="coverage", ylim=(0, 1.03), xticks=range(0, 361, 45))
figure.legend(loc="outside lower center", ncols=3)
display(plots.titled(figure, f"Where are the gaps of {len(rosettes['features'])} detectors in {titles[best]}?"))

# %% [markdown]
# ## Do neurons split into features?
#
# Some neurons respond to curves of two or more orientations: their tuning curves have several *modes*, that is, peaks
# at least 60° apart, each at least half as high as the highest. We say that such a neuron *splits* if three things
# hold: two or more features each carry at least a tenth of its variance over curves, each of these features has a
# single mode, and each mode of the neuron lies within 30° of the mode of one of these features. The null draws the same
# number of features at random from all features that respond to curves.

# %%
splits = pd.concat([pd.read_parquet(folder / "split.parquet").assign(layer="/".join(pair))
                    for pair, folder in folders.items()], ignore_index=True)  # fmt: skip
rows = {}
for layer, own in splits.groupby("layer", sort=False):
    entry = with_interval(own["splits"], np.ones(len(own)))
    results |= {f"{layer}/split": entry, f"{layer}/split/chance": (own["chance"].mean(), None, None, len(own))}
    rows[layer] = {"neurons of several modes": len(own), "split, %": 100 * entry["value"]}
    rows[layer]["by chance, %"] = 100 * own["chance"].mean()
pd.DataFrame.from_dict(rows, orient="index").round(1)

# %% [markdown]
# Among the neurons that split (or among all, if none does), our example is the one whose features carry the largest
# share of its variance. The figure shows it with its two strongest features.

# %%
tried = splits[splits["splits"]] if splits["splits"].any() else splits
example = tried.loc[tried["shares"].map(sum).idxmax()]
pair = tuple(example["layer"].split("/"))
tuned = {kind: np.load(folders[pair] / f"tuning_{kind}.npy") for kind in ("neurons", "features")}
parts = list(zip(example["carriers"], example["shares"], strict=True))[:2]
shown = {
    f"neuron {example['neuron']} of {titles[pair]}: {example['n_modes']} modes": tuned["neurons"][[example["neuron"]]]
}
shown |= {f"feature {j}: {share:.0%} of its variance": tuned["features"][[j]] for j, share in parts}
plots.titled(plots.rosettes(shown), "What does the clearest candidate for a split look like?")

# %%
n_split, by_chance = int(splits["splits"].sum()), splits["chance"].sum()
results["split"] = with_interval(splits["splits"], np.ones(len(splits)))
text = f"""**Takeaway.** Of {len(splits)} neurons with several modes, {n_split} split; by chance, {by_chance:.1f} would.
The example above is the clearest candidate, not a typical one."""
display(Markdown(text))

# %% [markdown]
# ## Where in pictures are these detectors strongest?
#
# Each row shows one feature of the family (there are at most eight rows), labelled and ordered by the angle of its
# peak. The patches are the feature's strongest in every third test picture, one per picture. We only look at these
# patches; we measure nothing here.

# %%
(own, site), kept = best, members["features"]
inputs = {"network": networks[own], "pictures": study.pictures().every(3), "sae": saes[best][0]}
folder = study.stage(f"experiments/in-pictures-{own}-{site}", curves.find_patches, {"units": kept}, inputs)
patches = pd.read_parquet(folder / "patches.parquet")

# %%
peaks = units[best].query("dictionary == 'features'").set_index("unit")["peak"][kept].sort_values()
rows = {f"{peak:.0f}°": patches[patches["unit"] == j] for j, peak in peaks.iloc[:: max(1, -(-len(peaks) // 8))].items()}
figure = crops_figure(rows, study.pictures(), networks[best[0]].shape(best[1])[:2])
figure = plots.titled(figure, "Where in pictures are these detectors strongest?")
display(figure if rows else Markdown("No feature of this layer detects curves."))

# %% [markdown]
# ## Takeaways

# %% tags=["nbval-check-output"]
known = {tuple(name.split("/min_coverage/")) for name in results if "/min_coverage/" in name}
print("no coverage of:", sorted(set(product(map("/".join, PAIRS), KINDS)) - known))

# %%
study.record(NAME, results)
verdict = "Yes" if n_above == len(asked) else "In some layers" if n_above else "No, by this measure"
lines = [
    f"""Do features cover more orientations than unlearned directions? **{verdict}**: in {n_above} of {len(asked)}
    layers, the worst seed of features is above the best seed of both nulls (mean difference {beyond.mean():+.2f}).""",
    f"The least coverage of features minus that of equally many neurons is {over.mean():+.2f}.",
    f"""{n_split} of {len(splits)} neurons with several modes split into features with one mode each; by chance,
    {by_chance:.1f} would.""",
]
display(Markdown("\n".join(f"- {line}" for line in lines)))

# %% [markdown]
# ## What this does not show
#
# - **That these are the published detectors.** Our InceptionV1 has seen rendered aircraft only. The same notebook
#   should also run with the published weights, but nobody has tried.
# - **That learning is useless.** Both nulls read a trained network. They show how much of the coverage comes from the
#   network, whatever an autoencoder learns; wider or better autoencoders may do better than ours.
# - **Why neurons differ from features.** Their directions differ, but so does their sparsity: features and nulls are
#   sparse, and neurons are not.
# - **That detectors respond to curves in pictures.** We showed patches from one layer; all measurements used synthetic
#   stimuli.
# - **That features detect other curves.** Our arcs have one width and one length, and lie on grey.
# - **That the network uses these detectors.** We suppressed none of them.
