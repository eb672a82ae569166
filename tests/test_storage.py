import types
import urllib.request

import pyarrow
import pytest
import torch

from eqscale.errors import InputError
from eqscale.storage import (
    RemotePath,
    check_writable,
    matching,
    open_place,
    remove_folder,
    subfolders,
    write_atomically,
)
from eqscale.study.lease import only_driver
from eqscale.study.ledger import Ledger
from eqscale.training import checkpoint
from tests.study.test_ledger import make_record, make_spec


@pytest.fixture(scope="module")
def s3():
    """URI of a folder in a bucket of a simulated S3, with the query that leads there."""
    server = pytest.importorskip("moto.server", reason="needs moto[server], of the extra dev")
    simulated = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    simulated.start()
    host, port = simulated.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT"), timeout=30)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            patch.setenv(name, "true")
        yield f"s3://bucket/{{}}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    simulated.stop()


@pytest.fixture(params=["path", "file", "memory", "local", "s3"])
def place(request, tmp_path):
    """The same empty place on this machine, on two filesystems of fsspec's and in a bucket."""
    uris = {"path": "{}", "file": "file://{}", "memory": "memory://{}", "local": "local://{}"}
    if request.param == "s3":
        place = open_place(request.getfixturevalue("s3").format(f"studies/{tmp_path.name}"))
    else:
        place = open_place(uris[request.param].format(tmp_path / "a place"))
    yield place
    remove_folder(place)


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(InputError, match="can't be written: Bucket 'nowhere' not found") as caught:
        check_writable(open_place(s3.replace("bucket", "nowhere").format("studies")), "study folder")
    assert "\n" not in str(caught.value)


def test_files_are_written_found_replaced_and_deleted(place):
    assert list(place.glob("*")) == []
    for name in ("b.json", "a.json", "c.txt"):
        write_atomically(place / "sub" / name, b"first")
    write_atomically(place / "sub" / "a.json", b"second")
    assert [path.name for path in matching(place / "sub", "*.json")] == ["a.json", "b.json"]
    file = place / "sub" / "a.json"
    assert (file.read_bytes(), file.stem) == (b"second", "a")
    assert file.exists()
    assert file.is_file()
    assert not (place / "sub").is_file()
    assert subfolders(place) == ["sub"]
    assert subfolders(place / "sub") == subfolders(place / "nowhere") == []
    assert file.parent.name == "sub"
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    remove_folder(place / "sub")
    assert not (place / "sub" / "b.json").exists()
    remove_folder(place / "sub")


def test_a_ledger_is_the_same_anywhere(place):
    ledger, record, failed = Ledger(place / "ledger"), make_record(make_spec()), make_spec(seed=1)
    assert ledger.records() == []
    assert ledger.failures() == {}
    ledger.write(record)
    ledger.write_failure(failed, "boom")
    assert record.run_id in ledger
    assert failed.run_id not in ledger
    assert ledger.records() == [record]
    assert ledger.failures() == {failed.run_id: "boom"}


def test_the_newest_whole_checkpoint_is_found_anywhere(place):
    assert checkpoint.load_newest(place) is None
    for step in (10, 20, 30):
        checkpoint.save(place, step, {"x": torch.tensor([step])})
    newest = place / "step-000000030.pt"
    newest.write_bytes(newest.read_bytes()[:-3])
    assert checkpoint.load_newest(place)["x"].item() == 20
    assert len(list(place.glob("*"))) == 2


def test_a_place_can_be_probed(place):
    check_writable(place, "study folder")
    assert list(place.glob("*")) == []
    assert list(place.glob(".*")) == []


@pytest.mark.parametrize(("text", "reason"), [("nonsense://x/y", "nonsense"), ("abfs://", "abfs")])
def test_a_uri_that_cannot_be_opened_is_one_line(text, reason):
    with pytest.raises(InputError, match=reason) as caught:
        check_writable(open_place(text), "study folder")
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(InputError, match="study folder '/proc/nowhere' can't be written"):
        check_writable(open_place("/proc/nowhere"), "study folder")
    with pytest.raises(InputError, match="study folder 'local:///proc/nowhere' can't be written"):
        check_writable(open_place("local:///proc/nowhere"), "study folder")


@pytest.mark.parametrize(
    "error", [OSError("ACCESS_DENIED: no\nrequest 7"), pyarrow.ArrowException(), OSError(5, "gone")]
)
def test_a_storage_that_does_not_answer_is_one_line_and_an_oserror_for_whoever_can_wait(error):
    def refuse(what):
        raise error

    place = RemotePath(types.SimpleNamespace(get_file_info=refuse), "bucket/a", "s3://bucket/a")
    for ask in (place.exists, place.is_file, place.listing):
        with pytest.raises(InputError, match=r"^storage s3://bucket/a doesn't answer: [^\n]+$") as caught:
            ask()
        assert isinstance(caught.value, OSError)


def test_query_parameters_stay_at_the_end():
    place = RemotePath(None, "bucket/a", "s3://bucket/a?region=eu-west-1")
    assert str(place / "b" / "c") == "s3://bucket/a/b/c?region=eu-west-1"
    assert str((place / "b").parent) == str(place)


def nothing(seconds):
    """Instead of waiting."""


def test_one_driver_at_a_time_and_the_next_when_it_is_gone(place):
    place.mkdir(parents=True, exist_ok=True)
    with only_driver(place, nothing):
        pass
    with only_driver(place, nothing):
        pass


def test_a_second_driver_on_this_machine_is_refused(tmp_path):
    refused = pytest.raises(InputError, match="already being run by process")
    with only_driver(tmp_path), refused, only_driver(tmp_path):
        pass


def test_a_lease_with_a_heartbeat_is_respected_and_a_dead_one_taken_over():
    study = open_place("memory://lease/study")
    record = study / "driver.json"
    write_atomically(record, b'{"driver": "process 7 on elsewhere", "key": "k", "beat": 3}')

    def beats(seconds):
        write_atomically(record, b'{"driver": "process 7 on elsewhere", "key": "k", "beat": 4}')

    message = "'study' is already being run by process 7 on elsewhere"
    with pytest.raises(InputError, match=message), only_driver(study, beats):
        pass
    with only_driver(study, nothing):
        assert b"elsewhere" not in record.read_bytes()
    assert not record.exists()


def test_of_two_drivers_that_start_together_one_goes_on():
    study = open_place("memory://race/study")
    (study).mkdir()

    def the_other_writes_too(seconds):
        write_atomically(study / "driver.json", b'{"driver": "process 8", "key": "other", "beat": 0}')

    refused = pytest.raises(InputError, match="already being run by process 8")
    with refused, only_driver(study, the_other_writes_too):
        pass


@pytest.mark.parametrize(
    "uri", ["s3://KEY:hidden@bucket/a", "abfs://x/y?client_secret=hidden", "sftp://me:hidden@host/a"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="come from the environment") as caught:
        open_place(uri)
    assert "hidden" not in str(caught.value)
    assert "KEY" not in str(caught.value)
