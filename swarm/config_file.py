"""A run's config from a TOML file: a preset to start from, the file's keys on top, and every mistake named in one line.

`preset = "small"` at the top starts from a whole preset; `preset = "pythia-70m"` under `[model]` takes only its model.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from swarm.config import RunConfig, Section
from swarm.config_check import problems_of
from swarm.errors import ConfigError
from swarm.presets import preset_config

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_SHOWN: Final = 60  # letters of a wrong value that an error repeats


def load_config(path: Path) -> RunConfig:
    """The config that a TOML file describes. Raises ConfigError naming each wrong key, its value and its limit."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
        if len(raw) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; is it a config?")
        table = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    try:
        return config_from_table(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_from_table(table: dict[str, Any]) -> RunConfig:
    """The config of a parsed TOML table; lists count as tuples, whole numbers as floats where floats are due."""
    try:
        config = RunConfig.model_validate(_on_presets(table))
    except ValidationError as error:
        raise ConfigError(describe(error)) from None
    if problems := problems_of(config):
        raise ConfigError("; ".join(problems))
    return config


def describe(error: ValidationError) -> str:
    """What pydantic found, one clause a problem, joined by `; `."""
    return "; ".join(_describe_one(dict(one)) for one in error.errors(include_url=False, include_context=False))


def _on_presets(table: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = _tuples(table)
    base: dict[str, Any] = {}
    if "preset" in given:
        base = preset_config(given.pop("preset")).model_dump()
    model = given.get("model")
    if isinstance(model, dict) and "preset" in model:
        base["model"] = preset_config(model.pop("preset")).model.model_dump()
    return _merged(base, given)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = base.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _describe_one(error: dict[str, Any]) -> str:
    location: tuple[str | int, ...] = error["loc"]
    where = _dotted(location)
    if error["type"] == "extra_forbidden":
        return f"unknown key `{where}`{_suggestion(location)}"
    if error["type"] == "missing":
        return f"`{where}` is missing"
    reason = str(error["msg"])
    reason = reason.removeprefix("Input ") if reason.startswith("Input should") else reason
    if error["type"] == "model_type":
        reason = f"should be a table, [{where}]"
    shown = repr(error["input"])
    return f"{where} = {shown[:_MAX_SHOWN] + '...' * (len(shown) > _MAX_SHOWN)}: {reason}"


def _dotted(location: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".")[:200]


def _suggestion(location: tuple[str | int, ...]) -> str:
    """The key that was probably meant: the nearest in the same table, else the same name in another one."""
    section: type[Section] | None = RunConfig
    for part in location[:-1]:
        if section is not None and isinstance(part, str):
            section = _section_of(section, part)
    key = str(location[-1])
    known = list(section.model_fields) if section is not None else []
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return f"; did you mean `{near[0]}`?"
    for name in RunConfig.model_fields:
        elsewhere = _section_of(RunConfig, name)
        if elsewhere is not None and key in elsewhere.model_fields:
            return f"; did you mean `{name}.{key}`?"
    return f"; known here: {', '.join(known)}"


def _section_of(section: type[Section], name: str) -> type[Section] | None:
    field = section.model_fields.get(name)
    kind: Any = field.annotation if field is not None else None
    kind = getattr(kind, "__args__", (kind,))[0]  # tuple[SourceConfig, ...] -> SourceConfig
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None
