"""Opening a store: what it makes, what it asks for, what it refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from prebake.errors import SettingsError, StorageError
from prebake.settings import Privacy, Settings
from prebake.settings import Store as StoreSettings
from storage.store import open_store
from tests.integration.storage.race import race


def test_a_new_store_has_its_ledger_and_a_secret_salt(settings: Settings) -> None:
    with open_store(settings) as store:
        assert len(store.salt) == 32
        assert store.ledger.runs() == []
    root = Path(settings.store.root)
    assert stat.S_IMODE((root / "user-salt").stat().st_mode) == 0o600
    with open_store(settings) as again:
        assert again.salt == store.salt


def test_processes_that_open_a_new_store_at_once_have_one_salt(settings: Settings) -> None:
    code = """
from storage.store import open_store
ready()
with open_store(settings) as store:
    tell(store.salt.hex())
"""
    first, second = race(settings, code)
    assert first == second


def test_a_salt_that_is_set_is_the_one_and_none_is_kept(settings: Settings) -> None:
    chosen = settings.model_copy(update={"privacy": Privacy(user_salt=SecretStr("chosen"))})
    with open_store(chosen) as store:
        assert store.salt == b"chosen"
    assert not Path(settings.store.root, "user-salt").exists()


def test_a_lost_salt_is_not_replaced_while_users_are_hashed_with_it(settings: Settings) -> None:
    with open_store(settings) as store:
        store.query_log.append(store.query_log.table.schema.empty_table())
    Path(settings.store.root, "user-salt").unlink()
    with pytest.raises(StorageError, match="put it back"), open_store(settings):
        pass


def test_an_s3_store_without_ledger_or_salt_says_what_to_set(s3_settings: Settings) -> None:
    no_ledger = s3_settings.model_copy(update={"store": s3_settings.store.model_copy(update={"ledger_url": ""})})
    with pytest.raises(SettingsError, match=r"store\.ledger_url.*postgresql"), open_store(no_ledger):
        pass
    no_salt = s3_settings.model_copy(update={"privacy": Privacy()})
    with pytest.raises(SettingsError, match="PREBAKE_PRIVACY__USER_SALT"), open_store(no_salt):
        pass


def test_a_store_in_s3_opens_with_a_ledger_of_each_kind(s3_settings: Settings, postgres_url: str) -> None:
    with open_store(s3_settings) as store:
        assert store.ledger.runs() == []
    store_settings = s3_settings.store.model_copy(update={"ledger_url": postgres_url})
    with open_store(s3_settings.model_copy(update={"store": store_settings})) as store:
        assert store.ledger.runs() == []


def test_a_store_in_a_folder_with_an_odd_name_works(tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(root=str(tmp_path / "my store? 50% #1 é")))
    with open_store(settings) as store:
        run_id = store.ledger.start_run("nightly", None, {})
    with open_store(settings) as store:
        assert [run.run_id for run in store.ledger.runs()] == [run_id]


def test_a_file_where_the_store_should_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StorageError), open_store(Settings(store=StoreSettings(root=str(tmp_path / "store")))):
        pass
