"""Why two questions that look alike must still not share an answer. In: their texts. Out: the reason, or none.

An embedding is close to blind to order, numbers and negation: "merge main into dev" and "merge dev into main", or
"turn on" and "turn off", score higher than most paraphrases (GPTCache#694, vllm-project/semantic-router#2691). No
threshold on similarity mends that, so these differences are looked for in the words themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

from prebake.folding import fold_text

# Letters of scripts that write words apart are read as words; of every other script each character stands for itself,
# so that order counts there too.
_WORD: Final = re.compile(r"[A-Za-z0-9_À-ɏͰ-ԯ԰-֏Ḁ-ỿἀ-῿']+|\w|[^\w\s]")
_MARKS: Final = frozenset(".,!?…;:\"'`()[]{}-–—¿¡。，！？、")  # noqa: RUF001 - other scripts' punctuation is meant

_TURNING: Final = {
    kind: frozenset(listed.split())
    for kind, listed in tomllib.loads(Path(__file__).with_name("turning_words.toml").read_text("utf-8")).items()
}
_PREFIXES: Final = ("un", "dis", "in", "im", "ir", "il", "non", "de", "mis", "anti")


class Difference(StrEnum):
    """What keeps two questions apart whatever their similarity."""

    ORDER = "order"  # the words they share stand in another order, or not equally often
    NUMBER = "number"  # one has a number, a day or a month that the other has not
    SUBJECT = "subject"  # one asks what, why, whose ... and the other does not
    POLARITY = "polarity"  # one has a negation or a word of direction that the other has not
    SYMBOL = "symbol"  # one has a sign (+, %, /, $ ...) that the other has not
    UNKNOWN = "unknown"  # one has a word that the embedding does not see, as a name or an identifier


def difference(first: str, second: str, unseen: Iterable[str] = ()) -> Difference | None:
    """Why an answer to the first question must not be given to the second; None: nothing speaks against it.

    ``unseen`` are words the embedding knows nothing of. Texts are folded first, so case and closing marks do not count.
    The order matters for scripts of every kind; the lists of opposites are English: in other languages words that
    turn a question round are bounded by the calibrated threshold alone.
    """
    one, other = words(first), words(second)
    ours, theirs = set(one), set(other)
    if [word for word in one if word in theirs] != [word for word in other if word in ours]:
        return Difference.ORDER
    apart = ours ^ theirs
    if any(word in _TURNING["number"] or any(map(str.isnumeric, word)) for word in apart):
        return Difference.NUMBER
    if apart & _TURNING["polarity"] or any(word.endswith("n't") for word in apart):
        return Difference.POLARITY
    if apart & _TURNING["subject"]:
        return Difference.SUBJECT
    if any(prefix + word in apart for word in apart for prefix in _PREFIXES):
        return Difference.POLARITY
    if any(not word.replace("'", "").isalpha() for word in apart):
        return Difference.SYMBOL
    return Difference.UNKNOWN if apart & set(unseen) else None


def words(text: str) -> list[str]:
    """The words and signs of the folded text, in their order; punctuation that parts them is left out."""
    folded = fold_text(text).replace("’", "'")  # noqa: RUF001 - the apostrophe that phones type
    return [word for word in _WORD.findall(folded) if word not in _MARKS]
