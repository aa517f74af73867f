"""The text half: `input_ids` int32 [batch, length] to `embedding` float32 [batch, D], of length 1.

Each tower says how it may be used. `padding` is "longest" where what follows the end of a text has no influence, so that
a batch may be cut to its longest text, and "max_length" where every text has to be padded to the context length.
`pooling` names what is pooled, and `causal` says whether a token sees only what stands before it.
"""

from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, SiglipModel

from lookwire_export.reference import ExportError, Reference
from lookwire_export.towers.block import Block, can_be_written_out, projection
from lookwire_export.towers.own import own
from lookwire_export.towers.packing import Packing


def text_tower(reference: Reference, step: int = 1) -> Any:
    """Returns the text half of a reference, as it is served; the reference stays as it is.

    The attention of a tower that computes no padding is as wide as the ids, rounded up to a multiple of `step`, at most the
    context length. Raises ExportError for a model whose classes are not known here.
    """
    model = reference.model
    if isinstance(model, CLIPModel | SiglipModel) or _can_be_written_out(model):
        return TextTower(model, step).eval()
    if type(model) in (open_clip.CLIP, open_clip.CustomTextCLIP):
        return OwnTextTower(model).eval()
    raise ExportError(
        f"{reference.architecture} is a {type(model).__name__}, whose text tower is of no known kind; supported: open_clip's "
        "CLIP and CustomTextCLIP, transformers' CLIPModel and SiglipModel"
    )


def _can_be_written_out(model: Any) -> bool:
    text = getattr(model, "text", model)
    if type(model) is open_clip.CustomTextCLIP and (
        type(text) is not TextTransformer or text.cls_emb is not None or text.use_pad_mask
    ):
        return False
    known = type(model) in (open_clip.CLIP, open_clip.CustomTextCLIP)
    return known and can_be_written_out(text.transformer.resblocks)


class TextTower(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """A text transformer, written out: that of open_clip's CLIP, its TextTransformer, or the text models of transformers'
    CLIPModel and SiglipModel. The last block computes only the token that is pooled, and where what follows the end of a
    text has no influence, only what stands up to the end is computed at all, but for attention's scores.
    """

    def __init__(self, model: Any, step: int) -> None:
        super().__init__()
        self.step = step
        if isinstance(model, CLIPModel | SiglipModel):
            self._take_transformers(model)
        else:
            self._take_open_clip(model)
        self.causal = self.mask is not None
        self.packs = self.causal and self.pooling in ("argmax", "eos")
        self.padding = "longest" if self.packs else "max_length"

    def _take_open_clip(self, model: Any) -> None:
        text = getattr(model, "text", model)
        self.pooling = text.text_pool_type if text is model else text.pool_type
        self.eos = text.text_eos_id if text is model else text.eos_id
        self.tokens, self.places = text.token_embedding, text.positional_embedding
        self.blocks = nn.ModuleList(map(Block, text.transformer.resblocks))
        self.ln_final, self.projection = text.ln_final, projection(text.text_projection)
        self.register_buffer("mask", text.attn_mask)

    def _take_transformers(self, model: Any) -> None:
        text = model.text_model
        self.tokens, self.places = text.embeddings.token_embedding, text.embeddings.position_embedding.weight
        self.blocks = nn.ModuleList(map(Block, text.encoder.layers))
        self.ln_final = text.final_layer_norm
        if isinstance(model, SiglipModel):
            self.pooling, self.projection = "last", text.head
            self.register_buffer("mask", None)
            return
        # transformers pools the largest id where the config has the end of text that it had before it was corrected
        self.pooling, self.eos = "argmax" if text.eos_token_id == 2 else "eos", text.eos_token_id
        self.projection, length = model.text_projection, len(self.places)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, input_ids: Any) -> Any:
        """Returns the embedding of the pooled token."""
        if self.packs and self.step > 1:
            input_ids = self._widened(input_ids)
        length = input_ids.shape[1]
        mask = None if self.mask is None else self.mask[:length, :length]
        pool = self._pooled_of_packed if self.packs else self._pooled_of_padded
        return functional.normalize(self.projection(self.ln_final(pool(input_ids, mask)))[:, 0], dim=-1)

    def _pooled_of_packed(self, input_ids: Any, mask: Any) -> Any:
        """Returns the token at each text's end [batch, 1, width] after the last block."""
        ends = self._ends(input_ids)
        packing = Packing(ends, input_ids.shape[1])
        x = self.tokens.weight.index_select(0, packing.packed(input_ids)) + self.places.index_select(0, packing.places)
        for block in self.blocks[:-1]:
            x = block(x, x, mask, packing)
        return self.blocks[-1](x.index_select(0, packing.ends)[:, None], x, mask[ends][:, None, None], packing)

    def _pooled_of_padded(self, input_ids: Any, mask: Any) -> Any:
        """Returns the pooled token of each text [batch, 1, width] after the last block."""
        batch, length = input_ids.shape
        words = self.tokens.weight.index_select(0, input_ids.flatten()).unflatten(0, (batch, length))
        x = words + self.places[:length]
        for block in self.blocks[:-1]:
            x = block(x, x, mask)
        if self.pooling in ("first", "last"):
            at = slice(0, 1) if self.pooling == "first" else slice(-1, None)
            return self.blocks[-1](x[:, at], x, None if mask is None else mask[at])
        ends = self._ends(input_ids)
        pooled = x[torch.arange(batch), ends][:, None]
        return self.blocks[-1](pooled, x, None if mask is None else mask[ends][:, None, None])

    def _widened(self, input_ids: Any) -> Any:
        """Returns the ids with each row's last repeated up to the next multiple of `step`, at most to the context length.

        What follows an end has no influence. More ids than positions stay so many, and fail.
        """
        length = input_ids.shape[1]
        width = torch.sym_min((length + self.step - 1) // self.step * self.step, len(self.places))
        return input_ids.index_select(1, torch.arange(torch.sym_max(width, length)).clamp(max=length - 1))

    def _ends(self, input_ids: Any) -> Any:
        """Returns the place of each text's end, int64 [batch]: the first of several."""
        return (input_ids if self.pooling == "argmax" else (input_ids == self.eos).int()).argmax(dim=-1)


class OwnTextTower(nn.Module):  # type: ignore[misc, unused-ignore]  # as above
    """Any other text model of open_clip, computed by its own modules: towers of transformers, custom attention blocks."""

    padding = "max_length"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = own(model)
        text = getattr(model, "text", model)
        self.causal = getattr(text, "attn_mask", None) is not None
        if isinstance(text, HFTextEncoder):
            self.pooling = type(text.pooler).__name__.removesuffix("Pooler").lower()
        elif getattr(text, "cls_emb", None) is not None:
            self.pooling = "cls"
        else:
            self.pooling = text.text_pool_type if text is model else text.pool_type

    def forward(self, input_ids: Any) -> Any:
        """Returns what the model gives for ids of the context length."""
        return self.model.encode_text(input_ids.long(), normalize=True)
