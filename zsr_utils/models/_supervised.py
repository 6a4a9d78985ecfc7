"""Supervised classifiers of timm and torchvision behind the same handle: no text tower, but a linear head."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, functional as TF

from zsr_utils._text import nearest, one_of, unknown
from zsr_utils.models._handle import Model
from zsr_utils.models._openclip import ModelUnavailable, _quiet, missing_weights, read_weights


PREFIX = "supervised:"
# what a JSON file beside a weight file may say
OWN = ("image_size", "resize", "interpolation", "mean", "std", "class_names")
Naming = Sequence[tuple[str, ...]]  # for every class of a head, its names in one vocabulary


class SupervisedModel(Model):
    """A classification network: its embeddings are what its linear head sees, and it has no text tower.

    Attributes:
        class_names: One name for every row of the head.
    """

    bias_columns = 1

    def __init__(self, network: nn.Module, *, namings: Sequence[Naming], library: str = "timm", **options):
        """`namings` are vocabularies for the head's classes, the first of them for display; the rest as `Model`."""
        self._namings = [list(naming) for naming in namings]
        self.class_names = tuple(names[0] for names in self._namings[0]) if namings else ()
        super().__init__(Tower(network, library), activation=_activation(network), **options)

    def classifier(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Float[Tensor, "k d+1"]:
        """Rows of the head for these classes: weights, and the bias in the last column.

        A name is looked for in the head's vocabularies one after the other: for ImageNet its WordNet
        description, id (`n01440764`) and first word, CLIP's curated name, and every other word of the
        description. A class that a data set has and the head has not (PACS's `dog` covers 118 of
        ImageNet's) has no row: choose a data set with the head's own classes.

        Args:
            class_names: One name a class; a whole vocabulary in its order is every row.
            templates: Not used: there is no text.

        Raises:
            ValueError: If a name is unknown, or means several classes, or two names mean the same one.
        """
        rows = self._rows([" ".join(name.replace("_", " ").split()) for name in class_names])
        return torch.cat([self.net.weight, self.net.bias[:, None]], dim=1)[rows].float()

    def logits_of(self, features: Float[Tensor, "n d"], classifier: Float[Tensor, "k d+1"]) -> Float[Tensor, "n k"]:
        """The head's logits, `features @ weights.T + bias`: no normalisation, scale 1."""
        weights, bias = self.directions(classifier)
        return features @ weights.T + bias

    def directions(self, classifier: Float[Tensor, "k d+1"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k"]]:
        """The weights and the biases of the rows."""
        return classifier[:, :-1], classifier[:, -1]

    def _rows(self, wanted: list[str]) -> list[int]:
        if not wanted:
            raise ValueError("class_names must hold at least one text.")
        if not self._namings:
            raise ValueError(
                f"{self.name}: nobody recorded what its {len(self.net.weight)} outputs are; "
                "a JSON file beside the weight file, of the same name, may say it as 'class_names'."
            )
        for naming in self._namings:  # a whole list may use a name twice, as CLIP's does 'missile'
            if wanted == [names[0] for names in naming]:
                return list(range(len(naming)))
        rows = [self._row(name) for name in wanted]
        for row, count in Counter(rows).items():
            if count > 1:
                same = [name for name, found in zip(wanted, rows) if found == row]
                raise ValueError(f"{' and '.join(map(repr, same))} mean the same class of {self.name}.")
        return rows

    def _row(self, name: str) -> int:
        for fold in (str, str.casefold):  # 'Cardigan' is a dog, 'cardigan' a garment
            for naming in self._namings:
                found = _table(tuple(naming), fold).get(fold(name), [])
                if len(found) == 1:
                    return found[0]
                if found:
                    every = [f"{self._namings[:2][-1][i][0]} ({self.class_names[i]})" for i in found]
                    raise ValueError(f"{name!r} means {len(found)} classes of {self.name}: {', '.join(every)}.")
        raise ValueError(unknown(f"class name of {self.name}", name, {n for names in self._namings[-1] for n in names}))


class Tower(nn.Module):
    """A classification network as an image tower, with the linear head beside it.

    `encode_image` gives what the head sees. Where the network ends in something else than a linear layer
    (SqueezeNet pools after its last layer), the embedding is the network's output and the head is the identity.
    """

    def __init__(self, network: nn.Module, library: str):
        super().__init__()
        place = _linear_head(network, library)
        if place is None:
            classes = _outputs(network, library)
            weight, bias = torch.eye(classes), torch.zeros(classes)
        else:
            head = network.get_submodule(place)
            weight, bias = head.weight.detach().flatten(1), head.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            network.set_submodule(place, nn.Identity())
        self.network, self.library = network, library
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)

    def encode_image(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)

    @property
    def visual(self) -> "Tower | None":
        """Itself, where there is a token grid: the call that open_clip's image towers have."""
        if self.library == "timm":
            return self if hasattr(self.network, "forward_intermediates") else None
        from torchvision.models import SwinTransformer, VisionTransformer

        return None if isinstance(self.network, SwinTransformer | VisionTransformer) else self

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
    ) -> dict:
        """Maps after every block or stage (torchvision: the last one of every resolution), and the features."""
        if self.library == "torchvision":
            features, maps = _maps(self.network, x)
            if indices is not None:
                maps = maps[-indices:] if isinstance(indices, int) else [maps[i] for i in indices]
            return {"image_intermediates": maps, "image_features": features.flatten(1)}
        options = {"norm": normalize_intermediates, "output_fmt": output_fmt}
        if intermediates_only:
            maps = self.network.forward_intermediates(x, indices=indices, intermediates_only=True, **options)
            return {"image_intermediates": maps}
        last, maps = self.network.forward_intermediates(x, indices=indices, **options)
        return {"image_intermediates": maps, "image_features": self.network.forward_head(last).flatten(1)}


def load(name: str, pretrained: str | None, precision: str) -> SupervisedModel:
    """A handle over `supervised:<architecture>`, `supervised:timm/…` or `supervised:torchvision/…`.

    timm is asked first. Preprocessing is that of the library for the tag, or for the architecture; a JSON
    file beside a weight file (`weights.json` for `weights.pt`) may say `image_size`, `resize` (short side),
    `interpolation`, `mean`, `std` and `class_names` of these weights.

    Raises:
        ValueError: If the architecture, tag or weight file is not usable.
        ModelUnavailable: If the weights of a tag are not here and cannot be fetched.
    """
    library, architecture = _find(name)
    file = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    own = _own(file) if file else {}
    tag = pretrained if pretrained and not file else None
    with _quiet():
        network, found, transform = LIBRARIES[library](name, architecture, tag, len(own.get("class_names", ())))
    if file:
        _fill(network, file, name)
    if own.keys() & {"image_size", "resize", "interpolation"}:
        transform = None
        found.pop("crop_mode", None)
    preprocessing = {**found, **{key: value for key, value in own.items() if key != "class_names"}}
    if preprocessing["resize"] < preprocessing["image_size"]:
        resize, size = preprocessing["resize"], preprocessing["image_size"]
        raise ValueError(f"{name}: resize is {resize}, allowed is the image_size of {size} or more.")
    classes = _outputs(network, library)
    namings = [[(c,) for c in own["class_names"]]] if "class_names" in own else imagenet_names(classes)
    return SupervisedModel(
        network,
        library=library,
        namings=namings,
        name=name,
        pretrained=pretrained or None,
        image_size=preprocessing["image_size"],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        transform=transform or resize_and_crop(preprocessing),
        precision=precision,
        config={"library": library, "architecture": architecture, "namings": namings},
        preprocessing=preprocessing,
        note="" if pretrained else "random weights: its accuracies mean nothing",
    )


def load_folder(folder: Path, build: Callable[[str, int], nn.Module], precision: str, *, trained_on: str) -> Model:
    """An embedded classifier: `config.json` beside `model.safetensors`, and `build(tower, classes)` for its network."""
    config = json.loads((folder / "config.json").read_text())
    network = build(config["tower"], len(config["class_names"]))
    _fill(network, folder / "model.safetensors", folder.name)
    size = config["image_size"]
    preprocessing = {"image_size": size, "resize": size, "interpolation": "bicubic"}
    preprocessing |= {"mean": config["mean"], "std": config["std"]}
    return SupervisedModel(
        network,
        namings=[[(c,) for c in config["class_names"]]],
        name=folder.name,
        image_size=size,
        mean=config["mean"],
        std=config["std"],
        transform=resize_and_crop(preprocessing),
        precision=precision,
        config=config,
        preprocessing=preprocessing,
        trained_on=trained_on,
    )


def resize_and_crop(preprocessing: dict) -> Callable[[Image.Image], Float[Tensor, "3 size size"]]:
    """Short side to `resize`, then a centre crop of `image_size`, ending in [0, 1]."""
    size, resize = preprocessing["image_size"], preprocessing["resize"]
    filter_ = InterpolationMode(preprocessing["interpolation"])

    def transform(image: Image.Image) -> Tensor:
        return TF.to_tensor(TF.center_crop(TF.resize(image.convert("RGB"), resize, filter_), [size, size]))

    return transform


@lru_cache
def imagenet_names(classes: int) -> list[Naming]:
    """Vocabularies for a head of ImageNet's size: WordNet's, and CLIP's curated names for the 1,000 classes.

    Returns:
        Descriptions, ids, first words, (curated names,) and all words; empty if no ImageNet has so many classes.

    Examples:
        >>> [naming[0] for naming in imagenet_names(1000)]
        [('tench, Tinca tinca',), ('n01440764',), ('tench',), ('tench',), ('tench', 'Tinca tinca')]

    Source:
        `timm.data.ImageNetInfo` and `open_clip.IMAGENET_CLASSNAMES`; the order in which they are asked is ours.
    """
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    words = [tuple(text.split(", ")) for text in info.label_descriptions()]
    curated = [[(name,) for name in IMAGENET_CLASSNAMES]] if classes == 1000 else []
    ids = [(name,) for name in info.label_names()]
    return [[(", ".join(w),) for w in words], ids, [w[:1] for w in words], *curated, words]


@lru_cache(maxsize=32)
def _table(naming: tuple[tuple[str, ...], ...], fold: Callable[[str], str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for row, names in enumerate(naming):
        for name in {fold(n) for n in names}:
            table.setdefault(name, []).append(row)
    return table


def _find(name: str) -> tuple[str, str]:
    """Library and architecture that a name means."""
    import timm
    from torchvision import models

    asked, _, architecture = name.removeprefix(PREFIX).rpartition("/")
    known = {
        "timm": [*timm.list_models(), *timm.list_pretrained()],
        "torchvision": models.list_models(module=models),
    }
    for library, names in known.items():
        if asked in ("", library) and architecture in names:
            return library, architecture
    every = known.get(asked) or [*known["timm"], *known["torchvision"]]
    raise ValueError(unknown("timm or torchvision model", name.removeprefix(PREFIX), every))


def _timm(name: str, architecture: str, tag: str | None, classes: int) -> tuple[nn.Module, dict, Callable]:
    import timm

    if tag:
        architecture = architecture.split(".")[0]
        tags = [full.split(".", 1)[1] for full in timm.list_pretrained(f"{architecture}.*")]
        _known_tag(name, tag, tags)
        architecture = f"{architecture}.{tag}"
    try:
        network = timm.create_model(architecture, pretrained=bool(tag), **({"num_classes": classes} if classes else {}))
    except (OSError, RuntimeError) as error:
        entry = timm.get_pretrained_cfg(architecture)
        source = f"the Hugging Face project {entry.hf_hub_id!r}" if entry and entry.hf_hub_id else "timm's hub"
        text = missing_weights(f"{name} {tag}", source, "the weight file as `pretrained`", error)
        raise ModelUnavailable(text) from error
    if not network.num_classes:
        raise ValueError(f"{name} has no classification head, so it cannot be a supervised baseline.")
    config = timm.data.resolve_model_data_config(network)
    *steps, last = timm.data.create_transform(**config, is_training=False).transforms
    assert isinstance(last, Normalize), "timm's transform ends with the normalisation"
    size = config["input_size"][-1]
    found = {"image_size": size, "resize": math.floor(size / config["crop_pct"]), "crop_mode": config["crop_mode"]}
    found |= {key: config[key] for key in ("interpolation", "mean", "std")}
    return network, found, Compose([_rgb, *steps])


def _torchvision(name: str, architecture: str, tag: str | None, classes: int) -> tuple[nn.Module, dict, None]:
    from torchvision import models

    every = models.get_model_weights(architecture)
    if tag:
        _known_tag(name, tag, list(every.__members__))
    # without a tag, the first one's: 256 to 224 px for most, and what the architecture needs for the others
    weights = every[tag] if tag else next(iter(every))
    try:
        options = {"num_classes": classes} if classes else {}
        network = models.get_model(architecture, weights=weights if tag else None, **options)
    except (OSError, RuntimeError) as error:
        size = weights.meta.get("_file_size")
        source = f"the file {weights.url!r}" + (f" of {size:.0f} MB" if size else "")
        raise ModelUnavailable(missing_weights(f"{name} {tag}", source, "that file as `pretrained`", error)) from error
    preset = weights.transforms()
    found = {"image_size": preset.crop_size[0], "resize": preset.resize_size[0]}
    found |= {"interpolation": preset.interpolation.value, "mean": preset.mean, "std": preset.std}
    return network, found, None


LIBRARIES = {"timm": _timm, "torchvision": _torchvision}


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _known_tag(name: str, tag: str, tags: list[str]) -> None:
    if tag not in tags:
        close = ", ".join(nearest(tag, tags) or tags[:5]) or "none"
        raise ValueError(
            f"Unknown pretrained tag {tag!r} for {name}, and no weight file either: nearest known tags are {close}."
        )


def _own(file: Path) -> dict:
    """What the JSON file beside a weight file says, checked."""
    path = file.with_suffix(".json")
    if not path.is_file():
        return {}
    own = json.loads(path.read_text())
    for key in own:
        if key not in OWN:
            raise ValueError(f"{str(path)!r} says {key!r}, allowed are {', '.join(OWN)}.")
    for key in ("mean", "std"):
        if key in own and not (isinstance(own[key], list) and len(own[key]) == 3):
            raise ValueError(f"{str(path)!r}: {key} is {own[key]}, allowed are three numbers for pixels in [0, 1].")
    if "interpolation" in own:
        one_of(f"{str(path)!r}: interpolation", own["interpolation"], [mode.value for mode in InterpolationMode])
    return own


def _fill(network: nn.Module, file: Path, name: str) -> None:
    weights = read_weights(file, name)
    here = network.state_dict()
    missing, extra = here.keys() - weights.keys(), weights.keys() - here.keys()
    shapes = [key for key in here.keys() & weights.keys() if here[key].shape != weights[key].shape]
    if missing or extra or shapes:
        what = ", ".join(
            f"{len(keys)} tensors {said} (such as {min(keys)})"
            for keys, said in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
            if keys
        )
        raise ValueError(f"{str(file)!r} holds the weights of another architecture than {name}: {what}.")
    network.load_state_dict(weights)


def _outputs(network: nn.Module, library: str) -> int:
    if library == "timm":
        return network.num_classes
    return len([module for module in network.modules() if hasattr(module, "weight")][-1].weight)


def _linear_head(network: nn.Module, library: str) -> str | None:
    """Where the linear layer is that ends the network, or None if it ends in something else."""
    from torch.nn import Conv2d, Linear

    if library == "timm":
        head = network.get_classifier()
        linear = isinstance(head, Linear) or (isinstance(head, Conv2d) and head.kernel_size == (1, 1))
    else:
        head = [module for module in network.modules() if hasattr(module, "weight")][-1]
        linear = isinstance(head, Linear)
    return next(place for place, module in network.named_modules() if module is head) if linear else None


def _maps(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output of a torchvision network, and on the way the last map of every resolution."""
    stages = network.features if isinstance(getattr(network, "features", None), nn.Sequential) else network
    maps: dict[tuple[int, ...], Tensor] = {}

    def keep(module, _, output):
        if isinstance(output, Tensor) and output.ndim == 4 and not isinstance(module, nn.AdaptiveAvgPool2d):
            maps[tuple(output.shape[2:])] = output

    hooks = [stage.register_forward_hook(keep) for stage in stages.children()]
    try:
        return network(x), list(maps.values())
    finally:
        for hook in hooks:
            hook.remove()


def _activation(network: nn.Module) -> str:
    """The activation that the network uses most, in small letters: `relu`, `gelu`, `silu`, …"""
    homes = ("torch.nn.modules.activation", "timm.layers.activations")
    names = [type(m).__name__.lower() for m in network.modules() if type(m).__module__ in homes]
    found = Counter(name for name in names if "attention" not in name).most_common(1)
    return found[0][0] if found else "unknown"
