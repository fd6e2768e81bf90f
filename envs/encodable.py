"""Text from the web that no tokenizer and no file takes."""

from __future__ import annotations


def encodable(text: str) -> str:
    """``text`` as it can be tokenised and written to a file: half a surrogate pair becomes U+FFFD.

    Titles and descriptions from the web are cut in the middle of such pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
