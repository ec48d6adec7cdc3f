"""Probabilities that mean what they say: one temperature a task, fitted on rows that were not trained on.

Fine-tuned networks are surer than they are right. Dividing the logits by a temperature mends most of that and changes
no label (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2).
"""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

BINS = 10
FEWEST_ROWS = 100  # with fewer, a temperature would say more of these rows than of the model
LOWEST, HIGHEST = 0.5, 20.0


def fitted_temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature, 0.5 to 20, of the lowest cross-entropy of (rows, classes) logits with their (rows,) classes."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / np.exp(log_temperature), truth).item()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([LOWEST, HIGHEST]), method="bounded").x))


def calibration_error(probabilities: Tensor, truth: Tensor) -> float:
    """How far, on average, the label's probability is from the share of labels that are right (there, section 2).

    The expected calibration error, over ten bins of equal width.

    Args:
        probabilities: (rows, classes). truth: (rows,).
    """
    confidence, label = probabilities.max(dim=-1)
    gap = (label == truth).double() - confidence.double()  # (rows,)
    bins = (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1  # a bound belongs to the bin below it
    return float(gap.new_zeros(BINS).index_add(0, bins, gap).abs().sum() / len(truth))
