"""docker-compose.yml agrees with the settings and the project's topics."""

import importlib.util
import json
import os
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

OURS = ("materialize", "train", "archive", "serve")
NEEDED = {"REDIS_PASSWORD": "secret", "TORCH_INDEX": "file:///wheels"}
"""Variables that the file asks for."""


@pytest.fixture
def compose(repo: Path) -> dict:
    """The file with the variables put in, as Compose does it."""
    text = (repo / "docker-compose.yml").read_text()
    asked = dict(re.findall(r"\$\{(\w+):\?([^}]+)\}", text))
    assert set(asked) == set(NEEDED)
    put_in = re.sub(r"(?<!\$)\$\{(\w+)(:\?[^}]+)?\}", lambda match: NEEDED[match[1]], text)
    return yaml.safe_load(put_in)


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
        assert settings.redis_url == "redis://:secret@redis:6379/0"
        assert "redis" in services
        assert (settings.host, settings.metrics_port) == ("0.0.0.0", 9400)


def test_topics_are_the_projects(compose):
    """The topics job creates what the events and the dead letters need."""
    script = compose["services"]["topics"]["command"][-1].replace("$$", "$")
    assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0
    days = dict(each.split(":") for each in script.split("for topic in ")[1].split(";")[0].split())
    assert all(int(count) >= 1 for count in days.values())
    topics = list(days)
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
    assert command[command.index("--requirepass") + 1] == "secret"


def test_every_service_has_a_memory_limit(compose):
    assert {name for name, service in compose["services"].items() if "mem_limit" not in service} == set()


def test_prometheus_asks_every_role(repo, compose):
    """At the port that each is told; what is mounted lies in the folder that a new project gets."""
    scrape = yaml.safe_load((repo / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    environments = {name: compose["services"][name]["environment"] for name in OURS}
    ports = {name: of["HEADRACE_METRICS_PORT"] for name, of in environments.items()}
    ports["serve"] = environments["serve"]["HEADRACE_PORT"]
    assert set(scrape["static_configs"][0]["targets"]) == {f"{name}:{port}" for name, port in ports.items()}
    mounts = [mount for name in ("prometheus", "grafana") for mount in compose["services"][name]["volumes"]]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) == 4
    assert all((repo / file).is_file() and file.startswith("./monitoring/") for file in files)


def test_each_panel_names_metrics_that_are_exported(repo):
    """With labels that they have: a misspelt name would be an empty panel."""
    spec = importlib.util.spec_from_file_location("generate", repo / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    labels_of = {"up": set(), "process_resident_memory_bytes": set()}
    for metric in generate.metrics():
        labels = set(re.findall(r"\w+", metric.labels))
        if metric.kind == "histogram":
            labels_of |= {f"{metric.name}_{part}": labels | {"le"} for part in ("bucket", "sum", "count")}
        else:
            labels_of[metric.name] = labels
    panels = json.loads((repo / "monitoring" / "grafana" / "headrace.json").read_text())["panels"]
    targets = [target for panel in panels for target in panel["targets"]]
    assert len(targets) >= 15
    for target in targets:
        names = re.findall(r"\b(?:headrace|process)_\w+|\bup\b", target["expr"])
        assert names
        assert set(names) <= set(labels_of), target["expr"]
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert (grouped | shown) - {"role"} <= set().union(*(labels_of[name] for name in names)), target
        assert not grouped or shown <= grouped, target


def test_the_image_runs_as_a_user(repo):
    """Whose home is the image's, and who owns the folder that the volume takes over."""
    for text in ((repo / "Dockerfile").read_text(), scaffold._TEMPLATE_DOCKERFILE):
        lines = text.splitlines()
        assert "install -d -o headrace -g headrace /var/lib/headrace" in text
        assert lines.index("USER headrace") > max(i for i, line in enumerate(lines) if line.startswith("RUN"))


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
    assert compose["services"]["train"]["build"]["args"] == {"TORCH_INDEX": NEEDED["TORCH_INDEX"]}
    for url, words in (("file:///wheels", "--extra-index-url file:///wheels"), ("", "--disable-pip-version-check -c")):
        command = ["make", "-n", "-W", "pyproject.toml", "setup", "PYTHON=python3", f"TORCH_INDEX={url}"]
        said = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True).stdout
        assert words in " ".join(said.split())


def test_docker_compose_accepts_the_file(repo):
    """Where Docker's compose is, it says that the file is valid; elsewhere the tests above stand alone."""
    docker = shutil.which("docker")
    has_compose = docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    if has_compose:
        done = subprocess.run(
            [docker, "compose", "config", "--quiet"], cwd=repo, capture_output=True, text=True, env=os.environ | NEEDED
        )
        assert done.returncode == 0, done.stderr
