"""The trainer: only the prefix moves, the same samples give the same bytes, a killed run ends as if it had not been."""

import copy
import csv
import json

import pytest
import torch
from PIL import Image

from args.common import options_of
from args.train_args import parse_train_args
from ldm.apl.examples import Texts, TrainingSet
from ldm.apl.fast_step import frozen_predictions
from ldm.apl.launch import launch
from ldm.apl.look_ahead import LookAhead, Share
from ldm.apl.prefix import build_context_map, build_prefix
from ldm.apl.trainer import Settings, learning_rate, train_prefix
from ldm.apl.training_run import TrainingOptions, prepare_run
from ldm.data.mixture import Mixture
from ldm.loading import ModelFiles
from ldm.logbook import Logbook, _refuse_others
from ldm.util import UserError

ARGUMENTS = {"iterations": 6, "lr": 0.01}


class Killed(Exception):
    """Stands for the signal that ends a run at once."""


def settings(**changes) -> Settings:
    return Settings(**{"iterations": 6, "batch_size": 4, "grad_accum": 1, "lr": 0.01, "lr_decay": 0.0, "train_method": "apl",
                       "alpha": 1.0, "log_every": 1, "save_every": 3, "val_every": 0} | changes)


def prepared(*flags):
    """Options and data of a training with these flags of train.py."""
    args = parse_train_args([*flags])
    options = options_of(TrainingOptions, args, files=options_of(ModelFiles, args))
    return options, prepare_run(options)


def training_set(model, pictures, mix=0.5) -> TrainingSet:
    return TrainingSet(model, *pictures, ["{}", "a photo of {}"], Mixture(0, 2, 2, 2, 50, mix))


def train(fabric, model, pictures, folder, *, kill_after=None, mix=0.5, init="vocab", steps_ahead=4, cache=None, recorded=None,
          attack=lambda model, prefix: None, data=training_set, **changes):
    """Trains a fresh prefix in `folder`, or goes on there; with `kill_after` it ends right after that saved step."""
    chosen = settings(**changes)
    prefix = build_context_map(model, rank=2) if chosen.train_method == "apl-map" else build_prefix(model, num_vectors=2, init=init)
    logbook = Logbook(folder, ARGUMENTS | {"iterations": chosen.iterations})
    logbook.state_is_due = lambda: True
    batches = LookAhead(model, data(model, pictures, mix), Texts(model, prefix), Share(chosen.batch_size, steps_ahead),
                        first_step=logbook.first_step, iterations=chosen.iterations,
                        with_names=chosen.train_method != "apl-released", cache=cache)
    batches.check()

    def save(step):
        prefix.save(folder / f"{step}.pt", step=step)
        if step == kill_after:
            raise Killed

    train_prefix(fabric, model, prefix, batches, settings=chosen, logbook=logbook, save=save,
                 grid=lambda: Image.new("RGB", (4, 4)), recorded=recorded, attack=attack(model, prefix))
    return prefix


def test_only_the_prefix_has_a_gradient_and_everything_else_stays(fabric, tiny_model, pictures, tmp_path):
    before = copy.deepcopy(tiny_model.state_dict())
    prefix = train(fabric, tiny_model, pictures, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in tiny_model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert sum(parameter.numel() for parameter in prefix.parameters() if parameter.requires_grad) == 2 * 32
    (vectors,) = prefix.embedding_parameters()
    assert (vectors != next(build_prefix(tiny_model, num_vectors=2, init="vocab").embedding_parameters())).all()


@pytest.mark.parametrize(("kill_after", "log_every"), [(3, 1), (3, 2), (6, 1)])
def test_a_killed_run_ends_with_the_same_bytes(fabric, tiny_model, pictures, tmp_path, kill_after, log_every):
    train(fabric, tiny_model, pictures, tmp_path / "whole", log_every=log_every)
    with pytest.raises(Killed):
        train(fabric, tiny_model, pictures, tmp_path / "killed", kill_after=kill_after, log_every=log_every)
    train(fabric, tiny_model, pictures, tmp_path / "killed", log_every=log_every)
    for name in ("3.pt", "6.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_killed_run_of_a_context_map_ends_with_the_same_bytes(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path / "whole", train_method="apl-map")
    with pytest.raises(Killed):
        train(fabric, tiny_model, pictures, tmp_path / "killed", train_method="apl-map", kill_after=3)
    learned = train(fabric, tiny_model, pictures, tmp_path / "killed", train_method="apl-map")
    for name in ("3.pt", "6.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert all(value.any() for value in learned.parameters())


def test_a_finished_run_is_left_as_it_is(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path)
    content = {name: (tmp_path / name).read_bytes() for name in ("6.pt", "log.csv", "state.pt")}
    prefix = train(fabric, tiny_model, pictures, tmp_path)
    assert content == {name: (tmp_path / name).read_bytes() for name in content}
    prefix.save(tmp_path / "again.pt", step=6)
    assert (tmp_path / "again.pt").read_bytes() == content["6.pt"]


def test_more_iterations_go_on(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path)
    train(fabric, tiny_model, pictures, tmp_path, iterations=9)
    steps = [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert steps == [str(step) for step in range(1, 10)]


@pytest.mark.parametrize("given", [{"lr_decay": 0.5}, {"lr_decay": 0.0, "attack_rounds": 3}])
def test_more_iterations_are_refused_where_the_steps_depend_on_the_last(tmp_path, given):
    with pytest.raises(UserError, match="iterations 6 instead of 9"):
        _refuse_others(tmp_path, {"step": 6, "arguments": json.dumps(ARGUMENTS | given)}, ARGUMENTS | given | {"iterations": 9})


@pytest.mark.parametrize(("decay", "expected"), [(0.0, [8, 8, 8, 8]), (0.5, [8, 8, 8, 4]), (1.0, [8, 6, 4, 2])])
def test_the_learning_rate_falls_over_the_last_steps(decay, expected):
    chosen = settings(iterations=4, lr=8.0, lr_decay=decay)
    assert [learning_rate(step, chosen) for step in (1, 2, 3, 4)] == expected


def test_other_arguments_are_refused(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path)
    with pytest.raises(UserError, match="lr 0.01 instead of 0.1"):
        Logbook(tmp_path, ARGUMENTS | {"lr": 0.1})
    with pytest.raises(UserError, match="6 steps where --iterations 5"):
        Logbook(tmp_path, ARGUMENTS | {"iterations": 5})
    assert Logbook(tmp_path, ARGUMENTS | {"lr": 0.1}, resume=False).first_step == 0


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(UserError, match="state.pt is damaged"):
        Logbook(tmp_path, ARGUMENTS)


@pytest.mark.parametrize(("change", "said"), [
    (lambda key, value: {f"clip_l.{key}": value}, r"holds clip_l.string_to_param_dict.alz \(2, 32\) where .* has string_to.*older version"),
    (lambda key, value: {key: value[:1]}, r"alz \(1, 32\) where this training has string_to_param_dict.alz \(2, 32\)"),
    (lambda key, value: {}, "holds fewer tensors where .*use another --out_dir, or --no-resume")], ids=["older", "shorter", "empty"])
def test_a_state_with_other_tensors_is_refused(fabric, tiny_model, pictures, tmp_path, change, said):
    train(fabric, tiny_model, pictures, tmp_path, iterations=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    [(key, value)] = state["trained"].items()
    torch.save(state | {"trained": change(key, value)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=said):
        train(fabric, tiny_model, pictures, tmp_path)


def test_the_loss_falls_on_a_few_samples(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path, iterations=60, lr=0.05, log_every=15, save_every=60)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert losses[-1] < 0.8 * losses[0]  # each version of torch draws other random weights for the model; 0.55 and 0.74 were seen


def test_the_log_tells_both_losses_apart(fabric, tiny_model, pictures, tmp_path):
    train(fabric, tiny_model, pictures, tmp_path, mix=1.0, log_every=3)
    for row in csv.DictReader((tmp_path / "log.csv").open()):
        assert row["loss"] == row["loss_id"] and row["loss_reg"] == "nan"
        assert (float(row["samples_id"]), float(row["samples_reg"])) == (12, 0)


def test_regularising_samples_have_one_frozen_prediction(tiny_model, pictures, monkeypatch):
    data = training_set(tiny_model, pictures)
    samples, rows = data.samples(range(8)), []
    noisy_latent, timestep = data.noisy_latent(samples), torch.tensor(samples.timesteps)
    predict = tiny_model.apply_model
    monkeypatch.setattr(tiny_model, "apply_model", lambda x, t, c: rows.append(len(x)) or predict(x, t, c))
    texts = Texts(tiny_model, build_prefix(tiny_model, num_vectors=2))
    eps = frozen_predictions(tiny_model, samples, noisy_latent, texts)
    n_identity = sum(samples.is_identity)
    assert rows == [8 + n_identity] and 0 < n_identity < 8
    for name, prompts in (("eps_attributes", samples.attribute_prompts), ("eps_name", samples.name_prompts[:n_identity])):
        n = len(prompts)
        expected = predict(noisy_latent[:n], timestep[:n], tiny_model.get_learned_conditioning(prompts))
        torch.testing.assert_close(eps[name], expected, rtol=1e-4, atol=1e-5)


def test_names_and_attributes_get_the_same_template(tiny_model, pictures):
    samples = training_set(tiny_model, pictures, mix=1.0).samples(range(20))
    attributes = {"Ada Stone": "A female pilot", "Ben Wood": "A male chef"}
    assert {c1.startswith("a photo of ") for c1 in samples.name_prompts} == {True, False}
    for c1, c2 in zip(samples.name_prompts, samples.attribute_prompts, strict=True):
        name = c1.removeprefix("a photo of ")
        assert c2 == c1.replace(name, attributes[name])


@pytest.mark.parametrize(("devices", "batch_size", "message"), [
    ("977", 1, "asks for GPU 977"), ("cpu:2", 3, "--batch_size 3 cannot be shared evenly by the 2 devices")])
def test_devices_that_are_not_there_or_cannot_share_are_refused(devices, batch_size, message):
    with pytest.raises(UserError, match=message):
        launch(devices, batch_size)


def test_alpha_moves_the_prefix_in_the_paper_but_not_in_the_released_code(fabric, tiny_model, pictures, tmp_path):
    def learned(method, alpha):
        prefix = train(fabric, tiny_model, pictures, tmp_path / f"{method}-{alpha}", mix=1.0, train_method=method, alpha=alpha)
        return next(prefix.embedding_parameters()).detach()

    torch.testing.assert_close(learned("apl-released", 0.0), learned("apl-released", 3.0), rtol=0, atol=1e-3)
    assert (learned("apl", 0.0) - learned("apl", 3.0)).abs().max() > 1e-2
