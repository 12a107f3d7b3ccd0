"""Experiments for `Study.stage`: make(folder, **inputs, **settings) writes tables of an autoencoder's features.

What is claimed is chosen on half A of the test pictures; tables are of half B.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae.activations import see_features
from aircraft_sae.devices import side_by_side
from aircraft_sae.features import FeatureIndex, best_aurocs, check_features
from aircraft_sae.features.reconstruction import seed_match
from aircraft_sae.interventions.blurring import PAIR, Window, blur, control_windows, patched
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import Trial, effects, logits_from, matched_features
from aircraft_sae.interventions.tiers import said
from aircraft_sae.interventions.verdicts import class_verdicts
from aircraft_sae.metrics import with_draws
from aircraft_sae.networks import BATCH
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


def point(value: float, n: int) -> dict[str, float | None]:
    """A result without an interval."""
    return {"value": value if isinstance(value, int) else float(value), "low": None, "high": None, "n": int(n)}


def median(values: np.ndarray) -> dict[str, float | None]:
    """The median as a result, with the 95 % interval by drawing the values anew."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    return with_draws(np.median(values), np.median(values[drawn], axis=1), len(values))


def mean_over_active(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    """(d,) mean of values (n, d) over the pictures in which each feature is active; 0 where there are none."""
    return (values * active).sum(0) / np.maximum(active.sum(0), 1)


def suppress_features(folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame) -> None:
    """What the network loses with each feature, and with what is taken out in its place: the controls.

    features.parquet: feature_id, n (pictures in which it is active), often (in enough of them for a median), partner
    (-1 for none), and the mean absolute specificity of "feature", "random direction" and "feature of like density".
    Without a closed form: the claims' features alone, in 140 pictures of half B.
    beyond_random.parquet: of the claims drawn at random. claims: of `frozen_list`.
    """
    half_b, features, W_dec = _half_b(trial), np.arange(trial.sae.d_sae), trial.sae.W_dec.detach()
    if trial.readout is None:
        features = np.unique(claims["feature_id"])
    partner = matched_features(index.table)
    swapped = W_dec[np.where(partner >= 0, partner, 0)]
    like = swapped * (W_dec.norm(dim=1) / swapped.norm(dim=1))[:, None]
    edits = {
        "feature": {},
        "random direction": {"directions": trial.random[features]},
        "feature of like density": {"directions": like[features]},
    }
    active = (half_b.strength[:, features] > 0).numpy()
    table = pd.DataFrame({"feature_id": features, "n": active.sum(0), "partner": partner[features]})
    table["often"] = table["n"] >= min(8, len(active) // 4)
    for name, how in edits.items():
        table[name] = mean_over_active(np.abs(half_b.suppress(features, **how)["specificity"]), active)
    write_parquet(table, folder / "features.parquet")
    drawn = claims.loc[claims["chosen"] == "random", "feature_id"].tolist()
    write_parquet(beyond_random(half_b, drawn), folder / "beyond_random.parquet")


def beyond_random(trial: Trial, features: Sequence[int]) -> pd.DataFrame:
    """Is a feature's effect beyond that of as much of random directions of its length? One row a feature.

    effect: mean absolute specificity over the pictures in which the feature is active; random: the median of its random
    directions; beyond: whether it is above 95 % of these; n: pictures. Features that are active in none are left out.
    """
    table, n_random = [], 19 if trial.readout is None else 99  # 19 are the fewest for a test at 5 %
    for j in features:
        active = (trial.strength[:, j] > 0).numpy()
        if active.any():
            ours, null = (np.abs(each).mean(0) for each in trial[active].beside_random(j, n_random))
            beyond = bool((null >= ours).sum() + 1 <= 0.05 * (len(null) + 1))
            table.append((j, ours, np.median(null), beyond, int(active.sum())))
    return pd.DataFrame(table, columns=["feature_id", "effect", "random", "beyond", "n"])


def _half_b(trial: Trial, most: int | None = None) -> Trial:
    """Half B of the pictures, or `most` of it, drawn at random: 140 where each effect costs a forward pass."""
    most = 140 if most is None and trial.readout is None else most
    return trial[np.sort(np.random.default_rng(0).permutation(np.flatnonzero(trial.in_b))[:most])]


def dose_response(folder: Path, *, trial: Trial, features: Sequence[int], doses: Sequence[float]) -> None:
    """Features multiplied by each dose, and as much of random directions added or taken out.

    doses.parquet: of ("features" or "random directions"), dose, feature_id, n (pictures of half B in which it is
    active), and means over these of the change of the true class's logit and of its size.
    """
    half_b, features, table = _half_b(trial), list(features), []
    active = (half_b.strength[:, features] > 0).numpy()
    for of, directions in (("features", trial.sae.W_dec.detach()), ("random directions", trial.random)):
        for dose in doses:
            change = half_b.suppress(features, dose, directions=directions[features])["logit"]
            means = {"logit": mean_over_active(change, active), "size": mean_over_active(np.abs(change), active)}
            facts = {"of": of, "dose": dose, "feature_id": features, "n": active.sum(0)}
            table.append(pd.DataFrame(facts | means))
    write_parquet(pd.concat(table, ignore_index=True), folder / "doses.parquet")


def suppress_some(folder: Path, *, trial: Trial, features: Sequence[int], n_images: int) -> None:
    """Features and random directions suppressed in n_images pictures of half B, drawn at random.

    features.parquet: feature_id, n (pictures in which it matters), feature and random (mean absolute specificity there:
    where it is silent, nothing is taken out).
    """
    half_b, random = _half_b(trial, n_images), trial.random[features]
    ours, null = (np.abs(half_b.suppress(features, directions=each)["specificity"]) for each in (None, random))
    table = {"feature_id": features, "n": (ours > 0).sum(0)}
    table |= {"feature": mean_over_active(ours, ours > 0), "random": mean_over_active(null, ours > 0)}
    write_parquet(pd.DataFrame(table), folder / "features.parquet")


def blur_peaks(
    folder: Path, *, trial: Trial, index: FeatureIndex, picks: pd.DataFrame, sigma: float, window: int
) -> None:
    """Blur under each picked peak and under its controls; and suppress the feature there instead.

    picks: of `choose_picks`; sigma, window: in pixels of the network's input. blur.parquet: a row for each pick and
    window, with where ("target" or a control), matched, change (mean squared change of a pixel in the window), before
    (the feature's largest activation), feature (its change), pooled (change of its mean over cells), then logit,
    margin, confidence, specificity as in `effects`; restored_… : the same with the feature put back into the blurred
    acts, and random_… : with as much of a random direction of equal length put back; and the pick's how.
    suppressed.parquet: each pick with the change of the true class's logit when its feature is suppressed.
    Raises: ValueError for a feature that is not there, and a window larger than the picture.
    """
    network, sae, pictures, site = trial.network, trial.sae, trial.pictures, trial.acts.site
    if not 1 <= window <= network.size:
        raise ValueError(f"window must be 1 to {network.size} pixels, the picture's size, got {window}")
    check_features(picks["feature_id"], sae.d_sae)
    partners = matched_features(index.table)
    given_back = {"restored_": sae.W_dec.detach(), "random_": trial.random}

    @torch.no_grad()
    def of_picture(picked: tuple[int, pd.DataFrame]) -> pd.DataFrame:
        row, group = picked
        facts = index.images.iloc[row]
        x = network.as_input(pictures.picture(facts["image"]))
        soft = blur(x, sigma)
        change = ((x - soft) * torch.tensor(network.std)[:, None, None]).square().mean(0).double().numpy()
        foreground = pictures.mask(facts["image"]) > 0 if pictures.region_names else None
        jobs = pd.DataFrame(_jobs(index, int(row), group, partners, change, foreground, window))
        x = torch.stack([x, *(patched(x, soft, each) for each in jobs.pop("window"))])
        features = torch.tensor(jobs["feature_id"].to_numpy())
        seen = [see_features(network, sae, batch, mixed=True) for batch in x.split(BATCH)]
        acts = torch.cat([each.acts[site] for each, _ in seen])  # (1 + jobs, rows, columns, d_in)
        maps = torch.cat([codes[..., features] for _, codes in seen])  # (1 + jobs, rows, columns, jobs)
        own, whole = maps[1:].diagonal(dim1=0, dim2=3).movedim(2, 0), maps[0].movedim(2, 0)  # (jobs, rows, columns)
        lost, changed, x = whole - own, acts[1:], x[1:]
        before = logits_from(network, site, acts[:1].expand_as(changed), x)
        label = network.classes.index(facts[network.level]) if network.level else int(before[0].argmax())
        labels = torch.full((len(jobs),), label)
        peak = whole.amax((1, 2))
        found = {"before": peak, "feature": own.amax((1, 2)) - peak, "pooled": -lost.mean((1, 2))}
        edits = {name: lost[..., None] * each[features][:, None, None] for name, each in given_back.items()}
        for name, back in {"": 0, **edits}.items():
            made = effects(before, logits_from(network, site, changed + back, x), labels)
            found |= {name + effect: values for effect, values in made.items()}
        return jobs.assign(**{name: values.numpy() for name, values in found.items()}, image_row=int(row))

    groups = picks.groupby("image_row", sort=True)
    made = tqdm(side_by_side(of_picture, groups), f"blur {sigma:g} px", len(groups), leave=False)
    table = pd.concat(list(made), ignore_index=True).merge(picks[[*PAIR, "how"]], on=PAIR, validate="m:1")
    write_parquet(table, folder / "blur.parquet")
    found = []
    for feature_id, own in picks.groupby("feature_id"):
        some = trial[np.searchsorted(index.rows("test"), own["image_row"])]
        found.append(own[PAIR].assign(suppressed=some.suppress([feature_id])["logit"][:, 0]))
    write_parquet(pd.concat(found, ignore_index=True), folder / "suppressed.parquet")


def _jobs(index, row, group, partners, change, foreground, size) -> Iterator[dict[str, object]]:
    """What to blur in one picture."""
    for pick in group.itertuples():
        target, other = Window.around(pick.row, pick.column, index.grid, len(change), size), None
        if (partner := partners[pick.feature_id]) >= 0:
            its_map = index.maps(partner, np.array([row]))[0]
            if its_map.max() > 0:
                at = np.unravel_index(its_map.argmax(), index.grid)
                other = Window.around(*at, index.grid, len(change), size)
        rng = np.random.default_rng((0, int(pick.feature_id), row))
        own_map = index.maps(pick.feature_id, np.array([row]))[0]
        controls = control_windows(target, change, foreground, own_map, other, rng)
        two = sorted(rng.permutation(len(controls))[:2])  # each kind gets its share of pictures
        for where, (place, matched) in [("target", (target, True)), *(list(controls.items())[i] for i in two)]:
            facts = {"feature_id": int(pick.feature_id), "where": where, "matched": matched}
            yield facts | {"change": change[place.slices].mean(), "window": place}


def verdict_tables(
    folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame, others: Sequence[SparseAutoencoder],
    suppressed: pd.DataFrame | None = None, nulls: Sequence[FeatureIndex] = (), tiers: Path | None = None,
    removals: Path | None = None,
) -> None:  # fmt: skip
    """What may be said of the features: the tables that `Verdicts` opens, and null_classes.parquet.

    claims: of `frozen_list`; others: autoencoders of other seeds; suppressed: features.parquet of `suppress_features`,
    None to leave classes out; nulls: indexes of dictionaries that learned nothing; tiers, removals: of `judge_parts`
    and `edit_scenes`, None where scenes cannot be edited.
    null_classes: the claims about classes, with a random direction in each feature's place.
    """
    match, found = seed_match(trial.sae, others), {}
    table = pd.DataFrame({"feature_id": range(trial.sae.d_sae), "seed_match": match})
    if tiers is not None and removals is not None:
        responses = Responses.of(trial.sae, removals)
        judged = pd.read_parquet(tiers / "tiers.parquet")
        judged = judged[judged["claimant"] == judged["claimant"].iloc[0]]
        found["parts"] = judged.assign(seed_match=match[judged["feature_id"]])
        write_parquet(responses.table(), folder / "responses.parquet")
    if suppressed is not None and (levels := list(trial.pictures.levels)):
        drawn, labels = claims[claims["chosen"] == "random"], index.images.iloc[index.rows("test")][levels]
        test = [(null, null.rows("test")) for null in nulls]
        rivals = [best_aurocs(null.maxima(rows), null.images.iloc[rows][levels]) for null, rows in test]
        best = pd.concat(rivals, axis=1).max(axis=1) if rivals else pd.Series(dtype=float)
        given = drawn, index.table, trial[trial.in_b], labels[trial.in_b], match, best
        found["classes"] = class_verdicts(*given)
        write_parquet(class_verdicts(*given, directions=trial.random), folder / "null_classes.parquet")
        names = {"feature": "suppressed", "random direction": "suppressed_random"}
        table = table.merge(suppressed.rename(columns=names)[["feature_id", *names.values()]], "left", validate="1:1")
    if found:
        table = table.merge(said(found.get("parts"), found.get("classes")), "left", "feature_id", validate="1:1")
    for name, each in (found | {"features": table}).items():
        write_parquet(each, folder / f"{name}.parquet")
