"""What the sections of a run file have in common: strictness, shared types, and descriptions from the method's own."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a run file: no unknown keys, no silent conversions, nothing changed after it was read.

    The string below a key is its description; an inherited key keeps its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def setting(settings: type, name: str) -> Any:
    """Default and description of a key that fills an attribute of a dataclass of `fmwsss.core`, where both stand.

    Args:
        settings: the dataclass; its docstring describes the attribute under `Attributes:`.
        name: of the attribute.
    """
    default = settings.__dataclass_fields__[name].default
    section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")[2]
    found = re.search(rf"^    {name}: (.*?)(?=^    \w|\Z)", section, re.DOTALL | re.MULTILINE)
    text = " ".join(found[1].split()).replace("None", "null") if found else None
    return Field(default=default, description=text and text[0].upper() + text[1:])


Share = Annotated[float, Field(ge=0, le=1)]


def _percent(value: Any) -> Any:
    """`1 %` as the share that it is; anything else as it came."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            return float(value.rstrip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


Percentage = Annotated[Share, BeforeValidator(_percent, json_schema_input_type=Share | str)]


Count = Annotated[int, Field(ge=1)]
