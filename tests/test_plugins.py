import pickle
import sys

import pytest

from eqscale import plugins, tasks
from eqscale.errors import InputError
from eqscale.plugins import loaded_files
from eqscale.tasks import UnknownTask, get_task, load_task_files, task_names

SOURCE = """
from eqscale.tasks import Field, Kind, Schema, Task, register
from eqscale.wording import Wording

class Mine(Task):
    words = Wording({name!r}, "a task")
    schema = Schema((Field("x", Kind.POINT),), Field("v", Kind.DIRECTION, at="x"))

register(Mine())
"""


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    """What a test loads is forgotten after it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))


def write(folder, source, name="mine.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(source)
    return str(folder / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", r"task file '.*mine\.py' registers no task: end it with register\(…\)"),
        ("import no_such_module", r"task file '.*mine\.py' can't be imported: No module named 'no_such_module'"),
        ("def f(:", r"task file '.*mine\.py' can't be imported: .*line 1"),
        ("raise ValueError('two\\nlines')", r"can't be imported: two lines"),
        (SOURCE.format(name="rigid"), r"can't be imported: a task named 'rigid' is already registered"),
        (SOURCE.format(name="a") + "register(Mine())", r"a task named 'a' is already registered"),
        (SOURCE.format(name="a").replace("    words =", "    wording ="), r"task Mine declares no words"),
        (SOURCE.format(name="a").replace("Kind.POINT", "'spot'"), r"field 'x': unknown kind 'spot'; choose from"),
    ],
)
def test_unusable_files_are_named_in_one_line(tmp_path, source, message):
    with pytest.raises(InputError, match=message) as caught:
        load_task_files([write(tmp_path, source)])
    assert "\n" not in str(caught.value)
    assert loaded_files("task") == []


@pytest.mark.parametrize("name", ["nowhere.py", ".", "notes.txt"])
def test_what_is_no_python_file_is_named(tmp_path, name):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"task file '.*' is not a readable Python file"):
        load_task_files([str(tmp_path / name)])


def test_two_files_with_one_name_both_load(tmp_path):
    files = [write(tmp_path / name, SOURCE.format(name=name)) for name in ("one", "two")]
    load_task_files(files)
    assert {"one", "two"} <= set(task_names())
    assert type(get_task("one")) is not type(get_task("two"))
    assert loaded_files("task") == files
    assert loaded_files("arm") == []


def test_a_file_is_imported_once(tmp_path):
    file = write(tmp_path, SOURCE.format(name="once"))
    load_task_files([file, file])
    load_task_files([str(tmp_path / ".." / tmp_path.name / "mine.py")])
    assert loaded_files("task") == [file]


def test_a_name_in_two_files_is_refused(tmp_path):
    files = [write(tmp_path / folder, SOURCE.format(name="same")) for folder in ("one", "two")]
    load_task_files(files[:1])
    with pytest.raises(InputError, match=r"two/mine\.py' can't be imported: a task named 'same' is already"):
        load_task_files(files)


def test_what_a_file_defines_can_be_pickled(tmp_path):
    load_task_files([write(tmp_path, SOURCE.format(name="packed"))])
    assert pickle.loads(pickle.dumps(get_task("packed"))).name == "packed"


def test_unknown_tasks_are_answered_with_the_known_ones():
    with pytest.raises(UnknownTask, match=r"unknown task 'chess'; choose from rigid.*--task-file"):
        get_task("chess")


def test_files_of_one_name_in_two_folders_are_two_and_each_imports_its_own_neighbour(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, f"NAME = 'task-{name}'", "neighbour.py")
        source = "from neighbour import NAME\n" + SOURCE.replace("{name!r}", "NAME")
        load_task_files([write(tmp_path / name, source)])
    assert {"task-one", "task-two"} <= set(task_names())
    sys.modules.pop("neighbour")
    assert str(tmp_path / "two") not in sys.path
