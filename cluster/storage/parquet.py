"""Tables as Parquet bytes and back: the same rows give the same bytes, and a bit that changed is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fmwsss.cluster.storage.storage_errors import DamagedFile, is_transient

T = TypeVar("T")
READING: dict[str, Any] = {"page_checksum_verification": True, "pre_buffer": True}


def table_bytes(table: pa.Table | Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """A table, or rows, as a Parquet file of a schema; the same rows give the same bytes.

    Args:
        table: a table or rows.
        schema: of the file.

    Returns:
        A whole Parquet file, with checksums in its pages.
    """
    given: Any = table  # pyarrow has no types that a checker could narrow by
    rows = given if isinstance(given, pa.Table) else pa.Table.from_pylist([*given], schema=schema)
    # The least and the greatest of encoded images are images: a part of one row would hold it five times.
    of_use = [field.name for field in schema if not pa.types.is_nested(field.type) and not _is_binary(field.type)]
    statistics: Any = of_use or False
    sink = BytesIO()
    # Encoded images and ids don't repeat: a dictionary would only cost time.
    pq.write_table(
        rows.select(schema.names).cast(schema), sink, compression="zstd", use_dictionary=False,
        write_statistics=statistics, write_page_checksum=True,
    )  # fmt: skip
    return sink.getvalue()


def parse_table(data: bytes, name: str) -> pa.Table:
    """The table of a Parquet file whose bytes are here; `name` is for the error, as of `Folder.read_table`.

    Args:
        data: a whole Parquet file.
        name: of the file.

    Returns:
        All columns.
    """
    return checked(lambda: pq.read_table(BytesIO(data), **READING), name)


def checked(call: Callable[[], T], path: str) -> T:
    """What a call of Arrow on a file returns.

    Args:
        call: reads the file.
        path: of the file, for the message.

    Returns:
        What the call returned.

    Raises:
        DamagedFile: the bytes of the file are to blame.
        OSError: the store is.
    """
    try:
        return call()
    except pa.ArrowInvalid as error:
        raise DamagedFile(f"can't read {path}: it is no Parquet file with these columns") from error
    except OSError as error:
        # Arrow's own, of pages that can't be unpacked or have another checksum; those of a system have a number.
        if type(error) is OSError and error.errno is None and not is_transient(error):
            raise DamagedFile(f"can't read {path}: its bytes are not those that were written") from error
        raise


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
