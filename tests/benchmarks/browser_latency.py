"""How fast the browser is and what it holds: without a front end, and in JupyterLab in chromium.

    python tests/benchmarks/browser_latency.py --preset hangar

Needs a finished study (`python -m aircraft_sae --preset hangar`), requirements.txt with its playwright and psutil,
chromium, and an otherwise idle machine. Labels are not touched.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import sync_playwright

from aircraft_sae.study import Study
from aircraft_sae.view.browser.catalogue import catalogue_of
from aircraft_sae.view.browser.widgets import Answers

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab import CHROMIUM, jupyterlab, open_notebook

N_CHANGES, N_KEYS, N_SLIDES, N_SLOW = 500, 100, 100, 20


def milliseconds(took: list[float]) -> str:
    """Median and 95th percentile of seconds."""
    median, late = 1e3 * np.percentile(took, [50, 95])
    return f"{median:.0f} / {late:.0f} ms" if median >= 5 else f"{median:.1f} / {late:.1f} ms"


def timed(work, calls) -> str:
    """Time `work` on each of `calls`."""
    took = []
    for call in calls:
        start = time.perf_counter()
        work(call)
        took.append(time.perf_counter() - start)
    return milliseconds(took)


def in_kernel(study: Study) -> dict[str, str]:
    """What the kernel does for each action."""
    catalogue, memory = catalogue_of(study), psutil.Process().memory_info
    answers = Answers(catalogue)
    alive = catalogue.table.index[catalogue.table["density_cell"] > 0].tolist()
    show, picture, grid = answers.feature, int(catalogue.rows[0]), catalogue.index.grid
    cold, warm = (timed(show, alive[:N_KEYS]) for _ in range(2))
    active = answers.open(picture)[0]["active"]
    factors = [{str(active[i % len(active)]["feature_id"]): 0.05 * (i % 80)} for i in range(N_SLIDES)]
    rows = {
        "feature and its thumbnails, cold": cold,
        "feature and its thumbnails, warm": warm,
        "picture opened on the bench": timed(answers.open, map(int, catalogue.rows[1 : N_SLOW + 1])),
        "slider": timed(lambda given: answers.change(picture, given), factors),
        "blur of a cell": timed(lambda i: answers.blur(picture, [[0, i % grid[1]]], 8.0), range(N_SLOW)),
    }
    for feature_id in alive:  # so that every thumbnail has been asked for
        show(feature_id)
    before = memory().rss
    for i in range(N_CHANGES):
        show(alive[i % len(alive)])
    return rows | {f"memory before and after {N_CHANGES} features": f"{before / 1e6:.0f}, {memory().rss / 1e6:.0f} MB"}


TIMED = """async ([key, n, pause]) => { // seconds until it is drawn, of n presses of a key or, without one, of a slider
  const el = document.querySelector('.sae-browser'), slider = el.querySelector('.slider input'), took = [];
  el.focus();
  for (let i = 0; i < n; i++) {
    await new Promise((rested) => setTimeout(rested, pause));
    const { feature, revision } = el.dataset;
    const next = () => el.dataset.feature !== feature && el.dataset.drawn === `feature ${el.dataset.feature}`;
    took.push(await new Promise((end) => {
      const start = performance.now(), seen = new MutationObserver(() => {
        if (key ? !next() : el.dataset.revision === revision) return;
        seen.disconnect();
        requestAnimationFrame(() => setTimeout(() => end((performance.now() - start) / 1000)));
      });
      seen.observe(el, { attributes: true });
      slider.value = 0.05 * (1 + i % 70);
      if (key) el.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      else slider.dispatchEvent(new Event('input', { bubbles: true }));
    }));
  }
  return took;
}"""


def in_browser(study: Study) -> dict[str, str]:
    """What a person waits for: from key or slider to picture."""
    preset = {"AIRCRAFT_SAE_PRESET": study.config.name, "AIRCRAFT_SAE_DATA_DIR": str(study.folder.parents[1])}
    with (
        tempfile.TemporaryDirectory() as folder, sync_playwright() as started,
        jupyterlab(Path(folder), **preset) as address,
    ):  # fmt: skip
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, rows = open_notebook(browser, address), {}
        page.set_default_timeout(300_000)
        time.sleep(1)
        for name, key, pause in (("next", "ArrowRight", 300), ("next", "ArrowRight", 0), ("random", "r", 300)):
            took = page.evaluate(TIMED, [key, N_KEYS, pause])
            rows[f"{name} feature drawn, {pause} ms after the last"] = milliseconds(took)
        rows["slider to new logits drawn"] = milliseconds(page.evaluate(TIMED, ["", N_SLIDES, 0]))
        page.evaluate(TIMED, ["ArrowRight", N_KEYS, 0])
        devtools, held = page.context.new_cdp_session(page), []
        for n in (0, N_CHANGES):
            page.evaluate(TIMED, ["ArrowRight", n, 0])
            devtools.send("HeapProfiler.collectGarbage")
            nodes = devtools.send("Memory.getDOMCounters")["nodes"]
            held.append((devtools.send("Runtime.getHeapUsage")["usedSize"] / 1e6, nodes))
        (heap, nodes), (later, more) = held
        rows[f"JavaScript heap before and after {N_CHANGES} features"] = f"{heap:.1f}, {later:.1f} MB"
        rows[f"DOM nodes before and after {N_CHANGES} features"] = f"{nodes:,}, {more:,}"
        browser.close()
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="hangar")
    study = Study.open(parser.parse_args().preset)
    print("| what | median / 95th percentile |\n|---|---|")
    for part in (in_kernel, in_browser):
        for what, value in part(study).items():
            print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
