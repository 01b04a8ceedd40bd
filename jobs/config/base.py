"""What the sections of a run file have in common: strictness and shared types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a run file: no unknown keys, no silent conversions, nothing changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Share = Annotated[float, Field(ge=0, le=1)]


def _percent(value: Any) -> Any:
    """`1 %` as the share that it is; anything else as it came."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            return float(value.rstrip().removesuffix("%")) / 100
        except ValueError:
            return value
    return value


Percentage = Annotated[Share, BeforeValidator(_percent)]


Count = Annotated[int, Field(ge=1)]
