"""The training of a generative model, through to transformers' own loading."""

import numpy as np
import torch
from PIL import Image

from tabletop import vlm


def test_a_training_resumes_and_its_folder_loads_as_any_other_model(tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    monkeypatch.setattr(vlm, "HELD_OUT", 8)
    config = vlm.load_config("tabletop-vlm") | {"scenes": 16, "steps": 2, "batch_size": 2, "width": 32, "heads": 2}
    places = {"runs": tmp_path, "clip_models": vlm.ROOT / "data" / "models"}
    whole = vlm.train(config, models=tmp_path / "a", **places)
    checkpoint = tmp_path / "tabletop-vlm" / "checkpoint.pt"
    checkpoint.unlink()
    vlm.train(config | {"steps": 1}, models=tmp_path / "b", **places)
    saved = torch.load(checkpoint, weights_only=True)
    torch.save(saved | {"config": config}, checkpoint)  # one step of the same training
    resumed = vlm.train(config, models=tmp_path / "b", **places)
    nets = [AutoModelForImageTextToText.from_pretrained(f, dtype=torch.float32) for f in (whole, resumed)]
    for (name, one), other in zip(nets[0].state_dict().items(), nets[1].state_dict().values()):
        assert torch.equal(one, other), name
    processor = AutoProcessor.from_pretrained(whole)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    inputs = processor(images=[picture], text=[text], return_tensors="pt", add_special_tokens=False)
    assert (inputs.input_ids == nets[0].config.image_token_id).sum() == vlm.TOKENS
    answer = nets[0].generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs.input_ids.shape[1] :]
    assert answer.shape[1] >= 1
