"""Supervised classifiers of timm and torchvision behind the same handle: no text tower, but a linear head."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from zsr_utils._text import one_of, unknown
from zsr_utils.models._handle import RANDOM_WEIGHTS, Model
from zsr_utils.models._openclip import ModelUnavailable, known_tag, missing, quiet
from zsr_utils.models._weights import fill, read_config


PREFIX = "supervised:"
# what a JSON file beside a weight file may say of it
OWN = ("image_size", "resize", "interpolation", "mean", "std", "class_names")
Naming = Sequence[tuple[str, ...]]  # for every class of a head, its names in one vocabulary


class SupervisedModel(Model):
    """A classification network: its embeddings are what its linear head sees, and it has no text tower."""

    bias_columns = 1

    def __init__(self, network: nn.Module, *, namings: Sequence[Naming], library: str = "", **options):
        """`namings` are vocabularies for the head's classes, the first of them for display; the rest as `Model`.

        `library` is timm or torchvision; any other network's head is its last layer, and it has grids if it has timm's
        `forward_intermediates`. `preprocessing` gives `image_size`, `mean`, `std` and `transform`.
        """
        self._namings = namings
        self.class_names = tuple(names[0] for names in namings[0]) if namings else ()
        if preprocessing := options.get("preprocessing"):
            options |= {key: preprocessing[key] for key in ("image_size", "mean", "std")}
            options["transform"] = options.get("transform") or resize_and_crop(preprocessing)
        super().__init__(Tower(network, library), activation=_activation(network), **options)

    def classifier(self, class_names: Sequence[str], templates: Sequence[str] = ()) -> Float[Tensor, "k d+1"]:
        """Rows of the head for these classes: weights, and the bias in the last column.

        A name is looked for in the head's vocabularies one after the other: for ImageNet its WordNet description, id
        (`n01440764`) and first word, CLIP's curated name, and every other word of the description. A whole vocabulary
        in its order is every row. Templates are not used: there is no text.
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

    def _rows(self, names: list[str]) -> list[int]:
        if not names:
            raise ValueError("class_names must hold at least one text.")
        if not self._namings:
            missing = f"nobody recorded what its {len(self.net.weight)} outputs are"
            way_out = "a JSON file beside the weight file, of the same name, may say it as 'class_names'"
            raise ValueError(f"{self.name}: {missing}; {way_out}.")
        for naming in self._namings:  # a whole list may use a name twice, as CLIP's does 'missile'
            if names == [same[0] for same in naming]:
                return list(range(len(naming)))
        name_of: dict[int, str] = {}
        for name in names:
            row = self._row(name)
            if row in name_of:
                raise ValueError(f"{name_of[row]!r} and {name!r} mean the same class of {self.name}.")
            name_of[row] = name
        return list(name_of)

    def _row(self, name: str) -> int:
        for fold in (str, str.casefold):  # 'Cardigan' is a dog, 'cardigan' a garment
            for naming in self._namings:
                rows = [row for row, names in enumerate(naming) if fold(name) in map(fold, names)]
                if len(rows) > 1:
                    every = [f"{self._namings[:2][-1][row][0]} ({self.class_names[row]})" for row in rows]
                    raise ValueError(f"{name!r} means {len(rows)} classes of {self.name}: {', '.join(every)}.")
                if rows:
                    return rows[0]
        raise ValueError(unknown(f"class name of {self.name}", name, {n for names in self._namings[-1] for n in names}))


class Tower(nn.Module):
    """A classification network as an image tower that gives what its linear head sees, with the head beside it.

    Where the network ends in something else (SqueezeNet pools after its last layer), the head is the identity.
    """

    def __init__(self, network: nn.Module, library: str):
        super().__init__()
        head = network.get_classifier() if library == "timm" else _last_layer(network)
        pointwise = isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and library == "timm"
        if isinstance(head, nn.Linear) or pointwise:
            weight = head.weight.detach().flatten(1)
            bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()
            network.set_submodule(next(p for p, m in network.named_modules() if m is head), nn.Identity())
        else:
            weight = torch.eye(_outputs(network, library))
            bias = torch.zeros(len(weight))
        self.network, self.library = network, library
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)

    def encode_image(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)

    @property
    def visual(self) -> "Tower | None":
        """Itself, where there is a token grid: the call that open_clip's image towers have."""
        if self.library == "torchvision":
            return None if isinstance(self.network, models.SwinTransformer | models.VisionTransformer) else self
        return self if hasattr(self.network, "forward_intermediates") else None

    def forward_intermediates(self, x: Tensor, *, indices: int | None, **_) -> dict:
        """Maps after every block or stage (torchvision: the last one of every resolution), and the features."""
        if self.library == "torchvision":
            features, maps = _maps(self.network, x)
        else:
            last, maps = self.network.forward_intermediates(x, indices=indices, norm=True, output_fmt="NCHW")
            features = self.network.forward_head(last)
        return {"image_intermediates": maps, "image_features": features.flatten(1)}


def load(name: str, pretrained: str | None, precision: str) -> SupervisedModel:
    """A handle over `supervised:<architecture>`, `supervised:timm/…` or `supervised:torchvision/…`.

    timm is asked first. Preprocessing is that of the library for the tag, or for the architecture; a JSON file beside a
    weight file (`weights.json` for `weights.pt`) may say what `OWN` lists.
    """
    library, architecture = _find(name)
    file = Path(pretrained) if pretrained and Path(pretrained).is_file() else None
    own = _own(file) if file else {}
    class_names = own.pop("class_names", ())
    tag = None if file else pretrained or None
    build = _timm if library == "timm" else _torchvision
    network, preprocessing, transform = build(name, architecture, tag, len(class_names))
    notes = [] if pretrained else [RANDOM_WEIGHTS]
    if file:
        fill(network, file, name, notes)
    if own.keys() & {"image_size", "resize", "interpolation"}:
        transform = None
        preprocessing.pop("crop_mode", None)
    preprocessing |= own
    if preprocessing["resize"] < preprocessing["image_size"]:
        resize, size = preprocessing["resize"], preprocessing["image_size"]
        raise ValueError(f"{name}: resize is {resize}, allowed is the image_size of {size} or more.")
    namings = [[(c,) for c in class_names]] if class_names else imagenet_names(_outputs(network, library))
    return SupervisedModel(
        network, library=library, namings=namings, name=name, pretrained=pretrained or None, precision=precision,
        config={"library": library, "architecture": architecture, "namings": namings},
        preprocessing=preprocessing, transform=transform, note="; ".join(notes),
    )  # fmt: skip


def load_folder(folder: Path, build: Callable[[str, int], nn.Module], precision: str) -> Model:
    """An embedded classifier: `config.json` beside `model.safetensors`, and `build(tower, classes)` for its network."""
    config = read_config(folder / "config.json")
    network, names = build(config["tower"], len(config["class_names"])), [(c,) for c in config["class_names"]]
    fill(network, folder / "model.safetensors", folder.name, [])
    preprocessing = {key: config[key] for key in ("image_size", "mean", "std")}
    preprocessing |= {"resize": config["image_size"], "interpolation": "bicubic"}
    options = {"precision": precision, "config": config, "preprocessing": preprocessing}
    return SupervisedModel(network, library="timm", namings=[names], name=folder.name, **options)


def resize_and_crop(preprocessing: dict) -> Callable[[Image.Image], Float[Tensor, "3 size size"]]:
    """Short side to `resize`, then a centre crop of `image_size`, ending in [0, 1]."""
    resize = Resize(preprocessing["resize"], InterpolationMode(preprocessing["interpolation"]))
    return Compose([_rgb, resize, CenterCrop(preprocessing["image_size"]), ToTensor()])


@lru_cache
def imagenet_names(classes: int) -> list[Naming]:
    """Vocabularies for a head of ImageNet's size, none for another: WordNet's, and CLIP's curated names for the 1,000.

    Examples:
        >>> [naming[0] for naming in imagenet_names(1000)]
        [('tench, Tinca tinca',), ('n01440764',), ('tench',), ('tench',), ('tench', 'Tinca tinca')]
    """
    subset = timm.data.infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return []
    info = timm.data.ImageNetInfo(subset)
    words = [tuple(text.split(", ")) for text in info.label_descriptions()]
    curated = [[(name,) for name in IMAGENET_CLASSNAMES]] if classes == 1000 else []
    ids = [(name,) for name in info.label_names()]
    return [[(", ".join(w),) for w in words], ids, [w[:1] for w in words], *curated, words]


def _find(name: str) -> tuple[str, str]:
    """Library and architecture that a name means."""
    asked, _, architecture = name.removeprefix(PREFIX).rpartition("/")
    known = {"timm": [*timm.list_models(), *timm.list_pretrained()], "torchvision": models.list_models(module=models)}
    for library, names in known.items():
        if asked in ("", library) and architecture in names:
            return library, architecture
    every = known.get(asked) or [*known["timm"], *known["torchvision"]]
    raise ValueError(unknown("timm or torchvision model", name.removeprefix(PREFIX), every))


def _timm(name: str, architecture: str, tag: str | None, classes: int) -> tuple[nn.Module, dict, Callable]:
    if tag:
        architecture = architecture.split(".")[0]
        known_tag(name, tag, [full.split(".", 1)[1] for full in timm.list_pretrained(f"{architecture}.*")])
        architecture = f"{architecture}.{tag}"
    try:
        with quiet(hub=bool(tag)):
            network = timm.create_model(architecture, pretrained=bool(tag), num_classes=classes or None)
    except (OSError, RuntimeError) as error:
        entry = timm.get_pretrained_cfg(architecture)
        source = f"the Hugging Face project {entry.hf_hub_id!r}" if entry and entry.hf_hub_id else "timm's hub"
        raise ModelUnavailable(missing(f"{name} {tag}", source, "the weight file as `pretrained`", error)) from error
    if not network.num_classes:
        raise ValueError(f"{name} has no classification head, so it cannot be a supervised baseline.")
    config = timm.data.resolve_model_data_config(network)
    *steps, last = timm.data.create_transform(**config, is_training=False).transforms
    assert isinstance(last, Normalize), "timm's transform ends with the normalisation"
    size = config["input_size"][-1]
    preprocessing = {"image_size": size, "resize": math.floor(size / config["crop_pct"])}
    preprocessing |= {key: config[key] for key in ("crop_mode", "interpolation", "mean", "std")}
    return network, preprocessing, Compose([_rgb, *steps])


def _torchvision(name: str, architecture: str, tag: str | None, classes: int) -> tuple[nn.Module, dict, None]:
    every = models.get_model_weights(architecture)
    if tag:
        known_tag(name, tag, list(every.__members__))
    # without a tag, the first one's: 256 to 224 px for most, and what the architecture needs for the others
    weights = every[tag] if tag else next(iter(every))
    try:
        options = {"num_classes": classes} if classes else {}
        with quiet():
            network = models.get_model(architecture, weights=weights if tag else None, **options)
    except (OSError, RuntimeError) as error:
        size = weights.meta.get("_file_size")
        source = f"the file {weights.url!r}" + (f" of {size:.0f} MB" if size else "")
        raise ModelUnavailable(missing(f"{name} {tag}", source, "that file as `pretrained`", error)) from error
    preset = weights.transforms()
    preprocessing = {"image_size": preset.crop_size[0], "resize": preset.resize_size[0]}
    preprocessing |= {"interpolation": preset.interpolation.value, "mean": preset.mean, "std": preset.std}
    return network, preprocessing, None


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _own(file: Path) -> dict:
    """What the JSON file beside a weight file says, checked."""
    path = file.with_suffix(".json")
    own = read_config(path) if path.is_file() else {}
    for key, value in own.items():
        if key not in OWN:
            raise ValueError(f"{str(path)!r} says {key!r}, allowed are {', '.join(OWN)}.")
        if key in ("mean", "std") and not (isinstance(value, list) and len(value) == 3):
            raise ValueError(f"{str(path)!r}: {key} is {value}, allowed are three numbers for pixels in [0, 1].")
        if key == "interpolation":
            one_of(f"{str(path)!r}: interpolation", value, [mode.value for mode in InterpolationMode])
    return own


def _last_layer(network: nn.Module) -> nn.Module:
    return [module for module in network.modules() if hasattr(module, "weight")][-1]


def _outputs(network: nn.Module, library: str) -> int:
    return network.num_classes if library == "timm" else len(_last_layer(network).weight)


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
    common = Counter(name for name in names if "attention" not in name).most_common(1)
    return common[0][0] if common else "unknown"
