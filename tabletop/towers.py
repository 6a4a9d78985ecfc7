"""Image towers of the embedded models, registered with timm so that open_clip builds them by name."""

from functools import partial
from itertools import pairwise

from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn


IMAGE_SIZE = 64


class ConvStem(nn.Module):
    """Three stride-2 convolutions in place of the patch projection: 64 x 64 pixels to 8 x 8 tokens.

    A plain patch projection learns shapes an order of magnitude slower at this scale.
    """

    def __init__(self, img_size=IMAGE_SIZE, patch_size=8, in_chans=3, embed_dim=128, **_):
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = tuple(s // patch_size for s in self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = (in_chans, embed_dim // 4, embed_dim // 2, embed_dim)
        layers = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, x):
        return self.project(self.layers(x)).flatten(2).transpose(1, 2)

    def dynamic_feat_size(self, img_size):
        return tuple(-(-s // p) for s, p in zip(img_size, self.patch_size, strict=True))

    def feat_ratio(self, as_scalar=True):
        return self.patch_size[0] if as_scalar else self.patch_size


def _vit(width: int, depth: int, pretrained: bool = False, **kwargs) -> VisionTransformer:
    kwargs = {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
    model = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=8,
        embed_dim=width,
        depth=depth,
        num_heads=width // 32,
        embed_layer=partial(ConvStem),
        **kwargs,
    )
    model.default_cfg = model.pretrained_cfg = {
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "pool_size": None, "num_classes": 0,
        "classifier": "head", "first_conv": "patch_embed.layers.0",
    }  # fmt: skip
    return model


@register_model
def tabletop_vit_small(pretrained=False, **kwargs):
    return _vit(64, 4, pretrained, **kwargs)


@register_model
def tabletop_vit_base(pretrained=False, **kwargs):
    return _vit(128, 4, pretrained, **kwargs)


@register_model
def tabletop_vit_large(pretrained=False, **kwargs):
    return _vit(192, 6, pretrained, **kwargs)
