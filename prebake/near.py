"""Near misses: the baked question that is nearest to one that was asked. An extra: needs model2vec and usearch.

In: a snapshot's ``near.mdb`` and the folder of a static embedding. Out: the nearest question of the same *group*, with
its similarity. A group is all that a request says but the text of its question: route, scope, knowledge, model, system
prompt and every parameter. Each group has an index (HNSW: Malkov and Yashunin, 2018, arXiv:1603.09320) of its own, so
that questions of two tenants, or with two system prompts, are never compared. Indexes are mapped, not read into memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
import numpy as np
import numpy.typing as npt
import orjson

from prebake.errors import SettingsError, SnapshotError
from prebake.folding import fold_text
from prebake.lookup import check_digest, check_size
from prebake.manifest import NEAR, Manifest
from prebake.question_guard import Difference, difference, words
from prebake.request import Keyed, key_request
from prebake.routes import Routes

FORMAT: Final = 1
META: Final = b"meta"
GROUP: Final = b"g"
QUESTION: Final = b"q"
LONGEST: Final = 1000  # characters of a question; longer ones say too much for one vector to hold
_OPEN_GROUPS: Final = 256
_CANDIDATES: Final = 4
_CALLS: Final = ("tools", "functions", "tool_choice", "function_call")


class Near(NamedTuple):
    """The nearest baked question: its key, its text, how near it is (cosine, 1: the same direction), what keeps it
    from being the same question."""

    fingerprint: bytes
    question: str
    similarity: float
    difference: Difference | None


class Embedding:
    """A static embedding (model2vec): the mean of its tokens' vectors, so it takes microseconds and no GPU."""

    def __init__(self, folder: str) -> None:
        """Load it from a local folder. Raises SettingsError if it cannot be, or if the extra is not installed."""
        try:
            from model2vec import StaticModel
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"near.model: {error.name} is not installed here; install prebake with its extra near"
            ) from None
        weights = Path(folder, "model.safetensors")
        if not weights.is_file():
            raise SettingsError(f"near.model: {weights}: no such file; name the folder of a model2vec model")
        try:
            self._model = StaticModel.from_pretrained(folder, normalize=True)
            with weights.open("rb") as file:
                self.digest = file_digest(file, "sha256").hexdigest()
        except Exception as error:  # whatever the libraries make of a damaged file
            raise SettingsError(f"near.model: {folder}: cannot be loaded: {error}") from error
        self.dimensions: int = self._model.dim

    def embed(self, questions: Sequence[str]) -> npt.NDArray[np.float32]:
        """One vector of length 1 for each question; of length 0 where it knows no word of it."""
        folded = [fold_text(question) for question in questions]
        return np.asarray(self._model.encode(folded, max_length=None, use_multiprocessing=False), np.float32)

    def unseen(self, question: str) -> set[str]:
        """The words of a question that add nothing to its vector."""
        found = words(question)
        return (
            {word for word, ids in zip(found, self._model.tokenize(found), strict=True) if not ids} if found else set()
        )


class NearIndex:
    """The baked questions of one snapshot, ready to be searched. Use from one thread."""

    def __init__(self, environment: lmdb.Environment, embedding: Embedding, place: Path) -> None:
        """Take over what :meth:`open` has opened and checked."""
        self._environment = environment
        self._embedding = embedding
        self._place = place
        self._get = environment.begin(buffers=True).get
        self._groups: OrderedDict[bytes, Any] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, embedding: Embedding) -> NearIndex | None:
        """The index of the snapshot in ``folder``; None if it was published without one.

        Raises SnapshotError if it is damaged, in another format, or was built with another embedding.
        """
        file = manifest.files.get(NEAR)
        if file is None:
            return None
        place = folder / NEAR
        check_size(place, file)
        check_digest(place, file)
        try:
            environment = lmdb.open(str(place), subdir=False, readonly=True, lock=False)
            with environment.begin() as transaction:
                meta = orjson.loads(transaction.get(META) or b"{}")
        except (lmdb.Error, orjson.JSONDecodeError) as error:
            raise SnapshotError(f"{place}: cannot be read: {error}; publish again") from error
        if meta.get("format") != FORMAT:
            raise SnapshotError(f"{place}: in format {meta.get('format')}, this prebake reads {FORMAT}; publish again")
        if meta.get("embedding") != embedding.digest:
            raise SnapshotError(f"{place}: was built with another embedding than near.model; publish again")
        return cls(environment, embedding, place)

    def nearest(self, group: bytes, question: str) -> Near | None:
        """The nearest baked question of the group, but rather one that nothing keeps apart; None if it has none."""
        index = self._group(group)
        (vector,) = self._embedding.embed([question])
        if index is None or not vector.any():
            return None
        unseen = self._embedding.unseen(question)
        found = [
            self._near(int(key), 1.0 - float(distance), question, unseen)
            for key, distance in zip(*_search(index, vector), strict=True)
        ]
        return next((near for near in found if near.difference is None), found[0] if found else None)

    def close(self) -> None:
        """Let go of the file; nothing may be searched afterwards."""
        self._groups.clear()
        del self._get
        self._environment.close()

    def _group(self, group: bytes) -> Any:
        index = self._groups.get(group)
        if index is None:
            stored = self._get(GROUP + group)
            if stored is None:
                return None
            index = new_index(self._embedding.dimensions)
            index.view(stored)
            self._groups[group] = index
            if len(self._groups) > _OPEN_GROUPS:
                self._groups.popitem(last=False)
        else:
            self._groups.move_to_end(group)
        return index

    def _near(self, number: int, similarity: float, question: str, unseen: set[str]) -> Near:
        stored = bytes(self._get(QUESTION + number.to_bytes(8, "big")) or b"")
        fingerprint, text = stored[:16], stored[16:].decode()
        apart = difference(question, text, unseen | self._embedding.unseen(text))
        return Near(fingerprint, text, min(1.0, similarity), apart)


def new_index(dimensions: int) -> Any:
    """An empty HNSW index as ``near.mdb`` holds it: cosine distance, half precision."""
    try:
        from usearch.index import Index
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"near.model: {error.name} is not installed here; install prebake with its extra near"
        ) from None
    # 32 looked at per search: on 15,000 questions it finds the nearest 96 to 98 times of 100, in 0.05 to 0.2 ms.
    return Index(ndim=dimensions, metric="cos", dtype="f16", expansion_search=32, enable_key_lookups=False)


def _search(index: Any, vector: npt.NDArray[np.float32]) -> tuple[Any, Any]:
    matches = index.search(vector, _CANDIDATES, threads=1)
    return matches.keys, matches.distances


def question_of(request: Mapping[str, Any]) -> str | None:
    """The text of a request that is one question, perhaps after a system prompt, and calls no tools; else None."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= 2 or any(request.get(name) for name in _CALLS):
        return None
    *before, last = messages
    if not isinstance(last, dict) or last.keys() != {"role", "content"} or last["role"] != "user":
        return None
    if any(not isinstance(first, dict) or first.get("role") not in ("system", "developer") for first in before):
        return None
    text = last["content"]
    return text if isinstance(text, str) and 0 < len(text) <= LONGEST else None


def without_question(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with an empty question: what all requests of its group have in common."""
    return {**request, "messages": [*request["messages"][:-1], {"role": "user", "content": ""}]}


def group_of(body: Mapping[str, Any], routes: Routes, tenant: str | None, namespace: str = "") -> bytes | None:
    """The group of a request that :func:`question_of` takes: the fingerprint it would have with an empty question."""
    key = key_request(without_question(body), routes, tenant, namespace)
    return key.fingerprint if isinstance(key, Keyed) else None
