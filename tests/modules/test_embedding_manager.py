"""The anonymization prompt in the text encoder: injection, gradients, truncation, initialisation, files."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.apl.guard import shifted
from ldm.apl.prefix import build_prefix
from ldm.generation import with_prefix
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from ldm.util import UserError

WIDTH, ALZ, SKS, EOT = 32, 41128, 48136, 49407


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    return FrozenCLIPEmbedder(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
                              intermediate_size=64).eval().requires_grad_(False)


def look_up(embedder, token_ids):
    return embedder.get_input_embeddings()(token_ids)


def by_token(manager):
    return {manager.string_to_token_dict[name]: value for name, value in manager.string_to_param_dict.items()}


def inject(embedder, manager, texts):
    """Token ids without room made, their embeddings, and what the manager makes of them."""
    token_ids = embedder.tokenize(texts)
    token_embeddings = look_up(embedder, token_ids)
    return token_ids, token_embeddings, manager(token_ids, token_embeddings)


def by_hand(embedder, vectors, text):
    """(77, d): begin, text with `vectors` (by token) concatenated, end of text up to the end; the text cut to fit.

    The first of the placeholders stands once where it begins the text.
    """
    pieces, prefix = [], next(iter(vectors))
    for number, token_id in enumerate(token_ids := embedder.tokenizer(text, add_special_tokens=False)["input_ids"]):
        is_word = token_id not in vectors or (token_id == prefix == token_ids[0] and number > 0)
        pieces.append(look_up(embedder, torch.tensor([token_id])) if is_word else vectors[token_id])
    begin, end = (look_up(embedder, torch.tensor([token_id])) for token_id in (49406, EOT))
    row = torch.cat([begin, *pieces, end.expand(77, -1)])[:77]
    return torch.cat([row[:76], end])


def words(count):
    return " ".join(["portrait"] * count)


@pytest.mark.parametrize("content", [1, 2, 10, 40, 65, 66])
def test_the_context_is_bit_for_bit_that_of_plain_concatenation(embedder, content):
    manager = EmbeddingManager(embedder)
    text = f"alz {words(content - 1)}"
    rows = torch.stack([by_hand(embedder, by_token(manager), one) for one in (text, "a dog")])
    context = embedder([text, "a dog"], embedding_manager=manager)
    assert torch.equal(context, embedder.context(embedder.tokenize(["", ""]), lambda _ids, _embeddings: rows))


@pytest.mark.parametrize("text", ["alz a man", "a man alz", "a alz man", "alz alz", "alz Alz of ALZ", "a alz man alz , alz", "a man", ""])
def test_the_placeholder_stands_anywhere_and_more_than_once_unless_it_begins_the_text(embedder, text):
    manager = EmbeddingManager(embedder, num_vectors_per_token=3)
    _, _, injected = inject(embedder, manager, [text, "alz of another length", "none"])
    assert torch.equal(injected[0], by_hand(embedder, by_token(manager), text))
    assert torch.equal(injected[2], look_up(embedder, embedder.tokenize("none"))[0])


def test_several_placeholders(embedder):
    manager = EmbeddingManager(embedder, ["alz", "sks"], num_vectors_per_token=4)
    assert manager.string_to_token_dict == {"alz": ALZ, "sks": SKS}
    for text in ("a sks dog alz , sks", "sks alz sks", "alz sks alz sks"):
        assert torch.equal(inject(embedder, manager, text)[2][0], by_hand(embedder, by_token(manager), text))


@pytest.mark.parametrize("text", ["Walk to end ALZ in a park", "A portrait of Alz Example", "alz", "alz alz", f"alz {'man ' * 70}", ""])
def test_in_front_of_a_text_that_holds_the_placeholder_the_prefix_stands_once(embedder, text):
    manager = EmbeddingManager(embedder)
    (vectors,) = manager.embedding_parameters()
    token_ids = embedder.tokenize(with_prefix([text], manager), manager.extra_length)
    injected = manager(token_ids, look_up(embedder, token_ids))
    expected = look_up(embedder, shifted(embedder.tokenize(text), len(vectors), EOT))  # as AnonymizationPrompt does it
    expected[:, 1:1 + len(vectors)] = vectors.detach()
    assert torch.equal(injected, expected)
    assert (injected[0] == vectors[0]).all(1).nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("content", [67, 75, 76, 200])
def test_the_end_of_text_is_kept_when_a_long_prompt_is_cut(embedder, content):
    manager = EmbeddingManager(embedder)
    text = f"alz {words(content - 1)}"
    end = look_up(embedder, torch.tensor(EOT))
    _, _, injected = inject(embedder, manager, text)
    assert torch.equal(injected[0], by_hand(embedder, by_token(manager), text))
    assert torch.equal(injected[0, 76], end) and not torch.equal(injected[0, 75], end)
    made_room = embedder.tokenize(text, manager.extra_length)
    assert torch.equal(manager(made_room, look_up(embedder, made_room)), injected)


def test_extra_length_counts_what_each_prompt_needs(embedder):
    manager = EmbeddingManager(embedder, ["alz", "sks"], num_vectors_per_token=10)
    token_ids = embedder.tokenize(["a dog", "alz a dog", "alz sks a dog alz"])
    assert manager.extra_length(token_ids).tolist() == [0, 9, 18]
    assert manager.extra_length(torch.tensor([[ALZ], [5], [ALZ]])).tolist() == [9, 0, 0]
    assert manager.extra_length(torch.tensor([[5], [ALZ], [ALZ], [SKS]])).tolist() == [0, 9, 9, 9]


def test_arguments_stay_as_they_are(embedder):
    manager = EmbeddingManager(embedder)
    token_ids = embedder.tokenize(["alz a", "b alz"])
    token_embeddings = look_up(embedder, token_ids)
    copies = token_ids.clone(), token_embeddings.clone()
    manager(token_ids, token_embeddings)
    assert torch.equal(token_ids, copies[0]) and torch.equal(token_embeddings, copies[1])


def test_gradient_reaches_every_vector_and_nothing_else(embedder):
    manager = EmbeddingManager(embedder)
    embedder(["alz a man", "a woman"], embedding_manager=manager).square().sum().backward()
    (vectors,) = manager.embedding_parameters()
    assert vectors.shape == (10, WIDTH) and (vectors.grad.abs().sum(1) > 0).all()
    assert not any(parameter.requires_grad for parameter in embedder.parameters())


def test_the_gradient_counts_every_occurrence(embedder):
    manager = EmbeddingManager(embedder, num_vectors_per_token=2)
    _, _, injected = inject(embedder, manager, ["a alz alz", "alz", "none"])
    injected.sum().backward()
    assert torch.equal(manager.string_to_param_dict["alz"].grad, torch.full((2, WIDTH), 3.0))


def test_a_prompt_without_placeholder_is_bit_for_bit_the_plain_one(embedder):
    texts = ["a dog on a beach", "", words(100)]
    assert torch.equal(embedder(texts, embedding_manager=EmbeddingManager(embedder)), embedder(texts))


def test_vectors_stay_float32_under_autocast(embedder):
    manager = EmbeddingManager(embedder)
    with torch.autocast("cpu", torch.bfloat16):
        context = embedder("alz a man", embedding_manager=manager)
    context.float().square().sum().backward()
    (vectors,) = manager.embedding_parameters()
    assert vectors.dtype == vectors.grad.dtype == torch.float32 and torch.isfinite(vectors.grad).all()


def test_a_bfloat16_encoder_gets_bfloat16_embeddings_from_float32_vectors(embedder):
    manager = EmbeddingManager(embedder)
    token_ids = embedder.tokenize("alz a man")
    injected = manager(token_ids, look_up(embedder, token_ids).bfloat16())
    assert injected.dtype == torch.bfloat16
    assert torch.equal(injected[0, 1:11], manager.string_to_param_dict["alz"].bfloat16())


def test_uniform01_is_drawn_from_the_seed(embedder):
    draws = [EmbeddingManager(embedder, generator=torch.Generator().manual_seed(seed)).string_to_param_dict["alz"]
             for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert 0 <= draws[0].min() < 0.05 and 0.95 < draws[0].max() < 1
    state = torch.get_rng_state()
    EmbeddingManager(embedder)
    assert torch.equal(torch.get_rng_state(), state)


def test_vocab_has_the_statistics_of_the_token_table(embedder):
    class Shifted:
        tokenizer, max_length = embedder.tokenizer, embedder.max_length

        @staticmethod
        def get_input_embeddings():
            return torch.nn.Embedding.from_pretrained(torch.randn(1000, 4) * torch.tensor([0.0, 0.1, 1, 2]) + 5)

    vectors = EmbeddingManager(Shifted, num_vectors_per_token=60, init="vocab").string_to_param_dict["alz"]
    assert torch.allclose(vectors.std(0), torch.tensor([0.0, 0.1, 1, 2]), rtol=0.4, atol=1e-3)
    assert torch.allclose(vectors.mean(0), torch.full((4,), 5.0), atol=1)


def test_initializer_words_are_repeated_in_order(embedder):
    manager = EmbeddingManager(embedder, initializer_words=["some person"], num_vectors_per_token=3)
    some, person = look_up(embedder, embedder.tokenize("some person")[0, 1:3])
    assert torch.equal(manager.string_to_param_dict["alz"], torch.stack([some, person, some]))


def test_a_prefix_of_sdxl_is_refused_for_one_encoder_even_where_a_part_is_as_wide(embedder, tmp_path):
    save_file({"clip_l": VECTORS, "clip_g": torch.ones(2, 40)}, tmp_path / "pair.safetensors")
    with pytest.raises(UserError, match="is a prefix for the two text encoders of SDXL, and this model has one; .* --part clip_l"):
        EmbeddingManager(embedder).load(tmp_path / "pair.safetensors")


@pytest.mark.parametrize(("options", "message"), [
    ({"placeholder_strings": ["anonymization prompt"]}, "is 5 CLIP tokens where one"),
    ({"placeholder_strings": [""]}, "is 0 CLIP tokens where one"),
    ({"placeholder_strings": ["<|endoftext|>"]}, "ordinary token"),
    ({"placeholder_strings": ["alz", "ALZ"]}, "same token as another"),
    ({"placeholder_strings": ["keys"]}, "is reserved"),
    ({"num_vectors_per_token": 0}, "give 1 to 60"),
    ({"num_vectors_per_token": 61}, "give 1 to 60"),
    ({"init": "zeros"}, "give one of uniform01, vocab"),
    ({"initializer_words": ["a", "b"]}, "one text for each"),
    ({"initializer_words": [words(11)]}, "are 11 CLIP tokens; give 1 to 10"),
])
def test_wrong_arguments_are_refused_with_a_sentence(embedder, options, message):
    with pytest.raises(UserError, match=message):
        EmbeddingManager(embedder, **options)


def test_saved_vectors_are_loaded_again(embedder, tmp_path):
    manager = EmbeddingManager(embedder, ["alz", "sks"], generator=torch.Generator().manual_seed(3))
    manager.save(tmp_path / "a.pt", step=7, seed=3)
    other = EmbeddingManager(embedder, ["alz", "sks"])
    assert other.load(tmp_path / "a.pt").metadata == {"name": "<alz>", "step": 7, "seed": 3}
    for name, vectors in manager.string_to_param_dict.items():
        assert torch.equal(other.string_to_param_dict[name], vectors)


def test_an_optimizer_stays_valid_after_load(embedder, tmp_path):
    manager = EmbeddingManager(embedder)
    manager.save(tmp_path / "a.pt")
    optimizer = torch.optim.Adam(manager.embedding_parameters())
    manager.load(tmp_path / "a.pt")
    assert optimizer.param_groups[0]["params"][0] is manager.string_to_param_dict["alz"]


def test_another_number_of_vectors_is_taken_over(embedder, tmp_path):
    EmbeddingManager(embedder, num_vectors_per_token=3).save(tmp_path / "a.pt")
    manager = EmbeddingManager(embedder, num_vectors_per_token=10)
    manager.load(tmp_path / "a.pt")
    assert [vectors.shape for vectors in manager.embedding_parameters()] == [(3, WIDTH)]


VECTORS = torch.arange(2.0 * WIDTH).reshape(2, WIDTH)


@pytest.mark.parametrize("content", [{"emb_params": VECTORS}, {"<alz>": VECTORS}, {"alz": VECTORS}, {"clip_l": VECTORS}])
def test_one_entry_goes_to_the_placeholder_whatever_it_is_called(embedder, content, tmp_path):
    save_file(content, tmp_path / "a.safetensors")
    manager = EmbeddingManager(embedder)
    manager.load(tmp_path / "a.safetensors")
    assert torch.equal(manager.string_to_param_dict["alz"], VECTORS) and len(manager.string_to_param_dict) == 1


@pytest.mark.parametrize("token", [265, ALZ])
def test_the_star_of_other_clients_is_the_placeholder(embedder, token, tmp_path):
    write_embedding_file(tmp_path / "a.pt", {"*": VECTORS}, {"*": token})
    manager = EmbeddingManager(embedder)
    manager.load(tmp_path / "a.pt")
    assert manager.string_to_token_dict == {"alz": ALZ}
    assert torch.equal(manager.string_to_param_dict["alz"], VECTORS)


def test_further_entries_bring_their_own_placeholder(embedder, tmp_path):
    EmbeddingManager(embedder, ["alz", "sks"], generator=torch.Generator().manual_seed(3)).save(tmp_path / "a.pt")
    manager = EmbeddingManager(embedder)
    manager.load(tmp_path / "a.pt")
    assert manager.string_to_token_dict == {"alz": ALZ, "sks": SKS}
    assert torch.equal(manager.string_to_param_dict["sks"], read_embedding_file(tmp_path / "a.pt").vectors["sks"])


def test_a_name_goes_before_a_token(embedder, tmp_path):
    write_embedding_file(tmp_path / "a.pt", {"*": VECTORS + 1, "alz": VECTORS}, {"*": ALZ, "alz": ALZ})
    manager = EmbeddingManager(embedder)
    manager.load(tmp_path / "a.pt")
    assert torch.equal(manager.string_to_param_dict["alz"], VECTORS) and len(manager.string_to_param_dict) == 1


@pytest.mark.parametrize("content", [{"alz": torch.ones(10, 768)}, {"clip_g": torch.ones(10, 768)}])
def test_another_width_is_refused_with_both_widths(embedder, content, tmp_path):
    save_file(content, tmp_path / "wide.safetensors")
    manager = EmbeddingManager(embedder)
    before = manager.string_to_param_dict["alz"].clone()
    with pytest.raises(UserError, match=f"wide.safetensors are 768 wide .*but .* {WIDTH} wide"):
        manager.load(tmp_path / "wide.safetensors")
    assert torch.equal(manager.string_to_param_dict["alz"], before)


def test_a_file_that_leaves_the_placeholder_open_is_refused(embedder, tmp_path):
    save_file({"one": VECTORS, "two": VECTORS + 1}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="names none of the placeholders alz"):
        EmbeddingManager(embedder).load(tmp_path / "a.safetensors")


def test_a_file_of_a_prefix_that_is_too_long_is_named(embedder, tmp_path):
    save_file({"emb_params": VECTORS[:1].repeat(61, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="61 vectors in .*a.safetensors leaves no room .* give 1 to 60"):
        EmbeddingManager(embedder).load(tmp_path / "a.safetensors")


def test_build_prefix_leaves_m_times_d_numbers_to_train(embedder):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cond_stage_model, self.unet = embedder, torch.nn.Linear(2, 2)

    model = Model()
    prefix = build_prefix(model, num_vectors=4, seed=5)
    trainable = [p.numel() for module in (model, prefix) for p in module.parameters() if p.requires_grad]
    assert trainable == [4 * WIDTH]
    assert torch.equal(*[build_prefix(model, seed=5).string_to_param_dict["alz"] for _ in range(2)])
    words_first = build_prefix(model, num_vectors=2, initializer_words="person").string_to_param_dict["alz"]
    assert torch.equal(words_first[1], look_up(embedder, embedder.tokenize("person"))[0, 1])
