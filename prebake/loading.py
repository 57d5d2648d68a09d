"""Loads the settings: one TOML file, overridden by environment variables, checked as a whole before anything runs.

``PREBAKE_PLAN__BUDGET_USD=3`` overrides ``budget_usd`` in ``[plan]``. Paths in the file are relative to the file.
In: the file in force and the environment. Out: Settings, and where each value came from.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from prebake.errors import SettingsError
from prebake.settings import ENV_PREFIX, Settings

FILE_NAME = "prebake.toml"
ENV_FILE = "PREBAKE_SETTINGS"
# Keys whose values no message may repeat: a key itself, pasted for its digest, would stand in a log.
_SECRET = frozenset({"user_salt", "upstream_key", "upstream", "sha256", "ledger_url"})


def find_file(start: Path | None = None) -> Path | None:
    """The settings file in force: PREBAKE_SETTINGS, else the nearest ``prebake.toml`` from here upwards."""
    if named := os.environ.get(ENV_FILE):
        return Path(named)
    here = (start or Path.cwd()).resolve()
    return next((folder / FILE_NAME for folder in (here, *here.parents) if (folder / FILE_NAME).is_file()), None)


def load(path: Path | None = None) -> Settings:
    """The effective settings. Raises SettingsError naming file and key for anything unknown or wrong."""
    file = path or find_file()
    settings = _validate(_merge(_read_file(file), _read_environment()), file)
    return settings if file is None else _anchor(settings, file.resolve().parent)


def provenance(settings: Settings, path: Path | None = None) -> Iterator[tuple[str, Any, str]]:
    """Each effective setting as (dotted key, value, where it came from)."""
    file = path or find_file()
    origins = {key: str(file) for key in _leaves(_read_file(file))}
    origins |= dict.fromkeys(_leaves(_read_environment()), "environment")
    for key, value in _leaves(settings.model_dump(exclude={"routes", "keys"})).items():
        origin = next((origins[o] for o in origins if o == key or key.startswith(o + ".")), "default")
        yield key, value, origin
    for route in settings.routes:
        yield f"routes.{route.name}", route.model_dump(exclude_defaults=True), origins.get("routes", "default")
    for holder in settings.keys:
        yield f"keys.{holder.name}", holder.model_dump(exclude_defaults=True, exclude={"sha256"}), origins["keys"]


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{file}: no such settings file; create it or unset {ENV_FILE}") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from error


def _read_environment() -> dict[str, Any]:
    known = Settings.model_fields
    for variable in os.environ:
        section = variable.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if variable.startswith(ENV_PREFIX) and "__" in variable and section not in known:
            raise SettingsError(f"environment variable {variable}: no such section.{_nearest(section, known)}")
    return EnvSettingsSource(Settings)()


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= _leaves(value, name + ".") if isinstance(value, dict) and value else {name: value}
    return leaves


def _validate(values: dict[str, Any], file: Path | None) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error, file)) from None


def _sentence(error: ValidationError, file: Path | None) -> str:
    """One line for the first problem, and how many more there are."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        problem = f"unknown key {key!r}.{_nearest(str(first['loc'][-1]), _siblings(first['loc']))}"
    else:
        problem = f"{key}: {first['msg']}{_got(first['loc'], first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{file or 'environment'}: {problem}{more}"


def _got(location: tuple[int | str, ...], value: Any) -> str:
    """What was found, unless it is a secret or may hold one, as whole tables do."""
    told = isinstance(value, str | int | float) and not _SECRET.intersection(location)
    return f", got {value!r}" if told else ""


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """The names that are known where the unknown one stood."""
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        annotation: Any = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else f" Known: {', '.join(known)}."


def _anchor(settings: Settings, folder: Path) -> Settings:
    """Make the file's relative paths absolute, so that a command works from any folder."""
    store, ingest, engine = settings.store, settings.ingest, settings.engine
    if "://" not in store.root:
        store = store.model_copy(update={"root": str(folder / store.root)})
    paths = tuple(path if "://" in path else str(folder / path) for path in ingest.paths)
    ingest = ingest.model_copy(update={"paths": paths})
    if engine.model and (folder / engine.model).is_dir():
        engine = engine.model_copy(update={"model": str(folder / engine.model)})
    near = settings.near
    near = near.model_copy(
        update={name: str(folder / path) for name in ("model", "pairs") if (path := getattr(near, name))}
    )
    return settings.model_copy(update={"store": store, "ingest": ingest, "engine": engine, "near": near})
