"""Every known way around an attached AnonymizationPrompt: those that are closed, and those that are open (table in ldm/apl/README.md)."""

import copy
import gc
import pickle
import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from torch import nn

from ldm.apl import AnonymizationPrompt
from ldm.apl.guard import SAVED
from ldm.modules.encoders.modules import clip_tokenizer
from ldm.util import UserError
from tests.apl.pipelines import EOT, NAME, OTHERS, VECTORS, draw, drawn, encode, equal

pytestmark = pytest.mark.usefixtures("left_clean")
COMPILES = pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 cannot compile the CLIPTextModel of transformers 5")
REFUSED = "a prompt came around the anonymization prompt .* attach the anonymization prompt to that pipeline too"
FORMS = [("sd", "prompt"), ("sd", "mapped"), ("sdxl", "pair")]  # pipelines, each with an anonymization prompt


@pytest.fixture(params=FORMS, ids=" ".join)
def protected(request):
    """A pipeline and the prompt that is attached to it, as a prefix, a context map and a pair of prefixes."""
    pipeline, prompt = map(request.getfixturevalue, request.param)
    return pipeline, prompt.attach(pipeline)


def without(pipeline, **parts):
    """A new pipeline of the components of another."""
    return type(pipeline)(**pipeline.components | parts, **({"requires_safety_checker": False} if "safety_checker" in pipeline.components
                                                             else {"add_watermarker": False}))


def img2img_of(pipeline):
    kinds = {"StableDiffusionPipeline": StableDiffusionImg2ImgPipeline, "StableDiffusionXLPipeline": StableDiffusionXLImg2ImgPipeline}
    return kinds[type(pipeline).__name__].from_pipe(pipeline)


@pytest.mark.parametrize("build", [img2img_of, without], ids=["from_pipe", "components"])
def test_a_pipeline_built_from_a_protected_one_refuses_until_it_is_attached(protected, build):
    pipeline, prompt = protected
    expected, other = encode(pipeline, NAME), build(pipeline)
    for negative in (None, NAME):
        with pytest.raises(UserError, match=REFUSED):
            encode(other, NAME, negative)
    assert equal(encode(prompt.attach(other) and other, NAME), expected)
    prompt.detach(pipeline)
    with pytest.raises(UserError, match=REFUSED):  # the text encoder is still that of a protected pipeline
        encode(pipeline, NAME)
    prompt.detach(other)
    assert not torch.equal(encode(other, NAME)[0], expected[0])


def test_a_pipeline_that_outlives_the_protected_one_refuses_until_detach(sd, prompt):
    own = without(sd)
    other = img2img_of(prompt.attach(own) and own)
    del own
    gc.collect()
    assert not prompt.attached
    with pytest.raises(UserError, match=REFUSED):
        encode(other, NAME)
    prompt.detach()
    encode(other, NAME)


def test_allow_unprotected_lets_other_pipelines_and_callers_pass(sd, prompt):
    plain, other = encode(sd, NAME), without(sd)
    prompt.attach(sd, allow_unprotected=True)
    assert equal(encode(other, NAME), plain) and not torch.equal(encode(sd, NAME)[0], plain[0])
    with pytest.raises(UserError, match="with given_embeds='refuse' and allow_unprotected=True; call its detach"):
        prompt.attach(sd)
    strict = AnonymizationPrompt(OTHERS).attach(third := without(sd))  # the text encoder is now also that of a strict one
    with pytest.raises(UserError, match=REFUSED):
        encode(other, NAME)
    strict.detach(third)


def test_the_text_encoder_and_its_parts_refuse_to_be_called(protected):
    pipeline, _ = protected
    ids = torch.tensor([[49406, 320, EOT]])
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(pipeline, name, None)) is not None:
            embeddings = next(module for module in encoder.modules() if type(module).__name__ == "CLIPTextEmbeddings")
            for part in (encoder, getattr(encoder, "text_model", encoder), embeddings):
                with pytest.raises(UserError, match=REFUSED):
                    part(ids)


def test_the_method_of_the_class_and_the_wrapped_one_refuse(protected):
    pipeline, _ = protected
    for method in (type(pipeline).encode_prompt.__get__(pipeline), pipeline.encode_prompt.__wrapped__):
        with pytest.raises(UserError, match=REFUSED):
            method(prompt=NAME, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)


def test_a_deep_copy_is_protected_and_independent(protected):
    pipeline, prompt = protected
    expected, copied = encode(pipeline, NAME, "blurry"), copy.deepcopy(pipeline)
    assert copied.text_encoder is not pipeline.text_encoder and copied.encode_prompt.pipeline is copied
    assert equal(encode(copied, NAME, "blurry"), expected) and prompt.attach(copied) is prompt
    with torch.no_grad():
        copied.text_encoder.get_input_embeddings().weight.mul_(2)  # it encodes with its own text encoder
    assert not torch.equal(encode(copied, NAME)[0], expected[0]) and equal(encode(pipeline, NAME, "blurry"), expected)
    with pytest.raises(UserError, match=REFUSED):
        encode(without(copied), NAME)
    prompt.detach(copied)
    assert "save_pretrained" not in vars(copied.text_encoder) and "encode_prompt" not in vars(copied)
    assert equal(encode(pipeline, NAME, "blurry"), expected)


def test_a_copied_text_encoder_refuses_until_its_prompt_is_detached(protected):
    pipeline, prompt = protected
    other = without(pipeline, text_encoder=copy.deepcopy(pipeline.text_encoder))
    with pytest.raises(UserError, match=REFUSED):
        encode(other, NAME)
    prompt.detach()
    encode(other, NAME)


def test_a_shallow_copy_is_protected(protected):
    pipeline, prompt = protected
    assert equal(encode(copy.copy(pipeline), NAME), encode(pipeline, NAME))


def test_pickles_are_refused_with_a_word(protected):
    pipeline, _ = protected
    with pytest.raises(UserError, match="cannot be pickled.*call detach"):
        pickle.dumps(pipeline.text_encoder)


def test_a_saved_pipeline_names_its_state_and_holds_the_prompt(protected, tmp_path, capsys):
    pipeline, prompt = protected
    expected = encode(pipeline, NAME)
    pipeline.save_pretrained(tmp_path)
    folder = tmp_path / "text_encoder" / SAVED
    assert f"{tmp_path / 'text_encoder'} is not protected when it is loaded" in (told := capsys.readouterr().err) and str(folder) in told
    loaded = type(pipeline).from_pretrained(tmp_path, local_files_only=True)
    again = AnonymizationPrompt.from_pretrained(folder)
    assert not torch.equal(encode(loaded, NAME)[0], expected[0])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(encode(again.attach(loaded) and loaded, NAME), expected, strict=True))


def test_outputs_that_were_changed_in_place_and_negative_ones_are_no_prompts(protected):
    pipeline, _ = protected
    context, negative, *pooled = encode(pipeline, "a dog", NAME)
    options = dict(zip(["pooled_prompt_embeds"], pooled, strict=False))
    encode(pipeline, None, prompt_embeds=context, **options)
    with pytest.raises(UserError, match="did not return"):
        encode(pipeline, None, prompt_embeds=negative, **options)
    context.copy_(negative)
    with pytest.raises(UserError, match="did not return"):
        encode(pipeline, None, prompt_embeds=context, **options)


def test_inference_tensors_pass(sd, prompt):
    prompt.attach(sd)
    with torch.inference_mode():
        embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), sd.encode_prompt(NAME, "cpu", 1, True), strict=True))
        assert np.array_equal(draw(sd, **embeds), draw(sd, prompt=NAME))


def test_a_text_encoder_put_into_a_protected_pipeline_is_noticed(protected):
    pipeline, prompt = protected
    own = without(pipeline)
    prompt.attach(own)
    fresh = type(own.text_encoder)(own.text_encoder.config)
    own.text_encoder = fresh.eval()
    with pytest.raises(UserError, match="did not reach the text encoder"):
        encode(own, NAME)


class LowRank(nn.Module):
    """A linear layer with a low-rank update, as peft puts it in the place of a layer when a LoRA is loaded."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.update = nn.Sequential(nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False))

    def forward(self, x):
        return self.base(x) + self.update(x)


def test_with_a_lora_in_the_text_encoder_the_prefix_still_stands_in_front(sd, prompt):
    own = without(sd, text_encoder=copy.deepcopy(sd.text_encoder))
    prompt.attach(own)
    before = encode(own, NAME)[0]
    for layer in [module for module in own.text_encoder.modules() if hasattr(module, "q_proj")]:
        layer.q_proj = LowRank(layer.q_proj)
    with_lora = encode(own, NAME)[0]
    prompt.detach()
    plain = encode(own, NAME)[0]
    assert not torch.equal(with_lora, before) and not torch.equal(with_lora, plain)
    AnonymizationPrompt(VECTORS).attach(own)
    assert torch.equal(encode(own, NAME)[0], with_lora)


def test_textual_inversion_loaded_through_an_unprotected_pipeline_does_not_open_the_text_encoder(sd, prompt):
    own = without(sd, text_encoder=copy.deepcopy(sd.text_encoder), tokenizer=clip_tokenizer())
    other = without(prompt.attach(own) and own)
    expected = encode(own, NAME)
    other.load_textual_inversion({"<cat>": drawn(2, 16, seed=6)})  # replaces the table of token embeddings
    with pytest.raises(UserError, match=REFUSED):
        encode(other, "a <cat>")
    assert equal(encode(own, NAME), expected)


@COMPILES
def test_a_text_encoder_that_is_compiled_after_attach_is_guarded_and_one_compiled_before_is_refused(sd, prompt):
    own = without(sd, text_encoder=copy.deepcopy(sd.text_encoder))
    expected, other = encode(prompt.attach(own) and own, NAME)[0], without(own)
    own.text_encoder.compile(backend="eager")
    for _ in range(2):
        assert torch.allclose(encode(own, NAME)[0], expected, atol=1e-5)
        with pytest.raises(UserError, match=REFUSED):
            encode(other, NAME)
    with pytest.raises(UserError, match="is compiled, .* attach first, and then compile"):
        prompt.attach(other)


# Open ways, which a service must close itself

def test_open_a_new_pipeline_with_a_text_encoder_of_its_own_is_unprotected(sd, prompt):
    plain, fresh = encode(sd, NAME), copy.deepcopy(sd.text_encoder)
    prompt.attach(sd)
    assert equal(encode(StableDiffusionImg2ImgPipeline.from_pipe(sd, text_encoder=fresh), NAME), plain)


def test_open_embeddings_given_to_a_pipeline_that_is_not_attached_pass_if_it_need_not_encode(sd, prompt):
    (context, negative), other = encode(sd, NAME, ""), without(sd)
    plain = draw(sd, prompt=NAME)
    prompt.attach(sd)
    with pytest.raises(UserError, match=REFUSED):
        draw(other, prompt_embeds=context)  # it encodes the empty negative prompt
    assert np.array_equal(draw(other, prompt_embeds=context, negative_prompt_embeds=negative), plain)


@COMPILES
def test_open_what_was_compiled_before_attach_passes(sd, prompt):
    encoder = copy.deepcopy(sd.text_encoder)
    compiled, ids = torch.compile(encoder, backend="eager"), torch.tensor([[49406, 320, EOT]])
    with torch.no_grad():
        plain = compiled(ids)[0]
        prompt.attach(without(sd, text_encoder=encoder))
        assert torch.equal(compiled(ids)[0], plain)


def test_open_the_weights_of_a_protected_text_encoder_pass_in_another(sd, prompt):
    plain, fresh = encode(sd, NAME), copy.deepcopy(sd.text_encoder)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    prompt.attach(sd)
    fresh.load_state_dict(sd.text_encoder.state_dict())
    assert equal(encode(without(sd, text_encoder=fresh), NAME), plain)


def test_open_layers_that_are_called_one_by_one_pass(sd, prompt):
    plain, ids = encode(sd, NAME)[0], sd.tokenizer(NAME, padding="max_length", max_length=77, return_tensors="pt").input_ids
    prompt.attach(sd)
    model = getattr(sd.text_encoder, "text_model", sd.text_encoder)
    with torch.no_grad():
        states = model.embeddings.token_embedding(ids) + model.embeddings.position_embedding.weight
        for layer in model.encoder.layers:
            output = layer(states, torch.full((1, 1, 77, 77), -torch.inf).triu(1))
            states = output[0] if isinstance(output, tuple) else output  # torch.Tensor in newer versions of transformers
        assert torch.allclose(model.final_layer_norm(states), plain, atol=1e-5)


def test_open_image_prompts_pass_beside_the_prefix(sd, prompt):
    own = without(sd, unet=copy.deepcopy(sd.unet), text_encoder=copy.deepcopy(sd.text_encoder))
    width, count, names = 16, 4, [name for name in own.unet.attn_processors if "attn2" in name]
    adapter = {f"{2 * number + 1}.to_{which}_ip.weight": drawn(8, width, seed=number) for number in range(len(names)) for which in "kv"}
    projection = {"proj.weight": drawn(count * width, 12, seed=8), "proj.bias": torch.zeros(count * width),
                  "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    prompt.attach(own)
    images = [draw(own, prompt=NAME, ip_adapter_image_embeds=[drawn(2, 1, 12, seed=seed)]) for seed in (1, 2)]
    assert not np.array_equal(*images)


def test_open_the_image_of_img2img_passes(sd, prompt):
    other = img2img_of(sd)
    prompt.attach(other)
    images = [draw(other, prompt=NAME, image=np.full((1, 16, 16, 3), value, np.float32), strength=0.5, height=None, width=None)
              for value in (0.0, 1.0)]
    assert not np.array_equal(*images)


def test_open_the_text_encoder_of_our_own_model_can_be_called(tiny_model):
    plain = tiny_model.get_learned_conditioning([NAME])
    prompt = AnonymizationPrompt(drawn(2, 32, seed=1)).attach(tiny_model)
    assert torch.equal(tiny_model.cond_stage_model([NAME]), plain)
    assert not torch.equal(copy.deepcopy(tiny_model).get_learned_conditioning([NAME]), plain)
    prompt.detach()
