from __future__ import annotations

import pytest
import torch

from vidgen.codecs.moments import Moments
from vidgen.errors import InvalidArgumentError


def test_pieces_of_any_size_merge_exactly_for_each_channel() -> None:
    rng = torch.Generator().manual_seed(0)
    pieces = [torch.randn(2, n, generator=rng) * k + k for n, k in ((1, 3.0), (50, 0.01), (7, 100.0))]
    moments = Moments()
    for piece in pieces:
        moments.add(piece)
    mean, std = moments.result()
    values = torch.cat(pieces, 1).double()
    assert mean == pytest.approx(values.mean(1).tolist(), rel=1e-12)
    assert std == pytest.approx(values.std(1, correction=0).tolist(), rel=1e-12)


def test_a_constant_channel_is_named() -> None:
    moments = Moments()
    moments.add(torch.tensor([[1.0, 2.0], [3.0, 3.0]]))
    with pytest.raises(InvalidArgumentError, match=r"2 values of channel 1 .*deviation 0\.0"):
        moments.result()
