"""The configuration that a checkpoint carries, as text: reading it runs no code and opens no other file."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

logger = logging.getLogger(__name__)


def merge_checkpoint_config(cfg: CfgNode, path: str) -> None:
    """Merges the configuration of a checkpoint into `cfg`, in place: its own, else that of the config.yaml beside it.

    Args:
        cfg: A configuration with the project's keys.
        path: The checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged or has no configuration.
        ConfigError: A key of the configuration does not exist, or a value does not fit.
    """
    text = read_checkpoint_config(path)
    where = f"the configuration in {path}"
    if text is None:
        beside = os.path.join(os.path.dirname(path), "config.yaml")
        if not os.path.isfile(beside):
            raise CheckpointError(
                f"{path} carries no configuration, and there is no config.yaml beside it: name the configuration that "
                "it was trained with (--config-file)"
            )
        logger.info("%s carries no configuration: that of %s is used", path, beside)
        with open(beside, encoding="utf-8") as file:
            text, where = file.read(), beside
    merge_text(cfg, text, where)


def read_checkpoint_config(path: str) -> str | None:
    """YAML text that a checkpoint carries, None where it has none.

    Raises:
        CheckpointError: The file is missing, or no checkpoint of tensors and plain values.
    """
    from ..weights.checkpoint import CONFIG_KEY
    from ..weights.files import read_file

    content = read_file(Path(path))
    text = content.get(CONFIG_KEY) if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def merge_text(cfg: CfgNode, text: str, where: str) -> None:
    """Merges YAML text into `cfg`, in place. It holds plain values alone: `_BASE_` and tags are refused.

    Raises:
        ConfigError: It is no mapping of keys of this project, or a value does not fit.
    """
    from detectron2.config import CfgNode

    from ..config import with_current_names

    try:
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ValueError("expected a mapping of config keys")
        cfg.merge_from_other_cfg(CfgNode(with_current_names(values, where)))
    except (yaml.YAMLError, KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error.args[0] if error.args else error).split())}") from error
