"""What does a fine-grained aircraft classifier look at, and how sure can we be?

A map, from the ground up: `config` (what a study is), `devices` (CPU or GPU), `store` (stage folders on disk),
`checkpoint` (of a training), `metrics` (pure functions); `hangar` (rendered aircraft with exact part masks); `data`
(FGVC-Aircraft layout for torch); `sae`, `sae_training` (sparse autoencoders); `classifier` (ConvNeXt); `activations`
(of named sites, on disk); `sae_evaluation` (how good autoencoders are, and baselines); `features` (what each feature
fires on); `ablation` (what it does: suppression, blurring, scene edits); `study` (the front door:
Study.open("hangar") loads or runs each stage); `plots` (figures); `browser` (widgets); `atlas` (the same as static
HTML); `runner` (runs notebooks), `report` (of a run), `__main__` (the command).
An import goes only down this list. The notebooks tell the story; nothing imports them.
"""

__version__ = "0.1.0"
