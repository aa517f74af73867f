"""The two halves of an encoder as graphs: uint8 pixels or token ids in, one normalised embedding a row out.

They compute what open_clip computes, arranged for serving: mean and std are folded into the patch convolution, the causal
mask is cut to the length of the ids, and the last block computes only the token that is pooled.
"""

from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.nn import functional

from lookwire_export.block import Block
from lookwire_export.checkpoint import Checkpoint, ExportError


class ImageTower(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """The image half: `pixels` uint8 [batch, S, S, 3] to `embedding` float32 [batch, D], of length 1."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        width = visual.class_embedding.shape[0]
        self.patch = nn.Conv2d(3, width, visual.patch_size, stride=visual.patch_size)
        self.patch.weight, self.patch.bias = _folded(visual)
        self.first = nn.Parameter(visual.class_embedding + visual.positional_embedding[0])
        self.places = nn.Parameter(visual.positional_embedding[1:].clone())
        self.ln_pre = visual.ln_pre
        self.blocks = nn.ModuleList(map(Block, visual.transformer.resblocks))
        self.ln_post = visual.ln_post
        self.projection = visual.proj

    def forward(self, pixels: Any) -> Any:
        """Returns the embedding of the class token."""
        patches = self.patch(pixels.permute(0, 3, 1, 2).float()).flatten(2).transpose(1, 2) + self.places
        x = self.ln_pre(torch.cat([self.first.expand(pixels.shape[0], 1, -1), patches], dim=1))
        for block in self.blocks[:-1]:
            x = block(x, x)
        pooled = self.blocks[-1](x[:, :1], x)[:, 0]
        return functional.normalize(self.ln_post(pooled) @ self.projection, dim=-1)


class TextTower(nn.Module):  # type: ignore[misc, unused-ignore]  # as above
    """The text half: `input_ids` int32 [batch, length] to `embedding` float32 [batch, D], of length 1.

    What follows the end-of-text token has no influence, because the mask is causal.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens = model.token_embedding
        self.places = model.positional_embedding
        self.blocks = nn.ModuleList(map(Block, model.transformer.resblocks))
        self.ln_final = model.ln_final
        self.projection = model.text_projection
        self.register_buffer("mask", model.attn_mask)

    def forward(self, input_ids: Any) -> Any:
        """Returns the embedding of the end-of-text token: the largest id, first if there are several."""
        batch, length = input_ids.shape
        mask = self.mask[:length, :length]
        words = self.tokens.weight.index_select(0, input_ids.flatten()).unflatten(0, (batch, length))
        x = words + self.places[:length]
        for block in self.blocks[:-1]:
            x = block(x, x, mask)
        end = input_ids.argmax(dim=-1)
        last = x[torch.arange(batch), end][:, None]
        pooled = self.blocks[-1](last, x, mask[end][:, None, None])[:, 0]
        return functional.normalize(self.ln_final(pooled) @ self.projection, dim=-1)


def towers(checkpoint: Checkpoint) -> tuple[ImageTower, TextTower]:
    """Returns both halves of a checkpoint; raises ExportError for an architecture that they do not cover."""
    _require_supported(checkpoint)
    return ImageTower(checkpoint.model.visual).eval(), TextTower(checkpoint.model).eval()


def _folded(visual: Any) -> tuple[Any, Any]:
    """Returns the patch convolution for raw bytes: with y = w * (p / 255 - mean) / std, the weight is w / (255 std) and
    the bias - sum(w mean / std) over the patch. Exact, because the convolution has no padding.
    """
    weight = visual.conv1.weight.detach().double()
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (visual.image_mean, visual.image_std)
    )
    bias = -(weight * mean / std).sum(dim=(1, 2, 3))
    return nn.Parameter((weight / (255 * std)).float()), nn.Parameter(bias.float())


def _require_supported(checkpoint: Checkpoint) -> None:
    model, name = checkpoint.model, checkpoint.architecture
    if type(model) is not open_clip.CLIP:
        raise ExportError(f"{name} is a {type(model).__name__}; only open_clip's CLIP class is supported")
    visual = model.visual
    if type(visual) is not VisionTransformer:
        raise ExportError(f"{name} has a {type(visual).__name__} image tower; only VisionTransformer is supported")
    if visual.pool_type != "tok" or visual.attn_pool is not None:
        raise ExportError(
            f"{name} pools images by {visual.pool_type!r} or attention; only the class token is supported"
        )
    if model.attn_mask is None:
        raise ExportError(f"{name} has a bidirectional text tower; only causal ones are supported")
    if model.text_pool_type != "argmax":
        raise ExportError(
            f"{name} pools texts by {model.text_pool_type!r}; only pooling at the end of text is supported"
        )
    if not isinstance(model.text_projection, nn.Parameter):
        raise ExportError(f"{name} has no plain text projection matrix")
    blocks = [*visual.transformer.resblocks, *model.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        raise ExportError(f"{name} has custom attention blocks; only open_clip's ResidualAttentionBlock is supported")
    tokenizer = checkpoint.tokenizer
    if (
        type(tokenizer) is not SimpleTokenizer
        or tokenizer.clean_fn is not get_clean_fn("lower")
        or tokenizer.reduction_fn
    ):
        raise ExportError(
            f"{name} has a tokenizer of its own; only open_clip's SimpleTokenizer as it stands is supported"
        )
