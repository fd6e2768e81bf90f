"""What every section of an experiment is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen and strict; the docstring below a key is its description.

    An unknown key is an error, and so is a value of another type: ``"3"``, ``true`` and 3.5 never become 3. A
    key that holds a tuple is ``strict=False``, to take the list that YAML has for it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
