"""What an encoder's maps look like on the whole."""

from __future__ import annotations

import numpy as np
import torch

from scanprior.encoders import Features, descriptor


def test_means_and_deviations_of_every_level_each_of_length_one() -> None:
    draws = torch.Generator().manual_seed(1)
    levels = [torch.randn(3, 4, 8, 8, generator=draws) + 50, torch.randn(3, 5, 2, 2, generator=draws)]
    levels[1][0] = 2  # nothing deviates, and nothing is divided by nothing
    levels[0] = levels[0].to(memory_format=torch.channels_last)
    found = descriptor(Features(torch.zeros(3, 4, 5), levels, torch.zeros(3, 5))).numpy()

    parts = []
    for level in levels:
        values = level.double().numpy()
        for told in (values.mean((2, 3)), values.std((2, 3))):
            length = np.linalg.norm(told, axis=1, keepdims=True)
            parts.append(np.divide(told, length, out=np.zeros_like(told), where=length > 0))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(parts, 1), rtol=1e-5, atol=1e-7)
