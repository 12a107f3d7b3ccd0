"""The hangar: rendered aircraft whose every pixel's part is known. Knows nothing of torch.

`airframes` names the variants, `meshes` builds them, `scene` samples and edits views, `render` casts the rays,
`dataset` writes FGVC-Aircraft's layout.
"""
