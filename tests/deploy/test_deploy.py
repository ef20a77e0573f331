"""The files of deploy/: they parse, name what exists, and start what they say."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

import yaml
from prometheus_client.parser import text_string_to_metric_families

from valle2.runtime.server import cli
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exported() -> dict[str, str]:
    """Names that /metrics gives, each with the metric that it belongs to."""
    families = text_string_to_metric_families(Metrics().text().decode())
    named = [family for family in families if not family.name.endswith("_created")]
    return {family.name + suffix: family.name for family in named for suffix in SUFFIXES[family.type]}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads((DEPLOY / "grafana/valle2.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\bvalle2_\w+", query)}
    known = exported()
    assert asked <= set(known), "a query asks for a metric that the server does not have"
    assert {known[name] for name in asked} == set(known.values()), "a metric has no panel"


def test_the_dashboard_is_on_its_data_source() -> None:
    board = json.loads((DEPLOY / "grafana/valle2.json").read_text(encoding="utf-8"))
    source = read("grafana/datasource.yaml")["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})


def test_every_supervisor_starts_the_server_again() -> None:
    assert read("compose.yaml")["services"]["valle2"]["restart"] == "unless-stopped"
    unit = (DEPLOY / "valle2.service").read_text(encoding="utf-8")
    assert "Restart=on-failure" in unit
    words = shlex.split(re.findall("ExecStart=(.*)", unit)[0])
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert words[1] == "serve" and parser.parse_args(words[2:]).log_format == "json"


def test_compose_names_files_and_services_that_exist() -> None:
    compose = read("compose.yaml")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"]
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = compose["services"]["valle2"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    target = read("prometheus.yml")["scrape_configs"][0]
    assert target["static_configs"][0]["targets"] == ["valle2:8000"]
    assert target["authorization"]["credentials_file"] == "/run/secrets/api_key"
    paths = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    boards = read("grafana/dashboards.yaml")["providers"][0]["options"]["path"]
    assert f"{boards}/valle2.json" in paths
    parse([*entrypoint(DEPLOY / "Dockerfile"), *compose["services"]["valle2"]["command"]])


def entrypoint(path: Path) -> list[str]:
    """The command that a container runs."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return list(json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.M)[0]))


def parse(words: list[str]) -> argparse.Namespace:
    assert words[:2] == ["valle2", "serve"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    cli.add_arguments(parser)
    return parser.parse_args(words[2:])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_container_starts_the_server_with_a_key_and_without_root(path: Path) -> None:
    args = parse(entrypoint(path))
    assert (args.host, args.port) == ("0.0.0.0", 8000)
    assert str(args.api_key_file) == "/run/secrets/api_key"
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^USER (\d+)$", text, re.M)[-1] != "0" and "HEALTHCHECK" in text
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.M):
        for source in shlex.split(line)[:-1]:
            assert source == "." or (f"!{source}" in allowed and (ROOT / source).exists())


def test_files_and_documentation_give_the_same_commands() -> None:
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:docker|openssl) .+$", page, re.M)
    assert commands
    told = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in ("Dockerfile", "compose.yaml"))
    for command in commands:
        assert f"#   {command}\n" in told, f"docs/serving.md alone has: {command}"


def test_the_image_holds_what_the_package_is_made_of() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for folder in tools["tool"]["setuptools"]["package-dir"].values():
        assert f"!{folder.split('/')[0]}" in allowed


def test_the_ray_file_names_arguments_that_exist() -> None:
    from inspect import signature

    from valle2.runtime import Valle2

    application = read("ray-serve.yaml")["applications"][0]
    args, deployment = application["args"], application["deployments"][0]
    limits = Limits(**args.pop("limits"))
    args.pop("voices_dir")
    signature(Valle2.load).bind(**args)
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == limits.slots
    assert deployment["ray_actor_options"]["num_cpus"] == args["threads"]
    assert deployment["name"] == "Speech" and application["import_path"].endswith("ray_app:application")
