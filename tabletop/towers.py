"""Image towers of the embedded models, registered with timm so that open_clip builds them by name."""

from functools import partial
from itertools import pairwise

import timm
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn


IMAGE_SIZE = 64
BASE = "tabletop_vit_base"


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


def _own(kwargs: dict) -> dict:
    """What is left of timm's arguments for the class itself."""
    return {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}


def _described(model: nn.Module, first_conv: str) -> nn.Module:
    """`model` with the record that timm and open_clip read from every network."""
    model.default_cfg = model.pretrained_cfg = {
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "pool_size": None, "num_classes": 0,
        "classifier": "head", "first_conv": first_conv,
    }  # fmt: skip
    return model


def _vit(width: int, depth: int, pretrained: bool = False, **kwargs) -> VisionTransformer:
    model = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=8,
        embed_dim=width,
        depth=depth,
        num_heads=width // 32,
        embed_layer=partial(ConvStem),
        **_own(kwargs),
    )
    return _described(model, "patch_embed.layers.0")


def _resnet(stem: int, widths: tuple[int, ...], depths: tuple[int, ...], pretrained=False, **kwargs) -> ByobNet:
    """Residual pairs of 3 x 3 convolutions; the stem and every stage halve the picture."""
    stages = tuple(ByoBlockCfg("basic", d=depth, c=width, s=2) for width, depth in zip(widths, depths, strict=True))
    shape = ByoModelCfg(stages, stem_type="3x3", stem_pool="", stem_chs=stem, act_layer="gelu")
    return _described(ByobNet(shape, **_own(kwargs)), "stem.conv")


@register_model
def tabletop_vit_small(pretrained=False, **kwargs):
    return _vit(64, 4, pretrained, **kwargs)


@register_model
def tabletop_vit_base(pretrained=False, **kwargs):
    return _vit(128, 4, pretrained, **kwargs)


class _Tokens(VisionTransformer):
    """A tower whose last tokens come normalised and in one row, as the models of transformers read them."""

    def forward_intermediates(self, x, indices=None, **kwargs):
        return super().forward_intermediates(x, indices, **({"norm": True, "output_fmt": "NLC"} | kwargs))


@register_model
def tabletop_vit_base_tokens(pretrained=False, **kwargs):
    """`tabletop_vit_base` for a generative model: the same weights under the same names."""
    model = _vit(128, 4, pretrained, **kwargs)
    model.__class__ = _Tokens
    return model


@register_model
def tabletop_vit_large(pretrained=False, **kwargs):
    return _vit(192, 6, pretrained, **kwargs)


@register_model
def tabletop_resnet(pretrained=False, **kwargs):
    return _resnet(32, (64, 128), (1, 3), pretrained, **kwargs)


class UnitLength(nn.Module):
    """Features of length one."""

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1)


@register_model
def tabletop_vit_base_unit(pretrained=False, **kwargs):
    """`tabletop_vit_base` up to the embedding of its CLIP model: projected, and of length one."""
    model = _vit(128, 4, pretrained, **kwargs)
    # the embedding is as wide as the tower, so a head fits either
    model.fc_norm = nn.Sequential(nn.Linear(128, 128, bias=False), UnitLength())
    return model


def build_classifier(tower: str, classes: int) -> nn.Module:
    """A tower with a linear layer over the mean of its last tokens, as the towers of the CLIP models have it.

    Examples:
        >>> build_classifier("tabletop_vit_small", 10).head
        Linear(in_features=64, out_features=10, bias=True)
    """
    model = timm.create_model(tower, num_classes=classes)
    # pooling is chosen afterwards, as open_clip does it, because a ViT told at birth moves its last norm behind it
    model.reset_classifier(classes, global_pool="avg")
    return model


def describe(trunk: nn.Module) -> str:
    """What kind of tower this is, for a model card.

    Examples:
        >>> describe(build_classifier("tabletop_resnet", 10))
        'residual convolutional network, last feature map 8 x 8'
    """
    if isinstance(trunk, VisionTransformer):
        return "vision transformer with a convolutional stem, {} x {} tokens".format(*trunk.patch_embed.grid_size)
    side = IMAGE_SIZE // trunk.feature_info[-1]["reduction"]
    return f"residual convolutional network, last feature map {side} x {side}"
