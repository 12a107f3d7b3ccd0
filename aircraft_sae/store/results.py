"""Numbers that notebooks report, as plain entries of value, low, high and n."""

import math
from collections.abc import Mapping
from typing import Any

ENTRY = ("value", "low", "high", "n")


def entries(results: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """{name: {value, low, high, n}} of six significant digits: further ones differ between machines.

    Each is given as a value, or (value, low, high, n) or a dict of these, with None where low, high or n mean nothing.
    Raises: ValueError for what is not that, or not finite.
    """
    flat = {}
    for name, given in results.items():
        if isinstance(given, tuple) and len(given) == len(ENTRY):
            given = dict(zip(ENTRY, given, strict=True))
        elif not isinstance(given, dict):
            given = dict.fromkeys(ENTRY) | {"value": given}
        if set(given) != set(ENTRY):
            raise ValueError(f"{name} must have {', '.join(ENTRY)}, got {', '.join(given)}")
        flat[name] = {key: _number(f"{name} ({key})", given[key], key != "value") for key in ENTRY}
    return flat


def _number(name: str, value: Any, optional: bool) -> float | int | None:
    if value is None and optional:
        return None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value if isinstance(value, int) else float(f"{value:.6g}")
