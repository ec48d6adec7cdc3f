"""Dropout that costs little on a processor.

torch draws a random number for each value there, on one thread unless the processor is Intel's. Here 64 random bits
decide on four values, and the same ones on every processor.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHOICES = 2**16  # a share is rounded to a multiple of one in so many


def dropout(values: Tensor, share: float) -> Tensor:
    """Zero a random share of the values, and scale up the others, so that the mean stays (Srivastava et al. 2014).

    What is dropped depends on torch's random state alone.
    """
    dropped = round(share * CHOICES)
    if values.device.type != "cpu" or not 0 < dropped < CHOICES or not values.numel():
        return F.dropout(values, share)
    seed = torch.randint(2**63 - 1, ()).item()
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-values.numel() // 4)))
    drawn = bits.view(torch.int16)[: values.numel()].view(values.shape)  # from -CHOICES / 2 to CHOICES / 2 - 1
    return values * (drawn >= dropped - CHOICES // 2) * (CHOICES / (CHOICES - dropped))


class Dropout(nn.Dropout):
    """torch's module, computed as above."""

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.p) if self.training else values
