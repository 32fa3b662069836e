"""A forward pass that keeps what the losses read, and nothing else."""

from typing import Any

import torch
from torch import nn

from grace.models import Family


class SupervisedForward:
    """Runs a model so that only supervised positions reach the vocabulary projection, and keeps
    the hidden states that relational alignment reads, and no other layer's.

    Works through forward pre-hooks, so that wrapped models (DDP, FSDP) are called as usual::

        forward = SupervisedForward(model, family, relational=True)
        logits, hidden = forward(model, batch)    # (N, V), (B, S, d)

    Args:
        model: The model, unwrapped; it gets the hooks.
        family: Its adapter.
        relational: Whether to keep hidden states.
    """

    def __init__(self, model: nn.Module, family: Family, *, relational: bool) -> None:
        self._positions: tuple[torch.Tensor, torch.Tensor] | None = None
        self._hidden: torch.Tensor | None = None
        self._armed = False
        self._inputs = family.model_inputs
        head = model.get_submodule(family.output_head)
        head.register_forward_pre_hook(self._select)
        if family.model_type == "smolvlm":  # it puts its features among the embeddings unconverted
            for projector in family.projectors:
                model.get_submodule(projector).register_forward_hook(_in_weights_dtype)
        if relational:
            layer = family.relational_layer(model)
            layer.register_forward_pre_hook(self._keep, with_kwargs=True)

    def __call__(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the model.

        Args:
            model: The model that has the hooks, or a wrapper around it.
            batch: As :class:`grace.data.Collator` makes it.

        Returns:
            Logits (N, V) at the batch's supervised positions, and hidden states (B, S, d) or None.
        """
        self._positions = (batch["token_rows"], batch["token_columns"])
        self._armed = True
        inputs = {name: batch[name] for name in self._inputs if name in batch}
        try:
            logits = model(**inputs, use_cache=False).logits[0]
        finally:
            self._positions = None
            self._armed = False
        hidden, self._hidden = self._hidden, None
        return logits, hidden

    def _select(self, _module: nn.Module, args: tuple[torch.Tensor, ...]):
        if self._positions is None:
            return None  # an ordinary call, for example generation
        rows, columns = self._positions
        return (args[0][rows, columns].unsqueeze(0),)

    def _keep(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # armed once a forward: under gradient checkpointing the layer runs again in backward
        if self._armed:
            self._hidden = args[0] if args else kwargs["hidden_states"]
            self._armed = False


def _in_weights_dtype(module: nn.Module, _args: tuple, features: torch.Tensor) -> torch.Tensor:
    """Image features in the dtype of the weights: autocast leaves them in its own."""
    return features.to(next(module.parameters()).dtype)
