"""``ray up cluster.yaml`` as shipped, on a simulated EC2: what it launches, and who can reach it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.autoscaler._private import commands

from tests.jobs import ROOT

boto3 = pytest.importorskip("boto3", reason="needs boto3: pip install -e '.[dev,cluster]'")
moto = pytest.importorskip("moto", reason="needs moto: pip install -e '.[dev,cluster]'")

CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """What ``ray up`` would do over SSH on the head that it has launched; EC2 goes on being simulated."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0" * 64)
    (home / ".ssh").mkdir()
    seen = {}

    def updater(**arguments):
        seen.update(arguments)
        return SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=0)

    with pytest.MonkeyPatch.context() as patch, moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        patch.setenv("HOME", str(home))
        patch.chdir(home)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "simulated")
        patch.setattr(commands, "NodeUpdaterThread", updater)
        commands.create_or_update_cluster(
            str(ROOT / "cluster.yaml"), None, None, no_restart=False, restart_only=False, yes=True, no_config_cache=True
        )
        config = "~/ray_bootstrap_config.yaml"
        shutil.copy(seen["file_mounts"][config], home / config.removeprefix("~/"))
        yield SimpleNamespace(**seen)


def ec2():
    return boto3.resource("ec2", region_name=CONFIG["provider"]["region"])


def who_may_reach(port):
    """Addresses and groups that the cluster's security group lets in at a port."""
    (instance,) = ec2().instances.all()
    (group,) = instance.security_groups
    rules = ec2().SecurityGroup(group["GroupId"]).ip_permissions
    found = [rule for rule in rules if rule["IpProtocol"] == "-1" or rule["FromPort"] <= port <= rule["ToPort"]]
    addresses = {part["CidrIp"] for rule in found for part in rule["IpRanges"]}
    return addresses | {part["GroupId"] for rule in found for part in rule["UserIdGroupPairs"]}, group["GroupId"]


def test_the_head_is_launched_as_the_file_says(setup):
    (instance,) = ec2().instances.all()
    head = CONFIG["available_node_types"]["head"]["node_config"]
    assert (instance.image_id, instance.instance_type) == (head["ImageId"], head["InstanceType"])
    assert instance.placement["AvailabilityZone"] == CONFIG["provider"]["availability_zone"]
    assert instance.state["Name"] == "running"
    assert instance.iam_instance_profile


def test_workers_have_the_heads_image_and_group(setup):
    ours = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())["available_node_types"]
    (instance,) = ec2().instances.all()
    groups = [group["GroupId"] for group in instance.security_groups]
    assert set(ours) == {"head", "cpu", "gpu"}
    assert all(kind["node_config"]["SecurityGroupIds"] == groups for kind in ours.values())


def test_the_heads_setup_leaves_ssh_to_the_address_it_is_run_from_alone(setup, monkeypatch):
    monkeypatch.setenv("SSH_CLIENT", "203.0.113.7 50000 22")
    reached, group = who_may_reach(22)
    assert reached == {"0.0.0.0/0", group}  # Ray's doing
    (command,) = [command for command in setup.setup_commands if "revoke_ingress" in command]
    begin, program, end = command.split("'")
    assert (begin, end.strip()) == ("~/venv/bin/python -c ", "")
    exec(program, {})
    assert who_may_reach(22)[0] == {"203.0.113.7/32", group}
    exec(program, {})  # each `ray up` does it again
    assert who_may_reach(22)[0] == {"203.0.113.7/32", group}
    assert who_may_reach(6379)[0] == {group}
