"""The training step of Anonymization Prompt Learning as the paper defines it (sections 3.3 to 3.5): three predictions and a loss.

This file is the definition. `fast_step.py` computes the same step in less time; tests/apl/test_step.py compares the two. Used alone:

    latent = model.get_first_stage_encoding(model.encode_first_stage(image))
    losses = training_loss(model, prefix, latent, torch.randn_like(latent), timestep, name_prompts, attribute_prompts)
    losses.mean().backward()    # only the vectors of the prefix receive a gradient
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.apl.losses import apl_loss
from ldm.apl.robust import Attacked
from ldm.generation import with_prefix
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import Manager


def training_loss(model: LatentDiffusion, prefix: Manager, latent: Tensor, noise: Tensor, timestep: Tensor, name_prompts: Sequence[str],
                  attribute_prompts: Sequence[str], *, alpha: float = 1.0, train_method: str = "apl",
                  block: Tensor | None = None) -> Tensor:
    """L_ID (Eq. 6) of B samples, (B,); L_Reg (Eq. 7) of those whose name prompt and attribute prompt are equal (S_Reg).

    Args:
        model: frozen eps and tau; see `build_prefix`, which switches its gradients off.
        prefix: [AP] = [V_1]..[V_m], (m, 768) (Eq. 2); or a ContextMap, and then tau_map takes the place of tau_AP.
        latent, noise: z_0 and the noise that is added to it, (B, 4, h, w) each.
        timestep: t, (B,) int64.
        name_prompts, attribute_prompts: c1 and c2, B texts each, without the placeholder of the prefix.
        alpha: strength of the anonymization (Eq. 5).
        train_method: "apl", the paper's; "apl-released" predicts eps_name with the prefix, as the released code does; "apl-no-reg"
            computes what "apl" does, and differs in that no samples come from S_Reg (Figure 7); so does "apl-map", with a ContextMap.
        block: "apl-robust" computes what "apl" does, with a block a (B, k, d) behind the prefix in half of S_ID; see `robust.find_block`.
    """
    eps, tau, prefixed_prompts = model.apply_model, model.get_learned_conditioning, with_prefix(name_prompts, prefix)
    noisy_latent = model.q_sample(latent, timestep, noise)                   # z_t, which Eq. 5 to 7 call x

    hook = prefix if block is None else Attacked(prefix, block)
    context_prefixed = tau(prefixed_prompts, hook)                           # tau_AP(c1), Eq. 2 and 3
    eps_prefixed = eps(noisy_latent, timestep, context_prefixed)             # eps(x, tau_AP(c1), t)

    with torch.no_grad():                                                    # Eq. 5 sends no gradient through its target
        context_name = tau(prefixed_prompts, prefix) if train_method == "apl-released" else tau(name_prompts)
        context_attributes = tau(attribute_prompts)
        eps_name = eps(noisy_latent, timestep, context_name)                 # eps(x, tau(c1), t)
        eps_attributes = eps(noisy_latent, timestep, context_attributes)     # eps(x, tau(c2), t)

    return apl_loss(eps_prefixed, eps_name, eps_attributes, alpha, reduction="none")
