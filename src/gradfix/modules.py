"""What a loaded model calls its parameters, and what its checkpoint calls them.

transformers renames weights of some architectures while it loads them (ViT's ``attention.attention.query`` becomes
``attention.q_proj``) and renames them back when it saves. Task vectors have the files' names, gradients the module's.
"""

from typing import Any

import torch
from torch import nn


def checkpoint_names(model: nn.Module) -> dict[str, str]:
    """Map the names of a model's parameters to the names under which its checkpoint stores them.

    Args:
        model: Any module. One that transformers does not know is taken to store its own names.

    Returns:
        Parameter name to checkpoint name, tied names included. Parameters that are stored in another form (merged
        or split when saved, as the experts of some mixtures are) are left out.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if not hasattr(model, "save_pretrained"):
        return {name: name for name in names}
    from transformers.core_model_loading import revert_weight_conversion

    # Tensors without memory stand for the parameters: what comes back as the same object was only renamed.
    stands_for: dict[str, torch.Tensor] = {
        name: torch.empty_like(parameter, device="meta")
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    known_model: Any = model
    stored = revert_weight_conversion(known_model, dict(stands_for))
    stored_names = {id(tensor): name for name, tensor in stored.items()}
    return {
        name: stored_names[id(tensor)] for name, tensor in stands_for.items() if id(tensor) in stored_names
    }
