"""Networks whose first weights are not drawn, for they are about to be overwritten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Network = TypeVar("Network", bound=nn.Module)


def undrawn(build: Callable[[], Network]) -> Network:
    """Return a network on the CPU that is to be filled from a file, without drawing first weights for it.

    Drawing takes most of the time in which a large network is built. All parameters must be filled afterwards
    (``load_state_dict`` with ``strict``): their memory is as it comes. Buffers are made as ever.

    Args:
        build: makes the network, in this thread. It is called once more, and draws, where it needs the values of its
            parameters or makes buffers from them (of timm's networks Swin does).
    """
    thread, without = threading.get_ident(), dict[nn.Parameter, nn.Parameter]()

    def take_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        if parameter not in without:  # what two layers share stays one
            empty = torch.empty_like(parameter, device="meta")
            without[parameter] = nn.Parameter(empty, parameter.requires_grad)
        return without[parameter]

    hook = register_module_parameter_registration_hook(take_memory)  # type: ignore[arg-type]  # it may return one
    network = None
    try:
        with suppress(Exception):  # of any kind: a library may meet a tensor without values
            network = build()
    finally:
        hook.remove()
    if network is None or any(buffer.is_meta for buffer in network.buffers()):
        return build()
    given: dict[nn.Parameter, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            if parameter.is_meta and parameter not in given:
                memory = torch.empty_like(parameter, device="cpu")
                given[parameter] = nn.Parameter(memory, parameter.requires_grad)
            setattr(module, name, given.get(parameter, parameter))
    return network
