"""The training of a generative model, through to transformers' own loading."""

import numpy as np
import pandas as pd
import torch
from PIL import Image

import zsr_utils as zsr
from tabletop import dialogue, vlm


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


def test_the_embedded_model_answers_by_option_text_on_scenes_that_it_was_not_trained_on():
    vlm_, tower = zsr.load_vlm("tabletop-vlm", device="cpu"), zsr.load_model("tabletop-base", device="cpu")
    own = vlm_.net.model.vision_tower.timm_model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in tower.net.visual.trunk.state_dict().items())
    drawn = vlm.distribution_of(vlm.load_config("tabletop-vlm"))
    scenes = [dialogue.staged(drawn.draw(5, "test", k), 3000, k) for k in range(60)]
    pixels = vlm.render(scenes, size=64).pixels
    seen = vlm_.net.model.multi_modal_projector(tower.encode_tokens(pixels[:1]))
    torch.testing.assert_close(vlm_.image_tokens(pixels[:1])[0], seen[0], atol=1e-4, rtol=1e-4)
    asked = [(k, a) for k, s in enumerate(scenes) for a in dialogue.asked_of(s, np.random.default_rng([5, k]))]
    with torch.no_grad():
        scores, _ = vlm_.score(
            [pixels[k] for k, _ in asked], [a.prompt for _, a in asked], [a.options for _, a in asked]
        )
    hits = pd.DataFrame(
        {"topic": a.topic, "answer": a.answer, "right": a.options[int(s.argmax())] == a.answer}
        for (_, a), s in zip(asked, scores)
    )
    right = hits.groupby("topic").right.mean()
    present = hits[hits.topic == "present"].groupby("answer").right.mean().mean()
    assert present >= 0.9 and (right[["what", "count"]] >= 0.9).all() and (right[["colour", "pattern"]] >= 0.75).all()
