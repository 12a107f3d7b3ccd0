"""What a person says of features: a small table on disk, written at each change, shared by all who have it open."""

from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from unicodedata import category

import pandas as pd
from filelock import FileLock

from aircraft_sae.store import LABELS, digest, write_text

COLUMNS = {"autoencoder": str, "feature_id": int, "label": str, "note": str, "rating": int, "changed": str}
MOST = {"label": 200, "note": 5000}  # characters
NOTHING = {"label": "", "note": "", "rating": 0}


class Labels:
    """Labels, notes and ratings (1 to 5, 0 for none) of one autoencoder's features, in `folder`/labels.csv.

    Rows of other autoencoders stay in the file and are not shown.
    """

    def __init__(self, folder: str | Path, autoencoder: str):
        self.path, self.autoencoder = Path(folder) / LABELS, autoencoder

    def all(self) -> dict[int, dict[str, str | int]]:
        """{feature_id: {label, note, rating}} as on disk now. ValueError where the file is no such table."""
        table = self._read()
        return table[table["autoencoder"] == self.autoencoder].set_index("feature_id")[[*NOTHING]].to_dict("index")

    def stamp(self) -> str:
        """Differs once the file holds something else."""
        return digest(self.path if self.path.is_file() else None)

    def set(self, feature_id: int, **said: str | int) -> dict[str, str | int]:
        """Change some of label, note and rating, and write all to disk; what others wrote meanwhile is kept.

        Raises: ValueError for another word, a rating that is not 0 to 5, or a text that is too long or holds control
        characters.
        """
        if not _whole(feature_id) or feature_id < 0:
            raise ValueError(f"a feature is a whole number from 0, got {feature_id!r}")
        said = {name: _checked(name, value) for name, value in said.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            table = self._read()
            own = (table["autoencoder"] == self.autoencoder) & (table["feature_id"] == feature_id)
            now = self.all().get(feature_id, NOTHING) | said
            table = table[~own]
            if any(now.values()):
                changed = datetime.now(UTC).isoformat(timespec="seconds")
                row = [self.autoencoder, int(feature_id), *now.values(), changed]
                table = pd.concat([table, pd.DataFrame([row], columns=[*COLUMNS])])
            write_text(self.path, table.to_csv(index=False))
        return now

    def _read(self) -> pd.DataFrame:
        if not self.path.is_file():
            return pd.DataFrame(columns=[*COLUMNS])
        try:
            return pd.read_csv(self.path, dtype=COLUMNS, keep_default_na=False)[[*COLUMNS]]
        except (KeyError, ValueError) as error:  # of a column, of text that is no UTF-8
            raise ValueError(f"{self.path} is no table of labels ({error}): mend it, or move it away") from error


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _checked(name: str, value: str | int) -> str | int:
    if name not in NOTHING:
        raise ValueError(f"a feature has a label, a note and a rating, no {name!r}")
    if name == "rating":
        if not _whole(value) or not 0 <= value <= 5:
            raise ValueError(f"rating must be a whole number from 0 (none) to 5, got {value!r}")
        return int(value)
    if not isinstance(value, str) or len(value) > MOST[name]:
        raise ValueError(f"{name} must be a text of at most {MOST[name]} characters, got {str(value)[:40]!r} …")
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a lone carriage return would make a table of no use
    if odd := [c for c in value if category(c) in ("Cc", "Cs") and c not in "\n\t"]:
        raise ValueError(f"{name} holds the control character {odd[0]!r}: take it out")
    return value
