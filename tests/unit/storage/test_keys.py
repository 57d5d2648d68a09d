"""Keys never lead out of the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.errors import SettingsError, StorageError
from prebake.settings import Store
from storage.objects import check_key, open_objects


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a//b", "a/", "../a", "a/../b", "a/./b", ".hidden", "a\\b", "a\0b"])
def test_a_key_that_could_lead_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(StorageError, match="is no key"):
        check_key(key)


@given(st.text())
def test_an_accepted_key_stays_inside_the_folder(key: str) -> None:
    try:
        check_key(key)
    except StorageError:
        return
    root = Path("/store")
    assert (root / key).relative_to(root).parts == tuple(key.split("/"))


@pytest.mark.parametrize("root", ["gs://bucket/x", "a%20b", "a[1]", "s3:///x"])
def test_a_root_that_cannot_work_is_refused_when_it_is_opened(root: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.root"):
        open_objects(Store(root=root))
