"""Byte arrays in C sources: written so that every C and C++ compiler takes them, and read without a compiler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.errors import ModelError

MARK = "Written by dlas."
MAX_ARRAYS = 1000
_PIECE = 3 << 20  # bytes of text turned into numbers at once
_HEAD = 1000  # bytes in front of a brace that can be a declaration
_IGNORED = re.compile(
    rb"/\*(?:.*?\*/|.*)|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|^[ \t]*#(?:\\\r?\n|[^\n])*",
    re.DOTALL | re.MULTILINE,
)
_WORD = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
_BYTE_TYPE = re.compile(rb"\b(?:u?int8_t|char|byte|uint8|u8)\b")
_PAIRS = re.compile(rb"(?:0[xX][0-9a-fA-F]{2},)*(?:0[xX][0-9a-fA-F]{2})?")
_NUMBER = re.compile(rb"[-+]?(?:0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})[uUlL]{0,3}")
_SPACE = b" \t\r\n\v\f"


@dataclass(frozen=True)
class ByteArray:
    """An initialised array of bytes in a C source.

    Attributes:
        name: Its identifier.
        text: What stands between its braces.
        size: Elements that its declaration states; None when it states none.
    """

    name: str
    text: bytes
    size: int | None = None

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes; empty when they are no numbers."""
        try:
            return _numbers(b",".join(self.text[: 40 * count].split(b",")[:count]), self.name)
        except ModelError:
            return b""

    def value(self) -> bytes:
        """The content; raises ModelError when an element is no byte or their number is not the stated one."""
        found = b"".join(_numbers(piece, self.name) for piece in _pieces(self.text))
        if self.size is not None and self.size != len(found):
            raise ModelError(
                f"array {self.name} declares {self.size} bytes and holds {len(found)}",
                "the file is damaged: download or export it again",
            )
        return found


def byte_arrays(source: bytes, file_name: str) -> list[ByteArray]:
    """Every initialised array of bytes in a C or C++ source.

    Args:
        source: The text.
        file_name: Named in errors.

    Raises:
        ModelError: An array is not closed, or there are more than ``MAX_ARRAYS`` braces before the last.
    """
    code = _IGNORED.sub(_blank, source)
    found: list[ByteArray] = []
    place = seen = 0
    while (opened := code.find(b"{", place)) != -1:
        seen += 1
        if seen > MAX_ARRAYS:
            raise ModelError(f"{file_name} has more than {MAX_ARRAYS} braces: not a file with a network")
        declared = _declaration(code[max(place, opened - _HEAD) : opened])
        place = opened + 1
        if declared is None or not _BYTE_TYPE.search(declared[0]):
            continue
        closed = code.find(b"}", opened)
        name = declared[1].decode()
        if closed == -1:
            raise ModelError(f"{file_name} is truncated: array {name} is not closed", "download it again")
        stated = declared[2].strip(_SPACE)
        size = int(stated) if re.fullmatch(rb"[1-9][0-9]{0,11}", stated) else None
        found.append(ByteArray(name, code[opened + 1 : closed], size))
        place = closed + 1
    return found


def _declaration(text: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Type, name and size of the array whose initialiser follows ``text``, as in ``TYPE NAME[SIZE] ... =``.

    Looked for from the end, bracket by bracket: the time does not depend on what the text is.
    """
    text = text[max(text.rfind(mark) for mark in (b";", b"{", b"}")) + 1 :].rstrip(_SPACE)
    if not text.endswith(b"="):
        return None
    last = text.rfind(b"=", 0, -1)  # may stand in the size, not after it
    opened = len(text)
    while (opened := text.rfind(b"[", 0, opened)) != -1:
        closed = text.find(b"]", opened)
        head = text[:opened].rstrip(_SPACE)
        before = head.rstrip(_WORD)
        name = head[len(before) :]
        if closed > last and name and not name[:1].isdigit():
            return before, name, text[opened + 1 : closed]
    return None


def stated_length(source: bytes, name: str) -> int | None:
    """The number that a variable ``NAME_len`` or ``NAME_size`` is set to, as ``xxd -i`` writes it; None without one."""
    pattern = rb"\b%b_(?:len|length|size)\s*=\s*([0-9]{1,12})[uUlL]*\s*;" % re.escape(name.encode())
    match = re.search(pattern, source)
    return int(match[1]) if match else None


def _blank(match: re.Match[bytes]) -> bytes:
    return b'""' if match[0][:1] in b"\"'" else b" "


def _pieces(text: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        end = text.find(b",", start + _PIECE)
        end = len(text) if end == -1 else end + 1
        yield text[start:end]
        start = end


def _numbers(text: bytes, name: str) -> bytes:
    packed = text.translate(None, _SPACE)
    if _PAIRS.fullmatch(packed):
        return bytes.fromhex(packed.replace(b"0x", b"").replace(b"0X", b"").replace(b",", b"").decode())
    parts = [part.strip(_SPACE) for part in text.split(b",")]
    if parts and not parts[-1]:
        parts.pop()
    return bytes(_number(part, name) for part in parts)


def _number(part: bytes, name: str) -> int:
    if not _NUMBER.fullmatch(part):
        shown = part[:20].decode("ascii", "replace")
        raise ModelError(f"array {name}: element {shown!r} is not a byte", "only integer constants are read")
    digits = part.rstrip(b"uUlL").decode()
    octal = re.fullmatch(r"[-+]?0[0-7]+", digits)
    try:
        value = int(digits, 8 if octal else 0)
    except ValueError:
        value = 256
    if not -128 <= value <= 255:
        raise ModelError(f"array {name}: element {digits} is not a byte", "accepted: -128 to 255")
    return value % 256


def identifier(name: str) -> str:
    """A C identifier made of a network's name; never a keyword or a reserved one."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:48].strip("_")
    return f"{'m_' if not plain or plain[0].isdigit() else ''}{plain or 'network'}_model".lower()


def comment(text: str) -> str:
    """Text that neither ends a C comment nor joins lines: printable ASCII without slashes, stars and trigraphs."""
    return re.sub(r"[^A-Za-z0-9 ._()+:,;=@-]", "_", text)[:200]


def array_source(name: str, data: bytes, title: str) -> str:
    """A C or C++ source that defines the array ``name`` and its length ``NAME_len``."""
    rows = (data[start : start + 16] for start in range(0, len(data), 16))
    body = ",\n".join("  " + ", ".join(f"0x{byte:02x}" for byte in row) for row in rows)
    macro = f"{name.upper()}_ALIGN"
    return f"""\
/* {MARK} {comment(title)}: a TensorFlow Lite network of {len(data)} bytes. */

#if defined(__cplusplus) && __cplusplus >= 201103L
#define {macro} alignas(16)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define {macro} _Alignas(16)
#elif defined(__GNUC__) || defined(__clang__) || defined(__ICCARM__)
#define {macro} __attribute__((aligned(16)))
#elif defined(_MSC_VER)
#define {macro} __declspec(align(16))
#else
#error "say how this compiler aligns an array to 16 bytes"
#endif

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}[{len(data)}];
extern const unsigned int {name}_len;

{macro} const unsigned char {name}[{len(data)}] = {{
{body}
}};

const unsigned int {name}_len = {len(data)}u;

#ifdef __cplusplus
}}
#endif
"""


def header_source(name: str, size: int, title: str) -> str:
    """The header that declares the array ``name`` and its length."""
    guard = f"{name.upper()}_H"
    return f"""\
/* {MARK} {comment(title)}: a TensorFlow Lite network of {size} bytes. */
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}[{size}]; /* 16-byte aligned flatbuffer */
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif
"""
