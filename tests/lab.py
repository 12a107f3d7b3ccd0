"""JupyterLab with notebook 06 in a real browser, for tests and benchmarks."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_explore.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT, START = 30_000, 180_000
"""Milliseconds for one thing to happen, and for JupyterLab and the notebook to start."""
SETTINGS = {  # cells stay in the page when they scroll away, and nothing is fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextmanager
def server(folder, ready, *words, **options):
    """Run `python -m *words` until its log matches `ready`; gives the match."""
    log = folder / "log.txt"
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT, **options)
    try:
        for _ in range(START // 250):
            if (found := re.search(ready, log.read_text())) or process.poll() is not None:
                break
            time.sleep(0.25)
        assert found, log.read_text()[-2000:]
        yield found[0]
    finally:
        process.terminate()
        process.wait(20)


def jupyterlab(folder, **environment):
    """A server of JupyterLab with notebook 06; gives its address."""
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    (folder / "notebooks").mkdir()
    shutil.copy(NOTEBOOK, folder / "notebooks")
    environment = os.environ | environment | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(NOTEBOOK.parents[1]),
    }  # fmt: skip
    words = ["--no-browser", "--allow-root", "--port=0", "--ServerApp.token=", "--ServerApp.password="]
    words += [f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.extension_manager=readonly"]
    return server(folder, r"http://(?:localhost|127\.0\.0\.1):\d+/", "jupyter", "lab", *words, env=environment)


def open_notebook(chromium, address):
    """A page with notebook 06, run, both widgets ready."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1300})
    page.set_default_timeout(START)
    page.goto(f"{address}lab/tree/{NOTEBOOK.name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar")
    page.wait_for_function("() => /Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')")
    page.keyboard.press("Control+b")  # hide the file list
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for kind in ("browser", "bench"):
        page.wait_for_selector(f".sae-{kind}[data-drawn=ready]")
    page.set_default_timeout(WAIT)
    assert not page.locator(".sae-app .error:visible").all_inner_texts()
    return page
