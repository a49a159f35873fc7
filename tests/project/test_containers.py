"""The compose file and the workflows say what their readers understand, and leave nothing out."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import yaml

from kvstore_cli.config.options import options_of
from kvstore_daemon.storage.etcd_store.connection.address import parse_address

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*"))
COMPOSE = ROOT / "docker-compose.yaml"
OVERRIDE = ROOT / "docker-compose.override.yaml"


def check_schema(file: Path, *schemas: str) -> None:
    """The file has to fit to schemas that check-jsonschema has with it."""
    for schema in schemas:
        command = [sys.executable, "-m", "check_jsonschema", f"--builtin-schema={schema}", file]
        done = run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def parsed(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_are_what_their_schema_says_and_every_job_has_an_end(workflow: Path) -> None:
    check_schema(workflow, "vendor.github-workflows", "custom.github-workflows-require-timeout")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_may_read_unless_a_job_says_more_and_name_the_version_of_actions(workflow: Path) -> None:
    assert parsed(workflow)["permissions"] == {"contents": "read"}
    for action in re.findall(r"uses: (\S+)", workflow.read_text()):
        assert re.fullmatch(r"[a-z-]+/[a-z-]+@v\d+|\./\.github/workflows/[a-z]+\.yaml", action)


def test_nothing_is_published_before_the_checks_have_passed() -> None:
    for name in ("main", "release"):
        jobs = parsed(ROOT / f".github/workflows/{name}.yaml")["jobs"]
        assert jobs["checks"]["uses"] == "./.github/workflows/checks.yaml"
        for job in jobs.values():
            if "write" in job.get("permissions", {}).values():
                assert "checks" in all_needs(jobs, job)


def all_needs(jobs: dict[str, Any], job: dict[str, Any]) -> set[str]:
    """The names of the jobs that have to pass before ``job`` begins."""
    needs = job.get("needs", [])
    names = {needs} if isinstance(needs, str) else set(needs)
    return names.union(*(all_needs(jobs, jobs[name]) for name in names))


def test_the_compose_file_is_what_its_schema_says() -> None:
    check_schema(COMPOSE, "vendor.compose-spec")


@pytest.mark.parametrize("part", ["daemon", "http"])
def test_the_compose_file_takes_every_option_of_both_parts(part: str) -> None:
    given = parsed(COMPOSE)["services"][part]["environment"]
    # the volume is the data
    assert set(given) == {row.variable for row in options_of(part)} - {"KVSTORE_DATA"}
    fixed = {"KVSTORE_REQUESTS", "KVSTORE_CHANGES", "KVSTORE_ACCESS"}
    if part == "http":
        fixed |= {"KVSTORE_HTTP", "KVSTORE_FACADE_KEY_FILE", "KVSTORE_PLAIN_HTTP"}
    assert {name for name, value in given.items() if value is not None} == fixed


def test_the_compose_file_and_the_image_let_nobody_in_without_a_key_unless_told_otherwise() -> None:
    for part in parsed(COMPOSE)["services"].values():
        assert part["environment"]["KVSTORE_ACCESS"] == "${KVSTORE_ACCESS:-required}"
        assert part["environment"]["KVSTORE_ALLOW_ANONYMOUS"] is None
    image = (ROOT / "Dockerfile").read_text()
    assert "KVSTORE_ACCESS=required" in image
    assert "KVSTORE_ALLOW_ANONYMOUS" not in image


def test_the_facade_of_the_compose_file_only_reads_the_volume() -> None:
    """Of it it needs the key that the daemon has made."""
    services = parsed(COMPOSE)["services"]
    assert services["daemon"]["volumes"] == ["store:/data"]
    assert services["http"]["volumes"] == ["store:/data:ro"]


def test_the_compose_file_alone_starts_an_image_and_builds_none() -> None:
    services = parsed(COMPOSE)["services"].values()
    assert all(re.fullmatch(r"\$\{KVSTORE_IMAGE:-\S+:latest\}", part["image"]) for part in services)
    mounted = [volume for part in services for volume in part["volumes"]]
    assert {volume.partition(":")[0] for volume in mounted} == set(parsed(COMPOSE)["volumes"])
    assert not [part for part in services if {"build", "env_file", "extends"} & set(part)]


def test_a_checkout_builds_the_image_of_both_parts() -> None:
    check_schema(OVERRIDE, "vendor.compose-spec")
    built = {"build": ".", "pull_policy": "build"}
    assert parsed(OVERRIDE)["services"] == dict.fromkeys(parsed(COMPOSE)["services"], built)


def test_the_compose_file_of_a_release_starts_its_own_image() -> None:
    """Whatever the default was: a fork has nothing to change."""
    steps = parsed(ROOT / ".github/workflows/release.yaml")["jobs"]["release"]["steps"]
    script = next(step["run"] for step in steps if "docker-compose.yaml" in step.get("run", ""))
    command = next(line for line in script.splitlines() if "docker-compose.yaml" in line)
    done = run(
        ["sh", "-euc", command.replace("dist/docker-compose.yaml", "/dev/stdout")],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "image": "registry.example/fork/kv:1.2.3"},
        capture_output=True,
        text=True,
        check=True,
    )
    services = yaml.safe_load(done.stdout)["services"]
    assert {part["image"] for part in services.values()} == {
        "${KVSTORE_IMAGE:-registry.example/fork/kv:1.2.3}"
    }


def test_the_compose_file_publishes_on_loopback_unless_told_otherwise() -> None:
    services = parsed(COMPOSE)["services"]
    assert services["http"]["ports"] == ["${KVSTORE_HTTP:-127.0.0.1:5000}:5000"]
    assert "ports" not in services["daemon"]


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────

CLUSTER = ROOT / "deploy/compose-cluster.yaml"


def cluster_services() -> dict[str, dict[str, Any]]:
    """The services of the cluster's file, with what they inherit."""
    services: dict[str, dict[str, Any]] = parsed(CLUSTER)["services"]
    return services


def test_the_clusters_file_is_what_its_schema_says() -> None:
    check_schema(CLUSTER, "vendor.compose-spec")


def test_the_daemons_of_the_cluster_know_all_members_and_the_members_each_other() -> None:
    services = cluster_services()
    members = {name for name in services if name.startswith("etcd-")}
    assert len(members) == 3
    for name in members:
        given = services[name]["environment"]
        assert given["ETCD_NAME"] == name
        assert given["ETCD_ADVERTISE_CLIENT_URLS"] == f"http://{name}:2379"
        assert given["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == f"http://{name}:2380"
        peers = {f"{each}=http://{each}:2380" for each in members}
        assert set(given["ETCD_INITIAL_CLUSTER"].split(",")) == peers
    daemons = [services["daemon-a"], services["daemon-b"]]
    for daemon in daemons:
        address = parse_address(daemon["environment"]["KVSTORE_ENGINE"])
        assert set(address.endpoints) == {f"{name}:2379" for name in members}
    assert len({daemon["environment"]["KVSTORE_ENGINE"] for daemon in daemons}) == 1


def test_etcd_of_the_cluster_is_reached_by_the_daemons_alone_and_one_port_is_published() -> None:
    services = cluster_services()
    assert parsed(CLUSTER)["networks"]["store"] == {"internal": True}
    on_it = {name for name, service in services.items() if "store" in service["networks"]}
    assert on_it == {"etcd-1", "etcd-2", "etcd-3", "daemon-a", "daemon-b"}
    assert {name for name, service in services.items() if "ports" in service} == {"nginx"}
    assert services["nginx"]["ports"] == ["${KVSTORE_HTTP:-127.0.0.1:5000}:80"]


def test_every_option_of_the_cluster_exists_and_access_is_required() -> None:
    for name, part in (
        ("daemon-a", "daemon"),
        ("daemon-b", "daemon"),
        ("http-a", "http"),
        ("http-b", "http"),
    ):
        given = cluster_services()[name]["environment"]
        assert set(given) <= {row.variable for row in options_of(part)}
        assert given["KVSTORE_ACCESS"] == "required"


def test_one_daemon_of_the_cluster_keeps_the_identities_and_the_others_only_read_them() -> None:
    services = cluster_services()
    assert "KVSTORE_ACCESS_FILE" not in services["daemon-a"]["environment"]
    assert services["daemon-b"]["environment"]["KVSTORE_ACCESS_FILE"] == "/first/access.json"
    assert "a:/first:ro" in services["daemon-b"]["volumes"]
    for name in ("http-a", "http-b"):
        assert all(volume.endswith(":ro") for volume in services[name]["volumes"])
