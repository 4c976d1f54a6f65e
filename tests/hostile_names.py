"""Names that a terminal, a document or a spreadsheet could take for something else."""

import unicodedata
from collections.abc import Iterator

import numpy as np

NAMES = (
    "[/b]", "corn [irrigated]", "[red]x[/red]", "[link=file:///etc]x[/link]", ":warning:", "a:smile:b",
    "\x1b[2J\x1b]0;own\x07x", "\x9b31mred", "two\nlines", "a\r\nb", "over\rwritten", "back\b\b\bspace",
    "tab\there", "nul\x00byte", "\u202egnp.exe", "\u2066a\u2069", "line\u2028separator", "\ufeffmark",
    "\udcff", "a\u200db", "a & b % c | d _ e = f < g > h", "x_1", "_hidden", "__init__", "*bold*", "**",
    "`code`", "~~gone~~", "$x^2$", "$", "\\write18{id}", "\\", "\\\\", "^^5c", "# title", "- item",
    "1. one", "+1.5", "-", "--", "---", "&amp;", "&#60;", "<script>alert(1)</script>", "<!-- ", "]]>",
    "</svg>", '" onload="x', "'", "![x](y)", "[x](javascript:y)", "=cmd|'/C calc'!A0", "+cmd", "-cmd",
    "@SUM(A1)", " =1+1", "\t=1", "\uff1d1", '"quoted"', "a,b;c", "a||b", "{x}", "{{ 7*7 }}", "{% raw %}",
    "%s%n", "%(x)s", "水田", "Öd\u0301land", "🌽", "", " ", "  two  spaces  ", "a" * 3000,
)  # fmt: skip
"""One of each kind."""

_PIECES = (*NAMES, "wood", "a", " ", "é", "\x7f", "\x85", "\u200f", "\u061c", "\U000e0041", "0", "-1", ".")


def by_seed(count: int, seed: int) -> Iterator[str]:
    """Yield names of one to six pieces."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        places = random.integers(len(_PIECES), size=random.integers(1, 7))
        yield "".join(_PIECES[place] for place in places)[:4000]


def commands(text: str) -> list[str]:
    """Return the characters of a text that a terminal does not just show in their place, but line breaks."""
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    moving = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
    return [c for c in text if c != "\n" and (unicodedata.category(c) in kinds or c in moving)]


def shown(text: str) -> str:
    """Return what a reader sees of a name: what has no shape of its own, as Python writes it in a string."""
    kept = {"\u200c", "\u200d"}
    return "".join(
        c if c in kept or unicodedata.category(c) == "Zs" else repr(c)[1:-1] if not c.isprintable() else c
        for c in text
    )
