"""Images of which a network sees one pixel are refused, with the least size; small ones are warned of."""

from __future__ import annotations

import pytest

from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.train.size import check_size, small_images


@pytest.mark.parametrize(
    ("family", "stem", "size", "least"),
    [
        ("shufflenet_v2", "imagenet", 4, 5),
        pytest.param("shufflenet_v2", "small", 1, 2, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "imagenet", 2, 3, marks=pytest.mark.slow),
        pytest.param("resnet", "small", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_an_image_that_leaves_one_pixel_is_refused_with_the_least_size(few_units, family, stem, size, least):
    network = build(NetworkConfig(family=family, stem=stem, mixer="identity"), 2)
    with pytest.raises(ValueError, match=rf"must be at least {least}x{least} for this network, got {size}x{size}, of"):
        check_size(network, (size, size, 3))
    check_size(network, (least, least, 3))


def test_the_stem_for_imagenet_is_warned_of_before_few_pixels():
    (line,) = small_images(NetworkConfig(stem="imagenet"), (28, 28, 1))
    assert line.startswith("warning: the stem for ImageNet leaves little of 28x28 images: below 48 pixels --network.")
    assert not small_images(NetworkConfig(stem="imagenet"), (64, 64, 3))
    assert not small_images(NetworkConfig(stem="small"), (8, 8, 1))
