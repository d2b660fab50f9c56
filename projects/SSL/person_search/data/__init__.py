"""Data: dataset records and search protocols, images, masks, caches and loaders.

May import `synthetic` (in `registration` only) and the top-level modules. Imported by all folders but `labels`.
Importing it registers the built-in datasets; custom ones are registered with the functions below.
"""

from .coco_json import register_coco_json
from .mot import register_mot
from .registration import register_builtin, register_custom

__all__ = ["register_builtin", "register_coco_json", "register_custom", "register_mot"]

register_builtin()
