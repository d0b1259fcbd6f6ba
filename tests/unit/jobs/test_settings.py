"""Each setting has a default, a TOML key, a variable and a flag, of rising precedence."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_data_path

from jobs.errors import SettingsError
from jobs.settings import (
    LONGEST_SOCKET_PATH_BYTES,
    Settings,
    default_home,
    load_settings,
    make_home,
    redact_url,
)

# Of each setting but home: its default, and a value each for file, environment
# and flag. Paths and URLs are texts wherever a user writes them.
VALUES: dict[str, tuple[Any, Any, Any, Any]] = {
    "database_url": (None, "sqlite:////f.db", "sqlite:////e.db", "postgresql://u:p@h/db"),
    "redis_url": (None, "redis://file/0", "rediss://environment/0", "redis+socket:///r.sock"),
    "catalogue": (None, Path("/file.toml"), Path("/environment.toml"), Path("/flag.toml")),
    "stores": (None, Path("/file"), Path("/environment"), Path("/flag")),
    "shard_size": (256, 1, 2, 3),
    "micro_batch_rows": (None, 1, 2, 3),
    "shards_at_once": (2, 1, 3, 8),
    "compute_mode": ("llm_int8", "w8a16", "llm_int8", "w8a16"),
    "gpu_memory": (None, 29 * 2**29, 10**10, 2**30),
    "cpu_memory": (None, 2**30, 29 * 2**29, 10**10),
    "kv_cache": ("float", "int8", "float", "int8"),
    "disk_readers": (2, 1, 16, 4),
    "device": ("auto", "cuda", "cpu", "auto"),
    "lease_seconds": (60.0, 1.5, 2.5, 3.5),
    "sweep_seconds": (30.0, 1.5, 2.5, 3.5),
    "max_crashes": (3, 1, 2, 4),
    "sticky_seconds": (900.0, 0.0, 2.5, 3.5),
    "log_format": ("text", "json", "text", "json"),
}


# Sizes are texts wherever a user writes them.
SPELLED = {29 * 2**29: "14.5GiB", 10**10: "10GB", 2**30: "1024 MiB"}


def toml_of(name: str, value: Any) -> str:
    value = SPELLED.get(value, value)
    written = value if isinstance(value, int | float) else f'"{value}"'
    return f"{name} = {written}\n"


def write_config(home: Path, text: str) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "config.toml"
    path.write_text(text)
    return path


def test_every_setting_is_tested_here() -> None:
    assert {*VALUES, "home"} == {each.name for each in fields(Settings)}


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_comes_from_the_nearest_place_that_gives_it(home: Path, name: str) -> None:
    default, in_file, in_environment, in_flag = VALUES[name]
    flags = {"home": str(home), name: None}
    environ: dict[str, str] = {}

    def resolved() -> Any:
        return getattr(load_settings(flags, environ), name)

    # nothing given, then a file, then the environment, then a flag
    seen = [resolved()]
    write_config(home, toml_of(name, in_file))
    seen.append(resolved())
    environ[f"TGP_{name.upper()}"] = str(SPELLED.get(in_environment, in_environment))
    seen.append(resolved())
    flags[name] = str(SPELLED.get(in_flag, in_flag))
    seen.append(resolved())
    assert seen == [default, in_file, in_environment, in_flag]
    assert [type(value) for value in seen[1:]] == [type(in_file)] * 3


def test_home_is_the_platform_s_data_folder_unless_told(tmp_path: Path) -> None:
    told = str(tmp_path / "environment")
    flag = str(tmp_path / "flag")
    assert default_home() == user_data_path("tgp-jobs", appauthor=False)
    assert load_settings({}, {"TGP_HOME": told}).home == Path(told)
    assert load_settings({"home": flag}, {"TGP_HOME": told}).home == Path(flag)


def test_an_empty_variable_is_one_that_is_not_set(home: Path) -> None:
    settings = load_settings({"home": home}, {"TGP_REDIS_URL": "", "TGP_SHARD_SIZE": ""})
    assert (settings.redis_url, settings.shard_size) == (None, 256)


def test_another_file_can_be_named(home: Path, tmp_path: Path) -> None:
    write_config(home, "shard_size = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("shard_size = 2\n")
    assert load_settings({"home": home}, {"TGP_CONFIG": str(other)}).shard_size == 2


def test_a_file_that_was_named_must_be_there(home: Path) -> None:
    with pytest.raises(SettingsError, match=r"^TGP_CONFIG: there is no file /not/here\.toml$"):
        load_settings({"home": home}, {"TGP_CONFIG": "/not/here.toml"})


def refusal(flags: dict[str, Any], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environ or {})
    return caught.value.message


def test_an_unknown_key_names_the_file_and_the_known_ones(home: Path) -> None:
    path = write_config(home, "shardsize = 3\n")
    message = refusal({"home": home})
    assert message.startswith(
        f"{path}: unknown setting 'shardsize'; known: catalogue, compute_mode"
    )
    assert all(name in message for name in VALUES)


def test_a_file_cannot_move_the_home_it_is_in(home: Path) -> None:
    write_config(home, 'home = "/elsewhere"\n')
    assert "unknown setting 'home'" in refusal({"home": home})


@pytest.mark.parametrize("text", ["shard_size = \n", "\xff"], ids=["syntax", "encoding"])
def test_a_file_that_is_no_toml_is_named(home: Path, text: str) -> None:
    path = write_config(home, "")
    path.write_bytes(text.encode("latin-1"))
    assert refusal({"home": home}).startswith(f"{path}: cannot be read: ")


WHOLE = "a whole number from 1 to 100000"
BAD_VALUES = [
    ("shard_size", 0, WHOLE),
    ("shard_size", 100_001, WHOLE),
    ("shard_size", "many", WHOLE),
    ("shard_size", True, WHOLE),
    ("shard_size", 2.5, WHOLE),
    ("shard_size", float("inf"), WHOLE),
    ("shard_size", float("nan"), WHOLE),
    ("shard_size", [1], WHOLE),
    ("lease_seconds", 0.1, "a number from 0.2 to 86400"),
    ("lease_seconds", float("nan"), "a number from 0.2 to 86400"),
    ("lease_seconds", "long", "a number from 0.2 to 86400"),
    ("shards_at_once", 9, "a whole number from 1 to 8"),
    ("gpu_memory", "14.5", "a number with a unit, such as 14.5GiB, 10GB or 512MiB"),
    ("gpu_memory", "0GiB", "a number with a unit, such as 14.5GiB, 10GB or 512MiB"),
    ("cpu_memory", 10**10, "a number with a unit, such as 14.5GiB, 10GB or 512MiB"),
    ("compute_mode", "fp16", "one of llm_int8, w8a16"),
    ("kv_cache", "int4", "one of float, int8"),
    ("device", "tpu", "one of auto, cuda, cpu"),
    ("log_format", 3, "one of text, json"),
    ("catalogue", 3, "a path"),
    ("catalogue", "", "a path"),
    ("database_url", "mysql://h/db", "a URL starting with sqlite:// or postgresql:// or "
     "postgresql+psycopg://"),
    ("redis_url", 6379, "a URL starting with redis:// or rediss:// or redis+socket://"),
    ("redis_url", "redis://host:port/0", "a URL whose port is a number"),
    ("redis_url", "redis://[::1/0", "a URL that can be read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), BAD_VALUES, ids=str)
def test_a_bad_flag_says_which_and_what_was_expected(
    home: Path, name: str, value: Any, expected: str
) -> None:
    message = refusal({"home": home, name: value})
    flag = "--" + name.replace("_", "-")
    assert message.startswith(f"{flag}: ")
    assert message.endswith(f" is not usable; expected {expected}")


def test_a_bad_value_in_a_file_names_file_and_key(home: Path) -> None:
    path = write_config(home, "shard_size = 0\n")
    assert refusal({"home": home}) == f"{path}: shard_size: 0 is not usable; expected {WHOLE}"


def test_a_bad_variable_is_named(home: Path) -> None:
    message = refusal({"home": home}, {"TGP_SHARD_SIZE": "x"})
    assert message == f"TGP_SHARD_SIZE: 'x' is not usable; expected {WHOLE}"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@host/0",
        "user:hunter2@host/0",
        "http://:hunter2@host:port/0",
        "http://:hun/ter2hunter2@host/0",
        "http://user:#?hunter2@host/0",
        "http://user:p@hunter2@host/0",
        "http://host/db?password=hunter2&x=1",
        "http://[:hunter2@host/0",
        # What one library takes for the password's end another takes for the host's.
        "redis://:p@hunter2@host/0",
        "postgresql://user:p@hunter2@host/0",
        # The host was forgotten, or the scheme, or the URL is no URL.
        "redis://user:hunter2",
        "postgresql://user:hunter2/db",
        "host=db user=u password=hunter2",
        "host=db password = hunter2 user=u",
        "redis://host:port/0?pass%77ord=hunter2",
        "postgresql://host:port/db?sslpassword=hunter2",
        "redis://host:port/0?passwd=hunter2#",
        "redis://host/ 0?token=hunter2",
        "redis://:hunter2;x@host/0",
        "redis://:hunter2@a/0;redis://:hunter2@b/0",
        ["redis://:hunter2@host/0"],
        {"url": "redis://:hunter2@host/0"},
    ],
)
def test_no_password_is_shown_when_a_url_is_refused(home: Path, url: object) -> None:
    for name in ("redis_url", "database_url"):
        assert "hunter2" not in refusal({"home": home, name: url})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user@host/0", "redis://user@host/0"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://user:secret@host/0", "redis://user:***@host/0"),
        ("postgresql+psycopg://u:secret@h/db?x=1", "postgresql+psycopg://u:***@h/db?x=1"),
        (
            "postgresql://h/db?user=u&password=secret&x=1",
            "postgresql://h/db?user=u&password=***&x=1",
        ),
        ("redis+socket:///run/r.sock", "redis+socket:///run/r.sock"),
        ("redis://:hun%40ter%2F@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://host/0?pass%77ord=hunter2", "redis://host/0?pass%77ord=***"),
        ("sqlite:////srv/a@b:c.db", "sqlite:////srv/a@b:c.db"),
    ],
)
def test_a_url_is_shown_without_its_password_only(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_nothing_set_means_sqlite_and_an_embedded_redis_at_home(home: Path) -> None:
    settings = Settings(home=home)
    assert settings.effective_database_url == f"sqlite:///{home / 'tgp-jobs.db'}"
    assert settings.redis_is_embedded
    assert settings.catalogue_path == home / "catalogue.toml"


def test_a_postgres_url_gets_its_driver(home: Path) -> None:
    settings = Settings(home=home, database_url="postgresql://u:p@h:5/db?sslmode=require")
    assert settings.effective_database_url == "postgresql+psycopg://u:p@h:5/db?sslmode=require"


def test_a_socket_lies_at_home_where_its_path_is_short(tmp_path: Path) -> None:
    home = Path("/srv/tgp")
    assert Settings(home=home).redis_socket == home / "redis" / "redis.sock"


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_socket_s_path_is_short_however_long_home_is(tmp_path: Path, letter: str) -> None:
    first, second = (Settings(home=Path("/srv", letter * 200, name)) for name in ("a", "b"))
    for settings in (first, second):
        assert len(os.fsencode(settings.redis_socket)) <= LONGEST_SOCKET_PATH_BYTES
        assert settings.redis_socket == Settings(home=settings.home).redis_socket
    assert first.redis_socket != second.redis_socket


def test_home_is_made_for_its_owner_only(home: Path) -> None:
    make_home(Settings(home=home))
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_path_in_the_file_is_meant_from_the_file_s_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text('catalogue = "models/mine.toml"\n')
    settings = load_settings({"home": home}, {})
    assert settings.catalogue == home / "models" / "mine.toml"
