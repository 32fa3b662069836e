"""Stages as forks of a server: what they do is what processes of their own do."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import ROOT

from replication.base import warm
from replication.base.workers import run_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch may not be forked there")

STAGE = """
import os, signal, sys, time
from pathlib import Path

with Path(os.environ["IMPORTS"]).open("a") as file:
    file.write("imported\\n")


def main():
    kind = sys.argv[1]
    if kind == "say":
        print(os.getcwd(), os.environ["WORD"], sys.argv[1:], sys.stdin.read())
        print("error", file=sys.stderr)
        sys.exit(3)
    if kind == "fail":
        raise ValueError("a fault")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wait":
        child = os.fork()
        try:
            Path(f"ready-{os.getpid()}").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            Path(f"interrupted-{os.getpid()}").touch()
            if child:
                os.waitpid(child, 0)
                sys.exit(130)
            os._exit(0)


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of one stage, in which nothing takes long to import."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("base", "stages"):
        (folder / "replication" / name).mkdir(parents=True)
        (folder / "replication" / name / "__init__.py").touch()
    for name in ("warm.py", "workers.py"):
        shutil.copy(ROOT / "replication" / "base" / name, folder / "replication" / "base")
    (folder / "replication" / "stages" / "do.py").write_text(STAGE)
    (folder / "torch.py").write_text("def set_num_threads(_): pass\n")
    for name in ("transformers", "lmms_eval", "datasets", "matplotlib", "compressed_tensors"):
        (folder / f"{name}.py").write_text("raise ImportError\n")
    return folder


@pytest.fixture(scope="module")
def environment(repository):
    imports = str(repository / "imports")
    return {
        **os.environ,
        "PYTHONPATH": str(repository),
        "IMPORTS": imports,
        "WORD": "of the server",
    }


@pytest.fixture(scope="module")
def served(repository, environment):
    """The environment in which `python` is the server's client."""
    with warm.server(repository, environment) as variables:
        yield environment | variables


def start(words, environment, folder, **options):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["python", *words],
        env={**environment, "WORD": "client"},
        cwd=folder,
        stdout=pipe,
        stderr=pipe,
        text=True,
        **options,
    )


def done(words, environment, folder, given=""):
    process = start(words, environment, folder, stdin=subprocess.PIPE)
    said, error = process.communicate(given, timeout=60)
    return process.returncode, said, error


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen")


def plain(environment):
    """The environment of a stage that is typed by hand."""
    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def stage(kind):
    return ["-m", "replication.stages.do", kind]


def imports(environment):
    return len(Path(environment["IMPORTS"]).read_text().splitlines())


def test_a_stage_gets_and_gives_what_a_process_does(served, environment, tmp_path):
    first = done(stage("say"), served, tmp_path, "given")
    before = imports(environment)
    assert done(stage("say"), served, tmp_path, "given") == first
    assert imports(environment) == before
    assert done(stage("say"), plain(environment), tmp_path, "given") == first
    assert imports(environment) == before + 1
    assert first == (3, f"{tmp_path} client ['say'] given\n", "error\n")


def test_a_fault_is_a_traceback_and_code_1(served, tmp_path):
    code, said, error = done(stage("fail"), served, tmp_path)
    assert (code, said) == (1, "")
    assert error.startswith("Traceback") and error.endswith("ValueError: a fault\n")


def test_a_stage_that_is_killed_ends_its_client_alike(served, tmp_path):
    assert done(stage("die"), served, tmp_path)[0] == -signal.SIGKILL


def alive(folder):
    numbers = [int(path.name.partition("-")[2]) for path in folder.glob("ready-*")]
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="the tests run in the background, where a shell has Ctrl-C ignored",
)
def test_ctrl_c_reaches_a_stage_and_its_children(served, tmp_path):
    process = start(stage("wait"), served, tmp_path)
    until(lambda: len(alive(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert len(list(tmp_path.glob("interrupted-*"))) == 2
    until(lambda: not alive(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_is_ended_ends_its_stage(number, served, tmp_path):
    process = start(stage("wait"), served, tmp_path)
    until(lambda: len(alive(tmp_path)) == 2)
    process.send_signal(number)
    assert process.wait(60) == -number
    until(lambda: not alive(tmp_path))


def test_what_is_no_stage_is_run_by_python(served, tmp_path):
    words = ["-c", f"import os; print({warm.ADDRESS!r} in os.environ)"]
    assert done(words, served, tmp_path) == (0, "False\n", "")


@pytest.mark.slow
def test_a_stage_of_other_code_or_without_a_server_is_a_process(repository, environment, tmp_path):
    own = tmp_path / "repository"  # the other tests' server goes on with its own files
    shutil.copytree(repository, own)
    environment = environment | {"PYTHONPATH": str(own)}
    with warm.server(own, environment) as variables:
        assert done(stage("say"), environment | variables, tmp_path)[0] == 3
        other = STAGE.replace("sys.exit(3)", "sys.exit(4)")
        (own / "replication" / "stages" / "do.py").write_text(other)
        assert done(stage("say"), environment | variables, tmp_path)[0] == 4
    code, _, error = done(stage("say"), plain(environment) | {warm.ADDRESS: "gone"}, tmp_path)
    assert (code, error) == (4, "error\n")


def test_jobs_are_forks_too(served, monkeypatch):
    monkeypatch.setattr(warm, "_server", served[warm.ADDRESS])
    monkeypatch.setattr("replication.base.workers.cores", lambda: 2)
    assert run_all(pow, [(2, 3), (3, 2), (5, 1)]) == [8, 9, 5]
    assert len(set(run_all(os.getpid, [(), ()]))) == 2
    started = time.monotonic()
    with pytest.raises(TypeError):
        run_all(time.sleep, [(60,), ("long",)])
    assert time.monotonic() - started < 30
    with pytest.raises(RuntimeError, match=r"without a result \(exit code -9\)"):
        run_all(os.kill, [(0, 0), (0, signal.SIGKILL)])  # 0: of the job's own group
