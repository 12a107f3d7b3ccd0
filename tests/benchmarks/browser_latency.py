"""How long the browser takes, and what it holds: without a front end, in JupyterLab in chromium, and as an atlas.

    python tests/benchmarks/browser_latency.py --preset hangar

Needs a finished study (`python -m aircraft_sae --preset hangar`) and requirements.txt with its playwright, psutil, and
chromium. The machine must be otherwise idle. Labels are not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import sync_playwright

from aircraft_sae.study import Study
from aircraft_sae.view.atlas import export_atlas
from aircraft_sae.view.browser.catalogue import Catalogue, catalogue_of
from aircraft_sae.view.browser.widgets import Answers

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "06_explore.ipynb"
N_CHANGES, N_KEYS, N_SLIDES, N_SLOW = 500, 100, 100, 20
Rows = list[tuple[str, str]]


def milliseconds(took: list[float]) -> str:
    """Median and 95th percentile of seconds."""
    median, late = 1e3 * np.percentile(took, [50, 95])
    return f"{median:.0f} / {late:.0f} ms" if median >= 5 else f"{median:.1f} / {late:.1f} ms"


def timed(work, calls) -> str:
    """Of one call of `work` for each of `calls`."""
    took = []
    for call in calls:
        start = time.perf_counter()
        work(call)
        took.append(time.perf_counter() - start)
    return milliseconds(took)


def in_kernel(catalogue: Catalogue) -> Rows:
    """What the kernel does for each thing that a person does."""
    answers, memory = Answers(catalogue), psutil.Process().memory_info
    alive = catalogue.table.index[catalogue.table["density_cell"] > 0].tolist()
    show = answers.feature
    rows = [("feature and its thumbnails, cold", timed(show, alive[:N_KEYS]))]
    rows.append(("feature and its thumbnails, warm", timed(show, alive[:N_KEYS])))
    picture = int(catalogue.rows[0])
    active = answers.open(picture)[0]["active"]
    rows.append(("picture opened on the bench", timed(answers.open, map(int, catalogue.rows[:N_SLOW]))))
    answers.open(picture)
    factors = [{str(active[i % len(active)]["feature_id"]): 0.05 * (i % 80)} for i in range(N_SLIDES)]
    rows.append(("slider", timed(lambda given: answers.change(picture, given), factors)))
    n_columns = catalogue.index.grid[1]
    rows.append(("blur of a cell", timed(lambda i: answers.blur(picture, [[0, i % n_columns]], 8.0), range(N_SLOW))))
    rows.append(("minimal flip", timed(lambda _: answers.flip(picture), range(N_SLOW))))
    for feature_id in alive:  # every thumbnail has been asked for
        show(feature_id)
    before = memory().rss
    for i in range(N_CHANGES):
        show(alive[i % len(alive)])
    rows.append((f"memory before and after {N_CHANGES} features", f"{before / 1e6:.0f}, {memory().rss / 1e6:.0f} MB"))
    return rows


class Lab:
    """JupyterLab with notebook 06, on a study."""

    def __init__(self, folder: Path, study: Study):
        settings = folder / "settings" / "@jupyterlab"
        for name, values in (("notebook-extension/tracker", {"windowingMode": "none"}),
                             ("apputils-extension/notification", {"fetchNews": "false"})):  # fmt: skip
            path = settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(values))
        shutil.copy(NOTEBOOK, folder)
        environment = os.environ | {
            "JUPYTERLAB_SETTINGS_DIR": str(settings.parent), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "PYTHONPATH": str(NOTEBOOK.parents[1]), "AIRCRAFT_SAE_PRESET": study.config.name,
            "AIRCRAFT_SAE_DATA_DIR": str(study.folder.parents[1]),
        }  # fmt: skip
        words = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.token=", "--ServerApp.password="]
        words += [f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]
        self.log = folder / "log.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter", "lab", *words], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def address(self) -> str:
        for _ in range(480):
            if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/", self.log.read_text()):
                return found[0]
            time.sleep(0.25)
        raise TimeoutError(self.log.read_text()[-2000:])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


PRESSED = """([key, n, pause]) => new Promise(async (done) => {
  const el = document.querySelector('.sae-browser'), took = [];
  el.focus();
  for (let i = 0; i < n; i++) {
    await new Promise((rested) => setTimeout(rested, pause));
    took.push(await new Promise((drawn) => {
      const start = performance.now(), before = el.dataset.feature;
      const seen = new MutationObserver(() => {
        if (el.dataset.feature === before || el.dataset.drawn !== `feature ${el.dataset.feature}`) return;
        seen.disconnect();
        requestAnimationFrame(() => setTimeout(() => drawn((performance.now() - start) / 1000)));
      });
      seen.observe(el, { attributes: true });
      el.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    }));
  }
  done(took);
})"""
SLID = """(n) => new Promise(async (done) => {
  const el = document.querySelector('.sae-browser'), slider = el.querySelector('.slider input'), took = [];
  for (let i = 0; i < n; i++) {
    took.push(await new Promise((drawn) => {
      const start = performance.now();
      const seen = new MutationObserver(() => {
        seen.disconnect();
        requestAnimationFrame(() => setTimeout(() => drawn((performance.now() - start) / 1000)));
      });
      seen.observe(el, { attributes: true, attributeFilter: ['data-revision'] });
      slider.value = 0.05 * (1 + i % 70);
      slider.dispatchEvent(new Event('input', { bubbles: true }));
    }));
  }
  done(took);
})"""


def in_browser(study: Study) -> Rows:
    """What a person waits for: key or slider to picture."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        lab = Lab(Path(folder), study)
        try:
            path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1500, "height": 1300})
            page.set_default_timeout(300_000)
            page.goto(f"{lab.address()}lab/tree/{NOTEBOOK.name}?reset")
            page.wait_for_function("() => /Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')")
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            page.wait_for_selector(".sae-browser[data-drawn=ready]")
            page.wait_for_selector(".sae-bench[data-drawn=ready]")
            time.sleep(1)
            rows = [
                (
                    f"{name} feature drawn, {pause} ms after the last",
                    milliseconds(page.evaluate(PRESSED, [key, N_KEYS, pause])),
                )
                for name, key, pause in (("next", "ArrowRight", 300), ("next", "ArrowRight", 0), ("random", "r", 300))
            ]
            rows.append(("slider to new logits drawn", milliseconds(page.evaluate(SLID, N_SLIDES))))
            page.evaluate(PRESSED, ["ArrowRight", N_KEYS, 0])
            devtools = page.context.new_cdp_session(page)

            def held() -> tuple[float, int]:
                devtools.send("HeapProfiler.collectGarbage")
                count = devtools.send("Memory.getDOMCounters")
                return devtools.send("Runtime.getHeapUsage")["usedSize"] / 1e6, count["nodes"]

            before = held()
            page.evaluate(PRESSED, ["ArrowRight", N_CHANGES, 0])
            after = held()
            rows.append(
                (f"JavaScript heap before and after {N_CHANGES} features", f"{before[0]:.1f}, {after[0]:.1f} MB")
            )
            rows.append((f"DOM nodes before and after {N_CHANGES} features", f"{before[1]:,}, {after[1]:,}"))
            browser.close()
            return rows
        finally:
            lab.close()


def as_atlas(study: Study, n_wide: int = 2500) -> Rows:
    """Its size, and that of an atlas of more features."""
    index = export_atlas(study)
    sizes = {path: path.stat().st_size for path in index.parent.rglob("*") if path.is_file()}
    n, total = len(catalogue_of(study).table), sum(sizes.values())
    by_feature = sum(size for path, size in sizes.items() if path.parent.name == "features" or path.name == "data.js")
    wide = total + (n_wide - n) * by_feature / n
    return [
        (f"atlas of {n:,} features", f"{total / 1e6:.1f} MB"),
        (f"atlas of {n_wide:,} features", f"{wide / 1e6:.1f} MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="hangar")
    parser.add_argument("--only", choices=["kernel", "browser", "atlas"])
    given = parser.parse_args()
    study = Study.open(given.preset)
    parts = {
        "kernel": lambda: in_kernel(catalogue_of(study)),
        "browser": lambda: in_browser(study),
        "atlas": lambda: as_atlas(study),
    }
    rows = [row for name, part in parts.items() if given.only in (None, name) for row in part()]
    width = max(len(what) for what, _ in rows)
    print(f"| {'what':{width}} | median / 95th percentile |")
    print(f"|{'-' * (width + 2)}|{'-' * 26}|")
    for what, value in rows:
        print(f"| {what:{width}} | {value:24} |")


if __name__ == "__main__":
    main()
