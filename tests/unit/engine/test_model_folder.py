"""What is told of a model before an engine is started for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.model_folder import check_model
from prebake.errors import EngineError, SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model of one tensor."""
    (tmp_path / "config.json").write_text("{}")
    _write_tensor(tmp_path / "model.safetensors", 64)
    return tmp_path


def _write_tensor(file: Path, size: int, *, missing: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size - missing))


def test_a_complete_folder_is_fine(folder: Path) -> None:
    check_model(str(folder))


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "gpt2"])
def test_a_hugging_face_name_is_left_to_the_engine(name: str) -> None:
    check_model(name)


def test_no_model_is_an_error_of_the_settings() -> None:
    with pytest.raises(SettingsError, match=r"engine\.model"):
        check_model("")


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(EngineError, match="no such folder"):
        check_model(name)


def test_a_folder_without_configuration_is_no_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(EngineError, match=r"config\.json"):
        check_model(str(folder))


def test_a_folder_without_weights_will_do_only_for_a_dummy_load(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="no weights"):
        check_model(str(folder))
    check_model(str(folder), weights=False)


@pytest.mark.parametrize("cut", [1, 63])
def test_a_weight_file_cut_off_in_the_download_is_named(folder: Path, cut: int) -> None:
    _write_tensor(folder / "model.safetensors", 64, missing=cut)
    with pytest.raises(EngineError, match=r"model\.safetensors is cut off"):
        check_model(str(folder))


@pytest.mark.parametrize("data", [b"", b"\x07", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_weight_file_without_a_header_is_cut_off(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(EngineError, match="cut off"):
        check_model(str(folder))


def test_missing_shards_of_the_weights_are_counted(folder: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EngineError, match=r"1 of 2 weight files are missing, first model-2\.safetensors"):
        check_model(str(folder))


def test_missing_shards_of_the_older_format_are_counted_too(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "pytorch_model-1.bin"}}))
    with pytest.raises(EngineError, match=r"1 of 1 weight files are missing, first pytorch_model-1\.bin"):
        check_model(str(folder))


@pytest.mark.parametrize("text", ["", '{"weight_map": {"w":', "[]", '{"metadata": {}}', '{"weight_map": []}'])
def test_an_index_cut_off_in_the_download_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(EngineError, match=r"model\.safetensors\.index\.json is cut off"):
        check_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_description_cut_off_in_the_download_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"vocab_size": 1')
    with pytest.raises(EngineError, match=f"{name} is cut off"):
        check_model(str(folder))


@pytest.mark.parametrize("config", [{"vocab_size": 3}, {"text_config": {"vocab_size": 3}}])
@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"vocab": {"a": 0, "b": 3}}},
        {"model": {"vocab": [["a", 0.0]] * 4}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 3}]},
    ],
)
def test_a_tokenizer_with_tokens_that_the_model_does_not_know_is_refused(
    folder: Path, config: dict[str, object], tokenizer: dict[str, object]
) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EngineError, match="has a token 3, the model's vocab_size is 3: they do not belong together"):
        check_model(str(folder))


@pytest.mark.parametrize(
    "tokenizer", [{"model": {"vocab": {"a": 0, "b": 2}}}, {"model": {"vocab": {}}}, {"model": {}}, {}]
)
def test_a_model_may_know_more_tokens_than_its_tokenizer(folder: Path, tokenizer: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 3}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    check_model(str(folder))
