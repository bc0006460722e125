"""Networks whose class maps are exact are recognised, and their maps add up to their scores."""

import pytest
import torch

from penult.bundle.class_map import turned_back
from penult.export.networks.network import make_views


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_each_view_is_turned_back(views: int) -> None:
    """A map of any view that --views makes lies as the photo does, once it is turned back."""
    photo = torch.arange(9.0).view(1, 1, 3, 3)
    for view, seen in enumerate(make_views(photo, views).numpy()):
        assert (turned_back(seen, view, views) == photo.numpy()[0]).all(), view
