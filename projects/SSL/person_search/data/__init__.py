"""Data: importing this package registers the built-in datasets; own ones are registered with the functions below."""

from .coco_json import register_coco_json
from .mot import register_mot
from .registration import register_builtin, register_custom

__all__ = ["register_builtin", "register_coco_json", "register_custom", "register_mot"]

register_builtin()
