"""A product as the shop knows it, read from a record of WebShop's product file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envs.encodable import encodable

DEFAULT_PRICE = 100.0
NO_ATTRIBUTES = ("DUMMY_ATTR",)
MAX_ASIN_LENGTH = 10

_NOT_PRICE = re.compile(r"[^\d.]")


class MalformedRecordError(ValueError):
    """A record that does not describe a product; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a shopper asks for, without price. ``options``: the values wanted, in a person's instruction."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Product:
    """``pricing``: one price, or two between which the price is drawn (in either order), in dollars.

    ``options``: the values to choose from by option name, in the order of the page. ``instruction`` is the
    one that goals over all option values are made of, ``human_instructions`` are those of people.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_tag: str
    pricing: tuple[float, ...]
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    instruction: Instruction | None = None
    human_instructions: tuple[Instruction, ...] = field(default=())

    @property
    def search_text(self) -> str:
        """What the search engine indexes: title, description, first bullet and all option values."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        first_bullet = self.bullets[0] if self.bullets else ""
        return " ".join((self.title, self.description, first_bullet, options)).lower()

    @property
    def all_bullets(self) -> str:
        """The bullet points as one text."""
        return " ".join(self.bullets)


def read_product(record: Any, annotations: Mapping[str, Any], human: Mapping[str, Any]) -> Product:
    """The product of ``record``, with what both instruction files say of it by asin.

    Raises MalformedRecordError.
    """
    if not isinstance(record, Mapping):
        raise MalformedRecordError(f"not an object but {type(record).__name__}")
    asin = _text(record, "asin")
    price_tag, pricing = _prices(record.get("pricing"))
    annotation = annotations.get(asin, {})
    if not isinstance(annotation, Mapping):
        raise MalformedRecordError("its entry among the instructions is not an object")
    bullets = record.get("small_description")
    return Product(
        asin=asin,
        title=_text(record, "name"),
        description=_text(record, "full_description"),
        bullets=_texts("small_description", bullets if isinstance(bullets, list) else [bullets]),
        price_tag=price_tag,
        pricing=pricing,
        options=_options(record.get("customization_options")),
        attributes=(
            _texts("attributes", annotation["attributes"]) if "attributes" in annotation else NO_ATTRIBUTES
        ),
        category=_text(record, "category"),
        query=_text(record, "query").lower().strip(),
        product_category=_text(record, "product_category"),
        instruction=_instruction(annotation),
        human_instructions=_human_instructions(human.get(asin, ())),
    )


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise MalformedRecordError(f"{key} is {value!r:.40}, expected text")
    return encodable(value)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise MalformedRecordError(f"{name} is {values!r:.60}, expected a list of texts")
    return tuple(map(encodable, values))


def _prices(pricing: Any) -> tuple[str, tuple[float, ...]]:
    """``(price tag, one or two prices)`` of texts such as ``$16.00 - $24.99``."""
    if not pricing:
        return f"${DEFAULT_PRICE}", (DEFAULT_PRICE,)
    try:
        prices = tuple(float(_NOT_PRICE.sub("", part)) for part in pricing.split("$")[1:])[:2]
    except (AttributeError, TypeError, ValueError):
        prices = ()
    if not prices or not all(map(math.isfinite, prices)):
        raise MalformedRecordError(f"pricing is {pricing!r:.40}, expected amounts such as $9.99")
    return " to ".join(f"${price}" for price in prices), prices


def _options(customization: Any) -> dict[str, tuple[str, ...]]:
    """Option names and values in lower case; names without values are left out."""
    if not customization:
        return {}
    if not isinstance(customization, Mapping):
        raise MalformedRecordError(f"customization_options is {customization!r:.40}, expected an object")
    options: dict[str, tuple[str, ...]] = {}
    for name, contents in customization.items():
        if contents is None:
            continue
        try:
            values = tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
        except (TypeError, KeyError, AttributeError) as error:
            raise MalformedRecordError(f"customization_options {name!r} is not a list of values") from error
        options[encodable(name).lower()] = tuple(map(encodable, values))
    return options


def _instruction(annotation: Mapping[str, Any]) -> Instruction | None:
    text = annotation.get("instruction")
    if text is None:
        return None
    attributes = _texts("instruction_attributes", annotation.get("instruction_attributes"))
    if not isinstance(text, str) or not attributes:
        raise MalformedRecordError("its instruction is not a text with attributes")
    return Instruction(encodable(text), attributes)


def _human_instructions(entries: Any) -> tuple[Instruction, ...]:
    if not isinstance(entries, list | tuple):
        raise MalformedRecordError("its entry among people's instructions is not a list")
    instructions = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise MalformedRecordError("an instruction of a person is not an object")
        instructions.append(
            Instruction(
                _text(entry, "instruction"),
                _texts("instruction_attributes", entry.get("instruction_attributes")),
                _texts("instruction_options", entry.get("instruction_options")),
            )
        )
    return tuple(instructions)
