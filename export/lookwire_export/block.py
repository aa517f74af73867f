"""A residual attention block of open_clip, written out as plain matrix products."""

from typing import Any

from torch import nn


class Block(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """Computes what open_clip's ResidualAttentionBlock computes, also for fewer queries than there are tokens."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.query, self.key, self.value = (_linear(*both) for both in zip(weights, biases, strict=True))
        self.out = attention.out_proj
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.ls_1, self.ls_2 = block.ls_1, block.ls_2
        self.mlp = block.mlp

    def forward(self, x: Any, context: Any, mask: Any = None) -> Any:
        """Returns x [batch, queries, width] after it has attended to context [batch, length, width].

        The mask is added to the scores [batch, heads, queries, length].
        """
        x = x + self.ls_1(self._attend(self.ln_1(x), self.ln_1(context), mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def _attend(self, x: Any, context: Any, mask: Any) -> Any:
        """softmax(q k^T / sqrt(head width) + mask) v for each head ("Attention Is All You Need", equation 1)."""
        q, k, v = self._heads(self.query(x)), self._heads(self.key(context)), self._heads(self.value(context))
        scores = (q * self.head_width**-0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    def _heads(self, x: Any) -> Any:
        """[batch, tokens, width] to [batch, heads, tokens, head width]."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


def _linear(weight: Any, bias: Any) -> Any:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return linear
