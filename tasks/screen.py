"""Screen: what must not be baked, whatever its value. In: one request and its route. Out: the reason, or None.

Personal data is found by libraries that know the formats: phonenumbers, python-stdnum (checksums), email-validator,
detect-secrets. Names of persons are not looked for: no list or pattern finds them well, and the route's ``min_users``
keeps what one person asks out of the store. What depends on now, here or me is the list ``LIVE`` below, plain data.
The list is English; other languages and house rules belong into a route's ``never``.
"""

from __future__ import annotations

import importlib
import ipaddress
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import stdnum.cn.ric
import stdnum.es.dni
import stdnum.es.nie
import stdnum.fr.nir
import stdnum.iban
import stdnum.in_.aadhaar
import stdnum.it.codicefiscale
import stdnum.luhn
import stdnum.pl.pesel
import stdnum.us.ssn
from detect_secrets import plugins as secret_plugins
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.basic_auth import BasicAuthDetector
from detect_secrets.plugins.ip_public import IPPublicDetector
from email_validator import EmailNotValidError, validate_email
from phonenumbers import PhoneNumberMatcher

from prebake.routes import Route
from prebake.settings import Screen

# Why the answer would be wrong for somebody else, elsewhere or tomorrow, and the words that say so (any case).
LIVE: Final[tuple[tuple[str, str], ...]] = (
    ("time", r"what(?:'?s| is) the (?:current )?(?:time|date)(?= ?(?:\?|$|now|right|today|in |at |here|there))"),
    ("time", r"what (?:time|day|date|month|year) is (?:it|today)|the time (?:in|now|is it)\b|what time is"),
    ("today", r"today|tonight|tomorrow|right now|at the moment|as of now|now\?|days? until"),
    ("today", r"(?:this|next|coming) (?:morning|afternoon|evening|night|weekend|week|month|quarter|year)"),
    ("today", r"(?:this|last|next|on) (?:mon|tues|wednes|thurs|fri|satur|sun)day"),
    ("today", r"(?:what|who|which|where|did|how (?:much|many|was|did))\b.*\b(?:yesterday"
     r"|(?:last|past) (?:night|weekend|week|month|quarter|year))"),
    ("latest", r"latest|newest|most recent|breaking news|in the news|up[- ]to[- ]date"),
    ("latest", r"(?:is|are|your|what'?s) (?:the |your )?current (?!accounts?|cards?|one)|currently (?:open|playing)"),
    ("market", r"(?:stock|share|bitcoin|gold|oil|gas) prices?|exchange rates? (?:right )?now"),
    ("weather", r"weather|forecast|will it (?:rain|snow)|is it (?:raining|snowing|cold|hot|sunny) (?:out|in)"),
    ("traffic", r"traffic (?:like|on|in|to|from)|flight status"),
    ("traffic", r"(?:is|will) (?:my |the )?flight .*(?:on time|delay|land)"),
    ("here", r"near me|nearby|near here|around here|close to me|closest|nearest"
     r"|in my (?:area|city|town|neighbou?rhood)"),
    ("here", r"where am i(?! able| allowed| supposed)"
     r"|my (?:current |present )?(?:location|whereabouts|gps coordinates)"),
    ("me", r"(?:what|how much|how many|check|show|tell|give|see|read|list|view|look up|find) .*\bmy (?:\w+ )?(?:balance"
     r"|transactions|spending|purchases|bills?|minimum payment|credit score|credit limit|rewards? points|points|miles"
     r"|payday|paycheck|salary|income|pto|vacation days|days off|calendar|agenda|meetings?|appointments?|schedule"
     r"|reminders?|alarms?|to-?do list|shopping list|playlist|orders?|deliver(?:y|ies)|packages?|flights?|reservations?"
     r"|routing number|account number|name)\b(?! (?:not|hasn'?t|has|did|does|doesn'?t|didn'?t|wasn'?t|isn'?t|update))"),
    ("me", r"my (?:last|previous|upcoming|next) (?:\w+ )?(?:transactions?|orders?|payments?|purchases?"
     r"|paychecks?|bills?|deposits?|withdrawals?|flights?|appointments?|meetings?|visit)"),
    ("me", r"(?:balances?) (?:of|in|on|at|for) (?:my|the|all)"),
    ("me", r"(?:where(?:'?s| is| are)|track) my (?!pin\b|passcode|settings|iban\b|cvv\b|\w+ accepted)"),
    ("me", r"how (?:much|many) .*\b(?:do|did|have|am) i (?:have|owe|spen[dt]|earn|made?|left|got|used|taken?)\b"),
    ("me", r"what(?:'?s| is| are) (?:on )?my (?:\w+ ){0,2}(?:name|age|address|status|credit|apr|rate|limit|score|due"
     r"|pay|number|calendar|list|agenda|bill|balance|income)\b"),
    ("me", r"status of my\b|do i have (?:any|anything)\b"),
    ("me", r"am i (?:overdrawn|approved|scheduled|due|registered)\b|who am i\b|do you know me\b"),
)  # fmt: skip

_LIVE = [(why, re.compile(rf"\b(?:{words})", re.IGNORECASE)) for why, words in LIVE]
_ANY_LIVE = re.compile("|".join(rf"(?:\b(?:{words}))" for _, words in LIVE), re.IGNORECASE)

# Candidates only: the libraries judge them.
_EMAIL = re.compile(r"[^\s<>()\[\],;:\"'@]+@[^\s<>()\[\],;:\"'@]+\.\w+")
_URL_WITH_USER = re.compile(r"\b\w[\w+.-]*://[^\s/?#@]+@[^\s]+")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})(?![\w:]|\.\d)", re.IGNORECASE
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b", re.IGNORECASE)
_DIGITS = re.compile(r"(?<![\w.])\d(?:[ -]?\d){8,18}(?![\w]|\.\d)")
_TAX_CODE = re.compile(r"\b[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]\b|\b[XYZ]?\d{7,8}-?[A-Z]\b", re.IGNORECASE)
_SEVEN_DIGITS = re.compile(r"(?:\d\D{0,3}){6}\d")
_TOKEN = re.compile(r"\S{16}|PRIVATE KEY|PuTTY")
_REFERENCE = re.compile(
    r"\b(?:order|ticket|invoice|account|case|reference|ref|tracking|booking|customer|policy|claim|transaction)"
    r"(?: ?(?:number|no|num|id|code))?[.:#]? ?(?:is )?#?(?=[a-z-]{0,4}\d)[a-z\d-]{5,}\b",
    re.IGNORECASE,
)
_NATIONAL_IDS: Final = (
    stdnum.cn.ric,
    stdnum.fr.nir,
    stdnum.in_.aadhaar,
    stdnum.pl.pesel,
)
_LETTERED_IDS: Final = (stdnum.es.dni, stdnum.es.nie, stdnum.it.codicefiscale)
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")


def screen(request: bytes | str, route: Route, settings: Screen) -> str | None:
    """Why the request must not be baked: ``personal: ...``, ``live: ...`` or ``never: ...``; None if it may.

    ``request`` is the canonical JSON of the query log. Personal data and the route's ``never`` are looked for in
    every message, the words of ``LIVE`` in the user's.
    """
    messages = orjson.loads(request)["messages"]
    everything = "\n".join(text for message in messages for text in _texts(message))
    if settings.personal and (what := personal_data(everything, settings.phone_regions)):
        return f"personal: {what}"
    if settings.live:
        asked = "\n".join(text for message in messages if message["role"] == "user" for text in _texts(message))
        if why := depends_on_now(asked):
            return f"live: {why}"
    pattern = next((pattern for pattern in route.never if _compiled(pattern).search(everything)), None)
    return None if pattern is None else f"never: {pattern}"


def personal_data(text: str, phone_regions: tuple[str, ...]) -> str | None:
    """The first kind of personal data found in the text; None if none was."""
    return next((kind for kind, finds in _PERSONAL if finds(text)), None) or (
        "phone number" if _has_phone(text, phone_regions) else None
    )


def depends_on_now(text: str) -> str | None:
    """What the answer depends on (time, today, here, me ...) by the words of ``LIVE``; None if nothing says so."""
    if not _ANY_LIVE.search(text):
        return None
    return next(why for why, words in _LIVE if words.search(text))


def _texts(value: Any) -> Iterator[str]:
    """Every piece of text in a message: plain content, parts, names, arguments of tool calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("role", "type"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _has_email(text: str) -> bool:
    return "@" in text and any(_is_email(found.group().strip(".")) for found in _EMAIL.finditer(text))


def _is_email(candidate: str) -> bool:
    try:
        validate_email(candidate, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return False
    return True


def _has_url_with_credentials(text: str) -> bool:
    return "://" in text and any(_has_user(found.group()) for found in _URL_WITH_USER.finditer(text))


def _has_user(url: str) -> bool:
    try:
        return bool(urlsplit(url).username)
    except ValueError:
        return False


def _has_secret(text: str) -> bool:
    return bool(_TOKEN.search(text)) and any(True for rule in _secret_rules() for _ in rule.analyze_string(text))


@lru_cache(maxsize=1)
def _secret_rules() -> tuple[RegexBasedDetector, ...]:
    """Every format of key that detect-secrets knows; addresses and URLs have checks of their own here."""
    modules = [
        importlib.import_module(f"{secret_plugins.__name__}.{module.name}")
        for module in pkgutil.iter_modules(secret_plugins.__path__)
    ]
    rules = {
        rule
        for module in modules
        for rule in vars(module).values()
        if isinstance(rule, type) and issubclass(rule, RegexBasedDetector) and rule.__module__ == module.__name__
    } - {RegexBasedDetector, BasicAuthDetector, IPPublicDetector}
    return tuple(rule() for rule in sorted(rules, key=lambda rule: rule.__name__))


def _has_iban(text: str) -> bool:
    return any(stdnum.iban.is_valid(found.group()) for found in _IBAN.finditer(text))


def _has_card(text: str) -> bool:
    return any(_is_card(re.sub(r"[ -]", "", found.group())) for found in _DIGITS.finditer(text))


def _is_card(digits: str) -> bool:
    """13 to 19 digits, a card network's first digit (ISO/IEC 7812-1), and the Luhn check digit."""
    return len(digits) >= 13 and digits[0] in "23456" and stdnum.luhn.is_valid(digits)


def _has_national_id(text: str) -> bool:
    return (
        any(stdnum.us.ssn.is_valid(found.group()) for found in _SSN.finditer(text))
        or any(kind.is_valid(found.group()) for found in _DIGITS.finditer(text) for kind in _NATIONAL_IDS)
        or any(kind.is_valid(found.group()) for found in _TAX_CODE.finditer(text) for kind in _LETTERED_IDS)
    )


def _has_ip(text: str) -> bool:
    return any(_is_public(found.group()) for found in _IP.finditer(text))


def _is_public(candidate: str) -> bool:
    try:
        return ipaddress.ip_address(candidate).is_global
    except ValueError:
        return False


def _has_phone(text: str, regions: tuple[str, ...]) -> bool:
    # Without a region the matcher finds only numbers written with + and a country code.
    return bool(_SEVEN_DIGITS.search(text)) and any(
        PhoneNumberMatcher(text, region).has_next() for region in regions or (None,)
    )


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_PERSONAL: Final[tuple[tuple[str, Callable[[str], bool]], ...]] = (
    ("address with a login", _has_url_with_credentials),
    ("e-mail address", _has_email),
    ("key or token", _has_secret),
    ("IBAN", _has_iban),
    ("card number", _has_card),
    ("national id", _has_national_id),
    ("IP address", _has_ip),
    ("reference number", lambda text: bool(_REFERENCE.search(text))),
)
