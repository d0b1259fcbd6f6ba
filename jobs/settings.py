"""Every setting, once: its TOML key, its TGP_ variable, its default and what it means.

Precedence rises from the default over the TOML file and the environment to a
command's flag, where None always means "not given here".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from jobs.errors import SettingsError
from jobs.sizes import parse_size
from jobs.wording import describe

Device = Literal["auto", "cuda", "cpu"]
ComputeMode = Literal["llm_int8", "w8a16"]
CacheKind = Literal["float", "int8"]

ENVIRONMENT_PREFIX = "TGP_"
# sun_path holds 108 bytes on Linux; redis-server refuses longer socket paths.
LONGEST_SOCKET_PATH_BYTES = 100
# From the first colon after the user to the last @: a password may hold any of "/?#@".
_PASSWORD = re.compile(r"^((?:[A-Za-z][\w+.-]*://)?[^/:@]*:)(?!//).+@", re.DOTALL)
# Without an @, as where the host was forgotten: whatever stands for a port and is none.
_FORGOTTEN_HOST = re.compile(r"^([A-Za-z][\w+.-]*://[^/:\[?#]*:)(?!\d*(?:[/?#]|$)).*", re.DOTALL)
_URL_IN_TEXT = re.compile(r"([A-Za-z][\w+.-]*://[^\s/:@]*:)[^\s@]+@")
_KEY_AND_VALUE = re.compile(r"(?P<key>[^\s=&?;]+)(?P<is>\s*=\s*)(?P<value>[^\s&;]+)")


def _path(text: str) -> Path:
    return expanded_path(text).absolute()


def expanded_path(text: str | Path) -> Path:
    """The path with the home directory in the place of ~.

    Raises:
        ValueError: It can be no file's path; the text says what was expected.
    """
    shown = str(text)
    if "\0" in shown or not _is_text(shown):
        raise ValueError("a path in UTF-8 without NUL characters")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path whose ~ is the home directory of a user there is") from None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the environment that are no UTF-8
        return False
    return True


def _between(low: float, high: float, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    noun = "a whole number" if convert is int else "a number"
    expected = f"{noun} from {low:g} to {high:g}"

    def check(value: Any) -> Any:
        # A file's 2.5 must not become 2 in silence.
        if isinstance(value, bool) or (convert is int and isinstance(value, float)):
            raise ValueError(expected)
        try:
            number = convert(value)
        except (TypeError, ValueError):
            raise ValueError(expected) from None
        if not low <= number <= high:
            raise ValueError(expected)
        return number

    return check


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return check


def _size(value: Any) -> int:
    """Bytes; more than none, since a budget of nothing is a slip of the pen."""
    expected = "a number with a unit, such as 14.5GiB, 10GB or 512MiB"
    try:
        size = parse_size(value) if isinstance(value, str) else 0
    except ValueError:
        raise ValueError(expected) from None
    if size < 1:
        raise ValueError(expected)
    return size


def _url(*schemes: str) -> Callable[[Any], str]:
    expected = f"a URL starting with {' or '.join(f'{scheme}://' for scheme in schemes)}"

    def check(value: Any) -> str:
        if not isinstance(value, str) or not value.startswith(tuple(f"{s}://" for s in schemes)):
            raise ValueError(expected)
        if not value.isprintable() or " " in value:
            raise ValueError("a URL that spells spaces and control characters with %")
        if ";" in value:
            # kombu takes what follows for another URL.
            raise ValueError("a URL that spells a semicolon as %3B")
        try:
            parts = urlsplit(value)
        except ValueError:
            raise ValueError("a URL that can be read") from None
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("a URL whose port is a number") from None
        if parts.netloc.count("@") > 1:
            # Libraries differ in which one ends the password, and the rest of
            # it would be shown as a host.
            raise ValueError("a URL that spells an @ in a password as %40")
        return value

    return check


def _text_path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("a path")
    return _path(str(value))


def _setting(
    default: Any, parse: Callable[[Any], Any], meaning: str, *, metavar: str | None = None
) -> Any:
    """A setting; metavar is what help shows for its value where the default does not tell."""
    return field(default=default, metadata={"parse": parse, "meaning": meaning, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one entry point was told; built once there and passed down."""

    home: Path = _setting(
        None,
        _text_path,
        "state directory: database, embedded Redis, settings (in the user's data directory)",
    )
    database_url: str | None = _setting(
        None,
        _url("sqlite", "postgresql", "postgresql+psycopg"),
        "database of jobs and results (SQLite in the state directory)",
    )
    redis_url: str | None = _setting(
        None,
        _url("redis", "rediss", "redis+socket"),
        "Redis, which carries messages to workers (an embedded one in the state directory)",
    )
    catalogue: Path | None = _setting(
        None, _text_path, "TOML file with more models (catalogue.toml in the state directory)"
    )
    stores: Path | None = _setting(
        None, _text_path, "folder for int8 copies of models (stores in the state directory)"
    )
    shard_size: int = _setting(256, _between(1, 100_000, int), "prompts per shard")
    micro_batch_rows: int | None = _setting(
        None,
        _between(1, 4096, int),
        "most prompts generated together (as many as the model's plan has)",
        metavar="N",
    )
    shards_at_once: int = _setting(
        2,
        _between(1, 8, int),
        "shards of a model that a worker holds at once, their prompts in one batch",
    )
    device: Device = _setting("auto", _one_of("auto", "cuda", "cpu"), "where the model runs")
    compute_mode: ComputeMode = _setting(
        "llm_int8", _one_of("llm_int8", "w8a16"), "how int8 weights are multiplied"
    )
    gpu_memory: int | None = _setting(
        None, _size, "GPU memory for weights, cache and computing (what is free)", metavar="SIZE"
    )
    cpu_memory: int | None = _setting(None, _size, "RAM for weights (what is free)", metavar="SIZE")
    kv_cache: CacheKind = _setting(
        "float", _one_of("float", "int8"), "how keys and values are kept"
    )
    disk_readers: int = _setting(2, _between(1, 16, int), "threads that read weights from disk")
    lease_seconds: float = _setting(
        60.0, _between(0.2, 86_400, float), "seconds that a shard stays with a silent worker"
    )
    sweep_seconds: float = _setting(30.0, _between(0.1, 3_600, float), "seconds between two sweeps")
    max_crashes: int = _setting(
        3,
        _between(1, 100, int),
        "deaths of workers before a shard is split, or its one prompt failed",
    )
    sticky_seconds: float = _setting(
        900.0,
        _between(0, 86_400, float),
        "longest stay with one model, in seconds, while others wait",
    )
    log_format: str = _setting("text", _one_of("text", "json"), "form of the worker's log lines")

    @property
    def effective_database_url(self) -> str:
        """The database's SQLAlchemy URL, always naming its driver."""
        if self.database_url is None:
            return f"sqlite:///{self.home / 'tgp-jobs.db'}"
        if self.database_url.startswith("postgresql://"):
            return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)
        return self.database_url

    @property
    def redis_is_embedded(self) -> bool:
        return self.redis_url is None

    @property
    def redis_socket(self) -> Path:
        """Where the embedded Redis listens; short enough for the kernel."""
        inside = self.home / "redis" / "redis.sock"
        if len(os.fsencode(inside)) <= LONGEST_SOCKET_PATH_BYTES:
            return inside
        import hashlib
        import tempfile

        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"tgp-jobs-{os.getuid()}-{digest}" / "redis.sock"

    @property
    def effective_redis_url(self) -> str:
        """The broker URL in kombu's spelling."""
        if self.redis_url is None:
            return f"redis+socket://{quote(str(self.redis_socket))}"
        return self.redis_url

    @property
    def catalogue_path(self) -> Path:
        return self.catalogue or self.home / "catalogue.toml"

    @property
    def throughputs_path(self) -> Path:
        """Where measured rates of this machine are kept."""
        return self.home / "throughputs.json"

    @property
    def stores_path(self) -> Path:
        return self.stores or self.home / "stores"


def default_home() -> Path:
    """The platform's user data directory for tgp-jobs."""
    from platformdirs import user_data_path  # costs time, and a home is often given

    return user_data_path("tgp-jobs", appauthor=False)


def load_settings(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Resolve every setting: default, then TOML file, then environment, then flag.

    Args:
        flags: Values given on the command line; None means not given.
        environ: The environment, ``os.environ`` by default.

    Raises:
        SettingsError: A key is unknown or a value cannot be used; the message
            names where it stands and what was expected.
    """
    environ = os.environ if environ is None else environ
    flags = {} if flags is None else flags
    values: dict[str, Any] = {}
    known = {each.name: each for each in fields(Settings)}

    def take(name: str, value: Any, source: str) -> None:
        try:
            values[name] = known[name].metadata["parse"](value)
        except ValueError as error:
            # Nothing of a list: a URL in it would be shown whole.
            shown = repr(redact_url(value)) if isinstance(value, str) else describe(value)
            raise SettingsError(f"{source}: {shown} is not usable; expected {error}") from None

    # home decides where the TOML file is, so it is resolved before it.
    environment_home = environ.get(f"{ENVIRONMENT_PREFIX}HOME") or None
    if flags.get("home") is not None:
        take("home", flags["home"], "--home")
    elif environment_home is not None:
        take("home", environment_home, "TGP_HOME")
    else:
        values["home"] = default_home()
    home = values["home"]

    try:
        path = _path(environ.get("TGP_CONFIG") or str(home / "config.toml"))
    except ValueError as error:
        raise SettingsError(f"TGP_CONFIG: expected {error}") from None
    for name, value in _read_toml(path, required=bool(environ.get("TGP_CONFIG"))).items():
        if name not in known or name == "home":
            names = ", ".join(sorted(set(known) - {"home"}))
            raise SettingsError(f"{path}: unknown setting {name!r}; known: {names}")
        if known[name].metadata["parse"] is _text_path and isinstance(value, str):
            # A path in a file is meant from that file's folder, wherever one stands.
            value = _from_folder(path, name, value)  # noqa: PLW2901
        take(name, value, f"{path}: {name}")
    for name in known:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if name != "home" and environ.get(variable):
            take(name, environ[variable], variable)
    for name, value in flags.items():
        if value is not None and name != "home":
            take(name, value, "--" + name.replace("_", "-"))
    return Settings(**values)


def _from_folder(path: Path, name: str, value: str) -> str | Path:
    try:
        return path.parent / expanded_path(value) if value else value
    except ValueError as error:
        raise SettingsError(f"{path}: {name}: expected {error}") from None


def _read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            import tomllib  # where there is a file to read

            return tomllib.load(file)
    except FileNotFoundError:
        if required:
            raise SettingsError(f"TGP_CONFIG: there is no file {path}") from None
        return {}
    except (OSError, ValueError) as error:  # what is no TOML or no UTF-8 is a ValueError
        raise SettingsError(f"{path}: cannot be read: {error}") from None


def make_home(settings: Settings) -> None:
    """Create the state directory, readable by its owner only."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)


def redact_url(url: Any) -> str:
    """A URL with its passwords replaced, fit for logs and messages.

    By pattern rather than by parsing, since what cannot be parsed is what
    messages are about; it hides too much rather than too little.
    """
    hidden = _PASSWORD.sub(r"\1***@", str(url), count=1)
    if "@" not in hidden:
        hidden = _FORGOTTEN_HOST.sub(r"\1***", hidden)
    return _KEY_AND_VALUE.sub(_hidden_if_secret, hidden)


def redact_text(text: str) -> str:
    """A text with the passwords of the URLs in it replaced."""
    return _KEY_AND_VALUE.sub(_hidden_if_secret, _URL_IN_TEXT.sub(r"\1***@", text))


def _hidden_if_secret(match: re.Match[str]) -> str:
    # The key may be percent-encoded, which libraries undo.
    key = unquote(match["key"]).lower()
    is_secret = any(word in key for word in ("pass", "pwd", "secret", "token"))
    return f"{match['key']}{match['is']}***" if is_secret else match[0]
