"""Tokenizer, text encoder and the hook for a prefix, against transformers and open_clip."""

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, TextTransformer

from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import UserError
from tests.compvis_to_diffusers import relative_error

BEGIN, END = 49406, 49407
PROMPTS = ["alz A close-up portrait of Ana-Maria O'Neill, 42!", "", "  two   spaces ", "naïve café 日本 🙂", "word " * 60]


@pytest.fixture(scope="module")
def embedder(tiny_model) -> FrozenCLIPEmbedder:
    return tiny_model.cond_stage_model


def test_token_ids_are_those_of_open_clip(embedder):
    theirs = open_clip.tokenize(PROMPTS)  # pads with 0
    ends = (theirs == END).int().argmax(1, keepdim=True)
    theirs = torch.where(torch.arange(77) > ends, END, theirs)
    assert torch.equal(embedder.tokenize(PROMPTS), theirs)


def test_placeholder_is_one_token(embedder):
    assert embedder.tokenizer("alz", add_special_tokens=False)["input_ids"] == [41128]


def test_context_equals_open_clip(embedder):
    theirs = TextTransformer(width=32, heads=2, layers=2, mlp_ratio=2.0, act_layer=QuickGELU, pool_type="none",
                             proj_type="none", output_dim=32).eval()
    theirs.load_state_dict(open_clip_state(embedder.transformer.text_model.state_dict()), strict=False)
    token_ids = embedder.tokenize(PROMPTS)
    with torch.no_grad():
        assert relative_error(embedder(PROMPTS), theirs(token_ids)) < 1e-4


def test_long_prompt_keeps_the_end_of_text(embedder):
    token_ids = embedder.tokenize("word " * 200)[0]
    assert token_ids[0] == BEGIN and token_ids[76] == END and (token_ids[1:76] == token_ids[1]).all()


def test_long_prompt_leaves_room_for_what_a_hook_inserts(embedder):
    def extra_length(token_ids):
        return 9 * (token_ids == 41128).sum(-1)

    token_ids = embedder.tokenize(["alz " + "word " * 200, "word " * 74 + "alz", "alz short"], extra_length)
    content = (token_ids != END).sum(1) - 1
    assert content.tolist() == [66, 74, 2]  # 66 + 9 = 75; a placeholder that does not fit is left out as a whole


def test_nothing_follows_a_placeholder_that_does_not_fit(embedder):
    token_ids = embedder.tokenize("word " * 70 + "alz word", lambda token_ids: 9 * (token_ids == 41128).sum(-1))
    assert (token_ids != END).sum() == 1 + 70


def test_hook_gets_ids_and_embeddings_and_replaces_them(embedder):
    seen = []

    def hook(token_ids, token_embeddings):
        seen.append((token_ids, token_embeddings))
        return torch.zeros_like(token_embeddings)

    replaced = embedder(["a person", "a house"], hook)
    token_ids, token_embeddings = seen[0]
    assert torch.equal(token_ids, embedder.tokenize(["a person", "a house"]))
    assert torch.equal(token_embeddings, embedder.get_input_embeddings()(token_ids))
    assert torch.equal(replaced[0], replaced[1]) and not torch.equal(*embedder(["a person", "a house"]))


def test_hook_that_changes_nothing_leaves_the_context_bit_for_bit(embedder):
    assert torch.equal(embedder(PROMPTS, lambda _, token_embeddings: token_embeddings), embedder(PROMPTS))


def test_hook_is_gone_after_an_error(embedder):
    expected = embedder("a person")
    with pytest.raises(ZeroDivisionError):
        embedder("a person", lambda *_: 1 / 0)
    assert torch.equal(embedder("a person"), expected)


def test_gradient_passes_through_the_hook(embedder):
    shift = torch.zeros(32, requires_grad=True)
    embedder("a person", lambda _, token_embeddings: token_embeddings + shift).square().sum().backward()
    assert shift.grad.abs().sum() > 0


def test_empty_list_of_prompts_is_refused(embedder):
    with pytest.raises(UserError, match="give at least one prompt"):
        embedder([])


def open_clip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State of a transformers text model under open_clip's keys."""
    theirs = {"token_embedding.weight": state["embeddings.token_embedding.weight"],
              "positional_embedding": state["embeddings.position_embedding.weight"],
              "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"]}
    names = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}
    for number in range(2):
        layer, block = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            theirs[f"{block}attn.in_proj_{kind}"] = torch.cat([state[f"{layer}self_attn.{name}_proj.{kind}"] for name in "qkv"])
            theirs |= {f"{block}{new}.{kind}": state[f"{layer}{old}.{kind}"] for old, new in names.items()}
    return theirs
