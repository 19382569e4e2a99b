"""Latent diffusion, Stable Diffusion v1, and Anonymization Prompt Learning on top of it."""

import sys

from ldm.public_names import AbsentModules

sys.meta_path.append(AbsentModules)
