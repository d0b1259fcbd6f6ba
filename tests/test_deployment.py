"""The deployment files, held in shape where no Docker engine is at hand to run them."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).resolve().parents[1]
OURS = ("migrate", "worker", "flower")
# ${NAME}, ${NAME:-default} and ${NAME:?message}, as compose reads them
SUBSTITUTION = re.compile(r"\$\{(?P<name>\w+)(?P<rest>[^}]*)\}")
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def read_instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continuation lines joined."""
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    pairs = [line.split(maxsplit=1) for line in joined]
    return [(name.upper(), arguments) for name, arguments in pairs]


def last_stage() -> list[tuple[str, str]]:
    """The instructions of the stage that becomes the image."""
    instructions = read_instructions()
    start = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def arguments_of(wanted: str, instructions: list[tuple[str, str]]) -> list[str]:
    return [arguments for name, arguments in instructions if name == wanted]


def only(values: list[str]) -> str:
    (value,) = values
    return value


def read_ignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def copied_paths() -> set[str]:
    """What the Dockerfile takes from the build context."""
    copies = arguments_of("COPY", read_instructions())
    return {path for each in copies if not each.startswith("--from=") for path in each.split()[:-1]}


def every_string(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in every_string(each)]
    if isinstance(value, list):
        return [text for each in value for text in every_string(each)]
    return [str(value)]


class TestCompose:
    def test_the_services_are_the_five_that_operations_describes(
        self, services: dict[str, Any]
    ) -> None:
        assert set(services) == {"redis", "postgres", "migrate", "worker", "flower"}

    @pytest.mark.parametrize("name", ["redis", "postgres"])
    def test_a_foreign_image_is_pinned_to_a_major_version(
        self, services: dict[str, Any], name: str
    ) -> None:
        assert re.fullmatch(rf"{name}:\d+(\.\d+)*-alpine", services[name]["image"])

    @pytest.mark.parametrize("name", OURS)
    def test_our_image_is_built_here_and_carries_the_projects_version(
        self, services: dict[str, Any], project: dict[str, Any], name: str
    ) -> None:
        assert services[name]["image"] == f"tgp-jobs:{project['project']['version']}"
        assert services[name]["build"]["context"] == "."
        assert services[name]["pull_policy"] == "build"

    def test_ports_are_published_on_the_loopback_only(self, services: dict[str, Any]) -> None:
        published = {name: service.get("ports", []) for name, service in services.items()}
        assert published == {
            "redis": ["127.0.0.1:6379:6379"],
            "postgres": ["127.0.0.1:5432:5432"],
            "flower": ["127.0.0.1:5555:5555"],
            "migrate": [],
            "worker": [],
        }

    def test_no_service_goes_round_the_published_ports(self, services: dict[str, Any]) -> None:
        reaching_out = {"network_mode", "privileged", "pid", "ipc", "expose"}
        assert all(not reaching_out & set(service) for service in services.values())

    def test_what_must_outlive_a_container_is_in_a_declared_volume(
        self, compose: dict[str, Any]
    ) -> None:
        mounts = {name: each.get("volumes") for name, each in compose["services"].items()}
        assert mounts == {
            "redis": ["redis:/data"],
            "postgres": ["postgres:/var/lib/postgresql/data"],
            "migrate": ["state:/data"],
            "worker": ["state:/data"],
            "flower": ["state:/data"],
        }
        assert set(compose["volumes"]) == {"redis", "postgres", "state"}

    def test_redis_keeps_its_queue_and_refuses_rather_than_forgets(
        self, services: dict[str, Any]
    ) -> None:
        command = services["redis"]["command"]
        options = dict(zip(command[1::2], command[2::2], strict=True))
        assert command[0] == "redis-server"
        assert options["--appendonly"] == "yes"
        assert options["--maxmemory-policy"] == "noeviction"
        assert options["--requirepass"].startswith("${REDIS_PASSWORD:?")

    def test_redis_is_healthy_only_when_it_answers_with_its_password(
        self, services: dict[str, Any]
    ) -> None:
        redis = services["redis"]
        assert redis["environment"]["REDISCLI_AUTH"].startswith("${REDIS_PASSWORD:?")
        assert redis["healthcheck"]["test"] == ["CMD-SHELL", "redis-cli ping | grep -q PONG"]

    def test_postgres_is_healthy_only_when_it_answers_over_tcp(
        self, services: dict[str, Any]
    ) -> None:
        test = services["postgres"]["healthcheck"]["test"]
        environment = services["postgres"]["environment"]
        options = dict(zip(test[2::2], test[3::2], strict=True))
        assert test[:2] == ["CMD", "pg_isready"]
        assert options == {
            "-h": "127.0.0.1",
            "-U": environment["POSTGRES_USER"],
            "-d": environment["POSTGRES_DB"],
        }

    def test_every_long_running_service_has_a_health_check(self, services: dict[str, Any]) -> None:
        checked = {name for name in services if services[name].get("healthcheck", {}).get("test")}
        if arguments_of("HEALTHCHECK", last_stage()):
            checked.add("worker")  # the image's own
        assert checked == set(services) - {"migrate"}

    def test_the_migration_runs_once_after_postgres_is_up(self, services: dict[str, Any]) -> None:
        migrate = services["migrate"]
        assert migrate["command"] == ["db", "upgrade"]
        assert migrate["restart"] == "no"
        assert migrate["healthcheck"] == {"disable": True}
        assert migrate["depends_on"] == {"postgres": {"condition": "service_healthy"}}

    def test_the_worker_waits_for_redis_and_the_migration(self, services: dict[str, Any]) -> None:
        assert services["worker"]["command"] == ["worker"]
        assert services["worker"]["depends_on"] == {
            "redis": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }

    def test_the_worker_reserves_one_gpu_and_nothing_else_does(
        self, services: dict[str, Any]
    ) -> None:
        reserved = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert reserved == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
        assert [name for name in services if "deploy" in services[name]] == ["worker"]

    def test_the_worker_has_a_minute_to_hand_its_shard_back(self, services: dict[str, Any]) -> None:
        assert services["worker"]["stop_grace_period"] == "60s"
        assert services["worker"]["init"] is True

    @pytest.mark.parametrize("name", ["redis", "postgres", "worker", "flower"])
    def test_a_long_running_service_comes_back_after_a_reboot(
        self, services: dict[str, Any], name: str
    ) -> None:
        assert services[name]["restart"] == "unless-stopped"

    def test_flower_starts_only_when_its_profile_is_asked_for(
        self, services: dict[str, Any]
    ) -> None:
        profiles = {name: service.get("profiles", []) for name, service in services.items()}
        assert profiles.pop("flower") == ["flower"]
        assert not any(profiles.values())

    def test_flower_shows_the_workers_own_celery_app(self, services: dict[str, Any]) -> None:
        flower = services["flower"]
        assert flower["entrypoint"] == ["celery"]
        assert flower["command"][:3] == ["-A", "worker.celery_app", "flower"]
        assert flower["depends_on"] == {"redis": {"condition": "service_healthy"}}

    @pytest.mark.parametrize("name", OURS)
    def test_our_services_reach_redis_and_postgres_by_their_service_names(
        self, services: dict[str, Any], name: str
    ) -> None:
        environment = {
            variable: SUBSTITUTION.sub("secret", text)
            for variable, text in services[name]["environment"].items()
        }
        postgres = services["postgres"]["environment"]
        user, database = postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]
        assert environment == {
            "TGP_REDIS_URL": "redis://:secret@redis:6379/0",
            "TGP_DATABASE_URL": f"postgresql://{user}:secret@postgres:5432/{database}",
        }


class TestSecrets:
    def test_no_password_is_written_down_and_a_missing_one_is_an_error(
        self, services: dict[str, Any]
    ) -> None:
        named = [
            str(value)
            for service in services.values()
            for variable, value in service.get("environment", {}).items()
            if SECRET_NAME.search(variable)
        ]
        in_urls = [
            match["password"]
            for text in every_string(services)
            for match in re.finditer(r"://\w*:(?P<password>\$\{[^}]*\}|[^@/\s]*)@", text)
        ]
        after_option = [
            command[command.index("--requirepass") + 1]
            for command in (service.get("command", []) for service in services.values())
            if "--requirepass" in command
        ]
        secrets = named + in_urls + after_option
        assert len(named) == 2
        assert len(in_urls) == 2 * len(OURS)
        assert len(after_option) == 1
        assert [each for each in secrets if not re.fullmatch(r"\$\{\w+:\?[^}]+\}", each)] == []

    def test_the_example_names_every_variable_compose_takes_from_the_environment(self) -> None:
        taken = {
            match["name"]
            for match in SUBSTITUTION.finditer((ROOT / "docker-compose.yml").read_text())
        }
        lines = (ROOT / ".env.example").read_text().splitlines()
        offered = {line.split("=")[0] for line in lines if line and not line.startswith("#")}
        assert offered == taken

    def test_the_example_holds_no_value_and_says_how_to_make_one(self) -> None:
        text = (ROOT / ".env.example").read_text()
        assert re.findall(r"^\w+=(.+)$", text, flags=re.MULTILINE) == []
        assert "openssl rand -hex" in text
        assert "secrets.token_hex" in text
        assert "letters and digits only" in text

    @pytest.mark.parametrize(("name", "ignored"), [(".env", True), (".env.example", False)])
    def test_git_ignores_the_secrets_but_not_their_example(self, name: str, ignored: bool) -> None:
        answer = subprocess.run(
            ["git", "check-ignore", "--quiet", "--no-index", name], cwd=ROOT, check=False
        )
        assert (answer.returncode == 0) is ignored


class TestDockerfile:
    def test_every_stage_stands_on_the_same_slim_python_that_the_project_supports(
        self, project: dict[str, Any]
    ) -> None:
        instructions = read_instructions()
        assert {each.split()[0] for each in arguments_of("FROM", instructions)} == {
            "python:${PYTHON_VERSION}-slim"
        }
        versions = [each for each in arguments_of("ARG", instructions) if "PYTHON" in each]
        version = only(versions).removeprefix("PYTHON_VERSION=")
        assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]

    def test_no_registry_or_index_is_written_down(self) -> None:
        assert "://" not in (ROOT / "Dockerfile").read_text()
        assert 'TORCH_INDEX_URL=""' in arguments_of("ARG", read_instructions())

    def test_compose_passes_only_build_arguments_that_the_dockerfile_takes(
        self, services: dict[str, Any]
    ) -> None:
        taken = {each.split("=")[0] for each in arguments_of("ARG", read_instructions())}
        assert set(services["worker"]["build"]["args"]) <= taken

    def test_the_worker_and_flower_groups_are_installed_at_their_pins(
        self, project: dict[str, Any]
    ) -> None:
        installs = [each for each in arguments_of("RUN", read_instructions()) if ".[" in each]
        install = only(installs)
        groups = re.findall(r"'\.\[(.*)\]'", install)
        assert groups == ["worker,flower"]
        assert {"worker", "flower"} <= set(project["project"]["optional-dependencies"])
        assert "-c constraints.txt" in install

    def test_the_image_runs_as_an_unprivileged_user_who_owns_the_state(self) -> None:
        stage = last_stage()
        assert only(arguments_of("USER", stage)) == "10001:10001"
        setup = " ".join(arguments_of("RUN", stage))
        assert "useradd --uid 10001 --gid 10001" in setup
        assert re.search(r"install -d -o 10001 -g 10001 -m 0700 /data /data/hf", setup)
        after_user = stage[[name for name, _ in stage].index("USER") + 1 :]
        assert not arguments_of("RUN", after_user)

    def test_state_and_model_files_live_in_the_volume(self) -> None:
        stage = last_stage()
        environment = dict(
            pair.split("=", 1) for each in arguments_of("ENV", stage) for pair in each.split()
        )
        assert only(arguments_of("VOLUME", stage)) == "/data"
        assert environment["TGP_HOME"] == "/data"
        assert environment["HF_HOME"] == "/data/hf"

    def test_the_working_directory_cannot_shadow_the_packages(self) -> None:
        assert only(arguments_of("WORKDIR", last_stage())) == "/data"

    def test_the_entry_point_is_a_script_of_the_project_in_exec_form(
        self, project: dict[str, Any]
    ) -> None:
        entry_point = json.loads(only(arguments_of("ENTRYPOINT", last_stage())))
        assert entry_point == ["tgp-jobs"]
        assert entry_point[0] in project["project"]["scripts"]
        assert json.loads(only(arguments_of("CMD", last_stage()))) == ["worker"]

    def test_the_health_check_asks_this_containers_worker_only(self) -> None:
        check = only(arguments_of("HEALTHCHECK", last_stage()))
        assert "celery -A worker.celery_app inspect ping" in check
        assert '--destination "celery@$(hostname)"' in check

    def test_everything_the_wheel_is_built_from_is_copied(self, project: dict[str, Any]) -> None:
        wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
        needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"]}
        assert copied_paths() == needed | {"pyproject.toml", "constraints.txt"}

    def test_nothing_that_is_copied_is_kept_out_of_the_build_context(self) -> None:
        patterns = read_ignore_patterns()
        parents = {part for path in copied_paths() for part in (path, path.split("/")[0])}
        assert [path for path in parents if any(fnmatch(path, each) for each in patterns)] == []

    @pytest.mark.parametrize("name", [".git", ".env", ".venv"])
    def test_secrets_history_and_environments_stay_out_of_the_build_context(
        self, name: str
    ) -> None:
        assert name in read_ignore_patterns()
        assert not any(each.startswith("!") for each in read_ignore_patterns())


def test_every_tgp_variable_in_the_deployment_is_a_setting() -> None:
    known = {ENVIRONMENT_PREFIX + each.name.upper() for each in fields(Settings)} | {"TGP_CONFIG"}
    used = {
        variable
        for name in ("Dockerfile", "docker-compose.yml", ".env.example")
        for variable in re.findall(r"\bTGP_[A-Z_]+", (ROOT / name).read_text())
    }
    assert used
    assert used - known == set()


class TestPreCommit:
    def test_the_hooks_are_local_and_run_what_make_lint_runs(self) -> None:
        repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        assert [each["repo"] for each in repositories] == ["local"]
        hooks = repositories[0]["hooks"]
        assert {each["language"] for each in hooks} == {"system"}
        entries = [each["entry"].removeprefix(".venv/bin/") for each in hooks]
        assert [entry.removesuffix(" --force-exclude") for entry in entries] == [
            "ruff check",
            "ruff format --check",
            "mypy",
            "lint-imports",
        ]
