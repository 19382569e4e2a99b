"""The competing methods and the attacks: each loss on numbers checked in the head, its gradient, and what it leaves alone."""

import random
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from ldm.attacks.dreambooth import DreamBooth
from ldm.attacks.textual_inversion import TextualInversion, TokenVectors
from ldm.baselines.concept_ablation import ConceptAblation, ablation_loss, begin_of_text_detached, resized
from ldm.baselines.esd import ESD, PARAMETERS_OF, esd_loss, esd_target
from ldm.baselines.forget_me_not import ForgetMeNot, attention_norm, attention_probabilities, attention_recorded
from ldm.finetuning.samples import ImageLatents
from ldm.finetuning.trainer import FinetuningSettings, adam, training_step
from ldm.finetuning.weights import PARAMETERS, UNET, Weights, cross_attentions, parameters_of
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.sharing import OneDevice

NAMES = ["Ada Stone", "Ben Wood"]
OF_NAME = {"Ada Stone": [0], "Ben Wood": [1]}
CAR = "a photo of a person"


@pytest.fixture(scope="module")
def photos(tiny_model, pictures):
    return ImageLatents(tiny_model, [image.source for image in pictures[0]])


@pytest.fixture
def method_of(tiny_model, photos):
    """(name of a method, parameters) -> the method on the tiny model."""
    def build(name: str, group: str = "full"):
        weights = Weights(tiny_model, parameters_of(tiny_model, group))
        latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        if name == "textual_inversion":
            vectors = TokenVectors(EmbeddingManager(tiny_model.cond_stage_model, ["alz", "sks"], num_vectors_per_token=2), "sks")
            return TextualInversion(tiny_model, vectors, photos, templates=["a photo of {}"], phrase="sks person", prefixed=True, seed=0)
        return {
            "esd": lambda: ESD(weights, NAMES, eta=1.0, start_guidance=3.0, bins=5, seed=0, photos=(photos, OF_NAME)),
            "esd sampled": lambda: ESD(weights, NAMES, eta=1.0, start_guidance=3.0, bins=5, seed=0),
            "concept_ablation": lambda: ConceptAblation(weights, NAMES, anchor="a person", prompts=[CAR] * 3, latents=latents,
                                                        noise_based=False, anchor_weight=0.0, augment=False, seed=0),
            "noise-based": lambda: ConceptAblation(weights, NAMES, anchor="a person", prompts=[CAR] * 3, latents=latents,
                                                   noise_based=True, anchor_weight=0.5, augment=True, seed=0),
            "forget_me_not": lambda: ForgetMeNot(weights, photos, OF_NAME, seed=0, tokens={}),
            "dreambooth": lambda: DreamBooth(weights, photos, prompt="a photo of sks person", class_prompt=CAR,
                                             class_latents=latents, prior_weight=1.0, seed=0),
        }[name]()
    return build


def test_esd_target_leads_away_from_the_name_by_eta():
    empty, name = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 3.0)
    assert [esd_target(empty, name, eta)[0, 0, 0, 0].item() for eta in (0.0, 1.0, 2.0)] == [1.0, -1.0, -3.0]


def test_esd_loss_is_the_mean_squared_error_to_its_target():
    empty, name = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 3.0)
    assert esd_loss(torch.full((1, 4, 2, 2), 2.0), empty, name, 1.0).item() == 9.0


def test_ablation_loss_counts_only_where_the_mask_is():
    edited, target = torch.zeros(2, 4, 2, 2), torch.full((2, 4, 2, 2), 2.0)
    target[:, :, 1] = 100.0  # outside
    mask = torch.ones(2, 1, 2, 2)
    mask[:, :, 1] = 0.0
    assert ablation_loss(edited, target, mask).item() == 4.0


def test_attention_norm_is_the_length_of_all_attention_to_the_name():
    layers = [torch.zeros(1, 1, 2, 5), torch.zeros(1, 2, 1, 5)]
    layers[0][0, 0, 0, 2], layers[1][0, 1, 0, 3], layers[0][0, 0, 1, 4] = 3.0, 4.0, 9.0  # the last one is at no column of the name
    assert attention_norm(layers, [[2, 3]]).item() == 5.0
    assert attention_norm([torch.cat([layer, layer]) for layer in layers], [[2, 3], [2]]).item() == 4.0  # (5 + 3) / 2


def test_attention_probabilities_are_those_of_the_layer(tiny_model):
    """softmax(q k^T / sqrt d) v, from the recorded probabilities, is what the layer puts out."""
    layer = next(iter(cross_attentions(tiny_model).values()))
    x, context = torch.randn(2, 3, layer.to_q.in_features), torch.randn(2, 77, layer.to_k.in_features)
    projected = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    q, k, v = (tensor.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for tensor in projected)
    probabilities = attention_probabilities(q, k)
    assert probabilities.shape == (2, layer.heads, 3, 77) and torch.allclose(probabilities.sum(-1), torch.ones(1))
    assert torch.allclose(layer.to_out((probabilities @ v).transpose(1, 2).flatten(2)), layer(x, context), atol=1e-5)


def test_every_cross_attention_is_recorded_once(tiny_model):
    context = tiny_model.get_learned_conditioning(["a"])
    with attention_recorded(tiny_model) as recorded:
        tiny_model.apply_model(torch.zeros(1, 4, 4, 4), torch.tensor([5]), context)
    assert len(recorded) == len(cross_attentions(tiny_model)) > 1
    tiny_model.apply_model(torch.zeros(1, 4, 4, 4), torch.tensor([5]), context)
    assert len(recorded) == len(cross_attentions(tiny_model))  # not after it


def test_a_name_stands_at_its_own_positions_and_the_end_of_text_behind_it(tiny_model, method_of):
    token_ids = tiny_model.cond_stage_model.tokenizer("Ada Stone", add_special_tokens=False)["input_ids"]
    columns = method_of("forget_me_not").prompt_of("Ada Stone")[1]
    prompt = tiny_model.cond_stage_model.tokenize(["a photo of Ada Stone"])[0]
    end = tiny_model.cond_stage_model.tokenizer.eos_token_id
    assert prompt[columns].tolist() == token_ids + [end] * (len(columns) - len(token_ids)) and columns[-1] == 76


def test_the_begin_of_text_gets_no_gradient(tiny_model):
    context = tiny_model.get_learned_conditioning(["a b"]).clone().requires_grad_()
    with begin_of_text_detached(tiny_model):
        eps = tiny_model.apply_model(torch.randn(1, 4, 4, 4), torch.tensor([5]), context)
    eps.square().sum().backward()
    assert not context.grad[:, 0].any() and context.grad[:, 1].any()


@pytest.mark.parametrize(("name", "group"), [("esd", "xattn"), ("concept_ablation", "xattn-kv"), ("noise-based", "xattn"),
                                             ("forget_me_not", "full"), ("dreambooth", "full")])
def test_gradient_agrees_with_finite_differences(method_of, monkeypatch, name, group):
    """Along the gradient's own direction; what the loss holds fixed on purpose (target, begin of text) is held or let go here too."""
    method, numbers = method_of(name, group), range(2, 4)
    tensors = list(method.trained.parameters())
    if name in ("concept_ablation", "noise-based"):
        monkeypatch.setattr("ldm.baselines.concept_ablation.begin_of_text_detached", lambda model: nullcontext())
    if name == "concept_ablation":
        hold_target(method, method.contexts([CAR] * len(numbers)))
    gradients = torch.autograd.grad(method.loss(numbers), tensors, allow_unused=True)
    moved = [(tensor, gradient) for tensor, gradient in zip(tensors, gradients, strict=True) if gradient is not None]
    length = torch.cat([gradient.flatten() for _, gradient in moved]).norm().item()
    assert length > 0
    step, values = min(1e-3 / length, 0.02), []
    for sign in (1, -1):
        with torch.no_grad():
            for tensor, gradient in moved:
                tensor += sign * step * gradient / length
            values.append(method.loss(numbers).item())
            for tensor, gradient in moved:
                tensor -= sign * step * gradient / length
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(length, rel=0.02)


def hold_target(method: ConceptAblation, anchor: Tensor) -> None:
    """The prediction for the anchor stays what it is now, as the loss treats it."""
    eps, known = method.trained.eps, []

    def held(noisy_latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        if not torch.equal(context, anchor):
            return eps(noisy_latent, timestep, context)
        known.append(known[0] if known else eps(noisy_latent, timestep, context).detach())
        return known[0]

    method.trained.eps = held


@pytest.mark.parametrize("name", ["esd", "esd sampled", "concept_ablation", "noise-based", "forget_me_not", "dreambooth"])
def test_training_leaves_the_frozen_model_bit_for_bit(tiny_model, method_of, name):
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    method = method_of(name, "xattn")
    optimizer = adam(method, settings := FinetuningSettings(iterations=2, batch_size=2, lr=1e-2))
    start = {key: value.clone() for key, value in method.trained.state_dict().items()}
    for step in (1, 2):
        training_step(OneDevice(), method, optimizer, settings, step)
    assert all(torch.equal(value, tiny_model.state_dict()[key]) for key, value in before.items())
    assert list(tiny_model.state_dict()) == list(before)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tiny_model.parameters())
    changed = [key for key, value in method.trained.state_dict().items() if not torch.equal(value, start[key])]
    assert changed and all(".attn2." in key for key in changed)


@pytest.mark.parametrize(("group", "there", "absent"), [
    ("xattn-kv", (".attn2.to_k.", ".attn2.to_v."), (".attn2.to_q.", ".attn2.to_out.", ".attn1.", "in_layers", "time_embed")),
    ("xattn-v", (".attn2.to_v.",), (".attn2.to_k.", ".attn2.to_q.", ".attn2.to_out.", ".attn1.", "in_layers", "time_embed")),
    ("xattn", (".attn2.to_q.", ".attn2.to_out.", ".attn2.to_v."), (".attn1.", "in_layers", "time_embed")),
    ("noxattn", (".attn1.to_k.", "in_layers", ".norm2."), (".attn2.", f"{UNET}time_embed.", f"{UNET}out.")),
    ("full", (".attn1.", ".attn2.", f"{UNET}time_embed.", f"{UNET}out."), ("first_stage_model", "cond_stage_model"))])
def test_a_group_has_the_parameters_of_its_name(tiny_model, group, there, absent):
    keys = parameters_of(tiny_model, group)
    assert all(any(part in key for key in keys) for part in there)
    assert not [key for key in keys if any(part in key for part in absent)]
    assert {*PARAMETERS_OF.values(), "xattn-v"} == set(PARAMETERS)  # of esd, and of speed


def test_the_text_encoder_is_trained_where_asked_for(tiny_model):
    keys = parameters_of(tiny_model, "full", text_encoder=True)
    assert any(key.startswith("cond_stage_model.transformer.") for key in keys)


def test_the_noisiest_part_starts_from_noise_and_the_others_are_drawn_by_the_edited_model(tiny_model, method_of):
    method = method_of("esd sampled")
    noise, (empty, context) = torch.randn(1, 4, 4, 4), method.contexts(["", "Ada Stone"]).split(1)
    assert torch.equal(method.partly_drawn(noise, 4, context, empty), noise)
    before = method.partly_drawn(noise, 2, context, empty)
    with torch.no_grad():
        for tensor in method.trained.parameters():
            tensor.mul_(1.5)
    assert not torch.equal(method.partly_drawn(noise, 2, context, empty), before)


def test_only_a_smaller_picture_has_a_mask_and_words_say_so(tiny_model):
    latent, mask, words = resized(tiny_model, torch.randn(20, 4, 4, 4), [random.Random(number) for number in range(20)])
    smaller = mask.flatten(1).mean(1) < 1
    assert latent.shape == (20, 4, 4, 4) and 2 < smaller.sum() < 15 and mask.flatten(1).any(1).all()
    assert all(word in ("a far away ", "very small ") for word, small in zip(words, smaller, strict=True) if small)
    assert {"zoomed in ", "close up ", ""} == {word for word, small in zip(words, smaller, strict=True) if not small}


def test_the_name_takes_the_anchors_place_and_no_part_of_a_word(method_of):
    method, seen = method_of("concept_ablation"), []
    method.prompts = ["a personal photo of a person"] * 3
    method.contexts = lambda texts: seen.append(texts) or torch.zeros(len(texts), 77, 32)
    method.loss(range(1))
    assert seen == [["a personal photo of Ada Stone"], ["a personal photo of a person"]]
