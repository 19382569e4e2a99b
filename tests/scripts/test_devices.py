"""One run on several devices: started here, by torchrun or by SLURM; and what is said and left when a process of it ends too early."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train
from ldm.data.mixture import Mixture
from ldm.modules.embedding_file import read_embedding_file
from tests.forked import Command
from tests.refusals import refusal
from tests.scripts import test_train_script

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
QUICK = ("--eval_names", 0, "--val_every", 0)
LONG = (*QUICK, "--devices", "cpu,cpu", "--iterations", 60, "--save_every", 10, "--log_every", 1)
inputs, command, in_a_folder_of_its_own = (
    test_train_script.inputs, test_train_script.command, test_train_script.in_a_folder_of_its_own)  # fixtures


def torchrun(argv: list[str], port: int, node: int) -> subprocess.Popen:
    launcher = ("-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", "--master_addr=127.0.0.1",
                f"--master_port={port}")
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "train.py"), *argv], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=ENVIRONMENT)


def srun(argv: list[str], port: int, node: int) -> Command:
    return Command(train.main, argv, SLURM_JOB_NAME="apl", SLURM_JOB_ID=7, SLURM_NTASKS=2, SLURM_NTASKS_PER_NODE=1, SLURM_NNODES=2,
                   SLURM_NODELIST="localhost", SLURM_PROCID=node, SLURM_NODEID=node, SLURM_LOCALID=0, MASTER_PORT=port)


@pytest.fixture
def port() -> int:
    """A free one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_two_nodes_train_the_prefix_of_one_process(command, tmp_path, port, launcher):
    argv = command(*QUICK, "--num_nodes", 2, "--out_dir", "two")
    nodes = [launcher(argv, port, node) for node in (0, 1)]
    train.main(command(*QUICK, "--out_dir", "one"))
    said = [node.communicate(timeout=900)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    two, one = (read_embedding_file(tmp_path / folder / "embeddings/apl-4.pt").vectors["*"] for folder in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def test_a_node_that_loses_another_says_so_and_ends(command, tmp_path, port):
    argv = command(*LONG, "--devices", "cpu", "--num_nodes", 2, "--out_dir", "lost")
    nodes = [srun(argv, port, node) for node in (0, 1)]
    wait_for_rows(nodes[0], tmp_path / "lost" / "log.csv")
    nodes[1].kill()
    (status, said), _ = map(finish, nodes)
    assert status == 2 and "Traceback" not in said and sentences(said) == [
        "error: a process of this run has ended (the connection to another process was lost); the same command resumes from the last "
        "saved state"]


@pytest.mark.parametrize(("environment", "flags"), [
    ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}, ["--devices", "cpu,cpu"]),
    ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, []),
    ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "apl"}, []),
    ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "apl"}, ["--devices", "cpu:2"]),
    ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "apl", "SLURM_NNODES": "1"}, ["--num_nodes", "2"]),
    ({}, ["--num_nodes", "2"])])
def test_other_processes_than_the_flags_ask_for_are_refused(command, capsys, monkeypatch, environment, flags):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "others were started; use torchrun --nnodes" in refusal(capsys, train.main, command(*flags))


def test_the_batch_is_shared_by_the_devices_of_all_nodes(command, capsys):
    assert "give a multiple of 4" in refusal(capsys, train.main, command("--devices", "cpu,cpu", "--num_nodes", 2))


def workers_of(process: Command) -> list[int]:
    """The processes that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def sentences(stderr: str) -> list[str]:
    """What is said beside the progress bars and Fabric's greeting."""
    return re.findall("error:.*", stderr)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie that waits for its new parent."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """The output folder of an undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    status, said = finish(Command(train.main, command(*LONG, "--out_dir", folder)))
    assert status == 0, said
    return folder


def wait_for_rows(process: Command, log: Path) -> None:
    """Until a run of LONG is under way."""
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 15):
        time.sleep(0.01)


def finish(process: Command) -> tuple[int, str]:
    """Status and stderr, as soon as all processes that can write there have ended."""
    said = process.communicate(timeout=900)[1]
    return process.returncode, said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", ["worker", "main"])
def test_a_killed_process_ends_the_run_which_goes_on_to_the_same_bytes(command, tmp_path, whole, victim):
    argv = command(*LONG, "--out_dir", "killed")
    killed = Command(train.main, argv)
    wait_for_rows(killed, tmp_path / "killed" / "log.csv")
    workers = workers_of(killed)
    assert len(workers) == 2
    os.kill(workers[1] if victim == "worker" else killed.pid, signal.SIGKILL)
    before = time.monotonic()
    status, said = finish(killed)
    while any(map(is_running, workers)) and time.monotonic() - before < 120:  # a process that has closed its streams may not have ended
        time.sleep(0.01)
    assert time.monotonic() - before < 120 and not any(map(is_running, workers)) and "Traceback" not in said, said
    if victim == "worker":
        assert status == 2 and sentences(said) == [
            "error: a process of this run has ended (process 2 of the 2 on this machine was killed by SIGKILL); the same command resumes "
            "from the last saved state"]
    else:
        assert status == -signal.SIGKILL and not sentences(said)
        return  # what it leaves behind is what a killed worker leaves
    status, said = finish(Command(train.main, argv))
    assert status == 0 and "60/60" in said, said
    for name in ("embeddings/apl-60.pt", "log.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("broken", [[1], [0, 1]], ids=["worker", "both"])
def test_a_mistake_ends_both_processes_with_one_sentence(command, inputs, tmp_path, broken):
    seed = next(seed for seed in itertools.count() if [Mixture(seed, 0, 2, 1, mix=0).sample(i).item for i in (0, 1)] == [0, 1])
    shutil.copytree(inputs / "s_reg", tmp_path / "s_reg")
    for process in broken:  # the first process takes the first picture
        (tmp_path / "s_reg" / f"{process + 1}.png").write_bytes(b"\x89PNG cut")
    argv = command(*QUICK, "--devices", "cpu,cpu", "--caption_images", "s_reg", "--mix", 0, "--iterations", 1, "--seed", seed)
    status, said = finish(Command(train.main, argv))
    assert status == 2 and len(sentences(said)) == 1 and "Traceback" not in said, said
    assert any(f"{process + 1}.png cannot be read" in said for process in broken)  # of two that meet one, the first speaks


@pytest.mark.parametrize("first", [0, 1, 2])
def test_one_of_three_processes_with_the_same_mistake_speaks_however_slow_it_is(tmp_path, first):
    code = ("import builtins, os, time, types\n"
            "from ldm.apl.workers import end_with_starter, start_workers\n"
            "from ldm.util import UserError, exit_with_sentence\n"
            "def slow(*words, print=print, **options): time.sleep(1); print(*words, **options)\n"
            "@exit_with_sentence\n"
            "def main():\n"
            "    end_with_starter()\n"
            "    rank = int(os.environ.get('LOCAL_RANK', 0))\n"
            "    is_started = 'LOCAL_RANK' in os.environ\n"
            "    start_workers(types.SimpleNamespace(creates_processes_externally=is_started, main_address='', main_port=0), 3)\n"
            "    open(f'here-{rank}', 'w').close()\n"
            "    while len([name for name in os.listdir() if name.startswith('here-')]) < 3: time.sleep(0.01)\n"
            f"    time.sleep(0.2 * (rank != {first}))\n"
            "    builtins.print = slow\n"
            "    raise UserError(f'the mistake, met by {rank}')\n"
            "main()")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and len(sentences(done.stderr)) == 1 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(("how", "status", "words"), [
    ("os.kill(os.getpid(), signal.SIGKILL)", 2, "process 2 of the 2 on this machine was killed by SIGKILL"),
    ("sys.exit(7)", 2, "process 2 of the 2 on this machine ended with status 7"),
    ("raise RuntimeError('Connection closed by peer')", 2, "the connection to another process was lost"), ("sys.exit(0)", 0, "")])
def test_a_command_says_why_its_processes_have_ended(tmp_path, how, status, words):
    code = ("import os, signal, sys, time, types\n"
            "from ldm.apl.workers import start_workers\n"
            "from ldm.util import exit_with_sentence\n"
            "@exit_with_sentence\n"
            "def main():\n"
            "    is_started = 'LOCAL_RANK' in os.environ\n"
            "    start_workers(types.SimpleNamespace(creates_processes_externally=is_started, main_address='', main_port=0), 2)\n"
            f"    if os.environ['LOCAL_RANK'] == '1': {how}\n"
            f"    time.sleep({600 * bool(status)})\n"
            "main()")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == status and [words in said for said in sentences(done.stderr)] == [True] * bool(status), done.stderr
