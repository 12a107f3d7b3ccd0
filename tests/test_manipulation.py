"""Features as knobs in a second task: planted knobs, slow loops, scene edits."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import f1_score, jaccard_score

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig
from aircraft_sae.features.reconstruction import dictionary
from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene, sample
from aircraft_sae.pictures.scenes import LEAST_PIXELS
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.studies import manipulation
from aircraft_sae.studies.manipulation import CellHead, choose_knobs, ious, logit_agreement, macro_average, on_target

GRID, D, PARTS_HERE = (4, 4), 8, ("fin", "wing", "engine")


@dataclass(frozen=True)
class Drawn:
    """Pictures in which each cell shows one region."""

    shown: dict
    region_names: tuple = PARTS_HERE
    levels: tuple = ("variant",)
    fingerprint: str = "drawn"

    def classes(self, level):
        return ["a", "b"]

    def regions(self, image, grid):
        return np.eye(4, dtype=np.float32)[self.shown[image]][..., 1:]

    __hash__ = object.__hash__


@pytest.fixture(scope="module")
def drawn() -> tuple[Activations, Drawn]:
    """80 pictures of random cells: channel i > 0 is 3 where a cell shows region i, under noise of all channels."""
    rng = np.random.default_rng(0)
    images = pd.DataFrame({"image": [f"{i:03d}" for i in range(80)]})
    images["split"] = ["train"] * 30 + ["val"] * 10 + ["test"] * 40
    images["variant"] = np.where(np.arange(80) % 2, "a", "b")
    shown = {name: rng.choice(4, GRID, p=[0.4, 0.2, 0.2, 0.2]) for name in images["image"]}
    acts = rng.normal(0, 0.15, (80, *GRID, D))
    for i, name in enumerate(images["image"]):
        acts[i, ..., :4] += 3 * np.eye(4)[shown[name]] * [0, 1, 1, 1]
    return Activations(np.float16(acts), images, "site"), Drawn(shown)


def planted(directions: torch.Tensor, seed: int = 0) -> SparseAutoencoder:
    """A dictionary of these rows and noise, two features of which are active in a cell."""
    rows = torch.randn(2 * D, D, generator=torch.Generator().manual_seed(seed))
    rows[: len(directions)] = directions
    cfg = SAEConfig(site="site", variant="topk", k=2, expansion=2, standardise="channels", aux_k=2)
    return dictionary(SparseAutoencoder(cfg, D), torch.zeros(D), torch.ones(D), rows)


@pytest.fixture(scope="module")
def made(drawn, tmp_path_factory):
    """A head, and knobs of which the first three are planted, turned beside an untrained dictionary's."""
    acts, pictures = drawn
    folder = tmp_path_factory.mktemp("manipulation")
    saes = {"feature": planted(torch.eye(D)[1:4]), "untrained": planted(torch.zeros(0, D), 1)}
    for name in ("segmentation", "knobs"):
        (folder / name).mkdir()
    manipulation.segment(folder / "segmentation", acts=acts, pictures=pictures)
    given = {"segmentation": folder / "segmentation", "acts": acts, "pictures": pictures, "saes": saes}
    manipulation.turn_knobs(folder / "knobs", **given)
    return folder, saes


def test_a_cell_shows_the_part_that_fills_most_of_it_and_iou_is_scikit_learns(drawn, made):
    coverage = np.array([[0.2, 0.04], [0.1, 0.3], [0.0, 0.0], [0.5, 0.5]])
    assert manipulation.cell_regions(coverage).tolist() == [0, 2, 0, 1]
    acts, pictures = drawn
    rows = acts.rows("test")
    truth = np.stack([pictures.shown[name] for name in acts.images["image"].iloc[rows]]).ravel()
    head = CellHead.open(made[0] / "segmentation")
    named = head.logits(torch.from_numpy(np.float32(acts.acts[rows]))).argmax(-1).numpy().ravel()
    own, ceiling = np.load(made[0] / "segmentation" / "confusion.npy")
    np.testing.assert_allclose(ious(own), jaccard_score(truth, named, average=None), atol=1e-6)
    np.testing.assert_allclose(ious(own, np.ones((2, 40))), np.stack([ious(own)] * 2))
    assert (ious(ceiling) == 1).all() and head.names == ["background", *PARTS_HERE]
    scores = manipulation.segmentation_scores(made[0] / "segmentation")
    assert scores["miou"]["value"] == pytest.approx(ious(own)[1:].mean()) and scores["miou_right"]["value"] == 1
    assert scores["miou_of_grid_ceiling"]["value"] > 0.95
    assert scores["miou"]["low"] <= scores["miou"]["value"] <= scores["miou"]["high"] <= 1


def test_knobs_have_the_best_f1_of_all_features_and_thresholds():
    rng = np.random.default_rng(0)
    codes = rng.random((200, 6)) * (rng.random((200, 6)) < 0.4)
    shows = rng.random((200, 3)) < 0.2
    codes[:, 4] = np.where(shows[:, 1], 0.5 + 0.4 * rng.random(200), 0.2 * rng.random(200))
    found, top = choose_knobs(csr_array(codes), shows), codes.max(0)
    for part, row in found.iterrows():
        f1 = {(j, t): f1_score(shows[:, part], (codes[:, j] > 0) & (codes[:, j] >= t * top[j]))
              for j in range(6) for t in manipulation.THRESHOLDS}  # fmt: skip
        assert row["f1"] == pytest.approx(max(f1.values())) == pytest.approx(f1[row["feature_id"], row["threshold"]])
        assert row["top"] == pytest.approx(top[int(row["feature_id"])])
        assert row["active"] == pytest.approx((codes[shows[:, part], int(row["feature_id"])] > 0).mean())
    assert found["feature_id"][1] == 4 and found["threshold"][1] == 0.3


def test_planted_knobs_are_found_and_turn_their_part_alone(made):
    knobs, turned = (pd.read_parquet(made[0] / "knobs" / f"{name}.parquet") for name in ("knobs", "turned"))
    own = knobs[knobs["arm"] == "feature"]
    assert own["feature_id"].tolist() == [0, 1, 2] and own["part"].tolist() == [*PARTS_HERE]
    assert (own[["f1", "f1_b"]] > 0.9).all(axis=None)

    def share(arm, dose, which="target"):
        return macro_average(turned, arm, dose, which)[0]["value"]

    assert min(share("feature", 0.0), share("probe", 0.0)) > 0.95
    assert max(share(arm, 0.0) for arm in ("random direction", "isotropic direction")) < 0.5
    assert share("untrained", 0.0) < 0.8 and share("feature", 0.0, "other") < 0.02
    assert share("feature", 1.0) < 0.02 < 0.9 < share("feature", 1.0, "gained") <= share("feature", 1.0, "other")
    assert share("feature", 0.0, "gained") == 0
    shares = [on_target(turned, *each)["value"] for each in (("feature", 0.0), ("random direction", -2.0))]
    assert 1 >= shares[0] > 0.95 > 0.7 > shares[1]
    apart = manipulation.beyond(turned, 0.0, "random direction")
    assert list(apart) == sorted(PARTS_HERE) and all(each["low"] > 0.4 and each["n"] > 15 for each in apart.values())


def test_turned_knobs_are_the_head_on_edited_acts_and_controls_as_long_as_the_feature(drawn, made):
    """Picture by picture, by a slow loop; a control's arm is the mean over its directions."""
    (acts, _), (folder, saes) = drawn, made
    head, turned = CellHead.open(folder / "segmentation"), pd.read_parquet(folder / "knobs" / "turned.parquet")
    knobs, means = pd.read_parquet(folder / "knobs" / "knobs.parquet"), []
    for i, knob in enumerate(knobs[knobs["arm"] == "feature"].itertuples(), 1):
        own = saes["feature"].W_dec[[knob.feature_id]].detach()
        controls = manipulation.control_directions(own[0], i, head, acts, None)["random direction"]
        for arm, directions in {"random direction": controls, "feature": own}.items():
            rows = turned[(turned["arm"] == arm) & (turned["part"] == knob.part) & (turned["dose"] == -2)]
            for row in rows.itertuples():
                x = torch.from_numpy(np.float32(acts.acts[acts.images["image"] == row.image])).view(-1, D)
                change = (-2 * knob.top - saes["feature"].encode(x).dense()[:, knob.feature_id])[:, None]
                before = head.logits(x).argmax(1)
                after = torch.stack([head.logits(x + change * each).argmax(1) for each in directions])
                changed, other = after != before, before != i
                shares = changed[:, ~other], changed[:, other], (after == i)[:, other]
                wanted = [share.float().mean().item() for share in shares]
                assert [row.target, row.other, row.gained] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
        means.append(np.nanmean(rows["target"]))  # of the feature
    assert macro_average(turned, "feature", -2.0)[0]["value"] == pytest.approx(np.mean(means)) and len(rows) == 20
    ways = manipulation.control_directions(2.5 * torch.eye(D)[1], 1, head, acts, torch.eye(D)[[5]])
    n_wanted = {"random direction": manipulation.N_RANDOM, "isotropic direction": manipulation.N_RANDOM}
    assert {name: len(each) for name, each in ways.items()} == n_wanted | {"probe": 1, "random feature": 1}
    every = torch.cat(list(ways.values()))
    torch.testing.assert_close(every.norm(dim=1), torch.full((len(every),), 2.5))
    assert len(every.unique(dim=0)) == len(every)


def test_agreement_tells_own_parts_from_others():
    """Planted: a feature moves the logits that its own part's scene edit moves; a random direction does not."""
    rng, rows = np.random.default_rng(0), []
    for part in range(6):
        effect = rng.normal(size=30)
        for scene, how in product(range(12), ("scene edit", "feature", "random direction 0", "random direction 1")):
            own = rng.normal(size=30) if how.startswith("random") else effect
            rows.append([str(part), scene, how, *(own + rng.normal(0, 0.5, 30))])
    table = pd.DataFrame(rows, columns=["part", "scene", "how", *map(str, range(30))])
    found = logit_agreement(table)
    assert found["own"]["value"] > 0.9 > 0.3 > abs(found["random direction"]["value"])
    assert abs(found["other parts"]["value"]) < 0.1 and found["beyond other parts"]["low"] > 0.5
    assert found["p"]["value"] < 0.01 and found["beyond random direction"]["low"] > 0.3
    table.loc[table["how"] == "feature", table.columns[3:]] = 0.0
    assert logit_agreement(table)["own"]["value"] == 0


def test_scene_edits_beside_knobs(smoke_study, tmp_path):
    """Against the network on the rendered scenes, a hook in the network, masks by hand, and knobs of no strength."""
    study, site, out = smoke_study, smoke_study.config.local.site, tmp_path / "compared"
    acts = study.activations(site)
    given = {"acts": acts, "pictures": study.pictures()}
    segmentation = study.stage("experiments/segmentation-local", manipulation.segment, {}, given)
    sae, scenes = study.sae("local"), study.activations(site, pictures=study.removals())
    head, given = CellHead.open(segmentation), {"segmentation": segmentation, "acts": acts}
    for folder in (tmp_path / "knobs", tmp_path / "silent", out):
        folder.mkdir()
    manipulation.turn_knobs(tmp_path / "knobs", pictures=study.pictures(), saes={"feature": sae}, **given)
    knobs = pd.read_parquet(tmp_path / "knobs" / "knobs.parquet")

    def compare(dose, everywhere=True, knobs="knobs"):
        how = given | {"network": study.network(), "sae": sae, "scenes": scenes, "knobs": tmp_path / knobs}
        manipulation.compare_edits(out, **how, dose=dose, everywhere=everywhere)
        cells, logits = (pd.read_parquet(out / f"{name}.parquet") for name in ("cells", "logits"))
        own = cells[cells["how"] == "feature"].reset_index(drop=True)
        names = np.load(out / "named.npy").transpose(1, 0, 2, 3)
        return cells, logits, own, names, own["part"].map(head.names.index).to_numpy()[:, None, None]

    cells, logits, own, (before, turned, edited), part = compare(0.0)
    edits = scenes.images[scenes.images["part"] != ""]
    x = [study.network().as_input(study.removals().picture(image)) for image in scenes.images["image"]]
    with torch.no_grad():
        seen = study.network().see(torch.stack(x)).logits.numpy()
    expected = seen[edits.index] - seen[edits["number"]]
    order = edits.groupby("part", sort=False).ngroup().argsort(kind="stable")
    of_edits = logits[logits["how"] == "scene edit"].drop(columns=["part", "scene", "how"]).to_numpy()
    np.testing.assert_allclose(of_edits, expected[order], atol=0.05)  # kept as float16
    of_features = logits[logits["how"] == "feature"].set_index(["part", "scene"]).drop(columns="how")
    moved = of_features[(of_features != 0).any(axis=1)].iloc[0]  # one scene, by a hook in the network
    x = torch.from_numpy(scenes.acts[[moved.name[1]]]).float()
    j = int(knobs.set_index("part").at[moved.name[0], "feature_id"])
    f = sae.encode(x.flatten(0, 2)).dense()[:, j].view(*x.shape[:3], 1)
    without = {site: lambda acts: acts - f * sae.W_dec[j].detach()}
    whole, after = (study.network().see(None, edits=each, given={site: x}).logits for each in ({}, without))
    np.testing.assert_allclose(moved.to_numpy(float), (after - whole)[0].detach(), atol=1e-4)
    assert (cells["target"] + cells["others"] == acts.cells_per_image).all()
    assert (cells["shuffled"] <= cells["both"]).all() and cells["how"].nunique() == 2 + manipulation.N_PASSES
    both = (before == part) & (turned != part) & (edited != part)
    for name, mask in {"both": both, "same": both & (turned == edited), "background": both & (edited == 0)}.items():
        assert (own[name] == mask.sum((1, 2))).all()
    for everywhere in (True, False):  # else cells that are never named the part stay as they are
        cells, _, _, (before, turned, edited), part = compare(-2.0, everywhere)
        elsewhere = (before != part) & (edited != part)
        assert cells["turned"].sum() > 0 and (before != turned)[elsewhere].any() == everywhere
    never = int(np.flatnonzero(study.features("local").table["density_cell"] == 0)[0])
    knobs.assign(top=0.0, feature_id=never).to_parquet(tmp_path / "silent" / "knobs.parquet")
    cells, logits, *_ = compare(0.0, knobs="silent")
    logits = logits[logits["how"] != "scene edit"].drop(columns=["part", "scene", "how"])
    assert (logits == 0).all(axis=None) and (cells[["turned", "others_turned"]] == 0).all(axis=None)


def test_a_head_of_two_regions_tells_them_apart_and_without_regions_it_has_nothing_to_name(drawn, tmp_path):
    acts, pictures = drawn
    with pytest.raises(ValueError, match="no regions"):
        manipulation.segment(tmp_path, acts=acts, pictures=Drawn(pictures.shown, ()))
    two = Drawn({name: np.minimum(each, 1) for name, each in pictures.shown.items()}, ("part", "none", "at all"))
    manipulation.segment(tmp_path, acts=acts, pictures=two)
    scores = manipulation.segmentation_scores(tmp_path)
    assert scores["iou/part"]["value"] > 0.95 and "iou/none" not in scores


def test_engines_can_be_added_and_nothing_else():
    """More pixels of engine, which alone change; the scene survives a round trip through JSON."""
    number = next(n for n in range(99) if abs(abs(sample("Hauler 2", 1, n).camera.azimuth) - 0.8) < 0.5)
    scene = sample("Hauler 2", 1, number)
    more = scene.edit("add", "engine")
    assert Scene.from_json(more.to_json()) == more
    before, after = (render(each, 128, 1).mask for each in (scene, more))
    engine = [PARTS.index("engine"), PARTS.index("propeller")]
    assert np.isin(after, engine).sum() > np.isin(before, engine).sum() + LEAST_PIXELS * 128**2
    assert np.isin(after[after != before], engine).mean() > 0.9
    ground = next(s for s in (sample("Delta 3", 1, n) for n in range(99)) if s.on_ground)  # with low engines
    one, two = (render(each, 128, 1).mask for each in (ground, ground.edit("add", "engine")))
    body = PARTS.index("fuselage")
    assert ((one == body) >= (two == body)).all()  # it stands where it stood
    with pytest.raises(ValueError, match="no fin can be added"):
        scene.edit("add", "fin")
