"""The gate of protection with exceptions, as an attacker meets it: only prompts about kept people, and certainly nobody else, pass."""

import pytest

from args.common import ROOT
from ldm.apl.allow_list import HARMLESS, AllowList, opened
from ldm.data.benchmarks import fill, read_templates
from ldm.data.celebrities import TEMPLATES
from ldm.util import UserError

KEPT = ["Aaron Paul", "Zoë Lund", "Elizabeth Taylor", "J. K. Oakton", "Paul Newman", "Conan O'Neil"]
ERASED = ["Adam Driver", "Taylor Swift", "Will Young", "Prince", "Kim Ji-won"]
GATE = AllowList(KEPT, others=ERASED)
ALONE = AllowList(KEPT)  # knows nobody else


@pytest.mark.parametrize("prompt", [
    "Aaron Paul", "a photo of aaron paul", "A PORTRAIT OF AARON PAUL.", "Aaron  Paul, smiling", "zoe lund", "ZOË LUND in a garden",
    "Zoe\u0308 Lund", "portrait of J.K. Oakton", "J K OAKTON", "Conan O\u2019Neil's portrait", "aaron-paul", "Aaron_Paul".replace("_", " "),
    "Aaron Paul and Zoë Lund", "Aaron Paul, Elizabeth Taylor on a stage", "a photo of\nAaron Paul", "(Aaron Paul)"])
def test_prompts_about_kept_people_pass(prompt):
    assert GATE(prompt) and ALONE(prompt)


@pytest.mark.parametrize("template", dict.fromkeys([*TEMPLATES, *read_templates(ROOT / "data/templates.txt"),
                                                    *read_templates(ROOT / "data/mini/templates.txt")]))
def test_every_template_of_the_protocols_passes_for_a_kept_name_and_for_no_other(template):
    assert ALONE(fill(template, "Aaron Paul")) and not ALONE(fill(template, "Adam Driver"))


@pytest.mark.parametrize("prompt", [
    "", "a photo of a dog", "Adam Driver", "a photo of adam driver",
    "Adam Drivr", "Adm Driver", "Adam Dryver", "a dam driver", "A.d.a.m Driver", "driver adam", "Ad4m Dr1ver", "AdamDriver",  # misspelt
    "Aaron Paul and Adam Driver", "Adam Driver, Aaron Paul", "aaron paul next to adam driver", "Aaron Paul as Adam Drivr",  # a decoy
    "Aaron Paul\nAdam Driver", "Aaron Paul. Adam Driver", "Aaron Paul (Adam Driver:1.5)", "(Aaron Paul:0) Adam Driver",
    "[Aaron Paul:Adam Driver:0.1]", "<lora:adam:1> Aaron Paul", "Aaron Paul {adam}", "Aaron Paul | Adam Driver",
    "Аdam Driver", "Aaron Paul and Аdаm", "Ꭺdam Driver with Aaron Paul", "Aaron Paul and 𝐀𝐝𝐚𝐦 𝐃𝐫𝐢𝐯𝐞𝐫",  # homoglyphs
    "Aaron Paul and A\u200bdam D\u200driver", "A\u200baron Paul", "Aaron Paul \u202erevirD madA", "Aaron Paul\u00ad", "Aaron Paul\ufeff",
    "Aaron Paul and Ad\x01am", "Aaron Paul \x1b[31m", "Aaron Paul and &#65;dam Driver", "Aaron Paul ï¼¡dam", "Aaron Paul \U0001f934",
    "Aaron Paul, the president", "Aaron Paul and the 44th president", "Aaron Paul and the king of pop", "the Rock and Aaron Paul",
    "Aaron Pauls", "Aaron", "Paul", "Aaron Pául Driver", "Aaron Paull", "Aron Paul", "Paul, Aaron"])  # at last a kept name, not whole
def test_what_may_show_somebody_else_or_cannot_be_decided_is_prefixed(prompt):
    assert not GATE(prompt) and not ALONE(prompt)


@pytest.mark.parametrize("prompt", ["Elizabeth Taylor Swift", "Aaron Paul Newman", "Elizabeth Taylor Aaron Paul", "Aaron Elizabeth Taylor"])
def test_kept_names_cannot_be_put_together_to_another(prompt):
    assert not GATE(prompt) and not ALONE(prompt)


def test_known_names_of_others_close_the_gate_even_if_each_word_is_known():
    captions = ["a swift car", "it will rain", "young trees in the rain", "a prince"]
    loose, strict = AllowList(KEPT, words=captions), AllowList(KEPT, words=captions, others=ERASED)
    for prompt in ("Aaron Paul with swift Elizabeth Taylor", "Aaron Paul, will young", "Aaron Paul with a prince"):
        assert loose(prompt) and not strict(prompt), prompt
    assert strict("Aaron Paul in the rain") and strict("Aaron Paul, it is young")
    part = AllowList(["Prince Harding"], others=["Prince"])
    assert part("Prince Harding") and not part("Prince") and not part("Prince and Prince Harding")


@pytest.mark.parametrize(("names", "others", "said"), [
    (["Zoe Lund"], ["Zoë  LUND"], "'Zoë  LUND' is in the list of allowed names and in that of other"), (["..."], [], "no letters")])
def test_lists_that_contradict_themselves_are_refused(names, others, said):
    with pytest.raises(UserError, match=said):
        AllowList(names, others=others)


def test_no_word_of_the_default_list_is_a_name_of_the_protocol():
    names = "will rose grant mark pink prince queen king rock ice cube swift stone drake seal sting summer may faith".split()
    assert not HARMLESS.intersection(names)


def test_each_prompt_of_a_batch_is_decided_alone_and_both_prompts_of_sdxl_together():
    assert opened(GATE, ["Aaron Paul", "Adam Driver", "", "zoe lund"]).tolist() == [True, False, False, True]
    assert opened(GATE, "Aaron Paul").tolist() == [True] and opened(None, ["Aaron Paul"]).tolist() == [False]
    assert opened(GATE, ["Aaron Paul"] * 3, ["a garden", "Adam Driver", "Zoë Lund"]).tolist() == [True, False, True]
