"""The two halves of an encoder as graphs: uint8 pixels or token ids in, one normalised embedding a row out.

They compute what open_clip computes, arranged for serving: mean and std are folded into the patch convolution, the causal
mask is cut to the length of the ids, and the last block computes only the token that is pooled. Attention is written as
plain matrix products, so that a graph optimiser finds the shapes that it knows.
"""

from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.nn import functional

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
        self.blocks = visual.transformer.resblocks
        self.ln_post = visual.ln_post
        self.projection = visual.proj

    def forward(self, pixels: Any) -> Any:
        """Returns the embedding of the class token."""
        patches = self.patch(pixels.permute(0, 3, 1, 2).float()).flatten(2).transpose(1, 2) + self.places
        x = self.ln_pre(torch.cat([self.first.expand(pixels.shape[0], 1, -1), patches], dim=1))
        for block in self.blocks[:-1]:
            x = _block(block, x, x, None)
        pooled = _block(self.blocks[-1], x[:, :1], x, None)[:, 0]
        return functional.normalize(self.ln_post(pooled) @ self.projection, dim=-1)


class TextTower(nn.Module):  # type: ignore[misc, unused-ignore]  # as above
    """The text half: `input_ids` int32 [batch, length] to `embedding` float32 [batch, D], of length 1.

    What follows the end-of-text token has no influence, because the mask is causal.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens = model.token_embedding
        self.places = model.positional_embedding
        self.blocks = model.transformer.resblocks
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
            x = _block(block, x, x, mask)
        end = input_ids.argmax(dim=-1)
        last = x[torch.arange(batch), end][:, None]
        pooled = _block(self.blocks[-1], last, x, mask[end][:, None, None])[:, 0]
        return functional.normalize(self.ln_final(pooled) @ self.projection, dim=-1)


def towers(checkpoint: Checkpoint) -> tuple[ImageTower, TextTower]:
    """Returns both halves of a checkpoint; raises ExportError for an architecture that they do not cover."""
    _require_supported(checkpoint)
    return ImageTower(checkpoint.model.visual).eval(), TextTower(checkpoint.model).eval()


def _block(block: Any, x: Any, context: Any, mask: Any) -> Any:
    """Applies a residual block to x [batch, queries, width], which attends to context [batch, length, width]; the mask
    is added to the scores [batch, heads, queries, length]."""
    x = x + block.ls_1(_attention(block.attn, block.ln_1(x), block.ln_1(context), mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _attention(attention: Any, x: Any, context: Any, mask: Any) -> Any:
    """Multi-head attention, softmax(q k^T / sqrt(d) + mask) v per head ("Attention Is All You Need", eq. 1)."""
    heads, d = attention.num_heads, attention.head_dim
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        functional.linear(source, weight, bias).unflatten(-1, (heads, d)).transpose(1, 2)
        for source, weight, bias in zip((x, context, context), weights, biases, strict=True)
    )
    scores = (q * d**-0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return attention.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def _folded(visual: Any) -> tuple[Any, Any]:
    """Returns the patch convolution for raw bytes: with y = w * (p / 255 - mean) / std, the weight is w / (255 std) and
    the bias - sum(w mean / std) over the patch. Exact, because the convolution has no padding."""
    weight = visual.conv1.weight.detach().double()
    mean, std = (torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (visual.image_mean, visual.image_std))
    bias = -(weight * mean / std).sum(dim=(1, 2, 3))
    return nn.Parameter((weight / (255 * std)).float()), nn.Parameter(bias.float())


def _require_supported(checkpoint: Checkpoint) -> None:
    model, name = checkpoint.model, checkpoint.architecture
    if not isinstance(model, open_clip.CLIP):
        raise ExportError(f"{name} is a {type(model).__name__}: only open_clip's CLIP class is supported.")
    if not isinstance(model.visual, VisionTransformer):
        raise ExportError(f"{name} has a {type(model.visual).__name__} image tower: only VisionTransformer is supported.")
    if model.visual.pool_type != "tok" or model.visual.attn_pool is not None:
        raise ExportError(f"{name} pools images by attention or average: only the class token is supported.")
    if model.visual.image_size[0] != model.visual.image_size[1]:
        raise ExportError(f"{name} takes images of {model.visual.image_size}: only square images are supported.")
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        kind = "bidirectional" if model.attn_mask is None else f"pooled by {model.text_pool_type!r}"
        raise ExportError(f"{name} has a {kind} text tower: only causal ones pooled at the end of text are supported.")
    if not isinstance(model.text_projection, nn.Parameter) or model.visual.proj is None:
        raise ExportError(f"{name} has no plain projection matrices.")
    blocks = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        raise ExportError(f"{name} has custom attention blocks: only open_clip's ResidualAttentionBlock is supported.")
    tokenizer = checkpoint.tokenizer
    if type(tokenizer) is not open_clip.SimpleTokenizer:
        raise ExportError(f"{name} uses a {type(tokenizer).__name__}: only open_clip's SimpleTokenizer is supported.")
