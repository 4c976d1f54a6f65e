"""Names in text of every kind: terminal, Markdown, LaTeX, CSV, HTML and pictures.

Names of classes, domains, variants, bands and files come from people and from other people's files. Each
function here makes a text that shows a name whole and cannot be read as anything else: a command of the
terminal, markup, a formula. Whoever writes a name somewhere uses the function of that place.
"""

from __future__ import annotations

import html as _html
import logging
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

_JOINERS = "\u200c\u200d"  # part of how some scripts are written
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # also in full width
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?( to [+-]?\d+(\.\d+)?)?|-")
_BLOCK = re.compile(r"^(\s*)(?:(#|[-+=](?=[\s=-]))|(\d+)(?=[.)]\s))")  # begins a heading, a list or a rule
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{mark: f"{{{mark}}}" for mark in "[]*"},  # after a line break these would be its options
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
}  # fmt: skip


def printable(text: object) -> str:
    r"""Return a text on one line without control characters, as `\n` and `\x1b` for those that it holds.

    What reorders or hides text (bidirectional overrides, marks without a width) is shown likewise.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def plain(text: object, style: str = "") -> Text:
    """Return a text for rich, which reads neither markup nor emoji codes in it."""
    from rich.text import Text  # not for --help

    return Text(printable(text), style)


def markdown(text: object) -> str:
    """Return a text for a line of Markdown or a cell of a table."""
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))
    return _BLOCK.sub(lambda found: f"{found[1]}{found[3] or ''}\\{found[2] or ''}", escaped)


def latex(text: object) -> str:
    """Return a text for a cell of a LaTeX table."""
    escaped = "".join(_LATEX.get(character, character) for character in printable(text))
    return re.sub("-(?=-)", "-{}", escaped)  # else a dash


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file; an apostrophe marks what a spreadsheet takes for a formula.

    Numbers and intervals of numbers stay as they are.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    is_formula = text.lstrip()[:1] in _FORMULA and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def html(text: object, quote: bool = True) -> str:
    """Return a text for HTML and SVG, inside an element or, with `quote`, a quoted attribute."""
    return _html.escape(printable(text), quote)


def drawn(text: object) -> str:
    """Return a text for matplotlib, which reads `$x$` as a formula and leaves out labels such as `_x`."""
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


class PrintableFormatter(logging.Formatter):
    """Formats the message of a log record with `printable`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)
