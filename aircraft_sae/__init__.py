"""What does a fine-grained aircraft classifier look at, and how sure can we be?

A map, from the ground up: `config` (what a study is), `devices` (CPU or GPU), `ranks` (several processes at one
stage), `store` (stage folders on disk, checkpoints, digests), `metrics` (pure functions); `hangar` (rendered aircraft
with exact part masks); `sae` (sparse autoencoders and their training); `pictures` (sets of pictures); `networks`
(built, trained, opened at sites); `activations` (of any sites, on disk or seen when needed); `features` (what each
feature fires on, how good a reconstruction is); `interventions` (what it does: suppression, blurring, scene edits);
`studies` (of the further notebooks: networks compared, features turned like knobs, curve detectors, branches); `study`
(the front door: Study.open("hangar") loads or runs each stage); `view` (figures, browser, atlas, report); `make`
(one stage, by the command); `__main__` (the command, which runs notebooks). An import goes only down this list. The
notebooks tell the story; nothing imports them.
"""

__version__ = "0.2.0"
