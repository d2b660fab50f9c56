"""Data: importing this package registers the built-in datasets; own ones are registered with the functions below."""

from .builtin import register_builtin
from .coco_json import register_coco_json
from .custom import register_custom
from .mot import register_mot

__all__ = ["register_builtin", "register_coco_json", "register_custom", "register_mot"]

register_builtin()
