"""docker-compose.yml agrees with the settings and the project's topics."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from headrace.cli import scaffold
from headrace.schemas import spec_of
from headrace.settings import Settings
from schemas.retail import Engagement, Impression

OURS = ("materialize", "train", "serve")


@pytest.fixture
def compose(repo: Path) -> dict:
    return yaml.safe_load((repo / "docker-compose.yml").read_text())


def test_every_service_has_a_health_check(compose):
    """Every service of the file can be asked whether it is well."""
    assert {name for name, service in compose["services"].items() if "healthcheck" not in service} == set()


def test_every_variable_is_a_setting(compose):
    """A misspelt variable would be ignored silently: each is a field of Settings."""
    for name in OURS:
        for variable in compose["services"][name]["environment"]:
            assert variable.removeprefix("HEADRACE_").lower() in Settings.model_fields, variable


def test_settings_read_the_environment_of_each_service(compose, monkeypatch):
    """The values of the file are valid, and addresses name services and ports of the file."""
    services = compose["services"]
    for name in OURS:
        environment = services[name]["environment"]
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, str(value))
            settings = Settings(_env_file=None)
        host, port = settings.brokers.split(":")
        assert f"INSIDE://{host}:{port}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert settings.redis_url == "redis://redis:6379/0"
        assert "redis" in services


def test_topics_are_the_projects(compose):
    """The topics job creates what the events and the dead letters need."""
    script = compose["services"]["topics"]["command"][-1]
    topics = script.split("for topic in ")[1].split(";")[0].split()
    wanted = {spec_of(Engagement).topic, spec_of(Impression).topic, Settings(_env_file=None).dead_letter_topic}
    assert set(topics) == wanted


def test_published_ports_are_local_and_serve_matches(compose):
    """No service is open to the network by default, and Serve's port is the one it is told."""
    services = compose["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert services["serve"]["ports"] == [f"127.0.0.1:8000:{services['serve']['environment']['HEADRACE_PORT']}"]


def test_redis_keeps_an_append_only_file(compose):
    """Records survive a restart of Redis, and none is evicted silently."""
    command = compose["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_image_copies_what_the_wheel_holds(repo):
    """The build inside the image finds every folder and file that the distribution includes."""
    tool = tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = re.findall(r"^COPY (.*) \S+$", (repo / "Dockerfile").read_text(), re.MULTILINE)
    assert {*tool["force-include"], *tool["packages"], "pyproject.toml", "constraints.txt"} <= set(
        " ".join(copied).split()
    )


def test_the_cpu_build_of_torch_is_one_variable(repo, compose):
    """`TORCH_INDEX` reaches pip in the images of this checkout and of a new project, and in `make setup`."""
    for text in ((repo / "Dockerfile").read_text(), scaffold._TEMPLATE_DOCKERFILE):
        assert (
            'ARG TORCH_INDEX=\nRUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}' in text
        )
    assert compose["services"]["train"]["build"]["args"] == {"TORCH_INDEX": "${TORCH_INDEX:-}"}
    for url, words in (("file:///wheels", "--extra-index-url file:///wheels"), ("", "--disable-pip-version-check -c")):
        command = ["make", "-n", "-W", "pyproject.toml", "setup", "PYTHON=python3", f"TORCH_INDEX={url}"]
        said = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True).stdout
        assert words in " ".join(said.split())


def test_docker_compose_accepts_the_file(repo):
    """Where Docker's compose is, it says that the file is valid; elsewhere the tests above stand alone."""
    docker = shutil.which("docker")
    has_compose = docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    if has_compose:
        done = subprocess.run([docker, "compose", "config", "--quiet"], cwd=repo, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
