"Batched views equal torchvision's functional transforms image by image, for the parameters that were drawn, in the order that was drawn."
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from contrastive_nb.compat import torchvision
from contrastive_nb.views import VIEWS, SimCLR, recolour
from torchvision.transforms.v2 import functional as tv

ADJUST = tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue
RECIPES = dict(VIEWS, small=SimCLR(size=20, blur_p=.5), strong=SimCLR(jitter=(1., 1., 1., .5), jitter_p=1., grey_p=.5))


def one_by_one(views, x, draws):
    "The views of `x` by torchvision, one image and one operation after the other."
    out = []
    for i, image in enumerate(x):
        image, size = image/255, [views.size or x.shape[2], views.size or x.shape[3]]
        if draws.crops is not None: image = tv.resized_crop(image, *draws.crops[i].tolist(), size, antialias=True)
        if draws.flip is not None and draws.flip[i]: image = tv.horizontal_flip(image)
        if draws.factors is not None:
            for k in draws.order[i].tolist():
                if k!=2 and k!=3 or len(image)==3: image = ADJUST[k](image, draws.factors[i, k].item())
        if draws.grey is not None and draws.grey[i]: image = tv.rgb_to_grayscale(image, num_output_channels=len(image))
        width = max(3, min(size)//20*2 + 1)
        if draws.sigma is not None and draws.sigma[i]: image = tv.gaussian_blur(image, [width, width], [draws.sigma[i].item()])
        channels = len(image)
        out.append(tv.normalize(image, list(views.mean)*(channels//len(views.mean)), list(views.std)*(channels//len(views.std))))
    return torch.stack(out)

def some(n=120, channels=3, size=32, seed=0):
    x = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    x[:10] //= 64        # dark, and ties between channels
    x[10:20] = x[10:20, :, :1, :1]   # flat
    x[20:30] = x[20:30, :1]          # grey
    return x


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('channels', [1, 3])
def test_equal_to_torchvision(name, channels):
    views = RECIPES[name]
    if len(views.mean) not in (1, channels): pytest.skip('a recipe for images of other channels')
    x = some(channels=channels)
    draws = views.draw(len(x), 32, 32, torch.Generator().manual_seed(1))
    assert_close(views.apply(x, draws), one_by_one(views, x, draws), atol=3e-4, rtol=0)
    half = replace(views, dtype='bfloat16').apply(x, draws)
    assert half.dtype==torch.bfloat16
    assert_close(half, views.apply(x, draws).bfloat16())


def test_order_matters_and_is_kept():
    "Each of the 24 orders, on the same image with the same factors."
    orders = torch.cartesian_prod(*[torch.arange(4)]*4)
    orders = orders[[len(set(o.tolist()))==4 for o in orders]]
    views, x = SimCLR(crop=None, flip=0., grey_p=0.), some(40)[39:].expand(24, -1, -1, -1)
    draws = views.draw(24, 32, 32, torch.Generator())._replace(order=orders, factors=torch.tensor([1.4, .6, 1.4, .1]).expand(24, 4))
    ours = views.apply(x, draws)
    assert_close(ours, one_by_one(views, x, draws), atol=3e-4, rtol=0)
    assert len(ours.flatten(1).mul(1e3).round().unique(dim=0))>6   # the orders are not all alike


def test_pieces_that_are_compiled_equal_the_steps():
    views, x = VIEWS['cifar'], some()/255
    d = views.draw(len(x), 32, 32, torch.Generator().manual_seed(1))
    pieces = recolour(x, d.factors, d.order, d.grey, views.mean, views.std, compile=False)
    whole = one_by_one(replace(views, crop=None, flip=0.), (x*255).byte(), d._replace(crops=None, flip=None))
    assert_close(pieces, whole, atol=1e-2, rtol=0)   # bytes and fractions of 255 differ by rounding


@pytest.mark.parametrize('compile', [False, True])
@pytest.mark.parametrize('wrong', [dict(mean=(.5, .5)), dict(std=(.5,)*4)], ids=str)
def test_numbers_for_other_channels_are_refused(compile, wrong):
    with pytest.raises(ValueError, match='mean and std need 1 or 3 numbers for images of 3 channels'): SimCLR(compile=compile, jitter_p=1., **wrong)(some(), torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_compiled_equals_eager():
    views, x = VIEWS['cifar'], some()
    draws = views.draw(len(x), 32, 32, torch.Generator().manual_seed(1))
    for dtype in 'float32', 'bfloat16':
        eager, compiled = (replace(views, dtype=dtype, compile=c).apply(x, draws).float() for c in (False, True))
        assert_close(compiled, eager, atol=3e-4 if dtype=='float32' else .02, rtol=0)
