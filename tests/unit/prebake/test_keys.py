"""Keys are random, kept as digests, and found by what a client presents."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from prebake.errors import SettingsError
from prebake.keys import Key, Keyring, new_key
from prebake.loading import load, provenance


def block(name: str, secret: str, more: str = "") -> str:
    return f"[[keys]]\nname = {name!r}\nsha256 = {sha256(secret.encode()).hexdigest()!r}\n{more}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prebake.toml"


def test_a_new_key_is_random_long_and_opens_with_its_digest() -> None:
    (key, digest), (other, _) = new_key(), new_key()
    assert key != other
    assert len(key) == len("pbk-") + 43  # 256 bits in base64
    ring = Keyring([Key(name="a", sha256=digest)])
    found = ring.find(key.encode())
    assert found is not None
    assert found.name == "a"
    assert key not in str(found)


@pytest.mark.parametrize("wrong", ["", "pbk-", " {key}", "{key} ", "{key}x", "{digest}"])
def test_nothing_but_the_key_itself_is_a_key(wrong: str) -> None:
    key, digest = new_key()
    assert Keyring([Key(name="a", sha256=digest)]).find(wrong.format(key=key, digest=digest).encode()) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (block("a", "1") + block("a", "2"), "two keys have the name 'a'"),
        (block("a", "1") + block("b", "1"), "two keys have the sha256"),
        (block("A b", "1"), "keys.0.name"),
        (block("a", "1", "requests_per_minute = -1"), "keys.0.requests_per_minute"),
        (block("a", "1", "tennant = 'x'"), "Did you mean 'tenant'?"),
        ("[[keys]]\nname = 'a'\nsha256 = 'pbk-a-key-pasted-for-its-digest'", "keys.0.sha256"),
        (block("a", "1") + "[gateway]\ntenant_header = 'x-tenant'", "remove one of them"),
        ("[gateway]\nupstream = 'https://user:hunter2@model/v1'", "gateway.upstream"),
        ("[gateway]\nupstream_key = ['hunter2']", "gateway.upstream_key"),
        ("[gateway]\nupstream_key = 'hunter2'\n" + block("a", "1") * 2, "two keys"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_the_secret(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert "hunter2" not in said
    assert "pasted" not in said


def test_the_effective_settings_show_whose_keys_there_are_and_no_secret(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREBAKE_GATEWAY__UPSTREAM_KEY", "hunter2")
    file.write_text(block("app", "1", "tenant = 'acme'"))
    settings = load(file)
    shown = {key: (str(value), origin) for key, value, origin in provenance(settings, file)}
    assert shown["keys.app"] == ("{'name': 'app', 'tenant': 'acme'}", str(file))
    assert "hunter2" not in str(shown) + repr(settings)
    assert settings.keys[0].sha256 not in str(shown)
