"""The words of protobuf's text format, and the places that an error message names.

The rules are those of the text format's specification (https://protobuf.dev/reference/protobuf/textformat-spec/):
six whitespace characters, `#` comments, a sign that stands apart from its number, strings that end in the line they
begin in.
"""

import re

from sparknet.errors import NetError

__all__ = ["Tokens", "unescape"]

# Possessive quantifiers (`*+`) keep the scan linear, and its memory constant, on a file of any size.
_SPACE = r"[ \t\n\r\v\f]*+(?:\#[^\n]*+[ \t\n\r\v\f]*+)*+"
_TOKEN = re.compile(
    _SPACE
    + r"""(?:
      (?P<name>[A-Za-z_][A-Za-z0-9_]*+)
    | (?P<number>\.?[0-9][0-9A-Za-z_.]*+(?:(?<=[eE])[-+][0-9A-Za-z_.]*+)*+)
    | (?P<string>"[^"\n\\\0]*+(?:\\[^\n\0][^"\n\\\0]*+)*+"|'[^'\n\\\0]*+(?:\\[^\n\0][^'\n\\\0]*+)*+')
    | (?P<symbol>[-:{}<>\[\],;])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_GAP = re.compile(_SPACE, re.VERBOSE)
_SHOWN = 40  # characters of a token that an error message quotes

_SURROGATE_PAIR = r"u(?P<high>[dD][89abAB][0-9A-Fa-f]{2})\\u(?P<low>[dD][c-fC-F][0-9A-Fa-f]{2})"
_ESCAPE = re.compile(
    r"\\(?:(?P<letter>[abfnrtv\\?'\"])|(?P<octal>[0-7]{1,3})|[xX](?P<byte>[0-9A-Fa-f]{1,2})"
    rf"|{_SURROGATE_PAIR}|u(?P<short>[0-9A-Fa-f]{{4}})|U(?P<long>[0-9A-Fa-f]{{8}})|(?P<bad>.))"
)
_LETTERS = dict(zip("abfnrtv\\?'\"", b"\a\b\f\n\r\t\v\\?'\"", strict=True))


class Tokens:
    """One text, token by token: `kind`, `text` and `start` describe the current one.

    Attributes:
        kind: name, number, string, symbol or end.
        text: the token as it is written; empty at the end.
        start: its offset in the text, in characters.
    """

    __slots__ = ("_end", "_text", "kind", "source", "start", "text")

    def __init__(self, text: str, source: str) -> None:
        """Stand on the first token of `text`; `source` is the file name that errors show."""
        self._text = text
        self._end = 1 if text.startswith("\ufeff") else 0  # an editor's byte-order mark is no content
        self.source = source
        self.kind = ""
        self.text = ""
        self.start = 0
        self.advance()

    def advance(self) -> None:
        """Go to the next token.

        Raises:
            NetError: what follows is no token: an unexpected character or a string without its end.
        """
        # One match a token, with the space before it: this is where a large file's time goes.
        found = _TOKEN.match(self._text, self._end)
        if found is None:
            raise self._no_token()
        self.kind = kind = found.lastgroup or ""
        self.text = found[kind]
        self.start = found.start(kind)
        self._end = found.end()

    def take(self, symbol: str) -> bool:
        """Step over `symbol` if it is the current token, and say whether it was."""
        if self.text != symbol or self.kind != "symbol":
            return False
        self.advance()
        return True

    def line_of(self, start: int) -> int:
        """Return the line, counted from 1, of an offset."""
        return self._text.count("\n", 0, start) + 1

    def lines_of(self, starts: list[int]) -> list[int]:
        """Return the lines of rising offsets, in one pass over the text."""
        lines: list[int] = []
        line, before = 1, 0
        for start in starts:
            line += self._text.count("\n", before, start)
            before = start
            lines.append(line)
        return lines

    def fault(self, message: str, start: int | None = None) -> NetError:
        """Return the error that begins with file, line and column of `start`, or of the current token."""
        at = self.start if start is None else start
        # Counted only for an error: a file without one never asks for a line.
        column = at - self._text.rfind("\n", 0, at)
        return NetError(f"{self.source}:{self.line_of(at)}:{column}: {message}")

    def shown(self) -> str:
        """Return the current token as an error message quotes it."""
        if self.kind == "end":
            return "the end of the file"
        return _shorten(self.text) if self.kind == "string" else f"'{_shorten(self.text)}'"

    def _no_token(self) -> NetError:
        """Return the error for a text that goes on with no token."""
        start = _gap_end(self._text, self._end)
        character = self._text[start]
        # A string without its end is looked into for a NUL: then the file is no text, and quotes are not its
        # trouble.
        if character in "\"'":
            line = self._text[start : start + _SHOWN].partition("\n")[0]
            where = self._text.find("\0", start)
            if where < 0 or "\n" in self._text[start:where]:
                return self.fault(
                    f"the string {line!r} does not end in its line: a string is closed by the {character} "
                    f"that opened it, and a line break inside is written \\n",
                    start,
                )
            start, character = where, "\0"
        if character == "\0":
            return self.fault("found a NUL byte; text has none: this looks like a binary file", start)
        return self.fault(
            f"found {character!r}; outside quotes the text format has names, numbers and : ; , {{ }} < > [ ] -: "
            f"remove it, begin a comment with #, or put text in quotes",
            start,
        )


def unescape(tokens: Tokens) -> bytes:
    r"""Return the bytes that the current string token stands for: `\n`, `\'`, `\101`, `\x41`, `\u00e9` and so on.

    Raises:
        NetError: an escape that the format does not have, or one that is no byte or no character.
    """
    body = tokens.text[1:-1]
    content = bytearray()  # grows in place: a list of pieces would take a hundred times the text
    before = 0
    for found in _ESCAPE.finditer(body) if "\\" in body else ():
        if found.start() > before:
            content += _encoded(body[before : found.start()], tokens)
        before = found.end()
        value = _unescaped(found)
        if value is None:
            raise tokens.fault(
                f"{_shorten(found[0])} is no escape sequence; a string knows \\n \\t \\r \\\" \\' \\\\ and "
                f"their kin, \\ooo, \\xhh, \\uhhhh, \\Uhhhhhhhh: a single backslash is written \\\\",
                tokens.start + 1 + found.start(),
            )
        content += value
    content += _encoded(body[before:], tokens)
    return bytes(content)


def _unescaped(found: re.Match[str]) -> bytes | None:
    """Return the bytes of one escape sequence; None if it stands for no byte and no character."""
    if (letter := found["letter"]) is not None:
        return bytes([_LETTERS[letter]])
    if found["bad"] is not None:
        return None
    # Two escapes that are one character beyond the 16 bits of the first; alone, either is refused.
    if found["high"] is not None:
        return bytes.fromhex(found["high"] + found["low"]).decode("utf-16-be").encode()
    digits = found["short"] or found["long"]
    if digits is not None:
        point = int(digits, 16)
        return None if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF else chr(point).encode()
    number = int(found["octal"], 8) if found["octal"] is not None else int(found["byte"], 16)
    return bytes([number]) if number <= 0xFF else None


def _encoded(text: str, tokens: Tokens) -> bytes:
    """Return a piece of a string as UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise tokens.fault(
            f"the string {_shorten(ascii(text))} holds half of a surrogate pair, which is no character: remove it"
        ) from error


def _gap_end(text: str, start: int) -> int:
    """Return where whitespace and comments that begin at `start` end."""
    found = _GAP.match(text, start)
    return start if found is None else found.end()


def _shorten(text: str) -> str:
    """Return the beginning of a long token."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
