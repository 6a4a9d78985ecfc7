"""One handle over seven classes of generative models, on tiny random ones that are saved and loaded publicly."""

from types import SimpleNamespace

import pytest
import tiny_vlms
import torch

from zsr_utils.models import ModelUnavailable, load_vlm


IMAGES = torch.rand(2, 3, 120, 160, generator=torch.Generator().manual_seed(1))
SIZES = {"qwen2-vl": (4, 6), "qwen2.5-vl": (4, 6), "qwen3-vl": (4, 5)}
FAST = "llava"
NUMBERS = "transformers.models.smolvlm.processing_smolvlm.num2words"


@pytest.fixture(scope="module")
def vlm_of(tmp_path_factory):
    loaded = {}

    def load(name: str):
        if name not in loaded:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(NUMBERS, str)  # SmolVLM's processor asks for it, to spell numbers of videos
                folder = tiny_vlms.save(name, tmp_path_factory.mktemp("models") / name)
                loaded[name] = load_vlm(str(folder), device="cpu")
        return loaded[name]

    return load


every_class = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == FAST else pytest.mark.slow) for n in tiny_vlms.CLASSES]
)


@every_class
@torch.no_grad()
def test_scores_of_a_cached_context_are_those_of_the_whole_conversation_in_one_pass(vlm_of, name):
    vlm, prompt, options = vlm_of(name), "what is it?", ["mug", "a long bottle"]
    (first, second), (lengths, _) = vlm.score(IMAGES, [prompt] * 2, [options] * 2)
    for image, scores in zip(IMAGES, (first, second)):
        for option, score, length in zip(options, scores, lengths):
            context, suffix = vlm._inputs([image], [prompt]), vlm._suffix(prompt, option)
            whole = context | {"input_ids": torch.cat([context["input_ids"], suffix[None]], 1)}
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            if "mm_token_type_ids" in context:
                text = torch.zeros(1, len(suffix), dtype=torch.long)
                whole["mm_token_type_ids"] = torch.cat([context["mm_token_type_ids"], text], 1)
            each = vlm.net(**whole).logits[0, -len(suffix) - 1 : -1].log_softmax(-1)
            assert score == pytest.approx(float(each.gather(1, suffix[:, None]).sum()), abs=1e-3)
            assert length == len(suffix)
    assert not torch.equal(first, second)  # they look at the picture


@every_class
@torch.no_grad()
def test_questions_about_one_picture_share_its_pass_and_are_answered_as_alone(vlm_of, name):
    vlm, prompts, options = vlm_of(name), ["what is it?", "what's that", "who is it?"], [["mug", "a long bottle"]] * 3
    shown = [IMAGES[0], IMAGES[1], IMAGES[0]]
    together = vlm.read(shown, prompts, options)
    for row, (image, prompt) in enumerate(zip(shown, prompts)):
        alone = vlm.read([image], [prompt], options[:1])
        torch.testing.assert_close(together.scores[row], alone.scores[0], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(together.state[row], alone.state[0], atol=1e-4, rtol=1e-4)
        best = options[0][int(alone.scores[0].argmax())]
        torch.testing.assert_close(
            alone.answer_state, vlm.answer_state([image], [prompt], [best]), atol=1e-4, rtol=1e-4
        )


@every_class
@torch.no_grad()
def test_states_and_tokens_have_their_places(vlm_of, name):
    vlm = vlm_of(name)
    state = vlm.state(IMAGES[:1], ["what is it?"])
    passed = vlm._context([IMAGES[0]], ["what is it?"], output_hidden_states=True)
    torch.testing.assert_close(state, passed.hidden_states[-1][:, -1])
    answer = vlm.answer_state(IMAGES[:1], ["what is it?"], ["mug"])
    assert answer.shape == state.shape and not torch.equal(answer, state)
    (grid,) = vlm.image_tokens(IMAGES[:1])
    assert grid.shape == (*SIZES.get(name, (4, 4)), 32)
    said = vlm.answer(IMAGES[:1], ["what is it?"], max_new_tokens=3)
    assert len(said) == 1 and "<" not in said[0]


@every_class
def test_gradients_reach_the_pixels(vlm_of, name):
    pixels = IMAGES[0].clone().requires_grad_()
    scores, _ = vlm_of(name).score([pixels], ["what is it?"], [["mug"]])
    scores[0].sum().backward()
    assert pixels.grad.abs().max() > 0


@torch.no_grad()
def test_the_tokens_of_a_picture_lie_as_it_does(vlm_of):
    vlm = vlm_of(FAST)
    grey = torch.full((3, 56, 56), 0.5)
    marked = grey.clone()
    marked[:, :14, 42:] = 1.0  # one patch, above on the right
    one, other = vlm.image_tokens([grey, marked])
    assert int((one - other).square().sum(-1).argmax()) == 3  # by rows


@torch.no_grad()
def test_an_option_scores_the_same_in_any_company(vlm_of):
    vlm = vlm_of(FAST)
    (both,), _ = vlm.score(IMAGES[:1], ["q"], [["mug", "a very long answer indeed"]])
    (alone,), _ = vlm.score(IMAGES[1:], ["q"], [["mug"]])
    scores, _ = vlm.score([IMAGES[1], IMAGES[0]], ["q"] * 2, [["mug"]] * 2)
    assert scores[1] == pytest.approx(both[:1], abs=1e-4) and scores[0] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("options", [[], ["mug", "mug"], ["mug", " "]])
def test_options_that_cannot_be_told_apart_are_refused(vlm_of, options):
    with pytest.raises(ValueError, match=r"options are \[.*allowed are one or more different texts, none empty"):
        vlm_of(FAST).score(IMAGES[:1], ["q"], [options])


def test_what_a_model_lacks_is_said_in_one_sentence(vlm_of, tmp_path, monkeypatch):
    vlm = vlm_of(FAST)
    with pytest.raises(ValueError, match="Unknown generative model 'tabletop-vlmm'"):
        load_vlm("tabletop-vlmm")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_vlm(str(tmp_path))
    monkeypatch.setattr(type(vlm), "longest", 10)
    with pytest.raises(ValueError, match=r"a context of .* tokens, allowed are 10"):
        vlm.state(IMAGES[:1], ["q"])
    bare = SimpleNamespace(chat_template=None, tokenizer=SimpleNamespace(chat_template=None))
    with pytest.raises(ValueError, match="x has no chat template"):
        type(vlm)(vlm.net, bare, name="x")


def test_a_template_without_the_image_is_refused(vlm_of, monkeypatch):
    vlm = vlm_of(FAST)
    monkeypatch.setattr(vlm.processor, "chat_template", "{% for m in messages %}{{ m.content[1].text }}{% endfor %}")
    with pytest.raises(ValueError, match="puts no image token into the prompt"):
        vlm.state(IMAGES[:1], ["not asked before"])


@pytest.mark.slow
def test_a_package_that_a_processor_needs_is_named(tmp_path, vlm_of, monkeypatch):
    folder = vlm_of("smolvlm").net.config._name_or_path
    monkeypatch.setattr(NUMBERS, None)
    with pytest.raises(ModelUnavailable, match=r"num2words.*pip install"):
        load_vlm(folder)
