"""Checks what the run line has left behind: `python tests/check_run.py DATA_DIR FIRST_SECONDS SECOND_SECONDS`."""

import json
import sys
from pathlib import Path

MAX_FIRST, MAX_SECOND = 3000, 60
"""Seconds; the aims are 900 and 20, these leave room for a busy machine and for one of half the speed."""
MAX_MEMORY = 4e9
"""Bytes."""
LEAST_ACCURACY = 0.88
"""The aim is 0.90, and 0.907 is reached; this leaves room for another machine's rounding."""


def main(data_dir: str, first: str, second: str) -> int:
    """Print each check; 1 if any fails."""
    results = json.loads((Path(data_dir) / "runs/hangar/results/01_train_classifier.json").read_text(encoding="utf-8"))
    accuracy = results["test/variant/class_averaged_accuracy"]
    sae = json.loads((Path(data_dir) / "runs/hangar/results/03_train_sae.json").read_text(encoding="utf-8"))
    sae = {name: entry["value"] for name, entry in sae.items()}
    features, ablation = {}, {}
    for name, found in (("04_inspect_features", features), ("05_ablate_features", ablation)):
        text = (Path(data_dir) / f"runs/hangar/results/{name}.json").read_text(encoding="utf-8")
        found |= {key: entry["value"] for key, entry in json.loads(text).items()}
    nulls = max(value for name, value in features.items() if name.startswith("null/"))
    report = Path(data_dir) / "runs/hangar/report/index.html"
    notebooks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(report.parent.glob("*.ipynb"))]
    memory = max((each["metadata"]["aircraft_sae"]["peak_memory_bytes"] for each in notebooks), default=0)
    checks = [
        (f"the run took {first} s, at most {MAX_FIRST}", int(first) <= MAX_FIRST),
        (f"the second run took {second} s, at most {MAX_SECOND}", int(second) <= MAX_SECOND),
        (
            f"class-averaged test accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
            f"n = {accuracy['n']}, at least {LEAST_ACCURACY}",
            accuracy["value"] >= LEAST_ACCURACY,
        ),
        (f"training took {results['train_seconds']['value']:.0f} s", True),
        (f"rendering took {results['render_seconds']['value']:.0f} s", True),
        (f"explained variance {sae['explained_variance']:.3f}, at least 0.85", sae["explained_variance"] >= 0.85),
        (f"at {sae['l0']:.1f} active features a cell, at most 32.5", sae["l0"] <= 32.5),
        (f"dead features {sae['dead_share']:.3f}, at most 0.05", sae["dead_share"] <= 0.05),
        (f"test / train fvu {sae['test_train_fvu_ratio']:.3f}, at most 1.12", sae["test_train_fvu_ratio"] <= 1.12),
        (f"splicing changes {sae['top1_change_points']:.2f} points, at least -2", sae["top1_change_points"] >= -2),
        (f"training the autoencoder took {sae['train_seconds']:.0f} s", True),
        (
            f"mean AP of parts {features['mean_part_ap']:.2f}, of nulls at most {nulls:.2f}, at most 0.75 of it",
            nulls <= 0.75 * features["mean_part_ap"],
        ),
        (
            f"labels in random order: {features['shuffled_share_below_0.05']:.3f} have p < 0.05, 0.03 to 0.07 do",
            0.03 <= features["shuffled_share_below_0.05"] <= 0.07,
        ),
        (
            f"closed form against forward pass {ablation['suppress_max_abs_error']:.1e}, at most 1e-5",
            ablation["suppress_max_abs_error"] <= 1e-5,
        ),
        (
            f"parts at tier 2, 3, 4: {ablation['parts_at_tier_2']}, {ablation['parts_at_tier_3']}, "
            f"{ablation['parts_at_tier_4']} of {ablation['n_parts']}; at tier 2 of an untrained autoencoder "
            f"{ablation['parts_at_tier_2/null, untrained']}, of random directions "
            f"{ablation['parts_at_tier_2/null, random directions']}, at most 1, of a frozen decoder "
            f"{ablation['parts_at_tier_2/null, frozen decoder']}",
            max(ablation[f"parts_at_tier_2/null, {name}"] for name in ("untrained", "random directions")) <= 1,
        ),
        (
            f"of directions fitted to labels {ablation['probe_parts_at_tier_3']} parts reach tier 3, at least 3 do: "
            "the tests can be passed",
            ablation["probe_parts_at_tier_3"] >= 3,
        ),
        (
            "random directions that pass as a class's: "
            f"{ablation['pass_share/class: null, random directions, no seeds']:.2f}, at most 0.05",
            ablation["pass_share/class: null, random directions, no seeds"] <= 0.05,
        ),
        (
            f"peak memory of a kernel and its workers {memory / 1e9:.2f} GB, at most {MAX_MEMORY / 1e9:g}",
            memory <= MAX_MEMORY,
        ),
        (
            "the report is there, with six notebooks",
            report.is_file() and report.stat().st_size > 10**5 and len(notebooks) == 6,
        ),
        ("the atlas is there", (report.parents[1] / "atlas/index.html").is_file()),
    ]
    for words, passed in checks:
        print("ok  " if passed else "FAIL", words)
    return int(not all(passed for _, passed in checks))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
