"""The generated pages say what the code says."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import BaseModel

from docs.generate import FOLDER, PAGES
from prebake.cli.settings_file import settings_toml
from prebake.settings import Settings


@pytest.mark.parametrize("name", PAGES)
def test_each_generated_page_is_as_fresh_as_the_code(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def test_the_settings_file_that_init_writes_holds_every_section_and_is_valid() -> None:
    text = settings_toml()
    values = tomllib.loads(text)
    assert Settings(**values).routes[0].name == "default"
    assert set(Settings.model_fields) - {"keys"} <= set(values)
    assert "[gateway.limits]\n" in text
    assert "# [[keys]]\n" in text  # with keys in force nobody gets in without one: they are no default


def test_every_setting_stands_in_the_settings_file_with_its_default() -> None:
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and not line.rstrip().endswith("=") else line
        for line in settings_toml().splitlines()
        if not line.startswith("# assistant")
    )
    keys = {line.split(" = ")[0] for line in uncommented.splitlines() if " = " in line}
    for section in ("store", "plan", "gateway", "engine"):
        annotation = Settings.model_fields[section].annotation
        optional = {name for name, field in annotation.model_fields.items() if field.default is None}
        optional |= {name for name, field in annotation.model_fields.items() if isinstance(field.default, BaseModel)}
        assert set(annotation.model_fields) - optional <= keys
