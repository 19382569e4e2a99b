"""Training in rounds on tokens that bring names back: where they stand, whose they are, when they are learned, what a step computes."""

import pytest
import torch

from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import training_step
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.losses import apl_loss
from ldm.apl.prefix import build_prefix
from ldm.apl.robust_tokens import WORD, Tokens, WithToken
from ldm.attacks.case import Case, denoising_loss
from ldm.attacks.concept_inversion import concept_inversion
from ldm.attacks.service import Service
from ldm.data.frozen import mean_latents
from ldm.data.mixture import Mixture
from ldm.modules.embedding_manager import EmbeddingManager, single_token
from tests.apl.test_trainer import Killed, train

TEMPLATES = ["{}", "a photo of {}, smiling"]
TOKEN = f"{WORD} {WORD}"  # of two vectors


@pytest.fixture
def prefix(tiny_model):
    return build_prefix(tiny_model, num_vectors=3, init="vocab")


def training_set(model, pictures, mix=0.5):
    """The attack is on Ben Wood alone, the second person of S_ID."""
    return TrainingSet(model, *pictures, TEMPLATES, Mixture(0, 2, 2, 2, 50, mix, attacked=(1,)), TOKEN)


def word(model):
    return single_token(model.cond_stage_model.tokenizer, WORD)


def tokens(model, prefix, learn=None, first_steps=(1, 4)):
    """Tokens of Ben Wood in two rounds, of two vectors: random numbers that depend on the prefix."""
    def drawn():
        vectors = next(prefix.embedding_parameters()).detach()
        return vectors.std() * torch.randn(1, 2, vectors.shape[1], generator=torch.Generator().manual_seed(1))

    return Tokens(model, prefix, word=word(model), owners=[0], people=1, vectors=2, first_steps=first_steps, learn=learn or drawn)


def with_two_placeholders(model, prefix, vectors):
    """An EmbeddingManager of the prefix and of one token, in which WORD stands once for all its vectors."""
    manager = EmbeddingManager(model.cond_stage_model, ["alz", WORD], num_vectors_per_token=1)
    manager.string_to_param_dict["alz"] = next(prefix.embedding_parameters())
    manager.string_to_param_dict[WORD] = torch.nn.Parameter(vectors)
    return manager


@pytest.mark.parametrize("template", ["{}", "a photo of {}, smiling", "{} and {}", "a red car"])
def test_a_token_stands_where_textual_inversion_puts_it(tiny_model, prefix, template):
    block = torch.randn(2, 2, 32)  # of two prompts
    ids = tiny_model.cond_stage_model.tokenize([f"alz {template.replace('{}', TOKEN)}"] * 2, prefix.extra_length)
    context = tiny_model.cond_stage_model.context(ids, WithToken(prefix, block, word(tiny_model)))
    for row, vectors in zip(context, block, strict=True):
        manager = with_two_placeholders(tiny_model, prefix, vectors)
        torch.testing.assert_close(row[None], tiny_model.get_learned_conditioning([f"alz {template.replace('{}', WORD)}"], manager))


def test_half_of_s_id_shows_those_whose_tokens_are_learned_and_the_other_half_everybody():
    samples = [Mixture(0, 9, 9, 2, attacked=(3, 5)).sample(number) for number in range(2000)]
    plain = [Mixture(0, 9, 9, 2).sample(number) for number in range(2000)]
    assert {sample.item for sample in samples if sample.attack_seed >= 0} == {3, 5}
    assert all(sample == before for sample, before in zip(samples, plain, strict=True) if sample.attack_seed < 0)
    assert [sample.attack_seed for sample in samples] == [sample.attack_seed for sample in plain]


def test_the_token_takes_the_names_place_behind_the_prefix_alone(tiny_model, pictures):
    samples = training_set(tiny_model, pictures).samples(range(40))
    seen = set()
    for row, seed in enumerate(samples.attack_seeds):
        name, behind = samples.name_prompts[row], samples.prefixed_prompts[row]
        assert behind == (name.replace("Ben Wood", TOKEN) if seed >= 0 else name)
        seen.add((samples.is_identity[row], seed >= 0))
    assert seen == {(True, True), (True, False), (False, False)} and TOKEN not in " ".join(samples.name_prompts + samples.attribute_prompts)


def test_tokens_are_learned_before_the_first_step_of_a_round_and_those_of_earlier_rounds_stay(tiny_model, prefix):
    rounds = iter((1.0, 2.0))
    learned = tokens(tiny_model, prefix, learn=lambda: torch.full((1, 2, 32), next(rounds)))
    for step, expected in ((1, [1, 0]), (2, [1, 0]), (3, [1, 0]), (4, [1, 2]), (5, [1, 2])):
        learned(step)
        assert learned.learned[:, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_loss_is_that_of_the_token_behind_the_prefix_with_the_target_of_the_person(fabric, tiny_model, pictures, prefix, rounds):
    data, attack = training_set(tiny_model, pictures, 1.0), tokens(tiny_model, prefix, learn=lambda: torch.randn(1, 2, 32))
    attacked = [attack(step) for step in (1, 4)][rounds - 1]
    batch = next(iter(LookAhead(tiny_model, data, Texts(tiny_model, prefix), Share(8, 1), first_step=0, iterations=1)))
    sums = training_step(fabric, tiny_model, prefix, torch.optim.SGD(prefix.embedding_parameters(), lr=0.0), batch, attacked=attacked)
    gradient = next(prefix.embedding_parameters()).grad.clone()

    samples, losses, used = data.samples(range(8)), [], set()
    for row in range(8):
        at = batch.noisy_latent[row:row + 1], batch.timestep[row:row + 1]
        eps = [tiny_model.apply_model(*at, tiny_model.get_learned_conditioning([prompt]))
               for prompt in (samples.name_prompts[row], samples.attribute_prompts[row])]
        of_round = samples.attack_seeds[row] % rounds
        manager = prefix if samples.attack_seeds[row] < 0 else with_two_placeholders(tiny_model, prefix, attack.learned[of_round, 0])
        used.add(of_round if samples.attack_seeds[row] >= 0 else "clean")
        behind = tiny_model.get_learned_conditioning([f"alz {samples.prefixed_prompts[row].replace(TOKEN, WORD)}"], manager)
        losses.append(apl_loss(tiny_model.apply_model(*at, behind), *eps))
    assert used == {"clean", *range(rounds)}
    torch.testing.assert_close(sums[0], sum(losses).detach(), rtol=1e-4, atol=1e-6)
    expected, = torch.autograd.grad(sum(losses) / 8, list(prefix.embedding_parameters()))
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kill_after", [3, 6])
def test_a_killed_run_ends_with_the_same_bytes_and_learns_no_token_twice(fabric, tiny_model, pictures, tmp_path, kill_after):
    """Rounds begin at the steps 1 and 4; both tokens depend on the prefix of then."""
    def trained(folder, attack=tokens, **changes):
        train(fabric, tiny_model, pictures, tmp_path / folder, train_method="apl-robust", attack=attack, data=training_set, **changes)

    trained("whole")
    with pytest.raises(Killed):
        trained("killed", kill_after=kill_after)
    learned = []
    trained("killed", attack=lambda model, prefix: learned.append(tokens(model, prefix)) or learned[0])
    for name in ("3.pt", "6.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert learned[0].learned.flatten(1).any(1).all() and not torch.equal(*learned[0].learned)
    train(fabric, tiny_model, pictures, tmp_path / "plain")
    assert (tmp_path / "plain" / "6.pt").read_bytes() != (tmp_path / "whole" / "6.pt").read_bytes()


def test_behind_a_prefix_trained_on_tokens_a_new_token_brings_less_back_than_behind_one_that_is_not(fabric, tiny_model, pictures, tmp_path):
    """Both prefixes have as many steps, and the attack is the same. The model's random weights differ between versions of torch, and the
    distance is 3.5 times as large with 2.14, and 1.9 times with 2.6.
    """
    def case(prefix):
        latents = mean_latents(tiny_model, [pictures[0][1].source])
        return Case(Service(tiny_model, prefix), "Ben Wood", "A male chef", "{name}", latents, [], judge=None)

    def attack(prefix):
        found = concept_inversion(case(prefix), torch.Generator(), from_photos=False, vectors=2, templates=["a photo of {name}"],
                                  start="person", iterations=40, batch_size=4, lr=0.1, weight_decay=0.0)
        return found.submissions[0].vectors

    def distance(prefix):
        """Of the prediction for a new token from that for the name without the prefix, on noise that the attack has not seen."""
        vectors, name = attack(prefix), Service(tiny_model).context_of("a photo of Ben Wood")
        with torch.no_grad():
            context = case(prefix).service.context_of(f"a photo of {WORD}", vectors)
            return denoising_loss(case(prefix), context, range(1000, 1064), reference=name).item()

    def rounds(model, prefix):
        return tokens(model, prefix, learn=lambda: attack(prefix)[None], first_steps=(1, 9, 17, 25))

    settings = {"iterations": 32, "lr": 0.05, "log_every": 32, "save_every": 32, "mix": 0.8}
    plain = train(fabric, tiny_model, pictures, tmp_path / "plain", **settings)
    robust = train(fabric, tiny_model, pictures, tmp_path / "robust", attack=rounds, data=training_set, **settings)
    assert distance(robust) > 1.3 * distance(plain)
