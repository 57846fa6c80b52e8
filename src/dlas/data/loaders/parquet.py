"""Parquet in the Hugging Face layout: a struct column ``{bytes, path}``, integer labels, class names in metadata.

Who speaks, where a column says it, becomes a group of the Dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DataError
from dlas.core.lazy import optional_import
from dlas.data.dataset import Dataset, DatasetFacts, Loader, loaders
from dlas.data.loaders._bounds import check_size, split_in_name

_SAMPLE_NAMES = ("image", "img", "picture", "audio")
_STEP = 16  # rows read at once
_GROUP_NAMES = ("speaker", "speaker_id", "client_id")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


@loaders.register("parquet")
class Parquet(Loader):
    """Encoded samples (images or recordings) with or without class labels."""

    name = "parquet"
    summary = "Parquet table in the Hugging Face layout: encoded images or WAV recordings"
    suffixes = (".parquet",)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Files that end in ``.parquet``."""
        return path.suffix.lower() in cls.suffixes and path.is_file()

    def load(self, path: Path) -> Dataset:
        """Samples as bytes; tables without a label column become unlabelled data sets.

        Raises:
            DataError: Not Parquet, truncated, no column of encoded samples, empty rows, or labels outside the classes.
        """
        file = _open(path)
        schema = file.schema_arrow
        sample, label = _sample_column(schema, path), _label_column(schema)
        meta = file.metadata
        check_size(path, sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)))
        groups = _group_columns(schema)
        columns = [sample, *([label] if label else []), *groups]
        table = _guarded(path, lambda: _rows(file, columns, path))
        samples = _bytes_of(table.column(sample), path, sample)
        classes = _class_names(schema, label)
        labels = _labels_of(table.column(label), path, label, classes) if label else None
        task = "none" if labels is None else "classify"
        tied = {name: _texts_of(table.column(name), path, name) for name in groups}
        return Dataset(path.stem, samples, labels, classes, task, f"{path.name}: {sample}", groups=tied)

    def describe(self, path: Path) -> DatasetFacts:
        """Rows, columns and class names from the footer."""
        file = _open(path)
        schema = file.schema_arrow
        try:
            _sample_column(schema, path)
            problem = ""
        except DataError as error:
            problem = error.message
        return DatasetFacts(
            path.stem,
            str(path),
            self.name,
            file.metadata.num_rows,
            tuple(schema.names),
            _class_names(schema, _label_column(schema)),
            path.stat().st_size,
            split_in_name(path),
            problem,
        )


def _guarded(path: Path, step: Any) -> Any:
    arrow = optional_import("pyarrow", extra="all", needed_for="reading Parquet")
    try:
        return step()
    except (arrow.ArrowException, OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as Parquet: {cause}", "is the file complete?") from error


def _open(path: Path) -> Any:
    parquet = optional_import("pyarrow.parquet", extra="all", needed_for="reading Parquet")
    return _guarded(path, lambda: parquet.ParquetFile(path))


def _rows(file: Any, columns: list[str], path: Path) -> Any:
    """All rows, a few at a time: one stored value can stand for any number of them, and the footer may lie."""
    import pyarrow as pa

    held, batches = 0, []
    for batch in file.iter_batches(batch_size=_STEP, columns=columns):
        held += batch.nbytes
        check_size(path, held)
        batches.append(batch)
    return pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name) for name in columns]))


def _sample_column(schema: Any, path: Path) -> str:
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            at = kind.get_field_index("bytes")
            return at >= 0 and holds_bytes(kind.field(at).type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    fitting = [field.name for field in schema if holds_bytes(field.type)]
    for name in (*_SAMPLE_NAMES, *fitting):
        if name in fitting:
            return name
    raise DataError(
        f"{path.name} has no column of encoded samples; its columns are "
        + ", ".join(f"{field.name} ({field.type})" for field in schema),
        "expected a column `image` with {bytes, path}",
    )


def _label_column(schema: Any) -> str:
    import pyarrow.types as types

    whole = [field.name for field in schema if types.is_integer(field.type)]
    return next((name for name in _LABEL_NAMES if name in whole), "")


def _group_columns(schema: Any) -> list[str]:
    import pyarrow.types as types

    def fits(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)

    return [field.name for field in schema if field.name in _GROUP_NAMES and fits(field.type)]


def _texts_of(column: Any, path: Path, name: str) -> np.ndarray:
    if column.null_count:
        raise DataError(f"{path.name}: {column.null_count} rows have no {name}", "remove or complete them")
    return np.array([str(value) for value in column.to_pylist()])


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        names = json.loads(text)["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError):
        return ()  # the table was written without class names


def _bytes_of(column: Any, path: Path, name: str) -> list[bytes]:
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        at = column.type.get_field_index("bytes")
        # flatten() carries the nulls of the struct over to its fields, which field() does not.
        column = pa.chunked_array(
            [chunk.flatten()[at] for chunk in column.chunks], column.type.field(at).type
        )
    samples = column.to_pylist()
    for row, sample in enumerate(samples):
        if not sample:
            raise DataError(
                f"{path.name}: row {row} has no {name} bytes", "tables that hold paths only are not read"
            )
    return samples


def _labels_of(column: Any, path: Path, name: str, classes: tuple[str, ...]) -> np.ndarray | None:
    if column.null_count:
        raise DataError(f"{path.name}: {column.null_count} rows have no {name}", "remove or label them")
    labels = column.to_numpy().astype(np.int64)
    if len(labels) and (labels == -1).all():  # the convention for a test set whose labels are kept back
        return None
    low, high = (labels.min(initial=0), labels.max(initial=0))
    if low < 0 or (classes and high >= len(classes)):
        accepted = f"0..{len(classes) - 1}" if classes else "0 and up"
        raise DataError(f"{path.name}: {name} goes from {low} to {high}, expected {accepted}")
    return labels
