"""The cluster files have the form that this Ray expects (only starting nodes can prove node configs and commands)."""

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
