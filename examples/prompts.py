"""What is asked in the example's log: real questions of a simulated popularity, and what real logs carry besides.

In: a seeded random source, the days of the log. Out: the text of one prompt after another. Popularity is Zipf's law
over intents and over the wordings of an intent; it drifts from day to day. Around a third of the prompts never come
back: they are real questions with a typing error, a detail or a second question of their own. Personal data and
prompts that depend on now or here are planted on purpose, so that the screen has work to do.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from random import Random
from typing import Final

from examples.corpus import OUT_OF_SCOPE, RouteName, questions
from prebake.folding import fold_text

INTENT_EXPONENT: Final = 0.9
WORDING_EXPONENT: Final = 1.05
DRIFT: Final = 1.2  # standard deviation of an intent's logarithmic growth over the whole log
NEW_INTENTS: Final = 4  # asked from the last third of the log on
BURST: Final = 12.0  # how much more often the bursting intent is asked while it bursts

# Published as fictional or for tests: Ofcom's and NANPA's phone numbers for drama, RFC 2606 domains, the card schemes'
# test cards, the IBAN registry's specimens. All pass their checksums.
_EMAILS: Final = ("ada.lowe@example.com", "j.okafor@example.org", "marta_b@example.net", "tim.ruiz@example.com")
_PHONES: Final = ("+44 20 7946 0958", "020 7946 0123", "(202) 555-0143", "+1 415 555 0132")
_CARDS: Final = ("4242 4242 4242 4242", "5555 5555 5555 4444", "4111-1111-1111-1111", "378282246310005")
_IBANS: Final = ("GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "NL91ABNA0417164300")
_PERSONAL: Final = {
    "banking": (
        *(f"My card {card} was refused, what can I do?" for card in _CARDS),
        *(f"How long does a transfer to {iban} take?" for iban in _IBANS),
        *(f"Please send the new PIN to {phone}" for phone in _PHONES),
        *(f"Is my account still linked to {email}?" for email in _EMAILS),
    ),
    "assistant": (
        *(f"please call {phone} for me" for phone in _PHONES),
        *(f"write to {email} that i will be late" for email in _EMAILS),
        *(f"save my card number {card}" for card in _CARDS),
    ),
}
_NOW_OR_HERE: Final = {
    "banking": (
        "What is the exchange rate right now?",
        "What is my balance today?",
        "Did my salary arrive this morning?",
        "Is there a cash machine near me?",
        "How much did I spend last week?",
        "Are transfers delayed at the moment?",
    ),
    "assistant": (
        "what's the weather like here today",
        "what time is it now",
        "is the pharmacy near me still open",
        "what is in the news this morning",
        "how is the traffic on my way to work right now",
        "what's on my calendar tomorrow",
    ),
}
_SHOPS: Final = ("Fenwick's", "the corner shop", "a hotel in Porto", "Mill Road Books", "the station kiosk", "a garage")
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class Popularity:
    """How often each intent is asked on each day, and which of its wordings."""

    def __init__(self, route: RouteName, days: int, random: Random) -> None:
        by_intent: dict[str, list[str]] = {}
        for question in questions(route):
            if question.intent != OUT_OF_SCOPE:
                by_intent.setdefault(question.intent, []).append(question.text)
        intents = list(by_intent)
        random.shuffle(intents)
        for wordings in by_intent.values():
            random.shuffle(wordings)
        self._wordings = {intent: (texts, _zipf(len(texts), WORDING_EXPONENT)) for intent, texts in by_intent.items()}
        self._intents = intents
        base = [1 / (rank + 1) ** INTENT_EXPONENT for rank in range(len(intents))]
        growth = [random.gauss(0, DRIFT) for _ in intents]
        # New topics come from the middle of the field: neither unknown nor at once the most asked.
        new = set(random.sample(range(len(intents) // 8, len(intents) // 2), NEW_INTENTS))
        bursting = random.randrange(len(intents) // 4)
        burst_days = {days - 1, days - 2, days // 2}
        self._by_day = []
        for day in range(days):
            weights = [b * exp(g * (day / days - 0.5)) for b, g in zip(base, growth, strict=True)]
            for intent in new:
                weights[intent] *= 0.0 if day < days * 2 // 3 else 3.0
            weights[bursting] *= BURST if day in burst_days else 1.0
            self._by_day.append(list(accumulate(weights)))

    def draw(self, day: int, random: Random) -> str:
        """One question as somebody wrote it."""
        texts, cumulative = self._wordings[self._intents[_draw(self._by_day[day], random)]]
        return texts[_draw(cumulative, random)]


class OneOffs:
    """Prompts that nobody asks a second time."""

    def __init__(self, route: RouteName, popularity: Popularity, random: Random) -> None:
        self._popularity = popularity
        self._out_of_scope = [q.text for q in questions(route) if q.intent == OUT_OF_SCOPE]
        random.shuffle(self._out_of_scope)
        self._seen = {fold_text(question.text) for question in questions(route)}

    def draw(self, day: int, random: Random) -> str:
        """A text that is equal, after folding, to no question of the corpus and to no text drawn before."""
        if self._out_of_scope and random.random() < 0.2:
            return self._out_of_scope.pop()
        while True:
            text = self._edit(self._popularity.draw(day, random), day, random)
            if (folded := fold_text(text)) not in self._seen:
                self._seen.add(folded)
                return text

    def _edit(self, text: str, day: int, random: Random) -> str:
        kind = random.random()
        if kind < 0.35:
            return _typing_error(text, random)
        if kind < 0.7:
            amount = f"{random.randrange(3, 900)}.{random.randrange(100):02}"
            return f"{text} It was {amount} at {random.choice(_SHOPS)} on {random.choice(_WEEKDAYS)}."
        return f"{text} {random.choice(('Also:', 'And', 'One more thing:'))} {self._popularity.draw(day, random)}"


def personal(route: RouteName, random: Random) -> str:
    """A prompt with personal data, all of it fictional; a few are asked often."""
    return _zipf_choice(_PERSONAL[route], random)


def now_or_here(route: RouteName, random: Random) -> str:
    """A prompt whose answer depends on the moment, the place or the person."""
    return _zipf_choice(_NOW_OR_HERE[route], random)


def surface(text: str, random: Random) -> str:
    """The text as another person types it: nothing that folding does not repair."""
    kind = random.randrange(6)
    if kind == 0:
        return text.lower()
    if kind == 1:
        return text.upper()
    if kind == 2:
        return f" {text} "
    if kind == 3:
        return text.replace(" ", "  ", 1)
    if kind == 4:
        return text.rstrip(" .!?") + random.choice(("", "?", "!", "??", " ?", "...")) or text
    return text.replace(" ", "\N{NO-BREAK SPACE}", 1)


def _typing_error(text: str, random: Random) -> str:
    letters = list(text)
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(len(letters))
        edit = random.randrange(3)
        if edit == 0:
            letters.insert(place, random.choice(_LETTERS))
        elif edit == 1 and len(letters) > 1:
            del letters[place]
        else:
            letters[place] = random.choice(_LETTERS)
    return "".join(letters)


def _zipf(ranks: int, exponent: float) -> list[float]:
    return list(accumulate(1 / (rank + 1) ** exponent for rank in range(ranks)))


def _draw(cumulative: Sequence[float], random: Random) -> int:
    return min(bisect(cumulative, random.random() * cumulative[-1]), len(cumulative) - 1)


def _zipf_choice(texts: Sequence[str], random: Random) -> str:
    return texts[_draw(_zipf(len(texts), 1.0), random)]
