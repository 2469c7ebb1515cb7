"""Modules of one shape run as one: the experts of a model, or the same model from several seeds.

Small matrices leave a machine idle: most of a step is the launching of kernels. Every parameter of a stack holds
those of all its members along its first axis, and torch.func.vmap turns each product into one batched product.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Stack(nn.Module):
    """Members stacked. `tie` makes the parameters of the members views of the stack's, so that they follow it.

    Args:
        members: modules of one structure. Their training mode, and what else is no tensor, must be equal.
    """

    def __init__(self, members: Sequence[nn.Module], tie: bool = False) -> None:
        super().__init__()
        self.size = len(members)
        self.stacked = deepcopy(members[0])
        for path, parameter in members[0].named_parameters():
            values = torch.stack([m.get_parameter(path).detach() for m in members])
            _put(self.stacked, path, nn.Parameter(values, parameter.requires_grad))
        for path, _ in members[0].named_buffers():
            _put(self.stacked, path, torch.stack([m.get_buffer(path) for m in members]))
        if tie:
            for i, member in enumerate(members):
                for path, parameter in member.named_parameters():
                    parameter.data = self.stacked.get_parameter(path).data[i]

    def map(
        self, call: Callable[..., Any] | None, *args: Tensor, axes: Sequence[int | None], out: int = 0
    ) -> Any:
        """call(member, *args), or member(*args) where call is None, for all members at once.

        Args:
            call: gives a tensor, or a dict or tuple of tensors; random numbers differ from member to member. Without
                one nothing is made on the way that torch.compile would stop at.
            args, axes: tensors, and the axis of each that runs over the members (None = the same for all).
            out: where that axis stands in the results.
        """
        bound = self.stacked if call is None else _Bound(self.stacked, call)
        tensors = {**dict(bound.named_parameters()), **dict(bound.named_buffers())}

        def one(tensors: dict[str, Tensor], *args: Tensor) -> Any:
            return functional_call(bound, tensors, args)

        return vmap(one, (0, *axes), out, randomness="different")(tensors, *args)


class NamedStack(Stack):
    """A stack whose state dict has the keys of separate modules: ``<name>.<path>`` for every member."""

    def __init__(self, members: dict[str, nn.Module]) -> None:
        super().__init__(list(members.values()))
        self.names = tuple(members)
        self.register_state_dict_post_hook(_split_state)
        self.register_load_state_dict_pre_hook(_join_state)

    @torch.no_grad()
    def load_member(self, name: str, state: dict[str, Tensor]) -> None:
        """Takes the parameters of one member from its own state dict."""
        for path, parameter in self.stacked.named_parameters():
            parameter[self.names.index(name)].copy_(state[path])


class _Bound(nn.Module):
    """A function of a module, as a module: what functional_call can put other tensors into."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *args: Tensor) -> Any:
        return self.call(self.module, *args)


def _put(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)


def _split_state(module: NamedStack, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    start = f"{prefix}stacked."
    for key in [key for key in state if key.startswith(start)]:
        values = state.pop(key)
        for name, value in zip(module.names, values.unbind(), strict=True):
            state[f"{prefix}{name}.{key.removeprefix(start)}"] = value


def _join_state(module: NamedStack, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for path in module.stacked.state_dict():
        parts = [state.pop(f"{prefix}{name}.{path}", None) for name in module.names]
        if all(part is not None for part in parts):
            state[f"{prefix}stacked.{path}"] = torch.stack(parts)  # type: ignore[arg-type]
