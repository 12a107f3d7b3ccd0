"""Make weights like data/weights/hangar_pretrained from rendered aircraft alone.

    python data/weights/pretrain.py --to weights.safetensors            the second round, on from the shipped weights
    python data/weights/pretrain.py --to weights.safetensors --first    the first round, from nothing
    python data/weights/pretrain.py --to weights.safetensors --from first.safetensors

The taxonomy is another one than the hangar's: 192 made-up variants in 64 families. README.md beside this file tells
what came of it. Pictures and network lie in data/runs/pretraining or data/runs/pretraining-first.
"""

from __future__ import annotations

import argparse
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np

from aircraft_sae.config import ClassifierConfig, DatasetConfig, HangarConfig, StudyConfig
from aircraft_sae.hangar.airframes import ARCHETYPES, VARIANTS, Airframe
from aircraft_sae.study import Study


def airframes(n_families: int = 64, n_variants: int = 3) -> list[Airframe]:
    """Families drawn at random from every archetype, each with variants that change two or three things."""
    rng = np.random.default_rng(20260)
    scaled = ("length", "girth", "span", "chord", "fin_height", "fin_chord", "stab_span", "nose", "tail", "engine_size",
              "propeller", "fin_taper", "canopy_length", "window_pitch", "leg", "wheel")  # fmt: skip
    frames, kinds = [], list(ARCHETYPES)
    for number in range(n_families):
        kind = kinds[number % len(kinds)]
        base = Airframe(**ARCHETYPES[kind])
        base = replace(base, **{name: float(getattr(base, name) * rng.uniform(0.8, 1.25)) for name in scaled})
        sweep, fin_sweep = base.sweep + float(rng.uniform(-5, 9)), base.fin_sweep + float(rng.uniform(-10, 10))
        dihedral, nose = base.dihedral + float(rng.uniform(-2, 3)), float(rng.uniform(1.5, 2.5))
        base = replace(base, sweep=sweep, fin_sweep=fin_sweep, dihedral=dihedral, nose_power=nose)
        # some families leave their archetype: another wing height, tail or engine layout
        if rng.random() < 0.5:
            base = replace(base, **_odd(base, rng))
        for i in range(n_variants):
            frame = replace(base, length=base.length * (0.8, 1.0, 1.25)[i])
            for change in rng.permutation(4)[:2]:
                frame = replace(frame, **_twist(frame, int(change), rng))
            family = f"P{number:02d}"
            names = {"variant": f"{family}-{i + 1}", "family": family, "manufacturer": f"Works {number // 4 + 1}"}
            frames.append(replace(frame, **names))
    return frames


def _odd(a: Airframe, rng: np.random.Generator) -> dict:
    choices = [dict(wing_height=str(rng.choice(["low", "mid", "high"])))]
    if not a.twin_fin:
        choices.append(dict(tail_kind=str(rng.choice(["conventional", "t", "cruciform"]))))
        choices.append(
            dict(twin_fin=str(rng.choice(["plate", "canted"])), tail_kind="conventional", fin_height=a.fin_height * 0.8)
        )
    if a.wing_jets:
        choices.append(dict(wing_jets=(0.3, 0.58) if len(a.wing_jets) == 1 else (0.33,)))
    if a.wing_props:
        choices.append(dict(wing_props=(0.24, 0.5) if len(a.wing_props) == 1 else (0.3,)))
    if a.gear != "retractable":
        choices.append(dict(gear="retractable"))
    return choices[rng.integers(len(choices))]


def _twist(a: Airframe, change: int, rng: np.random.Generator) -> dict:
    if change == 0:
        return dict(winglet=str(rng.choice(["none", "blended", "sharklet", "raked", "fence", "tank"])))
    if change == 1:
        return dict(engine_size=a.engine_size * float(rng.choice([0.75, 1.3])), blades=int(rng.integers(2, 7)))
    if change == 2:
        span = a.span * float(rng.choice([0.85, 1.15]))
        return dict(span=span, fairings=int(rng.integers(0, 5)) if a.girth > 2.5 else 0)
    if a.twin_fin:
        return dict(fin_height=a.fin_height * 1.3)
    return dict(tail_kind=str(rng.choice(["conventional", "cruciform", "t"])))


FRAMES = airframes()
# not only when run as a program: the processes that render import this file
VARIANTS.clear()
VARIANTS.update({frame.variant: frame for frame in FRAMES})


def config(first: bool, weights: str) -> StudyConfig:
    """A study of the first round (96 variants at 160 pixels, from nothing), or of the second, on from `weights`."""
    shared = dict(batch_size=64, learning_rate=3e-3, frozen_stages=0, ema_decay=0.999, colour_jitter=0.0)
    rendered = dict(scenes_per_variant=300, seed=1, split_shares=(0.94, 0.03, 0.03))
    if first:
        return StudyConfig(
            name="pretraining-first",
            dataset=DatasetConfig(hangar=HangarConfig(n_variants=96, size=160, **rendered)),
            classifier=ClassifierConfig(
                weights=None, layer_scale=0.5, sizes=(96, 128, 160), epochs=(6, 4, 3), crop_scale=(0.8, 1.0), **shared
            ),
        )
    return StudyConfig(
        name="pretraining",
        dataset=DatasetConfig(hangar=HangarConfig(size=224, **rendered)),
        classifier=ClassifierConfig(weights=weights, epochs=(2, 1), warmup_epochs=0.2, **shared),
    )


def main(arguments: list[str] | None = None) -> None:
    """Render, train, and write the weights."""
    export_weights = runpy.run_path(str(Path(__file__).with_name("export.py")))["export_weights"]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True, type=Path, help="a .safetensors file")
    parser.add_argument("--first", action="store_true", help="the first round")
    parser.add_argument(
        "--from", dest="weights", default="hangar_pretrained", help="weights that the second goes on from"
    )
    given = parser.parse_args(arguments)
    study = Study.open(config(given.first, given.weights))
    print(study.network().predictions.eval("label == predicted").mean(), "of the test pictures are right")
    export_weights(study.folder / "networks" / "trained", given.to, data="the hangar's pretraining taxonomy")


if __name__ == "__main__":
    main()
