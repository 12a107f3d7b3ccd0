"""What is on disk: stage folders, files written whole or not at all, training checkpoints, and digests of content."""

# ruff: noqa: I001
from aircraft_sae.store.files import (
    ENTRY, META, check_room, data_folder, digest, entries, make_parents, read_json, sha256, shipped,
    source_digest, write_array, write_json, write_parquet, write_text, write_whole,
)  # fmt: skip
from aircraft_sae.store.stages import PROGRESS, REPLACED, Stage, load_meta, make_stage, say, stage_metas, watched
