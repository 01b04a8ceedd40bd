"""Small encoded images for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """An array as PNG."""
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image in a format such as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


CRASHING = b"crashes whoever decodes it"  # behind an image: Pillow ignores it, `crashing_decoder` does not


def crashing_decoder(folder: Path) -> str:
    """A folder to put on a path of modules, with which Pillow dies of SIGSEGV over images that end in CRASHING."""
    code = f"""
import os, signal, tempfile
from PIL import Image
real_open = Image.open
def crash_or_open(file, *arguments, **options):
    data = file.getvalue() if hasattr(file, "getvalue") else b""
    if data.endswith({CRASHING!r}):
        tempfile.mkstemp(prefix="crash-", dir={str(folder)!r})
        os.kill(os.getpid(), signal.SIGSEGV)
    return real_open(file, *arguments, **options)
Image.open = crash_or_open
"""
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(code)
    return str(folder / "path")
