"""What is written atomically is there whole or not at all, after errors and kills."""

import shutil
import signal
import subprocess
import sys

import pytest

from headrace.atomic import claim, digests, open_file, open_folder, publish_folder, release, write_file
from headrace.errors import ServiceError
from tests import forked

KILLED = """
import os, signal, sys
from pathlib import Path
from headrace.atomic import open_file, open_folder

def die(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

path = Path(sys.argv[2])
if sys.argv[1] == "file":
    with open_file(path) as file:
        die(file)
else:
    with open_folder(path) as partial, (partial / "content").open("wb") as file:
        die(file)
"""


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def kill_while_writing(kind, path, repo):
    done = forked.run(["-c", KILLED, kind, path], cwd=repo)
    assert done.returncode == -signal.SIGKILL


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "state.json"
    write_file(path, b"old")
    with open_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["state.json"]


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "state.json"
    write_file(path, b"old")

    def write_half():
        with open_file(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["state.json"]


def test_a_kill_leaves_the_old_file_and_the_next_write_succeeds(tmp_path, repo):
    path = tmp_path / "state.json"
    write_file(path, b"old")
    kill_while_writing("file", path, repo)
    assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["state.json"]


def test_a_folder_appears_at_the_end_of_the_block(tmp_path):
    folder = tmp_path / "models" / "v1"
    with open_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "content").write_bytes(b"abc")
        assert not folder.exists()
    assert digests(folder) == {"deep/content": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert names_in(folder.parent) == ["v1"]


def test_an_error_leaves_no_folder(tmp_path):
    def write_half():
        with open_folder(tmp_path / "v1") as partial:
            (partial / "content").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert names_in(tmp_path) == []


def test_a_kill_leaves_no_folder_of_the_name(tmp_path, repo):
    kill_while_writing("folder", tmp_path / "v1", repo)
    assert not (tmp_path / "v1").exists()
    with open_folder(tmp_path / "v1") as partial:
        (partial / "content").write_bytes(b"whole")
    assert (tmp_path / "v1" / "content").read_bytes() == b"whole"


def test_a_second_writer_of_a_folder_is_refused(tmp_path):
    for name in ("v1", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    with pytest.raises(FileExistsError, match="v1 exists; another writer uses its parent"):
        publish_folder(tmp_path / "other", tmp_path / "v1")
    assert (tmp_path / "v1" / "content").read_text() == "v1"


CLAIMS = """
import sys
from pathlib import Path
from headrace.atomic import claim

claim(Path(sys.argv[1]))
print("claimed", flush=True)
input()
"""


def test_a_folder_has_one_process_that_writes_it(tmp_path, repo):
    """Until it ends, however it does; a further claim of the same process changes nothing, and a copy is another."""
    folder = tmp_path / "state"
    assert claim(folder)
    (tmp_path / "link").symlink_to(folder)
    assert not claim(tmp_path / "link")
    other = forked.run(["-c", CLAIMS, folder], cwd=repo)
    assert other.returncode == 1
    assert f"ServiceError: {folder}: another process writes it; wait for its end or stop it" in other.stderr
    release(folder)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", CLAIMS, folder], cwd=repo, **pipes)
    assert holder.stdout.readline() == b"claimed\n"
    with pytest.raises(ServiceError, match="another process writes it"):
        claim(folder)
    assert list(folder.iterdir()) == []
    holder.kill()
    holder.communicate()
    assert claim(folder)
    shutil.rmtree(folder)
    assert claim(folder)
