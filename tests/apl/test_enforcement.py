"""AnonymizationPrompt: whatever a caller writes, the prefix stands in front of it, and nothing else changes by a bit.

What goes around it is in test_fail_closed.py.
"""

import copy
import functools
import inspect
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

import ldm.apl
from ldm.apl import AnonymizationPrompt
from ldm.apl.guard import Guard, Insertion, inserting, shifted
from ldm.generation import generate
from ldm.modules.context_map import ContextMap
from ldm.modules.embedding_file import write_embedding_file, write_safetensors_file
from ldm.modules.embedding_manager import EmbeddingManager, manager_for
from ldm.modules.encoders.modules import clip_tokenizer
from ldm.util import UserError
from tests.apl.pipelines import BOS, EOT, LONG, NAME, OTHERS, VECTORS, WIDE, M, draw, drawn, encode, equal

pytestmark = pytest.mark.usefixtures("left_clean")

TEXTS = [NAME, "", "alz", "<alz> Ann Bell", " ".join(["man"] * 71), " ".join(["man"] * 73), " ".join(["man"] * 75), LONG,
         "<|endoftext|>", "<|endoftext|> Ann Bell", "Ann <|startoftext|><|endoftext|> Bell", "<|startoftext|> Ann", "hello! Ann!"]


def reference(encoder, vectors, tokenizer, text):
    """The encoder's own output for begin, `vectors` as further words of its table, text cut to fit, end of text, padding."""
    encoder, m = copy.deepcopy(encoder), len(vectors)
    Guard.of(encoder).release()
    table = encoder.get_input_embeddings()
    table.weight = torch.nn.Parameter(torch.cat([table.weight, vectors]))
    words = tokenizer(text, add_special_tokens=False)["input_ids"][:75 - m]
    ids = [BOS, *range(49408, 49408 + m), *words, EOT]
    with torch.no_grad():
        return encoder(torch.tensor([ids + [tokenizer.pad_token_id] * (77 - len(ids))]), output_hidden_states=True)


@pytest.mark.parametrize("text", ["a photo of Ann Bell", "", "a , b", LONG])
def test_the_context_is_bit_for_bit_the_managers(sd, embedder, prompt, text):
    manager = EmbeddingManager(embedder, num_vectors_per_token=M)
    manager.string_to_param_dict["alz"].data = VECTORS
    with torch.no_grad():
        expected = embedder(f"alz {text}", manager)
    prompt.attach(sd)
    assert torch.equal(encode(sd, text)[0], expected)


@pytest.mark.parametrize("text", TEXTS)
def test_the_prefix_stands_in_front_whatever_the_text_holds(sd, prompt, text):
    prompt.attach(sd)
    assert torch.equal(encode(sd, text)[0], reference(sd.text_encoder, VECTORS, sd.tokenizer, text).last_hidden_state)


@pytest.mark.parametrize("text", TEXTS)
def test_both_encoders_of_sdxl_and_the_pooled_output_are_prefixed(sdxl, pair, text):
    pair.attach(sdxl)
    first = reference(sdxl.text_encoder, VECTORS, sdxl.tokenizer, text)
    second = reference(sdxl.text_encoder_2, WIDE, sdxl.tokenizer_2, text)
    context, _, pooled, _ = encode(sdxl, text)
    assert torch.equal(context, torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1))
    assert torch.equal(pooled, second.text_embeds)


def test_the_second_prompt_of_sdxl_is_prefixed_too(sdxl, pair):
    pair.attach(sdxl)
    context, _, pooled, _ = encode(sdxl, "a dog", prompt_2=NAME)
    second = reference(sdxl.text_encoder_2, WIDE, sdxl.tokenizer_2, NAME)
    assert torch.equal(context[..., 16:], second.hidden_states[-2]) and torch.equal(pooled, second.text_embeds)
    assert torch.equal(context[..., :16], reference(sdxl.text_encoder, VECTORS, sdxl.tokenizer, "a dog").hidden_states[-2])


def test_sdxls_second_encoder_alone_takes_its_own_prefix(sdxl, pair):
    refiner = StableDiffusionXLPipeline(**sdxl.components | {"text_encoder": None, "tokenizer": None}, add_watermarker=False)
    pair.attach(refiner)
    expected = reference(sdxl.text_encoder_2, WIDE, sdxl.tokenizer_2, NAME)
    assert torch.equal(encode(refiner, NAME)[0], expected.hidden_states[-2])


@pytest.mark.parametrize("negative", [None, "", "blurry", "alz blurry"])
def test_the_negative_prompt_keeps_its_bits(sd, sdxl, prompt, pair, negative):
    before = encode(sd, NAME, negative), encode(sdxl, NAME, negative, images=2)
    prompt.attach(sd), pair.attach(sdxl)
    after = encode(sd, NAME, negative), encode(sdxl, NAME, negative, images=2)
    assert torch.equal(before[0][1], after[0][1]) and equal(before[1][1::2], after[1][1::2])
    assert not torch.equal(before[0][0], after[0][0]) and not any(map(torch.equal, before[1][::2], after[1][::2]))


def test_lists_and_images_per_prompt(sd, sdxl, prompt, pair):
    prompt.attach(sd), pair.attach(sdxl)
    for pipeline in (sd, sdxl):
        alone = [encode(pipeline, text, "blurry") for text in (NAME, "a dog")]
        together = encode(pipeline, [NAME, "a dog"], ["blurry", "blurry"], images=2)
        for output, a, b in zip(together, *alone, strict=True):
            assert torch.allclose(output, torch.cat([a, a, b, b]), atol=1e-6)  # a batch of two rounds otherwise
            assert torch.equal(output[0], output[1]) and torch.equal(output[2], output[3])


def test_without_guidance_the_prompt_is_the_same(sd, sdxl, prompt, pair):
    prompt.attach(sd), pair.attach(sdxl)
    for pipeline in (sd, sdxl):
        assert equal(encode(pipeline, NAME, guidance=False)[::2], encode(pipeline, NAME)[::2])


def test_clip_skip(sd, sdxl, prompt, pair):
    prompt.attach(sd), pair.attach(sdxl)
    first = reference(sdxl.text_encoder, VECTORS, sdxl.tokenizer, NAME)
    assert torch.equal(encode(sdxl, NAME, clip_skip=1)[0][..., :16], first.hidden_states[-3])
    hidden = reference(sd.text_encoder, VECTORS, sd.tokenizer, NAME).hidden_states[-2]
    encoder = sd.text_encoder
    vars(encoder)["text_model"] = encoder  # diffusers 0.42 asks for it; the CLIPTextModel of transformers 5.23 has none
    try:
        assert torch.equal(encode(sd, NAME, clip_skip=1)[0], encoder.final_layer_norm(hidden))
    finally:
        del vars(encoder)["text_model"]


def test_calls_by_position_and_the_deprecated_method(sd, prompt):
    prompt.attach(sd)
    with torch.no_grad():
        assert equal(sd.encode_prompt(NAME, "cpu", 1, True, "blurry"), encode(sd, NAME, "blurry"))
        assert torch.equal(sd._encode_prompt(NAME, "cpu", 1, True), torch.cat(encode(sd, NAME)[::-1]))


def test_pictures_change_with_the_prefix_and_come_back_without(sd, sdxl, prompt, pair):
    for pipeline, prefix in ((sd, prompt), (sdxl, pair)):
        before = draw(pipeline, prompt=NAME, num_images_per_prompt=2)
        prefix.attach(pipeline)
        attached = draw(pipeline, prompt=NAME, num_images_per_prompt=2)
        prefix.detach()
        assert attached.shape == (2, 8, 8, 3) and not np.array_equal(attached, before)
        assert np.array_equal(draw(pipeline, prompt=NAME, num_images_per_prompt=2), before)


def test_detach_leaves_everything_as_it_was(sd, prompt):
    before, attributes = encode(sd, NAME, "blurry"), dict(vars(sd))
    assert prompt.attach(sd) is prompt
    prompt.detach()
    assert vars(sd) == attributes and equal(encode(sd, NAME, "blurry"), before)
    prompt.detach(), prompt.detach(sd), prompt.detach("what it never met")


def test_detach_gives_back_a_method_that_the_caller_had_put_there(sd, prompt):
    plain = sd.encode_prompt
    sd.encode_prompt = theirs = functools.wraps(plain)(lambda *args, **kwargs: plain(*args, **kwargs))
    try:
        prompt.attach(sd).detach()
        assert vars(sd)["encode_prompt"] is theirs
    finally:
        del sd.encode_prompt


def test_attaching_twice(sd, prompt):
    prompt.attach(sd)
    once = encode(sd, NAME)
    prompt.attach(sd)
    assert equal(encode(sd, NAME), once)
    with pytest.raises(UserError, match=r"one.pt is attached to this StableDiffusionPipeline already.*detach\(\) first"):
        prompt.source = "one.pt"
        AnonymizationPrompt(OTHERS).attach(sd)
    with pytest.raises(UserError, match="given_embeds='refuse'"):
        prompt.attach(sd, "allow")
    assert equal(encode(sd, NAME), once)


def test_one_prompt_serves_several_pipelines(sd, prompt):
    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    prompt.attach(sd).attach(other)
    expected = encode(sd, NAME)
    assert equal(encode(other, NAME), expected)
    prompt.detach(other)
    assert equal(encode(sd, NAME), expected)


def test_pipelines_with_a_shared_text_encoder_are_told_apart(sd, prompt):
    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    second = AnonymizationPrompt(OTHERS)
    prompt.attach(sd), second.attach(other)
    for pipeline, vectors in ((sd, VECTORS), (other, OTHERS)):
        expected = reference(sd.text_encoder, vectors, sd.tokenizer, NAME).last_hidden_state
        assert torch.equal(encode(pipeline, NAME)[0], expected)
    second.detach()


def test_threads_that_are_in_one_text_encoder_at_once(sd, prompt):
    other, third = (StableDiffusionImg2ImgPipeline(**sd.components | {"tokenizer": clip_tokenizer()}, requires_safety_checker=False)
                    for _ in range(2))  # a tokenizer each: transformers' keep padding and truncation as their state
    second = AnonymizationPrompt(OTHERS).attach(third)
    prompt.attach(sd).attach(other)
    pipelines = [sd, other, third]
    expected = [encode(pipeline, NAME, "blurry") for pipeline in pipelines]
    together = threading.Barrier(len(pipelines), timeout=300)
    handle = sd.text_encoder.embeddings.register_forward_pre_hook(lambda *_: [together.wait()] and None)  # each encoding waits for all
    found = [[] for _ in pipelines]
    threads = [threading.Thread(target=lambda i=i: [found[i].append(encode(pipelines[i], NAME, "blurry")) for _ in range(5)])
               for i in range(len(pipelines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    second.detach()
    assert all(len(outputs) == 5 and all(equal(output, wanted) for output in outputs)
               for outputs, wanted in zip(found, expected, strict=True))


def test_the_embeddings_of_a_caller_are_refused(sd, sdxl, prompt, pair):
    context, negative = encode(sd, NAME)
    prompt.attach(sd), pair.attach(sdxl)
    with pytest.raises(ValueError, match="prompt_embeds were given that this pipeline's encode_prompt did not return"):
        draw(sd, prompt_embeds=context, negative_prompt_embeds=negative)
    with pytest.raises(UserError, match="give the text as prompt"):
        encode(sdxl, NAME, pooled_prompt_embeds=torch.zeros(1, 24))
    draw(sd, prompt=NAME, negative_prompt_embeds=negative)


def test_what_the_pipeline_itself_encoded_passes(sd, sdxl, prompt, pair):
    prompt.attach(sd), pair.attach(sdxl)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for pipeline in (sd, sdxl):
        embeds = dict(zip(names, encode(pipeline, NAME, "blurry"), strict=False))
        assert np.array_equal(draw(pipeline, **embeds), draw(pipeline, prompt=NAME, negative_prompt="blurry"))
        with pytest.raises(UserError, match="did not return"):
            draw(pipeline, **embeds | {"prompt_embeds": embeds["prompt_embeds"] + 0})


def test_embeddings_pass_where_they_are_allowed(sd, prompt):
    plain = encode(sd, NAME)
    prompt.attach(sd, given_embeds="allow")
    assert equal(encode(sd, None, prompt_embeds=plain[0]), plain)
    assert not torch.equal(encode(sd, NAME)[0], plain[0])  # texts are prefixed all the same


def test_the_contexts_of_the_prefix_come_in_front_of_given_embeddings(sd, prompt):
    given, negative = encode(sd, [NAME, "a dog"], ["blurry"] * 2)
    prompt.attach(sd, given_embeds="prefix")
    context, same = encode(sd, None, ["blurry"] * 2, prompt_embeds=given)
    assert torch.allclose(context[:, :1 + M], encode(sd, NAME)[0][:, :1 + M], atol=1e-6)  # causal: the same before any text
    assert torch.equal(context[:, 1 + M:], given[:, 1:77 - M]) and torch.equal(same, negative)
    own = encode(sd, NAME)[0]
    assert torch.equal(encode(sd, None, prompt_embeds=own)[0], own)


def test_textual_inversion_works_before_and_after_attaching(sd, prompt):
    own = StableDiffusionPipeline(**sd.components | {"text_encoder": copy.deepcopy(sd.text_encoder), "tokenizer": clip_tokenizer()},
                                  requires_safety_checker=False)
    own.load_textual_inversion({"<cat>": drawn(2, 16, seed=6)})
    prompt.attach(own)
    expected = reference(own.text_encoder, VECTORS, own.tokenizer, "a <cat> <cat>_1")
    own.load_textual_inversion({"<dog>": drawn(1, 16, seed=7)})
    assert own.text_encoder.get_input_embeddings().weight.shape[0] == 49408 + 3
    ids = torch.tensor([[BOS] * (1 + M) + own.tokenizer("a <cat> <cat>_1 <dog>", add_special_tokens=False)["input_ids"] + [EOT] * 69])
    assert ids[0, 5:8].tolist() == [49408, 49409, 49410]
    table = own.text_encoder.get_input_embeddings()
    handle = table.register_forward_hook(lambda *_: torch.cat([table.weight[[BOS]], VECTORS, table.weight[ids[0, 1 + M:]]])[None])
    with inserting({Guard.of(own.text_encoder): Insertion()}):
        expected = own.text_encoder(ids).last_hidden_state
    handle.remove()
    with torch.no_grad():
        assert torch.equal(encode(own, "a <cat> <dog>")[0], expected)
    own.unload_textual_inversion("<dog>")  # puts another table in the place of the old one
    assert torch.equal(encode(own, NAME)[0], encode(prompt.attach(sd) and sd, NAME)[0])


@pytest.mark.parametrize("which", ["tiny_model", "tiny_xl_model"])
def test_generate_draws_the_same_pictures_as_with_a_manager(which, request):
    model = request.getfixturevalue(which)
    jobs = [("a person", 0), ("a house", 0), ("a person", 1), (LONG, 0)]
    manager = manager_for(model.cond_stage_model, num_vectors_per_token=M)
    prompt = AnonymizationPrompt(*manager.embedding_parameters())
    for negative in ("blurry", ""):
        options = {"ddim_steps": 2, "negative_prompt": negative}
        expected = [image.tobytes() for _, image in generate(model, jobs, embedding_manager=manager, **options)]
        plain = [image.tobytes() for _, image in generate(model, jobs, **options)]
        prompt.attach(model)
        assert [image.tobytes() for _, image in generate(model, jobs, **options)] == expected
        with pytest.raises(UserError, match="embedding_manager was given"):
            next(generate(model, jobs, embedding_manager=manager))
        prompt.detach()
        assert [image.tobytes() for _, image in generate(model, jobs, **options)] == plain != expected


def test_the_empty_text_of_scripts_stays_and_every_other_is_prefixed(tiny_model):
    texts = ["", "a person", " ", "<|endoftext|>", ""]
    manager = EmbeddingManager(tiny_model.cond_stage_model, num_vectors_per_token=M)
    plain, empty = tiny_model.get_learned_conditioning(texts), tiny_model.get_learned_conditioning("")
    expected = tiny_model.get_learned_conditioning([f"alz {text}" if text else text for text in texts], manager)
    prompt = AnonymizationPrompt(manager.string_to_param_dict["alz"]).attach(tiny_model)
    assert torch.equal(tiny_model.get_learned_conditioning(texts), expected)
    assert torch.equal(tiny_model.get_learned_conditioning([""]), empty)
    assert torch.equal(tiny_model.get_negative_conditioning(texts), plain)
    prompt.detach()


@pytest.mark.parametrize(("ids", "shown"), [
    ([BOS, 5, EOT, EOT, EOT, EOT], [0, -1, -1, 1, 2, 5]), ([BOS, 5, EOT, 0, 0, 0], [0, -1, -1, 1, 2, 3]),
    ([BOS, 5, 6, 7, EOT, 0], [0, -1, -1, 1, 2, 4]), ([BOS, 5, 6, 7, 8, EOT], [0, -1, -1, 1, 2, 5]),
    ([BOS, EOT, 0, 0, 0, 0], [0, -1, -1, 1, 2, 3]), ([BOS, EOT, 6, EOT, 0, 0], [0, -1, -1, 1, 2, 3])])
def test_the_rest_moves_right_and_the_end_of_text_stays(ids, shown):
    token_ids = torch.tensor([ids])
    moved = shifted(token_ids, 2, EOT)[0].tolist()
    moved[1:3] = [-1, -1]  # the places of two vectors
    assert moved == [ids[n] if n >= 0 else n for n in shown]
    assert token_ids.tolist() == [ids]


def test_every_form_of_file_is_read(tmp_path, sd, sdxl):
    write_embedding_file(tmp_path / "one.pt", {"alz": VECTORS}, {"alz": 41128})
    write_safetensors_file(tmp_path / "pair.safetensors", {"clip_l": VECTORS, "clip_g": WIDE})
    one, pair = AnonymizationPrompt.load(tmp_path / "one.pt"), AnonymizationPrompt.load(tmp_path / "pair.safetensors")
    assert equal(one.vectors, [VECTORS]) and equal(pair.vectors, [VECTORS, WIDE])
    expected = encode(one.attach(sd) and sd, NAME)
    one.detach()
    assert not equal(encode(sd, NAME), expected)
    save_file({"one": VECTORS, "two": VECTORS + 1}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="two.safetensors holds vectors for one, two, and nothing says which"):
        AnonymizationPrompt.load(tmp_path / "two.safetensors")


def test_prompts_about_people_who_may_be_shown_are_left_alone_each_by_itself(sd, sdxl, pair, mapped):
    """Bit for bit: the rows of allowed prompts are those of the pipeline, all others those behind the prefix or the map."""
    texts = [NAME, "a photo of Ann Bell and Ben Wood", "a red car"]
    for pipeline, closed in ((sd, AnonymizationPrompt(VECTORS)), (sd, mapped), (sdxl, pair)):
        own = encode(pipeline, texts)
        closed.attach(pipeline)
        prefixed = encode(pipeline, texts)
        closed.detach()
        AnonymizationPrompt(*closed.vectors, context_map=closed.context_map, allow=["ann  BELL"]).attach(pipeline)
        attached = vars(pipeline)["encode_prompt"].attachment[0]
        found = encode(pipeline, texts)
        attached.detach()
        for got, plain, hidden in zip(found[::2], own[::2], prefixed[::2], strict=True):
            assert torch.equal(got[0], plain[0]) and torch.equal(got[1:], hidden[1:]) and not torch.equal(plain[0], hidden[0])
        assert equal(found[1::2], own[1::2])


def test_a_model_of_this_repository_leaves_allowed_prompts_alone_too(tiny_model):
    texts = ["", NAME, "a photo of Ben Wood"]
    own = tiny_model.get_learned_conditioning(texts)
    prefix = AnonymizationPrompt(drawn(M, 32, seed=3), allow=lambda text: "Bell" in text)
    prefix.attach(tiny_model)
    found = tiny_model.get_learned_conditioning(texts)
    assert torch.allclose(tiny_model.get_learned_conditioning([NAME]), own[1:2], atol=1e-5)
    prefix.detach()
    assert torch.equal(found[:2], own[:2]) and not torch.equal(found[2], own[2])


def test_interpolation_is_a_dial_between_two_checkpoints():
    weak, strong = AnonymizationPrompt(VECTORS, WIDE, source="a.pt"), AnonymizationPrompt(OTHERS, 2 * WIDE, source="b.pt")
    assert equal(weak.interpolate(strong, 0).vectors, weak.vectors) and equal(weak.interpolate(strong, 1).vectors, strong.vectors)
    assert torch.allclose(weak.interpolate(strong, 0.25).vectors[1], 1.25 * WIDE)
    with pytest.raises(UserError, match=r"a.pt has the shape \(3, 16\) and \(3, 24\) and b.pt"):
        weak.interpolate(AnonymizationPrompt(OTHERS, source="b.pt"), 0.5)


@pytest.mark.parametrize("text", [NAME, "", LONG])
def test_a_context_map_gives_the_pipeline_the_context_of_the_model_and_negative_prompts_keep_their_bits(sd, embedder, mapped, text):
    plain = encode(sd, text, "blurry", images=2)
    with torch.no_grad():
        expected = embedder(text, mapped.context_map)
    mapped.attach(sd)
    context, negative = encode(sd, text, "blurry", images=2)
    assert torch.equal(context[:1], expected) and torch.equal(context[0], context[1])
    assert torch.equal(negative, plain[1]) and not torch.equal(context, plain[0])
    mapped.detach()
    assert equal(encode(sd, text, "blurry", images=2), plain)


def test_a_context_map_is_applied_to_what_clip_skip_returns_and_exactly_to_given_embeddings(sd, mapped, monkeypatch):
    monkeypatch.setitem(vars(sd.text_encoder), "text_model", sd.text_encoder)  # see test_clip_skip
    skipped, (given, _) = encode(sd, NAME, clip_skip=1)[0], encode(sd, NAME)
    mapped.attach(sd, given_embeds="prefix")
    assert torch.equal(encode(sd, NAME, clip_skip=1)[0], mapped.context_map.finish(skipped))
    own = encode(sd, NAME)[0]
    assert torch.equal(encode(sd, None, prompt_embeds=given)[0], own)
    assert torch.equal(encode(sd, None, prompt_embeds=own)[0], own)  # its own outputs are not mapped again
    mapped.detach()
    mapped.attach(sd)
    with pytest.raises(UserError, match="did not return"):
        draw(sd, prompt_embeds=given + 0, negative_prompt="blurry")


def test_a_context_map_from_a_file_maps_every_text_of_a_model_except_the_empty_one(tiny_model, tmp_path):
    texts, width = ["", "a person", ""], 32
    ContextMap.of({"map": drawn(width, width, seed=1), "bias": drawn(width, seed=2)}).save(tmp_path / "map.safetensors")
    plain = tiny_model.get_learned_conditioning(texts)
    prompt = AnonymizationPrompt.load(tmp_path / "map.safetensors").attach(tiny_model)
    expected = torch.stack([plain[0], prompt.context_map.finish(plain)[1], plain[2]])
    assert torch.equal(tiny_model.get_learned_conditioning(texts), expected)
    assert torch.equal(tiny_model.get_negative_conditioning(texts), plain)
    own = [image.tobytes() for _, image in generate(tiny_model, [("a person", 0)], ddim_steps=2)]
    prompt.detach()
    assert own == [image.tobytes() for _, image in generate(tiny_model, [("a person", 0)], ddim_steps=2,
                                                            embedding_manager=ContextMap.of_file(tmp_path / "map.safetensors"))]


def test_two_context_maps_have_a_dial_and_a_prefix_and_a_map_have_none(mapped):
    other = AnonymizationPrompt(context_map=ContextMap.of({"map": drawn(16, 16, seed=9), "bias": drawn(16, seed=10)}), source="b")
    quarter = mapped.interpolate(other, 0.25).context_map
    torch.testing.assert_close(quarter.matrix, 0.75 * mapped.context_map.matrix + 0.25 * other.context_map.matrix)
    for pair in ((mapped, AnonymizationPrompt(VECTORS)), (AnonymizationPrompt(VECTORS), mapped)):
        with pytest.raises(UserError, match="map.safetensors is a context map 16 wide.*nothing is between them"):
            pair[0].interpolate(pair[1], 0.5)


@pytest.mark.parametrize(("target", "message"), [
    ("sdxl", "for a model with the one text encoder of Stable Diffusion v1, and StableDiffusionXLPipeline has those of SDXL"),
    ("tiny_xl_model", "DiffusionEngine has those of SDXL"),
    ("tiny_model", "is 16 wide but the text encoder of LatentDiffusion is 32 wide")])
def test_the_context_map_of_another_model_is_refused(request, mapped, target, message):
    with pytest.raises(UserError, match=message):
        mapped.attach(request.getfixturevalue(target))


class Pipeline:
    """Of another architecture."""

    def __init__(self, **parts):
        vars(self).update(parts)

    def encode_prompt(self, prompt, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=None, prompt_embeds=None):
        raise AssertionError


class OtherArguments(Pipeline):
    def encode_prompt(self, prompts):
        raise AssertionError


@pytest.mark.parametrize(("vectors", "target", "message"), [
    ([VECTORS], "sdxl", r"prefix of one text encoder and StableDiffusionXLPipeline has two.* IN OUT --to PRESET', such"),
    ([WIDE], "sd", "are 24 wide but the text encoder of StableDiffusionPipeline takes 16"),
    ([WIDE, VECTORS], "sdxl", "are 24 and 16 wide but the text encoder of StableDiffusionXLPipeline takes 16 and 24"),
    ([VECTORS, WIDE], "sd", "two text encoders of SDXL, and StableDiffusionPipeline has one; .* --part clip_l"),
    ([WIDE], "tiny_model", "LatentDiffusion takes 32"),
    ([drawn(61, 16, seed=0)], "sd", "61 vectors of the prefix leave no room for the prompt in 77 tokens")])
def test_the_prefix_of_another_model_is_refused(request, vectors, target, message):
    with pytest.raises(UserError, match=message):
        AnonymizationPrompt(*vectors).attach(request.getfixturevalue(target))


def test_other_architectures_are_refused(sd, sdxl):
    clip, wide = sd.text_encoder, sdxl.text_encoder_2
    for target, message in [
            (Pipeline(text_encoder=clip, text_encoder_2=wide, text_encoder_3=None), "Pipeline has text_encoder_3, but"),
            (Pipeline(text_encoder=clip, text_encoder_2=torch.nn.Linear(1, 1)), "text_encoder_2 of class Linear"),
            (Pipeline(text_encoder=wide), "text_encoder of class CLIPTextModelWithProjection"),
            (Pipeline(text_encoder=None), "no text_encoder"), (Pipeline(), "no text_encoder"),
            (OtherArguments(text_encoder=clip), "encode_prompt without do_classifier_free_guidance, negative_prompt"),
            ("a text", "str has no method encode_prompt")]:
        with pytest.raises(UserError, match=message):
            AnonymizationPrompt(VECTORS).attach(target)
    with pytest.raises(UserError, match="give one of refuse, allow, prefix"):
        AnonymizationPrompt(VECTORS).attach(sd, given_embeds="yes")
    with pytest.raises(UserError, match="pooled embedding cannot be prefixed"):
        AnonymizationPrompt(VECTORS, WIDE).attach(sdxl, given_embeds="prefix")


def test_the_name_is_at_hand_without_torch_or_diffusers():
    subprocess.run([sys.executable, "-c", "import sys, ldm.apl; assert 'torch' not in sys.modules"], check=True)
    assert not re.search(r"(from|import) diffusers", inspect.getsource(sys.modules[AnonymizationPrompt.__module__]))
    with pytest.raises(AttributeError, match="has no attribute 'Anonymisation'"):
        ldm.apl.Anonymisation  # noqa: B018
