"""Latent diffusion models (Stable Diffusion v1, SDXL) and Anonymization Prompt Learning."""

import sys

from ldm.public_names import AbsentModules

sys.meta_path.append(AbsentModules)
