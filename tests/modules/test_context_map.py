"""The context map: the identity at first, learned by the paper's objective, read from files that may be hostile."""

import pytest
import torch
from safetensors.torch import save_file

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import training_step
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.prefix import build_context_map
from ldm.data.mixture import Mixture
from ldm.export.formats import export_prefix
from ldm.generation import with_prefix
from ldm.modules.context_map import ContextMap, context_map_for, is_map_file, text_encoder_hash
from ldm.modules.embedding_file import read_embedding_file
from ldm.modules.embedding_manager import EmbeddingManager, manager_of_file
from ldm.util import UserError
from tests.apl.test_step import TEMPLATES, definition

D, TEXTS = 32, ["Ada Stone", "a red car", ""]


def drawn_map(rank: int, width: int = D, seed: int = 0) -> ContextMap:
    """A map far from the identity."""
    context_map = ContextMap(width, rank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in context_map.parameters():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return context_map.requires_grad_(False)


@pytest.mark.parametrize("rank", [0, 1, D])
def test_a_map_that_has_learned_nothing_is_the_identity(tiny_model, rank):
    plain = tiny_model.get_learned_conditioning(TEXTS)
    assert torch.equal(tiny_model.get_learned_conditioning(TEXTS, build_context_map(tiny_model, rank=rank)), plain)


@pytest.mark.parametrize("rank", [0, 4])
def test_each_position_is_mapped_alike(tiny_model, rank):
    context_map = drawn_map(rank)
    plain, mapped = tiny_model.get_learned_conditioning(TEXTS), tiny_model.get_learned_conditioning(TEXTS, context_map)
    torch.testing.assert_close(mapped, plain + plain @ context_map.matrix.T + context_map.bias)
    assert context_map.finish(plain.half()).dtype == torch.float16


def test_prompts_keep_their_words_and_their_room():
    context_map = ContextMap(D)
    assert with_prefix(TEXTS, context_map) == TEXTS and context_map.num_vectors == 0
    assert context_map.extra_length(torch.ones(5, 1, dtype=torch.int64)).tolist() == [0] * 5


@pytest.mark.parametrize("rank", [0, 4])
def test_the_steps_equal_the_definition_and_only_the_map_receives_a_gradient(fabric, tiny_model, pictures, rank):
    context_map = build_context_map(tiny_model, rank=rank)
    data = TrainingSet(tiny_model, *pictures, TEMPLATES, Mixture(0, 2, 2, 2, 50, 0.5))
    share = Share(4, steps=1)
    losses, expected, is_identity = definition(tiny_model, _First(context_map), data, share.numbers(0), train_method="apl-map")
    batch, = LookAhead(tiny_model, data, Texts(tiny_model, context_map), share, first_step=0, iterations=1)
    sums = training_step(fabric, tiny_model, context_map, torch.optim.SGD(context_map.parameters(), lr=0.0), batch, train_method="apl-map")
    torch.testing.assert_close(sums[:2], torch.stack([losses[is_identity].sum(), losses[~is_identity].sum()]), rtol=1e-4, atol=1e-6)
    gradient = next(context_map.parameters()).grad
    assert expected.norm() > 0 and (gradient - expected).norm() < 1e-4 * expected.norm()
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


class _First:
    """A map whose first tensor alone is asked for, as `definition` returns one gradient."""

    def __init__(self, context_map):
        self.of, self.string_to_token_dict, self.finish, self.extra_length = context_map, {}, context_map.finish, context_map.extra_length

    def __call__(self, token_ids, token_embeddings):
        return token_embeddings

    def embedding_parameters(self):
        return iter([next(self.of.parameters())])


@pytest.mark.parametrize("rank", [0, 4])
def test_a_file_is_read_as_it_was_written_and_equal_maps_give_equal_bytes(tiny_model, tmp_path, rank):
    context_map = drawn_map(rank)
    context_map.text_encoder = text_encoder_hash(tiny_model.cond_stage_model)
    for name in ("first", "second"):
        context_map.save(tmp_path / name, step=7, seed=3)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes() and is_map_file(tmp_path / "first")
    read = manager_of_file(tiny_model.cond_stage_model, tmp_path / "first")
    assert isinstance(read, ContextMap) and read.rank == rank and read.text_encoder == context_map.text_encoder
    assert all(torch.equal(one, other) for one, other in zip(read.parameters(), context_map.parameters(), strict=True))


def test_another_text_encoder_is_warned_of(tiny_model, tmp_path, capsys):
    context_map = drawn_map(4)
    context_map.text_encoder = "0" * 16
    context_map.save(tmp_path / "map.safetensors")
    context_map_for(tiny_model.cond_stage_model, tmp_path / "map.safetensors")
    assert "learned with another text encoder" in capsys.readouterr().err


def test_a_token_is_learned_behind_a_map(tiny_model):
    context_map, embedder = drawn_map(4), tiny_model.cond_stage_model
    alone = EmbeddingManager(embedder, ["sks"], num_vectors_per_token=1)
    behind = EmbeddingManager(embedder, ["sks"], num_vectors_per_token=1)
    behind.finish = context_map.finish
    assert torch.equal(embedder(["a sks"], behind), context_map.finish(embedder(["a sks"], alone)))
    assert len(list(behind.embedding_parameters())) == 1


LOW = {"map_up": torch.ones(D, 2), "map_down": torch.ones(2, D), "bias": torch.ones(D)}


@pytest.mark.parametrize(("changes", "words"), [
    ({"map_up": torch.ones(D, 3)}, "do not fit each other"),
    ({"bias": torch.ones(D + 1)}, "do not fit each other"),
    ({"bias": torch.ones(())}, "do not fit each other"),
    ({"map_up": torch.ones(D, D + 1), "map_down": torch.ones(D + 1, D)}, "do not fit each other"),
    ({"map_down": torch.full((2, D), torch.nan)}, "NaN or infinity"),
    ({"bias": torch.ones(D, dtype=torch.int64)}, "instead of floating-point numbers"),
])
def test_a_hostile_file_is_refused(tiny_model, tmp_path, changes, words):
    save_file(LOW | changes, tmp_path / "map.safetensors")
    with pytest.raises(UserError, match=words):
        manager_of_file(tiny_model.cond_stage_model, tmp_path / "map.safetensors")


def test_a_cut_file_is_refused(tiny_model, tmp_path):
    save_file(LOW, tmp_path / "map.safetensors")
    (tmp_path / "map.safetensors").write_bytes((tmp_path / "map.safetensors").read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        manager_of_file(tiny_model.cond_stage_model, tmp_path / "map.safetensors")


def test_what_cannot_take_a_map_says_so(tiny_model, tiny_xl_model, tmp_path):
    path = tmp_path / "map.safetensors"
    drawn_map(2, width=16).save(path)
    with pytest.raises(UserError, match="for a context 16 wide and this text encoder's is 32 wide"):
        context_map_for(tiny_model.cond_stage_model, path)
    with pytest.raises(UserError, match="this model has two"):
        context_map_for(tiny_xl_model.conditioner, path)
    with pytest.raises(UserError, match="this model has two"):
        build_context_map(tiny_xl_model)
    with pytest.raises(UserError, match="rank 33 was asked for"):
        ContextMap(D, 33)
    for attempt in (lambda: read_embedding_file(path), lambda: EmbeddingManager(tiny_model.cond_stage_model).load(path),
                    lambda: export_prefix(path, tmp_path / "out.pt", format="universal")):
        with pytest.raises(UserError, match="a context map .* cannot be exported, transferred or loaded as an embedding"):
            attempt()
