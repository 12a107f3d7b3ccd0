"""The hangar: well-formed airframes, deterministic scenes, exact edits and masks, and no shortcut to the class."""

import hashlib
import itertools
import runpy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import FGVCAircraft

from aircraft_sae.config import HangarConfig
from aircraft_sae.hangar import PARTS, VARIANTS, dataset
from aircraft_sae.hangar.dataset import _splits, render_dataset
from aircraft_sae.hangar.meshes import build
from aircraft_sae.hangar.render import _openness, render
from aircraft_sae.hangar.scene import Camera, Edit, Scene, sample

HANGAR = list(VARIANTS.values())
SMALL = HangarConfig(n_variants=3, scenes_per_variant=11, size=48, supersampling=1)
# parts to remove from each variant; together, all parts
EDITED = {"210-300": ["fuselage", "wing", "stabilizer", "fin", "engine", "nose_gear", "window", "cockpit"],
          "172": ["main_gear", "strut", "propeller"], "250-400": ["flap_fairing"]}  # fmt: skip


def scene_of(variant: str, **camera: float) -> Scene:
    """A sharp view on the ground from the front left."""
    scene = sample(variant, 0, 4)
    background, finish = replace(scene.background, kind="apron"), replace(scene.finish, blur=0.0)
    view = dict(azimuth=0.95, elevation=0.08, roll=0.0, distance=4.0, focal=3.2, shift_x=0.0, shift_y=0.05) | camera
    return replace(scene, background=background, finish=finish, gear_down=True, camera=Camera(**view))


def digest(folder: Path) -> dict[str, str]:
    files = filter(Path.is_file, sorted(folder.rglob("*")))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hangar")
    render_dataset(folder, SMALL)
    return folder


def test_pretraining_and_hangar_share_no_airframe():
    assert (len(HANGAR), len({a.family for a in HANGAR}), len({a.manufacturer for a in HANGAR})) == (30, 15, 6)
    try:
        pretraining = runpy.run_path(Path(__file__).parents[1] / "data/weights/pretrain.py")["FRAMES"]
        assert list(VARIANTS.values()) == pretraining and len(pretraining) == 192
    finally:
        VARIANTS.clear()
        VARIANTS.update({frame.variant: frame for frame in HANGAR})
    names = dict(variant="", family="", manufacturer="")
    everything = HANGAR + pretraining
    assert len({a.variant for a in everything}) == len({replace(a, **names) for a in everything}) == len(everything)


def test_airframes_are_well_formed_and_show_every_part():
    seen = np.zeros(len(PARTS), int)
    for number, frame in enumerate(HANGAR):
        mesh = build(frame)
        assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.normals).all()
        assert mesh.faces.max() < len(mesh.vertices)
        extent = np.ptp(mesh.vertices, axis=0)
        assert 0.95 < extent[:2].max() < 1.35 and extent[2] < 0.6, (frame.variant, extent)
        seen += np.bincount(render(sample(frame.variant, 0, number), 112, 1).mask.ravel(), minlength=len(PARTS)) > 0
    assert (seen > 0).all(), dict(zip(PARTS, seen, strict=True))


@pytest.mark.parametrize(("variant", "part"), [(v, p) for v, parts in EDITED.items() for p in parts])
def test_removing_a_part_changes_only_its_pixels(variant, part):
    scene = replace(scene_of(variant), shadows=False)
    before, after = render(scene, 224, 1), render(scene.edit("remove", part), 224, 1)  # one ray: masks are exact
    own = before.mask == PARTS.index(part)
    changed = (before.image != after.image).any(2)
    assert own.sum() >= 20
    assert not changed[~own].any()
    assert changed[own].mean() > 0.6
    assert not (after.mask == PARTS.index(part)).any()
    assert (before.mask[~own] == after.mask[~own]).all()


def test_a_pixel_shows_the_part_that_most_of_its_rays_hit():
    scene = scene_of("210-300")
    rays = render(scene, 224, 1).mask.reshape(112, 2, 112, 2).swapaxes(1, 2).reshape(112, 112, 4)
    mask = render(scene, 112, 2).mask  # of the same rays
    counts = np.stack([(rays == part).sum(-1) for part in range(len(PARTS))], -1)
    aircraft = counts[..., 2:].sum(-1) >= 2
    assert (aircraft == (mask >= 2)).all() and aircraft.sum() > 500
    chosen = np.take_along_axis(counts, mask[..., None].astype(int), 2)[..., 0]
    assert (chosen == counts[..., 2:].max(-1))[aircraft].all()


@pytest.mark.parametrize("number", [2, 5, 9, 39, 44])  # two in flight; three on the ground with much sky
def test_one_ray_per_pixel_is_enough_for_the_sky(number, monkeypatch):
    scene = sample("210-300", 0, number)
    quick = render(scene, 112, 2)
    monkeypatch.setattr("aircraft_sae.hangar.render.skyline", lambda scene: np.inf)  # no row is only sky
    full = render(scene, 112, 2)
    apart = np.abs(quick.image.astype(int) - full.image)
    assert (quick.mask == full.mask).all() and apart.max() <= 4 and apart.mean() < 0.2
    assert apart.any(), "both took the slow path"


@pytest.mark.parametrize("variant", ["210-100", "Bise 1", "172"])
def test_libigl_hits_what_embreex_hits(variant, monkeypatch):
    """The same masks, and the same pixels except for one ray in a thousand."""
    pytest.importorskip("igl.embree")
    pytest.importorskip("embreex")
    scenes = [sample(variant, 3, number) for number in range(3)]
    expected = [render(scene, 64) for scene in scenes]
    _openness.cache_clear()
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    for scene, picture in zip(scenes, expected, strict=True):
        got = render(scene, 64)
        np.testing.assert_array_equal(got.mask, picture.mask)
        assert (got.image != picture.image).mean() < 0.001
    _openness.cache_clear()


def test_edits_recolour_move_and_repaint():
    scene = replace(scene_of("210-300"), shadows=False)
    plain = render(scene, 224, 1)
    fin, engine = (plain.mask == PARTS.index(p) for p in ("fin", "engine"))

    red = render(scene.edit("recolour", "fin", (0.9, 0.05, 0.05)), 224, 1)
    assert ((red.image != plain.image).any(2) <= fin).all() and (red.mask == plain.mask).all()
    assert (red.image[fin, 0].astype(int) > red.image[fin, 1].astype(int) + 20).mean() > 0.9

    moved = render(scene.edit("move", "engine", (0.08, 0, 0)), 224, 1)
    there = moved.mask == PARTS.index("engine")
    assert ndimage.center_of_mass(there)[1] < ndimage.center_of_mass(engine)[1] - 3  # forward is left in this view
    assert ((moved.image != plain.image).any(2) <= (engine | there)).all()

    repainted = render(replace(scene, livery=sample("210-300", 0, 9).livery), 224, 1)
    assert (repainted.mask == plain.mask).all()
    assert (repainted.image == plain.image).all(2)[plain.mask < 2].all()


def test_impossible_edits_are_refused():
    scene = scene_of("172")
    for kind, part, words in (("remove", "rotor", "rotor"), ("remove", "sky", "sky"), ("bend", "fin", "kind must be")):
        with pytest.raises(ValueError, match=words):
            scene.edit(kind, part)
        with pytest.raises(ValueError, match=words):
            Scene.from_json(scene.to_json().replace("[]", f'[{{"kind": "{kind}", "part": "{part}"}}]'))


def test_scenes_differ_only_in_name_between_variants():
    one, other = (sample(v, 0, 5) for v in ("172", "Delta 5"))
    assert replace(one, variant="Delta 5") == other
    assert sample("172", 0, 6) != one != sample("172", 1, 5)


def test_a_scene_round_trips_through_json():
    scene = sample("F/A-9D", 3, 77).edit("remove", "engine")
    scene = scene.edit("move", "fin", (0.1, 0, 0)).edit("recolour", "wing", (1, 0.5, 0))
    again = Scene.from_json(scene.to_json())
    assert again == scene
    for first, second in zip(render(scene, 64), render(again, 64), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_do_not_depend_on_workers_or_interruptions(rendered, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(dataset, "cpu_count", lambda: workers)
    render_dataset(tmp_path, SMALL)
    assert digest(tmp_path) == digest(rendered)
    data = tmp_path / "fgvc-aircraft-2013b/data"
    (data / "images" / "0000003.jpg").unlink()
    (data / "images" / "0000005.jpg").write_bytes(b"")  # as after a power cut
    for name in ("images/0000004.jpg", "masks/0000007.png"):
        (data / name).write_bytes((data / name).read_bytes()[:-30])
    render_dataset(tmp_path, SMALL)
    assert digest(tmp_path) == digest(rendered)


def test_torchvision_reads_the_layout(rendered):
    data = rendered / "fgvc-aircraft-2013b/data"
    table = pd.read_parquet(data / "scenes.parquet")
    for level, split in itertools.product(("variant", "family", "manufacturer"), ("train", "val", "trainval", "test")):
        listed = FGVCAircraft(rendered, split=split, annotation_level=level)
        members = table[table.split.isin(["train", "val"] if split == "trainval" else [split])]
        assert [listed.classes[label] for label in listed._labels] == members[level].tolist()
    assert set(table.split) == {"train", "val", "test"}
    assert (table.groupby("variant").split.value_counts().groupby("split").nunique() == 1).all()
    for row in table.itertuples():
        mask = np.asarray(Image.open(data / "masks" / f"{row.image}.png"))
        assert mask.dtype == np.uint8 and mask.shape == (SMALL.size, SMALL.size)
        aircraft = mask >= 2
        assert aircraft[row.ymin - 1 : row.ymax, row.xmin - 1 : row.xmax].sum() == aircraft.sum() > 0
        assert (render(Scene.from_json(row.scene), SMALL.size, SMALL.supersampling).mask == mask).all()


@pytest.mark.parametrize("n", [3, 4, 8, 100])
def test_every_split_has_a_scene_of_every_variant(n):
    counts = Counter(_splits(replace(SMALL, scenes_per_variant=n)))
    assert set(counts) == {"train", "val", "test"} and counts.total() == n
    assert n != 100 or counts == {"test": 33, "train": 57, "val": 10}


@pytest.mark.parametrize("clue", ["background", "histogram"])
def test_no_shortcut_to_the_class(clue):
    """On held-out scenes, a linear classifier reaches at most chance plus three standard errors."""
    n, features, labels = 40, [], np.repeat(np.arange(len(HANGAR)), 40)
    bare = tuple(Edit("remove", part) for part in PARTS[2:])
    for number, label in enumerate(labels):
        scene = sample(HANGAR[label].variant, 3, number)
        if clue == "background":
            image = render(replace(scene, edits=bare), 24, 1).image
            features.append(image.reshape(12, 2, 12, 2, 3).mean((1, 3)).ravel())
        else:
            picture = render(scene, 48, 1)
            colours = picture.image[picture.mask >= 2] // 64 @ [16, 4, 1]
            features.append(np.bincount(colours, minlength=64) / len(colours))
    features, train = np.array(features), np.arange(len(labels)) % n < n // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    accuracy = model.fit(features[train], labels[train]).score(features[~train], labels[~train])
    chance = 1 / len(HANGAR)
    assert accuracy <= chance + 3 * np.sqrt(chance * (1 - chance) / (~train).sum())
