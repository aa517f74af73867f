"""A residual attention block, written out as plain matrix products."""

from typing import Any

from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from lookwire_export.towers.packing import Packing


class Block(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """Computes what open_clip's ResidualAttentionBlock and transformers' CLIPEncoderLayer and SiglipEncoderLayer compute,
    also for fewer queries than there are tokens. It shares their weights.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        if isinstance(layer, ResidualAttentionBlock):
            attention, (self.ln_1, self.ln_2) = layer.attn, (layer.ln_1, layer.ln_2)
            weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
            self.query, self.key, self.value = (linear(*both) for both in zip(weights, biases, strict=True))
            self.ls_1, self.ls_2 = layer.ls_1, layer.ls_2
        else:
            attention, (self.ln_1, self.ln_2) = layer.self_attn, (layer.layer_norm1, layer.layer_norm2)
            self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
            self.ls_1, self.ls_2 = nn.Identity(), nn.Identity()
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        self.out = attention.out_proj
        self.mlp = layer.mlp

    def forward(self, x: Any, context: Any, mask: Any = None, packing: Packing | None = None) -> Any:
        """Returns x [batch, queries, width] after it has attended to context [batch, length, width].

        The mask is added to the scores [batch, heads, queries, length]. With a packing, either may be packed: [tokens, width].
        """
        x = x + self.ls_1(self._attend(self.ln_1(x), self.ln_1(context), mask, packing))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def _attend(self, x: Any, context: Any, mask: Any, packing: Packing | None) -> Any:
        """softmax(q k^T / sqrt(head width) + mask) v for each head ("Attention Is All You Need", equation 1)."""
        q, k, v = (self._heads(part, packing) for part in (self.query(x), self.key(context), self.value(context)))
        scores = (q * self.head_width**-0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self.out(packing.packed(attended) if packing and x.ndim == 2 else attended)

    def _heads(self, x: Any, packing: Packing | None) -> Any:
        """[batch, tokens, width], or packed, to [batch, heads, tokens, head width]."""
        if packing and x.ndim == 2:
            x = packing.padded(x)
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


def can_be_written_out(layers: Any) -> bool:
    """Whether Block computes every one of open_clip's layers; there are custom ones too."""
    return all(type(layer) is ResidualAttentionBlock for layer in layers)


def linear(weight: Any, bias: Any = None) -> Any:
    """Returns x W^T + b for weight [out, in] and bias [out]; shares their memory."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def projection(projection: Any) -> Any:
    """Returns the module for what stands last in a tower: a matrix [in, out], a Linear, or None."""
    if projection is None:
        return nn.Identity()
    return projection if isinstance(projection, nn.Module) else linear(projection.T)
