"""How numbers are written: one function a kind, used by the page, the Markdown and the terminal alike."""

UNKNOWN = "—"
GIB = 2**30


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent: 1234 -> 1,234; 0.01234 -> 0.0123."""
    if value is None:
        return UNKNOWN
    if value == 0 or value != value or abs(value) == float("inf"):
        return f"{value:g}"
    before_point = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if before_point >= digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 0.1 else f"{value:.{digits - before_point}f}"


def rate(value: float | None) -> str:
    """Tokens or samples a second: three digits, whole numbers from 100 on."""
    return number(value)


def gib(value_bytes: float | None) -> str:
    """Bytes as GiB (2^30), two decimals."""
    return UNKNOWN if value_bytes is None else f"{value_bytes / GIB:.2f}"


def percent(fraction: float | None, digits: int = 1) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.{digits}f} %"


def seconds(value_s: float | None) -> str:
    return UNKNOWN if value_s is None else f"{number(value_s)} s"


def times(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"


def one_line(text: str, limit: int = 160) -> str:
    """A message shortened to its first words, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 4].rsplit(" ", 1)[0] + " ..."
