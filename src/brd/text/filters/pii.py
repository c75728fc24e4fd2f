"""E-mail addresses, phone and card numbers, IBANs and public IP addresses, replaced or a reason to drop.

Patterns find candidates, checks decide: check digits for cards (Luhn) and IBANs (ISO 7064), the address registry for
IPs, numbering plans for phones (phonenumbers). Names, postal addresses, dates of birth and identity numbers are not
found: this lessens what a corpus tells about people, and makes it safe for nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network, ip_address
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from brd.sections.section import Section, all_known
from brd.text.filters.filter import Context, Decision, missing
from brd.text.paragraph import Paragraph

# In this order: digits of a card or an IBAN could be a phone number too.
KINDS = ("email", "iban", "card", "ip", "phone")

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,63}(?![\w@])", re.UNICODE
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_CARD = re.compile(r"(?<![\w.,-])[2-6][0-9]{3}(?:[ -]?[0-9]{3,6}){2,4}(?![\w-]|[.,][0-9])")
_IP4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_MAYBE_PHONE = re.compile(r"[0-9](?:[^\w\n]{0,3}[0-9]){6}")
# All of version 6 that is given to anybody so far: elsewhere it is rather program text (`a::b`).
_GIVEN = IPv6Network("2000::/3")


class Settings(Section):
    """``kinds`` of personal data; ``action`` replace puts ``<EMAIL>`` and the like there, drop drops the paragraph.

    ``region``: the country (two capitals) whose phone numbers are meant where none is named; null finds only numbers
    with a country code (+44 ...).
    """

    kinds: Annotated[list[str], Field(min_length=1)] = list(KINDS)
    action: Literal["replace", "drop"] = "replace"
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None

    @field_validator("kinds")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        return all_known("kind", names, KINDS)


class Pii:
    """Replaces personal data, or drops the paragraphs with some. Raises BrdError where phonenumbers is missing."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        finders: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
            "email": _emails,
            "iban": _ibans,
            "card": _cards,
            "ip": _addresses,
        }
        if "phone" in settings.kinds:
            finders["phone"] = _phone_finder(settings.region)
        self._finders = {kind: finders[kind] for kind in KINDS if kind in settings.kinds}

    def judge(self, paragraph: Paragraph) -> Decision | None:
        text, found = paragraph.text, Counter[str]()
        for kind, finder in self._finders.items():
            pieces, last = [], 0
            for start, end in finder(text):
                pieces += [text[last:start], f"<{kind.upper()}>"]
                last = end
                found[kind] += 1
            if pieces:
                text = "".join([*pieces, text[last:]])
        if not found:
            return None
        detail = ", ".join(f"{number} {kind}" for kind, number in found.items())
        return Decision(detail, text if self._settings.action == "replace" else None)


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # What follows in capitals may belong to it or not; the check digits tell.
        groups = [m.end() for m in re.finditer(r"[A-Z0-9](?= |$)|[A-Z0-9]$", match[0])]
        for end in sorted({len(match[0]), *groups}, reverse=True):
            compact = match[0][:end].replace(" ", "")
            if 15 <= len(compact) <= 34 and _iban_checks(compact):
                yield match.start(), match.start() + end
                break


def _iban_checks(compact: str) -> bool:
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = [int(c) for c in match[0] if c.isdigit()]
        doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
        if 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0:
            yield match.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    matches = [*_IP4.finditer(text)] if "." in text else []
    matches += _IP6.finditer(text) if ":" in text else []
    for match in sorted(matches, key=lambda m: m.start()):
        try:
            address = ip_address(match[0])
        except ValueError:
            continue
        # Private and reserved ones name nobody.
        if address.is_global and (address.version == 4 or address in _GIVEN):
            yield match.span()


def _phone_finder(region: str | None) -> Callable[[str], Iterator[tuple[int, int]]]:
    try:
        import phonenumbers
    except ImportError:
        raise missing("pii", "phonenumbers") from None

    def find(text: str) -> Iterator[tuple[int, int]]:
        if _MAYBE_PHONE.search(text):
            matches: Any = phonenumbers.PhoneNumberMatcher(text, region)
            yield from ((match.start, match.end) for match in matches)

    return find
