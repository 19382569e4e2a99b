"""A prefix for another text encoder from the two token tables: known answers on tables that a rotation turns into each other.

Longer than other files, for the maths and the command are tested on one world of tables.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from args import common
from args.transfer_args import parse_transfer_args
from ldm.apl.transfer import main
from ldm.apl.transfer_files import TABLES, anchor_tokens, read_token_tables
from ldm.apl.transfer_routes import (
    code_cosines,
    code_metrics,
    keep_ratio,
    largest,
    least_squares,
    likeness,
    linear,
    mean_row,
    mlp,
    nearest,
    normal_equations,
    penalty_by_validation,
    procrustes,
    relative,
    relative_code,
    ridge,
    search,
    standardised,
)
from ldm.loading import file_hash
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.modules.embedding_manager import manager_of_file
from ldm.util import UserError
from tests.refusals import refusal

N, D, WIDE, M = 60, 8, 12, 4


def code_loss(vectors, anchors, code, mask):
    """The objective as published: mean over the rows of 1 - cos(cos(X, A_t) * mask, r * mask)."""
    return (1 - torch.cosine_similarity(relative_code(vectors, anchors) * mask, code * mask, dim=1)).mean()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width=D, *, wide=None):
    """(width, wide) with orthonormal rows."""
    return torch.linalg.qr(numbers(wide or width, wide or width, seed=9))[0][:width]


@pytest.fixture
def world():
    """A prefix, the source table, a rotation into another width, and the target table that it makes."""
    source, turn = numbers(N, D, seed=1), rotation(wide=WIDE)
    return numbers(M, D, seed=2), source, turn, source @ turn


def test_codes_are_cosines_with_the_tokens():
    anchors = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(relative_code(torch.tensor([[3.0, 4.0]]), anchors), torch.tensor([[0.6, 0.8, -0.6, 0.0]]))


def test_top_k_keeps_exactly_the_k_highest():
    code = torch.tensor([[0.1, 0.9, -0.95, 0.5], [0.0, 0.0, 0.0, 0.0]])
    mask = largest(code, 2)
    assert mask[0].tolist() == [False, True, False, True] and mask.sum(1).tolist() == [2, 2]
    assert largest(code, 0).all() and largest(code, 4).all()


def test_more_tokens_than_there_are_cannot_be_kept():
    with pytest.raises(UserError, match="got top_k 5, but the two encoders share 4 tokens"):
        largest(torch.zeros(1, 4), 5)


def test_the_loss_is_the_published_one():
    anchors, code, mask = torch.eye(2), torch.tensor([[0.6, 0.8]]), torch.ones(1, 2, dtype=torch.bool)
    vectors = torch.tensor([[4.0, 3.0]])  # of code (0.8, 0.6), at cosine 0.96
    assert code_loss(vectors, anchors, code, mask).item() == pytest.approx(0.04)
    assert code_loss(vectors, anchors, code, torch.tensor([[True, False]])).item() == pytest.approx(0)


@pytest.mark.parametrize("top_k", [0, 15])
def test_the_search_sees_the_published_loss_and_its_gradient(top_k):
    source, target, vectors = numbers(N, D), numbers(N, WIDE, seed=1), numbers(M, WIDE, seed=2).requires_grad_()
    code = relative_code(numbers(M, D, seed=3), source)
    mask = largest(code, top_k)
    published = code_loss(vectors, target, code, mask)
    fast = 1 - code_cosines(vectors, *normal_equations(target, code, mask)).mean()
    torch.testing.assert_close(fast, published)
    torch.testing.assert_close(*(torch.autograd.grad(loss, vectors)[0] for loss in (fast, published)))


def test_tokens_that_are_not_kept_do_not_matter():
    source, target, prefix = numbers(N, D), numbers(N, WIDE, seed=1), numbers(1, D, seed=3)
    code = relative_code(prefix, source)
    mask = largest(code, 20)
    changed = torch.where(mask[0, :, None], target, torch.full_like(target, 7.0))
    pairs = zip(normal_equations(target, code, mask), normal_equations(changed, code, mask), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_no_candidate_beats_the_solved_one():
    code = relative_code(numbers(M, D, seed=3), numbers(N, D))
    grams, moments = normal_equations(numbers(N, WIDE, seed=1), code, largest(code, 30))
    solved = least_squares(grams, moments)
    best = code_cosines(solved, grams, moments)
    for seed in range(20):
        assert (code_cosines(solved + 0.1 * numbers(M, WIDE, seed=seed), grams, moments) < best).all()


@pytest.mark.parametrize("top_k", [0, 30])
@pytest.mark.parametrize("centred", [False, True])
def test_the_search_finds_the_rotated_prefix(world, top_k, centred):
    prefix, source, turn, target = world
    vectors, figures = relative(prefix, source, target, top_k=top_k, centred=centred, steps=250, lr=0.05)
    assert figures["loss"] < 1e-3 and figures["least_loss"] < 1e-4
    about = (lambda rows, table: rows - table.mean(0)) if centred else (lambda rows, table: rows)
    seen = about(vectors, target) @ turn.T  # what lies outside the target table's 8 dimensions, no token can tell
    assert torch.cosine_similarity(seen, about(prefix, source)).min() > 0.99
    assert code_metrics(prefix, vectors, source, target, centred=centred)["agreement"] > 0.99


def test_a_longer_search_comes_to_the_least_loss_and_not_below():
    prefix, source, target = numbers(M, D), numbers(N, D, seed=1), numbers(N, WIDE, seed=2)  # tables that have nothing in common
    short, long = (relative(prefix, source, target, top_k=30, steps=steps, lr=0.05)[1] for steps in (5, 200))
    assert short["loss"] > long["loss"] >= long["least_loss"] - 1e-5 and long["loss"] < long["least_loss"] + 0.02


def test_the_best_candidate_is_kept_and_not_the_last():
    seen = []

    def loss_of(candidate):
        seen.append(candidate.detach().clone())
        return (candidate - 1).square().sum()

    best = search(torch.zeros(1, 1), lambda free: free, loss_of, steps=4, lr=0.7)  # 0, 0.7, 1.4, ...: past the goal
    losses = [(one - 1).square().item() for one in seen]
    assert len(seen) == 4 and losses.index(min(losses)) != 3 and torch.equal(best, seen[losses.index(min(losses))])


def test_the_published_scale_is_that_of_the_target_table(world):
    prefix, source, _, target = world
    vectors, _ = relative(prefix, source, 5 * target + 3, top_k=30, steps=5)
    assert torch.allclose(vectors.mean(), (5 * target + 3).mean()) and torch.allclose(vectors.std(), (5 * target + 3).std())
    values = standardised(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor(10.0), torch.tensor(5.0))
    assert values.tolist() == [[5, 10, 15]]


def test_ratio_keeps_how_much_longer_than_a_token_a_vector_is():
    source, target = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[4.0, 0.0]])  # 2 and 4 long on average
    prefix, vectors = torch.tensor([[6.0, 8.0], [1.0, 0.0]]), torch.tensor([[0.1, 0.0], [0.0, 9.0]])
    assert keep_ratio(vectors, prefix, source, target).tolist() == [[20, 0], [0, 2]]


@pytest.mark.parametrize("centred", [False, True])
def test_ratio_leaves_loss_and_codes_as_the_search_found_them(world, centred):
    prefix, source, target = *world[:2], world[3] + 1
    options = {"top_k": 30, "centred": centred, "steps": 20}
    (published, before), (kept, after) = (relative(50 * prefix, source, target, scale=scale, **options) for scale in ("target", "ratio"))
    assert before == pytest.approx(after, abs=1e-5)
    ratios = []  # of each vector to the mean token, from where the cosines are taken
    for rows, table in ((50 * prefix, source), (kept, target)):
        origin = table.mean(0) if centred else 0
        ratios.append((rows - origin).norm(dim=1) / (table - origin).norm(dim=1).mean())
    torch.testing.assert_close(*ratios)
    figures = [code_metrics(prefix, vectors, source, target, centred=centred) for vectors in (published, kept)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)


@pytest.mark.parametrize("fit", [procrustes, lambda rows, wanted: ridge(rows, wanted, 1e-7)], ids=["procrustes", "ridge"])
@pytest.mark.parametrize("scale", [None, "ratio"])
def test_linear_maps_recover_a_rotated_stretched_and_shifted_prefix(world, fit, scale):
    prefix, source, turn, _ = world

    def expected(rows):
        return 3 * rows @ turn + 2

    vectors, figures = linear(prefix, source, expected(source), fit, scale=scale)
    torch.testing.assert_close(vectors, expected(prefix), rtol=1e-4, atol=1e-4)
    assert figures["explained"] == pytest.approx(1, abs=1e-4)


def test_procrustes_keeps_angles_also_into_fewer_dimensions():
    for wide in (D, WIDE):
        weight = procrustes(numbers(N, D), numbers(N, wide, seed=1))
        square = weight @ weight.T
        torch.testing.assert_close(square, square[0, 0] * torch.eye(D))
    weight = procrustes(numbers(N, WIDE), numbers(N, D, seed=1))
    square = weight.T @ weight
    torch.testing.assert_close(square, square[0, 0] * torch.eye(D))


def test_procrustes_has_the_best_rotation_and_the_best_scale():
    source, target = numbers(N, D), numbers(N, WIDE, seed=1)
    weight = procrustes(source, target)
    best = (source @ weight - target).norm()
    turns = (torch.linalg.matrix_exp(0.3 * (a - a.T)) for a in (numbers(WIDE, WIDE, seed=seed) for seed in range(5)))
    others = [0.9 * weight, 1.1 * weight, *(weight @ turn for turn in turns)]
    assert all((source @ other - target).norm() > best for other in others)


def test_the_penalty_is_small_where_tables_agree_and_large_where_they_do_not(world):
    _, source, _, target = world
    assert penalty_by_validation(source, target) == (1e-3, pytest.approx(1, abs=1e-4))
    penalty, held_out = penalty_by_validation(source, numbers(N, WIDE, seed=5))
    assert penalty == 10.0 and held_out < 0


def test_a_penalty_of_the_mean_diagonal_halves_the_map_between_even_tables():
    table = torch.cat([torch.eye(3), -torch.eye(3)])  # A^T A = 2 I
    torch.testing.assert_close(ridge(table, table, 1.0), torch.eye(3) / 2)
    torch.testing.assert_close(ridge(10 * table, table, 1.0), torch.eye(3) / 20)  # whatever the scale


def test_tables_with_nothing_in_common_are_hardly_explained():
    vectors, figures = linear(numbers(M, 2), numbers(2000, 2, seed=1), numbers(2000, WIDE, seed=2), procrustes)
    assert 0 <= figures["explained"] < 0.01 and vectors.shape == (M, WIDE)


def test_a_linear_map_can_have_the_target_tables_scale(world):
    prefix, source, _, target = world
    vectors, _ = linear(prefix, source, target, procrustes, scale="target")
    assert torch.allclose(vectors.mean(), target.mean()) and torch.allclose(vectors.std(), target.std())


def test_the_mean_route_says_nothing_about_the_prefix():
    vectors, _ = mean_row(numbers(M, D), torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert vectors.tolist() == [[2, 4]] * M


def test_the_nearest_token_is_that_at_the_highest_cosine_whatever_the_lengths():
    source = torch.tensor([[9.0, 1.0], [0.0, 0.1], [5.0, 5.0]])
    vectors, figures = nearest(torch.tensor([[0.0, 70.0], [2.0, 0.1]]), source, torch.arange(3.0)[:, None].expand(-1, 4))
    assert vectors.tolist() == [[1] * 4, [0] * 4] and 0.99 < figures["cosine_nearest"] <= 1


def test_the_nearest_token_is_sought_from_the_mean_row_if_centred():
    source = torch.tensor([[11.0, 10.0], [9.0, 10.0], [10.0, 13.0], [10.0, 7.0]])  # around (10, 10)
    vectors, _ = nearest(torch.tensor([[9.5, 10.1]]), source, torch.arange(4.0)[:, None], centred=True)
    assert vectors.tolist() == [[1]]


def test_the_perceptron_finds_the_rotated_prefix_and_lengths_in_their_ratio():
    source, turn = numbers(2000, D, seed=1), rotation(wide=WIDE)
    prefix = 40 * numbers(M, D, seed=2)
    vectors, figures = mlp(prefix, source, 3 * source @ turn + 2, steps=200)
    assert torch.cosine_similarity(vectors - (3 * source @ turn + 2).mean(0), (prefix - source.mean(0)) @ turn).min() > 0.98
    torch.testing.assert_close((vectors - 2).norm(dim=1), 3 * prefix.norm(dim=1), rtol=0.05, atol=0)
    assert figures["cosine_held_out"] > 0.98
    _, unrelated = mlp(prefix, source, numbers(2000, WIDE, seed=3), steps=20)
    assert abs(unrelated["cosine_held_out"]) < 0.2


def test_codes_of_vectors_with_a_common_offset_are_alike_until_they_are_centred():
    source = numbers(N, D) + 10
    prefix = numbers(M, D, seed=1) + 10
    plain, centred = (code_metrics(prefix, prefix, source, source, centred=centred) for centred in (False, True))
    assert plain["likeness"] > 0.99 and abs(centred["likeness"]) < 0.3
    assert plain["agreement"] == pytest.approx(1) and plain["likeness_transferred"] == plain["likeness"]


def test_likeness_is_the_mean_over_pairs():
    assert likeness(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])) == pytest.approx(1 / 3)
    assert likeness(torch.ones(1, 5)) == 1


def test_the_seed_is_that_of_the_first_candidate(world):
    prefix, source, _, target = world
    state = torch.get_rng_state()
    one, same, other = (relative(prefix, source, target, top_k=30, steps=3, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(torch.get_rng_state(), state)


# The command

@pytest.fixture
def files(tmp_path, monkeypatch, world):
    """prefix.pt, sdxl.safetensors (float16, with another tensor in it), and the presets "xl" and "bare"."""
    prefix, source, turn, _ = world
    table = torch.cat([source, torch.full((2, D), 99.0)])  # begin and end of text
    state = {TABLES[0]: table.half(), TABLES[1]: (table @ turn).half(), "model.diffusion_model.out.0.bias": torch.zeros(3)}
    save_file(state, tmp_path / "sdxl.safetensors")
    torch.save({"state_dict": state}, tmp_path / "sdxl.ckpt")
    write_embedding_file(tmp_path / "prefix.pt", {"alz": prefix}, {"alz": 41128}, step=7, metadata={"train_method": "apl"})
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "xl.yaml").write_text(yaml.safe_dump({"ckpt_path": "sdxl.safetensors", "scale": 7, "lr": 9, "seed": 5}))
    (presets / "bare.yaml").write_text("scale: 7")
    monkeypatch.setattr(common, "PRESETS", presets)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*flags, out="out.safetensors", source="prefix.pt", to=("--to", "xl")):
    main([source, out, *to, *map(str, flags)])
    return load_file(out)


@pytest.mark.parametrize("flags", [["--top_k", 30, "--steps", 20], ["--top_k", 0, "--steps", 20, "--centred", "--scale", "ratio"],
                                   ["--route", "ridge"], ["--route", "procrustes", "--scale", "ratio"], ["--route", "mean"],
                                   ["--route", "nearest", "--centred"], ["--route", "zeros"], ["--route", "mlp", "--steps", 5]])
def test_the_command_writes_the_prefix_itself_and_vectors_for_the_second_encoder(files, flags, capsys):
    tensors = command(*flags)
    prefix = read_embedding_file("prefix.pt").vectors["*"]
    assert set(tensors) == {"clip_l", "clip_g"} and tensors["clip_g"].shape == (M, WIDE) and tensors["clip_g"].isfinite().all()
    assert tensors["clip_l"].numpy().tobytes() == prefix.numpy().tobytes()
    shown = capsys.readouterr().out
    assert f"{M} vectors, {D} -> {WIDE} wide" in shown and "of two of the prefix" in shown and "written to out.safetensors" in shown


def test_the_route_text_fits_the_second_encoder_on_texts_and_keeps_the_first_part(tiny_xl_model, tiny_xl_files, train_inputs, tmp_path,
                                                                                  capsys):
    config, checkpoint = tiny_xl_files
    write_embedding_file(tmp_path / "prefix.pt", {"alz": numbers(M, 16)}, {"alz": 41128})
    flags = [str(tmp_path / "prefix.pt"), str(tmp_path / "out.safetensors"), "--ckpt_path", str(checkpoint), "--route", "text"]
    assert "--config_path" in refusal(capsys, main, flags)
    flags += ["--config_path", str(config), "--people", str(train_inputs / "people.csv"), "--templates",
              str(train_inputs / "templates.txt"), "--caption_images", str(train_inputs / "s_reg")]
    assert "--centred has no use with --route text" in refusal(capsys, main, [*flags, "--centred"])
    distances = []
    for steps in (1, 20):
        main([*flags, "--steps", str(steps), "--lr", "0.05"])
        distances.append(read_embedding_file(tmp_path / "out.safetensors").metadata["figures"])
    assert all(distances[1][key] < distances[0][key] for key in ("loss_id", "loss_reg"))
    manager = manager_of_file(tiny_xl_model.cond_stage_model, tmp_path / "out.safetensors")
    assert torch.equal(next(manager.embedding_parameters()), numbers(M, 16))


def test_the_file_says_where_it_comes_from(files):
    command("--top_k", 30, "--steps", 20, "--seed", 3)
    metadata = read_embedding_file("out.safetensors").metadata
    figures = metadata.pop("figures")
    assert metadata.pop("learned_from")["train_method"] == "apl"
    assert metadata == {"step": 7, "route": "relative", "centred": False, "anchors": None, "scale": "target", "top_k": 30, "steps": 20,
                        "lr": 5e-3, "seed": 3, "source": file_hash("prefix.pt"), "target": file_hash("sdxl.safetensors")}
    assert set(figures) == {"loss", "least_loss", "likeness", "likeness_transferred", "agreement"}


def test_what_a_foreign_file_says_of_itself_cannot_stop_the_transfer(files, capsys):
    content = {"string_to_token": {"*": 1}, "string_to_param": {"*": numbers(M, D)}, "step": torch.ones(1), "apl": {(1, 2): torch.ones(1)}}
    torch.save(content, "foreign.pt")
    command("--route", "mean", source="foreign.pt")
    torch.save({"alz": torch.zeros(M, D)}, "zeros.pt")
    assert "holds a vector of zeros" in refusal(capsys, main, ["zeros.pt", "out.safetensors", "--to", "xl"])


def test_the_same_command_gives_the_same_bytes_and_writes_over_its_own_file(files):
    flags = ("--top_k", 30, "--steps", 20)
    command(*flags)
    first = Path("out.safetensors").read_bytes()
    command(*flags, to=("--ckpt_path", "sdxl.safetensors"))
    assert Path("out.safetensors").read_bytes() == first
    command(*flags, "--seed", 1)
    assert Path("out.safetensors").read_bytes() != first
    assert {path.name for path in files.iterdir()} == {"out.safetensors", "prefix.pt", "sdxl.safetensors", "sdxl.ckpt", "presets"}


def test_anchors_are_the_tokens_of_texts(files, monkeypatch):
    """In CLIP's vocabulary "!" is token 0, '"' token 1 and "#" token 2; as words of their own they are 256, 257 and 258."""
    (files / "a.txt").write_text("! # !")
    (files / "b.txt").write_text('"')
    assert anchor_tokens([files / "a.txt", files / "b.txt"]) == [256, 257, 258]
    with pytest.raises(UserError, match="has 1 tokens; give texts with more words"):
        anchor_tokens([files / "b.txt"])
    (files / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="holds a file that is no text"):
        anchor_tokens([files / "c.txt"])
    whole = command("--route", "mean")["clip_g"]
    monkeypatch.setattr("ldm.apl.transfer_files.anchor_tokens", lambda _: [3, 5])
    some, table = command("--route", "mean", "--anchors", "a.txt")["clip_g"], load_file("sdxl.safetensors")[TABLES[1]].float()
    torch.testing.assert_close(some, table[[3, 5]].mean(0).expand(M, -1))
    assert not torch.equal(some, whole)
    monkeypatch.setattr("ldm.apl.transfer_files.anchor_tokens", lambda _: [3, N])
    with pytest.raises(SystemExit):
        command("--route", "mean", "--anchors", "a.txt")


@pytest.mark.parametrize("name", ["sdxl.safetensors", "sdxl.ckpt"])
def test_only_the_two_tables_are_read_and_begin_and_end_of_text_left_out(files, world, name):
    source, target = read_token_tables(Path(name))
    torch.testing.assert_close(source, world[1].half().float(), rtol=0, atol=0)
    assert target.shape == (N, WIDE) and target.dtype == torch.float32 and target.abs().max() < 50


def test_of_the_preset_only_the_checkpoint_is_used(files):
    args = parse_transfer_args(["prefix.pt", "out.safetensors", "--to", "xl"])
    assert (args.ckpt_path, args.scale, args.lr, args.seed) == (Path("sdxl.safetensors"), "target", 5e-3, 0)
    assert parse_transfer_args(["prefix.pt", "o.safetensors", "--to", "xl", "--ckpt_path", "sdxl.ckpt"]).ckpt_path == Path("sdxl.ckpt")


@pytest.mark.parametrize(("words", "message"), [
    (["prefix.pt", "out.safetensors"], "there is no target model; give --to PRESET"),
    (["prefix.pt", "out.safetensors", "--to", "bare"], "--to bare names no checkpoint"),
    (["prefix.pt", "out.safetensors", "--to", "none"], "there is no preset 'none'; give one of bare, xl"),
    (["prefix.pt", "out.safetensors", "--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt is not there"),
    (["prefix.pt", "out.pt", "--to", "xl"], "OUT out.pt does not end in .safetensors"),
    (["prefix.pt", "presets.safetensors", "--to", "xl"], "OUT presets.safetensors is a folder"),
    (["prefix.pt", "sdxl.safetensors", "--to", "xl"], "OUT sdxl.safetensors is --ckpt_path itself, which would be overwritten"),
    (["a.safetensors", "./a.safetensors", "--to", "xl"], "OUT a.safetensors is IN itself"),
    (["prefix.pt", "out.safetensors", "--to", "xl", "--route", "mean", "--scale", "ratio"], "--scale has no use with --route mean"),
    (["prefix.pt", "out.safetensors", "--to", "xl", "--route", "ridge", "--top_k=5"], "--top_k has no use with --route ridge"),
    (["prefix.pt", "out.safetensors", "--to", "xl", "--top_k", "-1"], "--top_k: got '-1'"),
    (["prefix.pt", "out.safetensors", "--to", "xl", "--top_k", "61"], "got top_k 61, but the two encoders share 60 tokens"),
    (["prefix.pt", "out.safetensors", "--to", "xl", "--penalty", "0"], "--penalty: got '0'; give a number above 0"),
    (["none.pt", "out.safetensors", "--to", "xl"], "there is no embedding file none.pt"),
    (["prefix.pt", "prefix.pt/out.safetensors", "--to", "xl", "--route", "mean"], "OUT prefix.pt/out.safetensors cannot be written"),
])
def test_wrong_flags_end_with_a_sentence(files, capsys, words, message):
    (files / "presets.safetensors").mkdir()
    before = {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    assert message in refusal(capsys, main, words)
    assert {path: path.read_bytes() for path in files.rglob("*") if path.is_file()} == before


def wrong_checkpoint(state):
    return lambda: save_file(state, "other.safetensors")


@pytest.mark.parametrize(("make", "message"), [
    (wrong_checkpoint({"cond_stage_model.transformer.text_model.a": torch.zeros(1)} | {str(i): torch.zeros(1) for i in range(3)}),
     "other.safetensors is a Stable Diffusion v1 checkpoint: it lacks conditioner.embedders.0"),
    (wrong_checkpoint({"double_blocks.0": torch.zeros(1, 1, 1)}), "is a Flux checkpoint"),
    (wrong_checkpoint({"clip_l": torch.zeros(1, 4)}), "is a prefix (textual inversion embedding)"),
    (wrong_checkpoint({TABLES[1]: torch.zeros(1, 1, 4), "a": torch.zeros(1)}), "is an SDXL checkpoint: it lacks conditioner.embedders.0"),
    (wrong_checkpoint({TABLES[0]: torch.zeros(9, D), TABLES[1]: torch.zeros(8, D), "a": torch.zeros(1)}), "have 9 and 8 rows"),
    (wrong_checkpoint({TABLES[0]: torch.zeros(9, 5), TABLES[1]: torch.zeros(9, 6)}), "are 8 wide, but the tokens of the first encoder"),
    (wrong_checkpoint({TABLES[0]: torch.zeros(9, D).long(), TABLES[1]: torch.zeros(9, D)}), "has a token table of shape (9, 8) and type"),
    (wrong_checkpoint({TABLES[0]: torch.full((9, D), torch.nan), TABLES[1]: torch.zeros(9, D)}), "holds NaN or infinity"),
    (lambda: Path("other.safetensors").write_bytes(b"\0" * 50), "is damaged or no checkpoint file (50 bytes, a file of zeros"),
], ids=["sd1", "flux", "prefix", "refiner", "rows", "width", "integers", "nan", "damaged"])
def test_another_checkpoint_is_refused_and_named(files, capsys, make, message):
    make()
    assert message in refusal(capsys, main, ["prefix.pt", "out.safetensors", "--ckpt_path", "other.safetensors"])
    assert not Path("out.safetensors").exists()


def test_a_pair_and_a_file_of_several_prefixes_are_refused(files, capsys):
    write_safetensors_file("pair.safetensors", {"clip_l": torch.zeros(2, D), "clip_g": torch.zeros(2, WIDE)})
    write_embedding_file("two.pt", {"alz": torch.zeros(2, D), "sks": torch.zeros(2, D)}, {"alz": 1, "sks": 2})
    for name, message in (("pair.safetensors", "has the parts of both encoders already"), ("two.pt", "holds vectors for alz, sks")):
        assert message in refusal(capsys, main, [name, "out.safetensors", "--to", "xl"])


def test_a_file_of_something_else_is_not_written_over(files, capsys):
    save_file({"weight": torch.zeros(3)}, "out.safetensors")
    before = Path("out.safetensors").read_bytes()
    assert "is there and holds no clip_l and clip_g" in refusal(capsys, main, ["prefix.pt", "out.safetensors", "--to", "xl"])
    assert Path("out.safetensors").read_bytes() == before


def test_the_metadata_holds_json_alone(files):
    command("--route", "procrustes")
    assert json.loads(json.dumps(read_embedding_file("out.safetensors").metadata))["scale"] is None
