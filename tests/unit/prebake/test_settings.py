"""One file, overridden by the environment; whatever is unknown or wrong is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import SettingsError
from prebake.loading import find_file, load, provenance
from prebake.settings import Settings


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PREBAKE_SETTINGS", raising=False)
    return tmp_path / "prebake.toml"


def test_everything_has_a_default(file: Path) -> None:
    file.write_text("")
    settings = load(file)
    assert [route.name for route in settings.routes] == ["default"]
    assert settings.routes[0].scope == "tenant"


def test_the_environment_overrides_the_file_and_each_value_says_where_it_is_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("[plan]\nbudget_usd = 3\nshard_size = 10\n[[routes]]\nname = 'faq'\n")
    monkeypatch.setenv("PREBAKE_PLAN__BUDGET_USD", "4.5")
    settings = load(file)
    assert (settings.plan.budget_usd, settings.plan.shard_size) == (4.5, 10)
    origins = {key: origin for key, _, origin in provenance(settings, file)}
    assert origins["plan.budget_usd"] == "environment"
    assert origins["plan.shard_size"] == origins["routes.faq"] == str(file)
    assert origins["mine.window_days"] == "default"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[plan]\nbudget_us = 1", "unknown key 'plan.budget_us'. Did you mean 'budget_usd'?"),
        ("[plans]", "unknown key 'plans'. Did you mean 'plan'?"),
        ("[[routes]]\nname = 'a'\nscop = 'shared'", "Did you mean 'scope'?"),
        ("[plan]\nbudget_usd = -1", "plan.budget_usd: Input should be greater than or equal to 0, got -1"),
        ("[plan]\nbudget_usd = 'much'", "plan.budget_usd"),
        ("[[routes]]\nname = 'a'\n[[routes]]\nname = 'a'", "two routes are called 'a'"),
        ("[plan", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_variable_names_the_section_that_was_meant(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setenv("PREBAKE_PLANN__BUDGET_USD", "1")
    with pytest.raises(SettingsError, match=r"PREBAKE_PLANN__BUDGET_USD.*Did you mean 'plan'"):
        load(file)


def test_a_file_that_is_not_there_or_not_text_is_said(file: Path) -> None:
    with pytest.raises(SettingsError, match="no such settings file"):
        load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="byte 0 is not UTF-8"):
        load(file)


def test_the_nearest_file_upwards_is_in_force_unless_one_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    below = file.parent / "a" / "b"
    below.mkdir(parents=True)
    assert find_file(below) == file
    monkeypatch.setenv("PREBAKE_SETTINGS", "/elsewhere.toml")
    assert find_file(below) == Path("/elsewhere.toml")


def test_relative_paths_start_at_the_file(file: Path) -> None:
    (file.parent / "model").mkdir()
    file.write_text("[store]\nroot = 'data'\n[engine]\nmodel = 'model'\n")
    settings = load(file)
    assert settings.store.root == str(file.parent / "data")
    assert settings.engine.model == str(file.parent / "model")
    file.write_text("[store]\nroot = 's3://bucket/a'\n[engine]\nmodel = 'org/name'\n")
    settings = load(file)
    assert (settings.store.root, settings.engine.model) == ("s3://bucket/a", "org/name")


def test_a_secret_is_not_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setenv("PREBAKE_PRIVACY__USER_SALT", "hush")
    settings = load(file)
    assert "hush" not in repr(settings)
    assert "hush" not in str(list(provenance(settings, file)))
    assert settings.privacy.user_salt is not None
    assert settings.privacy.user_salt.get_secret_value() == "hush"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().plan.shard_size = 1  # type: ignore[misc]
