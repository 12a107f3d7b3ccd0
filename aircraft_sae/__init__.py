"""What does a fine-grained aircraft classifier look at, and how sure can we be?

A map of the package, from the ground up; each module imports only from those before it. `config` (settings of a study
and presets), `devices` (CPU or GPU), `store` (stage folders on disk, checkpoints, digests), `metrics` (pure functions);
`hangar` (rendered aircraft with exact part masks); `sae` (sparse autoencoders and their training); `pictures` (sets of
pictures); `networks` (building, training, activations, edits); `activations` (of any site, stored on disk); `features`
(what each feature fires on, how good a reconstruction is); `interventions` (suppression, blurring, scene edits,
verdicts); `studies` (code for the later notebooks: networks compared, features as knobs, curve detectors,
branches); `study` (the front door: Study.open("hangar") loads or runs each stage); `view` (figures, browser, report);
`__main__` (the command, which runs notebooks). The notebooks tell the story, and nothing imports them.
"""

__version__ = "0.2.0"
