"""The two halves of an encoder as torch modules: raw bytes or token ids in, one embedding of length 1 a row out."""

from lookwire_export.towers.image import image_tower
from lookwire_export.towers.text import text_tower

__all__ = ["image_tower", "text_tower"]
