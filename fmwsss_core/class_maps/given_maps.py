"""Class maps that somebody else made, read from their files (method M11); needs no torch."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from fmwsss.core.class_maps.maps import ClassMaps, min_max
from fmwsss.core.errors import InputError
from fmwsss.core.vocabulary import Vocabulary

# By what name the programs of the field write their maps, in the order of preference.
MAPS_KEYS = ("maps", "attn_highres", "high_res", "refined_cam", "cam")
# What a pickled array is made with; nothing else is looked up, so nothing else can be called.
_ARRAY_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays in Python's own containers, and refuses everything else before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        """The one way in which a pickle reaches code.

        Args:
            module: that the file names.
            name: of what it wants of it.

        Raises:
            pickle.UnpicklingError: it is no part of an array.
        """
        try:
            return _ARRAY_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it holds {module}.{name}; only numpy arrays are read") from None


def read_arrays(data: bytes) -> dict[str, Any]:
    """The arrays of an .npz, or of an .npy whose one entry is a dictionary (as CLIP-ES and IRN write theirs).

    No code of a file is run.

    Raises:
        ValueError: neither, or a dictionary with more than arrays in it.
    """
    try:
        if data[:2] == b"PK":
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return dict(arrays)
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if shape == () and dtype.hasobject:
            content = _ArrayUnpickler(stream).load().item()
            if isinstance(content, dict):
                return content
    # A broken pickle or archive may raise nearly anything.
    except Exception as error:
        raise InputError(f"it cannot be read as .npy or .npz: {error}") from None
    raise InputError("it is neither an .npz nor an .npy that holds a dictionary")


def given_maps(
    content: Mapping[str, Any], class_names: Sequence[str], vocabulary: Vocabulary, first_key: int = 0
) -> ClassMaps:
    """The maps of an image's classes from what its file holds.

    Args:
        content: `keys`, the class of each map: names, or numbers counted from `first_key`; and the maps under one of
            MAPS_KEYS, classes x height x width. Classes that are not asked for may be in it.
        class_names: of the image.
        vocabulary: of the run.
        first_key: number of the first class that is not background: 0 in CLIP-ES and IRN.

    Returns:
        maps from 0 to 1, in the order of `class_names`.

    Raises:
        ValueError: no keys or maps, not one map for each key, a class without a map, or a value that is not finite.
    """
    name = next((name for name in MAPS_KEYS if name in content), None)
    if name is None or "keys" not in content:
        raise InputError(f"it needs `keys` and one of {', '.join(MAPS_KEYS)}; it has {', '.join(map(str, content))}")
    keys, maps = np.atleast_1d(np.asarray(content["keys"])), np.asarray(content[name])
    if maps.ndim != 3 or len(maps) != len(keys) or not np.issubdtype(maps.dtype, np.number):
        raise InputError(f"`{name}` of shape {maps.shape} is no map of height x width for each of {len(keys)} keys")
    of_class = {}
    for row, key in enumerate(keys.tolist()):
        index = vocabulary.index(key) if isinstance(key, str) else int(key) - first_key + 1
        of_class[index] = row
    rows = []
    for class_name in class_names:
        row = of_class.get(vocabulary.index(class_name))
        if row is None:
            raise InputError(f"it has no map of class {class_name!r}")
        rows.append(row)
    chosen: Float32[np.ndarray, "present height width"] = maps[rows].astype(np.float32)
    if not np.isfinite(chosen).all():
        raise InputError("a map holds a value that is not finite")
    return ClassMaps(min_max(chosen), None)
