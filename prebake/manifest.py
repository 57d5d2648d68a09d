"""What a serving snapshot holds, written beside its data: how a reader knows that it has all of it, undamaged.

A snapshot is a folder ``<version>/`` with ``answers.bin`` (``answer_file.py``) and ``manifest.json``.
The folder above it has the pointer ``current``: which version is served, and which were published before.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from prebake.errors import SnapshotError

FORMAT: Final = 1
DATA: Final = "answers.bin"
MANIFEST: Final = "manifest.json"
POINTER: Final = "current"
SNAPSHOTS: Final = "snapshots"  # the store's folder that holds them
NEAR: Final = "near.mdb"  # prebake/near.py; a snapshot may do without it

# Becomes a folder's name: nothing that could lead elsewhere.
Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z-]*$")]


class File(BaseModel):
    """How a reader knows that it has all of a file, undamaged."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bytes: int = Field(ge=0, description="Its size.")
    sha256: str = Field(description="Its SHA-256, hexadecimal.")


class Threshold(BaseModel):
    """From which similarity on a route's near hits may be served, and what that was found to risk."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    similarity: float = Field(description="Least cosine similarity.")
    max_error: float = Field(description="Bound on the share of wrong answers among those served.")
    confidence: float = Field(description="How sure the bound is.")
    pairs: int = Field(description="Judged pairs it was found on.")
    accepted: int = Field(description="... of which it serves so many,")
    wrong: int = Field(description="... so many of them wrongly.")


class Manifest(BaseModel):
    """One published snapshot."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = Field(default=FORMAT, description="Layout of the folder; readers refuse what they do not know.")
    version: Version = Field(description="Name of the snapshot; later ones sort after earlier ones.")
    run_id: str = Field(description="Run that published it.")
    created_at: AwareDatetime = Field(description="When it was made, UTC.")
    answers: int = Field(ge=0, description="Answers in it.")
    bytes: int = Field(ge=0, description="Size of answers.bin.")
    sha256: str = Field(description="SHA-256 of answers.bin, hexadecimal.")
    routes: dict[str, int] = Field(default_factory=dict, description="Answers by route.")
    first_expires_at: AwareDatetime | None = Field(default=None, description="When the first answer stops being good.")
    last_expires_at: AwareDatetime | None = Field(default=None, description="When the last answer stops being good.")
    files: dict[str, File] = Field(default_factory=dict, description="Files beside answers.bin, for extras; by name.")
    near: dict[str, Threshold] = Field(default_factory=dict, description="Calibrated near hits, by route.")


class Pointer(BaseModel):
    """Which snapshot is served, and all that were published and are kept, oldest first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    current: Version
    versions: tuple[Version, ...]


Model = TypeVar("Model", bound=BaseModel)


class _Versioned(BaseModel):
    format: int


def read_manifest(data: bytes, place: str) -> Manifest:
    """Parse a manifest that was read at ``place``. Raises SnapshotError if damaged or of another format."""
    return _read(Manifest, data, place)


def read_pointer(data: bytes, place: str) -> Pointer:
    """Parse a pointer that was read at ``place``. Raises SnapshotError if damaged or of another format."""
    return _read(Pointer, data, place)


def _read(model: type[Model], data: bytes, place: str) -> Model:
    try:
        # The format first: another format may have other fields.
        found = _Versioned.model_validate_json(data).format
        if found == FORMAT:
            return model.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "JSON"
        raise SnapshotError(
            f"{place}: damaged ({where}: {problem['msg']}); publish again or go back with `prebake rollback`"
        ) from None
    raise SnapshotError(f"{place}: in format {found}, this prebake reads format {FORMAT}; upgrade prebake")
