"""Character offsets of sampled token ids in the text they decode to; nothing is tokenised."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_offsets(token_ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The text of ``token_ids`` without special tokens, and one character span ``[start, end)`` per id.

    The text is ``tokenizer.decode(token_ids, skip_special_tokens=True)``, spaces not cleaned up. Spans of
    neighbours overlap where a character is spread over several tokens; special tokens have empty spans.
    Byte-level and SentencePiece-like tokenizers cost one table look-up per id; every result is checked
    against the tokenizer's own text, and any other tokenizer is decoded prefix by prefix (quadratic).
    """
    ids = [int(token_id) for token_id in token_ids]
    text = _decode(tokenizer, ids)
    token_bytes = _token_bytes_of(tokenizer)
    if token_bytes is not None:
        joined, offsets = _offsets_of_bytes([token_bytes[token_id] for token_id in ids])
        # Some decoders strip the leading space of the first piece: the rest of the text is only shifted.
        stripped = len(joined) - len(text)
        if stripped >= 0 and joined[:stripped].isspace() == (stripped > 0) and joined[stripped:] == text:
            return text, [(max(start - stripped, 0), max(end - stripped, 0)) for start, end in offsets]
    return text, _offsets_of_prefixes(tokenizer, ids)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _offsets_of_bytes(pieces: list[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """Decodes UTF-8 piece by piece; invalid bytes become U+FFFD as in the tokenizer's own decoder."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []
    offsets: list[tuple[int, int]] = []
    num_chars = 0
    pending = False
    for piece in pieces:
        start = num_chars
        if pending and piece and not 0x80 <= piece[0] < 0xC0:
            start += 1  # the character left open by the token before is broken, and none of this one's
        part = decoder.decode(piece)
        parts.append(part)
        num_chars += len(part)
        if piece:
            pending = bool(decoder.getstate()[0])
        offsets.append((start, num_chars + pending) if piece else (num_chars, num_chars))
    parts.append(decoder.decode(b"", final=True))
    return "".join(parts), offsets


def _offsets_of_prefixes(tokenizer: Any, ids: list[int]) -> list[tuple[int, int]]:
    """Decodes every prefix. A character not complete yet shows as U+FFFD and changes with the next token."""
    special = _special_ids(tokenizer)
    offsets: list[tuple[int, int]] = []
    before = ""
    for position, token_id in enumerate(ids):
        after = _decode(tokenizer, ids[: position + 1])
        if token_id in special:
            offsets.append((len(before), len(before)))
            continue
        only_added = len(after) > len(before) and after.startswith(before)
        start = len(before) if only_added else len(before.rstrip("\ufffd"))
        offsets.append((min(start, len(after)), len(after)))
        before = after
    return offsets


class _TokenBytes(dict[int, bytes]):
    """The bytes each id adds to the text, filled in as ids are met; special ids add none."""

    def __init__(self, tokenizer: Any, byte_level: bool):
        super().__init__()
        # The cache must not keep its own weak key alive: it holds the token table, not the tokenizer.
        self._convert = tokenizer.backend_tokenizer.id_to_token
        self._special = _special_ids(tokenizer)
        self._byte_level = byte_level

    def __missing__(self, token_id: int) -> bytes:
        # Ids beyond the vocabulary, which a padded output layer can sample, decode to nothing.
        token = "" if token_id in self._special else self._convert(token_id) or ""
        self[token_id] = _byte_level_bytes(token) if self._byte_level else _piece_bytes(token)
        return self[token_id]


_TABLES: WeakKeyDictionary[Any, _TokenBytes | None] = WeakKeyDictionary()


def _token_bytes_of(tokenizer: Any) -> _TokenBytes | None:
    """The byte table of a tokenizer whose decoder works piece by piece; None if it is of another kind."""
    if tokenizer not in _TABLES:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = "" if backend is None else repr(backend.decoder)
        if "ByteLevel(" in decoder:
            _TABLES[tokenizer] = _TokenBytes(tokenizer, byte_level=True)
        elif "ByteFallback(" in decoder or "Metaspace(" in decoder:
            _TABLES[tokenizer] = _TokenBytes(tokenizer, byte_level=False)
        else:
            _TABLES[tokenizer] = None
    return _TABLES[tokenizer]


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}


def _byte_of_char() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + rank): byte for rank, byte in enumerate(others)})
    return table


_BYTE_OF_CHAR = _byte_of_char()


def _byte_level_bytes(token: str) -> bytes:
    if all(char in _BYTE_OF_CHAR for char in token):
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    return token.encode()  # an added token is stored as plain text


def _piece_bytes(token: str) -> bytes:
    fallback = _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace("\u2581", " ").encode()
