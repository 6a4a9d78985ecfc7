"""Models: `load_model` and the handle every measurement works with."""

from zsr_utils.models._handle import PRECISIONS, Model, Preprocess, trusted
from zsr_utils.models._openclip import ModelUnavailable
from zsr_utils.models._registry import known_models, load_model, register_model, resolve_device, seed_everything
from zsr_utils.models._supervised import SupervisedModel
from zsr_utils.models._tabletop import embedded_models, embedded_vlms, training
from zsr_utils.models._vlm import VisionLanguageModel, load_vlm
from zsr_utils.models._weights import fill
