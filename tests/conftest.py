"""One data folder for all tests and notebooks of a session, and a smoke study in it."""

import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile

import pytest
from xdist.scheduler import LoadFileScheduling

# nothing is written into the repository; of this and the notebooks' conftest, the first to load decides for all workers
if "AIRCRAFT_SAE_TEST_DATA" not in os.environ:
    os.environ["AIRCRAFT_SAE_TEST_DATA"] = tempfile.mkdtemp(prefix="aircraft_sae-")
    atexit.register(shutil.rmtree, os.environ["AIRCRAFT_SAE_TEST_DATA"], ignore_errors=True)
os.environ["AIRCRAFT_SAE_DATA_DIR"] = os.environ["AIRCRAFT_SAE_TEST_DATA"]
os.environ["AIRCRAFT_SAE_PRESET"] = "smoke"
os.environ.pop("AIRCRAFT_SAE_DATA_ROOT", None)
os.environ["TQDM_DISABLE"] = "1"  # no progress bars, except where a test is about them
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # two processes with two threads each on two cores wait for each other
# a shell that starts pytest in the background ignores Ctrl-C, and so would the commands under test
signal.signal(signal.SIGINT, signal.default_int_handler)


class OneBrowser(LoadFileScheduling):
    """One process per file, and one for all files that write the smoke study's labels."""

    def _split_scope(self, nodeid):
        name = super()._split_scope(nodeid)
        return "browser" if "browser" in name else name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneBrowser(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def set_threads():
    """torch.set_num_threads, undone after the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Writes the source of a module and loads it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(source):
        (tmp_path / "experiments_of_a_test.py").write_text(source)
        importlib.invalidate_caches()
        old = sys.modules.get("experiments_of_a_test")
        return importlib.reload(old) if old else importlib.import_module("experiments_of_a_test")

    yield load
    sys.modules.pop("experiments_of_a_test", None)


@pytest.fixture(scope="session")
def smoke_study():
    """The smoke study with its pictures and trained network."""
    from aircraft_sae.study import Study

    study = Study.open("smoke")
    study.pictures()
    study.network()
    return study


@pytest.fixture(scope="session")
def browser_study(smoke_study, tmp_path_factory):
    """A copy, since notebook 05 may at any time write the smoke study's verdicts, which the browser then shows."""
    copy = type(smoke_study)(smoke_study.config, tmp_path_factory.mktemp("browser"))
    for stage in ("dataset", "networks/trained"):
        shutil.copytree(smoke_study.folder / stage, copy.folder / stage)
    return copy


@pytest.fixture(scope="session")
def catalogue(browser_study):
    from aircraft_sae.view.browser.catalogue import catalogue_of

    return catalogue_of(browser_study)


@pytest.fixture(scope="session")
def bench(catalogue):
    from aircraft_sae.view.browser import Bench

    return Bench(catalogue)


@pytest.fixture(scope="session")
def often(catalogue):
    """The feature that is active in the most pictures."""
    return int(catalogue.table["density_image"].argmax())
