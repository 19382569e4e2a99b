"""Attributes of S_ID: the request, the answers taken apart, the growing list, and an OpenAI-compatible server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import dataset_generation
from ldm.data import chat_endpoint
from ldm.data.attribute_sentences import flaw_of, parse_answer, read_names, request_for
from ldm.data.chat_endpoint import ChatEndpoint
from ldm.data.identities import Person, read_people, write_people
from ldm.util import UserError
from tests.refusals import refusal

ADA = "A female European pilot, middle-aged, oval face, grey hair"
BEN = "A male West African chef, young, round face, short black hair"
NAMES = ["Ada Stone", "Ben Wood", "Zoë O'Neil"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with names.txt, in which the command runs."""
    (tmp_path / "names.txt").write_text("# people\nAda Stone\nBen Wood\n\nZoë O'Neil\nAda  Stone\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*flags):
    dataset_generation.main(["attributes", "--names", "names.txt", "--out_dir", "out", *map(str, flags)])


def sentence(capsys, *flags):
    return refusal(capsys, command, *flags)


def attributes_in(folder):
    return {person.name: person.attributes for person in read_people(folder / "people.csv").values()}


def test_the_request_has_the_papers_form_and_every_name():
    request = request_for(NAMES)
    assert "A [gender] [race] [occupation], [facial attributes]." in request and all(name in request for name in NAMES)


@pytest.mark.parametrize("line", [f"Ada Stone: {ADA}.", f"1. **Ada Stone**: {ADA}.", f"- ada stone - {ADA}", f'* Ada Stone: "{ADA}."',
                                  f"\t2) `Ada Stone` : {ADA}. "])
def test_an_answer_is_understood_in_the_usual_dresses(line):
    assert parse_answer(line, NAMES) == ({"Ada Stone": ADA}, [])


STRANGE = ["'Odd' Stone", "Lupita Ex'ample", "Ke*ha", "例子一郎", "50 Cent", "P!nk", "will.i.am", "Robert Wood Jr.", "Beyoncé", "-Ada",
           '"Ann" Wood-Stone', "Panic! Ann", "*NSYNC"]


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("line", ["{}: {}.", "{}： {}", "{}：{}", "1. **{}**: {}.", "- {} - {}", "12) {} – {}", "| {} | {}. |", "* {}\t{}",
                                  "**{}:** {}", '"{}": "{}",', "### {}: {}", "| 3 | {} | {} |", "> _{}_, {}", "1️⃣ {}: {}"])
def test_a_line_that_begins_with_the_very_name_is_taken(name, line):
    assert parse_answer(line.format(name, ADA), STRANGE) == ({name: ADA}, [])


@pytest.mark.parametrize(("name", "written"), [
    ("Lupita Ex'ample", "Lupita Ex’ample"), ("'Odd' Stone", "‘Odd’ Stone"), ("'Odd' Stone", "“Odd” Stone"), ("Beyoncé", "Beyonce\u0301"),
    ("Ann Wood-Stone", "Ann Wood\u2011Stone"), ("Ada Stone", "Ａｄａ\u3000Ｓｔｏｎｅ"),
    ("Ada Stone", "Ada\u00a0Stone"), ("Ada Stone", "ADA STONE"),
    ("Robert Wood Jr.", "Robert Wood Jr"), ("Ke*ha", "Ke\\*ha"), ("Ada Stone", "**Ada** Stone"), ("Ada Stone", "Ada\u200b Stone")])
def test_a_name_is_recognised_in_any_spelling_and_keeps_that_of_the_list(name, written):
    assert parse_answer(f"{written}: {ADA}.", [name, "Ben Wood"]) == ({name: ADA}, [])


@pytest.mark.parametrize("line", ["150 Cent: {}", "Ada Stonewood: {}", "Bada Stone: {}", "Here are the sentences for Ada Stone: {}", 
                                  "# Ada Stone", "|---|---|\n| Name | Sentence |"])
def test_a_line_about_nobody_is_complained_about(line):
    found, complaints = parse_answer(line.format(ADA), ["50 Cent", "Ada Stone"])
    assert found == {} and len(complaints) == 1


def test_names_that_differ_in_spelling_alone_are_asked_for_once(files):
    (files / "names.txt").write_text("Lupita O'Neil\nLUPITA O’NEIL\nZoe\u0308\nZoe\n", encoding="utf-8")
    assert read_names(files / "names.txt") == (["Lupita O'Neil", "Zoë", "Zoe"], 1)


def test_who_is_in_the_list_in_another_spelling_is_not_asked_for_again(files, capsys):
    write_people({"ADA STONE": Person("ADA STONE", "test", ADA)}, files / "out" / "people.csv")
    command()
    assert "Ben Wood" in (said := capsys.readouterr().out) and "Ada Stone" not in said


@pytest.mark.parametrize(("sentence", "flaw"), [
    ("An actress, green eyes", "does not begin with"), ("A person European chef, bald", "does not begin with"),
    ("A male chef, bald", "lacks the race or the occupation"), ("A male European chef", "lacks facial attributes"),
    ("A male European chef, ", "lacks facial attributes"), ("A male [race] chef, bald", "brackets"),
    ("A male European chef, bald. He is kind", "several sentences"), ("A male European chef," + " very" * 50 + " bald", "55 words"),
    ("A male European chef, the Wood smile", "contains the name")])
def test_a_sentence_of_another_form_has_a_flaw(sentence, flaw):
    assert flaw in flaw_of(sentence, "Ben Wood")


def test_a_good_sentence_has_no_flaw():
    assert flaw_of(BEN, "Ben Wood") is None


@pytest.mark.parametrize(("name", "sentence", "told"), [
    ("Betty White", "A female White actress, white hair", None), ("Kanye West", "A male West African rapper, black hair", None),
    ("Betty White", "A female White actress, the White smile", "White"), ("Ben Wood", "A male Ben Wood chef, bald", "Ben")])
def test_the_race_may_be_a_word_of_the_name(name, sentence, told):
    assert flaw_of(sentence, name) == (f"contains the name ({told})" if told else None)


@pytest.mark.parametrize("file", ["data/people.csv", "data/mini/people.csv"])
def test_the_people_that_ship_are_described_in_the_papers_form(file):
    people = read_people(Path(dataset_generation.__file__).parent / file).values()
    assert [person for person in people if flaw_of(person.attributes, person.name)] == []


def test_every_faulty_line_is_named_and_the_good_ones_are_kept():
    found, complaints = parse_answer(f"Sure, here they are:\n\nAda Stone: {ADA}.\nBen Wood: He is bald.\nCleo Vance: {BEN}.\n"
                                     f"Ada Stone: {BEN}.", NAMES)
    assert found == {"Ada Stone": ADA}
    assert [complaint.split(",")[0].split(" does not begin")[0] for complaint in complaints] == ["line 1", "line 4", "line 5", "line 6"]
    assert "'Cleo Vance" in complaints[2] and "the first is kept" in complaints[3]


def test_a_name_within_a_longer_name_is_not_taken_for_it():
    found, _ = parse_answer(f"Ada Stone-Wood: {BEN}.\nAda Stone: {ADA}.", ["Ada Stone", "Ada Stone-Wood"])
    assert found == {"Ada Stone": ADA, "Ada Stone-Wood": BEN}
    assert parse_answer(f"Ada Stone Wood: {BEN}.", ["Ada Stone"])[0] == {}


def test_names_that_are_there_twice_are_counted(files):
    assert read_names(files / "names.txt") == (NAMES, 1)


@pytest.mark.parametrize(("content", "message"), [(b"", "holds no name"), (b"Zo\xeb", "not UTF-8 text")])
def test_a_wrong_file_of_names_is_refused(files, capsys, content, message):
    (files / "names.txt").write_bytes(content)
    assert message in sentence(capsys)


def test_people_survive_the_disk(tmp_path):
    people = {name: Person(name, "test", 'A "b", c') for name in NAMES}
    write_people(people, tmp_path / "people.csv")
    assert read_people(tmp_path / "people.csv") == people


def test_requests_are_printed_in_batches_and_only_for_what_is_missing(files, capsys):
    command("--names_per_request", 2)
    first, second = capsys.readouterr().out.split("----")
    assert "Ada Stone\nBen Wood" in first and "Zoë O'Neil" in second and not (files / "out").exists()
    (files / "reply.txt").write_text(f"Ada Stone: {ADA}.")
    command("--answers", "reply.txt")
    assert "1 of 3 names have attributes" in capsys.readouterr().out
    command()
    again = capsys.readouterr().out
    assert "Ben Wood" in again and "Ada Stone" not in again


def test_what_is_there_is_never_lost(files, capsys):
    (files / "reply.txt").write_text(f"Ada Stone: {ADA}.\nBen Wood: no idea")
    command("--answers", "reply.txt", "--group", "test")
    assert "faulty: answers/" in capsys.readouterr().out
    (files / "reply.txt").write_text(f"Ada Stone: {BEN}.\nBen Wood: {BEN}.")
    command("--answers", "reply.txt")
    assert attributes_in(files / "out") == {"Ada Stone": ADA, "Ben Wood": BEN}
    assert read_people(files / "out" / "people.csv")["Ada Stone"].group == "test"
    assert len(list((files / "out" / "answers").iterdir())) == 2
    (files / "reply.txt").write_bytes(b"\xff\xfa")
    assert "not UTF-8" in sentence(capsys, "--answers", "reply.txt")
    (files / "out" / "people.csv").write_text("name,group\n")
    assert "no attributes" in sentence(capsys, "--answers", "names.txt")
    assert (files / "out" / "people.csv").read_text() == "name,group\n"


# ---------------------------------------------------------------------------------------------------------------- a server

@pytest.fixture
def server(monkeypatch):
    """A local chat server; `replies` are (status, body) in order, the last one for ever; `seen` are the requests."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            http.seen.append((self.path, self.headers["Authorization"], json.loads(body)))
            status, content = http.replies.pop(0) if len(http.replies) > 1 else http.replies[0]
            self.send_response(status)
            self.send_header("Location", "http://localhost:1/elsewhere")
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(chat_endpoint.time, "sleep", lambda _: None)
    http = HTTPServer(("127.0.0.1", 0), Handler)
    http.seen, http.replies, http.url = [], [], f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def completion(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_a_server_is_asked_with_the_key_of_the_environment(files, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server.replies = [completion(f"Ada Stone: {ADA}.\nBen Wood: {BEN}."), completion("Zoë O'Neil: I cannot say")]
    command("--base_url", server.url, "--model", "tiny", "--api_key_env", "MY_KEY", "--names_per_request", 2, "--seed", 5)
    assert attributes_in(files / "out") == {"Ada Stone": ADA, "Ben Wood": BEN}
    path, authorization, body = server.seen[0]
    assert (path, authorization, body["model"], body["seed"]) == ("/v1/chat/completions", "Bearer secret", "tiny", 5)
    assert body["messages"][0]["content"] == request_for(NAMES[:2]) and len(server.seen) == 2
    record = json.loads((files / "out" / "people.json").read_text())
    made = [(answer["model"], answer["seed"], len(answer["faulty"])) for answer in record["answers"].values()]
    assert made == [("tiny", 5, 0), ("tiny", 5, 1)] and "secret" not in (files / "out" / "people.json").read_text()
    command("--base_url", server.url, "--model", "tiny")
    assert server.seen[2][1] is None and "Ada Stone" not in server.seen[2][2]["messages"][0]["content"]


def test_answers_before_a_failure_stay(files, server, capsys):
    server.replies = [completion(f"Ada Stone: {ADA}."), (500, b"busy")]
    assert "status 500 (busy)" in sentence(capsys, "--base_url", server.url, "--model", "tiny", "--names_per_request", 1)
    assert attributes_in(files / "out") == {"Ada Stone": ADA} and len(server.seen) == 1 + chat_endpoint.ATTEMPTS


def test_a_busy_server_is_asked_again(server):
    server.replies = [(429, b""), (503, b""), completion("hello")]
    assert ChatEndpoint(server.url, "tiny")("hi") == "hello"


@pytest.mark.parametrize(("reply", "message"), [
    ((401, b"no"), "--api_key_env"), ((404, b""), "usually ends with /v1"), ((200, b"<html>"), "other than a chat completion"),
    ((200, {"choices": []}), "IndexError"), ((200, {"choices": [{"message": {"content": None}}]}), "NoneType"),
    ((200, b"[" * 100_000), "RecursionError"), ((302, b""), "status 302"), ((200, b"x" * (chat_endpoint.LARGEST_ANSWER + 1)), "more than")])
def test_a_server_that_answers_otherwise_ends_with_a_sentence(server, reply, message):
    server.replies = [reply]
    with pytest.raises(UserError, match=message):
        ChatEndpoint(server.url, "tiny", "key")("hi")
    assert len(server.seen) == 1


def test_no_server_ends_with_a_sentence(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="does not answer"):
        ChatEndpoint(server.url, "tiny")("hi")


def test_a_broken_key_is_never_shown(server):
    with pytest.raises(UserError) as error:
        ChatEndpoint(server.url, "tiny", "sec ret\n")
    assert "sec" not in str(error.value).replace("second", "")


@pytest.mark.parametrize(("flags", "message"), [
    (["--base_url", "file:///etc/passwd", "--model", "m"], "http or https"),
    (["--base_url", "http://user:pass@host/v1", "--model", "m"], "http or https"),
    (["--base_url", "http://[::1/v1", "--model", "m"], "http or https"),
    (["--base_url", "http://localhost/v1"], "--model is missing"), (["--answers", "none.txt"], "--answers none.txt is not there"),
    (["--group", "val"], "train"), (["--names", "out"], "--names out is not there")])
def test_wrong_flags_end_with_a_sentence(files, capsys, flags, message):
    said = sentence(capsys, *flags)
    assert message in said and "pass@" not in said
