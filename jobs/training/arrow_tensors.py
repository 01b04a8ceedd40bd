"""Pixels out of a table of Arrow, by one copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

if TYPE_CHECKING:
    from torch import Tensor


def stacked(column: pa.ChunkedArray, *shape: int) -> UInt8[Tensor, "rows *shape"]:
    """A column of bytes, each row `shape` of them, as one tensor.

    Raises:
        ValueError: a row is of another length, or null.
    """
    import torch

    size = math.prod(shape)
    whole = np.empty((len(column), size), dtype=np.uint8)
    begin = 0
    for chunk in column.chunks:
        offset_type = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, offset_type)[chunk.offset : chunk.offset + len(chunk) + 1]
        if chunk.null_count or (np.diff(places) != size).any():
            raise ValueError(f"rows of {size} bytes are expected, not of {np.unique(np.diff(places)).tolist()}")
        if len(chunk):
            rows = np.frombuffer(data, np.uint8)[places[0] : places[-1]]
            whole[begin : begin + len(chunk)] = rows.reshape(len(chunk), size)
        begin += len(chunk)
    return torch.from_numpy(whole.reshape(len(column), *shape))
