"""When a sentence was written, by git."""

import subprocess

import pytest

from replication.paper.history import History, Written, precedes, world_commit


def git(root, *arguments):
    identity = ["-c", "user.name=one", "-c", "user.email=one@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(root, message, date):
    git(root, "add", "-A")
    environment = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date, "PATH": "/usr/bin:/bin"}
    command = ["git", "-c", "user.name=one", "-c", "user.email=one@example.org", "commit", "-qm"]
    subprocess.run([*command, message], cwd=root, check=True, env=environment)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    """A file whose first sentence is older than its second, moved in between."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "core.abbrev", "12")  # as in a clone of many objects
    (tmp_path / "old.yaml").write_text('a: "it \\"holds\\""\nmore: 1\nyet: 2\nand: 3\n')
    first = commit(tmp_path, "one", "2026-01-02T00:00:00")
    git(tmp_path, "mv", "old.yaml", "new.yaml")
    middle = commit(tmp_path, "moved", "2026-01-03T00:00:00")
    text = (tmp_path / "new.yaml").read_text()
    (tmp_path / "new.yaml").write_text(f"{text}b: later\n")
    last = commit(tmp_path, "two", "2026-01-04T00:00:00")
    return tmp_path, first, middle, last


def test_a_sentence_is_as_old_as_the_first_commit_that_has_it(repository):
    root, first, middle, last = repository
    history = History(root / "new.yaml", root)
    old, new = history.first('it "holds"'), history.first("later")
    assert (old.date, new.date) == ("2026-01-02", "2026-01-04")
    assert first.startswith(old.commit)
    assert len(old.commit) == 7
    assert last.startswith(new.commit)
    assert history.first("never written") is None
    assert precedes(old, [middle, last], root) is True
    assert precedes(new, [middle, last], root) is False  # one result is older than the sentence
    assert precedes(new, ["0" * 40], root) is None
    assert precedes(new, [], root) is None


def test_the_commit_of_the_world_is_the_one_that_the_calibration_names(repository):
    root, first, *_ = repository
    path = root / "calibration.yaml"
    assert world_commit(path, root) is None
    path.write_text("world_commit: null\n")
    assert world_commit(path, root) is None
    path.write_text(f"world_commit: {first}\n")
    found = world_commit(path, root)
    assert (first.startswith(found.commit), found.date) == (True, "2026-01-02")
    path.write_text(f"world_commit: '{'1' * 40}'\n")
    assert world_commit(path, root) == Written("1" * 40, "date not recorded")


def test_in_a_shallow_clone_nothing_is_known(repository, tmp_path_factory):
    root, *_ = repository
    clone = tmp_path_factory.mktemp("shallow")
    git(clone, "clone", "-q", "--depth", "1", f"file://{root}", "clone")
    assert History(clone / "clone" / "new.yaml", clone / "clone").first("later") is None


def test_without_git_nothing_is_known(tmp_path):
    (tmp_path / "a.yaml").write_text("a: b\n")
    assert History(tmp_path / "a.yaml", tmp_path).first("b") is None
