"""The attack of a training with `--train_method apl-robust`: inner steps, or tokens by the concept inversion of ldm/attacks."""

from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from args.train_methods import ALTERNATING, ROBUST
from ldm.apl.robust import LR, attacked_context
from ldm.apl.robust_tokens import WORD, Tokens
from ldm.apl.trainer import Attack
from ldm.apl.training_run import TOKEN_BATCH, TrainingOptions, TrainingRun
from ldm.attacks.case import Case
from ldm.attacks.concept_inversion import concept_inversion
from ldm.attacks.service import Service
from ldm.data.frozen import mean_latents
from ldm.data.identities import IdentityImage, Person
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager, single_token
from ldm.sharing import Devices, gather, share
from ldm.util import UserError

WEIGHT_DECAY = 1e-2  # as concept inversion was published


def attack_of(options: TrainingOptions, run: TrainingRun, fabric: Devices, model: LatentDiffusion, prefix: Manager) -> Attack | None:
    """The attack of this training for `train_prefix`; None for other methods. UserError if the placeholder is the tokens' word."""
    if options.train_method != ROBUST:
        return None
    if options.robust_form != ALTERNATING:
        inner = partial(attacked_context, model, prefix, vectors=options.attack_vectors, steps=options.attack_steps,
                        radius=options.attack_radius)
        return lambda step: inner
    if options.placeholder == WORD:
        raise UserError(f"--placeholder {WORD} is the word of the attack's tokens; give another word")
    names = [person.name for person in run.attacked]
    return Tokens(model, prefix, word=single_token(model.cond_stage_model.tokenizer, WORD), people=len(names),
                  owners=[names.index(run.identities[number].name) for number in run.mixture.attacked], vectors=options.attack_vectors,
                  first_steps=[options.iterations * number // options.attack_rounds + 1 for number in range(options.attack_rounds)],
                  learn=lambda: learned_tokens(options, run, fabric, model, prefix))


def learned_tokens(options: TrainingOptions, run: TrainingRun, fabric: Devices, model: LatentDiffusion, prefix: Manager) -> Tensor:
    """A token for each person under attack, (people, k, d) on the CPU, learned behind the prefix by concept inversion.

    It matches the base model's prediction for the name on the person's images. All devices share the people; equal on every rank.
    """
    def token(person: Person) -> Tensor:
        latents = mean_latents(model, [image.source for image in run.identities
                                       if isinstance(image, IdentityImage) and image.name == person.name])
        case = Case(Service(model, prefix), person.name, person.attributes, "{name}", latents, [], judge=None)
        found = concept_inversion(case, torch.Generator().manual_seed(options.seed), from_photos=False, vectors=options.attack_vectors,
                                  templates=[template.replace("{}", "{name}") for template in run.templates], start="person",
                                  iterations=options.attack_steps, batch_size=TOKEN_BATCH, lr=LR, weight_decay=WEIGHT_DECAY)
        return found.submissions[0].vectors.cpu()

    mine = share(fabric, lambda: run.attacked)
    return torch.stack(gather(fabric, [token(person) for person in tqdm(mine, "attack", unit="token", disable=not fabric.is_global_zero)]))
