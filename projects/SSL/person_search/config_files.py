"""Config files: those of the package, their names, renamed keys, and errors."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from .errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG_FOLDER = Path(__file__).parent / "configs"
"""Folder of the configs in the package; in a checkout, a link to projects/SSL/configs."""

RENAMED_KEYS = {
    "MODEL.SECOND_HEAD.FIRST_HEAD_SCORE": "MODEL.REID_HEAD.BOX_HEAD_SCORE",
    "MODEL.FIRST_HEAD": "MODEL.BOX_HEAD",
    "MODEL.SECOND_HEAD": "MODEL.REID_HEAD",
    "SSL.MEMORY.MOMENTUM": "SSL.MEMORY.LAMBDA",
    "SSL.MEMORY.INIT_BN_BATCHES": "SSL.MEMORY.CALIBRATION_FRAMES",
}
"""Current names of renamed keys, or of renamed nodes with all keys below them."""


def get_config_file(name: str) -> str:
    """Path of a config file.

    Args:
        name: path or, if there is no such file, name of a config in the package: "prw", "prw.yaml", "ablations/dml", or
            its path in a checkout.

    Raises:
        ConfigError: there is no such config; the message suggests similar names.
    """
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return path
    own = name.removeprefix("projects/SSL/configs/").removesuffix(".yaml")
    known = sorted(str(file.relative_to(CONFIG_FOLDER).with_suffix("")) for file in CONFIG_FOLDER.rglob("*.yaml"))
    if own in known:
        return str(CONFIG_FOLDER / f"{own}.yaml")
    near = difflib.get_close_matches(own, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the package has {', '.join(known)}"
    raise ConfigError(f"config file {name} does not exist: check --config-file; {hint}")


class _Files(CfgNode):
    """Reader of YAML files whose `_BASE_` may be the bare name of a config in the package."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Nested values of a file, merged with those that it inherits from."""
        file = Path(filename)
        # The name is joined to the folder of the inheriting file, where no such file exists.
        for folder in () if file.is_file() else list(file.parents)[:3]:
            if folder.is_dir() and (CONFIG_FOLDER / file.relative_to(folder)).is_file():
                filename = str(CONFIG_FOLDER / file.relative_to(folder))
                break
        return super().load_yaml_with_base(filename, allow_unsafe)


def merge_file_and_options(cfg: CfgNode, config_file: str, options: Sequence[str]) -> None:
    """Merges a YAML file and command-line options into `cfg`, in place.

    Args:
        cfg: config with the project's keys.
        config_file: path of a YAML file, or a name (`get_config_file`); "" for none.
        options: KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: a key does not exist (the message suggests similar ones) or a value does not fit.
    """
    flags = [word for word in options if word.startswith("--")]
    if flags:
        raise ConfigError(f"command line: {flags[0]} follows a config key; flags come before all KEY VALUE pairs")
    if len(options) % 2:
        raise ConfigError(f"command line: expected KEY VALUE pairs, found {len(options)} words: {' '.join(options)}")
    if config_file:
        config_file = get_config_file(config_file)
        with _named(cfg, config_file):
            loaded = _Files.load_yaml_with_base(config_file)
            if loaded.get("VERSION", cfg.VERSION) != cfg.VERSION:
                raise ConfigError(f"{config_file}: VERSION is {loaded['VERSION']}, expected {cfg.VERSION}")
            cfg.merge_from_other_cfg(CfgNode(with_current_names(loaded, config_file)))
    with _named(cfg, "command line"):
        current = {key: current_name(key) for key in options[::2]}
        _warn_of_old_names("command line", [(old, new) for old, new in current.items() if old != new])
        cfg.merge_from_list([current[word] if i % 2 == 0 else word for i, word in enumerate(options)])


def with_current_names(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Config values under the current names of their keys. Logs one warning that lists the renamed ones.

    Args:
        values: nested mapping, as in a YAML file; not modified.
        where: source of the values, for the warning.

    Raises:
        ConfigError: a key occurs under both names.
    """
    current: dict[str, Any] = {}
    renamed = []
    for key, value in _leaves(values):
        new = current_name(key)
        renamed += [(key, new)] if new != key else []
        node = current
        *parents, name = new.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        if name in node:
            raise ConfigError(f"{where}: {key} and {new} are names of the same key: remove {key}")
        node[name] = value
    _warn_of_old_names(where, renamed)
    return current


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all leaves, those under current names first."""
    later = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if current_name(key) != key and not (isinstance(value, Mapping) and value):
            later.append((key, value))
        elif isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
    yield from later


def current_name(key: str) -> str:
    """Present name of a key, which may be a name of an earlier version (see `RENAMED_KEYS`)."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith(f"{old}."):
            # A node and a key in it may both have been renamed.
            return current_name(new + key[len(old) :])
    return key


def _warn_of_old_names(where: str, renamed: Sequence[tuple[str, str]]) -> None:
    if renamed:
        names = ", ".join(f"{old} is now {new}" for old, new in renamed)
        logger.warning("%s uses the old names of renamed keys: %s", where, names)


@contextmanager
def _named(cfg: CfgNode, where: str) -> Iterator[None]:
    """Context that turns errors into a ConfigError of one line that begins with `where`."""
    try:
        yield
    except yaml.YAMLError as error:
        # The whole message, with line and column, which the first argument lacks.
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: expected a mapping of config keys, found something else") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: {error.filename} does not exist: check its _BASE_") from error
    except (KeyError, ValueError, AssertionError, OSError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        unknown = re.search(r"Non-existent (?:config )?key: (\S+)", message)
        raise ConfigError(_unknown_key(cfg, unknown[1]) if unknown else f"{where}: {message}") from error


def _unknown_key(cfg: CfgNode, key: str) -> str:
    near = difflib.get_close_matches(key, list(flatten(cfg)), n=3, cutoff=0.5)
    return f"unknown config key {key}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a config by dotted key, with tuples as lists, as in YAML."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and (isinstance(value, CfgNode) or value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
