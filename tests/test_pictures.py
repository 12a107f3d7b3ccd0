"""Data sets: how folders are read, which are refused, and loading that does not depend on the number of workers."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.datasets import FGVCAircraft
from torchvision.transforms import v2

from aircraft_sae.config import NAMES_FILES, ClassifierConfig, DatasetConfig
from aircraft_sae.hangar import PARTS
from aircraft_sae.pictures import FGVCLayout, ImageFolder, decode, folders, loader, loading, open_source
from aircraft_sae.pictures.loading import test_transform, train_transform

CLASSES = {
    "variant": ["F-16A/B", "Ан-2", "737-300"],
    "family": ["F-16", "Ан-2", "Boeing 737"],
    "manufacturer": ["Lockheed Martin", "Антонов", "Boeing"],
}
PER_SPLIT = {"train": 9, "val": 3, "test": 6}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An intact folder of 18 noise pictures, 24 x 16 pixels."""
    folder = tmp_path_factory.mktemp("clean") / "fgvc-aircraft-2013b" / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {split: [f"{'тvx'[k % 3]}{split}{k}" for k in range(n)] for split, n in PER_SPLIT.items()}
    for image in [image for images in names.values() for image in images]:
        Image.fromarray(rng.integers(256, size=(16, 24, 3), dtype=np.uint8)).save(folder / "images" / f"{image}.jpg")
    for level, classes in CLASSES.items():
        write(folder / NAMES_FILES[level], classes)
        for split, images in (names | {"trainval": names["train"] + names["val"]}).items():
            labels = [f"{image} {classes[int(image[-1]) % 3]}" for image in images]
            write(folder / f"images_{level}_{split}.txt", labels)
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    """A copy of the intact folder."""
    shutil.copytree(clean.parents[1], tmp_path / "root")
    return tmp_path / "root" / "fgvc-aircraft-2013b" / "data"


def write(path: Path, lines: list[str]):
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def put_mask(folder: Path, mask: np.ndarray):
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / "masks" / "тtrain0.png")


def edit(name: str, old: str, new: str):
    def change(folder: Path):
        text = (folder / name).read_text("utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), "utf-8")

    return change


def remove(pattern: str):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def put(name: str, content: bytes | Image.Image, form: str = "PNG"):
    def change(folder: Path):
        path = folder / "images" / f"{name}.jpg"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path, form)

    return change


def truncate(*names: str):
    return lambda folder: [put(n, (folder / "images" / f"{n}.jpg").read_bytes()[:-60])(folder) for n in names]


def keep_lines(pattern: str, wanted: slice):
    def change(folder: Path):
        for path in folder.glob(pattern):
            write(path, path.read_text("utf-8").splitlines()[wanted])

    return change


VAL = "images_variant_val.txt"
TRAIN = ["тtrain0", "vtrain1", "xtrain2", "тtrain3", "vtrain4", "xtrain5", "тtrain6"]
REFUSED = {
    "no folder": (lambda f: shutil.rmtree(f.parents[1]), FileNotFoundError, ["does not exist", "Name the folder"]),
    "no layout": (lambda f: shutil.rmtree(f / "images"), FileNotFoundError, ["holds no", "data/images"]),
    "no lists": (remove("*.txt"), FileNotFoundError, [VAL]),
    "images absent": (remove("images/*train[0-6].jpg"), FileNotFoundError, ["7 of 18", *TRAIN[:5], "….", "Replace"]),
    "truncated": (truncate(*TRAIN), ValueError, ["7 of 18", *TRAIN[:5], "truncated", "…", "Replace"]),
    "fractions": (put("vval1", Image.new("F", (9, 9), 0.5), "TIFF"), ValueError, ["vval1.jpg", "from 0.5", "bits"]),
    "beyond 16 bits": (put("vval1", Image.new("I", (9, 9), 70000), "TIFF"), ValueError, ["vval1.jpg", "70000"]),
    "unknown label": (edit(VAL, "F-16A/B", "F-16C"), ValueError, ["F-16C", "variants.txt"]),
    "empty split": (keep_lines("*_val.txt", slice(0)), ValueError, ["val split", "empty"]),
    "in two splits": (edit(VAL, "тval0", "тtrain0"), ValueError, ["listed twice", "тtrain0"]),
    "levels disagree": (edit("images_family_val.txt", "тval0", "val9"), ValueError, ["2 images", "val9", "variant"]),
    "line without label": (edit(VAL, "тval0 F-16A/B", "тval0"), ValueError, [VAL, "тval0", "image label"]),
    "class unused": (edit("families.txt", "Ан-2", "Ан-2\nАн-3"), ValueError, ["Ан-3", "without an image"]),
    "one class": (lambda f: [keep_lines("images_*.txt", slice(0, None, 3))(f), keep_lines("[!i]*.txt", slice(1))(f)],
                  ValueError, ["two classes (variant)"]),  # every third image, and the first name of each level
    "one test a class": (keep_lines("*_test.txt", slice(3)), ValueError, ["two test pictures of one", "list more"]),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_folders_are_refused_with_file_and_remedy(folder, damage, error, words):
    damage(folder)
    root = folder.parents[1]
    with pytest.raises(error) as raised:
        FGVCLayout.open(root, banner=4).check_images()
    for word in [*words, str(root)]:
        assert word in str(raised.value)
    assert "xtrain5" not in str(raised.value), "more than five are named"


@pytest.mark.parametrize("level", CLASSES)
@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_reads_what_torchvision_reads(clean, split, level):
    theirs, data = FGVCAircraft(clean.parents[1], split, level), FGVCLayout.open(clean.parents[1])
    ours = data.torch(split, level, v2.PILToTensor())
    assert data.classes(level) == theirs.classes and len(ours) == len(theirs) > 0
    for k, (picture, label) in enumerate(theirs):
        pixels, our_label, row = ours[k]
        assert our_label == label and row == k and torch.equal(pixels, v2.functional.pil_to_tensor(picture))


def test_table_levels_and_parents(folder):
    data = FGVCLayout.open(folder.parent)
    assert data.table.columns.tolist() == ["image", "split", *CLASSES] and data.classes() == CLASSES["variant"]
    assert data.parents("variant", "family") == dict(zip(CLASSES["variant"], CLASSES["family"], strict=True))
    assert len(data.rows("trainval")) == 12 and data.region_names == () and data.scenes is None
    with pytest.raises(FileNotFoundError, match="only rendered"):
        data.mask("тtrain0")
    for call in (lambda: data.rows("all"), lambda: data.classes("airline")):
        with pytest.raises(ValueError, match=r"all|airline"):
            call()
    edit("images_family_val.txt", "тval0 F-16", "тval0 Ан-2")(folder)
    with pytest.raises(ValueError, match=r"1 variant classes .*F-16A/B"):
        FGVCLayout.open(folder).parents("variant", "family")
    remove("*famil*")(folder)
    assert FGVCLayout.open(folder).levels == ("variant", "manufacturer")


def test_fingerprint_depends_on_content_only(clean, folder):
    seen = [FGVCLayout.open(clean, banner=2).fingerprint, FGVCLayout.open(clean).fingerprint]
    assert FGVCLayout.open(folder).fingerprint == seen[1]  # elsewhere, with other times
    masks = (partial(put_mask, mask=np.full((16, 24), value, np.uint8)) for value in (2, 3))
    for change in (*masks, put("тval0", Image.new("RGB", (24, 16)), "JPEG"), truncate("тtest0")):
        change(folder)
        seen.append(FGVCLayout.open(folder).fingerprint)
    assert len({*seen}) == 6


MODES = {
    "grey": (Image.new("L", (8, 8), 128), "PNG", (128, 128, 128)),
    "palette": (Image.new("RGB", (8, 8), (255, 0, 0)).quantize(), "PNG", (255, 0, 0)),
    "transparent palette": (Image.new("RGBA", (8, 8), (255, 0, 0, 0)).quantize(), "PNG", (255, 255, 255)),
    "RGBA": (Image.new("RGBA", (8, 8), (255, 0, 0, 51)), "PNG", (255, 204, 204)),
    "CMYK": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", (0, 255, 255)),
    "16 bits": (Image.new("I;16", (8, 8), 128 * 257), "PNG", (128, 128, 128)),
    "one pixel": (Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", (1, 2, 3)),
}


@pytest.mark.parametrize(("picture", "form", "want"), MODES.values(), ids=MODES)
def test_pictures_of_any_mode_and_size_become_rgb(folder, picture, form, want):
    put("тtrain0", picture, form)(folder)
    (data := FGVCLayout.open(folder)).check_images()
    got = data.picture("тtrain0")
    assert got.mode == "RGB" and got.size == picture.size
    assert np.abs(np.asarray(got).astype(int) - want).max() <= 1
    for transform in (test_transform(32, MEAN, STD), train_transform(32, MEAN, STD, ClassifierConfig(colour_jitter=0))):
        pixels = data.torch("train", "variant", transform)[0][0]
        assert pixels.shape == (3, 32, 32) and np.abs(pixels.numpy().T.astype(int) - want).max() <= 1


def test_regions_are_shares_of_each_cells_pixels(folder):
    mask = np.ones((32, 24), np.uint8)  # 2 x 2 cells of 16 x 12 pixels
    mask[:2], mask[:8, :12], mask[16:, 12:18] = 0, 3, 5
    put_mask(folder, mask)
    data = FGVCLayout.open(folder)
    assert data.region_names == PARTS[2:] and np.unique(data.mask("тtrain0")).tolist() == [0, 2, 4]
    regions = data.regions("тtrain0", (2, 2))
    assert regions.shape == (2, 2, 12) and regions.dtype == np.float32
    np.testing.assert_allclose(regions[..., 1], [[0.5, 0], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(regions[..., 3], [[0, 0], [0, 0.5]], rtol=1e-5)
    assert data.foreground(["тtrain0"], (2, 2)).tolist() == [[[True, False], [False, True]]]
    thirds = data.regions("тtrain0", (3, 1))  # cells 10 2/3 pixels high
    np.testing.assert_allclose(thirds[:, 0, 1], [8 / (32 / 3) / 2, 0, 0], rtol=1e-5)
    put_mask(folder, np.full((32, 24), 14, np.uint8))
    with pytest.raises(ValueError, match="it holds 14, parts end with 13"):
        data.mask("тtrain0")


def test_a_scene_table_gives_scenes_and_factors(folder):
    images = FGVCLayout.open(folder).table["image"][::-1][:7].tolist()
    listed = {"image": images, "split": "x", "variant": "y", "azimuth": range(7), "scene": list("abcdefg")}
    pd.DataFrame(listed | {"pixels_wing": 1}).to_parquet(folder / "scenes.parquet")
    data = FGVCLayout.open(folder)
    assert data.table.columns.tolist() == ["image", "split", *CLASSES, "azimuth"]
    assert data.table.set_index("image")["azimuth"].loc[images].tolist() == list(range(7))
    assert data.scenes["image"].tolist() == images[::-1] and data.scenes["scene"].tolist() == list("gfedcba")
    assert data.scenes.columns.tolist() == ["image", "scene", "pixels_wing"]
    few = data.subset(data.table["azimuth"] > 4, "few")
    assert few.scenes["image"].tolist() == few.table["image"].tolist() == images[:4:-1]
    assert few.name == "few" and few.classes() == data.classes() and few.fingerprint != data.fingerprint


def test_the_banner_is_cropped_off_upright_pictures_and_masks(folder):
    pixels = np.full((16, 24), 200, np.uint8)
    pixels[12:] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    Image.fromarray(np.rot90(pixels)).save(folder / "images/тtrain0.jpg", exif=exif, quality=100)
    put_mask(folder, pixels // 40)
    data = FGVCLayout.open(folder, banner=4)
    assert data.picture("тtrain0").size == (24, 12) and np.asarray(data.picture("тtrain0")).min() > 190
    assert data.mask("тtrain0").shape == (12, 24) and (data.mask("тtrain0") == 4).all()
    with pytest.raises(ValueError, match="mine cannot be used: 16 x 24 pixels are too many"):
        decode(folder / "images/тtrain0.jpg", name="mine", most=383)


def test_lists_and_file_names_may_be_written_in_many_ways_and_twins_in_two_splits_are_found(clean, folder):
    wanted = FGVCLayout.open(clean)
    for path in folder.glob("*.txt"):  # Windows line ends, a byte-order mark, blank lines, tabs, decomposed letters
        text = re.sub(r"^(\w+\d) ", r"\1.webp\t", path.read_text("utf-8"), flags=re.M) + " \n\n"
        text = unicodedata.normalize("NFD", text) if path.name.startswith("manu") else text
        path.write_text("\ufeff" + text, "utf-8", newline="\r\n")
    data = FGVCLayout.open(folder)
    assert data.table.equals(wanted.table) and data.fingerprint == wanted.fingerprint
    for image, ending in {"тtrain0": "JPG", "vtrain1": "jpeg", "xtrain2": "webp"}.items():
        (folder / "images" / f"{image}.jpg").rename(folder / "images" / f"{image}.{ending}")
    for path in folder.glob("images_*.txt"):
        path.write_text(path.read_text("utf-8").replace("vval1", "é1"), "utf-8")
    (folder / "images" / "vval1.jpg").rename(folder / "images" / unicodedata.normalize("NFD", "é1.jpg"))
    FGVCLayout.open(folder).check_images()
    shutil.copy(folder / "images" / "vtrain4.jpg", folder / "images" / "xtest2.jpg")
    shutil.copy(folder / "images" / "xtrain5.jpg", folder / "images" / "тtrain6.jpg")  # in one split
    assert FGVCLayout.open(folder).twins() == ["vtrain4 (train) = xtest2 (test)"]


@pytest.fixture
def images(tmp_path):
    """A folder of <class>/*.png: 12 one-coloured pictures each of classes a and b."""
    for k in range(24):
        path = tmp_path / "images" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (10 * k, 0, 0)).save(path)
    return tmp_path / "images"


def test_an_image_folder_has_random_splits_or_its_own(images, tmp_path):
    data = open_source(SimpleNamespace(source="folder", root=str(images), banner=1), None)
    assert data.levels == ("class",) and data.classes() == ["a", "b"] and data.picture("b-7").size == (9, 8)
    counts = data.table.groupby(["class", "split"]).size().unstack()
    assert counts.to_dict("records") == [{"test": 4, "train": 7, "val": 1}] * 2
    assert data.table["image"].is_unique and data.table.equals(ImageFolder.open(images).table)
    for row in data.table.itertuples(index=False):
        path = tmp_path / "sorted" / row.split / row.image.replace("-", "/deep/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"{row.image.replace('-', '/')}.png", path.with_suffix(".PNG"))
    given = ImageFolder.open(tmp_path / "sorted").table
    assert given["image"].iloc[0].startswith("test-a-deep-") and given["split"].value_counts()["train"] == 14
    assert sorted(given["class"]) == sorted(data.table["class"])
    bare = ImageFolder.open(images / "a")
    assert bare.levels == () and bare.classes() == [] and len(bare.table) == 12


def test_hidden_and_other_files_are_skipped(images, capsys):
    (images / "a" / "0.png").rename(images / "a" / "0.jfif")
    (images / "a" / "notes.txt").write_text("no picture")
    (images / "b/._8.png").write_bytes(b"hidden")
    assert len(ImageFolder.open(images).table) == 24 and not capsys.readouterr().err


FOLDERS = {
    "empty": (lambda f: [p.unlink() for p in f.rglob("*.png")], FileNotFoundError, "holds no pictures"),
    "one class": (lambda f: shutil.rmtree(f / "a"), ValueError, r"two classes \(class\)"),
    "outside classes": (lambda f: (f / "a/0.png").rename(f / "0.png"), ValueError, "1 pictures .* class folders: 0"),
    "outside splits": (lambda f: (f / "a").rename(f / "train"), ValueError, "12 pictures .* train, val, test: b-1"),
    "name twice": (lambda f: shutil.copy(f / "a/0.png", f / "a/0.jpg"), ValueError, "1 images .* same name: a-0"),
    "class in test only": (lambda f: [os.renames(f / "a", f / "train/a"), os.renames(f / "b", f / "test/b")],
                           ValueError, "1 classes .* training picture: b"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "error", "words"), FOLDERS.values(), ids=FOLDERS)
def test_inconsistent_image_folders_are_refused(images, damage, error, words):
    damage(images)
    with pytest.raises(error, match=f"(?s)(?=.*{images}).*{words}"):
        ImageFolder.open(images)


def test_photographs_need_no_renderer():
    absent = "import sys; sys.modules.update(embreex=None, igl=None)"
    subprocess.check_call([sys.executable, "-c", f"{absent}; import aircraft_sae.study, aircraft_sae.view.browser"])


def test_sources_are_found_or_downloaded_whole(clean, tmp_path, monkeypatch):
    def fetch(root, download):
        (Path(root) / "archive.tar.gz").write_bytes(b"half")
        if broken:
            raise OSError("no route to host")
        shutil.copytree(clean.parent, Path(root) / clean.parent.name)

    fetch._URL, broken = FGVCAircraft._URL, True
    monkeypatch.setattr(folders, "FGVCAircraft", fetch)
    monkeypatch.setattr(folders, "DOWNLOAD_BYTES", 0)  # however full this disk is
    config = DatasetConfig(source="fgvc", banner=3)
    with pytest.raises(OSError, match=r"no route to host.* by hand.*data root.*hangar"):
        open_source(config, None, tmp_path)
    assert list(tmp_path.rglob("*")) == []
    broken = False
    with monkeypatch.context() as disk:
        disk.setattr(folders, "DOWNLOAD_BYTES", 2**60)
        with pytest.raises(OSError, match="GB of disk are free"):
            open_source(config, None, tmp_path)
    data = open_source(config, None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fgvc-aircraft-2013b"]
    assert data.banner == 3 and data.table.equals(open_source(DatasetConfig(), clean).table)
    monkeypatch.setattr(folders, "FGVCAircraft", None)  # nothing to fetch
    assert open_source(DatasetConfig(source="fgvc", root=str(clean)), None).folder == clean
    with pytest.raises(FileNotFoundError, match="empty does not exist"):  # and is not downloaded into
        open_source(DatasetConfig(source="fgvc", root=str(tmp_path / "empty")), tmp_path)


def epochs(dataset, workers: int, wanted: list[int], seed: int | None = 3) -> list[tuple]:
    """(pixels, labels, rows) of each epoch."""
    batches = loader(dataset, 4, order_seed=seed, workers=workers)
    passes = []
    for epoch in wanted:
        batches.set_epoch(epoch)
        passes.append(tuple(torch.cat(parts) for parts in zip(*batches, strict=True)))
    return passes


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_augmentation_depend_only_on_seed_epoch_and_row(clean, workers):
    data = FGVCLayout.open(clean)
    dataset = data.torch("train", "variant", train_transform(32, MEAN, STD, ClassifierConfig()))
    before = torch.get_rng_state()
    first, second = epochs(dataset, workers, [0, 1])
    assert torch.equal(torch.get_rng_state(), before), "a resumed training would go on differently"
    (resumed,) = epochs(dataset, 0, [1])
    assert all(torch.equal(a, b) for a, b in zip(second, resumed, strict=True))
    assert first[2].tolist() != second[2].tolist() and sorted(first[2].tolist()) == list(range(9))
    assert not torch.equal(first[0][first[2].argsort()], second[0][second[2].argsort()])
    ((pixels, _, rows),) = epochs(dataset, 0, [0], seed=4)
    assert not torch.equal(first[0][first[2].argsort()], pixels[rows.argsort()])
    twins = loading.PictureDataset(lambda image: data.picture("vval1"), ["", ""], dataset.labels, dataset.transform)
    assert not torch.equal(twins[3, 0, 0][0], twins[3, 0, 1][0])
    (plain,) = epochs(dataset, workers, [0], seed=None)
    assert plain[2].tolist() == list(range(9)) and plain[1].tolist() == dataset.labels.tolist()


def test_batches_are_normalised_as_in_torchvision(clean, monkeypatch):
    dataset = FGVCLayout.open(clean).torch("test", "variant", test_transform(32, MEAN, STD))
    pictures, _, _ = next(iter(loader(dataset, 6, workers=0)))
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    torch.testing.assert_close(pictures, torch.stack([reference(dataset[k][0]) for k in range(6)]))
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert pickle.loads(pickle.dumps(dataset))[0][1:] == dataset[0][1:], "spawned workers need it"
    if Path("/dev/shm").is_dir():
        for batches, workers in ((40, 2), (9, 2), (4, 1), (3, 0)):  # that shared memory has room for
            free = SimpleNamespace(free=batches * 6 * 3 * 32 * 32)
            monkeypatch.setattr(loading.shutil, "disk_usage", lambda _, free=free: free)
            assert loader(dataset, 6, workers=2).num_workers == workers


def test_transforms_keep_nose_and_tail_and_proportions():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :6, 0], pixels[:, -6:, 2] = 255, 255
    whole = test_transform(32, MEAN, STD)(Image.fromarray(pixels))
    assert (whole[0, :, 0] > 200).all() and (whole[2, :, -1] > 200).all()

    def augmented(**on):
        steps = {"crop_scale": (1, 1), "flip": False, "colour_jitter": 0} | on
        return train_transform(32, MEAN, STD, ClassifierConfig(**steps))(Image.fromarray(pixels))

    assert torch.equal(augmented(), whole) and not torch.equal(augmented(colour_jitter=0.5), whole)
    assert any(torch.equal(augmented(flip=True), whole.flip(-1)) for _ in range(30))
    crop = loading.RandomSquashedCrop(32, scale=(0.3, 0.5))
    for _ in range(50):
        box = crop.make_params([Image.new("RGB", (900, 300))])
        assert 0.73 < box["width"] / box["height"] / 3 < 1.37  # relative to the picture's own 3 : 1
        assert 0.28 < box["width"] * box["height"] / 270000 < 0.52
        assert box["left"] + box["width"] <= 900 and box["top"] + box["height"] <= 300
