"""The pages of the shop as their visible texts, and the two ways in which the original shows them as text.

A page is the list of its texts in document order. The original renders HTML and parses it again; what that
does to a text is done here too: white space alone becomes one blank, or nothing where it holds a line break.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from envs.webshop.products import Product

PRODUCTS_PER_PAGE = 10
SEPARATOR = " [SEP] "

BACK_TO_SEARCH, NEXT_PAGE, PREVIOUS_PAGE, BUY_NOW = "Back to Search", "Next >", "< Prev", "Buy Now"
DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES = "Description", "Features", "Reviews", "Attributes"
SEARCH = "Search"
SUB_PAGES = (DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES)

_HTML_SPACE = " \n\t\f\r"
_ESCAPED_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


class Kind(Enum):
    """What a text is on its page; all but plain text can be clicked."""

    TEXT = auto()
    BUTTON = auto()
    PRODUCT = auto()
    OPTION = auto()


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a page. ``option_name`` is the name of the option that an option value belongs to."""

    text: str
    kind: Kind = Kind.TEXT
    option_name: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """The texts of a page, and whether it has a search bar."""

    texts: tuple[Text, ...]
    has_search_bar: bool = False

    def clickables(self) -> dict[str, Text]:
        """What can be clicked, by the name to click: buttons, then products, then option values.

        An option value that stands under two names, or is called like a button, is clicked as the last one.
        """
        clickable: dict[str, Text] = {}
        for kind in (Kind.BUTTON, Kind.PRODUCT, Kind.OPTION):
            for text in self.texts:
                if text.kind is kind:
                    clickable[text.text if kind is Kind.OPTION else text.text.lower()] = text
        return clickable

    def observation(self) -> str:
        """The page in the original's mode ``text``."""
        return SEPARATOR.join(shown.strip() for _, shown in self._visible())

    def rich_observation(self, url: str, opened_asins: Iterable[str]) -> str:
        """The page in the original's mode ``text_rich``, which marks what can be and what was clicked."""
        opened = set(opened_asins)
        chosen: list[str] = []
        lines: list[str] = []
        for text, shown in self._visible():
            if text.kind is Kind.BUTTON:
                lines.append(f"[button] {shown} [button_]")
            elif text.kind is Kind.OPTION:
                clicked = "clicked " if f'"{shown}"' in url else ""
                if clicked:
                    chosen.append(f"You have clicked {shown}.")
                lines.append(f"  [{clicked}button] {shown} [{clicked}button_]")
            elif text.kind is Kind.PRODUCT:
                clicked = "clicked " if shown in opened else ""
                lines.append(f"\n[{clicked}button] {shown} [{clicked}button_]")
            else:
                lines.append(shown)
        return "".join(f"{line}\n" for line in [*reversed(chosen), *lines])

    def _visible(self) -> Iterable[tuple[Text, str]]:
        for text in self.texts:
            shown = text.text
            if not shown.strip(_HTML_SPACE):
                if not shown or "\n" in shown:
                    continue
                shown = " "
            yield text, shown


def index_page(instruction: str) -> Page:
    """Where an episode begins: the search bar."""
    texts = (Text("WebShop"), Text("Instruction: "), Text(instruction), Text(SEARCH, Kind.BUTTON))
    return Page(texts, has_search_bar=True)


def results_page(instruction: str, products: Sequence[Product], page: int, total: int) -> Page:
    """The products of result page ``page``, out of ``total`` found. There is always a next page."""
    texts = [*_heading(instruction), Text(f"Page {page} (Total results: {total})")]
    if page > 1:
        texts.append(Text(PREVIOUS_PAGE, Kind.BUTTON))
    texts.append(Text(NEXT_PAGE, Kind.BUTTON))
    for product in products:
        texts += [Text(product.asin, Kind.PRODUCT), Text(product.title), Text(product.price_tag)]
    return Page(tuple(texts))


def item_page(instruction: str, product: Product) -> Page:
    """A product with its options. What is chosen does not show."""
    texts = [*_heading(instruction), Text(PREVIOUS_PAGE, Kind.BUTTON)]
    for name, values in product.options.items():
        texts.append(Text(name))
        texts += [Text(value, Kind.OPTION, name) for value in values]
    texts += [Text(product.title), Text(f"Price: {product.price_tag}"), Text("Rating: N.A.")]
    texts += [Text(label, Kind.BUTTON) for label in (DESCRIPTION, FEATURES, REVIEWS, BUY_NOW)]
    return Page(tuple(texts))


def sub_page(instruction: str, product: Product, name: str) -> Page:
    """One of `SUB_PAGES` of a product. There are no reviews."""
    if name == DESCRIPTION:
        body = [product.description]
    elif name == FEATURES:
        body = [f" {bullet}" for bullet in product.bullets]
    elif name == ATTRIBUTES:
        body = [f" {attribute}" for attribute in product.attributes]
        body += [product.category, product.query, product.product_category]
    else:
        body = []
    return Page((*_heading(instruction), Text(PREVIOUS_PAGE, Kind.BUTTON), *map(Text, body)))


def done_page(asin: str, options: Mapping[str, str], reward: float) -> Page:
    """What follows a purchase."""
    options_json = json.dumps(dict(options), sort_keys=True).translate(_ESCAPED_IN_SCRIPT)
    return Page(
        tuple(
            Text(text)
            for text in (
                *(
                    "Thank you for shopping with us!",
                    "Your code: ",
                    "None",
                    " (Paste it in your MTurk interface.)",
                ),
                *("Purchased", "asin", asin, "options", options_json, "attrs", "None", "category", "None"),
                *("query", "None", "product category", "None"),
                *("Target", "asin", "options", "attrs", "price upper", "instuction text", "category"),
                *("product category", "query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)"),
                *(str(reward), "Reward Details ", "None"),
            )
        )
    )


def _heading(instruction: str) -> tuple[Text, ...]:
    return Text("Instruction:"), Text(instruction), Text(BACK_TO_SEARCH, Kind.BUTTON)
