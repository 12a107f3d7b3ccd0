"""A real browser (Debian's chromium) on notebook 06 in JupyterLab, and on the exported atlas with the network off.

Set AIRCRAFT_SAE_SCREENSHOTS to a folder to keep pictures of what was seen.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from test_browser import elsewhere  # noqa: F401 a fixture

from aircraft_sae.__main__ import NOTEBOOKS
from aircraft_sae.metrics import bootstrap_draws, ratio_of_sums
from aircraft_sae.view.atlas import export_atlas
from aircraft_sae.view.browser import Bench, Labels
from aircraft_sae.view.browser.catalogue import as_jpeg, catalogue_of
from aircraft_sae.view.plots import heat
from aircraft_sae.view.report import write_page
from aircraft_sae.view.scatter import graph, scatter

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r requirements.txt")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="as above").Axe
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
SETTINGS = {  # no cell is taken out of the page when it scrolls away, and nothing is fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
WAIT, START = 30_000, 180_000
"""Milliseconds for one thing to happen, and for JupyterLab and the notebook to start."""


@pytest.fixture(scope="module")
def catalogue(smoke_study):
    return catalogue_of(smoke_study)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(smoke_study, tmp_path_factory):
    """Address of a JupyterLab that has notebook 06."""
    folder = tmp_path_factory.mktemp("lab")
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    (folder / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "06_explore.ipynb", folder / "notebooks")
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(NOTEBOOKS.parent),
    }  # fmt: skip
    words = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.token=", "--ServerApp.password="]
    words += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    words += ["--ServerApp.disable_check_xsrf=True"]  # the test ends kernels itself
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *words], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            for _ in range(240):
                found = re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/", (folder / "log.txt").read_text())
                if found or process.poll() is not None:
                    break
                time.sleep(0.25)
            assert found and process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            yield found[0]
        finally:
            process.terminate()
            process.wait(20)


def opened(chromium, lab):
    """A page with notebook 06 run, its browser ready."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1300})
    page.set_default_timeout(START)
    page.goto(f"{lab}lab/tree/06_explore.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar")
    page.wait_for_function("() => /Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')")
    page.keyboard.press("Control+b")  # the file list away
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector(".sae-browser[data-drawn=ready]")
    page.wait_for_selector(".sae-bench[data-drawn=ready]")
    page.set_default_timeout(WAIT)
    assert not page.locator(".sae-app .error:visible").all_inner_texts()
    return page


@pytest.fixture(scope="module")
def page(chromium, lab):
    page = opened(chromium, lab)
    yield page
    page.close()


def app(page, kind="browser"):
    return page.locator(f".sae-{kind}")


def drawn(page, what, kind="browser"):
    """Wait until the front end has drawn `what`."""
    page.wait_for_selector(f'.sae-{kind}[data-drawn="{what}"]')


def until(found, wanted):
    """Wait until `found()` is `wanted`."""
    for _ in range(WAIT // 100):
        if found() == wanted:
            return
        time.sleep(0.1)
    assert found() == wanted


def keep(page, name, kind="browser"):
    """A screenshot, where they are wanted."""
    if folder := os.environ.get("AIRCRAFT_SAE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        app(page, kind).screenshot(path=Path(folder) / f"{name}.png")


def listed(page):
    """Ids on the list's page."""
    return [int(text[1:]) for text in page.locator(".sae-browser .list li:visible b").all_inner_texts()]


def show(page, feature_id):
    """Go to a feature by its number."""
    page.get_by_label("feature number").fill(str(feature_id))
    page.get_by_label("feature number").press("Enter")
    page.wait_for_selector(f'.sae-browser[data-feature="{feature_id}"]')


def put_on_bench(page, catalogue, row):
    """Choose a picture by its class, which opens the first of that class, and then itself."""
    app(page).get_by_label("class of the picture").select_option(catalogue.label(row))
    app(page).get_by_label("picture", exact=True).select_option(str(row))
    page.wait_for_selector(f'.sae-browser[data-picture="{row}"][aria-busy=false]')  # the second of two openings, too


def test_features_change_by_key_and_by_list(page, catalogue):
    order = catalogue.table[catalogue.table["density_cell"] > 0].sort_values("part_ap", ascending=False, kind="stable")
    first = listed(page)
    assert first == order["feature_id"].tolist()[:50]
    assert app(page).get_attribute("data-feature") == str(first[0])
    app(page).focus()
    page.keyboard.press("ArrowRight")
    drawn(page, f"feature {first[1]}")
    page.keyboard.press("ArrowRight")
    drawn(page, f"feature {first[2]}")
    page.keyboard.press("ArrowLeft")
    drawn(page, f"feature {first[1]}")
    page.locator(".sae-browser .list li button").nth(5).click()
    drawn(page, f"feature {first[5]}")
    assert app(page).locator("h2").inner_text() == f"Feature {first[5]}"
    page.keyboard.press("?")
    assert app(page).locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not app(page).locator("dialog").is_visible()


def test_pictures_are_pythons_own(page, catalogue):
    often = int(catalogue.table["density_image"].argmax())
    show(page, often)
    pixels = page.evaluate(
        """() => { const c = document.querySelector('.sae-browser .tile canvas');
        return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"""
    )
    got = np.array(pixels, np.float32).reshape(160, 160, 4)[..., :3]
    view, maps = catalogue.feature(often)
    tile = view["gallery"][0]
    picture = catalogue.trial.pictures.picture(catalogue.index.images["image"].iloc[tile["picture"]]).resize(
        (160, 160), 3
    )
    wanted = heat(picture, maps[0], catalogue.table.at[often, "max"], tuple(tile["cell"]))
    assert np.abs(got - wanted).mean() < 4  # JPEG and rounding
    other = heat(picture, maps[0][::-1, ::-1], catalogue.table.at[often, "max"], tuple(tile["cell"]))
    assert np.abs(got - other).mean() > 6  # the same map upside down is told apart
    keep(page, "browser")
    app(page).focus()
    page.keyboard.press("h")
    drawn(page, "gallery")
    plain = page.evaluate(
        """() => { const c = document.querySelector('.sae-browser .tile canvas');
        return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"""
    )
    assert np.abs(np.array(plain, np.float32).reshape(160, 160, 4)[..., :3] - np.float32(picture)).mean() < 4
    page.keyboard.press("h")
    drawn(page, "gallery")


def test_a_picture_is_made_on_request(page, catalogue):
    """Of a feature that is active in test pictures, as the list's first need not be; of another, why there is none."""
    often, silent = (int(each) for each in catalogue.table["density_image"].to_numpy().argsort(kind="stable")[[-1, 0]])
    show(page, often)
    made = app(page).locator("details", has=page.get_by_text("A picture made for it"))
    made.locator("summary").click()
    assert not made.locator("canvas").count()
    made.get_by_role("button", name="Make it").click()
    made.locator("canvas").wait_for(timeout=START)  # some seconds, where no other test runs
    page.get_by_label("feature number").dispatch_event("change")  # the same feature is drawn once more
    drawn(page, f"feature {often}")
    _, (reached, random) = catalogue.made_for(often)
    text = made.inner_text()
    assert f"reaches {reached:.1f} times" in text and f"random direction, {random:.1f} times" in text
    pixels = made.locator("canvas").evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, 99, 99).data)")
    assert np.std(pixels) > 5
    keep(page, "made")
    show(page, silent)
    assert not made.locator("canvas").count()
    made.get_by_role("button", name="Make it").click()
    page.wait_for_selector('.sae-browser .error:has-text("is active in no test picture")')
    assert made.get_by_role("button", name="Make it").is_enabled()
    app(page).get_by_label("Dismiss the message").click()
    made.locator("summary").click()


def test_keys_work_after_every_click_and_labels_stay_with_their_feature(page, catalogue):
    """Clicks on what then hides or is made anew, and labels typed one after the other."""
    order = listed(page)[:4]
    labels = Labels(catalogue.folder, catalogue.key)
    show(page, order[0])
    try:
        app(page).locator(".suggestion").click()
        drawn(page, f"label {order[0]}")
        assert not app(page).locator(".suggestion").is_visible()
        page.keyboard.press("ArrowRight")
        drawn(page, f"feature {order[1]}")
        page.keyboard.press("l")
        page.keyboard.type("Étoile, nose tip")
        page.keyboard.press("Enter")
        drawn(page, f"label {order[1]}")
        page.keyboard.press("ArrowRight")
        drawn(page, f"feature {order[2]}")
        said = labels.all()
        assert said[order[0]]["label"] == catalogue.table["part"][order[0]].replace("_", " ")
        assert said[order[1]]["label"] == "Étoile, nose tip" and order[2] not in said
        neighbour = app(page).locator("aside .link").first
        other = int(neighbour.inner_text().split()[0][1:])
        neighbour.click()
        drawn(page, f"feature {other}")
        page.keyboard.press("/")
        page.keyboard.type("tip etoile")
        drawn(page, "list")
        assert listed(page) == [order[1]]  # every word, accents or none
        page.keyboard.press("Escape")
        assert page.get_by_role("searchbox", name="search").input_value() == "tip etoile"
        page.keyboard.press("ArrowRight")
        drawn(page, f"feature {order[1]}")
        page.get_by_role("searchbox", name="search").fill("")
        app(page).get_by_text("Filters", exact=True).click()
        app(page).get_by_label("filter by label").select_option("some")
        drawn(page, "list")
        assert set(listed(page)) == set(order[:2])
        app(page).get_by_label("filter by label").select_option("none")
        drawn(page, "list")
        unnamed = listed(page)
        show(page, unnamed[3])
        page.keyboard.press("l")
        page.keyboard.type("gone")
        page.keyboard.press("Enter")
        drawn(page, f"label {unnamed[3]}")
        assert unnamed[3] not in listed(page)
        page.keyboard.press("ArrowRight")
        drawn(page, f"feature {unnamed[4]}")  # what stood after it
        app(page).get_by_label("filter by label").select_option("")
        app(page).get_by_text("Filters", exact=True).click()
    finally:
        for feature_id in list(labels.all()):
            labels.set(feature_id, label="", note="", rating=0)


def test_the_list_is_filtered_searched_and_sorted(page, catalogue):
    table = catalogue.table
    page.get_by_role("button", name="+ filter").click()
    row = page.locator(".sae-browser .range")
    row.get_by_label("at least").fill("5")  # percent, as they are shown
    row.get_by_label("at most").fill("30")
    drawn(page, "list")
    shown = (100 * table["density_cell"]).map(lambda value: float(f"{value:.3g}"))
    wanted = table[shown.between(5, 30)].sort_values("part_ap", ascending=False, kind="stable")["feature_id"].tolist()
    assert listed(page) == wanted[:50] and 0 < len(wanted) < len(table)
    page.get_by_label("sort by").select_option("density_cell")
    drawn(page, "list")
    said = page.locator(".sae-browser .list li:visible i").all_inner_texts()[:50]
    assert [float(text) for text in said] == shown[wanted].sort_values(ascending=False).tolist()[:50]
    for name in ("at least", "at most"):  # what is typed is what is seen
        row.get_by_label(name).fill(said[3])
    drawn(page, "list")
    assert listed(page) == shown.index[shown == float(said[3])].tolist()
    row.get_by_label("remove this filter").click()
    page.get_by_label("sort by").select_option("max")
    alive = table[table["density_cell"] > 0].sort_values("max", ascending=False, kind="stable")
    assert listed(page) == alive["feature_id"].tolist()[:50]
    names = table[[*(f"{level}/class" for level in catalogue.levels), "part"]].astype(str)
    best = catalogue.parts.dropna(subset="ap").sort_values("ap", ascending=False, kind="stable")
    best = best.groupby("part").head(10).groupby("feature_id")["part"].agg(list)  # what a feature is among the best of
    for words in ("engine", "undercarriage", catalogue.network.classes[0]):
        page.get_by_role("searchbox", name="search").fill(words)
        hit = names.apply(lambda column, words=words: column.str.lower().str.contains(words.lower())).any(axis=1)
        meant = {"engine": ["engine"], "undercarriage": ["nose_gear", "main_gear"]}.get(words, [])
        hit[[j for j, parts in best.items() if set(parts) & set(meant)]] = True
        offered = page.locator(".sae-browser nav").get_by_role("button", name="all features by")
        assert offered.all_inner_texts() == [f"all features by {part.replace('_', ' ')}" for part in meant]
        assert listed(page) == alive[hit[alive.index]]["feature_id"].tolist()[:50]
    assert hit.any()
    page.get_by_role("searchbox", name="search").fill("no such thing")
    assert app(page).get_by_text("no feature is like that").is_visible()
    page.get_by_role("searchbox", name="search").fill("")
    page.get_by_label("sort by").select_option("part_ap")


def test_a_cell_lists_the_features_active_there(page, catalogue):
    row = int(catalogue.rows[1])
    put_on_bench(page, catalogue, row)
    subject = Bench(catalogue).of_row(row)
    columns = subject.acts.shape[1]
    canvas = app(page).locator(".stage canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
    drawn(page, f"cell 0,{columns - 1}")
    values = subject.codes[0, columns - 1]
    wanted = values.argsort(descending=True)[: int((values > 0).sum())].tolist()
    assert listed(page) == wanted and wanted
    page.get_by_role("button", name="whole picture").click()
    n = int((subject.strength > 0).sum())
    assert app(page).locator(".pager span").inner_text() == f"1–{min(n, 50)} of {n}"  # all of them
    page.get_by_role("tab", name="Features").click()
    drawn(page, "entrance features")


def logits(page, column, kind="browser"):
    """{class: logit} as printed in a column of the bench."""
    cells = page.locator(f'.sae-{kind} .logits td[data-kind="{column}"]').evaluate_all(
        "cells => cells.map((cell) => [cell.dataset.class, Number(cell.querySelector('b').innerText)])"
    )
    return dict(cells)


def test_a_slider_gives_pythons_logits(page, catalogue):
    bench = Bench(catalogue)
    row = int(app(page).get_attribute("data-picture"))
    subject, classes = bench.of_row(row), catalogue.network.classes
    slider = app(page).locator(".slider input:visible").first
    feature_id = int(app(page).locator(".slider:visible").first.get_attribute("data-id"))
    slider.focus()
    for _ in range(20):  # from 1 to 2 in steps of 0.05
        slider.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.sae-browser .slider output').innerText === '×2.00'")
    drawn(page, "logits")
    page.wait_for_timeout(300)  # the last of the slider's answers
    made = bench.change(subject, {feature_id: 2.0}) | {"reconstruction": bench.reconstruction(subject)}
    for column, name in (("as it is", "before"), ("features changed", "after"), ("random directions", "random"),
                         ("reconstruction only", "reconstruction")):  # fmt: skip
        printed = logits(page, column)
        assert len(printed) >= 2
        for label, value in printed.items():
            assert value == pytest.approx(float(made[name][classes.index(label)]), abs=6e-4), (column, label)
    changed = {
        name: float(made["after"][classes.index(name)] - made["before"][classes.index(name)]) for name in printed
    }
    assert max(map(abs, changed.values())) > 1e-3  # it did move
    keep(page, "bench")
    app(page).get_by_role("button", name="Reset", exact=True).click()
    page.wait_for_function("() => document.querySelector('.sae-browser .slider output').innerText === '×1.00'")


def test_the_brush_blurs_and_a_flip_flips(page, catalogue):
    bench, row = Bench(catalogue), int(app(page).get_attribute("data-picture"))
    subject, classes = bench.of_row(row), catalogue.network.classes
    app(page).get_by_label("blur brush").check()
    canvas = app(page).locator(".stage canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    drawn(page, "blur 1")
    rows = subject.acts.shape[0]
    wanted = bench.blurred(subject, [(rows - 1, 0)], 8.0).logits
    beside = bench.blurred(subject, bench.elsewhere(subject, [(rows - 1, 0)]).tolist()).logits
    for column, made in {"cells blurred": wanted, "as much blurred elsewhere": beside}.items():
        printed = logits(page, column)
        assert classes[int(made.argmax())] in printed or column != "cells blurred", "what wins is not in the table"
        for label, value in printed.items():
            assert value == pytest.approx(float(made[classes.index(label)]), abs=6e-4)
    before, now, other = (classes[int(each.argmax())] for each in (subject.logits, wanted, beside))
    told = f"Cells blurred: {now}, {'still' if now == before else f'no longer {before}'}; as much elsewhere: {other}."
    assert app(page).locator(".outcome").inner_text() == told
    page.evaluate(
        """() => { const el = document.querySelector('.sae-browser');
        window.blurs = [];
        new MutationObserver(() => { if (/^blur/.test(el.dataset.drawn)) blurs.push(el.dataset.drawn); })
          .observe(el, { attributes: true, attributeFilter: ['data-drawn'] }); }"""
    )
    for wanted, start in (("blur 3", (0.1, 0.1)), ("blur 1", (0.9, 0.1))):  # from a clear cell, then from a blurred one
        page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (1 - start[0]), box["y"] + box["height"] * 0.15, steps=7)
        page.mouse.up()
        drawn(page, wanted)
    assert page.evaluate("() => blurs") == ["blur 3", "blur 1"]  # one request a stroke
    app(page).get_by_label("blur brush").uncheck()
    app(page).get_by_role("button", name="Minimal flip").click()
    drawn(page, "flip")
    found = bench.flip(subject)
    text = app(page).locator(".bench").inner_text()
    if found["features"]:
        assert f"turns {found['before']} into {found['after']}" in text and "agrees" in text
        assert f"Features changed: {found['after']}, no longer {found['before']}; random directions: " in text
    else:
        assert "No set of features was found" in text
    app(page).get_by_role("button", name="Reset", exact=True).click()


def test_a_picture_of_ones_own_and_a_file_that_is_none(page, catalogue, tmp_path):
    catalogue.trial.pictures.picture(catalogue.images["image"][0]).resize((4000, 3000)).save(tmp_path / "mine.jpg")
    app(page).get_by_label("a picture of your own").set_input_files(tmp_path / "mine.jpg")
    drawn(page, "picture upload")
    (tmp_path / "notes.jpg").write_text("these are my notes")
    app(page).get_by_label("a picture of your own").set_input_files(tmp_path / "notes.jpg")
    drawn(page, "error")
    assert "notes.jpg cannot be used" in app(page).get_by_role("alert").inner_text()
    playwright.expect(app(page).get_by_role("alert")).to_be_in_viewport(ratio=1)
    app(page).get_by_label("Dismiss the message").click()
    assert not app(page).get_by_role("alert").is_visible()


def test_classes_and_pairs(page, catalogue):
    page.get_by_role("tab", name="Classes").click()
    drawn(page, "entrance class")
    one, two = catalogue.network.classes[:2]
    app(page).get_by_label("first class").select_option(one)
    app(page).get_by_label("second class").select_option(two)
    app(page).get_by_role("button", name="What tells them apart?").click()
    drawn(page, "pair")
    wanted = [each["feature_id"] for each in catalogue.pair(one, two)]
    assert listed(page) == wanted
    app(page).get_by_label("second class").select_option(one)  # with itself: nothing to compare, and no old answer
    drawn(page, "no pair")
    assert app(page).get_by_role("button", name="What tells them apart?").is_disabled()
    assert app(page).locator(".pair").inner_text() == "" and listed(page) != wanted
    page.get_by_role("tab", name="Features").click()
    drawn(page, "entrance features")


def test_what_goes_wrong_in_the_kernel_is_seen(page, catalogue):
    labels, often = Labels(catalogue.folder, catalogue.key), int(catalogue.table["density_image"].argmax())
    show(page, often)
    labels.path.write_text("not a table of labels")
    try:
        app(page).get_by_label("label", exact=True).fill("wing")
        drawn(page, "error")
        assert "labels.csv" in app(page).get_by_role("alert").inner_text()
        app(page).get_by_text("not saved").wait_for()  # the first error may be of reading what others wrote
    finally:
        labels.path.unlink()
    app(page).get_by_label("Dismiss the message").click()
    app(page).focus()
    page.keyboard.press("ArrowRight")  # what was typed is not lost: it is tried again
    until(lambda: labels.all().get(often), {"label": "wing", "note": "", "rating": 0})
    show(page, often)
    app(page).get_by_label("label", exact=True).fill("")
    until(labels.all, {})


def test_what_is_typed_belongs_to_the_feature_that_is_named(page, catalogue):
    labels, (one, two) = Labels(catalogue.folder, catalogue.key), catalogue.table["density_cell"].nlargest(2).index
    label, notes = (app(page).get_by_label(name, exact=True) for name in ("label", "notes"))
    page.locator(".jp-MarkdownCell").last.click()  # JupyterLab's active cell is another one
    show(page, one)
    label.focus()
    page.keyboard.type("left wing")
    notes.focus()
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    page.keyboard.type("lines")
    page.get_by_label("feature number").fill(str(two))
    page.get_by_label("feature number").press("Enter")  # at once: nothing is saved yet
    assert label.input_value() == notes.input_value() == ""
    label.focus()
    page.keyboard.type("tail")
    page.keyboard.press("Escape")
    try:
        until(lambda: labels.all().get(two), {"label": "tail", "note": "", "rating": 0})
        assert labels.all()[one] == {"label": "left wing", "note": "two\nlines", "rating": 0}
        show(page, one)
        assert (label.input_value(), notes.input_value()) == ("left wing", "two\nlines")
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        page.keyboard.press("ArrowRight")  # not behind the help
        assert page.get_by_label("feature number").input_value() == str(one)
        page.keyboard.press("Escape")
    finally:
        for feature_id in (one, two):
            labels.set(int(feature_id), label="", note="")


def test_labels_of_others_are_heard(page, catalogue):
    order, labels = listed(page)[:2], Labels(catalogue.folder, catalogue.key)
    show(page, order[0])
    try:
        labels.set(order[1], label="of another browser")
        app(page).focus()
        page.keyboard.press("ArrowRight")
        label = app(page).get_by_label("label", exact=True)
        until(label.input_value, "of another browser")
        until(lambda: app(page).locator(".list [aria-current=true] span").inner_text(), "of another browser")
        labels.set(order[1], label="changed again")
        page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        until(label.input_value, "changed again")
        label.fill("mine")  # what is typed here stays, whatever is heard
        labels.set(order[0], label="of a third")
        page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        until(lambda: labels.all()[order[1]]["label"], "mine")
        assert label.input_value() == "mine"
    finally:
        for feature_id in order:
            labels.set(feature_id, label="")
        page.evaluate("() => window.dispatchEvent(new Event('focus'))")
        until(lambda: app(page).get_by_label("label", exact=True).input_value(), "")


TABBED = """(kind) => { const root = document.querySelector(`.sae-${kind}`), seen = { checkVisibilityCSS: true };
  return [...root.querySelectorAll('button, input, select, textarea, summary, canvas[tabindex]')]
    .filter((node) => node.checkVisibility(seen) && !node.disabled)
    .filter((node) => !node.matches('[role=tab][tabindex="-1"], .list button[tabindex="-1"]'))
    .map((node, i) => (node.dataset.nth = i)); }"""
FOCUSED = """(kind) => { const node = document.activeElement, style = getComputedStyle(node);
  if (!node.closest(`.sae-${kind}`)) return null;
  return [node.dataset.nth === undefined ? null : Number(node.dataset.nth),
    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2, node.outerHTML.slice(0, 80)]; }"""


def reached_by_tab(page, kind="browser"):
    """Tab through the app: every control that is seen gets the focus, and shows it."""
    wanted, reached = page.evaluate(TABBED, kind), []
    app(page, kind).focus()
    for _ in range(2 * len(wanted)):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED, kind)
        if at is None:
            break
        assert at[1], f"no visible focus: {at[2]}"
        reached.append(at[0])
    assert set(wanted) <= set(reached) and len(wanted) > 20
    return wanted


@pytest.mark.parametrize("kind", ["browser", "bench"])
def test_every_control_is_reached_by_keyboard(page, kind):
    reached_by_tab(page, kind)


def test_up_and_down_move_in_the_list_and_escape_closes_the_help(page):
    order = listed(page)
    show(page, order[0])
    app(page).locator(".list button[tabindex='0']").focus()
    said = "() => document.activeElement.dataset.id"
    for key, wanted in (("ArrowUp", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("End", -1), ("Home", 0), ("ArrowDown", 1)):
        page.keyboard.press(key)
        assert page.evaluate(said) == str(order[wanted])
    assert app(page).locator(".list button[tabindex='0']").count() == 1  # one stop of the Tab key
    page.keyboard.press("Enter")
    drawn(page, f"feature {order[1]}")
    page.keyboard.press("?")
    dialog = app(page).locator("dialog")
    assert dialog.is_visible()
    page.keyboard.press("Tab")
    assert app(page).evaluate("(node) => document.activeElement.closest('.sae-app > :not(dialog)') === null")
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and app(page).evaluate("(node) => node === document.activeElement")


def test_an_impatient_hand(page, catalogue):
    order = catalogue.table[catalogue.table["density_cell"] > 0].sort_values("part_ap", ascending=False, kind="stable")
    order = order["feature_id"].tolist()
    show(page, order[0])
    page.evaluate(
        """() => { const el = document.querySelector('.sae-browser');
        const press = () => el.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
        for (let i = 0; i < 25; i++) press(); }"""
    )
    drawn(page, f"feature {order[25]}")
    pictures = [tile["picture"] for tile in catalogue.feature(order[25])[0]["gallery"]]
    tiles = app(page).locator(".tile:visible")
    assert [int(tile.get_attribute("data-picture")) for tile in tiles.all()] == pictures
    current = app(page).locator(".list button[aria-current=true]").bounding_box()
    assert current["y"] < app(page).locator(".list").bounding_box()["y"] + 560  # scrolled to


def test_the_bench_follows_what_is_chosen(page, catalogue):
    often = int(catalogue.table["density_image"].argmax())
    show(page, often)
    tile = app(page).locator(".tile:visible").last
    row = int(tile.get_attribute("data-picture"))
    tile.click()
    drawn(page, f"picture {row}")
    assert app(page).get_by_label("picture", exact=True).input_value() == str(row)
    assert app(page).get_by_label("class of the picture").input_value() == catalogue.label(row)
    heated = "() => document.querySelector('.sae-browser .stage canvas').toDataURL()"
    before = page.evaluate(heated)
    dead = int(catalogue.table["density_cell"].argmin())
    show(page, dead)
    assert page.evaluate(heated) != before  # the heat is the shown feature's
    show(page, often)
    assert page.evaluate(heated) == before
    ids = "() => [...document.querySelectorAll('.sae-browser .slider:not([hidden])')].map((row) => row.dataset.id)"
    most = (catalogue.trial.strength > 0).sum(1)
    row = int(catalogue.rows[most.argmax()])
    assert most.max() > 20  # more than there are sliders
    put_on_bench(page, catalogue, row)
    rare = Bench(catalogue).told(Bench(catalogue).of_row(row), row)["active"][-1]["feature_id"]
    show(page, rare)
    there = page.evaluate(ids)
    assert there[0] == str(rare)
    app(page).locator(".slider:visible input").nth(1).press("ArrowRight")
    drawn(page, "logits")
    assert page.evaluate(ids) == there  # rows stay under the hand
    assert app(page).locator(".slider:visible output").nth(1).inner_text() == "×1.05"
    app(page).get_by_role("button", name="Reset", exact=True).click()


def test_the_bench_alone(page, catalogue):
    alone = app(page, "bench")
    subject = Bench(catalogue).of_row(int(alone.get_attribute("data-picture")))
    alone.locator(".stage canvas").focus()
    page.keyboard.press("Enter")
    drawn(page, "cell 0,0", "bench")
    found = subject.codes[0, 0].nonzero()[:, 0].tolist()
    assert all(f"#{j}" in alone.locator(".stage .links").inner_text() for j in found[:8])
    feature_id = int(alone.locator(".slider").first.get_attribute("data-id"))
    alone.get_by_role("button", name=f"suppress feature {feature_id}", exact=True).click()
    drawn(page, "logits", "bench")
    wanted = Bench(catalogue).change(subject, {feature_id: 0.0})["after"]
    for label, value in logits(page, "features changed", "bench").items():
        assert value == pytest.approx(float(wanted[catalogue.network.classes.index(label)]), abs=6e-4)


def test_each_view_of_a_widget_has_its_own_picture(page, catalogue):
    """The kernel knows which picture a view shows: another view's must not answer for it."""
    app(page, "bench").locator(".outcome").click(button="right")
    page.get_by_text("Create New View for Cell Output").click()
    other = page.locator(".sae-bench").nth(1)
    other.locator(".slider").first.wait_for()
    one, two = map(int, catalogue.rows[:2])
    for view, row in zip((page.locator(".sae-bench").first, other), (one, two), strict=True):
        view.get_by_label("picture", exact=True).select_option(str(row))
        until(lambda view=view: view.get_attribute("data-picture"), str(row))
    first = page.locator(".sae-bench").first
    feature_id = int(first.locator(".slider").first.get_attribute("data-id"))
    first.get_by_role("button", name=f"suppress feature {feature_id}", exact=True).click()
    page.wait_for_timeout(500)
    bench, classes = Bench(catalogue), catalogue.network.classes
    wanted = bench.change(bench.of_row(one), {feature_id: 0.0})["after"]
    cells = first.locator('.logits td[data-kind="features changed"]')
    printed = cells.evaluate_all("all => all.map((cell) => [cell.dataset.class, Number(cell.dataset.logit)])")
    assert len(printed) >= 2
    for label, value in printed:
        assert value == pytest.approx(float(wanted[classes.index(label)]), abs=6e-4)
    page.keyboard.press("Escape")
    page.locator(".lm-TabBar-tabCloseIcon").last.click()


def test_what_comes_too_late_is_dropped(page, catalogue):
    bench, classes = Bench(catalogue), catalogue.network.classes
    page.evaluate(
        """() => { const el = document.querySelector('.sae-browser'), canvas = el.querySelector('.stage canvas');
        const labels = [...el.querySelectorAll('.stage label')];
        const brush = labels.find((label) => /blur brush/.test(label.innerText)).control;
        brush.checked = true;
        canvas.focus();
        canvas.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
        brush.checked = false;
        [...el.querySelectorAll('button')].find((button) => button.innerText === 'Reset').click(); }"""
    )
    page.wait_for_function("() => document.querySelector('.sae-browser').ariaBusy === 'false'")
    page.wait_for_timeout(300)
    assert logits(page, "cells blurred") == {}
    now = int(app(page).get_attribute("data-picture"))
    other = next(row for row in catalogue.rows if row != now)
    page.evaluate(
        """(row) => { const el = document.querySelector('.sae-browser');
        const choice = el.querySelector('select[aria-label=picture]');
        choice.append(new Option('other', row));
        choice.value = row;
        choice.dispatchEvent(new Event('change'));
        el.querySelector('.slider [aria-label^=suppress]').click(); }""",
        str(other),
    )
    drawn(page, f"picture {other}")
    page.wait_for_timeout(300)
    wanted = bench.change(bench.of_row(int(other)), {})["before"]
    for label, value in logits(page, "features changed").items():
        assert value == pytest.approx(float(wanted[classes.index(label)]), abs=6e-4)


def test_a_large_picture_reaches_the_kernel(page, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png", compress_level=1)
    assert (tmp_path / "noise.png").stat().st_size > 30e6
    app(page).get_by_label("a picture of your own").set_input_files(tmp_path / "noise.png")
    drawn(page, "picture upload")


ON_BENCH = ".stage canvas", ".outcome", ".bench p.margin"


def check_bench_stays(page, kind="browser"):
    """The picture, the outcome and the margin are on the screen, whichever slider is moved."""
    sliders = app(page, kind).locator(".slider:visible input")
    for i in (0, sliders.count() // 2, sliders.count() - 1):
        before = app(page, kind).get_attribute("data-revision")
        sliders.nth(i).press("ArrowRight")  # which scrolls to it
        page.wait_for_selector(f'.sae-{kind}[data-drawn=logits]:not([data-revision="{before}"])')
        playwright.expect(sliders.nth(i)).to_be_in_viewport(ratio=0.9)
        for name in ON_BENCH:
            playwright.expect(app(page, kind).locator(name)).to_be_in_viewport(ratio=0.98)
        assert "Features changed" in app(page, kind).locator(".outcome").inner_text()
    app(page, kind).get_by_role("button", name="Reset", exact=True).click()


@pytest.mark.parametrize("kind", ["browser", "bench"])
def test_the_bench_is_on_the_screen_while_sliders_move(page, catalogue, kind):
    """In JupyterLab, whose output areas catch `position: sticky`."""
    page.set_viewport_size({"width": 1400, "height": 1000})
    try:
        app(page, kind).locator(".bench").scroll_into_view_if_needed()
        check_bench_stays(page, kind)
        if kind == "browser":  # nor does it leave when the gallery or the list scrolls
            show(page, int(catalogue.table["density_image"].argmax()))
            for name in (".tile:visible", ".list li:visible"):
                app(page).locator(name).last.scroll_into_view_if_needed()
                for name in ON_BENCH:
                    playwright.expect(app(page).locator(name)).to_be_in_viewport(ratio=0.98)
            page.get_by_role("tab", name="Picture").click()
            drawn(page, "entrance picture")
            box, panes = (app(page).locator(name).first.bounding_box() for name in (".stage canvas", ".panes"))
            assert 0 <= box["y"] and box["y"] + box["height"] <= panes["y"] < 1000  # the picture, and then the gallery
            page.get_by_role("tab", name="Features").click()
    finally:
        page.set_viewport_size({"width": 1500, "height": 1300})


def test_names_keep_still_however_the_list_is_sorted(page, catalogue):
    def names():
        rows = page.locator(".sae-browser .list li:visible")
        return dict(zip(listed(page), rows.locator("span").all_inner_texts(), strict=True))

    first, compared = names(), set()
    sorts = page.get_by_label("sort by").locator("option").evaluate_all("all => all.map((each) => each.value)")
    for by in sorts:
        page.get_by_label("sort by").select_option(by)
        drawn(page, "list")
        assert {j: name for j, name in names().items() if j in first} == {j: first[j] for j in names() if j in first}
        compared |= set(names()) & set(first)
        first |= names()
    page.get_by_role("tab", name="Parts").click()
    drawn(page, "entrance part")
    assert all(first.get(j, name) == name for j, name in names().items()) and compared
    assert any(name.endswith("?") for name in first.values())
    page.get_by_role("tab", name="Features").click()
    page.get_by_label("sort by").select_option("part_ap")


def test_the_circle_is_seen_in_close_ups(page, catalogue):
    show(page, int(catalogue.table["density_image"].argmax()))
    app(page).get_by_label("close-ups").check()
    drawn(page, "gallery")
    pixels = """() => [...document.querySelectorAll('.sae-browser .tile:not([hidden]) canvas')].map((canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      return data.filter((_, i) => i % 4 === 0 && data[i] > 250 && data[i + 1] > 250 && data[i + 2] > 250).length; })"""
    app(page).get_by_label("circle").check()
    with_circle = page.evaluate(pixels)
    app(page).get_by_label("circle").uncheck()
    without = page.evaluate(pixels)
    app(page).get_by_label("close-ups").uncheck()
    assert catalogue.radius and all(a - b > 30 for a, b in zip(with_circle, without, strict=True))


def test_no_picture_passes_for_the_widget(page):
    """This run's gallery stands where there is no kernel, and nothing beside the widget where there is one."""
    assert page.locator(".jp-Notebook .sae-app").count() == 2
    assert page.locator(".jp-Notebook").locator(".jp-OutputArea img, .jp-MarkdownCell img").count() == 0


def test_a_button_exports_the_atlas_and_shows_how_far_it_is(page, catalogue):
    folder = catalogue.folder / "atlas"
    shutil.rmtree(folder, ignore_errors=True)
    page.evaluate(
        """() => { window.shares = [];
        const header = document.querySelector('.sae-browser header');
        const bar = header.querySelector('progress'), seen = () => { if (!bar.hidden) shares.push(bar.value); };
        new MutationObserver(seen).observe(header, { subtree: true, attributes: true }); }"""
    )
    button = app(page).get_by_role("button", name="Export the atlas")
    button.click()
    assert app(page).get_by_text("The atlas is being written.").is_visible() and button.is_disabled()
    drawn(page, "exported")
    assert f"The atlas is in {folder}." in app(page).locator("header").inner_text() and button.is_enabled()
    shares = page.evaluate("() => shares")
    assert len(set(shares)) > 5 and shares == sorted(shares) and 0 <= shares[0] < shares[-1] <= 1
    assert not app(page).locator("progress").is_visible()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert folder / "index.html" in written and folder.with_suffix(".zip").is_file()
    labels, often = Labels(catalogue.folder, catalogue.key), int(catalogue.table["density_image"].argmax())
    labels.set(often, label="an exported label")
    try:
        button.click()
        app(page).get_by_text("The atlas is being written.").wait_for(state="hidden")
        until(lambda: "an exported label" in (folder / "labels.js").read_text(), True)
        drawn(page, "exported")
        changed = {path.name for path in folder.rglob("*.*") if written.get(path) != path.stat().st_mtime_ns}
        assert changed == {"labels.js"}  # one small file
    finally:
        labels.set(often, label="")


def serious(page, kind="browser"):
    """What axe-core finds serious in the browser, or in the bench alone."""
    found = Axe().run(page, f".sae-{kind}").response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]


CONTRAST = """(root) => { const canvas = document.createElement('canvas').getContext('2d');
  const over = (colour, ground) => {
    for (const each of [ground, colour]) { canvas.fillStyle = each; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0); };
  const under = getComputedStyle(root).backgroundColor, ground = over(under, 'white');
  const names = ['.quiet', '.list span', '.link', '.told', 'td small', '.field > span'];
  const seen = names.map((name) => root.querySelector(name));
  return seen.filter(Boolean).map((node) => {
    const ink = over(getComputedStyle(node).color, under);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); }); }"""


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light", "no theme"])
def test_axe_finds_nothing_serious_in_jupyterlabs_themes(page, theme):
    """No theme: colours of a light one, color-scheme dark, and nothing that says which, as in VS Code and Colab."""
    if theme == "no theme":
        page.evaluate("document.body.removeAttribute('data-jp-theme-light'); document.body.style.colorScheme = 'dark'")
    else:
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        for name, act in (("Theme", "hover"), (theme, "click")):
            getattr(page.locator(".lm-Menu-itemLabel").get_by_text(name, exact=True), act)()
        told = "(dark) => document.body.dataset.jpThemeLight === String(!dark)"
        page.wait_for_function(told, arg=theme.endswith("Dark"))
    try:
        for kind in ("browser", "bench"):
            app(page, kind).scroll_into_view_if_needed()
            assert not serious(page, kind)
            assert (
                min(
                    app(page, kind).evaluate(
                        CONTRAST.replace("'.list span', ", "" if kind == "bench" else "'.list span', ")
                    )
                )
                >= 4.5
            )
        keep(page, theme)
    finally:
        page.evaluate("document.body.dataset.jpThemeLight = 'true'; document.body.style.colorScheme = ''")


# ---------------------------------------------------------------- the question that everybody has
COUNT = """() => { window.acted = [];
  for (const kind of ['click', 'keydown']) {
    addEventListener(kind, (event) => event.isTrusted && acted.push(event.key || kind), true); }
  addEventListener('change', ({ target }) => { // a person opens the list, and chooses
    if (target.tagName === 'SELECT') acted.push('click', 'click'); }, true); }"""


def ask_for_landing_gear(page, catalogue):
    """Find it, suppress it in a picture of one of two classes, against the other: (feature, picture, other class)."""
    part, typed, pair = "main_gear", "landing gear", ("210-100", "210-300")  # what is asked, before anything is seen
    page.evaluate(COUNT)
    page.get_by_role("searchbox", name="search").click()
    page.keyboard.type(typed)
    offered = page.locator(".sae-browser nav").get_by_role("button", name="all features by")
    assert offered.all_inner_texts() == ["all features by nose gear", "all features by main gear"]
    offered.last.click()
    scores = catalogue.parts[catalogue.parts["part"] == part].dropna(subset="ap")
    best = scores.sort_values(["ap", "feature_id"], ascending=[False, True])["feature_id"].tolist()
    ap = scores.set_index("feature_id")["ap"].round(3)
    drawn(page, f"feature {listed(page)[0]}")
    assert ap[listed(page)].tolist() == ap[best[:50]].tolist()
    feature_id = listed(page)[0]
    found = page.evaluate("() => acted.splice(0)")
    assert found == ["click", *typed, "click"]
    row = next(
        tile["picture"] for tile in catalogue.feature(feature_id)[0]["gallery"]
        if tile["label"] in pair and app(page).locator(f'.tile.open[data-picture="{tile["picture"]}"]').count()
    )  # fmt: skip
    app(page).locator(f'.tile[data-picture="{row}"]').click()
    page.wait_for_selector(f'.sae-browser[data-picture="{row}"][aria-busy=false]')
    assert page.evaluate("() => acted.splice(0)") == ["click"]
    name = next(each for each in pair if each != catalogue.label(row))
    against = app(page).get_by_label("class that the margin is against")
    if against.input_value() != name:
        beside = app(page).locator(".logits th button").get_by_text(name, exact=True)
        beside.click() if beside.count() else against.select_option(name)
        drawn(page, f"against {name}")
    assert len(page.evaluate("() => acted")) <= 2
    page.keyboard.press("s")
    told = "(id) => document.querySelector('.sae-browser .echo').textContent.includes(`#${id} ×0`)"
    page.wait_for_function(told, arg=feature_id)
    assert page.evaluate("() => acted").count("s") == 1 and len(page.evaluate("() => acted")) <= 3
    for each in (*ON_BENCH, ".echo"):  # where the answer is read
        playwright.expect(app(page).locator(each)).to_be_in_viewport(ratio=0.98)
    page.evaluate("() => acted.splice(0)")
    return feature_id, row, name


def margins(page):
    """What the line beside `s` says of the margin: before, after, with as much of random directions."""
    text = app(page).locator(".echo").inner_text().partition("Margin")[2]
    return [float(value) for value in re.findall(r"(?<=: |→ )-?\d+\.\d+", text)]


def check_margins(page, catalogue, feature_id, row, other):
    bench, classes = Bench(catalogue), catalogue.network.classes
    made, own = bench.change(bench.of_row(row), {feature_id: 0.0}), classes.index(catalogue.label(row))
    wanted = [float(made[name][own] - made[name][classes.index(other)]) for name in ("before", "after", "random")]
    assert margins(page) == pytest.approx(wanted, abs=6e-3)


def check_effect(page, catalogue, feature_id, row, other):
    """Over all test pictures of the two classes: the means are Python's, the intervals are of other draws."""
    app(page).get_by_role("button", name="In all pictures of both classes").click()
    drawn(page, "effect")
    assert page.evaluate("() => acted") == ["click"]
    own = catalogue.label(row)
    found = catalogue.effect(feature_id, own, other)
    said = re.findall(r"(-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]", app(page).locator(".effect").inner_text())
    for name, told in zip(("effect", "random"), said, strict=True):
        value, low, high = (found[name][each] for each in ("value", "low", "high"))
        assert float(told[0]) == pytest.approx(value, abs=6e-4)
        assert [float(each) for each in told[1:]] == pytest.approx([low, high], abs=0.25 * (high - low) + 6e-4)
    assert f"in {found['effect']['n']} test pictures" in app(page).locator(".effect").inner_text()
    assert any(found["effect"][end] for end in ("value", "low"))


def check_reopened(page, catalogue, row):
    """A picture that is opened again has the effects on its own margin, not on the one that was chosen before."""
    told = Bench(catalogue).told(Bench(catalogue).of_row(row), row)
    ready = page.evaluate("() => ATLAS.facts.bench_pictures.map((each) => each.picture)")
    for wanted in (next(each for each in ready if each != row), row):
        put_on_bench(page, catalogue, wanted)
    got = {each["feature_id"]: each["effect"] for each in page.evaluate("() => app.state.subject.active")}
    wanted = {each["feature_id"]: each["effect"] for each in told["active"] if each["feature_id"] in got}
    assert got == {j: pytest.approx(effect, abs=1e-5) for j, effect in wanted.items()}


def test_what_is_the_feature_for_landing_gear(page, catalogue):
    labels = Labels(catalogue.folder, catalogue.key)
    feature_id, row, other = ask_for_landing_gear(page, catalogue)
    check_margins(page, catalogue, feature_id, row, other)
    own = catalogue.label(row)
    app(page).get_by_role("button", name="In all pictures of both classes").click()  # over all pictures, if one asks
    drawn(page, "effect")
    assert page.evaluate("() => acted") == ["click"]
    told, found = app(page).locator(".effect").inner_text(), catalogue.effect(feature_id, own, other)
    for each in (found["effect"], found["random"]):
        assert f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" in told
    assert f"in {found['effect']['n']} test pictures" in told
    playwright.expect(app(page).locator(".effect")).to_be_in_viewport()
    try:
        app(page).focus()
        page.keyboard.press("l")
        page.keyboard.type("landing gear")
        page.keyboard.press("Enter")
        until(lambda: labels.all().get(feature_id, {}).get("label"), "landing gear")
        page.get_by_role("button", name="Copy link").click()
        drawn(page, "link")
        link = app(page).get_by_label("link", exact=True).input_value()
        place = dict(parse_qsl(re.search(r'at="(.*)"', link)[1]))
        assert {name: place[name] for name in ("feature", "picture", "against", "x", "part")} == {
            "feature": str(feature_id), "picture": str(row), "against": other, "x": f"{feature_id}:0",
            "part": "main_gear",
        }  # fmt: skip
    finally:
        labels.set(feature_id, label="")
        app(page).get_by_role("button", name="Reset", exact=True).click()
        page.get_by_role("tab", name="Features").click()
        page.get_by_role("searchbox", name="search").fill("")


# ---------------------------------------------------------------- the second task: which part does a cell show?
def segmented(page, kind="browser"):
    """What the page makes of each cell: {before, after, random: (cells, regions) logits}."""
    made = app(page, kind).evaluate(
        "({ state }) => Object.entries(state.regions).map(([name, cells]) => [name, cells.map((each) => [...each])])"
    )
    return {name: torch.tensor(cells, dtype=torch.float64) for name, cells in made}


def edited(catalogue, subject, multipliers, cells=None, directions=None):
    """PyTorch's: the acts of the cells (rows, columns) edited, and the head applied to all."""
    directions = catalogue.trial.sae.W_dec.detach() if directions is None else directions
    acts = subject.acts.clone()
    for row, column in cells or np.ndindex(*acts.shape[:2]):
        for j, factor in multipliers.items():
            acts[row, column] += (factor - 1) * subject.codes[row, column, j] * directions[j]
    return catalogue.head.logits(acts).flatten(0, 1).double()


def turned(catalogue, rows):
    """(picture, two features, a cell) where the first one, active elsewhere too, turns the cell into another part."""
    for row in map(int, rows):
        subject = Bench(catalogue).of_row(row)
        before = catalogue.head.logits(subject.acts).argmax(-1)
        for one in ((subject.codes > 0).sum((0, 1)) > 1).nonzero()[:, 0].tolist():
            cell = divmod(int(subject.codes[..., one].argmax()), subject.codes.shape[1])
            for two in (subject.codes[cell] > 0).nonzero()[:, 0].tolist():
                after = edited(catalogue, subject, {one: 4.0, two: 0.0}).view(*before.shape, -1).argmax(-1)
                if two != one and after[cell] != before[cell]:
                    return row, [one, two], cell
    raise AssertionError("no feature turns a cell of these pictures into another part")


def close(got, wanted):
    """The largest difference, which must be below 1e-3."""
    largest = float((torch.as_tensor(got).double() - torch.as_tensor(wanted).double()).abs().max())
    assert largest < 1e-3
    return largest


def check_segmentation(page, catalogue, rows, largest):
    """Sliders in all cells, then in one: cells' regions and classes' logits are PyTorch's; `largest` hears how well."""
    row, (one, two), cell = turned(catalogue, rows)
    put_on_bench(page, catalogue, row)
    bench, multipliers = Bench(catalogue), {one: 4.0, two: 0.0}
    subject, random = bench.of_row(row), catalogue.trial.random
    largest += [close(segmented(page)[name], edited(catalogue, subject, {})) for name in ("before", "after", "random")]
    for feature_id, key in ((one, "End"), (two, "Home")):
        show(page, feature_id)  # which gives it a slider
        app(page).locator(f'.slider[data-id="{feature_id}"]:visible input').press(key)
    until(lambda: app(page).evaluate("({ state }) => [...state.multipliers]"), [[one, 4], [two, 0]])
    for cells in (None, [cell]):
        if cells:
            app(page).get_by_label("sliders in chosen cells only").check()
            app(page).locator(".stage canvas").focus()
            for key, n in (("ArrowUp", 9), ("ArrowLeft", 9), ("ArrowDown", cell[0]), ("ArrowRight", cell[1])):
                for _ in range(n):
                    page.keyboard.press(key)
            page.keyboard.press("Enter")
            told = app(page).locator(".outcome")
            playwright.expect(told).to_contain_text("Features changed in 1 cell: ")
        got, wanted = segmented(page), edited(catalogue, subject, multipliers, cells)
        largest.append(close(got["after"], wanted))
        largest.append(close(got["random"], edited(catalogue, subject, multipliers, cells, random)))
        changed = (got["after"] != got["before"]).any(1).view(subject.acts.shape[:2]).nonzero().tolist()
        assert [*cell] in changed and (changed == [[*cell]]) == bool(cells)
        at = cell[0] * subject.acts.shape[1] + cell[1]
        assert got["after"][at].argmax() != got["before"][at].argmax()
        made = bench.change(subject, multipliers, cells)
        until(
            lambda made=made: (
                abs(app(page).evaluate("({ state }) => state.after.after[0]") - float(made["after"][0])) < 1e-3
            ),
            True,
        )
        for name in ("after", "random"):
            largest.append(close(app(page).evaluate("({ state }, name) => state.after[name]", name), made[name]))
        counts = {name: np.bincount(each.argmax(1), minlength=len(catalogue.head.names)) for name, each in got.items()}
        rows_ = [
            [name.replace("_", " "), *(str(counts[each][i]) for each in ("before", "after", "random"))]
            for i, name in enumerate(catalogue.head.names) if any(each[i] for each in counts.values())
        ]  # fmt: skip
        differ = [(got[each].argmax(1) != got["before"].argmax(1)).sum().item() for each in ("after", "random")]
        rows_.append(["cells named differently", "", *map(str, differ)])
        shown = app(page).locator(".counts tbody tr").all()
        assert [each.locator("td").all_inner_texts() for each in shown] == rows_
    return row, cell


def told_of_cells(page, catalogue):
    """What is told of the first cell by pointing at it, and of those around by keys, on either map."""
    names, got, seen = [each.replace("_", " ") for each in catalogue.head.names], segmented(page), set()
    around = {None: (0, 0), "ArrowRight": (0, 1), "ArrowDown": (1, 1), "ArrowLeft": (1, 0)}
    for canvas in app(page).locator(".regions canvas").all():
        canvas.hover(position={"x": 3, "y": 3})
        for key, (row, column) in around.items():
            if key:
                canvas.press(key)
            logits = (got[name].view(*catalogue.index.grid, -1)[row, column] for name in ("before", "after"))
            before, after = (names[int(each.argmax())] for each in logits)
            said = f"{before}, unchanged" if before == after else f"{before}, now {after}"
            assert app(page).locator(".regions p").inner_text() == f"Row {row + 1}, column {column + 1}: {said}."
            seen.add(before == after)
        app(page).locator(".stage canvas").focus()
    assert seen == {True, False}


COLOURED = """([row, column]) => { const { grid } = document.querySelector('.sae-browser').state.facts;
  return [...document.querySelectorAll('.sae-browser .regions canvas')].map((canvas) => {
    const [y, x] = [row, column].map((at, k) => Math.floor(((at + 0.5) * canvas.width) / grid[k]));
    const [r, g, b] = canvas.getContext('2d').getImageData(x, y, 1, 1).data;
    return Math.max(r, g, b) - Math.min(r, g, b) > 20; }); }"""


def test_the_head_names_cells_as_pytorch_does_while_sliders_move(page, catalogue, record_property):
    largest = []
    row, cell = check_segmentation(page, catalogue, catalogue.rows, largest)
    record_property("largest difference", max(largest))
    told_of_cells(page, catalogue)
    before, after = (segmented(page)[name].argmax(1).view(catalogue.index.grid) for name in ("before", "after"))
    for at in np.ndindex(*before.shape):  # background is grey, a part has a colour
        assert page.evaluate(COLOURED, at) == [bool(before[at]), bool(after[at])]
    keep(page, "segmentation")
    page.get_by_role("button", name="Copy link").click()
    drawn(page, "link")
    link = app(page).get_by_label("link", exact=True).input_value()
    assert dict(parse_qsl(re.search(r'at="(.*)"', link)[1]))["limit"] == f"{cell[0]},{cell[1]}"
    app(page).get_by_label("sliders in chosen cells only").uncheck()
    playwright.expect(app(page).locator(".outcome")).to_contain_text("Features changed: ")
    subject, multipliers = (
        Bench(catalogue).of_row(row),
        dict(app(page).evaluate("({ state }) => [...state.multipliers]")),
    )
    close(segmented(page)["after"], edited(catalogue, subject, multipliers))  # of all cells again
    app(page).get_by_role("button", name="Reset", exact=True).click()


def test_what_is_not_changed_is_named_as_it_is(page):
    slider = app(page).locator(".slider:visible input").first
    slider.press("End")
    assert not torch.equal(segmented(page)["after"], segmented(page)["before"])
    feature_id = app(page).locator(".slider:visible").first.get_attribute("data-id")
    app(page).get_by_role("button", name=f"leave feature {feature_id} as it is", exact=True).click()
    got = segmented(page)
    assert torch.equal(got["after"], got["before"]) and torch.equal(got["random"], got["before"])


def test_a_blurred_picture_is_named_anew(page, catalogue):
    bench, row = Bench(catalogue), int(app(page).get_attribute("data-picture"))
    subject = bench.of_row(row)
    app(page).get_by_label("sliders in chosen cells only").check()
    app(page).get_by_label("blur brush").check()  # one brush at a time
    assert not app(page).get_by_label("sliders in chosen cells only").is_checked()
    app(page).locator(".stage canvas").focus()
    page.keyboard.press("Enter")
    drawn(page, "blur 1")
    cell = app(page).evaluate("({ state }) => [...state.brush][0].split(',').map(Number)")
    seen = bench.blurred(subject, [cell])
    got = segmented(page)
    close(got["before"], edited(catalogue, subject, {}))
    close(got["after"], edited(catalogue, seen, {}))
    feature_id = int(app(page).locator(".slider:visible").first.get_attribute("data-id"))
    app(page).locator(".slider:visible input").first.press("End")
    close(segmented(page)["after"], edited(catalogue, seen, {feature_id: 4.0}))
    assert (got["after"] - got["before"]).abs().max() > 0.01
    app(page).get_by_label("blur brush").uncheck()
    app(page).get_by_role("button", name="Reset", exact=True).click()
    close(segmented(page)["after"], edited(catalogue, subject, {}))


def test_a_label_outlives_its_kernel(chromium, lab, page, catalogue):
    often = int(catalogue.table["density_image"].argmax())
    show(page, often)
    app(page).get_by_label("rating").select_option("4")
    app(page).get_by_label("label", exact=True).fill("the upper fin")
    drawn(page, f"label {often}")
    page.wait_for_function("() => document.querySelector('.sae-browser .saved').innerText === 'saved'")
    with urllib.request.urlopen(f"{lab}api/kernels") as answer:
        kernels = json.load(answer)
    assert kernels
    for kernel in kernels:
        urllib.request.urlopen(urllib.request.Request(f"{lab}api/kernels/{kernel['id']}", method="DELETE"))
    labels = Labels(catalogue.folder, catalogue.key)
    assert labels.all()[often] == {"label": "the upper fin", "note": "", "rating": 4}
    again = opened(chromium, lab)
    try:
        show(again, often)
        assert app(again).get_by_label("label", exact=True).input_value() == "the upper fin"
        assert app(again).get_by_label("rating").input_value() == "4"
        again.get_by_role("searchbox", name="search").fill("upper fin")
        drawn(again, "list")
        assert listed(again) == [often]
        app(again).get_by_label("notes").fill("typed, and gone")
        again.reload(wait_until="commit")
        until(lambda: labels.all()[often]["note"], "typed, and gone")
    finally:
        labels.set(often, label="", note="", rating=0)
        again.close()


# ---------------------------------------------------------------- the atlas
@pytest.fixture(scope="module")
def atlas_page(chromium, smoke_study):
    index = export_atlas(smoke_study)
    context = chromium.new_context(viewport={"width": 1500, "height": 1300}, offline=True)
    page, problems = context.new_page(), []
    page.set_default_timeout(WAIT)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(index.as_uri())
    drawn(page, "ready")
    yield page
    assert not problems
    context.close()


def test_the_atlas_shows_features_with_the_network_off(atlas_page, catalogue):
    order = catalogue.table[catalogue.table["density_cell"] > 0].sort_values("part_ap", ascending=False, kind="stable")
    assert listed(atlas_page) == order["feature_id"].tolist()[:50]
    app(atlas_page).focus()
    atlas_page.keyboard.press("ArrowRight")
    drawn(atlas_page, f"feature {order['feature_id'].iloc[1]}")
    atlas_page.wait_for_url(f"**feature={order['feature_id'].iloc[1]}&**", wait_until="commit")
    wanted = catalogue.feature(int(order["feature_id"].iloc[1]))[0]["gallery"]
    assert app(atlas_page).locator(".tile:visible").count() == len(wanted)
    atlas_page.get_by_label("show").select_option("random")
    drawn(atlas_page, f"feature {order['feature_id'].iloc[1]}")
    dead = int(catalogue.table["density_cell"].argmin())
    show(atlas_page, dead)
    assert app(atlas_page).get_by_text("A dead feature").is_visible()
    often = int(catalogue.table["density_image"].argmax())
    show(atlas_page, often)
    keep(atlas_page, "atlas")
    ready = set(atlas_page.evaluate("() => ATLAS.facts.bench_pictures.map((each) => each.picture)"))
    gallery = [tile["picture"] for tile in catalogue.feature(often, "random")[0]["gallery"]]
    absent = next(i for i, row in enumerate(gallery) if row not in ready)
    badges = "(tiles) => tiles.map((tile) => getComputedStyle(tile, '::after').content)"
    told = ['"bench"' if row in ready else "none" for row in gallery]
    assert app(atlas_page).locator(".tile:visible").evaluate_all(badges) == told and len(set(told)) == 2
    app(atlas_page).locator(".tile:visible").nth(absent).click()
    assert "the notebook has all" in app(atlas_page).get_by_role("alert").inner_text()
    app(atlas_page).get_by_label("Dismiss the message").click()


def test_the_atlas_sliders_give_pytorchs_logits(atlas_page, catalogue):
    bench, classes = Bench(catalogue), catalogue.network.classes
    row = int(app(atlas_page).get_attribute("data-picture"))
    subject, gone = bench.of_row(row), {}
    rows = app(atlas_page).locator(".slider:visible")
    for i in range(min(3, rows.count())):
        gone[int(rows.nth(i).get_attribute("data-id"))] = 0.0
    for feature_id in gone:
        app(atlas_page).get_by_role("button", name=f"suppress feature {feature_id}", exact=True).click()
    drawn(atlas_page, "logits")
    got = atlas_page.evaluate("() => app.state.after")
    made = bench.change(subject, gone)
    for name in ("after", "random"):
        torch.testing.assert_close(torch.tensor(got[name]), made[name], atol=1e-3, rtol=0)
    assert (made["after"] - made["before"]).abs().max() > 2e-3
    for label, value in logits(atlas_page, "features changed").items():
        assert value == pytest.approx(float(made["after"][classes.index(label)]), abs=1.1e-3)
    app(atlas_page).get_by_role("button", name="Reset", exact=True).click()


def test_the_atlas_has_the_effect_of_any_feature_on_any_pair(atlas_page, catalogue):
    classes, features = catalogue.network.classes, catalogue.table["density_image"].nlargest(3).index.tolist()
    told = atlas_page.evaluate(
        """(all) => Promise.all(all.map(([feature_id, one, two]) => app.source.effect({ feature_id, one, two })))""",
        asked := [(j, classes[0], name) for j in features for name in classes[1:4]],
    )
    for each, (feature_id, one, two) in zip(told, asked, strict=True):
        found = catalogue.effect(feature_id, one, two)
        for name in ("effect", "random"):
            assert each[name]["value"] == pytest.approx(found[name]["value"], abs=1e-5)
            assert each[name]["n"] == found[name]["n"]
            own, pair = catalogue._of_pair(one, two)
            rival = torch.where(own.labels == pair[0], pair[1], pair[0])
            along = own.random[[feature_id]] if name == "random" else None
            changes = own.suppress([feature_id], directions=along, rival=rival)["margin"][:, 0]
            draws = bootstrap_draws(ratio_of_sums, changes, np.ones(len(changes)), n=20_000, seed=1)
            for end, rank in (("low", 0.025), ("high", 0.975)):  # of 2,000 other draws
                least, most = np.quantile(draws, [rank - 0.012, rank + 0.012])
                assert least - 1e-5 <= each[name][end] <= most + 1e-5
        assert [tile["picture"] for tile in each["pictures"]] == [tile["picture"] for tile in found["pictures"]]
        changes = [tile["change"] for tile in found["pictures"]]
        assert [tile["change"] for tile in each["pictures"]] == pytest.approx(changes, abs=1e-5)
    assert max(abs(each["effect"]["value"]) for each in told) > 1e-3
    dead = int(catalogue.table["density_cell"].argmin())
    none = atlas_page.evaluate(
        "(given) => app.source.effect(given)", {"feature_id": dead, "one": classes[0], "two": classes[1]}
    )
    assert none["effect"]["value"] == 0 and none["pictures"] == []


def test_voila_serves_the_notebook_from_the_top_folder(chromium, smoke_study, tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    words = ["voila", "notebooks/06_explore.ipynb", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with open(tmp_path / "log.txt", "w") as log:
        started = {"cwd": NOTEBOOKS.parent, "stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([sys.executable, "-m", *words], **started)
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    try:
        until(lambda: "is running at" in (tmp_path / "log.txt").read_text(), True)
        page.goto(f"http://127.0.0.1:{port}/", timeout=START)
        for kind in ("browser", "bench"):
            page.wait_for_selector(f".sae-{kind}[data-drawn=ready]", timeout=START)
        before = app(page).get_attribute("data-feature")
        app(page).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("(id) => document.querySelector('.sae-browser').dataset.feature !== id", arg=before)
    finally:
        page.close()
        process.terminate()
        process.wait(20)


def test_the_atlas_answers_it_too_and_a_link_leads_back(atlas_page, catalogue, chromium):
    found = ask_for_landing_gear(atlas_page, catalogue)
    check_margins(atlas_page, catalogue, *found)
    check_effect(atlas_page, catalogue, *found)
    atlas_page.get_by_role("button", name="Copy link").click()
    drawn(atlas_page, "link")
    link = app(atlas_page).get_by_label("link", exact=True).input_value()
    keep(atlas_page, "question")
    other = chromium.new_page(viewport={"width": 1500, "height": 1300})
    other.goto(link)
    drawn(other, "ready")
    assert app(other).get_attribute("data-feature") == str(found[0])
    check_margins(other, catalogue, *found)
    check_reopened(other, catalogue, found[1])
    other.goto("about:blank")
    other.goto(re.sub("sae=[0-9a-f]+", "sae=0123abcd", link))
    other.wait_for_selector(".sae-browser .error:visible")
    assert "of another autoencoder" in app(other).get_by_role("alert").inner_text()
    other.close()
    app(atlas_page).get_by_role("button", name="Reset", exact=True).click()
    atlas_page.get_by_role("tab", name="Features").click()
    atlas_page.get_by_role("searchbox", name="search").fill("")


def test_an_atlas_without_its_data_says_so_and_its_zip_is_whole(chromium, smoke_study, tmp_path):
    index = export_atlas(smoke_study)
    shutil.unpack_archive(index.parent.with_suffix(".zip"), tmp_path)
    assert {path.name for path in (tmp_path / "atlas").rglob("*")} == {path.name for path in index.parent.rglob("*")}
    (tmp_path / "atlas" / "data.js").unlink()
    page = chromium.new_page()
    page.goto((tmp_path / "atlas" / "index.html").as_uri())
    assert "data.js is missing" in page.locator("#told").inner_text()
    page.close()


def test_two_side_by_side_have_states_of_their_own(atlas_page):
    before = app(atlas_page).first.get_attribute("data-feature")
    atlas_page.get_by_role("button", name="Side by side").click()
    second = atlas_page.locator(".sae-two .sae-browser").nth(1)
    second.and_(atlas_page.locator("[data-drawn=ready]")).wait_for()
    assert second.get_attribute("data-feature") == before
    second.focus()
    atlas_page.keyboard.press("ArrowRight")
    atlas_page.wait_for_function(
        "(id) => document.querySelectorAll('.sae-browser')[1].dataset.feature !== id", arg=before
    )
    assert app(atlas_page).first.get_attribute("data-feature") == before
    boxes = [each.bounding_box() for each in app(atlas_page).all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
    fewer = atlas_page.get_by_role("button", name="Side by side")
    assert fewer.count() == 1  # the second has none
    fewer.click()
    assert app(atlas_page).count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(chromium, smoke_study, scheme):
    context = chromium.new_context(viewport={"width": 1400, "height": 1200}, color_scheme=scheme)
    page = context.new_page()
    page.goto(export_atlas(smoke_study).as_uri())
    drawn(page, "ready")
    for tab in ("Features", "Parts", "Picture", "Classes"):
        page.get_by_role("tab", name=tab).click()
        assert not serious(page)
    page.get_by_role("tab", name="Parts").press("ArrowRight")  # arrows on a tab go to the next
    assert page.evaluate("document.activeElement.textContent") == "Picture"
    context.close()


def test_an_atlas_without_a_closed_form_has_switches_for_one_feature_at_a_time(chromium, elsewhere):  # noqa: F811
    study, _, bench = elsewhere
    context = chromium.new_context(viewport={"width": 1500, "height": 1300}, offline=True)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(export_atlas(study).as_uri())
    drawn(page, "ready")
    assert "one feature at a time" in page.locator("#told").inner_text()
    assert "Switch one off at a time" in app(page).locator(".bench").inner_text()
    assert app(page).get_by_role("tab").count() == (3 if bench.catalogue.levels else 2)
    assert not app(page).get_by_role("button", name="Minimal flip").is_visible()
    assert app(page).locator(".regions").count() == 0  # these pictures have no parts, so that there is no head
    assert not app(page).get_by_label("sliders in chosen cells only").count()
    subject, rows = bench.of_row(int(app(page).get_attribute("data-picture"))), app(page).locator(".slider:visible")
    for i in (0, 1):  # the second one brings the first one back
        feature_id = int(rows.nth(i).get_attribute("data-id"))
        rows.nth(i).locator("input").press("ArrowLeft")
        page.wait_for_function("(id) => app.state.multipliers.get(id) === 0", arg=feature_id)
        page.wait_for_timeout(200)
        made = bench.change(subject, {feature_id: 0.0})
        got = page.evaluate("() => app.state.after")
        for name in ("after", "random"):
            torch.testing.assert_close(torch.tensor(got[name]), made[name], atol=1e-4, rtol=1e-4)
        assert rows.locator("output").all_inner_texts().count("×0.00") == 1
    assert not problems
    context.close()


def test_every_control_of_the_atlas_is_reached_by_keyboard(atlas_page):
    reached_by_tab(atlas_page)


def test_a_notebooks_page_folds_code_leads_back_and_names_its_figures(chromium, tmp_path):
    figure = new_output("display_data", {"image/jpeg": base64.b64encode(as_jpeg(Image.new("RGB", (9, 9)), 9)).decode()})
    bar = new_output("stream", name="stderr", text="training: 100%")
    cells = [
        new_markdown_cell("# Title"),
        new_markdown_cell("## Which one?"),
        new_code_cell("1 + 1", outputs=[bar, figure]),
    ]
    write_page(tmp_path / "05.html", "05", new_notebook(cells=cells))
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto((tmp_path / "05.html").as_uri())
        assert page.locator("img").get_attribute("alt") == "Which one?"
        assert page.get_by_role("link").evaluate_all("all => all.map((each) => each.getAttribute('href'))")[:2] == [
            "index.html", "#Which-one?",
        ]  # fmt: skip
        assert not page.get_by_text("1 + 1").is_visible() and "training" not in page.content()
        page.get_by_text("code", exact=True).click()
        assert page.locator(".jp-CodeMirrorEditor").is_visible()
        assert ("invert" in page.evaluate("getComputedStyle(document.documentElement).filter")) == (scheme == "dark")
        page.close()


def test_an_atlas_with_a_missing_file_says_so(chromium, smoke_study, tmp_path):
    shutil.copytree(export_atlas(smoke_study).parent, tmp_path / "atlas")
    for path in (tmp_path / "atlas" / "features").glob("*.js"):
        path.unlink()
    page = chromium.new_page()
    page.goto((tmp_path / "atlas" / "index.html").as_uri())
    page.wait_for_selector(".sae-browser .error:visible")
    assert "keep the atlas' files together" in app(page).get_by_role("alert").inner_text()
    page.close()


def test_ten_thousand_features(chromium, smoke_study, tmp_path):
    shutil.copytree(export_atlas(smoke_study).parent, tmp_path / "atlas")
    path, n = tmp_path / "atlas" / "data.js", 10_000
    atlas = json.loads(path.read_text().removeprefix("window.ATLAS = ").rstrip(";\n"))
    facts = atlas["facts"]
    facts["columns"] = {name: (column * n)[:n] for name, column in facts["columns"].items()}
    facts["columns"]["feature_id"], facts["n_features"] = list(range(n)), n
    for scores in facts["parts"].values():
        scores.update({name: (column * n)[:n] for name, column in scores.items()})
    path.write_text(f"window.ATLAS = {json.dumps(atlas)};")
    page = chromium.new_page()
    page.goto((tmp_path / "atlas" / "index.html").as_uri())
    drawn(page, "ready")
    assert re.search(r"1.50 of \d,\d{3}$", app(page).locator(".pager span").inner_text())
    page.get_by_role("searchbox", name="search").fill("#9999")
    assert listed(page) in ([9999], [])  # it may be dead
    page.get_by_label("hide dead").uncheck()
    assert listed(page) == [9999]
    page.get_by_role("searchbox", name="search").fill("")
    took = page.evaluate(
        """() => { const box = document.querySelector('input[type=search]'), start = performance.now();
        for (let i = 0; i < 10; i++) box.dispatchEvent(new Event('input'));
        return (performance.now() - start) / 10; }"""
    )
    assert took < 300  # milliseconds for a letter; about 20 on an idle machine
    took = page.evaluate(
        """async () => { const on = document.querySelector('[aria-label="page on"]'), start = performance.now();
        for (let i = 0; i < 100; i++) { on.click(); document.querySelector('.list').scrollTop = 1e4;
          await new Promise(requestAnimationFrame); }
        return (performance.now() - start) / 100; }"""
    )
    assert took < 300 and len(listed(page)) == 50  # for a page of the list, drawn and scrolled to its end
    page.close()


@pytest.mark.parametrize("width", [400, 640, 705, 900, 1500])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_light_and_dark(chromium, smoke_study, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 1200}, color_scheme=scheme)
    page = context.new_page()
    page.goto(export_atlas(smoke_study).as_uri())
    drawn(page, "ready")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    found = [app(page).locator(name).first.bounding_box() for name in ("[aria-label=label]", ".tile", ".list")]
    label, tile, row = found
    assert label["y"] + label["height"] < (1200 if width > 1100 else tile["y"])  # beside the gallery, or above it
    assert (row["x"] + row["width"] < tile["x"]) == (width > 640)  # the list beside the gallery
    contrast = page.evaluate(
        """() => { const root = document.querySelector('.sae-app');
        const canvas = document.createElement('canvas').getContext('2d');
        const light = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0); };
        const ground = light(getComputedStyle(root).backgroundColor);
        return ['.sae-app', '.quiet', '.list span', '.link', '.told', 'td small'].map((name) => {
          const ink = light(getComputedStyle(root.querySelector(name) || root).color);
          return [name, (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)]; }); }"""
    )
    assert min(ratio for _, ratio in contrast) >= 4.5, contrast  # WCAG AA
    keep(page, f"atlas_{width}_{scheme}")
    context.close()


@pytest.fixture
def fresh(chromium, smoke_study):
    """The atlas, opened anew."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000}, offline=True)
    page = context.new_page()
    page.goto(export_atlas(smoke_study).as_uri())
    drawn(page, "ready")
    yield page
    context.close()


def test_the_atlas_bench_is_on_the_screen_while_sliders_move(fresh):
    for size in ({"width": 1400, "height": 1000}, {"width": 900, "height": 1000}, {"width": 400, "height": 900}):
        fresh.set_viewport_size(size)
        fresh.wait_for_timeout(100)
        check_bench_stays(fresh)
        if size["width"] > 640:  # nor does it leave when the gallery scrolls; one column has no room for both
            app(fresh).locator(".tile:visible").last.scroll_into_view_if_needed()
            for name in ON_BENCH:
                playwright.expect(app(fresh).locator(name)).to_be_in_viewport(ratio=0.98)


def test_the_atlas_names_cells_as_pytorch_does_and_a_link_keeps_the_chosen_ones(fresh, catalogue, record_property):
    rows, largest = fresh.evaluate("() => ATLAS.facts.bench_pictures.map((each) => each.picture)"), []
    row, cell = check_segmentation(fresh, catalogue, rows, largest)
    record_property("largest difference", max(largest))
    told_of_cells(fresh, catalogue)
    keep(fresh, "segmentation_atlas")
    wanted, address = segmented(fresh), fresh.url.split("#")[0]
    link = fresh.evaluate("() => app.place()")
    assert dict(parse_qsl(link))["limit"] == f"{cell[0]},{cell[1]}"
    for more in ("", ";99,0;x"):  # what is no cell is left out
        fresh.goto("about:blank")
        fresh.goto(f"{address}#{re.sub('limit=[^&]*', f'limit={cell[0]},{cell[1]}{more}', link)}")
        drawn(fresh, "ready")
        assert all(torch.equal(each, wanted[name]) for name, each in segmented(fresh).items())
        assert fresh.evaluate("() => [...app.state.limit]") == [f"{cell[0]},{cell[1]}"]
    app(fresh).get_by_role("button", name="Minimal flip").click()  # which is of all cells
    drawn(fresh, "flip")
    flip = Bench(catalogue).flip(Bench(catalogue).of_row(row))["features"]
    assert app(fresh).get_by_label("sliders in chosen cells only").is_checked() != bool(flip)
    app(fresh).get_by_role("button", name="Reset", exact=True).click()
    assert fresh.evaluate("() => app.state.limit.size") == 0 and "limit" not in fresh.evaluate("() => app.place()")


def test_cells_are_chosen_by_painting_and_a_second_stroke_takes_them_back(fresh):
    app(fresh).get_by_label("sliders in chosen cells only").check()
    app(fresh).locator(".stage canvas").scroll_into_view_if_needed()
    box, (rows, columns) = (
        app(fresh).locator(".stage canvas").bounding_box(),
        fresh.evaluate("() => app.state.facts.grid"),
    )
    for wanted in ([f"0,{i}" for i in range(columns)], []):  # along the first row
        fresh.mouse.move(box["x"] + 5, box["y"] + 5)
        fresh.mouse.down()
        fresh.mouse.move(box["x"] + box["width"] - 5, box["y"] + 5)
        fresh.mouse.up()
        assert fresh.evaluate("() => [...app.state.limit]") == wanted
    assert rows > 1


def test_back_undoes_steps_and_stays_in_the_atlas(fresh):
    def shown():
        return app(fresh).get_attribute("data-feature"), app(fresh).get_attribute("data-picture")

    places = [shown()]
    for _ in range(2):
        app(fresh).focus()
        fresh.wait_for_timeout(700)  # quicker ones are one step
        fresh.keyboard.press("ArrowRight")
        until(lambda: shown() != places[-1], True)
        places.append(shown())
    fresh.wait_for_timeout(700)
    app(fresh).locator(".tile.open:visible").first.click()
    until(lambda: shown() != places[-1], True)
    places.append(shown())
    for _ in range(5):  # what is no step
        app(fresh).locator(".slider:visible input").first.press("ArrowRight")
    app(fresh).get_by_label("close-ups").check()
    fresh.wait_for_timeout(300)  # until the address has it
    for wanted in places[-2::-1]:
        fresh.go_back()
        until(shown, wanted)
        assert fresh.url.startswith("file:") and "index.html#" in fresh.url
    fresh.go_forward()
    until(shown, places[1])


def test_back_undoes_the_last_step_in_either_pane(fresh):
    def shown():
        return [app(fresh).nth(i).get_attribute("data-feature") for i in range(app(fresh).count())]

    fresh.get_by_role("button", name="Side by side").click()
    fresh.locator(".sae-two .sae-browser").nth(1).and_(fresh.locator("[data-drawn=ready]")).wait_for()
    places = [shown()]
    for pane in (1, 0, 1):
        fresh.wait_for_timeout(700)  # quicker ones are one step
        app(fresh).nth(pane).focus()
        fresh.keyboard.press("ArrowRight")
        until(lambda: shown() != places[-1], True)
        places.append(shown())
    fresh.wait_for_timeout(700)
    for wanted in places[-2::-1]:
        fresh.go_back()
        until(shown, wanted)
    fresh.go_forward()
    until(shown, places[1])


def test_another_picture_of_the_class_keeps_the_comparison_and_a_link_the_effect(fresh):
    against = app(fresh).get_by_label("class that the margin is against")
    choice = app(fresh).get_by_label("picture", exact=True)
    first, second = (each.get_attribute("value") for each in choice.locator("option").all()[:2])
    fresh.evaluate("(picture) => app.goTo(`picture=${picture}`)", first)
    other = against.locator("option").last.get_attribute("value")
    against.select_option(other)
    drawn(fresh, f"against {other}")
    active = fresh.evaluate("() => app.state.subject.active.map((each) => each.feature_id)")
    fresh.evaluate("(id) => app.show(id)", active[0])
    fresh.keyboard.press("s")
    drawn(fresh, "logits")
    choice.select_option(second)
    fresh.wait_for_function(
        "(picture) => String(app.state.subject.picture) === picture && !app.state.going", arg=second
    )
    until(against.input_value, other)
    there = fresh.evaluate("(id) => app.state.subject.active.some((each) => each.feature_id === id)", active[0])
    until(lambda: fresh.evaluate("() => [...app.state.multipliers]"), [[active[0], 0]] if there else [])
    app(fresh).get_by_role("button", name="In all pictures of both classes").click()
    drawn(fresh, "effect")
    said, address = app(fresh).locator(".effect").inner_text(), fresh.url.split("#")[0]
    link = fresh.evaluate("() => app.place()")
    assert "wholly" in said and f"all={active[0]}" in link
    fresh.goto("about:blank")
    fresh.goto(f"{address}#{link}")
    drawn(fresh, "ready")
    assert app(fresh).locator(".effect").inner_text() == said
    fresh.goto("about:blank")
    fresh.goto(f"{address}#sae=another&feature=1")
    assert app(fresh).get_by_role("alert").bounding_box()["height"] < 80  # and the rest of the page is there


def test_a_link_says_what_is_left_out_of_it(fresh, catalogue):
    address, cells = fresh.url.split("#")[0], "0,1"
    picture = fresh.evaluate("() => app.state.subject.picture")
    fresh.goto("about:blank")
    wanted = f"in=picture&picture={picture}&cell={cells}&blur=0,0&plain=1&heat=0.5&of-tier=2&ranges=no_column~1~2"
    fresh.goto(f"{address}#{wanted}")
    drawn(fresh, "ready")
    said = app(fresh).get_by_role("alert").inner_text()
    # whether the study has tiers depends on what ran before
    tiered = app(fresh).get_by_label("filter by tier", exact=True).locator("option[value='2']").count() > 0
    lost = "filter by no column" if tiered else "filter by tier, filter by no column"
    assert "blurs cells" in said and f"since this study lacks it: {lost}" in said
    assert app(fresh).locator(".range").count() == 0
    assert fresh.evaluate("() => [app.state.cell.join(), app.state.heat, app.state.alpha]") == [cells, False, 0.5]
    assert app(fresh).get_by_label("filter by tier", exact=True).input_value() == ("2" if tiered else "")
    place = dict(parse_qsl(fresh.evaluate("() => app.place()")))
    assert place["cell"] == cells and place["plain"] == "1" and place["heat"] == "0.5" and "ranges" not in place
    fresh.evaluate("() => app.goTo('of-tier=2&ranges=no_column~1~2')")
    playwright.expect(app(fresh).get_by_role("alert")).to_contain_text(lost)
    app(fresh).get_by_role("button", name="Dismiss the message").click()
    fresh.evaluate(  # as a kernel would, and a browser that refuses
        """() => { app.source.blur = async () => { const { cells, regions, before } = app.state.subject;
          return { cells, regions, logits: before, elsewhere: before }; };
        history.replaceState = history.pushState = () => { throw new Error('too many calls'); }; }"""
    )
    feature_id = fresh.evaluate("() => app.state.subject.active[0].feature_id")
    both = f"picture={picture}&x={feature_id}:0&blur=0,0&sigma=4"
    for link, outcome in ((both, "Cells blurred"), (f"{both}&last=features", "Features changed")):
        fresh.evaluate("(link) => app.goTo(link)", link)
        assert outcome in app(fresh).locator(".outcome").inner_text()
        place = dict(parse_qsl(fresh.evaluate("() => app.place()")))
        assert {name: place.get(name) for name in ("blur", "sigma", "last")} == {
            "blur": "0,0", "sigma": "4", "last": dict(parse_qsl(link)).get("last"),
        }  # fmt: skip
    fresh.wait_for_timeout(400)  # the address is written late
    assert not app(fresh).get_by_role("alert").is_visible()


def test_a_link_holds_filters_close_ups_and_two_panes(fresh, catalogue, chromium):
    often = int(catalogue.table["density_image"].argmax())
    part = catalogue.table["part"].dropna().mode()[0]
    app(fresh).get_by_text("Filters", exact=True).click()
    app(fresh).get_by_label("filter by part").select_option(part)
    app(fresh).get_by_label("filter by label").select_option("none")
    app(fresh).get_by_label("sort by").select_option("max")
    app(fresh).get_by_label("smallest first").check()
    fresh.get_by_role("button", name="+ filter").click()
    app(fresh).get_by_label("at least").fill("0.5")
    show(fresh, often)
    fresh.get_by_label("show").select_option("random")
    app(fresh).get_by_label("close-ups").check()
    app(fresh).get_by_label("circle").check()
    drawn(fresh, "gallery")
    fresh.get_by_role("button", name="Side by side").click()
    second = fresh.locator(".sae-two .sae-browser").nth(1)
    second.and_(fresh.locator("[data-drawn=ready]")).wait_for()
    second.get_by_role("tab", name="Parts").click()
    second.focus()
    fresh.keyboard.press("ArrowRight")
    until(lambda: second.get_attribute("data-feature") != str(often), True)
    state = """() => [...document.querySelectorAll('.sae-browser')].map((root) => [
      root.dataset.feature, root.dataset.picture, root.dataset.entrance,
      [...root.querySelectorAll('.panes select, .panes input')].map((each) => [
        each.ariaLabel || each.labels[0]?.innerText, each.type === 'checkbox' ? each.checked : each.value]),
      root.querySelector('.pager span').innerText.split(' of ')[1]])"""
    wanted = fresh.evaluate(state)
    assert len(wanted) == 2 and wanted[0][:3] != wanted[1][:3]
    fresh.get_by_role("button", name="Copy link").first.click()
    link = app(fresh).first.get_by_label("link", exact=True).input_value()
    other = chromium.new_page(viewport={"width": 1400, "height": 1000})
    other.goto(link)
    other.wait_for_selector(".sae-two .sae-browser:nth-child(1)[data-drawn=ready], .sae-two")
    until(lambda: other.evaluate(state), wanted)
    other.close()


@pytest.fixture(scope="module")
def tiers(smoke_study, catalogue, tmp_path_factory):
    """(an atlas in which features have tiers and labels, by part, labels): as if notebook 05 had run."""
    folder, rng = tmp_path_factory.mktemp("tiers") / "atlas", np.random.default_rng(0)
    shutil.copytree(export_atlas(smoke_study).parent, folder)
    atlas = json.loads((folder / "data.js").read_text().removeprefix("window.ATLAS = ").rstrip(";\n"))
    n, facts = atlas["facts"]["n_features"], atlas["facts"]
    for scores in facts["parts"].values():
        scores["tier"] = [int(value) if value >= 0 else None for value in rng.integers(-6, 5, n)]
    columns = np.array([[-1 if v is None else v for v in scores["tier"]] for scores in facts["parts"].values()])
    facts["columns"]["tier"] = [int(value) if value >= 0 else None for value in columns.max(0)]
    (folder / "data.js").write_text(f"window.ATLAS = {json.dumps(atlas)};")
    labels = {j: {"label": f"name {j}", "note": "", "rating": 0} for j in range(0, n, 3)}
    (folder / "labels.js").write_text(f"ATLAS.labels = {json.dumps(labels)};")
    return (folder / "index.html").as_uri(), facts, labels


def test_features_are_filtered_by_part_class_tier_and_label_at_every_entrance(chromium, tiers, catalogue):
    address, facts, labels = tiers
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(address)
    drawn(page, "ready")
    columns, n = facts["columns"], facts["n_features"]
    level = catalogue.level
    names = [
        name for name, placed in zip(columns[f"{level}/class"], columns["placed"], strict=True) if placed != "none"
    ]
    part, name = "main_gear", max(set(names), key=names.count) if names else None

    def passes(j, which):
        of = part if "part" in which else entered
        tier = (facts["parts"][of]["tier"] if of else columns["tier"])[j]
        return all([
            "part" not in which or columns["part"][j] == part or facts["parts"][part]["tier"][j] is not None,
            "class" not in which or (columns[f"{level}/class"][j] == name and columns["placed"][j] != "none"),
            "tier" not in which or (tier or 0) >= which["tier"],
            "label" not in which or (j in labels) == (which["label"] == "some"),
        ])  # fmt: skip

    app(page).get_by_text("Filters", exact=True).click()
    page.get_by_label("hide dead").uncheck()
    asked = [
        {},
        {"part": part},
        {"tier": 2},
        {"part": part, "tier": 1},
        {"label": "none"},
        {"label": "some", "tier": 3},
    ]
    asked += [{"class": f"{level}|{name}"}] if name else []
    for tab in ("Features", "Parts", "Picture", "Classes"):
        page.get_by_role("tab", name=tab).click()
        for filter_ in ("part", "class", "tier", "label"):
            app(page).get_by_label(f"filter by {filter_}").select_option("")
        everything = page.evaluate("() => app.state.ids")
        entered = app(page).locator(".choice:visible select").first.input_value() if tab == "Parts" else None
        for which in asked:
            for filter_ in ("part", "class", "tier", "label"):
                app(page).get_by_label(f"filter by {filter_}").select_option(str(which.get(filter_, "")))
            kept = [j for j in everything if passes(j, which)]
            assert page.evaluate("() => app.state.ids") == kept
            left_out = f"Filters: {len(everything) - len(kept)} left out" if which else "Filters"
            assert app(page).locator(".filters summary").inner_text() == left_out
        assert tab == "Classes" or len(everything) > len(kept) > 0
    assert len(everything) <= n
    page.close()


FITS = """(nav) => { const context = document.createElement('canvas').getContext('2d');
  const box = nav.getBoundingClientRect(), fields = [...nav.querySelectorAll('select, input:not([type=checkbox])')];
  return fields.filter((each) => each.checkVisibility()).map((each) => {
    const style = getComputedStyle(each), own = each.getBoundingClientRect(), choice = each.tagName === 'SELECT';
    context.font = style.font;
    const text = choice ? each.selectedOptions[0]?.text ?? '' : each.placeholder;
    const room = each.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const needed = context.measureText(text).width + (choice ? 18 : 0); // its arrow
    return [text, needed <= room && own.left >= box.left - 1 && own.right <= box.right + 1];
  }).filter(([, fits]) => !fits); }"""


@pytest.mark.parametrize("width", [400, 640, 705, 900, 1100, 1500])
def test_no_field_is_cut_off_at_any_width(chromium, tiers, width):
    page = chromium.new_page(viewport={"width": width, "height": 1000})
    page.goto(tiers[0])
    drawn(page, "ready")
    app(page).get_by_text("Filters", exact=True).click()
    page.get_by_role("button", name="+ filter").click()
    app(page).get_by_label("filter by part").select_option("main_gear")
    app(page).get_by_label("filter by tier").select_option("3")
    for tab in ("Features", "Parts", "Picture", "Classes"):
        page.get_by_role("tab", name=tab).click()
        assert not app(page).locator("nav").evaluate(FITS)
    page.close()


@pytest.mark.parametrize("width", [400, 1900])
def test_a_wide_table_says_so_where_it_is(chromium, smoke_study, width):
    page = chromium.new_page(viewport={"width": width, "height": 1000})
    page.goto(export_atlas(smoke_study).as_uri())
    drawn(page, "ready")
    box = app(page).locator(".details .wide")
    over = box.evaluate("(box) => box.scrollWidth > box.clientWidth")
    assert over == (width == 400)
    assert app(page).locator(".details").get_by_text("scroll it sideways").is_visible() == over
    assert box.get_attribute("tabindex") == ("0" if over else None)  # and arrow keys scroll it
    page.set_viewport_size({"width": 2300 - width, "height": 1000})
    playwright.expect(app(page).locator(".details").get_by_text("scroll it sideways")).to_be_visible(visible=not over)
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_points_and_graphs_show_the_right_patches(chromium, dark):
    """By mouse, by key and after a click; readable on both grounds; with texts for who does not see them."""
    ground, ink = ("rgb(17, 17, 17)", "rgb(221, 221, 221)") if dark else ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    colours = {name: tuple(map(int, np.random.default_rng(i).integers(40, 220, 3))) for i, name in enumerate("abcd")}
    patches = {name: [Image.new("RGB", (72, 72), colour)] * 3 for name, colour in colours.items()}
    xy, kinds = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]]), ["1x1", "3x3", "5x5", "pool", "pool"]
    points = scatter(xy, kinds, [*"abcde"], [*patches.values(), []], "five points")
    joined = graph({"mixed4a": ["a", "b"], "mixed4b": ["c"]}, [("a", "c", -0.4), ("b", "c", 0.2)], patches, "a graph")
    page = chromium.new_page(viewport={"width": 1000, "height": 1000})
    style = f"background: {ground}; color: {ink}"
    main = f"<main><h1>Points</h1>{points}{joined}</main>"
    page.set_content(f'<html lang="en"><title>points</title><body style="{style}">{main}')
    for label, names in {"five points": "abcd", "a graph": "abc"}.items():
        svg = page.get_by_label(label, exact=True)
        assert svg.locator(".tip:visible").count() == 0

        def told(name, svg=svg):
            tip = svg.locator(".tip:visible")
            assert tip.count() == 1 and tip.locator("text").inner_html() == name
            box = tip.locator("image").nth(1).bounding_box()
            seen = Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB").getpixel((36, 36))
            assert np.abs(np.subtract(seen, colours[name])).max() < 12

        for name in names:
            svg.get_by_label(name, exact=True).locator(".mark").hover(force=True)
            told(name)
        page.mouse.move(0, 0)
        assert svg.locator(".tip:visible").count() == 0
        svg.get_by_label("b", exact=True).focus()
        told("b")
        svg.get_by_label("c", exact=True).locator(".mark").click(force=True)
        page.mouse.move(0, 0)
        told("c")
        svg.get_by_label("a", exact=True).locator(".mark").hover(force=True)
        told("a")  # and not "c", which is still chosen, at the same place
        page.mouse.move(0, 0)
        told("c")
        assert svg.locator("text").first.evaluate("e => getComputedStyle(e).fill") == ink
    dots = page.get_by_label("five points", exact=True).locator(".mark")
    light = [page.evaluate(LIGHT, colour) for colour in (ground, *{dot.get_attribute("fill") for dot in dots.all()})]
    assert min((max(each, light[0]) + 0.05) / (min(each, light[0]) + 0.05) for each in light[1:]) >= 3
    bad = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
    assert not bad, bad
    if folder := os.environ.get("AIRCRAFT_SAE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"points-{'dark' if dark else 'light'}.png")
    page.close()


LIGHT = """(colour) => { const canvas = document.createElement('canvas').getContext('2d');
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0); }"""
"""The relative luminance of a colour (WCAG 2)."""
