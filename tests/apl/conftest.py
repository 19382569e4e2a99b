"""Pipelines that all tests of AnonymizationPrompt share, since they take seconds to build."""

import pytest
import torch

from ldm.apl import AnonymizationPrompt
from ldm.apl.guard import Guard
from ldm.modules.context_map import ContextMap
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from tests.apl.pipelines import VECTORS, WIDE, drawn, random_sd, random_sdxl


@pytest.fixture(scope="session")
def embedder():
    torch.manual_seed(0)
    embedder = FrozenCLIPEmbedder(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    return embedder.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def sd(embedder):
    return random_sd(embedder.transformer.text_model)


@pytest.fixture(scope="session")
def sdxl():
    return random_sdxl()


@pytest.fixture
def left_clean(sd, sdxl, tiny_model):
    """Each test leaves the shared models as it found them."""
    yield
    assert "encode_prompt" not in {**vars(sd), **vars(sdxl)} and "get_learned_conditioning" not in vars(tiny_model)
    encoders = sd.text_encoder, sdxl.text_encoder, sdxl.text_encoder_2
    hooks = [hook for encoder in encoders for module in encoder.modules()
             for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
    assert not any(isinstance(getattr(hook, "__self__", None), Guard) for hook in hooks)  # transformers has hooks too
    assert not any("save_pretrained" in vars(encoder) for encoder in encoders)


@pytest.fixture
def prompt():
    prompt = AnonymizationPrompt(VECTORS)
    yield prompt
    prompt.detach()


@pytest.fixture
def pair():
    pair = AnonymizationPrompt(VECTORS, WIDE)
    yield pair
    pair.detach()


@pytest.fixture
def mapped():
    """A context map far from the identity."""
    tensors = {"map_up": drawn(16, 2, seed=6), "map_down": drawn(2, 16, seed=7), "bias": drawn(16, seed=8)}
    prompt = AnonymizationPrompt(context_map=ContextMap.of(tensors), source="map.safetensors")
    yield prompt
    prompt.detach()
