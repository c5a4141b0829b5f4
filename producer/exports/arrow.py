"""What the formats with Parquet files share: pyarrow, which is an extra, and tables of known columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from producer.exports.kinds import Kind, flat
from storage.errors import BadInputError

IMAGE = "image"
_DTYPES = {Kind.BOOL: "bool", Kind.INT: "int64", Kind.FLOAT: "float64"}  # everything else is a string


def check_arrow(layout: str) -> None:
    """Raise BadInputError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415  (slow to import, and an extra)
    except ImportError as error:
        raise BadInputError(
            f"--format {layout} needs the extra parquet; install it with `pip install 'promptmill[parquet]'`."
        ) from error


def table_schema(columns: Mapping[str, Kind], *, image: bool) -> Any:
    """Return the Arrow schema of a table, with the features that `datasets` reads out of it.

    Args:
        columns: the plain ones.
        image: whether there is a column `image`, a struct of bytes and path, ahead of them.
            https://huggingface.co/docs/datasets/about_dataset_features#image-feature
    """
    import pyarrow as pa  # noqa: PLC0415  (slow to import, and an extra)

    dtypes = {name: _DTYPES.get(kind, "string") for name, kind in columns.items()}
    types = {"bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
    fields = [pa.field(name, types[dtype]) for name, dtype in dtypes.items()]
    features: dict[str, Any] = {name: {"dtype": dtype, "_type": "Value"} for name, dtype in dtypes.items()}
    if image:
        kind = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        fields.insert(0, pa.field(IMAGE, kind))
        features = {IMAGE: {"_type": "Image"}, **features}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def table(
    schema: Any,
    columns: Mapping[str, Kind],
    rows: Sequence[Mapping[str, Any]],
    pictures: tuple[Sequence[bytes | None], Sequence[str]] | None = None,
) -> Any:
    """Return an Arrow table of rows.

    Args:
        schema: of `table_schema`.
        columns: the same ones.
        rows: of plain values.
        pictures: bytes and paths of the column `image`, where the schema has it.
    """
    import pyarrow as pa  # noqa: PLC0415  (slow to import, and an extra)

    arrays = [
        pa.array([flat(row.get(name), kind) for row in rows], schema.field(name).type)
        for name, kind in columns.items()
    ]
    if pictures is not None:
        data, paths = pictures
        parts = [pa.array(data, pa.binary()), pa.array(paths, pa.string())]
        arrays.insert(0, pa.StructArray.from_arrays(parts, fields=list(schema.field(IMAGE).type)))
    return pa.Table.from_arrays(arrays, schema=schema)
