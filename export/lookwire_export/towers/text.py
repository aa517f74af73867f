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


def text_tower(reference: Reference) -> Any:
    """Returns the text half of a reference, as it is served; the reference stays as it is.

    Raises ExportError for a model whose classes are not known here.
    """
    model = reference.model
    if isinstance(model, CLIPModel | SiglipModel) or _can_be_written_out(model):
        return TextTower(model).eval()
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
    CLIPModel and SiglipModel. The last block computes only the token that is pooled.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if isinstance(model, CLIPModel | SiglipModel):
            self._take_transformers(model)
        else:
            self._take_open_clip(model)
        self.causal = self.mask is not None
        cut = self.causal and self.pooling in ("argmax", "eos")
        self.padding = "longest" if cut else "max_length"

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
        batch, length = input_ids.shape
        words = self.tokens.weight.index_select(0, input_ids.flatten()).unflatten(0, (batch, length))
        x = words + self.places[:length]
        mask = None if self.mask is None else self.mask[:length, :length]
        for block in self.blocks[:-1]:
            x = block(x, x, mask)
        pooled = self.blocks[-1](*self._pooled(x, input_ids, mask))
        return functional.normalize(self.projection(self.ln_final(pooled))[:, 0], dim=-1)

    def _pooled(self, x: Any, input_ids: Any, mask: Any) -> tuple[Any, Any, Any]:
        """Returns the pooled token of each text [batch, 1, width], all tokens, and the mask of the pooled ones."""
        if self.pooling in ("first", "last"):
            at = slice(0, 1) if self.pooling == "first" else slice(-1, None)
            return x[:, at], x, None if mask is None else mask[at]
        ends = input_ids if self.pooling == "argmax" else (input_ids == self.eos).int()
        end = ends.argmax(dim=-1)  # the first of several
        return x[torch.arange(x.shape[0]), end][:, None], x, None if mask is None else mask[end][:, None, None]


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
