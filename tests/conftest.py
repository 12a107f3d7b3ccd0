"""One data folder for all tests and notebooks of a session, and a smoke study in it."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest
from xdist.scheduler import LoadFileScheduling

# Set for the whole session, so that nothing is written into the repository. The notebooks' conftest does the same, and
# whichever is loaded first decides, also for the worker processes of pytest-xdist.
if "AIRCRAFT_SAE_TEST_DATA" not in os.environ:
    os.environ["AIRCRAFT_SAE_TEST_DATA"] = tempfile.mkdtemp(prefix="aircraft_sae-")
    atexit.register(shutil.rmtree, os.environ["AIRCRAFT_SAE_TEST_DATA"], ignore_errors=True)
os.environ["AIRCRAFT_SAE_DATA_DIR"] = os.environ["AIRCRAFT_SAE_TEST_DATA"]
os.environ["AIRCRAFT_SAE_PRESET"] = "smoke"
os.environ.pop("AIRCRAFT_SAE_DATA_ROOT", None)
os.environ["TQDM_DISABLE"] = "1"  # no progress bars, but where a test is of them
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of two processes with two threads on two cores, one waits for the other
# where a shell starts pytest in the background, Ctrl-C is ignored, and would be by the commands under test too
signal.signal(signal.SIGINT, signal.default_int_handler)


class OneBrowser(LoadFileScheduling):
    """A file a process, but one process for all files that write the smoke study's labels."""

    def _split_scope(self, nodeid):
        name = super()._split_scope(nodeid)
        return "browser" if "browser" in name else name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return OneBrowser(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def smoke_study():
    """The smoke study with all its stages made."""
    from aircraft_sae.study import Study

    study = Study.open("smoke")
    study.pictures()
    study.network()
    return study
