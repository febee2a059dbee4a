"""Which column of a Parquet file holds the images: encoded bytes, Hugging Face's `struct<bytes, path>`, or paths."""

from typing import Any

import pyarrow as pa

from serving.batch.source import SourceError

PATH_NAMES = frozenset(
    {"path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path", "url", "uri"}
)


def image_column(schema: pa.Schema, column: str | None, what: str) -> str:
    """The one that was asked for, or the only one that can be it.

    Raises:
        SourceError: if it is not there or holds something else, or if several can be it; they are named.
    """
    if column is not None:
        field = _field(schema, column, what)
        if not (_holds_bytes(field.type) or is_text(field.type)):
            raise SourceError(
                f"column {column} of {what} must hold bytes, paths or a struct of bytes and path, got {field.type}"
            )
        return column
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    texts = [field.name for field in schema if is_text(field.type)]
    candidates = candidates or [name for name in texts if name.lower() in PATH_NAMES] or texts
    if len(candidates) != 1:
        named = f"several: {', '.join(candidates)}" if candidates else f"only {', '.join(schema.names)}"
        raise SourceError(f"{what} must have one column of images, got {named}; choose one with --column")
    return str(candidates[0])


def check_key_column(schema: pa.Schema, column: str, what: str) -> None:
    """Refuse a column that is not there or has no single value a row.

    Raises:
        SourceError: if it is so.
    """
    kind = _field(schema, column, what).type
    if not (is_text(kind) or pa.types.is_integer(kind)):
        raise SourceError(f"key column {column} of {what} must hold text or whole numbers, got {kind}")


def is_struct(kind: Any) -> bool:
    """Whether a type is Hugging Face's of images and the like."""
    has_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(has_bytes and _is_binary(kind.field("bytes").type))


def is_text(kind: Any) -> bool:
    """Whether a type is text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_bytes(kind: Any) -> bool:
    return is_struct(kind) or _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _field(schema: pa.Schema, column: str, what: str) -> Any:
    if column not in schema.names:
        raise SourceError(f"{what} must have a column {column}, got {', '.join(schema.names)}")
    return schema.field(column)
