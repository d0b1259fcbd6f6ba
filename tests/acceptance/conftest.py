from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.box import Box
from tests.services import RealRedis


@pytest.fixture
def short_folder() -> Iterator[Path]:
    # Not pytest's tmp_path: the embedded Redis' socket lies inside.
    folder = Path(tempfile.mkdtemp(prefix="tgp-box-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def box(short_folder: Path) -> Iterator[Box]:
    """SQLite and an embedded Redis: nothing set up, as on a first day."""
    box = Box(short_folder)
    yield box
    box.close()


@pytest.fixture
def postgres_box(short_folder: Path, postgres_url: str, real_redis: RealRedis) -> Iterator[Box]:
    """Postgres and Redis by URL, as with several boxes."""
    box = Box(short_folder, {"TGP_DATABASE_URL": postgres_url, "TGP_REDIS_URL": real_redis.url})
    yield box
    box.close()


@pytest.fixture(params=["box", "postgres_box"], ids=["sqlite-embedded", "postgres-redis"])
def any_box(request: pytest.FixtureRequest) -> Box:
    """Each of the two."""
    box: Box = request.getfixturevalue(request.param)
    return box
