"""Occlusion: what nothing hangs on is flat, and the map goes where the thing goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impresa.encoders.vision import VisionEncoder
from impresa.inside.occlusion import occlusion
from tiny_run import tiny_experiment


def brightness(images: Tensor) -> Tensor:
    return images.amax(dim=(1, 2, 3))


def test_a_plain_image_gives_a_plain_map() -> None:
    torch.manual_seed(0)
    tower = VisionEncoder(tiny_experiment().vision_encoder, 16).eval()
    direction = torch.randn(16)
    found = occlusion(lambda images: tower(images).pooled @ direction, torch.full((3, 16, 16), 0.25), 4)
    torch.testing.assert_close(found, torch.zeros(4, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_rows", [4, 3], ids=("even", "uneven"))
@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_moving_the_object_moves_the_map(row: int, column: int, num_rows: int) -> None:
    image, side = torch.zeros(3, 16, 16), 16 // num_rows
    edges = [round(i * 16 / num_rows) for i in range(num_rows + 1)]
    image[:, edges[row] + 1 : edges[row] + side - 1, edges[column] + 1 : edges[column] + side - 1] = 1
    found = occlusion(brightness, image, num_rows)
    assert (found > 0).nonzero().tolist() == [[row, column]]
    assert 0.9 < found.max() < 1  # the object's own mean colour remains


def test_more_squares_than_a_batch_holds() -> None:
    image = torch.zeros(3, 16, 16)
    image[:, 15, 15] = 1
    found = occlusion(brightness, image, 16)
    assert found.shape == (16, 16)
    assert (found > 0).nonzero().tolist() == [[15, 15]]
