"""Tiny random models of seven classes of transformers, saved as their own would be, for tests without a download."""

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# user and assistant turns in the style of each family; LLaVA-1.5's answers close with a space alone
TURNS = {
    "qwen": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|vision_start|>{}<|vision_end|>"),
    "llava": ("USER: ", " ", "ASSISTANT: ", "{}\n"),
    "smol": ("<|im_start|>User:", "<end_of_utterance>\n", "Assistant: ", "{}"),
}


def words(special: tuple[str, ...]):
    """A byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: k for k, piece in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=list(special[2:])
    )


def template(style: str, image: str) -> str:
    user, close, assistant, picture = TURNS[style]
    shown = picture.format(image).replace("\n", "\\n")
    parts = (
        "{{% for m in messages %}}{{% if m.role == 'user' %}}{u}{{% else %}}{a}{{% endif %}}"
        "{{% for p in m.content %}}{{% if p.type == 'image' %}}{i}{{% else %}}{{{{ p.text }}}}{{% endif %}}"
        "{{% endfor %}}{c}{{% endfor %}}{{% if add_generation_prompt %}}{a}{{% endif %}}"
    )
    return parts.format(u=user, i=shown, c=close, a=assistant).replace("\\n", "\n")


def _qwen2(special, ids, *, five=False):
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    windows = {"intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 56}
    own = {"hidden_size": 32} | (windows if five else {"embed_dim": 32, "mlp_ratio": 2})
    config = hf.Qwen2_5_VLConfig if five else hf.Qwen2VLConfig
    made = config(
        text_config=TEXT | ROPE | {"vocab_size": len(ids)}, vision_config=vision | own,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    sizes = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64}}
    images, video = hf.Qwen2VLImageProcessor(patch_size=14, **sizes), hf.Qwen2VLVideoProcessor(patch_size=14, **sizes)
    processor = hf.Qwen2_5_VLProcessor if five else hf.Qwen2VLProcessor
    return made, lambda tokenizer, chat: processor(images, tokenizer, video, chat_template=chat)


def _qwen3(special, ids):
    vision = {
        "depth": 2, "num_heads": 2, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }  # fmt: skip
    text = TEXT | {"head_dim": 16, "vocab_size": len(ids)}
    text["rope_parameters"] = ROPE["rope_parameters"] | {"mrope_interleaved": True}
    made = hf.Qwen3VLConfig(
        text_config=text, vision_config=vision,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    sizes = {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64}}
    images = hf.Qwen2VLImageProcessor(patch_size=16, **sizes)
    video = hf.Qwen3VLVideoProcessor(patch_size=16, **sizes)
    return made, lambda tokenizer, chat: hf.Qwen3VLProcessor(images, tokenizer, video, chat_template=chat)


def _clip(size=56):
    images = hf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return VIT | {"image_size": size, "patch_size": 14, "model_type": "clip_vision_model"}, images


def _llava(special, ids):
    vision, images = _clip()
    made = hf.LlavaConfig(
        vision_config=vision, text_config=TEXT | {"model_type": "llama", "vocab_size": len(ids)},
        image_token_index=ids["<image>"], image_seq_length=16,
    )  # fmt: skip
    return made, lambda tokenizer, chat: hf.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat, image_token="<image>",
    )  # fmt: skip


def _onevision(special, ids):
    vision = VIT | {"image_size": 56, "patch_size": 14, "model_type": "siglip_vision_model", "vision_use_head": False}
    pinpoints = [[56, 56], [56, 112], [112, 56], [112, 112]]
    made = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(ids)},
        image_token_index=ids["<image>"], video_token_index=ids["<video>"], image_grid_pinpoints=pinpoints,
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    images = hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    video = hf.LlavaOnevisionVideoProcessor(size=size)
    return made, lambda tokenizer, chat: hf.LlavaOnevisionProcessor(
        images, tokenizer, video, num_image_tokens=16, vision_feature_select_strategy="full", chat_template=chat,
        image_token="<image>", video_token="<video>",
    )  # fmt: skip


def _tiled(config, images, processor, **video):
    def build(special, ids):
        made = config(
            vision_config=VIT | {"image_size": 56, "patch_size": 7}, scale_factor=2, image_token_id=ids["<image>"],
            text_config=TEXT | {"model_type": "llama", "vocab_size": len(ids), "pad_token_id": 0},
        )  # fmt: skip
        sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
        further = {name: kind(**sizes) for name, kind in video.items()}
        return made, lambda tokenizer, chat: processor(
            images(**sizes), tokenizer, image_seq_len=16, chat_template=chat, **further
        )

    return build


QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TILES = (f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
SMOL = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", *TILES)
CLASSES = {
    "qwen2-vl": (_qwen2, "qwen", QWEN, "<|image_pad|>"),
    "qwen2.5-vl": (lambda s, i: _qwen2(s, i, five=True), "qwen", QWEN, "<|image_pad|>"),
    "qwen3-vl": (_qwen3, "qwen", QWEN, "<|image_pad|>"),
    "llava": (_llava, "llava", ("<image>",), "<image>"),
    "llava-onevision": (_onevision, "qwen", ("<|im_start|>", "<|im_end|>", "<image>", "<video>"), "<image>"),
    "smolvlm": (
        _tiled(
            hf.SmolVLMConfig, hf.SmolVLMImageProcessor, hf.SmolVLMProcessor, video_processor=hf.SmolVLMVideoProcessor
        ),
        "smol", SMOL, "<image>",
    ),
    "idefics3": (_tiled(hf.Idefics3Config, hf.Idefics3ImageProcessor, hf.Idefics3Processor), "smol", SMOL, "<image>"),
}  # fmt: skip


def save(name: str, folder: Path) -> Path:
    """Write a random model of a class, of about 0.1 million parameters, with its processor and chat template."""
    build, style, marks, image = CLASSES[name]
    special = ("<pad>", "<eos>", *marks)
    tokenizer = words(special)
    for attribute, token in (
        ("image_token", "<image>"),
        ("fake_image_token", "<fake_token_around_image>"),
        ("global_image_token", "<global-img>"),
        ("end_of_utterance_token", "<end_of_utterance>"),
    ):
        if token in special and style == "smol":
            setattr(tokenizer, attribute, token)
    config, processor = build(special, tokenizer.get_vocab())
    torch.manual_seed(0)
    net = hf.AutoModelForImageTextToText.from_config(config)
    net.save_pretrained(folder)
    processor(tokenizer, template(style, image)).save_pretrained(folder)
    return folder
