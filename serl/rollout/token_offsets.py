"""Character offsets of sampled token ids in the text they decode to; nothing is tokenised."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Sequence
from itertools import groupby, islice
from typing import Any, TypeVar
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
    decoder = _decoder_of(tokenizer)
    if decoder is not None:
        joined, offsets = decoder(ids)
        # Some decoders strip the leading space of the first piece: the rest of the text is only shifted.
        stripped = len(joined) - len(text)
        if stripped >= 0 and joined[:stripped].isspace() == (stripped > 0) and joined[stripped:] == text:
            return text, [(max(start - stripped, 0), max(end - stripped, 0)) for start, end in offsets]
    return text, _offsets_of_prefixes(tokenizer, ids, text)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _offsets_of_bytes(pieces: list[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """Decodes UTF-8 piece by piece; invalid bytes become U+FFFD as in the tokenizer's own decoder."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []
    offsets: list[tuple[int, int]] = []
    num_chars = num_pending = 0
    for piece in pieces:
        start = num_chars
        if num_pending and piece and not 0x80 <= piece[0] < 0xC0:
            start += num_pending  # what the tokens before left open is broken, and none of this one's
        part = decoder.decode(piece)
        parts.append(part)
        num_chars += len(part)
        if piece:
            # One character, or two where it begins as half of a UTF-16 pair does, which is none.
            num_pending = len(decoder.getstate()[0].decode("utf-8", "replace"))
        offsets.append((start, num_chars + num_pending) if piece else (num_chars, num_chars))
    parts.append(decoder.decode(b"", final=True))
    return "".join(parts), offsets


def _offsets_of_pieces(pieces: list[str | int]) -> tuple[str, list[tuple[int, int]]]:
    """Joins pieces of text and bytes; of bytes in a row that are not UTF-8 each becomes U+FFFD."""
    text = ""
    spans: dict[int, tuple[int, int]] = {}
    with_text = [position for position, piece in enumerate(pieces) if piece != ""]
    for are_bytes, group in groupby(with_text, key=lambda position: isinstance(pieces[position], int)):
        positions = list(group)
        if are_bytes:
            parts, lengths = _characters_of(bytes(int(pieces[position]) for position in positions))
        else:
            parts, lengths = [str(pieces[position]) for position in positions], [1] * len(positions)
        remaining = iter(positions)
        for part, length in zip(parts, lengths, strict=True):
            for position in islice(remaining, length):
                spans[position] = (len(text), len(text) + len(part))
            text += part
    offsets: list[tuple[int, int]] = []
    reached = 0
    for position in range(len(pieces)):
        offsets.append(spans.get(position, (reached, reached)))
        reached = offsets[-1][1]
    return text, offsets


def _characters_of(data: bytes) -> tuple[list[str], list[int]]:
    """The characters of ``data``, and how many bytes each takes."""
    try:
        characters = list(data.decode())
    except UnicodeDecodeError:
        return ["\ufffd"] * len(data), [1] * len(data)
    return characters, [len(character.encode()) for character in characters]


def _offsets_of_prefixes(tokenizer: Any, ids: list[int], text: str) -> list[tuple[int, int]]:
    """Decodes every prefix of ``text``. A character not complete yet shows as another one, or several."""
    special = _special_ids(tokenizer)
    offsets: list[tuple[int, int]] = []
    reached = 0
    for position, token_id in enumerate(ids):
        if token_id in special:
            offsets.append((reached, reached))
            continue
        shown = _decode(tokenizer, ids[: position + 1])
        settled = len(os.path.commonprefix([shown, text]))
        end = min(settled + (len(shown) > settled), len(text))
        offsets.append((reached, max(reached, end)))
        reached = max(reached, settled)
    return offsets


Piece = TypeVar("Piece", bytes, "str | int")


class _TokenTable(dict[int, Piece]):
    """What each id adds to the text, filled in as ids are met; ``nothing`` for special ids."""

    def __init__(self, tokenizer: Any, read: Callable[[str], Piece], nothing: Piece) -> None:
        super().__init__()
        # The cache must not keep its own weak key alive: it holds the token table, not the tokenizer.
        self._convert = tokenizer.backend_tokenizer.id_to_token
        self._special = _special_ids(tokenizer)
        self._read = read
        self._nothing = nothing

    def __missing__(self, token_id: int) -> Piece:
        # Ids beyond the vocabulary, which a padded output layer can sample, decode to nothing.
        token = "" if token_id in self._special else self._convert(token_id)
        self[token_id] = self._read(token) if token else self._nothing
        return self[token_id]


_Decoder = Callable[[list[int]], tuple[str, list[tuple[int, int]]]]
_DECODERS: WeakKeyDictionary[Any, _Decoder | None] = WeakKeyDictionary()


def _decoder_of(tokenizer: Any) -> _Decoder | None:
    """Text and offsets of ids by a table, if the tokenizer's own decoder works piece by piece; else None."""
    if tokenizer not in _DECODERS:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = "" if backend is None else repr(backend.decoder)
        if "ByteLevel(" in decoder:
            of_bytes = _TokenTable(tokenizer, _byte_level_bytes, b"")
            _DECODERS[tokenizer] = lambda ids: _offsets_of_bytes([of_bytes[token_id] for token_id in ids])
        elif "ByteFallback(" in decoder or "Metaspace(" in decoder:
            of_pieces = _TokenTable[str | int](tokenizer, _text_or_byte, "")
            _DECODERS[tokenizer] = lambda ids: _offsets_of_pieces([of_pieces[token_id] for token_id in ids])
        else:
            _DECODERS[tokenizer] = None
    return _DECODERS[tokenizer]


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


def _text_or_byte(token: str) -> str | int:
    fallback = _BYTE_FALLBACK.fullmatch(token)
    return int(fallback[1], 16) if fallback else token.replace("\u2581", " ")
