"""Looks at a model before an engine is started for it: a mistake is told at once and not after a minute of loading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import orjson

from prebake.errors import EngineError, SettingsError

_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_model(model: str, *, weights: bool = True) -> None:
    """Nothing, if the model is a complete folder or may be a Hugging Face name.

    ``weights``: whether there must be any (a dummy load needs none). Raises SettingsError if no model is set,
    EngineError naming what is missing in the folder.
    """
    if not model:
        raise SettingsError("engine.model: no model is set; give a folder or a Hugging Face name")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists() or not _HUB_NAME.fullmatch(model) or model.startswith("."):
            raise EngineError(f"engine.model {model!r}: no such folder; download the model there or mend the setting")
        return
    if not (folder / "config.json").is_file():
        raise EngineError(f"engine.model {model!r}: the folder has no config.json; download the model again")
    config = _read_object(folder / "config.json")
    if weights:
        _check_weights(folder)
    if (folder / "tokenizer.json").is_file():
        _check_vocabulary(folder, config)


def _check_weights(folder: Path) -> None:
    if not any(True for pattern in _WEIGHTS for _ in folder.glob(pattern)):
        raise EngineError(f"engine.model '{folder}': the folder has no weights; download the model again")
    for index in (folder / name for name in _INDEXES):
        weight_map = _read_object(index).get("weight_map") if index.is_file() else {}
        if not isinstance(weight_map, dict):
            raise _cut_off(index)
        wanted = set(map(str, weight_map.values()))
        if missing := sorted(name for name in wanted if not (folder / name).is_file()):
            raise EngineError(
                f"engine.model '{folder}': {len(missing)} of {len(wanted)} weight files are missing, first "
                f"{missing[0]}; go on with the download"
            )
    for file in sorted(folder.glob("*.safetensors")):
        if file.stat().st_size < _promised_bytes(file):
            raise _cut_off(file)


def _check_vocabulary(folder: Path, config: dict[str, Any]) -> None:
    """The model must know every token of the tokenizer; that it knows more is usual (rows added to fill blocks)."""
    text = config.get("text_config")
    known = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    tokenizer = _read_object(folder / "tokenizer.json")
    try:
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]  # Unigram: a list
        highest = max([*ids, *(token["id"] for token in tokenizer.get("added_tokens", ()))], default=-1)
    except (KeyError, TypeError):
        return  # a layout that we do not know: the engine will see
    if isinstance(known, int) and highest >= known:
        raise EngineError(
            f"engine.model '{folder}': tokenizer.json has a token {highest}, the model's vocab_size is {known}: they "
            "do not belong together, and such a token would end the engine; download both again"
        )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _cut_off(file)
    return found


def _cut_off(file: Path) -> EngineError:
    return EngineError(f"engine.model '{file.parent}': {file.name} is cut off; download it again")


def _promised_bytes(file: Path) -> int:
    """The size a safetensors file says it has (format: 8 bytes header length, JSON header, tensors)."""
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        text = stream.read(length) if len(head) == 8 and length < file.stat().st_size else b""
    try:
        header = orjson.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return file.stat().st_size + 1  # no readable header: surely not whole
    return 8 + length + max(ends, default=0)
