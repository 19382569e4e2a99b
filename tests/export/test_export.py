"""Exported prefixes: each form by its client's own rules, diffusers by running it, and every form brought back bit for bit."""

import copy
import pickletools
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from args.export_args import FORMATS
from ldm.export.__main__ import main
from ldm.export.formats import READ_BY
from ldm.modules.embedding_file import read_embedding_file, write_embedding_file, write_safetensors_file
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.modules.encoders.modules import FrozenCLIPEmbedder, clip_tokenizer
from tests.modules.test_embedding_file import D, RunsCode, compvis, save_legacy, save_zip, write_sample
from tests.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
SD1_FORMATS = [format for format in FORMATS if format != "sdxl"]
VECTORS = torch.randn(10, D, generator=torch.Generator().manual_seed(0))
METADATA = {"seed": 3, "arguments": {"lr": 1e-3, "mix": [0.5, None]}}
PAIR = {"clip_l": VECTORS[:3], "clip_g": torch.ones(3, 24)}


@pytest.fixture
def prefix(tmp_path):
    """A prefix as train.py writes it."""
    write_embedding_file(tmp_path / "apl.pt", {"alz": VECTORS}, {"alz": 41128}, step=7, metadata=METADATA)
    return tmp_path / "apl.pt"


@pytest.fixture
def sdxl_prefix(tmp_path):
    write_safetensors_file(tmp_path / "apl-sdxl.safetensors", PAIR, step=7, metadata=METADATA)
    return tmp_path / "apl-sdxl.safetensors"


def export(source, format, *flags, stem="alz"):
    """The file of this format beside `source`, in a folder of its own."""
    target = source.parent / format / f"{stem}{FORMATS[format]}"
    main([str(source), str(target), "--format", format, *flags])
    return target


def only_vectors(path):
    (vectors,) = read_embedding_file(path).vectors.values()
    return vectors


# What comes back

@pytest.mark.parametrize("format", SD1_FORMATS)
def test_every_form_is_exported_bit_for_bit_as_float32(format, tmp_path):
    for name in ("01.pt", "02.pt", "06.pt", "15.bin", "19.safetensors", "20.pt", "one-vector.bin"):
        source = write_sample(name, tmp_path)
        target = export(source, format)
        assert torch.equal(only_vectors(target), only_vectors(source)), name
        stored = load_file(target) if target.suffix == ".safetensors" else torch.load(target, weights_only=True)["string_to_param"]
        assert type(stored) is dict and {value.dtype for value in stored.values()} == {torch.float32}


@pytest.mark.parametrize("format", SD1_FORMATS)
def test_a_prefix_brought_back_is_the_same(format, prefix):
    before, after = read_embedding_file(prefix), read_embedding_file(export(export(prefix, format), "universal"))
    assert torch.equal(after.vectors.pop("*"), before.vectors.pop("*")) and after == before  # token, name, step and metadata


@pytest.mark.parametrize("format", FORMATS)
def test_equal_input_gives_equal_bytes(format, prefix, sdxl_prefix):
    source = sdxl_prefix if format == "sdxl" else prefix
    first = export(source, format).read_bytes()
    assert export(source, format).read_bytes() == first


@pytest.mark.parametrize("format", SD1_FORMATS)
def test_who_may_read_new_files_may_read_an_export(format, prefix):
    (prefix.parent / "new").touch()
    assert export(prefix, format).stat().st_mode == (prefix.parent / "new").stat().st_mode


def test_a_pair_and_what_is_known_of_it_comes_back(sdxl_prefix):
    file = read_embedding_file(export(sdxl_prefix, "sdxl"))
    assert all(torch.equal(file.vectors[key], PAIR[key]) for key in PAIR) and file.metadata == {"step": 7, **METADATA}


@pytest.mark.parametrize("part", PAIR)
def test_a_part_of_a_pair_can_be_exported_alone(part, sdxl_prefix):
    for format in SD1_FORMATS if part == "clip_l" else ("diffusers", "safetensors"):
        assert torch.equal(only_vectors(export(sdxl_prefix, format, "--part", part)), PAIR[part])


def test_the_second_encoders_part_is_for_diffusers_alone(sdxl_prefix, capsys):
    export(sdxl_prefix, "diffusers", "--part", "clip_g")
    assert "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)" in capsys.readouterr().out
    for format in ("universal", "a1111", "comfyui", "invokeai"):
        with pytest.raises(SystemExit):
            export(sdxl_prefix, format, "--part", "clip_g")


def test_one_placeholder_of_several_can_be_exported(tmp_path):
    write_embedding_file(tmp_path / "two.pt", {"alz": VECTORS, "sks": VECTORS + 1}, {"alz": 41128, "sks": 48136})
    assert torch.equal(only_vectors(export(tmp_path / "two.pt", "a1111", "--part", "sks")), VECTORS + 1)


def test_metadata_that_json_cannot_hold_becomes_text(tmp_path):
    save_zip(compvis(container=dict, apl={"at": torch.tensor(5), 3: {"x"}}), tmp_path / "odd.pt")
    for format in ("a1111", "comfyui"):
        assert read_embedding_file(export(tmp_path / "odd.pt", format)).metadata["at"] == "tensor(5)"


# What each client asks of a file, written out

A1111_GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}  # of the names its unpickler allows


def tensors(path):
    """What a file holds, opened without running anything from it."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def a1111(path):
    """Trigger and entries; a newer zip container is refused for its entry names, and so is a second entry but for SDXL's pair."""
    if path.suffix == ".pt":
        assert not zipfile.is_zipfile(path)
        with open(path, "rb") as file:
            asked = [argument for _ in range(5) for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
        assert set(asked) <= A1111_GLOBALS
    content = tensors(path)
    entries = content.get("string_to_param", content)
    assert set(entries) == set(PAIR) or len(entries) == 1
    return path.stem, entries.values()


def comfyui(path):
    """Trigger and what each text encoder takes: its own key, or else the first entry."""
    content = tensors(path)
    entries = content.get("string_to_param", content)
    keys = set(PAIR) & set(entries) or {"clip_l"}
    return f"embedding:{path.stem}", [entries.get(key, next(iter(entries.values()))) for key in keys]


def invokeai(path):
    """Trigger and entries; the base model is told from the last axis of known keys alone."""
    content = tensors(path)
    entries = content["string_to_param"] if "string_to_token" in content else content
    known = entries.get("clip_g", entries.get("emb_params", entries.get("*") if "string_to_token" in content else None))
    width = known.shape[-1] if known is not None else next(iter(entries.values())).shape[0]
    assert width in (D, PAIR["clip_g"].shape[-1]), f"unrecognized token dimension {width}"
    return f"<{path.stem}>", entries.values()


def narrow_first(entries):
    return sorted(entries, key=lambda vectors: vectors.shape[1])


CLIENTS = {"A1111, Forge": a1111, "ComfyUI": comfyui, "InvokeAI": invokeai}


@pytest.mark.parametrize("format", FORMATS)
def test_each_client_that_is_named_reads_the_file_under_the_printed_trigger(format, prefix, sdxl_prefix, capsys):
    target = export(sdxl_prefix if format == "sdxl" else prefix, format, stem="my_face-1")
    printed = capsys.readouterr().out
    named = [client for client in CLIENTS if f"\n{client}: " in printed]
    assert named == {"a1111": ["A1111, Forge"], "comfyui": ["ComfyUI"], "invokeai": ["InvokeAI"],
                     "diffusers": []}.get(format, list(CLIENTS))
    for client in named:
        trigger, entries = CLIENTS[client](target)
        assert re.search(rf"^{client}: .*start the prompt with: {trigger}$", printed, re.MULTILINE)
        for read, expected in zip(narrow_first(entries), PAIR.values() if format == "sdxl" else [VECTORS], strict=True):
            assert torch.equal(read, expected)


def test_invokeai_is_not_given_the_form_of_diffusers(prefix):
    with pytest.raises(AssertionError, match="unrecognized token dimension 10"):
        invokeai(export(prefix, "diffusers"))


def test_the_universal_file_has_the_token_that_the_released_code_looks_for(prefix):
    assert read_embedding_file(export(prefix, "universal")).token_ids == {"*": 41128}
    assert read_embedding_file(export(prefix, "universal", "--token", "sks")).token_ids == {"*": 48136}


def test_every_format_says_who_reads_it():
    assert set(READ_BY) == set(FORMATS)


# diffusers itself

@pytest.fixture(scope="module")
def embedder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FrozenCLIPEmbedder(hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32).eval()


def run_printed_lines(printed, **names):
    """Executes the lines under "diffusers:", as a user would paste them."""
    lines = printed.split("diffusers: ")[1].splitlines()[1:]
    exec("\n".join(line.strip() for line in lines), {"safetensors": safetensors, **names})


@pytest.mark.parametrize("flags", [[], ["--token", "x.y_2-"]])
@pytest.mark.parametrize("format", ["universal", "safetensors", "diffusers"])
@torch.no_grad()
def test_diffusers_makes_our_context_of_the_file(format, flags, prefix, embedder, capsys):
    if flags and format == "universal":
        flags = ["--token", "sks"]
    export(prefix, format, *flags)
    pipe = StableDiffusionPipeline(vae=None, unet=None, scheduler=None, safety_checker=None, requires_safety_checker=False,
                                   feature_extractor=None, tokenizer=clip_tokenizer(),
                                   text_encoder=copy.deepcopy(embedder.transformer.text_model))
    run_printed_lines(capsys.readouterr().out, pipe=pipe)
    manager = EmbeddingManager(embedder)
    manager.load(prefix)
    word = flags[1] if flags else "alz"
    for text in (" A close-up portrait of Ann", " face" * 65):  # 66 tokens with alz: the most that fit beside ten vectors
        theirs = pipe.encode_prompt(f"<{word}>{text}", "cpu", 1, False)[0]
        assert torch.equal(theirs, embedder([f"alz{text}"], manager)) and not torch.equal(theirs, embedder([text]))


def test_the_printed_way_fills_both_text_encoders_of_sdxl(sdxl_prefix, capsys):
    export(sdxl_prefix, "sdxl")
    encoders = [CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=vectors.shape[1], num_hidden_layers=2, num_attention_heads=2,
                                             intermediate_size=8)) for vectors in PAIR.values()]
    pipe = StableDiffusionXLPipeline(vae=None, unet=None, scheduler=None, text_encoder=encoders[0], text_encoder_2=encoders[1],
                                     tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer())
    run_printed_lines(capsys.readouterr().out, pipe=pipe)
    for vectors, encoder, tokenizer in zip(PAIR.values(), encoders, (pipe.tokenizer, pipe.tokenizer_2), strict=True):
        prompt = pipe.maybe_convert_prompt("<alz> A close-up portrait of Ann", tokenizer)
        token_ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert torch.equal(encoder.get_input_embeddings()(token_ids)[0, 1:1 + len(vectors)], vectors)
        assert token_ids[0, 1 + len(vectors):].tolist() == tokenizer("A close-up portrait of Ann").input_ids[1:]


# The command

def test_a_folder_gets_a_file_called_as_the_token(prefix, tmp_path, capsys):
    (tmp_path / "embeddings").mkdir()
    main([str(prefix), str(tmp_path / "embeddings"), "--format", "a1111", "--token", "my-face"])
    assert torch.equal(only_vectors(tmp_path / "embeddings" / "my-face.pt"), VECTORS)
    assert capsys.readouterr().out.endswith("start the prompt with: my-face\n")


def test_in_can_be_written_over_by_its_own_export(prefix):
    main([str(prefix), str(prefix), "--format", "a1111"])
    assert torch.equal(only_vectors(prefix), VECTORS) and [path.name for path in prefix.parent.iterdir()] == ["apl.pt"]


def bad_inputs(folder):
    """Name -> what the sentence about it says; the files lie in `folder`."""
    save_file({"lora_te_q.lora_down.weight": VECTORS, "lora_te_q.lora_up.weight": VECTORS + 1, "lora_te_q.alpha": torch.tensor(1.0)},
              folder / "lora.safetensors")
    save_file({f"layer{number}.weight": VECTORS + number for number in range(5)}, folder / "matrices.safetensors")
    save_zip({"state_dict": {"w": VECTORS}, "global_step": 5}, folder / "model.ckpt")
    save_file({"conv.weight": torch.ones(2, 2, 3, 3)}, folder / "model.safetensors")
    save_legacy(compvis(container=dict, extra=RunsCode(folder / "ran")), folder / "hostile.pt")
    endless = {}
    endless["again"] = endless
    save_zip(compvis(container=dict, apl=endless), folder / "endless.pt")
    save_zip({"<alz>": VECTORS / 0}, folder / "nan.bin")
    (folder / "damaged.safetensors").write_bytes((folder / "lora.safetensors").read_bytes()[:-9])
    write_embedding_file(folder / "two.pt", {"alz": VECTORS, "sks": VECTORS + 1}, {"alz": 41128, "sks": 48136})
    return {
        "none.pt": "there is no embedding file", "lora.safetensors": "is a LoRA instead of learned vectors",
        "matrices.safetensors": "'layer2.weight' and 2 more where a prefix is one entry; choose with --part, or give a prefix file if",
        "model.ckpt": "holds the keys ['state_dict', 'global_step'] instead", "model.safetensors": "'conv.weight' of shape (2, 2, 3, 3)",
        "hostile.pt": "asks for posix.system, which is no part of an embedding and was not run", "endless.pt": "Circular reference",
        "nan.bin": "hold NaN or infinity", "damaged.safetensors": "is damaged or no embedding",
        "two.pt": "holds 'alz', 'sks' where a prefix is one entry; choose with --part",
    }


def test_a_bad_input_is_refused_with_a_sentence_and_nothing_is_lost(tmp_path, capsys):
    (tmp_path / "alz.pt").write_text("what was there")
    for name, sentence in bad_inputs(tmp_path).items():
        assert sentence in refusal(capsys, main, [str(tmp_path / name), str(tmp_path / "alz.pt"), "--format", "a1111"])
    assert (tmp_path / "alz.pt").read_text() == "what was there" and not (tmp_path / "ran").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_one_text_encoder_is_not_enough_for_sdxl(prefix, capsys):
    said = refusal(capsys, main, [str(prefix), str(prefix.with_suffix(".safetensors")), "--format", "sdxl"])
    assert "SDXL has two text encoders" in said and f"python -m ldm.apl.transfer {prefix} OUT --to sdxl" in said


def test_a_pair_of_different_lengths_is_refused(tmp_path, capsys):
    write_safetensors_file(tmp_path / "a.safetensors", PAIR | {"clip_l": VECTORS})
    said = refusal(capsys, main, [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--format", "sdxl"])
    assert "10 vectors for clip_l but 3 for clip_g" in said


@pytest.mark.parametrize(("out", "format", "flags", "sentence"), [
    ("alz.pt", "a1111", [], "is for SDXL, with clip_l and clip_g, but --format a1111 holds one of them"),
    ("alz.pt", "a1111", ["--part", "clip_h"], "holds 'clip_g', 'clip_l' but no part 'clip_h'"),
    ("alz.bin", "diffusers", [], "does not end in .safetensors, as files of --format diffusers do"),
    ("alz", "universal", [], "does not end in .pt"),
    ("my face.pt", "a1111", [], "would not be found in a prompt, which contains its name"),
    ("alz.safetensors", "sdxl", ["--part", "clip_l"], "has no use with --format sdxl"),
    ("apl-sdxl.safetensors", "comfyui", ["--part", "clip_l"], "is IN, which would be reduced to --part clip_l"),
    ("alz.pt", "universal", ["--token", "Alz"], "--token 'Alz' would not be found in a prompt; give lower-case letters"),
    ("alz.pt", "universal", ["--token", "<alz>"], "--token '<alz>' would not be found"),
    ("alz.pt", "universal", ["--part", "clip_l", "--token", "alzalz9"], "'alzalz9' is 3 CLIP tokens where one"),
    ("alz.pt", "onnx", [], "invalid choice: 'onnx'"),
])
def test_wrong_flags_end_with_a_sentence(out, format, flags, sentence, sdxl_prefix, capsys):
    before = sdxl_prefix.read_bytes()
    assert sentence in refusal(capsys, main, [str(sdxl_prefix), str(sdxl_prefix.parent / out), "--format", format, *flags])
    assert sdxl_prefix.read_bytes() == before and len(list(sdxl_prefix.parent.iterdir())) == 1


def test_help_answers_without_torch():
    script = ("import sys\nfrom ldm.export.__main__ import main\ntry:\n    main(['--help'])\n"
              "except SystemExit:\n    assert not {'torch', 'numpy'} & set(sys.modules)")
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "python -m ldm.export IN OUT --format FORMAT" in shown.stdout, shown.stderr
