"""Turns open_clip checkpoints into a model repository that Lookwire serves.

`lookwire_export.garments` draws the demo's catalogue and needs only Pillow and numpy; everything else needs torch.
"""
