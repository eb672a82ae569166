"""The library of C++ kernels: where it can't be built or trusted, one line says so and networks run on ATen."""

import os
import pathlib

import pytest
import torch

from eqscale import native
from eqscale.models.gatr import GATr, GATrConfig

needs_compiler = pytest.mark.skipif(not native.available(torch.zeros(1)), reason="no C++ compiler here")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing loaded yet, and an empty cache folder."""
    monkeypatch.delenv("EQSCALE_NATIVE", raising=False)
    monkeypatch.setenv("EQSCALE_CACHE", str(tmp_path / "cache"))
    native._library.cache_clear()
    yield tmp_path / "cache" / "kernels"
    native._library.cache_clear()


def compiler(folder: pathlib.Path, script: str) -> str:
    path = folder / "c++"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


def copying(folder: pathlib.Path) -> str:
    """A compiler that copies this machine's library: compiled once for all tests."""
    return compiler(folder, f'while [ "$1" != -o ]; do shift; done\ncp {native._build()} "$2"\n')


def assert_runs_on_aten(capsys, reason: str) -> None:
    config = GATrConfig(1, 1, 1, 1, 1, 1, 2, 2, 4, 1, heads=2)
    out, _ = GATr(config)(torch.randn(2, 3, 2, 16), torch.randn(2, 3, 1))
    assert out.isfinite().all()
    assert not native.available(out)
    said = capsys.readouterr().err
    assert said.startswith("eqscale: networks run without the C++ kernels")
    assert said.count("\n") == 1
    assert reason in said


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo warming up >&2; echo error: no such luck >&2; exit 1", "error: no such luck"),
        ("exit 3", "status 3"),
        ("exit 0", "built.so"),
        ('while [ "$1" != -o ]; do shift; done\necho no library > "$2"', ".so: file too short"),
    ],
    ids=["errors", "fails silently", "builds nothing", "builds rubbish"],
)
def test_a_broken_compiler_is_reported_once(fresh, monkeypatch, tmp_path, capsys, script, reason):
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert_runs_on_aten(capsys, reason)


def test_a_machine_without_a_compiler_runs_on_aten(fresh, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_runs_on_aten(capsys, "no C++ compiler: looked for g++, clang++, c++")


def test_a_cache_folder_that_cannot_be_written_is_named(fresh, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 1"))
    fresh.parent.write_text("a file, which not even root can make a folder in")
    assert_runs_on_aten(capsys, str(fresh.parent))


@needs_compiler
def test_a_library_of_another_user_is_never_loaded(fresh, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", compiler(tmp_path, "exit 1"))
    fresh.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: fresh.stat().st_uid + 1)
    assert_runs_on_aten(capsys, f"{fresh} belongs to another user")


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "library"])
def test_a_library_that_others_can_change_is_never_loaded(fresh, monkeypatch, tmp_path, capsys, what):
    with monkeypatch.context() as machine:
        machine.delenv("EQSCALE_CACHE")
        own = copying(tmp_path)
    monkeypatch.setenv("CXX", own)
    library = native._build()
    assert native.available(torch.zeros(1))
    native._library.cache_clear()
    (fresh if what == "folder" else library).chmod(0o777)
    assert_runs_on_aten(capsys, "can be changed by other users")


@needs_compiler
def test_paths_with_spaces_and_percent_signs_work(fresh, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "50 %s off & more"
    folder.mkdir()
    with monkeypatch.context() as machine:
        machine.delenv("EQSCALE_CACHE")
        own = copying(folder)
    monkeypatch.setenv("CXX", own)
    monkeypatch.setenv("EQSCALE_CACHE", str(folder / "100% cache"))
    assert native.available(torch.zeros(1))
    assert native._build().is_relative_to(folder)
    assert capsys.readouterr().err == ""


def test_kernels_can_be_switched_off(fresh, monkeypatch, capsys):
    monkeypatch.setenv("EQSCALE_NATIVE", "0")
    assert not native.available(torch.zeros(1))
    assert capsys.readouterr().err == ""


@needs_compiler
def test_a_compiler_may_be_several_words(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_FLAGS", tuple(flag for flag in native._FLAGS if flag != "-O3"))  # which takes 15 s
    monkeypatch.setenv("CXX", f"env -u NOTHING {copying(tmp_path)}")
    assert native.load()
