"""Quick forms of layers and blocks beside the originals: outputs, gradients, bits."""

import copy

import torch
from torch import nn

from mvczigal_ref.models.quick_blocks import install_quick_blocks


def quickened(block):
    """Copy a block, and let the copy run in the quick form."""
    copied = nn.Sequential(copy.deepcopy(block))
    install_quick_blocks(copied)
    return copied[0]


def outcome(block, first, *more, **options):
    """Give a block's outputs, and the gradients of its first input and of its weights."""
    leaf = first.clone().requires_grad_()
    outputs = block(leaf, *more, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().sum() for output in outputs).backward()
    return [*outputs, leaf.grad, *(p.grad for p in block.parameters() if p.grad is not None)]


def same(ours, theirs):
    """Compare bits."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
