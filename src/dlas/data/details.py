"""What one data set holds, samples included: their shapes and how many rows each class has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dlas.core.errors import DataError
from dlas.data.audio.wav import is_wav, read_wav
from dlas.data.dataset import Dataset, DatasetFacts
from dlas.data.find import loader_for, locate
from dlas.data.preprocess import decode

_LOOKED_AT = 16  # encoded samples, spread evenly


@dataclass(frozen=True)
class DatasetDetails:
    """A data set, described.

    Attributes:
        facts: What its metadata say; ``problem`` is why it cannot be used, if it cannot.
        samples: What a sample is: ``8x8x1 uint8``, encoded images and their sizes, or recordings and their lengths.
        class_rows: Rows per class, in index order; empty without labels.
        groups: Rows per group, such as speaker and name.
    """

    facts: DatasetFacts
    samples: str = ""
    class_rows: tuple[int, ...] = ()
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def described(spec: str | Path) -> DatasetDetails | None:
    """Details of the data set that ``spec`` names, as :func:`dlas.data.find.load_dataset` finds it.

    Returns:
        None for a folder that is no data set itself.

    Raises:
        DataError: Not found, of a kind that no loader reads, or not readable at all.
    """
    path = Path("digits") if str(spec) == "digits" else locate(spec, "", None)
    try:
        loader = loader_for(path)
    except DataError:
        if path.is_dir():
            return None
        raise
    facts = loader.describe(path)
    try:
        found = loader.load(path)
    except DataError as error:
        return DatasetDetails(replace(facts, problem=facts.problem or error.message))
    groups = {name: dict(sorted(Counter(own.tolist()).items())) for name, own in found.groups.items()}
    return DatasetDetails(replace(facts, rows=len(found)), _samples(found), _class_rows(found), groups)


def _samples(found: Dataset) -> str:
    if isinstance(found.samples, np.ndarray):
        return f"{'x'.join(map(str, found.samples.shape[1:])) or 'scalar'} {found.samples.dtype}"
    rows = sorted({int(i) for i in np.linspace(0, len(found) - 1, _LOOKED_AT)})
    few = f" ({len(rows)} rows looked at)" if len(rows) < len(found) else ""
    if is_wav(found.samples[0]):
        return _recordings(found, rows) + few
    try:
        images = [decode(found.samples[i], f"{found.name}: row {i}") for i in rows]
    except DataError:
        sizes = [len(s) for s in found.samples]
        return f"encoded, {min(sizes)} to {max(sizes)} bytes each; not all are images"
    sizes = sorted({(i.height, i.width) for i in images}, key=lambda s: s[0] * s[1])
    shown = " to ".join(f"{h}x{w}" for h, w in dict.fromkeys((sizes[0], sizes[-1])))
    kinds = ", ".join(sorted({str(i.format) for i in images}))
    return f"{kinds} images, {shown} (height x width), {', '.join(sorted({i.mode for i in images}))}{few}"


def _recordings(found: Dataset, rows: list[int]) -> str:
    """Rates and lengths of some recordings."""
    try:
        heard = [read_wav(bytes(found.samples[i]), f"{found.name}: row {i}") for i in rows]
    except DataError as error:
        return f"WAV recordings; {error.message}"
    rates = ", ".join(str(rate) for rate in sorted({r.rate for r in heard}))
    lengths = sorted(r.seconds for r in heard)
    return f"WAV recordings, {lengths[0]:.2f} to {lengths[-1]:.2f} s at {rates} Hz"


def _class_rows(found: Dataset) -> tuple[int, ...]:
    if found.labels is None:
        return ()
    return tuple(np.bincount(found.labels, minlength=len(found.classes)).tolist())
