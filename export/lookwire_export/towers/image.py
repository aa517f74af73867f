"""The image half: `pixels` uint8 [batch, S, S, 3] to `embedding` float32 [batch, D], of length 1."""

from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from timm.utils import reparameterize_model
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, SiglipModel

from lookwire_export.reference import ImageRules, Reference
from lookwire_export.towers.block import Block, can_be_written_out, projection
from lookwire_export.towers.own import own
from lookwire_export.towers.pixels import fold, fold_into


def image_tower(reference: Reference) -> Any:
    """Returns the image half of a reference, as it is served; the reference stays as it is."""
    model, rules = reference.model, reference.image
    if isinstance(model, SiglipModel):
        return OwnImageTower(model.vision_model, rules).eval()
    if isinstance(model, CLIPModel) or _can_be_written_out(model.visual):
        return ImageTower(model, rules).eval()
    return OwnImageTower(model.visual, rules).eval()


def _can_be_written_out(visual: Any) -> bool:
    return (
        type(visual) is VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type in ("tok", "avg")
        and can_be_written_out(visual.transformer.resblocks)
    )


class ImageTower(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """A vision transformer with a class token, written out: open_clip's VisionTransformer or the vision model of
    transformers' CLIPModel. Where the class token is what is pooled, the last block computes nothing else.
    """

    def __init__(self, model: Any, rules: ImageRules) -> None:
        super().__init__()
        if isinstance(model, CLIPModel):
            vision, layers = model.vision_model, model.vision_model.encoder.layers
            patch, first = vision.embeddings.patch_embedding, vision.embeddings.class_embedding
            places = vision.embeddings.position_embedding.weight
            self.ln_pre, ln_post = vision.pre_layrnorm, vision.post_layernorm
            self.average, norm_last = False, True
            self.projection = model.visual_projection
        else:
            vision, layers = model.visual, model.visual.transformer.resblocks
            patch, first, places = vision.conv1, vision.class_embedding, vision.positional_embedding
            self.ln_pre, ln_post = vision.ln_pre, vision.ln_post
            self.average, norm_last = vision.pool_type == "avg", vision.final_ln_after_pool
            self.projection = projection(vision.proj)
        self.patch = own(patch)
        self.pixels = fold(self.patch, rules)
        self.first = nn.Parameter((first + places[0]).detach())
        self.places = nn.Parameter(places[1:].detach().clone())
        self.blocks = nn.ModuleList(map(Block, layers))
        before, after = (nn.Identity(), ln_post) if norm_last or not self.average else (ln_post, nn.Identity())
        self.ln_tokens, self.ln_post = before, after

    def forward(self, pixels: Any) -> Any:
        """Returns the embedding of the class token, or of the mean of the others."""
        patches = self.patch(self.pixels(pixels)).flatten(2).transpose(1, 2) + self.places
        x = self.ln_pre(torch.cat([self.first.expand(pixels.shape[0], 1, -1), patches], dim=1))
        for block in self.blocks[:-1]:
            x = block(x, x)
        if self.average:
            pooled = self.ln_tokens(self.blocks[-1](x, x))[:, 1:].mean(dim=1, keepdim=True)
        else:
            pooled = self.blocks[-1](x[:, :1], x)
        return functional.normalize(self.projection(self.ln_post(pooled))[:, 0], dim=-1)


class OwnImageTower(nn.Module):  # type: ignore[misc, unused-ignore]  # as above
    """Any other image model, computed by its own modules; branches that only training needs are merged before."""

    def __init__(self, visual: Any, rules: ImageRules) -> None:
        super().__init__()
        self.visual = reparameterize_model(own(visual), inplace=True)
        self.pixels = fold_into(self.visual, rules)

    def forward(self, pixels: Any) -> Any:
        """Returns what the model gives for normalised pixels."""
        output = self.visual(self.pixels(pixels))
        features = getattr(output, "pooler_output", output)  # as transformers has it, or open_clip
        return functional.normalize(features, dim=-1)
