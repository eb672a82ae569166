"""The cluster files have the form that this Ray expects (only starting nodes can prove node configs and commands)."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILES = ["cluster.yaml", "cluster-local.yaml"]


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_the_schema_is_rays(name):
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_key_would_be_noticed(name):
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(load(name) | {"max_worker": 3}))


@pytest.mark.parametrize("name", FILES)
def test_every_ray_command_has_a_full_path_and_every_node_the_token(name):
    config = load(name)
    assert "~/.ray/auth_token" in config["file_mounts"]
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        start = [command for command in commands if "ray start" in command]
        assert len(start) == 1
        assert start[0].startswith("RAY_AUTH_MODE=token ")
        assert all("~/venv/bin/ray " in command for command in commands if "ray st" in command)


def test_workers_come_and_go_and_leave_the_head_alone():
    config = load("cluster.yaml")
    kinds = config["available_node_types"]
    assert kinds.pop(config["head_node_type"])["resources"]["CPU"] == 0
    assert config["idle_timeout_minutes"] <= 15
    assert config["max_workers"] >= sum(kind["max_workers"] for kind in kinds.values())
    for kind in kinds.values():
        assert kind["min_workers"] == 0
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert kinds["gpu"]["resources"]["GPU"] >= 1


def test_the_cluster_is_open_to_nobody_else():
    config = load("cluster.yaml")
    assert any("revoke_ingress" in command for command in config["head_setup_commands"])  # tests/test_cluster_aws.py
    (export,) = [command for command in config["head_setup_commands"] if "/etc/exports" in command]
    assert "/shared *" not in export
    assert ",root_squash)" in export
    for name in FILES:
        assert "chmod 600 ~/.ray/auth_token" in load(name)["setup_commands"]


def test_nfs_is_exported_to_the_subnet_of_the_head(tmp_path):
    (export,) = [command for command in load("cluster.yaml")["head_setup_commands"] if "/etc/exports" in command]
    routes = (
        "172.17.0.0/16 dev docker0 proto kernel src 172.17.0.1\n172.31.16.0/20 dev ens5 proto kernel src 172.31.20.1"
    )
    (tmp_path / "ip").write_text(f"#!/bin/sh\necho '{routes}'\n")
    (tmp_path / "ip").chmod(0o755)
    command = export.partition("| sudo tee")[0]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert ended.stdout == "/shared 172.31.16.0/20(rw,sync,no_subtree_check,root_squash)\n"
