"""Check what CI's run has left behind: `python tests/check_run.py DATA_DIR FIRST_SECONDS SECOND_SECONDS`."""

import json
import sys
from pathlib import Path


def main(data_dir: str, first: str, second: str) -> int:
    """Print each check; 1 if any fails."""
    study = Path(data_dir) / "runs" / "hangar"
    numbers = {
        f"{path.name[:2]}/{key}": entry["value"]
        for path in (study / "results").glob("*.json")
        for key, entry in json.loads(path.read_text(encoding="utf-8")).items()
    }
    report = study / "report" / "index.html"
    notebooks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(report.parent.glob("*.ipynb"))]
    memory = max((each["metadata"]["aircraft_sae"]["peak_memory_bytes"] for each in notebooks), default=0)
    part_ap = numbers["04/mean_part_ap"]
    null_ap = max(value for name, value in numbers.items() if name.startswith("04/null/"))
    untrained, random = (numbers[f"05/parts_at_tier_2/null, {name}"] for name in ("untrained", "random directions"))
    # (name, value, least, most); the limits leave room for a busy or slower machine, and for other rounding
    checks = [
        ("seconds of the first run (aim: 900)", int(first), 0, 3000),
        ("seconds of the second run (aim: 20)", int(second), 0, 60),
        ("peak memory of a kernel and its workers, GB", memory / 1e9, 0, 4),
        ("notebooks in the report", len(notebooks), 6, 6),
        ("size of the report, MB", report.stat().st_size / 1e6, 0.1, 1000),
        ("class-averaged test accuracy (aim: 0.90)", numbers["01/test/variant/class_averaged_accuracy"], 0.88, 1),
        ("explained variance", numbers["03/explained_variance"], 0.85, 1),
        ("active features per cell", numbers["03/l0"], 0, 32.5),
        ("share of dead features", numbers["03/dead_share"], 0, 0.05),
        ("test / train fvu", numbers["03/test_train_fvu_ratio"], 0, 1.12),
        ("change of accuracy by splicing, points", numbers["03/top1_change_points"], -2, 100),
        ("mean AP of parts: best null / best feature", null_ap / part_ap, 0, 0.8),
        ("share of p < 0.05 with shuffled labels", numbers["04/shuffled_share_below_0.05"], 0.03, 0.07),
        ("closed form against forward pass", numbers["05/suppress_max_abs_error"], 0, 1e-4),
        ("parts at tier 2 of an untrained autoencoder", untrained, 0, 1),
        ("parts at tier 2 of random directions", random, 0, 1),
        ("parts at tier 3 of probes: the tests can be passed", numbers["05/probe_parts_at_tier_3"], 3, 12),
        ("random directions that pass as a class's",
         numbers["05/pass_share/class: null, random directions, no seeds"], 0, 0.05),
    ]  # fmt: skip
    for name, value, least, most in checks:
        print("ok  " if least <= value <= most else "FAIL", f"{name}: {value:.3g}, {least:g} to {most:g}")
    return int(not all(least <= value <= most for _, value, least, most in checks))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
