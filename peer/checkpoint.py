"""Checkpoints in Hugging Face layout: written so that two peers with the same anchor write the same bytes.

    config.json  generation_config.json  tokenizer.json  tokenizer_config.json
    model-00001-of-000UU.safetensors ...   one a unit: a header, then the unit's flat vector as it is
    model.safetensors.index.json           which tensor is in which file

All text is made here, not by a library, whose next release might order or indent it differently: the files' digests are in a
signed record, and whoever pulls a checkpoint fetches each file from whichever peer has it. `N` is the elements of the flat
vector of all parameters.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peer.disk import make_folder, sync
from peer.model import hf_config, published_name
from peer.tokenizer_file import TokenizerFile
from swarm.allreduce.layout import ModelLayout, TensorSlot, UnitLayout
from swarm.config import RunConfig
from swarm.digest import blob_digest
from swarm.errors import DataError, LocalError, StateError
from swarm.messages import CheckpointFile

_INDEX: Final = "model.safetensors.index.json"
_WEIGHTS: Final = "model.safetensors"
_EMBEDDINGS: Final = {
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
    "gptj": ("lm_head.weight", "transformer.wte.weight"),
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
}  # family -> the head's tensor, and the embedding that stands in for it where a published checkpoint ties the two


def write_checkpoint(
    directory: Path,
    config: RunConfig,
    layout: ModelLayout,
    anchor: Tensor,  # (N,) fp32, CPU, contiguous
    tokenizer: TokenizerFile,
) -> tuple[CheckpointFile, ...]:
    """Writes a checkpoint that `from_pretrained` loads bit for bit; returns its files, sorted by name.

    The folder appears whole or not at all, and is on the disk when this returns; its parents are made. Needs no memory
    beyond the anchor's. Raises StateError if the folder already holds something or cannot be written.
    """
    if anchor.shape != (layout.numel,) or anchor.dtype != torch.float32 or not anchor.is_contiguous():
        raise LocalError(f"an anchor is contiguous fp32 of ({layout.numel},), not {anchor.dtype} {tuple(anchor.shape)}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StateError(f"{directory}: already holds something; name another folder or remove it")
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
        make_folder(partial)
        files = _write_all(partial, config, layout, anchor, tokenizer)
        sync(partial)
        partial.rename(directory)
        sync(directory.parent)
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(partial)
        raise StateError(f"{directory}: the checkpoint cannot be written: {error.strerror}") from None
    return files


def _write_all(
    folder: Path, config: RunConfig, layout: ModelLayout, anchor: Tensor, tokenizer: TokenizerFile
) -> tuple[CheckpointFile, ...]:
    # In training a separator stands in front of each document but the first as well as behind each: it begins texts too.
    ends = {"bos_token_id": tokenizer.separator_id, "eos_token_id": tokenizer.separator_id}
    texts = {
        # Without `pad_token_id`: Llama's classes would keep the separator's embedding from learning any further.
        "config.json": _json(hf_config(config.model) | ends),
        "generation_config.json": _json({**ends, "pad_token_id": tokenizer.separator_id, "use_cache": True}),
        _INDEX: _json(_index(config.model.family, layout)),
        "tokenizer.json": tokenizer.content,
        "tokenizer_config.json": _json(
            {
                "bos_token": tokenizer.separator,
                "eos_token": tokenizer.separator,
                "pad_token": tokenizer.separator,
                "add_bos_token": False,
                "add_eos_token": False,
                "split_special_tokens": True,  # one that a text spells out is text, as in training
                "clean_up_tokenization_spaces": False,
                "model_max_length": config.model.max_positions,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        ),
    }
    files = [_write_file(folder, name, [memoryview(text)]) for name, text in texts.items()]
    for unit in layout.units:
        header = _safetensors_header(config.model.family, unit)
        values = memoryview(anchor[layout.slice_of(unit.index)].numpy().astype("<f4", copy=False).data).cast("B")
        files.append(_write_file(folder, _unit_file(layout, unit), [memoryview(header), values]))
    return tuple(sorted(files, key=lambda file: file.name))


def _write_file(folder: Path, name: str, parts: list[memoryview]) -> CheckpointFile:
    with (folder / name).open("wb+") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
        # Hashed from the file, not from memory: what is named is what was written.
        with mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return CheckpointFile(name, num_bytes, blob_digest(view))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _unit_file(layout: ModelLayout, unit: UnitLayout) -> str:
    return f"model-{unit.index + 1:05d}-of-{len(layout.units):05d}.safetensors"


def _index(family: str, layout: ModelLayout) -> dict[str, Any]:
    files = {
        published_name(family, slot.name): _unit_file(layout, unit) for unit in layout.units for slot in unit.tensors
    }
    return {"metadata": {"total_size": 4 * layout.numel}, "weight_map": files}


def _safetensors_header(family: str, unit: UnitLayout) -> bytes:
    """Length and JSON of the header, padded with spaces to 8 bytes (github.com/huggingface/safetensors, Format)."""
    tensors = {
        published_name(family, slot.name): {
            "dtype": "F32",
            "shape": list(slot.shape),
            "data_offsets": [4 * slot.offset, 4 * (slot.offset + slot.numel)],
        }
        for slot in unit.tensors
    }
    text = json.dumps({"__metadata__": {"format": "pt"}} | tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_parameters(directory: Path, layout: ModelLayout) -> Tensor:
    """The parameters of a checkpoint folder as one flat vector, (N,) fp32, to start a run from.

    Reads ours and published ones of the three families, in one file or many, in fp32, bf16 or fp16. Where head and
    embedding are tied the head gets a copy. Only safetensors: other formats can execute code. Raises DataError.
    """
    config = _read_json(directory / "config.json")
    family = str(config.get("model_type"))
    if family not in _EMBEDDINGS:
        raise DataError(f"{directory}: model type {family!r}; known are {', '.join(_EMBEDDINGS)}")
    files = _files_of(directory)
    head, embedding = _EMBEDDINGS[family]
    if head not in files and config.get("tie_word_embeddings") and embedding in files:
        files[head] = files[embedding]
        tied = {head: embedding}
    else:
        tied = {}
    flat_N = torch.empty(layout.numel, dtype=torch.float32)
    for slot, place, name in _slots_by_file(family, layout, files, directory):
        with _opened(directory / files[name]) as file:
            flat_N[place].view(slot.shape).copy_(_tensor(file, tied.get(name, name), slot, directory))
    return flat_N


def _slots_by_file(
    family: str, layout: ModelLayout, files: dict[str, str], directory: Path
) -> Iterator[tuple[TensorSlot, slice, str]]:
    for slot, place in layout.placed():
        name = published_name(family, slot.name)
        if name not in files:
            raise DataError(f"{directory}: has no tensor {name}; is it a checkpoint of this model?")
        yield slot, place, name


def _files_of(directory: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    if (directory / _INDEX).exists():
        files = _read_json(directory / _INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(
            isinstance(one, str) and one == Path(one).name for one in files.values()
        ):
            raise DataError(f"{directory / _INDEX}: `weight_map` is not a table of file names")
        return dict(files)
    with _opened(directory / _WEIGHTS) as file:
        return dict.fromkeys(file.keys(), _WEIGHTS)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from None


def _tensor(file: Any, name: str, slot: TensorSlot, directory: Path) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise DataError(f"{directory}: {name} cannot be read: {error}") from None
    if tuple(tensor.shape) != slot.shape or not tensor.dtype.is_floating_point:
        raise DataError(
            f"{directory}: {name} is {tensor.dtype} {tuple(tensor.shape)}; the run's model has {slot.shape}"
        )
    return tensor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: not JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: a JSON object is due")
    return value
