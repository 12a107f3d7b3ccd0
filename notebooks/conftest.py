"""nbval runs the notebooks on the smoke preset, in the session's folder, and skips what differs between runs."""

import atexit
import os
import shutil
import tempfile

if "AIRCRAFT_SAE_TEST_DATA" not in os.environ:
    os.environ["AIRCRAFT_SAE_TEST_DATA"] = tempfile.mkdtemp(prefix="aircraft_sae-")
    atexit.register(shutil.rmtree, os.environ["AIRCRAFT_SAE_TEST_DATA"], ignore_errors=True)
os.environ["AIRCRAFT_SAE_DATA_DIR"] = os.environ["AIRCRAFT_SAE_TEST_DATA"]
os.environ["AIRCRAFT_SAE_PRESET"] = "smoke"
os.environ.pop("AIRCRAFT_SAE_DATA_ROOT", None)


def pytest_collectstart(collector):
    """Leave tables' HTML and progress bars out of nbval's comparison."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += "text/html", "stderr"
